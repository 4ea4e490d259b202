//! Who steps next. Pure: rows, classes and the time come in, a selection goes out; no tensors, no clock, no channels.
//!
//! The rules, in this order:
//! 1. whoever has waited longest, and longer than the aging limit, goes first, one canvas a tick: nobody starves;
//! 2. interactive before batch before rollout; only the first `max_running` by class and arrival take part (rollouts are
//!    counted apart), so that what has begun is finished before more is begun, while a higher class displaces a lower
//!    one at any step;
//! 3. inside a class, those near their deadline, then whoever has been served the fewest rows. This is deficit round
//!    robin in its virtual-time form: a newcomer starts at the least-served one's count;
//! 4. a canvas that does not fit what is left of the budget is skipped, not waited for;
//! 5. rollouts beside others get a sixteenth of the rows, never more, and no less where there is room, so that learning
//!    slows nobody down and is never starved; alone they get all of them, but in short ticks while others have been here
//!    within a second, so that a newcomer never waits long.

use std::collections::HashMap;
use std::time::Duration;

use super::job::Priority;

/// A canvas that wants to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Stable over its life.
    pub id: u64,
    /// Its class.
    pub class: Priority,
    /// Rows of its next step; at most the budget, or it never fits.
    pub rows: usize,
    /// Its deadline is near: one step ends it.
    pub urgent: bool,
    /// Canvases with the same key are identical so far: their rows count once in a tick.
    pub shared: Option<u64>,
}

/// What is remembered of a canvas between ticks.
#[derive(Debug, Clone, Copy)]
struct Account {
    /// Rows served, in the virtual time of its class.
    served: u64,
    /// When it was served last, or arrived.
    since: Duration,
    /// Tick in which it was seen last.
    seen: u64,
}

/// Rollouts beside others get one row for so many of theirs.
const ROLLOUT_SHARE: i64 = 16;
/// How long after the others have gone ticks of rollouts stay short.
const CALM: Duration = Duration::from_secs(1);

/// The scheduler's memory.
#[derive(Debug)]
pub struct Scheduler {
    max_running: usize,
    aging: Duration,
    /// Rows that others were served, less [`ROLLOUT_SHARE`] times those of rollouts beside them.
    earned: i64,
    /// When somebody other than rollouts was last here.
    others: Option<Duration>,
    accounts: HashMap<u64, Account>,
    /// Virtual time of each class.
    clocks: [u64; 3],
    tick: u64,
}

impl Scheduler {
    /// At most `max_running` canvases a tick; one that has waited for `aging` goes first.
    #[must_use]
    pub fn new(max_running: usize, aging: Duration) -> Self {
        Self {
            max_running: max_running.max(1),
            aging,
            earned: 0,
            others: None,
            accounts: HashMap::new(),
            clocks: [0; 3],
            tick: 0,
        }
    }

    /// Which of `canvases` (in order of arrival) step now, as indices into them, in order of precedence; their rows
    /// are at most `budget` in sum.
    pub fn plan(&mut self, canvases: &[Candidate], budget: usize, now: Duration) -> Vec<usize> {
        self.note(canvases, now);
        let beside = canvases.iter().any(|canvas| canvas.class != Priority::Rollout);
        let order = self.precedence(canvases, beside, now);
        // The first one fits, or short ticks could be empty ones.
        let first = order.first().map_or(0, |&i| canvases[i].rows);
        let mut left = self.room(budget, first, beside, now);
        let mut chosen = Vec::new();
        for index in order {
            let canvas = &canvases[index];
            let same = |&i: &usize| canvas.shared.is_some() && canvases[i].shared == canvas.shared;
            let cost = if chosen.iter().any(same) { 0 } else { canvas.rows };
            if cost > left {
                continue;
            }
            left -= cost;
            chosen.push(index);
            if beside {
                self.settle(canvas.class, cost as i64, budget as i64);
            }
            if let Some(account) = self.accounts.get_mut(&canvas.id) {
                account.served += cost as u64;
                account.since = now;
            }
            if chosen.len() == self.max_running {
                break;
            }
        }
        chosen
    }

    /// Rows of this tick.
    fn room(&mut self, budget: usize, first: usize, beside: bool, now: Duration) -> usize {
        if beside {
            self.others = Some(now);
            return budget;
        }
        self.earned = 0;
        let recent = self.others.is_some_and(|last| now.saturating_sub(last) < CALM);
        if recent { first.max(budget / ROLLOUT_SHARE as usize) } else { budget }
    }

    /// Credits rollouts with what others were served, and charges them for what they were.
    fn settle(&mut self, class: Priority, cost: i64, budget: i64) {
        match class {
            Priority::Rollout => self.earned -= cost * ROLLOUT_SHARE,
            // Bounded: what was not used for long is not taken all at once.
            _ => self.earned = (self.earned + cost).min(2 * ROLLOUT_SHARE * budget),
        }
    }

