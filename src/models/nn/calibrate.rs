//! How many threads compute fastest here, by trying: two threads of one core share its multipliers, and more of them than
//! cores make products slower.

use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;

use super::packed::{Format, Panels};

/// Rows, inputs and outputs of the product that is timed: one that a small model makes.
const SHAPE: (usize, usize, usize) = (256, 384, 384);
/// Time of one attempt.
const ATTEMPT: Duration = Duration::from_millis(4);
/// Attempts; the best counts, as others only ever slow a machine down.
const ATTEMPTS: usize = 4;
/// More threads must be faster by this to be worth having.
const WORTH: f64 = 1.05;

/// `processors`, or half of them if those multiply matrices as fast.
#[must_use]
pub fn threads(processors: usize) -> usize {
    let half = processors / 2;
    if half == 0 {
        return 1;
    }
    let faster = |rates: (f64, f64)| rates.0 > WORTH * rates.1;
    match rate(processors).zip(rate(half)) {
        Some(rates) if !faster(rates) => half,
        _ => processors,
    }
}

/// Products per second on so many threads; `None` when that cannot be tried.
fn rate(threads: usize) -> Option<f64> {
    let (rows, inputs, outputs) = SHAPE;
    let (weight, x) = (vec![0.5; outputs * inputs], vec![0.5; rows * inputs]);
    // Everything in here: the global pool gets its size only after this.
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().ok()?;
    let panels = pool.install(|| Panels::pack(&weight, outputs, inputs, Format::F32)).ok()?;
    let attempt = || {
        let (begun, mut products) = (Instant::now(), 0.0);
        while begun.elapsed() < ATTEMPT {
            pool.install(|| panels.product(&x, rows, 0..outputs)).ok()?;
            products += 1.0;
        }
        Some(products / begun.elapsed().as_secs_f64())
    };
    (0..ATTEMPTS).filter_map(|_| attempt()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_a_thread_and_never_one_too_many() {
        assert_eq!(threads(1), 1);
        assert!((1..=2).contains(&threads(2)));
        assert!(rate(1).unwrap() > 0.0);
    }
}
