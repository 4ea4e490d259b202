//! The same load once more while the server's other half learns: sampling at rollout priority and updates, without end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::load::{Client, Measured, Plan};
use super::report::Run;
use super::ticks::Bare;
use crate::cli::demo::Task;
use crate::cli::host::Host;
use crate::cli::train::practice::Practice;
use crate::config::Config;

/// What is practised: a round of a few short texts, so that sampling and updates take turns during a run.
const TASK: Task = Task::Words;
/// Prompts of a round.
const PROMPTS: usize = 2;

/// A run while it learns, as ratios to the same run alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Beside {
    /// Median latency over that alone.
    pub p50: f64,
    /// 95th percentile over that alone.
    pub p95: f64,
    /// Requests per second over those alone.
    pub throughput: f64,
    /// Requests answered while it learned.
    pub requests: usize,
    /// Optimiser steps made meanwhile.
    pub updates: u64,
}

/// Practice in the background.
struct Background {
    stop: CancellationToken,
    updates: Arc<AtomicU64>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Background {
    fn start(host: &Host, config: &Config) -> anyhow::Result<Self> {
        let (mut config, threads) = (config.clone(), config.training.threads);
        TASK.configure(&mut config, 1);
        // The demo's crowd waits while it learns; here people are served, with the threads that a server learns with.
        config.training.threads = threads;
        let mut practice = Practice::new(TASK, host, config.training, 1);
        practice.prompts = PROMPTS;
        let (stop, updates) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (stopped, made) = (stop.clone(), Arc::clone(&updates));
        let over = stop.clone();
        let mut learner = practice.learner(move || over.is_cancelled())?;
        let task = tokio::spawn(async move {
            for at in 0.. {
                let round = practice.round(&mut learner, at, practice.config.lr);
                let Some(round) = stopped.run_until_cancelled(round).await else { break };
                made.fetch_add(u64::from(round?.report.steps), Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { stop, updates, task })
    }

    async fn stop(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.task.await.context("the practice panicked")??;
        Ok(self.updates.load(Ordering::Relaxed))
    }
}

/// Runs `plan` again while it learns, and once more without; `before` is what it gave at first. A machine's speed drifts,
/// by more than what is looked for: compared is with what lies on both sides.
///
/// # Errors
/// When the model cannot learn, or no request succeeds.
pub async fn beside(
    client: &Client,
    plan: &Plan,
    before: Measured,
    host: &Host,
    config: &Config,
) -> anyhow::Result<Beside> {
    let background = Background::start(host, config)?;
    let measured = client.run(plan).await;
    let updates = background.stop().await?;
    let run = Run::new(plan, &measured?, Bare::default())?;
    let alone = Run::new(plan, &before.and(client.run(plan).await?), Bare::default())?;
    let per_s = |run: &Run| run.requests as f64 / run.seconds;
    Ok(Beside {
        p50: run.latency_ms.p50 / alone.latency_ms.p50,
        p95: run.latency_ms.p95 / alone.latency_ms.p95,
        throughput: per_s(&run) / per_s(&alone),
        requests: run.requests,
        updates,
    })
}