    /// Opens accounts of newcomers, closes those of the departed, moves the clocks.
    fn note(&mut self, canvases: &[Candidate], now: Duration) {
        self.tick += 1;
        let tick = self.tick;
        let mut least = [u64::MAX; 3];
        for canvas in canvases {
            if let Some(account) = self.accounts.get_mut(&canvas.id) {
                account.seen = tick;
                let class = &mut least[canvas.class as usize];
                *class = (*class).min(account.served);
            }
        }
        for (clock, least) in self.clocks.iter_mut().zip(least) {
            if least != u64::MAX {
                *clock = (*clock).max(least);
            }
        }
        for canvas in canvases {
            let served = self.clocks[canvas.class as usize];
            self.accounts.entry(canvas.id).or_insert(Account { served, since: now, seen: tick });
        }
        self.accounts.retain(|_, account| account.seen == tick);
    }

    /// All that may step, first things first. Rollouts `beside` others come before them, or not at all: what they have
    /// earned is theirs even where the others fill every tick.
    fn precedence(&self, canvases: &[Candidate], beside: bool, now: Duration) -> Vec<usize> {
        // Stable: arrival decides among equals.
        let (mut others, mut rollouts): (Vec<usize>, Vec<usize>) =
            (0..canvases.len()).partition(|&i| canvases[i].class != Priority::Rollout);
        others.sort_by_key(|&i| canvases[i].class);
        self.arrange(canvases, &mut others, now);
        self.arrange(canvases, &mut rollouts, now);
        if beside {
            let mut earned = self.earned;
            let affordable = rollouts.iter().take_while(|&&i| {
                earned -= canvases[i].rows as i64 * ROLLOUT_SHARE;
                earned >= 0
            });
            let n = affordable.count();
            rollouts.truncate(n);
        }
        // But not before one that has waited too long, and longer: small rollouts in every tick could leave a large canvas
        // no room for ever.
        let wait = |i: Option<&usize>| i.map_or(Duration::ZERO, |&i| self.waited(canvases[i].id, now));
        let waits = wait(others.first()) >= self.aging && wait(others.first()) > wait(rollouts.first());
        let first = usize::from(waits);
        others.splice(first..first, rollouts);
        others
    }

    fn waited(&self, id: u64, now: Duration) -> Duration {
        self.accounts.get(&id).map_or(Duration::ZERO, |account| now.saturating_sub(account.since))
    }

