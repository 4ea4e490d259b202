//! What the engine measures: one struct per tick, cumulative counters, and the only place that feeds the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
    /// Time of the transformer and the head by class of operation.
    pub split: Split,
}

impl TickStats {
    /// Everything but the device and the draws.
    #[must_use]
    pub fn host(&self) -> Duration {
        self.wall.saturating_sub(self.forward + self.sampling)
    }

    /// Guidance, draws, the copy to the host, and what of the model is in no class.
    #[must_use]
    pub fn drawing(&self) -> Duration {
        let Split { matmul, attention, elementwise } = self.split;
        (self.forward + self.sampling).saturating_sub(matmul + attention + elementwise)
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
        metrics::histogram!(names::TICK).record(tick.wall);
        let Split { matmul, attention, elementwise } = tick.split;
        for (part, spent) in [
            ("matmul", matmul),
            ("attention", attention),
            ("elementwise", elementwise),
            ("sampling", tick.drawing()),
            ("host", tick.host()),
        ] {
            metrics::histogram!(names::TICK_PART, "part" => part).record(spent);
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

    pub(super) fn queue_depth(&self, canvases: usize) {
        metrics::gauge!(names::QUEUE_DEPTH).set(canvases as f64);
    }
}

/// A fair sample of the batches that were run (every one is equally likely to be kept: Vitter's algorithm R), so that
/// the bare forward can be timed on the same shapes. Token ids are not kept.
#[derive(Debug, Default)]
pub(super) struct Shapes(Mutex<(u64, Vec<Packed>)>);

impl Shapes {
    pub(super) fn note(&self, batch: Packed) {
        let batch = Packed { ids: vec![0; batch.rows()], ..batch };
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

    pub(super) fn take(&self) -> Vec<Packed> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: usize) -> Packed {
        let mut packed = Packed::default();
        packed.push(&vec![7; rows], [0]);
        packed
    }

    #[test]
    fn the_sample_of_batches_is_bounded_fair_and_without_ids() {
        let shapes = Shapes::default();
        (1..=1000).for_each(|rows| shapes.note(batch(rows)));
        let taken = shapes.take();
        assert_eq!(taken.len(), SHAPES);
        assert!(taken.iter().all(|b| b.ids.iter().all(|&id| id == 0)));
        // 64 of 1000 uniform draws: the mean of all is 500, its standard error 36.
        let mean = taken.iter().map(Packed::rows).sum::<usize>() as f64 / SHAPES as f64;
        assert!((mean - 500.0).abs() < 150.0, "{mean}");
        assert!(shapes.take().is_empty());
    }

    #[test]
    fn the_parts_of_a_tick_add_up() {
        let ms = Duration::from_millis;
        let split = Split { matmul: ms(5), attention: ms(2), elementwise: ms(1) };
        let tick = TickStats { wall: ms(20), forward: ms(9), sampling: ms(6), split, ..TickStats::default() };
        assert_eq!((tick.drawing(), tick.host()), (ms(7), ms(5)));
        assert_eq!(split.matmul + split.attention + split.elementwise + tick.drawing() + tick.host(), tick.wall);
    }
}
