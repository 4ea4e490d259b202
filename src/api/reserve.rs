//! What a reply still takes after its last step: the log, the picture, the encoding. It is learned from the replies before
//! and kept back from deadlines, which are for what the client gets.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Mean and mean deviation of one kind of replies, in seconds, as TCP estimates round trips (RFC 6298).
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    mean: f64,
    deviation: f64,
}

/// Of texts and of images.
#[derive(Debug, Default)]
pub struct Reserve([Mutex<Option<Usual>>; 2]);

impl Reserve {
    /// A reply was ready so long after its last step.
    pub(in crate::api) fn note(&self, image: bool, took: Duration) {
        let took = took.as_secs_f64();
        let mut usual = self.0[usize::from(image)].lock().unwrap_or_else(PoisonError::into_inner);
        *usual = Some(match *usual {
            None => Usual { mean: took, deviation: took / 2.0 },
            Some(Usual { mean, deviation }) => Usual {
                mean: mean + (took - mean) / 8.0,
                deviation: deviation + ((took - mean).abs() - deviation) / 4.0,
            },
        });
    }

    /// What is left of `deadline` for the steps; at least half.
    pub(in crate::api) fn steps(&self, image: bool, deadline: Duration) -> Duration {
        let usual = *self.0[usize::from(image)].lock().unwrap_or_else(PoisonError::into_inner);
        let reserve = usual.map_or(0.0, |usual| usual.mean + 4.0 * usual.deviation);
        let reserve = Duration::try_from_secs_f64(reserve).unwrap_or_default();
        deadline - reserve.min(deadline / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_replies_usually_take_is_kept_back_by_kind() {
        let reserve = Reserve::default();
        assert_eq!(reserve.steps(true, 50 * MS), 50 * MS, "nothing is known");
        (0..200).for_each(|_| reserve.note(true, 4 * MS));
        let left = reserve.steps(true, 50 * MS);
        assert!(left.abs_diff(46 * MS) < MS / 10, "{left:?}");
        assert_eq!(reserve.steps(false, 50 * MS), 50 * MS);
        // Some take longer: most of them are in time.
        (0..200).for_each(|i| reserve.note(true, (4 + i % 3) * MS));
        let left = reserve.steps(true, 50 * MS);
        assert!(left < 44 * MS && left > 40 * MS, "{left:?}");
    }

    #[test]
    fn slow_replies_leave_half_of_the_time_for_steps() {
        let reserve = Reserve::default();
        reserve.note(true, Duration::from_secs(5));
        assert_eq!(reserve.steps(true, 50 * MS), 25 * MS);
        assert_eq!(reserve.steps(true, Duration::ZERO), Duration::ZERO);
    }
}
