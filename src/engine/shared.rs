//! What the handle and the device thread both see: counts, switches and measurements. No locks held across a tick.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::watch;

use super::Status;
use super::job::Priority;
use super::stats::{Shapes, Stats};

/// Longest wait that is ever suggested, seconds.
const LONGEST_RETRY: u64 = 60;

pub(super) struct Shared {
    pub(super) queued: AtomicUsize,
    pub(super) running: AtomicUsize,
    /// Of both, those that somebody waits for.
    interactive: AtomicUsize,
    pub(super) healthy: AtomicBool,
    pub(super) draining: AtomicBool,
    pub(super) stats: Stats,
    pub(super) shapes: Shapes,
    /// Mean time between two finished canvases while the engine is busy, microseconds; 0 is unknown.
    interval_us: AtomicU64,
    /// Touched whenever a canvas leaves.
    pub(super) changed: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            queued: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            interactive: AtomicUsize::new(0),
            healthy: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            stats: Stats::default(),
            shapes: Shapes::default(),
            interval_us: AtomicU64::new(0),
            changed: watch::Sender::new(()),
        }
    }

    /// Takes places in the queue for `n` canvases of `class`; gives how many were ahead, or `None` when they do not fit:
    /// more than `limit` would wait, or more than `max` where nobody else does.
    pub(super) fn enter(&self, class: Priority, n: usize, limit: usize, max: usize) -> Option<usize> {
        let fits = |queued: usize| {
            let most = if queued == 0 { max } else { limit };
            queued.checked_add(n).filter(|&total| total <= most)
        };
        let queued = self.queued.fetch_update(SeqCst, SeqCst, fits).ok()?;
        if class == Priority::Interactive {
            self.interactive.fetch_add(n, SeqCst);
        }
        Some(queued + self.running.load(SeqCst))
    }

    /// A canvas takes its first step. Counted as running before it stops being queued: never as neither.
    pub(super) fn begin(&self) {
        self.running.fetch_add(1, SeqCst);
        self.queued.fetch_sub(1, SeqCst);
    }

    /// A canvas of `class` has gone.
    pub(super) fn leave(&self, class: Priority, begun: bool) {
        self.depart(class, if begun { &self.running } else { &self.queued }, 1);
    }

    /// Gives back places that were taken in vain.
    pub(super) fn withdraw(&self, class: Priority, n: usize) {
        self.depart(class, &self.queued, n);
    }

    fn depart(&self, class: Priority, from: &AtomicUsize, n: usize) {
        from.fetch_sub(n, SeqCst);
        if class == Priority::Interactive {
            self.interactive.fetch_sub(n, SeqCst);
        }
        self.changed.send_replace(());
    }

    pub(super) fn status(&self) -> Status {
        Status {
            queued: self.queued.load(SeqCst),
            running: self.running.load(SeqCst),
            interactive: self.interactive.load(SeqCst),
            healthy: self.healthy.load(SeqCst),
            draining: self.draining.load(SeqCst),
        }
    }

    pub(super) fn publish(&self) {
        self.stats.load(self.queued.load(SeqCst), self.running.load(SeqCst));
    }

    /// Only the device thread writes it.
    pub(super) fn note_interval(&self, interval: Duration) {
        self.interval_us.store((interval.as_micros() as u64).max(1), SeqCst);
    }

    /// Seconds until `excess` places should be free, at the recent pace.
    pub(super) fn retry_after(&self, excess: usize) -> u64 {
        let us = self.interval_us.load(SeqCst).saturating_mul(excess as u64);
        us.div_ceil(1_000_000).clamp(1, LONGEST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At a steady pace a place is free as often as a canvas ends: enough of them after the advised time, and not enough a
    /// second before it.
    #[test]
    fn who_comes_back_when_told_to_finds_room_and_no_sooner() {
        let limit = 16;
        for interval in [3, 90, 700, 1_000, 2_400].map(Duration::from_millis) {
            for n in 1..=limit {
                let after = |seconds: u64| {
                    let shared = Shared::new();
                    shared.note_interval(interval);
                    assert!(shared.enter(Priority::Interactive, limit, limit, limit).is_some());
                    assert!(shared.enter(Priority::Interactive, n, limit, limit).is_none());
                    let advice = shared.retry_after(n);
                    let ended = Duration::from_secs(advice - seconds).as_micros() / interval.as_micros();
                    (0..ended.min(limit as u128)).for_each(|_| shared.begin());
                    (advice, shared.enter(Priority::Interactive, n, limit, limit).is_some())
                };
                let (advice, room) = after(0);
                assert!(room, "{n} places, one every {interval:?}, after {advice} s");
                assert!(advice == 1 || !after(1).1, "{n} places, one every {interval:?}, after {advice} s");
            }
        }
    }

    #[test]
    fn advice_has_bounds_when_nothing_is_known_and_when_it_is_far() {
        let shared = Shared::new();
        assert_eq!(shared.retry_after(1000), 1);
        shared.note_interval(Duration::from_secs(20));
        assert_eq!((shared.retry_after(2), shared.retry_after(1000)), (40, LONGEST_RETRY));
    }
}
