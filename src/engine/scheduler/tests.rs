use super::*;
use Priority::{Batch, Interactive, Rollout};

const NEVER: Duration = Duration::MAX;

fn upto(rows: usize) -> Budget {
    Budget::rows(rows)
}

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
    assert_eq!(s.plan(&all, upto(20), at(0)), [2, 1]);
    assert_eq!(
        s.plan(&all, upto(30), at(0)),
        [2, 1],
        "a rollout that has earned nothing waits, however much room there is"
    );
    assert_eq!(s.plan(&all, upto(10), at(1)), [2]);
}

#[test]
fn a_misfit_is_skipped_not_waited_for() {
    let mut s = Scheduler::new(8, NEVER);
    let all = [canvas(1, Interactive, 60), canvas(2, Interactive, 60), canvas(3, Batch, 40)];
    assert_eq!(s.plan(&all, upto(100), at(0)), [0, 2]);
    // Neither had its turn before: the one that was skipped goes first now.
    assert_eq!(s.plan(&all, upto(100), at(1)), [1, 2]);
}

#[test]
fn rows_are_shared_evenly_inside_a_class() {
    let mut s = Scheduler::new(8, NEVER);
    let all = [canvas(1, Interactive, 100), canvas(2, Interactive, 25), canvas(3, Interactive, 25)];
    let mut rows = [0; 3];
    for tick in 0..400 {
        for i in s.plan(&all, upto(100), at(tick)) {
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
    (0..100).for_each(|tick| assert_eq!(s.plan(&[old], upto(10), at(tick)), [0]));
    let both = [old, canvas(2, Interactive, 10)];
    let turns: Vec<usize> = (100..104).flat_map(|tick| s.plan(&both, upto(10), at(tick))).collect();
    assert_eq!(turns.iter().filter(|&&i| i == 0).count(), 2, "{turns:?}");
}

#[test]
fn what_has_begun_is_finished_before_more_is_begun() {
    let mut s = Scheduler::new(2, NEVER);
    let all: Vec<Candidate> = (0..5).map(|id| canvas(id, Batch, 1)).collect();
    (0..10).for_each(|tick| {
        let mut chosen = s.plan(&all, upto(100), at(tick));
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1]);
    });
    let with_interactive = [&all[..], &[canvas(9, Interactive, 1)]].concat();
    assert_eq!(s.plan(&with_interactive, upto(100), at(11))[0], 5);
}

