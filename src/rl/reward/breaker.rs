//! A circuit breaker: a hook whose calls keep failing is left alone for a while. Pure: the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Calls that are remembered, and needed before the breaker may open.
const WINDOW: usize = 20;

/// Opens when half of the last `WINDOW` calls failed; after a pause one call is let through, and its outcome closes
/// the breaker or starts the next pause.
#[derive(Debug)]
pub struct Breaker {
    pause: Duration,
    recent: VecDeque<bool>,
    /// Since when no call is let through; while one is on trial, since when that is.
    opened: Option<Instant>,
}

impl Breaker {
    /// A closed breaker that leaves the hook alone for `pause` once it opens.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        Self { pause, recent: VecDeque::with_capacity(WINDOW), opened: None }
    }

    /// Whether a call may be made now. After the pause this is true once; a trial whose outcome is never told (its
    /// task was dropped) counts as failed after another pause.
    pub fn admit(&mut self, now: Instant) -> bool {
        match self.opened {
            None => true,
            Some(since) if now.saturating_duration_since(since) >= self.pause => {
                self.opened = Some(now);
                true
            }
            Some(_) => false,
        }
    }

    /// Whether the hook is left alone, or on trial after that.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    /// Takes note of a call's outcome.
    pub fn record(&mut self, ok: bool, now: Instant) {
        if self.opened.is_some() {
            self.recent.clear();
            self.opened = (!ok).then_some(now);
            return;
        }
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(ok);
        let failed = self.recent.iter().filter(|ok| !**ok).count();
        if self.recent.len() == WINDOW && failed * 2 >= WINDOW {
            self.opened = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    fn after(breaker: &mut Breaker, outcomes: impl IntoIterator<Item = bool>, now: Instant) {
        for ok in outcomes {
            assert!(breaker.admit(now));
            breaker.record(ok, now);
        }
    }

    #[test]
    fn it_opens_at_half_of_twenty_and_not_before() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PAUSE);
        after(&mut breaker, [false; 19], now);
        assert!(breaker.admit(now) && !breaker.is_open());
        breaker.record(false, now);
        assert!(!breaker.admit(now) && breaker.is_open());

        let mut healthy = Breaker::new(PAUSE);
        after(&mut healthy, (0..200).map(|i| i % 20 >= 9), now);
        assert!(healthy.admit(now), "nine of any twenty failed");
    }

    #[test]
    fn after_the_pause_one_call_is_let_through() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PAUSE);
        after(&mut breaker, [false; 20], now);
        let later = now + PAUSE;
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later), "the trial is still running");
        breaker.record(false, later);
        assert!(!breaker.admit(later + PAUSE / 2));
        assert!(breaker.admit(later + PAUSE));
        breaker.record(true, later + PAUSE);
        assert!(!breaker.is_open());
        after(&mut breaker, [false; 19], later + PAUSE);
    }

    #[test]
    fn a_trial_that_never_reports_does_not_shut_the_hook_out_for_ever() {
        let now = Instant::now();
        let mut breaker = Breaker::new(PAUSE);
        after(&mut breaker, [false; 20], now);
        assert!(breaker.admit(now + PAUSE));
        assert!(breaker.admit(now + PAUSE * 2));
    }
}
