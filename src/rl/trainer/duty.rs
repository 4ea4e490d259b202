//! How learning gives way to people: which share of the time its products take while somebody waits for an answer.
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

/// When products of learning may run: at any time while nobody waits, and for a share of the time while somebody does.
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

    /// How long to wait at `now`; zero where a product may run.
    fn wait(&self, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = state.rest.unwrap_or(now);
        if self.beside_people(&mut state, now, LINGER) { rest.saturating_duration_since(now) } else { Duration::ZERO }
    }

    /// What ended at `now` took `time`: the rest that goes with it, if people were there.
    fn charge(&self, now: Instant, time: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.beside_people(&mut state, now, LINGER + time) {
            let from = state.rest.map_or(now, |rest| rest.max(now));
            state.rest = from.checked_add(time.mul_f64((1.0 / self.share - 1.0).max(0.0)));
        }
    }

    /// Whether people are there at `now`, or were within the time `ago`.
    fn beside_people(&self, state: &mut State, now: Instant, ago: Duration) -> bool {
        if (self.people)() {
            state.seen = Some(now);
        }
        state.seen.is_some_and(|seen| now.duration_since(seen) < ago)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn duty(share: f64) -> (Duty, Arc<AtomicBool>) {
        let people = Arc::new(AtomicBool::new(true));
        let there = Arc::clone(&people);
        (Duty::beside(move || there.load(Ordering::SeqCst), share, || false), people)
    }

    #[test]
    fn beside_people_it_takes_its_share_and_alone_all() {
        let (duty, people) = duty(0.1);
        let start = Instant::now();
        assert_eq!(duty.wait(start), Duration::ZERO, "who has taken nothing owes nothing");
        duty.charge(start, MS(100));
        assert_eq!(duty.wait(start), MS(900));
        duty.charge(start, MS(50));
        assert_eq!(duty.wait(start), MS(1350), "another thread's time adds up");
        people.store(false, Ordering::SeqCst);
        assert_eq!(duty.wait(start + MS(100)), MS(1250), "most people ask again at once");
        assert_eq!(duty.wait(start + MS(260)), Duration::ZERO);
        duty.charge(start + MS(800), MS(500));
        people.store(true, Ordering::SeqCst);
        assert_eq!(duty.wait(start + MS(1200)), MS(150), "only what was taken beside people counts");
        assert_eq!(duty.wait(start + MS(1350)), Duration::ZERO);
    }

    #[test]
    fn whoever_waits_hears_that_it_is_over() {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let duty = Duty::beside(|| true, 0.001, move || stopped.load(Ordering::SeqCst));
        duty.took(Duration::from_secs(60));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| duty.turn());
            stop.store(true, Ordering::SeqCst);
            assert!(!waiting.join().unwrap());
        });
    }
}
