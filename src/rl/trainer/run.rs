//! One run: data → updates → a candidate → the gate → perhaps into service. Every step is in the store before the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use candle_core::Device;
use serde_json::{Value, json};
use uuid::Uuid;

use super::checkpoint::{Checkpoint, Progress, fingerprint};
use super::config::{Promotion, Reference, TrainingConfig};
use super::data::{Batch, Data, Maker};
use super::duty::Duty;
use super::measure::{Bench, agreement};
use super::status::{LaneStatus, Phase};
use super::{Parts, Shared};
use crate::adapters::VersionId;
use crate::adapters::manifest::{DataRecord, Provenance};
use crate::diffusion::rng::mix64;
use crate::models::lora::Lora;
use crate::rl::RlError;
use crate::rl::gate::{Verdict, judge};
use crate::rl::lanes::{Now, sort};
use crate::rl::policy::Policy;
use crate::rl::publish::{Order, blocking};
use crate::rl::update::{UpdateConfig, UpdateReport, Workshop, update};
use crate::store::{Change, NewRun};

/// Niceness of the learning threads: a tenth of a serving thread's share where both want to run.
const LEARNING_NICENESS: i32 = 10;
/// Parameters of a model from which the layers are computed again in the backward pass, unless the operator decides.
const CHECKPOINTED: usize = 1_000_000_000;
/// Versions whose age is known; older ones are stale whatever the limit.
const LINEAGE: usize = 1000;

/// What a run came to.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// `promoted`, `candidate`, `rejected`, `nothing_to_learn` or `cancelled`.
    pub(super) status: &'static str,
    /// What was measured.
    pub(super) metrics: Value,
}

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) parts: &'a Parts,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) id: Uuid,
    pub(super) term: u64,
    pub(super) trigger: &'static str,
}

