//! What the engine measures: one struct per tick, cumulative counters, and the only place that feeds the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::job::Finished;
use crate::diffusion::rng::mix64;
use crate::models::Packed;
use crate::models::nn::timing::Split;
use crate::telemetry::metrics as names;

/// Batches that [`Shapes`] keeps.
const SHAPES: usize = 64;

/// One tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TickStats {
    /// Canvases that stepped.
    pub canvases: usize,
    /// Rows of the packed forward.
    pub rows: usize,
    /// Positions that it saw without evaluating them.
    pub cached: usize,
    /// Bytes of keys and values that are held after it.
    pub cache_bytes: usize,
    /// Positions committed.
    pub committed: usize,
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
        metrics::counter!(names::POSITIONS_CACHED).increment(tick.cached as u64);
        metrics::gauge!(names::CACHE_BYTES).set(tick.cache_bytes as f64);
        metrics::counter!(names::COMMITTED).increment(tick.committed as u64);
        metrics::counter!(names::STEPS).increment(tick.canvases as u64);
    }

    /// A completion ended. Counted before its client hears of it, so that nobody sees an answer that is not counted.
    pub(super) fn completed(&self, image: bool) {
        self.update(|c| *(if image { &mut c.images } else { &mut c.texts }) += 1);
        metrics::counter!(names::COMPLETIONS, "kind" => kind(image)).increment(1);
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

/// A completion ended.
pub(super) fn finished(image: bool, finished: &Finished) {
    metrics::histogram!(names::QUEUE_WAIT).record(finished.queued);
    metrics::histogram!(names::DENOISE, "kind" => kind(image)).record(finished.denoising);
    metrics::histogram!(names::PPT, "kind" => kind(image)).record(finished.ppt());
}

fn kind(image: bool) -> &'static str {
    if image { "image" } else { "text" }
}

/// A fair sample of the batches that were run (every one is equally likely to be kept: Vitter's algorithm R), so that
/// the bare forward can be timed on the same shapes. Token ids, keys and values are not held.
#[derive(Debug, Default)]
pub(super) struct Shapes(Mutex<(u64, Vec<Packed>)>);

impl Shapes {
    pub(super) fn note(&self, batch: Packed) {
        if batch.spans.is_empty() {
            return; // everything was memoised: there was no forward
        }
        let Ok(batch) = batch.blank() else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, batches) = &mut *kept;
        *seen += 1;
        let place = (mix64(*seen) % *seen) as usize;
        if batches.len() < SHAPES {
            batches.push(batch);
        } else if let Some(old) = batches.get_mut(place) {
            *old = batch;
        }
    }

    /// The sample, which begins anew.
    pub(super) fn take(&self) -> Vec<Packed> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_of_batches_is_bounded_fair_and_without_ids() {
        let shapes = Shapes::default();
        for rows in 1..=1000 {
            let mut packed = Packed::default();
            packed.push(&vec![7; rows], [0]);
            shapes.note(packed);
        }
        let taken = shapes.take();
        assert_eq!(taken.len(), SHAPES);
        assert!(taken.iter().all(|b| b.ids.iter().all(|&id| id == 0)));
        // 64 uniform draws of 1 to 1000: the mean of all is 500, its standard error 36.
        let mean = taken.iter().map(Packed::rows).sum::<usize>() as f64 / SHAPES as f64;
        assert!((mean - 500.0).abs() < 150.0, "{mean}");
        assert!(shapes.take().is_empty());
    }

    #[test]
    fn the_parts_of_a_tick_add_up() {
        let ms = Duration::from_millis;
        let split = Split { matmul: ms(5), attention: ms(2), elementwise: ms(1) };
        let tick = TickStats { wall: ms(20), split, sampling: ms(7), ..TickStats::default() };
        assert_eq!(tick.host(), ms(5));
    }
}
