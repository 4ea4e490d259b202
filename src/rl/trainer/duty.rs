//! How learning gives way to people: which share of the time micro-batches take while somebody waits for an answer.
//!
//! Priorities of the operating system are not enough. Both halves multiply matrices, and an engine that pauses at every
//! product, if only for a moment, leaves the learner time that it then takes from the next product's cache and wake-up.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::rl::update::Pace;

/// How often one that waits looks again.
const LOOK: Duration = Duration::from_millis(10);
/// People are still there this long after their last request has ended: most ask again at once.
const LINGER: Duration = Duration::from_millis(250);

/// When micro-batches may run: at any time while nobody waits, and for a share of the time while somebody does.
pub struct Duty {
    people: Box<dyn Fn() -> bool + Send + Sync>,
    stop: Box<dyn Fn() -> bool + Send + Sync>,
    share: f64,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// People were last seen then.
    seen: Option<Instant>,
    /// Until then nothing runs beside them.
    rest: Option<Instant>,
}

impl Duty {
    /// Learning takes at most `share` of one thread's time while `engine` has interactive requests; an update ends
    /// when `stop` is true.
    pub fn new(engine: Engine, share: f64, stop: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self::beside(move || engine.status().interactive > 0, share, stop)
    }

    fn beside(
        people: impl Fn() -> bool + Send + Sync + 'static,
        share: f64,
        stop: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { people: Box::new(people), stop: Box::new(stop), share, state: Mutex::default() }
    }

    /// How long to wait at `now`; zero where a micro-batch may run.
    fn wait(&self, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if (self.people)() {
            state.seen = Some(now);
        }
        let there = state.seen.is_some_and(|seen| now.duration_since(seen) < LINGER);
        match state.rest {
            Some(rest) if there => rest.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// A micro-batch that ended at `now` took `time`: the rest that goes with it.
    fn charge(&self, now: Instant, time: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let from = state.rest.map_or(now, |rest| rest.max(now));
        state.rest = from.checked_add(time.mul_f64((1.0 / self.share - 1.0).max(0.0)));
    }
}

impl Pace for Duty {
    fn turn(&self) -> bool {
        loop {
            if (self.stop)() {
                return false;
            }
            let wait = self.wait(Instant::now());
            if wait.is_zero() {
                return true;
            }
            std::thread::sleep(wait.min(LOOK));
        }
    }

    fn took(&self, time: Duration) {
        self.charge(Instant::now(), time);
    }
}
