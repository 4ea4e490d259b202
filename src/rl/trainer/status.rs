//! What the trainer says of itself; `GET /training` shows it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::rl::update::UpdateReport;

/// What the trainer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Switched off, or another process trains.
    #[default]
    Idle,
    /// Waiting for judgements.
    Collecting,
    /// Making updates.
    Training,
    /// Measuring a candidate.
    Gating,
    /// Told to wait.
    Paused,
}

/// A lane's samples since the log began.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LaneStatus {
    /// Samples learned from.
    pub used: u64,
    /// Samples left out, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl LaneStatus {
    pub(super) fn new((used, dropped): &(u64, BTreeMap<String, u64>)) -> Self {
        Self { used: *used, dropped: dropped.clone() }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct RunProgress {
    /// Batches done.
    pub done: usize,
    /// Batches in all.
    pub total: usize,
    /// What the last batch did.
    pub last: UpdateReport,
}

/// The last run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LastRun {
    /// Its id.
    pub id: uuid::Uuid,
    /// What it came to: `promoted`, `candidate`, `rejected`, `nothing_to_learn`, `cancelled` or `failed`.
    pub status: String,
    /// What was measured.
    pub metrics: Value,
    /// Why it failed.
    pub error: Option<String>,
}

/// A snapshot of the trainer.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TrainerStatus {
    /// What it is doing.
    pub state: Phase,
    /// Why it waits.
    pub reason: String,
    /// Judgements that wait for the next run.
    pub waiting: u64,
    /// Judgements that start a run.
    pub min_samples: u64,
    /// Distinct subjects of these.
    pub subjects: u64,
    /// The run in progress.
    pub run: Option<RunProgress>,
    /// Samples by lane, over all runs of this process.
    pub lanes: BTreeMap<String, LaneStatus>,
    /// The run before.
    pub last_run: Option<LastRun>,
}
