//! The scheduler on random loads: the budget holds, nobody starves, a misfit is passed over, classes keep their order.

use std::time::Duration;

use lacuna::engine::job::Priority;
use lacuna::engine::scheduler::{Budget, Candidate, Scheduler};
use proptest::prelude::*;

const BUDGET: usize = 100;
const TICK: Duration = Duration::from_millis(10);

fn class() -> impl Strategy<Value = Priority> {
    prop_oneof![Just(Priority::Interactive), Just(Priority::Batch), Just(Priority::Rollout)]
}

fn load() -> impl Strategy<Value = Vec<(Priority, usize, bool)>> {
    prop::collection::vec((class(), 1..=BUDGET, prop::bool::weighted(0.1)), 1..24)
}

fn candidates(load: &[(Priority, usize, bool)]) -> Vec<Candidate> {
    let candidate = |(id, &(class, rows, urgent)): (usize, &(Priority, usize, bool))| Candidate {
        id: id as u64,
        class,
        rows,
        urgent,
        shared: None,
    };
    load.iter().enumerate().map(candidate).collect()
}

fn rollouts_get_their_share_on(load: &[(Priority, usize, bool)]) -> Result<(), TestCaseError> {
    let canvases = candidates(load);
    let of = |i: usize| canvases[i].class == Priority::Rollout;
    prop_assume!((0..canvases.len()).any(of) && !(0..canvases.len()).all(of));
    let mut scheduler = Scheduler::new(100, Duration::from_millis(100));
    let (mut rollouts, mut others) = (0, 0);
    let mut turns = vec![0; canvases.len()];
    for tick in 0..4000 {
        for i in scheduler.plan(&canvases, Budget::rows(BUDGET), TICK * tick) {
            if of(i) {
                rollouts += canvases[i].rows
            } else {
                others += canvases[i].rows
            }
            turns[i] += 1;
        }
        prop_assert!(16 * rollouts <= others, "{} rows of rollouts beside {}", rollouts, others);
    }
    let rows = |which: &dyn Fn(usize) -> bool| -> usize {
        (0..canvases.len()).filter(|&i| which(i)).map(|i| canvases[i].rows).sum()
    };
    if rows(&|_| true) <= BUDGET {
        // Each steps once a tick at most; and what is in hand at the end is at most two full ticks.
        let due = (others / 16).min(4000 * rows(&of));
        prop_assert!(rollouts + 2 * BUDGET >= due, "{} rows of rollouts, {} are due", rollouts, due);
    }
    if others > 64 * 16 * BUDGET {
        prop_assert!(turns.iter().all(|&turns| turns > 0), "{:?}", turns);
    }
    Ok(())
}

fn classes_keep_their_order_on(load: &[(Priority, usize, bool)]) -> Result<(), TestCaseError> {
    let canvases = candidates(load);
    let mut scheduler = Scheduler::new(100, Duration::MAX);
    for tick in 0..20 {
        let chosen = scheduler.plan(&canvases, Budget::rows(BUDGET), TICK * tick);
        for class in [Priority::Interactive, Priority::Batch] {
            let above = |c: &Candidate| c.class <= class || c.class == Priority::Rollout;
            let above: usize = chosen.iter().map(|&i| canvases[i]).filter(above).map(|c| c.rows).sum();
            for (i, canvas) in canvases.iter().enumerate() {
                prop_assert!(canvas.class > class || chosen.contains(&i) || canvas.rows > BUDGET - above);
            }
        }
    }
    Ok(())
}

