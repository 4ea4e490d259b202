//! The background learner: waits for judgements, runs, and watches what it has put into service.
//!
//! One trainer learns from a log at a time: it holds the store's lease, and every change of the registry is refused
//! once that is lost. Nothing here waits on a client, and no client waits for it.

mod checkpoint;
mod compare;
pub mod config;
mod data;
mod duty;
mod measure;
mod run;
pub mod status;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RlError;
use super::advantage::Baselines;
use super::lanes::Lane;
use super::policy::Policy;
use super::publish::{Order, Publisher};
use super::reward::Rewards;
use super::update::{Judged, UpdateReport};
use crate::adapters::{Routes, VersionId};
use crate::engine::Engine;
use crate::store::Store;
use crate::telemetry::metrics as names;
pub use config::{EstimatorKind, Promotion, TrainingConfig};
pub use duty::Duty;
use measure::Past;
use run::Run;
pub use run::learning_threads;
use status::{LaneStatus, LastRun, Phase, RunProgress, TrainerStatus};

/// How often the trainer looks for judgements.
const POLL: Duration = Duration::from_millis(500);
/// How often the versions in service are looked at.
const WATCH: Duration = Duration::from_secs(5);
/// How long the lease lasts without renewal.
const LEASE: Duration = Duration::from_secs(30);
/// Held-out completions that a gate compares versions on, the latest.
const HELD_OUT: usize = 128;
/// Weight of the past in the running means of singles.
const BASELINE_DECAY: f64 = 0.98;

/// What a trainer works with.
pub struct Parts {
    /// Completes prompts.
    pub engine: Engine,
    /// The log.
    pub store: Arc<dyn Store>,
    /// Puts versions into service.
    pub publisher: Arc<Publisher>,
    /// What completions are worth.
    pub rewards: Rewards,
    /// What must not get worse.
    pub guards: Rewards,
    /// The operator's decisions.
    pub config: TrainingConfig,
    /// Where checkpoints go.
    pub data_dir: PathBuf,
    /// Name of this process in the lease.
    pub holder: String,
}

/// What the handle and the task both see.
pub(super) struct Shared {
    status: Mutex<TrainerStatus>,
    wake: Notify,
    wanted: AtomicBool,
    paused: AtomicBool,
    cancelled: AtomicBool,
    baselines: tokio::sync::Mutex<Baselines>,
    promoted: Mutex<Option<Instant>>,
    /// What the gates so far had held out, the oldest first.
    held_out: Mutex<Vec<Judged>>,
    /// What the last gate's versions made.
    past: Past,
}

