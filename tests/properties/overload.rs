//! The engine's policy against a device whose ticks take `fixed + rows·per_row`, in virtual time: scheduler and pace
//! are the real ones, canvases are a number of rows and of steps. Thousands of clients, no clock, the same every time.

use std::time::Duration;

use lacuna::diffusion::rng::Stream;
use lacuna::engine::job::Priority::{self, Batch, Interactive, Rollout};
use lacuna::engine::pace::Pace;
use lacuna::engine::scheduler::{Candidate, Scheduler, longest_ticks};

/// About the built-in model's on two cores: 25,000 rows a second.
const FIXED: f64 = 1e-3;
const PER_ROW: f64 = 40e-6;
const MAX_ROWS: usize = 4096;
const SECONDS: f64 = 60.0;
/// Samples for training that wait at all times.
const POOL: usize = 64;

#[derive(Clone, Copy)]
struct Request {
    at: f64,
    class: Priority,
    rows: usize,
    steps: usize,
    deadline: Option<f64>,
}

/// Poisson arrivals.
fn stream(seed: u64, per_second: f64, like: Request) -> Vec<Request> {
    let (mut s, mut at, mut all) = (Stream::new(0x10AD, seed), 0.0, Vec::new());
    loop {
        at -= (1.0 - s.unit()).ln() / per_second;
        if at > SECONDS {
            return all;
        }
        // Prompts differ in length.
        all.push(Request { at, rows: like.rows - 10 + s.below(21), ..like });
    }
}

fn people(seed: u64, per_second: f64) -> Vec<Request> {
    stream(seed, per_second, Request { at: 0.0, class: Interactive, rows: 55, steps: 16, deadline: None })
}

fn batch(seed: u64, per_second: f64) -> Vec<Request> {
    stream(seed + 100, per_second, Request { at: 0.0, class: Batch, rows: 120, steps: 32, deadline: None })
}

struct Live {
    id: u64,
    request: Request,
    left: usize,
}

/// A request that ended: when, and how many steps it got.
struct Ended {
    request: Request,
    at: f64,
    steps: usize,
}

#[derive(Default)]
struct Outcome {
    ended: Vec<Ended>,
    rows: [usize; 3],
    longest: f64,
}

impl Outcome {
    /// The share `q` of the interactive requests took at most so long.
    fn quantile(&self, q: f64) -> f64 {
        let people = self.ended.iter().filter(|ended| ended.request.class == Interactive);
        let mut latencies: Vec<f64> = people.map(|ended| ended.at - ended.request.at).collect();
        latencies.sort_by(f64::total_cmp);
        latencies[(q * latencies.len() as f64).ceil() as usize - 1]
    }
}

/// Runs `requests` and, with `rollouts`, a pool that is never empty.
fn simulate(mut requests: Vec<Request>, rollouts: bool) -> Outcome {
    requests.sort_by(|a, b| b.at.total_cmp(&a.at));
    let (mut scheduler, mut pace) = (Scheduler::new(64, Duration::from_secs(2)), Pace::default());
    let (mut live, mut outcome): (Vec<Live>, _) = (Vec::new(), Outcome::default());
    let (mut now, mut ids, mut noise) = (0.0, 0.., Stream::new(3, 3));
    let rollout = Request { at: 0.0, class: Rollout, rows: 85, steps: 32, deadline: None };
    while now < SECONDS {
        while requests.last().is_some_and(|request| request.at <= now) {
            live.extend(requests.pop().map(|request| Live { id: ids.next().unwrap(), request, left: request.steps }));
        }
        let pool = live.iter().filter(|l| l.request.class == Rollout).count();
        if rollouts {
            live.extend((pool..POOL).map(|_| Live { id: ids.next().unwrap(), request: rollout, left: rollout.steps }));
        }
        if live.is_empty() {
            let Some(next) = requests.last() else { break };
            now = next.at;
            continue;
        }
        let chosen = plan(&mut scheduler, &pace, &mut live, now);
        let rows: usize = chosen.iter().map(|&i| live[i].request.rows).sum();
        let time = (FIXED + PER_ROW * rows as f64) * (0.95 + 0.1 * noise.unit());
        now += time;
        pace.note(rows, Duration::from_secs_f64(time));
        outcome.longest = outcome.longest.max(time);
        for i in chosen {
            live[i].left -= 1;
            outcome.rows[live[i].request.class as usize] += live[i].request.rows;
        }
        live.retain(|l| {
            let steps = l.request.steps - l.left;
            // A rushed one has no steps left.
            let over = l.left == 0;
            outcome.ended.extend(over.then_some(Ended { request: l.request, at: now, steps }));
            !over
        });
    }
    outcome
}

