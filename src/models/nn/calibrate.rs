//! How many threads compute fastest here, by trying: two threads of one core share its multipliers, and more of them than
//! cores make products slower.

use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::packed::{Format, Panels};

/// Rows, inputs and outputs of the product that is timed: one that a small model makes.
const SHAPE: (usize, usize, usize) = (256, 384, 384);
/// Time of one attempt.
const ATTEMPT: Duration = Duration::from_millis(4);
/// Attempts with either number of threads, in turn; the best counts, as others only ever slow a machine down.
const ATTEMPTS: usize = 12;
/// More threads must be faster by this to be worth having.
const WORTH: f64 = 1.05;

/// `processors`, or half of them if those multiply matrices as fast. A machine that is busy for a moment looks as if it had
/// fewer, so half is only taken when no attempt of all was faster.
#[must_use]
pub fn threads(processors: usize) -> usize {
    match processors / 2 {
        0 => 1,
        half if as_fast(half, processors).unwrap_or(false) => half,
        _ => processors,
    }
}

/// Whether `few` threads are as fast as `many`; `None` when that cannot be tried.
fn as_fast(few: usize, many: usize) -> Option<bool> {
    let (few, many) = (Bench::new(few)?, Bench::new(many)?);
    let mut best = (0.0f64, 0.0f64);
    for _ in 0..ATTEMPTS {
        best = (best.0.max(few.rate()?), best.1.max(many.rate()?));
        if best.1 > WORTH * best.0 {
            return Some(false);
        }
    }
    Some(true)
}

/// A product on threads of its own: the global pool gets its size only after this.
struct Bench {
    pool: ThreadPool,
    panels: Panels,
    x: Vec<f32>,
}

impl Bench {
    fn new(threads: usize) -> Option<Self> {
        let (rows, inputs, outputs) = SHAPE;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
        let panels = pool.install(|| Panels::pack(&vec![0.5; outputs * inputs], outputs, inputs, Format::F32)).ok()?;
        Some(Self { pool, panels, x: vec![0.5; rows * inputs] })
    }

    /// Products per second.
    fn rate(&self) -> Option<f64> {
        let (rows, _, outputs) = SHAPE;
        let (begun, mut products) = (Instant::now(), 0.0);
        while begun.elapsed() < ATTEMPT {
            self.pool.install(|| self.panels.product(&self.x, rows, 0..outputs)).ok()?;
            products += 1.0;
        }
        Some(products / begun.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_thread_and_never_one_too_many() {
        assert_eq!(threads(1), 1);
        assert!((1..=2).contains(&threads(2)));
        assert!(Bench::new(1).unwrap().rate().unwrap() > 0.0);
        assert!(as_fast(1, 1).is_some());
    }
}