impl Run<'_> {
    /// Runs to its end. `kept` is the policy of the last run, with its optimiser's memory.
    pub(super) async fn go(&self, kept: &mut Option<(VersionId, Policy)>) -> Result<Outcome, RlError> {
        let (parts, config) = (self.parts, &self.parts.config);
        let current = parts.publisher.routes().active().clone();
        parts
            .store
            .start_run(NewRun {
                id: self.id,
                term: self.term,
                trigger: self.trigger.to_owned(),
                parent: current.to_string(),
                config: serde_json::to_value(config).unwrap_or_default(),
            })
            .await?;
        let data = self.data(&current).await?;
        if data.used() < 2 {
            self.book(&data).await?;
            return Ok(self.outcome("nothing_to_learn", &data, &[], None));
        }
        self.shared.phase(Phase::Training);
        let parent = parts.publisher.version(&current).await?.lora.clone();
        let policy = match kept.take().filter(|(version, _)| *version == current) {
            Some((_, policy)) => policy,
            None => self.policy(parent.as_deref())?,
        };
        let (policy, reports) = self.learn(policy, &current, &data.batches).await?;
        let made = reports.iter().map(|report| report.steps).sum::<u32>();
        if self.shared.cancelled.load(Ordering::SeqCst) {
            return Ok(self.outcome("cancelled", &data, &reports, None));
        }
        if made == 0 {
            // No step was finite. The judgements are spent: the same ones would only fail again.
            self.book(&data).await?;
            return Ok(self.outcome("nothing_to_learn", &data, &reports, None));
        }
        let candidate = self.candidate(&policy, &current, &data, &reports).await?;
        // Only now: what a run that fails or is cut off had taken is there for the next one.
        self.book(&data).await?;
        self.shared.phase(Phase::Gating);
        let verdict = self.gate(&candidate, &current, parent.as_ref(), &policy.snapshot()?, &data).await?;
        let status = self.decide(&candidate, &verdict).await?;
        if status == "promoted" {
            *kept = Some((candidate.clone(), policy));
        }
        Checkpoint::new(&parts.data_dir).clear()?;
        Ok(self.outcome(status, &data, &reports, Some((&candidate, &verdict))))
    }

    async fn data(&self, current: &VersionId) -> Result<Data, RlError> {
        let (parts, config) = (self.parts, &self.parts.config);
        let pool = parts.store.training_pool(config.max_samples).await?;
        let behind = self.lineage(current).await?;
        let us = jiff::Timestamp::now().as_microsecond();
        let now = Now { base_sha256: &parts.engine.spec().sha256, behind: &behind, us };
        let lanes = sort(pool, &now, &config.data);
        // Data are a function of the pool and the version, so that a run that was cut off finds the same again.
        let seed = current.to_string().bytes().fold(config.seed, |hash, byte| mix64(hash ^ u64::from(byte)));
        let maker = Maker { parts, current, seed };
        let mut baselines = self.shared.baselines.lock().await;
        maker.make(lanes, &mut baselines).await
    }

    /// How many versions each ancestor of `current` is behind it.
    async fn lineage(&self, current: &VersionId) -> Result<BTreeMap<String, u32>, RlError> {
        let mut out = BTreeMap::new();
        let mut at = Some(current.to_string());
        while let Some(id) = at.take().filter(|_| out.len() < LINEAGE) {
            let parent = self.parts.store.adapter(&id).await?.and_then(|row| row.adapter.parent);
            out.insert(id, out.len() as u32);
            at = parent.or_else(|| (!out.contains_key("base@0")).then(|| "base@0".to_owned()));
        }
        Ok(out)
    }

    fn policy(&self, parent: Option<&Lora>) -> Result<Policy, RlError> {
        let config = &self.parts.config;
        let model = self.parts.engine.model();
        let shape = model.backbone.adaptable();
        let shape = shape.ok_or_else(|| RlError::Refused("this model takes no adapters".to_owned()))?;
        let optim = config.optimizer();
        match parent {
            Some(parent) => Policy::from_lora(shape, parent, optim),
            None => Policy::fresh(shape, &config.lora, optim, config.seed, &self.device()),
        }
    }

    /// Where the model's weights are; the factors must be there too.
    fn device(&self) -> Device {
        let transformer = self.parts.engine.model().backbone.transformer();
        transformer.map_or(Device::Cpu, |transformer| transformer.device().clone())
    }

    /// All updates, on threads of their own that give way to everything else.
    async fn learn(
        &self,
        mut policy: Policy,
        current: &VersionId,
        batches: &[Batch],
    ) -> Result<(Policy, Vec<UpdateReport>), RlError> {
        let (config, checkpoint) = (self.parts.config.clone(), Checkpoint::new(&self.parts.data_dir));
        let workshop = self.parts.workshop(self.shared)?;
        let (shared, batches) = (Arc::clone(self.shared), batches.to_vec());
        let fingerprint = fingerprint(&current.to_string(), &batches);
        let reference = match config.reference {
            // It is the policy that the run begins with.
            Reference::Served => Some(policy.snapshot()?),
            Reference::Base => None,
        };
        let (device, rate) = (self.device(), config.rate(current.version()));
        let large = self.parts.engine.spec().parameters >= CHECKPOINTED;
        blocking(move || {
            let known = checkpoint.load(fingerprint, &mut policy, &device).unwrap_or_else(|error| {
                tracing::warn!(%error, "the checkpoint of the last run cannot be used; the run starts over");
                None
            });
            let start = known.unwrap_or(Progress { fingerprint, done: 0, steps: 0, reports: Vec::new() });
            let (mut reports, total) = (start.reports, batches.len() * config.epochs as usize);
            for done in start.done..total {
                let batch = &batches[done % batches.len()];
                let checkpointing = config.checkpointing.unwrap_or(large);
                let settings = UpdateConfig { checkpointing, ..config.update(batch.image, fingerprint ^ done as u64) };
                let report = update(&workshop, &mut policy, reference.as_ref(), &batch.judged, &settings, rate)?;
                reports.push(report);
                let done = done + 1;
                shared.progress(done, total, &report);
                if report.interrupted {
                    break;
                }
                checkpoint
                    .save(&Progress { fingerprint, done, steps: policy.steps(), reports: reports.clone() }, &policy)?;
                if collapsed(&reports, &config) {
                    break;
                }
            }
            Ok((policy, reports))
        })
        .await?
    }

    async fn candidate(
        &self,
        policy: &Policy,
        parent: &VersionId,
        data: &Data,
        reports: &[UpdateReport],
    ) -> Result<VersionId, RlError> {
        let parts = self.parts;
        let provenance = Provenance {
            parent: Some(parent.clone()),
            algorithm: parts.config.loss.as_str().to_owned(),
            hyperparameters: serde_json::to_value(&parts.config).unwrap_or_default(),
            data: record(data),
            rewards: json!(
                parts.rewards.policy().parts.iter().map(|p| (&p.name, p.weight)).collect::<BTreeMap<_, _>>()
            ),
            gate: json!({ "updates": reports }),
            created_us: jiff::Timestamp::now().as_microsecond(),
        };
        let (files, name, lora) =
            (Arc::clone(parts.publisher.files()), parts.config.adapter.clone(), policy.snapshot()?);
        let adapter = Arc::new(blocking(move || files.commit(&name, &lora, provenance)).await??);
        let id = adapter.id.clone();
        parts.publisher.add(adapter, Some(self.id), json!({}), &self.order("a run ended")).await?;
        Ok(id)
    }

    async fn gate(
        &self,
        candidate: &VersionId,
        current: &VersionId,
        parent: Option<&Arc<Lora>>,
        policy: &Arc<Lora>,
        data: &Data,
    ) -> Result<Verdict, RlError> {
        let parts = self.parts;
        let bench = Bench { parts, past: &self.shared.past };
        let trials = bench.trials(candidate, current).await?;
        let (workshop, config, judged) =
            (parts.workshop(self.shared)?, parts.config.clone(), self.shared.held_out(&data.held_out));
        let (policy, parent) = (Arc::clone(policy), parent.cloned());
        let (agreement, kl) =
            blocking(move || agreement(&workshop, &policy, parent.as_ref(), &judged, &config)).await??;
        Ok(judge(&parts.config.gate, &trials, &bench.guards(), &agreement, kl, parts.config.seed))
    }

    /// Records the verdict and acts on it.
    async fn decide(&self, candidate: &VersionId, verdict: &Verdict) -> Result<&'static str, RlError> {
        let parts = self.parts;
        let to = if verdict.passed { "candidate" } else { "rejected" };
        let change = Change::Status {
            id: candidate.to_string(),
            from: "candidate".to_owned(),
            to: to.to_owned(),
            gate: Some(serde_json::to_value(verdict).unwrap_or_default()),
        };
        let order = self.order("the gate");
        parts.store.change_registry(vec![change], order.author()).await?;
        match (verdict.passed, parts.config.promotion) {
            (false, _) => Ok("rejected"),
            (true, Promotion::Approve) => Ok("candidate"),
            (true, Promotion::Auto) => {
                let share = parts.config.canary_share;
                let share = (share > 0.0 && share < 1.0).then_some(share);
                parts.publisher.promote(candidate, share, &self.order("passed the gate; promotion is auto")).await?;
                self.shared.promoted();
                Ok("promoted")
            }
        }
    }

    /// Writes down what became of every item.
    async fn book(&self, data: &Data) -> Result<(), RlError> {
        for part in data.book.chunks(crate::store::MAX_SAMPLES) {
            self.parts.store.record_samples(self.id, part.to_vec()).await?;
        }
        self.shared.lanes(&data.lanes);
        Ok(())
    }

    fn order(&self, reason: &str) -> Order {
        Order { actor: "trainer".to_owned(), reason: reason.to_owned(), term: Some(self.term) }
    }

    fn outcome(
        &self,
        status: &'static str,
        data: &Data,
        reports: &[UpdateReport],
        gate: Option<(&VersionId, &Verdict)>,
    ) -> Outcome {
        let lanes: BTreeMap<&str, LaneStatus> =
            data.lanes.iter().map(|(lane, counts)| (lane.as_str(), LaneStatus::new(counts))).collect();
        let metrics = json!({
            "loss": self.parts.config.loss,
            "candidate": gate.map(|(id, _)| id.to_string()),
            "samples": data.used(),
            "reward": data.reward,
            "lanes": lanes,
            "updates": reports,
            "gate": gate.map(|(_, verdict)| verdict),
        });
        Outcome { status, metrics }
    }
}