/// As the engine's runner plans.
fn plan(scheduler: &mut Scheduler, pace: &Pace, live: &mut [Live], now: f64) -> Vec<usize> {
    let budget = pace.budget(MAX_ROWS);
    let candidate = |l: &Live| {
        let (class, rows) = (l.request.class, l.request.rows);
        Candidate { id: l.id, class, rows, urgent: false, shared: None }
    };
    let mut candidates: Vec<Candidate> = live.iter().map(candidate).collect();
    let longest = longest_ticks(&candidates, budget);
    for (live, candidate) in live.iter_mut().zip(&mut candidates) {
        let left = live.request.deadline.map(|deadline| Duration::from_secs_f64((deadline - now).max(0.0)));
        if left.is_some_and(|left| pace.must_end(longest[candidate.class as usize], left)) {
            candidate.urgent = true;
            // What it will have had, with the one that commits the rest.
            live.request.steps -= live.left - 1;
            live.left = 1;
        }
    }
    scheduler.plan(&candidates, budget, Duration::from_secs_f64(now))
}

/// Four times what the device can do is asked for, and rollouts wait at all times: whoever has somebody waiting for it
/// hardly notices, and the device is not idle for it.
#[test]
fn people_hardly_notice_fourfold_overload() {
    for seed in 0..3 {
        let (asked, bulk) = (people(seed, 8.0), batch(seed, 26.0));
        let all = [asked.clone(), bulk].concat();
        let offered: usize = all.iter().map(|r| r.rows * r.steps).sum();
        assert!(offered as f64 * PER_ROW / SECONDS > 4.0 && all.len() > 1500);
        let alone = simulate(asked, false);
        let loaded = simulate(all.clone(), true);
        let ratio = |q| loaded.quantile(q) / alone.quantile(q);
        assert!(ratio(0.99) <= 1.3, "seed {seed}: p99 {:.3} of {:.3}", loaded.quantile(0.99), alone.quantile(0.99));
        assert!(ratio(0.5) <= 1.4, "seed {seed}: p50 {:.3} of {:.3}", loaded.quantile(0.5), alone.quantile(0.5));
        let rows: usize = loaded.rows.iter().sum();
        assert!(rows as f64 * PER_ROW / SECONDS > 0.7, "seed {seed}: {:?} rows", loaded.rows);
        assert!(loaded.rows[Rollout as usize] * 25 > rows, "seed {seed}: {:?} rows", loaded.rows);
        // The load is one: without classes everybody waits.
        let equal = all.iter().map(|&r| Request { class: Interactive, ..r }).collect();
        assert!(simulate(equal, false).quantile(0.99) > 20.0 * alone.quantile(0.99));
    }
}

/// What somebody waits for until a deadline ends by then, whatever else is going on; with more time it gets more steps.
#[test]
fn deadlines_are_met_and_time_is_made_use_of() {
    let mut before = 0.0;
    for (seed, deadline) in [0.05, 0.08, 0.12, 0.2, 0.4].into_iter().enumerate() {
        let asked: Vec<Request> = people(seed as u64, 6.0)
            .into_iter()
            .map(|r| Request { steps: 64, deadline: Some(r.at + deadline), ..r })
            .collect();
        let outcome = simulate([asked, batch(seed as u64, 25.0)].concat(), true);
        let timed: Vec<&Ended> = outcome.ended.iter().filter(|e| e.request.deadline.is_some()).collect();
        let late = timed.iter().filter(|e| e.at > e.request.deadline.unwrap()).count();
        assert!(late * 100 <= timed.len(), "{late} of {} missed {deadline} s", timed.len());
        for ended in &timed {
            let over = ended.at - ended.request.deadline.unwrap();
            assert!(over < outcome.longest, "{over} s after a deadline of {deadline} s");
        }
        let steps = timed.iter().map(|e| e.steps as f64).sum::<f64>() / timed.len() as f64;
        assert!(steps > before, "{steps} steps in {deadline} s, {before} in less");
        before = steps;
    }
    assert!(before > 40.0, "{before}");
}
