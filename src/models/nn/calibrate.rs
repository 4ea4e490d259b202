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
/// Attempts with more threads that must have had their processors to themselves before fewer are taken.
const UNDISTURBED: usize = 6;
/// More threads must be faster by this to be worth having.
const WORTH: f64 = 1.05;

/// `processors`, or half of them if those multiply matrices as fast. A machine that is busy for a moment looks as if it had
/// fewer, so half is only taken when no attempt of all was faster, and others did not keep these from running.
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
    let (mut best, mut undisturbed) = ((0.0f64, 0.0f64), 0);
    for _ in 0..ATTEMPTS {
        best.0 = best.0.max(few.rate()?);
        let waited = waited();
        best.1 = best.1.max(many.rate()?);
        if best.1 > WORTH * best.0 {
            return Some(false);
        }
        undisturbed += usize::from(self::waited().saturating_sub(waited) < ATTEMPT / 20);
    }
    Some(undisturbed >= UNDISTURBED)
}

/// How long this process's threads have waited for a processor that another had; zero where that is not known.
fn waited() -> Duration {
    // `man 5 proc`: time on a processor and time on a run queue, in nanoseconds.
    let of = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten().filter_map(of).sum()
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn there_is_always_a_thread_and_never_one_too_many() {
        assert_eq!(threads(1), 1);
        assert!((1..=2).contains(&threads(2)));
        assert!(Bench::new(1).unwrap().rate().unwrap() > 0.0);
        assert!(as_fast(1, 1).is_some());
    }

    #[test]
    fn waiting_for_a_processor_is_seen() {
        let (before, processors) = (waited(), std::thread::available_parallelism().unwrap().get());
        let seen = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 * processors {
                scope.spawn(|| {
                    while !seen.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            std::thread::sleep(10 * ATTEMPT);
            let waited = waited();
            seen.store(true, Ordering::Relaxed);
            assert!(!cfg!(target_os = "linux") || waited > before + ATTEMPT / 20);
        });
    }
}