/// The policy has gone too far from its reference, or is sure of everything: more updates would make it worse.
fn collapsed(reports: &[UpdateReport], config: &TrainingConfig) -> bool {
    let (Some(first), Some(last)) = (reports.first(), reports.last()) else { return false };
    let sure = last.logprob > first.logprob * config.min_entropy_share;
    let reason = if last.kl > config.max_kl {
        "kl"
    } else if reports.len() > 1 && sure {
        "entropy"
    } else {
        return false;
    };
    tracing::warn!(reason, kl = last.kl, logprob = last.logprob, "the run ends early");
    true
}

fn record(data: &Data) -> DataRecord {
    let items = data.book.iter().filter(|item| item.drop_reason.is_none()).map(|item| item.item);
    DataRecord {
        used: data.lanes.iter().map(|(lane, (used, _))| (lane.as_str().to_owned(), *used)).collect(),
        dropped: data.lanes.iter().map(|(lane, (_, dropped))| (lane.as_str().to_owned(), dropped.clone())).collect(),
        subjects: data.subjects,
        first_feedback: items.clone().min().map(|id| id.to_string()),
        last_feedback: items.max().map(|id| id.to_string()),
    }
}

impl Parts {
    fn learner(&self) -> Result<Arc<dyn crate::models::Backbone>, RlError> {
        let learner = self.engine.model().backbone.for_learning();
        learner.ok_or_else(|| RlError::Refused("this model cannot learn".to_owned()))
    }

    fn workshop(&self, shared: &Arc<Shared>) -> Result<Workshop, RlError> {
        let pool = learning_threads(self.config.threads)?;
        let shared = Arc::clone(shared);
        let stop = move || shared.cancelled.load(Ordering::SeqCst);
        let pace = Duty::new(self.engine.clone(), self.config.busy_share, stop);
        Ok(Workshop { model: self.learner()?, pool, pace: Arc::new(pace) })
    }
}

/// Threads that run when nothing else wants to.
///
/// # Errors
/// When the operating system gives none.
pub fn learning_threads(threads: usize) -> Result<rayon::ThreadPool, RlError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("lacuna-learn-{i}"))
        .start_handler(|_| give_way())
        .build()
        .map_err(|e| RlError::Refused(format!("threads: {e}")))
}

/// A low priority: serving preempts learning at once, and a busy machine slows learning down without stopping it. (Linux
/// gives threads their own.)
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, LEARNING_NICENESS) {
        tracing::debug!(%error, "the learning thread keeps its priority");
    }
}
