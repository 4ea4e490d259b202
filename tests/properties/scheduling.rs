//! The scheduler on random loads: the budget holds, nobody starves, a misfit is passed over, classes keep their order.

use std::time::Duration;

use lacuna::engine::job::Priority;
use lacuna::engine::scheduler::{Candidate, Scheduler};
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_budget_and_the_cap_hold_and_something_always_runs(load in load(), cap in 1usize..10) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(cap, Duration::from_millis(100));
        for tick in 0..60 {
            let chosen = scheduler.plan(&canvases, BUDGET, TICK * tick);
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
        let mut last = vec![0u32; canvases.len()];
        for tick in 0..300u32 {
            for i in scheduler.plan(&canvases, BUDGET, TICK * tick) {
                last[i] = tick;
            }
            for (i, &last) in last.iter().enumerate() {
                prop_assert!(tick - last <= aging + canvases.len() as u32 + 1, "{} waits since {} at {}", i, last, tick);
            }
        }
    }

    /// Whoever is left out does not fit what is left, unless the count is full.
    #[test]
    fn no_room_is_wasted(load in load(), tick in 0u32..5) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(100, Duration::MAX);
        let mut chosen = Vec::new();
        for t in 0..=tick {
            chosen = scheduler.plan(&canvases, BUDGET, TICK * t);
        }
        let left = BUDGET - chosen.iter().map(|&i| canvases[i].rows).sum::<usize>();
        for (i, canvas) in canvases.iter().enumerate() {
            prop_assert!(chosen.contains(&i) || canvas.rows > left);
        }
    }

    /// Without aging a lower class never takes room that a higher one could have used.
    #[test]
    fn classes_keep_their_order(load in load()) {
        let canvases = candidates(&load);
        let mut scheduler = Scheduler::new(100, Duration::MAX);
        for tick in 0..20 {
            let chosen = scheduler.plan(&canvases, BUDGET, TICK * tick);
            for class in [Priority::Interactive, Priority::Batch] {
                let above: usize =
                    chosen.iter().map(|&i| canvases[i]).filter(|c| c.class <= class).map(|c| c.rows).sum();
                for (i, canvas) in canvases.iter().enumerate() {
                    prop_assert!(canvas.class > class || chosen.contains(&i) || canvas.rows > BUDGET - above);
                }
            }
        }
    }

    /// Canvases come and go; everything ends, in bounded time.
    #[test]
    fn everything_ends(load in load(), steps in 1usize..12, cap in 1usize..6) {
        let mut waiting = candidates(&load);
        waiting.reverse();
        let mut present: Vec<(Candidate, usize)> = Vec::new();
        let mut scheduler = Scheduler::new(cap, TICK * 10);
        let mut tick = 0u32;
        while !(waiting.is_empty() && present.is_empty()) {
            if tick.is_multiple_of(2) {
                present.extend(waiting.pop().map(|c| (c, steps)));
            }
            let view: Vec<Candidate> = present.iter().map(|p| p.0).collect();
            for i in scheduler.plan(&view, BUDGET, TICK * tick) {
                present[i].1 -= 1;
            }
            present.retain(|p| p.1 > 0);
            tick += 1;
            prop_assert!(tick as usize <= 2 * load.len() + load.len() * steps + 1);
        }
    }
}
