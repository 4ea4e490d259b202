//! Where the time of a forward goes: wall time per class of operation, kept per thread, so that the device thread
//! reads what it spent itself. On a GPU, where operations are only queued here, the numbers are those of queueing.

use std::cell::Cell;
use std::ops::Sub;
use std::time::{Duration, Instant};

/// Time per class of operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Split {
    /// Matrix products of the linear layers and the head.
    pub matmul: Duration,
    /// Attention, rotation included.
    pub attention: Duration,
    /// Embedding, norms, SwiGLU, residual additions, gathering rows.
    pub elementwise: Duration,
}

impl Sub for Split {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            matmul: self.matmul.saturating_sub(before.matmul),
            attention: self.attention.saturating_sub(before.attention),
            elementwise: self.elementwise.saturating_sub(before.elementwise),
        }
    }
}

thread_local! {
    static SPENT: Cell<Split> = const {
        Cell::new(Split { matmul: Duration::ZERO, attention: Duration::ZERO, elementwise: Duration::ZERO })
    };
}

/// What this thread has spent so far; the difference of two readings is what lies between them.
#[must_use]
pub fn spent() -> Split {
    SPENT.get()
}

/// Runs `f` and adds its time to the class that `of` picks.
pub(crate) fn timed<T>(of: fn(&mut Split) -> &mut Duration, f: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let out = f();
    let mut split = SPENT.get();
    *of(&mut split) += started.elapsed();
    SPENT.set(split);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_added_to_its_class_on_its_thread() {
        let before = spent();
        timed(|s| &mut s.attention, || std::hint::black_box((0..100_000).sum::<u64>()));
        let mine = spent() - before;
        assert!(mine.attention > Duration::ZERO && mine.matmul == Duration::ZERO);
        let other = std::thread::spawn(spent).join().unwrap();
        assert_eq!(other, Split::default());
    }
}
