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
//!    slows nobody down and is never starved;
//! 6. where the cost of a tick is known, whatever rides with interactive canvases makes their ticks a sixteenth
//!    longer at most: a ledger is credited with that much per tick, and what rides along is charged to it. What is first in line
//!    waits until it can be paid for, so that nothing is too large to ever ride;
//! 7. ticks without the more important are short while they have been here within a second, so that a newcomer never
//!    waits long.

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

/// Rows of the longest ticks that canvases of each class may step in: all that is no less important, within the budget,
/// and the largest of the others that may ride along.
#[must_use]
pub fn longest_ticks(canvases: &[Candidate], budget: Budget) -> [usize; 3] {
    let (mut sums, mut largest) = ([0; 3], [0; 3]);
    for canvas in canvases {
        let class = canvas.class as usize;
        sums[class] += canvas.rows;
        largest[class] = canvas.rows.max(largest[class]);
    }
    std::array::from_fn(|class| {
        let riders = largest[class + 1..].iter().max().copied().unwrap_or(0);
        sums[..=class].iter().sum::<usize>().min(budget.rows) + riders
    })
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

/// What a tick may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Rows of a tick; only a single canvas may exceed them.
    pub rows: usize,
    /// The same while somebody more important than all that are here may come at any time.
    pub short: usize,
    /// Rows that take as long as what a tick takes whatever it holds. `None`: not known, and rule 6 is off.
    pub fixed: Option<usize>,
}

impl Budget {
    /// So many rows, whose cost is not known.
    #[must_use]
    pub fn rows(rows: usize) -> Self {
        Self { rows, short: rows / SHARE as usize, fixed: None }
    }
}

/// Rollouts beside others get one row for so many of theirs, and others beside interactive canvases one for so many of
/// their ticks' rows, fixed cost included.
const SHARE: i64 = 16;
/// How long after the more important have gone ticks stay short.
const CALM: Duration = Duration::from_secs(1);

/// The scheduler's memory.
#[derive(Debug)]
pub struct Scheduler {
    max_running: usize,
    aging: Duration,
    /// Rows that others were served, less [`SHARE`] times those of rollouts beside them.
    earned: i64,
    /// Rows that others may add to ticks with interactive canvases, times [`SHARE`].
    credit: i64,
    /// When each class was last here.
    here: [Option<Duration>; 3],
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
            credit: 0,
            here: [None; 3],
            accounts: HashMap::new(),
            clocks: [0; 3],
            tick: 0,
        }
    }

    /// Which of `canvases` (in order of arrival) step now, as indices into them, in order of precedence; their rows
    /// are within `budget` in sum, unless it is a single canvas.
    pub fn plan(&mut self, canvases: &[Candidate], budget: Budget, now: Duration) -> Vec<usize> {
        self.note(canvases, now);
        let beside = canvases.iter().any(|canvas| canvas.class != Priority::Rollout);
        if !beside {
            self.earned = 0;
        }
        let riders = self.riders(canvases, budget);
        let order = self.precedence(canvases, beside, now);
        // The first one fits, or short ticks could be empty ones.
        let first = order.first().map_or(0, |&i| canvases[i].rows);
        let mut left = self.room(canvases, budget, now).max(first);
        let mut chosen = Vec::new();
        let mut saving = false;
        for index in order {
            let canvas = &canvases[index];
            let same = |&i: &usize| canvas.shared.is_some() && canvases[i].shared == canvas.shared;
            let cost = if chosen.iter().any(same) { 0 } else { canvas.rows };
            let rides = riders && canvas.class != Priority::Interactive;
            if rides && !canvas.urgent {
                // Whoever comes first is saved for.
                saving |= (cost as i64) * SHARE > self.credit;
            }
            if cost > left || (rides && saving && !canvas.urgent) {
                continue;
            }
            left -= cost;
            chosen.push(index);
            if beside {
                self.settle(canvas.class, cost as i64, budget.rows as i64);
            }
            if riders {
                self.credit += if rides { -(cost as i64) * SHARE } else { cost as i64 };
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

    /// Whether what rides with interactive canvases is limited in this tick; then the ledger gets the tick's fixed cost.
    fn riders(&mut self, canvases: &[Candidate], budget: Budget) -> bool {
        let rides = |canvas: &&Candidate| canvas.class != Priority::Interactive;
        let (Some(fixed), false) = (budget.fixed, canvases.iter().all(|canvas| rides(&canvas))) else {
            return false;
        };
        // Bounded by the largest that may ride: what was not used is not taken in one tick.
        let most = canvases.iter().filter(rides).map(|canvas| canvas.rows).max().unwrap_or(0);
        self.credit = (self.credit + fixed as i64).min(most as i64 * SHARE);
        true
    }

    /// Rows of this tick.
    fn room(&self, canvases: &[Candidate], budget: Budget, now: Duration) -> usize {
        let lead = canvases.iter().map(|canvas| canvas.class as usize).min().unwrap_or(0);
        let recent = |last: &Option<Duration>| last.is_some_and(|last| now.saturating_sub(last) < CALM);
        if self.here[..lead].iter().any(recent) { budget.short } else { budget.rows }
    }

    /// Credits rollouts with what others were served, and charges them for what they were.
    fn settle(&mut self, class: Priority, cost: i64, budget: i64) {
        match class {
            Priority::Rollout => self.earned -= cost * SHARE,
            // Bounded: what was not used for long is not taken all at once.
            _ => self.earned = (self.earned + cost).min(2 * SHARE * budget),
        }
    }

    /// Opens accounts of newcomers, closes those of the departed, moves the clocks.
    fn note(&mut self, canvases: &[Candidate], now: Duration) {
        self.tick += 1;
        let tick = self.tick;
        let mut least = [u64::MAX; 3];
        for canvas in canvases {
            self.here[canvas.class as usize] = Some(now);
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
        self.arrange(canvases, &mut others, now);
        self.arrange(canvases, &mut rollouts, now);
        if beside {
            let mut earned = self.earned;
            let affordable = rollouts.iter().take_while(|&&i| {
                earned -= canvases[i].rows as i64 * SHARE;
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

    /// Of `part`, in order of arrival, those that take part, first things first.
    fn arrange(&self, canvases: &[Candidate], part: &mut Vec<usize>, now: Duration) {
        let waited = |i: usize| self.waited(canvases[i].id, now);
        let aged = part.iter().copied().filter(|&i| waited(i) >= self.aging);
        let oldest = aged.max_by_key(|&i| (waited(i), usize::MAX - i));
        // One step ends those near their deadline, whether or not they have begun.
        part.sort_by_key(|&i| (canvases[i].class, !canvases[i].urgent));
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
mod tests;
