//! What the engine measures: one struct per tick, cumulative counters, and the only place that feeds the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Wall time of a tick, seconds.
pub const TICK_SECONDS: &str = "lacuna_tick_seconds";
/// Time in the transformer per tick, seconds.
pub const FORWARD_SECONDS: &str = "lacuna_forward_seconds";
/// Time in head, guidance and draws per tick, seconds.
pub const SAMPLING_SECONDS: &str = "lacuna_sampling_seconds";
/// Scheduling, events and bookkeeping per tick, seconds.
pub const HOST_SECONDS: &str = "lacuna_host_seconds";
/// Rows of packed forwards.
pub const ROWS: &str = "lacuna_rows_total";
/// Rows that requests were charged for; the same as [`ROWS`].
pub const POSITIONS_EVALUATED: &str = "lacuna_positions_evaluated_total";
/// Positions that got their token.
pub const TOKENS_COMMITTED: &str = "lacuna_tokens_committed_total";
/// Steps of canvases.
pub const STEPS: &str = "lacuna_steps_total";
/// Canvases in a tick.
pub const BATCH_CANVASES: &str = "lacuna_batch_canvases";
/// Canvases waiting for their first step.
pub const QUEUE_DEPTH: &str = "lacuna_queue_depth";
/// Completions finished, by `kind`.
pub const COMPLETIONS: &str = "lacuna_completions_total";
/// Images finished.
pub const IMAGES: &str = "lacuna_images_total";
/// Requests that the engine dropped because their client had left (the HTTP layer counts the clients).
pub const CANCELLED: &str = "lacuna_cancelled_total";
/// Forwards that failed.
pub const FORWARD_FAILURES: &str = "lacuna_forward_failures_total";

/// One tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TickStats {
    /// Canvases that stepped.
    pub canvases: usize,
    /// Rows of the packed forward.
    pub rows: usize,
    /// Positions committed.
    pub committed: usize,
    /// Texts that finished.
    pub texts: usize,
    /// Images that finished.
    pub images: usize,
    /// All of it.
    pub wall: Duration,
    /// The transformer.
    pub forward: Duration,
    /// Head, guidance, draws.
    pub sampling: Duration,
}

impl TickStats {
    /// Everything but the device and the draws.
    #[must_use]
    pub fn host(&self) -> Duration {
        self.wall.saturating_sub(self.forward + self.sampling)
    }
}

/// Sums over all ticks since the start; the difference of two readings is what happened between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Ticks with a forward.
    pub ticks: u64,
    /// Canvas steps.
    pub steps: u64,
    /// Rows evaluated.
    pub rows: u64,
    /// Positions committed.
    pub committed: u64,
    /// Texts finished.
    pub texts: u64,
    /// Images finished.
    pub images: u64,
    /// Requests whose client left.
    pub disconnects: u64,
    /// Forwards that failed.
    pub failures: u64,
    /// Wall time of the ticks.
    pub wall: Duration,
    /// Of that, the transformer.
    pub forward: Duration,
    /// Of that, head, guidance, draws.
    pub sampling: Duration,
}

/// Counters that the device thread writes and anybody reads.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<Counters>);

impl Stats {
    pub(super) fn read(&self) -> Counters {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn tick(&self, tick: &TickStats) {
        self.update(|c| {
            c.ticks += 1;
            c.steps += tick.canvases as u64;
            c.rows += tick.rows as u64;
            c.committed += tick.committed as u64;
            c.texts += tick.texts as u64;
            c.images += tick.images as u64;
            c.wall += tick.wall;
            c.forward += tick.forward;
            c.sampling += tick.sampling;
        });
        metrics::histogram!(TICK_SECONDS).record(tick.wall);
        metrics::histogram!(FORWARD_SECONDS).record(tick.forward);
        metrics::histogram!(SAMPLING_SECONDS).record(tick.sampling);
        metrics::histogram!(HOST_SECONDS).record(tick.host());
        metrics::histogram!(BATCH_CANVASES).record(tick.canvases as f64);
        metrics::counter!(ROWS).increment(tick.rows as u64);
        metrics::counter!(POSITIONS_EVALUATED).increment(tick.rows as u64);
        metrics::counter!(TOKENS_COMMITTED).increment(tick.committed as u64);
        metrics::counter!(STEPS).increment(tick.canvases as u64);
        metrics::counter!(COMPLETIONS, "kind" => "text").increment(tick.texts as u64);
        metrics::counter!(COMPLETIONS, "kind" => "image").increment(tick.images as u64);
        metrics::counter!(IMAGES).increment(tick.images as u64);
    }

    pub(super) fn disconnected(&self) {
        self.update(|c| c.disconnects += 1);
        metrics::counter!(CANCELLED).increment(1);
    }

    pub(super) fn failed(&self) {
        self.update(|c| c.failures += 1);
        metrics::counter!(FORWARD_FAILURES).increment(1);
    }

    pub(super) fn queue_depth(&self, canvases: usize) {
        metrics::gauge!(QUEUE_DEPTH).set(canvases as f64);
    }
}