#[test]
fn the_longest_waiting_goes_first_when_its_time_has_come() {
    let mut s = Scheduler::new(8, Duration::from_millis(50));
    let all = [canvas(1, Interactive, 100), canvas(2, Batch, 100)];
    let turns: Vec<usize> = (0..12).flat_map(|tick| s.plan(&all, upto(100), at(tick))).collect();
    assert_eq!(turns, [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn rollouts_beside_others_get_a_sixteenth_of_the_rows() {
    let mut s = Scheduler::new(8, Duration::from_millis(50));
    let all = [canvas(1, Interactive, 100), canvas(2, Rollout, 80), canvas(3, Rollout, 80)];
    let mut rows = [0; 3];
    for tick in 0..4096 {
        let chosen = s.plan(&all, upto(1000), at(tick));
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
    let turns = (0..400).filter(|&tick| s.plan(&all, upto(100), at(tick)).contains(&2)).count();
    assert!(turns > 20, "{turns}");
}

#[test]
fn rollouts_alone_take_short_ticks_for_a_while() {
    let mut s = Scheduler::new(64, NEVER);
    let rollouts: Vec<Candidate> = (0..40).map(|id| canvas(id, Rollout, 80)).collect();
    assert_eq!(s.plan(&rollouts, upto(3200), at(0)).len(), 40, "nobody has been here");
    let with = [&rollouts[..], &[canvas(99, Interactive, 80)]].concat();
    assert_eq!(s.plan(&with, upto(3200), at(1)), [40]);
    assert_eq!(s.plan(&rollouts, upto(3200), at(2)).len(), 2, "3200 / 16 rows");
    assert_eq!(s.plan(&rollouts, upto(800), at(3)).len(), 1, "one always fits");
    assert_eq!(s.plan(&rollouts, upto(3200), at(102)).len(), 40, "a second later");
}

#[test]
fn a_near_deadline_goes_first_in_its_class() {
    let mut s = Scheduler::new(8, NEVER);
    let urgent = Candidate { urgent: true, ..canvas(3, Batch, 10) };
    let all = [canvas(1, Interactive, 10), canvas(2, Batch, 10), urgent];
    assert_eq!(s.plan(&all, upto(20), at(0)), [0, 2]);
}

#[test]
fn identical_canvases_count_once() {
    let mut s = Scheduler::new(8, NEVER);
    let twin = |id| Candidate { shared: Some(7), ..canvas(id, Interactive, 60) };
    assert_eq!(s.plan(&[twin(1), twin(2), twin(3), canvas(4, Batch, 40)], upto(100), at(0)), [0, 1, 2, 3]);
}

const KNOWN: Budget = Budget { rows: 4096, short: 200, fixed: Some(40) };

#[test]
fn riders_make_interactive_ticks_a_sixteenth_longer() {
    let mut s = Scheduler::new(64, Duration::from_millis(50));
    let batch = (1..40).map(|id| canvas(id, Batch, 100 + id as usize));
    let all: Vec<Candidate> =
        [canvas(0, Interactive, 60)].into_iter().chain(batch).chain([canvas(99, Rollout, 80)]).collect();
    let (mut riders, mut turns) = (0, vec![0; all.len()]);
    for tick in 0..20_000 {
        let chosen = s.plan(&all, KNOWN, at(tick));
        assert!(chosen.contains(&0));
        riders += chosen.iter().filter(|&&i| i > 0).map(|&i| all[i].rows).sum::<usize>();
        chosen.iter().for_each(|&i| turns[i] += 1);
    }
    let share = riders as f64 / (20_000.0 * 100.0);
    assert!(share <= 0.0625 && share > 0.06, "{share} of a tick of 60 rows and a cost of 40");
    let least = turns.iter().min();
    assert!(turns[1..].iter().all(|turns| *turns > 5), "{least:?}: nobody starves, however large");
}

#[test]
fn riders_take_no_burst_of_what_others_left() {
    let mut s = Scheduler::new(64, NEVER);
    let one = canvas(0, Interactive, 60);
    (0..1000).for_each(|tick| assert_eq!(s.plan(&[one], KNOWN, at(tick)), [0]));
    let all: Vec<Candidate> = [one].into_iter().chain((1..40).map(|id| canvas(id, Batch, 100))).collect();
    let rode = (1000..1032).map(|tick| s.plan(&all, KNOWN, at(tick)).len() - 1).sum::<usize>();
    assert!((1..=2).contains(&rode), "{rode}: sixteen ticks are worth one of 100 rows");
}

#[test]
fn batch_alone_takes_short_ticks_while_people_are_about() {
    let mut s = Scheduler::new(64, NEVER);
    let batch: Vec<Candidate> = (1..40).map(|id| canvas(id, Batch, 100)).collect();
    assert_eq!(s.plan(&batch, KNOWN, at(0)).len(), 39, "nobody has been here");
    assert_eq!(s.plan(&[canvas(0, Interactive, 60)], KNOWN, at(1)), [0]);
    assert_eq!(s.plan(&batch, KNOWN, at(2)).len(), 2);
    assert_eq!(s.plan(&batch, KNOWN, at(102)).len(), 39, "a second later");
}

#[test]
fn a_deadline_is_met_by_one_that_has_not_begun() {
    let mut s = Scheduler::new(2, NEVER);
    let mut all: Vec<Candidate> = (0..5).map(|id| canvas(id, Batch, 10)).collect();
    all[4].urgent = true;
    assert_eq!(s.plan(&all, upto(100), at(0)), [4, 0]);
}