    /// Of `part`, in order of class and arrival, those that take part, first things first.
    fn arrange(&self, canvases: &[Candidate], part: &mut Vec<usize>, now: Duration) {
        let waited = |i: usize| self.waited(canvases[i].id, now);
        let aged = part.iter().copied().filter(|&i| waited(i) >= self.aging);
        let oldest = aged.max_by_key(|&i| (waited(i), usize::MAX - i));
        part.truncate(self.max_running);
        part.sort_by_key(|&i| {
            let served = self.accounts.get(&canvases[i].id).map_or(0, |account| account.served);
            (canvases[i].class, !canvases[i].urgent, served, i)
        });
        if let Some(oldest) = oldest {
            part.retain(|&i| i != oldest);
            part.insert(0, oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Batch, Interactive, Rollout};

    const NEVER: Duration = Duration::MAX;

    fn canvas(id: u64, class: Priority, rows: usize) -> Candidate {
        Candidate { id, class, rows, urgent: false, shared: None }
    }

    fn at(tick: u64) -> Duration {
        Duration::from_millis(tick * 10)
    }

    #[test]
    fn classes_go_in_order() {
        let mut s = Scheduler::new(8, NEVER);
        let all = [canvas(1, Rollout, 10), canvas(2, Batch, 10), canvas(3, Interactive, 10)];
        assert_eq!(s.plan(&all, 20, at(0)), [2, 1]);
        assert_eq!(
            s.plan(&all, 30, at(0)),
            [2, 1],
            "a rollout that has earned nothing waits, however much room there is"
        );
        assert_eq!(s.plan(&all, 10, at(1)), [2]);
    }

    #[test]
    fn a_misfit_is_skipped_not_waited_for() {
        let mut s = Scheduler::new(8, NEVER);
        let all = [canvas(1, Interactive, 60), canvas(2, Interactive, 60), canvas(3, Batch, 40)];
        assert_eq!(s.plan(&all, 100, at(0)), [0, 2]);
        // Neither had its turn before: the one that was skipped goes first now.
        assert_eq!(s.plan(&all, 100, at(1)), [1, 2]);
    }

    #[test]
    fn rows_are_shared_evenly_inside_a_class() {
        let mut s = Scheduler::new(8, NEVER);
        let all = [canvas(1, Interactive, 100), canvas(2, Interactive, 25), canvas(3, Interactive, 25)];
        let mut rows = [0; 3];
        for tick in 0..400 {
            for i in s.plan(&all, 100, at(tick)) {
                rows[i] += all[i].rows;
            }
        }
        // The large one excludes the others from its ticks, so each of them waits for it, and it for them.
        assert!(rows[0] <= 2 * rows[1] && rows[1] <= 2 * rows[0], "{rows:?}");
        assert_eq!(rows[1], rows[2]);
    }

    #[test]
    fn a_newcomer_has_no_credit_from_before_its_time() {
        let mut s = Scheduler::new(8, NEVER);
        let old = canvas(1, Interactive, 10);
        (0..100).for_each(|tick| assert_eq!(s.plan(&[old], 10, at(tick)), [0]));
        let both = [old, canvas(2, Interactive, 10)];
        let turns: Vec<usize> = (100..104).flat_map(|tick| s.plan(&both, 10, at(tick))).collect();
        assert_eq!(turns.iter().filter(|&&i| i == 0).count(), 2, "{turns:?}");
    }

    #[test]
    fn what_has_begun_is_finished_before_more_is_begun() {
        let mut s = Scheduler::new(2, NEVER);
        let all: Vec<Candidate> = (0..5).map(|id| canvas(id, Batch, 1)).collect();
        (0..10).for_each(|tick| {
            let mut chosen = s.plan(&all, 100, at(tick));
            chosen.sort_unstable();
            assert_eq!(chosen, [0, 1]);
        });
        let with_interactive = [&all[..], &[canvas(9, Interactive, 1)]].concat();
        assert_eq!(s.plan(&with_interactive, 100, at(11))[0], 5);
    }

    #[test]
    fn the_longest_waiting_goes_first_when_its_time_has_come() {
        let mut s = Scheduler::new(8, Duration::from_millis(50));
        let all = [canvas(1, Interactive, 100), canvas(2, Batch, 100)];
        let turns: Vec<usize> = (0..12).flat_map(|tick| s.plan(&all, 100, at(tick))).collect();
        assert_eq!(turns, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn rollouts_beside_others_get_a_sixteenth_of_the_rows() {
        let mut s = Scheduler::new(8, Duration::from_millis(50));
        let all = [canvas(1, Interactive, 100), canvas(2, Rollout, 80), canvas(3, Rollout, 80)];
        let mut rows = [0; 3];
        for tick in 0..4096 {
            let chosen = s.plan(&all, 1000, at(tick));
            assert!(chosen.contains(&0) && chosen.len() < 3, "nobody waits for them, and they come one at a time");
            chosen.iter().for_each(|&i| rows[i] += all[i].rows);
        }
        let share = (rows[1] + rows[2]) as f64 / rows[0] as f64;
        assert!((share - 1.0 / 16.0).abs() < 0.001, "{share}");
        assert!(rows[1].abs_diff(rows[2]) <= 80, "{rows:?}");
    }

    #[test]
    fn small_rollouts_never_keep_a_large_canvas_out() {
        let mut s = Scheduler::new(100, Duration::from_millis(100));
        let rows = [(Rollout, 3), (Interactive, 1), (Batch, 98), (Interactive, 4), (Interactive, 40), (Interactive, 3)];
        let all: Vec<Candidate> = (0u64..).zip(rows).map(|(id, (class, rows))| canvas(id, class, rows)).collect();
        let turns = (0..400).filter(|&tick| s.plan(&all, 100, at(tick)).contains(&2)).count();
        assert!(turns > 20, "{turns}");
    }

    #[test]
    fn rollouts_alone_take_short_ticks_for_a_while() {
        let mut s = Scheduler::new(64, NEVER);
        let rollouts: Vec<Candidate> = (0..40).map(|id| canvas(id, Rollout, 80)).collect();
        assert_eq!(s.plan(&rollouts, 3200, at(0)).len(), 40, "nobody has been here");
        let with = [&rollouts[..], &[canvas(99, Interactive, 80)]].concat();
        assert_eq!(s.plan(&with, 3200, at(1)), [40]);
        assert_eq!(s.plan(&rollouts, 3200, at(2)).len(), 2, "3200 / 16 rows");
        assert_eq!(s.plan(&rollouts, 800, at(3)).len(), 1, "one always fits");
        assert_eq!(s.plan(&rollouts, 3200, at(102)).len(), 40, "a second later");
    }

    #[test]
    fn a_near_deadline_goes_first_in_its_class() {
        let mut s = Scheduler::new(8, NEVER);
        let urgent = Candidate { urgent: true, ..canvas(3, Batch, 10) };
        let all = [canvas(1, Interactive, 10), canvas(2, Batch, 10), urgent];
        assert_eq!(s.plan(&all, 20, at(0)), [0, 2]);
    }

    #[test]
    fn identical_canvases_count_once() {
        let mut s = Scheduler::new(8, NEVER);
        let twin = |id| Candidate { shared: Some(7), ..canvas(id, Interactive, 60) };
        assert_eq!(s.plan(&[twin(1), twin(2), twin(3), canvas(4, Batch, 40)], 100, at(0)), [0, 1, 2, 3]);
    }
}