fn everything_ends_on(load: &[(Priority, usize, bool)], steps: usize, cap: usize) -> Result<(), TestCaseError> {
    let mut waiting = candidates(load);
    waiting.reverse();
    let mut present: Vec<(Candidate, usize)> = Vec::new();
    let mut scheduler = Scheduler::new(cap, TICK * 10);
    let mut tick = 0u32;
    while !(waiting.is_empty() && present.is_empty()) {
        if tick.is_multiple_of(2) {
            present.extend(waiting.pop().map(|c| (c, steps)));
        }
        let view: Vec<Candidate> = present.iter().map(|p| p.0).collect();
        for i in scheduler.plan(&view, Budget::rows(BUDGET), TICK * tick) {
            present[i].1 -= 1;
        }
        present.retain(|p| p.1 > 0);
        tick += 1;
        prop_assert!(tick as usize <= 2 * load.len() + load.len() * steps + 1);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_budget_and_the_cap_hold_and_something_always_runs(load in load(), cap in 1usize..10) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(cap, Duration::from_millis(100));
        for tick in 0..60 {
            let chosen = scheduler.plan(&canvases, Budget::rows(BUDGET), TICK * tick);
            prop_assert!(!chosen.is_empty() && chosen.len() <= cap);
            prop_assert!(chosen.iter().map(|&i| canvases[i].rows).sum::<usize>() <= BUDGET);
            let mut distinct = chosen.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), chosen.len());
        }
    }

    #[test]
    fn nobody_waits_longer_than_aging_and_one_turn_of_each(load in load(), cap in 1usize..10, aging in 0u32..20) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(cap, TICK * aging);
        let alone = canvases.iter().all(|canvas| canvas.class == Priority::Rollout);
        // Ticks that each has waited for; those that rollouts took their share of are counted by the property of shares.
        let mut waited = vec![0u32; canvases.len()];
        for tick in 0..300u32 {
            let chosen = scheduler.plan(&canvases, Budget::rows(BUDGET), TICK * tick);
            let shared = !alone && chosen.iter().any(|&i| canvases[i].class == Priority::Rollout);
            for (i, waited) in waited.iter_mut().enumerate() {
                *waited = if chosen.contains(&i) { 0 } else { *waited + u32::from(!shared) };
                let counts = alone || canvases[i].class != Priority::Rollout;
                let limit = aging + canvases.len() as u32 + 1;
                prop_assert!(!counts || *waited <= limit, "{} has waited for {} ticks at {}", i, *waited, tick);
            }
        }
    }

    /// Beside others, rollouts get a sixteenth of their rows: never more, no less where there is room, and nobody starves.
    #[test]
    fn rollouts_get_their_share(load in load()) {
        rollouts_get_their_share_on(&load)?;
    }

    /// Whoever is left out does not fit what is left, unless the count is full.
    #[test]
    fn no_room_is_wasted(load in load(), tick in 0u32..5) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(100, Duration::MAX);
        let mut chosen = Vec::new();
        for t in 0..=tick {
            chosen = scheduler.plan(&canvases, Budget::rows(BUDGET), TICK * t);
        }
        let left = BUDGET - chosen.iter().map(|&i| canvases[i].rows).sum::<usize>();
        for (i, canvas) in canvases.iter().enumerate() {
            // Rollouts beside others have their share and no more; see below.
            let beside = canvas.class == Priority::Rollout && canvases.iter().any(|c| c.class != Priority::Rollout);
            prop_assert!(beside || chosen.contains(&i) || canvas.rows > left);
        }
    }

    /// Without aging a lower class never takes room that a higher one could have used, but for the rollouts' share.
    #[test]
    fn classes_keep_their_order(load in load()) {
        classes_keep_their_order_on(&load)?;
    }

    /// Canvases come and go; everything ends, in bounded time.
    #[test]
    fn everything_ends(load in load(), steps in 1usize..12, cap in 1usize..6) {
        everything_ends_on(&load, steps, cap)?;
    }
}

/// Loads on which a former plan starved a rollout or gave it too much.
#[test]
fn loads_that_went_wrong_once() {
    use Priority::{Interactive, Rollout};
    let load = [(Rollout, 19, false), (Rollout, 1, false), (Interactive, 1, false)];
    everything_ends_on(&load, 5, 1).unwrap();
    for load in [[(Rollout, 98, false), (Interactive, 59, false)], [(Rollout, 1, false), (Interactive, 17, false)]] {
        rollouts_get_their_share_on(&load).unwrap();
        classes_keep_their_order_on(&load).unwrap();
    }
}
