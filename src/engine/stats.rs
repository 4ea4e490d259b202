//! What the engine measures: one struct per tick, cumulative counters, and the only place that feeds the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::models::nn::timing::Split;
use crate::telemetry::metrics as names;

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
    /// Transformer and head, by class of operation.
    pub split: Split,
    /// Guidance, draws, selection.
    pub sampling: Duration,
}

impl TickStats {
    /// Planning, packing, events: what is left of the tick.
    #[must_use]
    pub fn host(&self) -> Duration {
        let Split { matmul, attention, elementwise } = self.split;
        self.wall.saturating_sub(matmul + attention + elementwise + self.sampling)
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
    /// Of that, guidance, draws, selection.
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
            c.sampling += tick.sampling;
        });
        metrics::histogram!(names::TICK).record(tick.wall);
        let Split { matmul, attention, elementwise } = tick.split;
        let parts = [
            ("matmul", matmul),
            ("attention", attention),
            ("elementwise", elementwise),
            ("sampling", tick.sampling),
            ("host", tick.host()),
        ];
        for (part, time) in parts {
            metrics::histogram!(names::TICK_PART, "part" => part).record(time);
        }
        metrics::histogram!(names::TICK_ROWS).record(tick.rows as f64);
        metrics::histogram!(names::TICK_CANVASES).record(tick.canvases as f64);
        metrics::counter!(names::POSITIONS).increment(tick.rows as u64);
        metrics::counter!(names::COMMITTED).increment(tick.committed as u64);
        metrics::counter!(names::STEPS).increment(tick.canvases as u64);
        metrics::counter!(names::COMPLETIONS, "kind" => "text").increment(tick.texts as u64);
        metrics::counter!(names::COMPLETIONS, "kind" => "image").increment(tick.images as u64);
    }

    pub(super) fn disconnected(&self) {
        self.update(|c| c.disconnects += 1);
        metrics::counter!(names::CANCELLED).increment(1);
    }

    pub(super) fn failed(&self) {
        self.update(|c| c.failures += 1);
        metrics::counter!(names::FORWARD_FAILURES).increment(1);
    }

    pub(super) fn load(&self, queued: usize, running: usize) {
        metrics::gauge!(names::QUEUE_DEPTH).set(queued as f64);
        metrics::gauge!(names::RUNNING).set(running as f64);
    }
}

/// A completion ended after `queued` of waiting and `denoising` of steps.
pub(super) fn finished(image: bool, queued: Duration, denoising: Duration) {
    metrics::histogram!(names::QUEUE_WAIT).record(queued);
    metrics::histogram!(names::DENOISE, "kind" => if image { "image" } else { "text" }).record(denoising);
}