impl Shared {
    fn new(config: &TrainingConfig) -> Self {
        let lanes = Lane::ALL.map(|lane| (lane.as_str().to_owned(), LaneStatus::default())).into_iter().collect();
        let status = TrainerStatus { lanes, min_samples: config.min_samples, ..TrainerStatus::default() };
        Self {
            status: Mutex::new(status),
            wake: Notify::new(),
            wanted: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            baselines: tokio::sync::Mutex::new(Baselines::new(BASELINE_DECAY)),
            promoted: Mutex::new(None),
            held_out: Mutex::default(),
            past: Past::default(),
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut TrainerStatus) -> T) -> T {
        f(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn phase(&self, state: Phase) {
        self.with(|status| status.state = state);
    }

    fn wait(&self, state: Phase, reason: impl Into<String>) {
        let reason = reason.into();
        self.with(|status| (status.state, status.reason, status.run) = (state, reason, None));
    }

    fn progress(&self, done: usize, total: usize, last: &UpdateReport) {
        tracing::debug!(done, total, kl = last.kl, loss = last.loss, "learned from a batch");
        self.with(|status| status.run = Some(RunProgress { done, total, last: *last }));
    }

    fn lanes(&self, counts: &BTreeMap<Lane, (u64, BTreeMap<String, u64>)>) {
        for (lane, (used, dropped)) in counts {
            let count = |fate: &str, n: u64| {
                metrics::counter!(names::TRAINING_SAMPLES, "lane" => lane.as_str(), "fate" => fate.to_owned())
                    .increment(n);
            };
            count("used", *used);
            dropped.iter().for_each(|(reason, n)| count(reason, *n));
        }
        self.with(|status| {
            for (lane, (used, dropped)) in counts {
                let of = status.lanes.entry(lane.as_str().to_owned()).or_default();
                of.used += used;
                for (reason, n) in dropped {
                    *of.dropped.entry(reason.clone()).or_default() += n;
                }
            }
        });
    }

    /// Adds to what was held out, and gives all of it: one run alone may have held out next to nothing. It is forgotten
    /// when the server stops.
    fn held_out(&self, more: &[Judged]) -> Vec<Judged> {
        let mut all = self.held_out.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(more);
        let old = all.len().saturating_sub(HELD_OUT);
        all.drain(..old);
        all.clone()
    }

    fn promoted(&self) {
        *self.promoted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// The door to the background learner. Cheap to clone.
#[derive(Clone)]
pub struct Trainer {
    shared: Arc<Shared>,
    publisher: Arc<Publisher>,
}

impl Trainer {
    /// Starts the task; it ends with `stop`.
    ///
    /// # Errors
    /// When the configuration has a value without a meaning.
    pub fn start(parts: Parts, stop: CancellationToken) -> Result<(Self, tokio::task::JoinHandle<()>), RlError> {
        parts.config.validate()?;
        let shared = Arc::new(Shared::new(&parts.config));
        let trainer = Self { shared: Arc::clone(&shared), publisher: Arc::clone(&parts.publisher) };
        let task = tokio::spawn(Task { parts, shared, kept: None, last: None, watched: None }.work(stop));
        Ok((trainer, task))
    }

    /// What it is doing, from what, with what result.
    #[must_use]
    pub fn status(&self) -> TrainerStatus {
        self.shared.with(|status| status.clone())
    }

    /// Puts versions into service and takes them back.
    #[must_use]
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    /// Gives version `id` to everybody (`share` `None`) or to a share of the subjects, and watches what people say of it.
    ///
    /// # Errors
    /// As [`Publisher::promote`].
    pub async fn promote(&self, id: &VersionId, share: Option<f64>, order: &Order) -> Result<Routes, RlError> {
        let routes = self.publisher.promote(id, share, order).await?;
        self.shared.promoted();
        Ok(routes)
    }

    /// Starts a run as soon as possible, however few judgements there are.
    pub fn trigger(&self) {
        self.shared.wanted.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Starts no more runs; the one in progress ends after its batch.
    pub fn pause(&self) {
        self.shared.paused.store(true, Ordering::SeqCst);
        self.cancel();
    }

    /// Goes on.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Ends the run in progress after its micro-batch. Its judgements stay in the pool, and a run that finds the same ones
    /// goes on from its checkpoint.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

/// One run, here and now, however few judgements there are.
///
/// # Errors
/// When a value of the configuration has no meaning, another process learns from this log, or the store fails. A run
/// that fails is in what is returned.
pub async fn once(parts: Parts) -> Result<LastRun, RlError> {
    parts.config.validate()?;
    let Some(term) = parts.store.take_lease(&parts.holder, LEASE).await? else {
        let reason = "another process learns from this log; ask it with POST /training/trigger, or stop it";
        return Err(RlError::Refused(reason.to_owned()));
    };
    let shared = Arc::new(Shared::new(&parts.config));
    let mut task = Task { parts, shared, kept: None, last: None, watched: None };
    let outcome = task.run(term, "manual", &CancellationToken::new()).await;
    task.parts.store.release_lease(term).await?;
    outcome?;
    let last = task.shared.with(|status| status.last_run.clone());
    last.ok_or_else(|| RlError::Refused("the run left no trace".to_owned()))
}

struct Task {
    parts: Parts,
    shared: Arc<Shared>,
    /// The policy behind the version in service, with its optimiser's memory.
    kept: Option<(VersionId, Policy)>,
    /// When the last run started.
    last: Option<Instant>,
    /// When the versions in service were last looked at.
    watched: Option<Instant>,
}

impl Task {
    async fn work(mut self, stop: CancellationToken) {
        if !self.parts.config.enabled {
            self.shared.wait(Phase::Idle, "training.enabled is false");
            return;
        }
        let mut term = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
            if let Err(error) = self.turn(&mut term, &stop).await {
                tracing::warn!(%error, "the trainer waits");
                self.shared.wait(Phase::Idle, error.to_string());
            }
        }
        if let Some(term) = term {
            // The next trainer would only have to wait a little longer.
            let _ = self.parts.store.release_lease(term).await;
        }
    }

    /// Looks once, and runs if there is reason to.
    async fn turn(&mut self, term: &mut Option<u64>, stop: &CancellationToken) -> Result<(), RlError> {
        if self.shared.paused.load(Ordering::SeqCst) {
            self.shared.wait(Phase::Paused, "paused; POST /training/resume goes on");
            return Ok(());
        }
        *term = self.parts.store.take_lease(&self.parts.holder, LEASE).await?;
        let Some(term) = *term else {
            self.shared.wait(Phase::Idle, "another process holds the trainer's lease");
            return Ok(());
        };
        if self.watched.is_none_or(|last| last.elapsed() >= WATCH) {
            self.watched = Some(Instant::now());
            watch::watch(&self.parts, &self.shared, term).await?;
        }
        let Some(trigger) = self.due().await? else { return Ok(()) };
        self.run(term, trigger, stop).await
    }

    async fn run(&mut self, term: u64, trigger: &'static str, stop: &CancellationToken) -> Result<(), RlError> {
        self.shared.cancelled.store(false, Ordering::SeqCst);
        self.last = Some(Instant::now());
        let id = Uuid::now_v7();
        let run = Run { parts: &self.parts, shared: &self.shared, id, term, trigger };
        let outcome = tokio::select! {
            outcome = run.go(&mut self.kept) => outcome,
            error = hold(&self.parts.store, &self.shared, term) => Err(error),
            () = stop.cancelled() => {
                // The batch in progress ends; its checkpoint is what the next start goes on from.
                self.shared.cancelled.store(true, Ordering::SeqCst);
                return Ok(());
            }
        };
        self.ended(id, outcome).await
    }

    /// Why a run should start now, if it should.
    async fn due(&self) -> Result<Option<&'static str>, RlError> {
        let (config, counts) = (&self.parts.config, self.parts.store.pool_counts().await?);
        let waiting = counts.feedback + counts.preferences;
        self.shared.with(|status| (status.waiting, status.subjects) = (waiting, counts.subjects));
        if self.shared.wanted.swap(false, Ordering::SeqCst) {
            return Ok(Some("manual"));
        }
        let wait = |reason: String| {
            self.shared.wait(Phase::Collecting, reason);
            Ok(None)
        };
        let least = Duration::from_secs(config.min_interval_s);
        if let Some(left) = self.last.and_then(|last| least.checked_sub(last.elapsed())) {
            return wait(format!("the next run may start in {} s", left.as_secs() + 1));
        }
        if waiting < config.min_samples {
            return wait(format!("{} more judgements are needed", config.min_samples - waiting));
        }
        if counts.subjects < config.min_subjects {
            return wait(format!("judgements of {} more subjects are needed", config.min_subjects - counts.subjects));
        }
        Ok(Some("samples"))
    }

    async fn ended(&self, id: Uuid, outcome: Result<run::Outcome, RlError>) -> Result<(), RlError> {
        let (status, metrics, error) = match outcome {
            Ok(outcome) => (outcome.status.to_owned(), outcome.metrics, None),
            Err(error) => ("failed".to_owned(), serde_json::json!({}), Some(error.to_string())),
        };
        tracing::info!(run = %id, status, error, "a training run ended");
        metrics::counter!(names::TRAINING_RUNS, "status" => status.clone()).increment(1);
        let last = LastRun { id, status: status.clone(), metrics: metrics.clone(), error: error.clone() };
        self.shared.with(|s| s.last_run = Some(last));
        self.shared.wait(Phase::Collecting, "a run has ended");
        self.parts.store.finish_run(id, &status, metrics, error).await?;
        Ok(())
    }
}

/// Keeps the lease; returns when it is lost.
async fn hold(store: &Arc<dyn Store>, shared: &Shared, term: u64) -> RlError {
    loop {
        tokio::time::sleep(LEASE / 3).await;
        if let Err(error) = store.renew_lease(term, LEASE).await {
            shared.cancelled.store(true, Ordering::SeqCst);
            return error.into();
        }
    }
}
