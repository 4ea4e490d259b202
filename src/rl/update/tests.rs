use std::sync::atomic::AtomicUsize;

use candle_core::Device;

use super::*;
use crate::models::optim::OptimConfig;
use crate::rl::logprob::Drawn;
use crate::rl::masks::{Role, Tail, roles};
use crate::rl::policy::LoraConfig;
use crate::rl::preference::{DpoConfig, KtoConfig};
use crate::starter;

fn workshop(threads: usize, pace: impl Fn() -> bool + Send + Sync + 'static) -> Workshop {
    let model = starter::model::load(&Device::Cpu).unwrap().backbone.for_learning().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    Workshop { model, pool, pace: Arc::new(pace) }
}

fn policy(workshop: &Workshop) -> Policy {
    let config = workshop.model.adaptable().unwrap();
    Policy::fresh(config, &LoraConfig { rank: 4, alpha: 8.0 }, OptimConfig::default(), 3, &Device::Cpu).unwrap()
}

/// Two answers to each of some questions: the first of each pair is the better one.
fn batch() -> Vec<Judged> {
    let text = starter::code_ids().start;
    (0..6u64)
        .map(|i| {
            let completion: Vec<u32> = (0..5).map(|k| 30 + ((i * 7 + k * 3) % 60) as u32).collect();
            let roles: Vec<Role> = roles(&completion, &[], Tail::default());
            let prefix = vec![1, 20 + (i / 2) as u32];
            let sample = Sample {
                id: i,
                prefix,
                completion,
                suffix: vec![],
                vocab: 0..text,
                roles,
                commit_steps: vec![],
                logprobs: vec![],
                drawn: Drawn::default(),
            };
            Judged { sample, advantage: if i % 2 == 0 { 0.7 } else { -0.7 }, weight: 1.0, behaviour: None }
        })
        .collect()
}

fn config() -> UpdateConfig {
    UpdateConfig {
        estimator: Estimator::TEXT,
        loss: LossConfig::default(),
        bounds: None,
        draws: 2,
        inner: 3,
        micro_rows: 20,
        checkpointing: false,
        max_drift: 1.0,
        behaviour_cap: 2.0,
        max_staleness: 0.7,
        seed: 5,
    }
}

/// Σ A · log p over the scored positions, under masks that training does not use.
fn favour(workshop: &Workshop, adapter: Option<&Arc<Lora>>) -> f64 {
    let batch = batch();
    let samples: Vec<Sample> = batch.iter().map(|judged| judged.sample.clone()).collect();
    let step = Step::draw(&Estimator::TEXT, &samples, 99, 1, 0).unwrap();
    let logprobs = step.gather(&logprobs(&*workshop.model, adapter, &step.views(), 500).unwrap());
    let of = |(judged, range): (&Judged, &std::ops::Range<usize>)| {
        judged.advantage * logprobs[range.clone()].iter().sum::<f64>()
    };
    batch.iter().zip(step.segments()).map(of).sum()
}

#[test]
fn what_was_liked_becomes_more_likely() {
    let workshop = workshop(2, || true);
    let mut policy = policy(&workshop);
    let before = favour(&workshop, None);
    for _ in 0..4 {
        let report = update(&workshop, &mut policy, None, &batch(), &config(), 3e-3).unwrap();
        assert_eq!((report.steps, report.skipped, report.stale), (3, 0, 0));
    }
    let after = favour(&workshop, Some(&policy.snapshot().unwrap()));
    assert!(after > before + 1.0, "{before} to {after}");
}

#[test]
fn neither_threads_nor_micro_batches_change_an_update() {
    let run = |threads, micro_rows| {
        let workshop = workshop(threads, || true);
        let mut policy = policy(&workshop);
        let report = update(&workshop, &mut policy, None, &batch(), &UpdateConfig { micro_rows, ..config() }, 1e-3);
        (report.unwrap(), values(&policy))
    };
    let (one, two) = (run(1, 20), run(2, 20));
    assert!(one == two, "threads");
    let whole = run(1, 10_000);
    let close = |a: f64, b: f64| (a - b).abs() < 1e-4 * (1.0 + b.abs());
    assert!(close(one.0.loss, whole.0.loss) && close(one.0.kl, whole.0.kl), "{:?} {:?}", one.0, whole.0);
}

#[test]
fn checkpointing_by_layer_changes_nothing_but_the_memory() {
    let workshop = workshop(1, || true);
    let run = |checkpointing| {
        let mut policy = policy(&workshop);
        let config = UpdateConfig { checkpointing, ..config() };
        let reports = [0, 1].map(|_| update(&workshop, &mut policy, None, &batch(), &config, 1e-3).unwrap());
        (reports, values(&policy))
    };
    assert!(run(false) == run(true));
}

/// The batch's neighbours are a liked and a disliked answer to one question: a batch of pairs too.
const BOUNDS: [Bounds; 2] = [
    Bounds::Kto(KtoConfig { beta: 0.1, desired: 1.0, undesired: 1.0 }),
    Bounds::Dpo(DpoConfig { beta: 0.1, sft: 0.05 }),
];

#[test]
fn losses_on_bounds_favour_what_was_liked_ever_more() {
    let workshop = workshop(2, || true);
    for bounds in BOUNDS {
        let (mut policy, config) = (policy(&workshop), UpdateConfig { bounds: Some(bounds), ..config() });
        let before = favour(&workshop, None);
        let mut margins = Vec::new();
        for seed in 0..4 {
            let config = UpdateConfig { seed, ..config };
            let report = update(&workshop, &mut policy, None, &batch(), &config, 3e-3).unwrap();
            assert_eq!((report.steps, report.skipped, report.stale), (3, 0, 0));
            assert!(report.kl > 0.0 && report.tokens > 0 && report.logprob < 0.0, "{report:?}");
            margins.push(report.margin);
        }
        assert!(margins.windows(2).all(|w| w[0] < w[1]) && margins[0] > 0.0, "{bounds:?}: {margins:?}");
        let after = favour(&workshop, Some(&policy.snapshot().unwrap()));
        assert!(after > before + 1.0, "{bounds:?}: {before} to {after}");
    }
}

#[test]
fn losses_on_bounds_depend_on_neither_threads_nor_micro_batches_nor_checkpointing() {
    for bounds in BOUNDS {
        let run = |threads, micro_rows, checkpointing| {
            let (workshop, bounds) = (workshop(threads, || true), Some(bounds));
            let mut policy = policy(&workshop);
            let config = UpdateConfig { bounds, micro_rows, checkpointing, ..config() };
            let report = update(&workshop, &mut policy, None, &batch(), &config, 1e-3).unwrap();
            let state = policy.state();
            let values: Vec<f32> =
                state.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
            (report, values)
        };
        let one = run(1, 20, false);
        assert!(one == run(2, 20, false) && one == run(1, 20, true), "{bounds:?}");
        let whole = run(1, 10_000, false).0;
        // The bounds of a first step are compared before any part of its gradient is: only rounding differs.
        let close = |a: f64, b: f64| (a - b).abs() < 1e-3 * (1.0 + b.abs());
        assert!(close(one.0.loss, whole.loss) && close(one.0.grad_norm, whole.grad_norm), "{:?} {whole:?}", one.0);
    }
}

#[test]
fn pairs_are_needed_in_twos() {
    let workshop = workshop(1, || true);
    let config = UpdateConfig { bounds: Some(BOUNDS[1]), ..config() };
    let error = update(&workshop, &mut policy(&workshop), None, &batch()[..5], &config, 1e-3).unwrap_err();
    assert!(error.to_string().contains("5 completions"), "{error}");
}

#[test]
fn a_version_that_is_too_far_away_is_left_out_and_counted() {
    let workshop = workshop(1, || true);
    let mut far = policy(&workshop);
    for _ in 0..12 {
        update(&workshop, &mut far, None, &batch(), &UpdateConfig { max_drift: 100.0, ..config() }, 2e-2).unwrap();
    }
    let far = far.snapshot().unwrap();
    let mut foreign = batch();
    foreign.iter_mut().for_each(|judged| judged.behaviour = Some(Arc::clone(&far)));
    let strict = UpdateConfig { max_staleness: 1e-3, ..config() };
    let report = update(&workshop, &mut policy(&workshop), None, &foreign, &strict, 1e-3).unwrap();
    assert!(report.stale >= 5, "{report:?}");
    let tolerant = UpdateConfig { max_staleness: 1e3, ..config() };
    assert_eq!(update(&workshop, &mut policy(&workshop), None, &foreign, &tolerant, 1e-3).unwrap().stale, 0);
}

#[test]
fn an_update_stops_when_told_to_and_when_it_goes_too_far() {
    let told = workshop(1, || false);
    let mut untouched = policy(&told);
    let report = update(&told, &mut untouched, None, &batch(), &config(), 1e-3).unwrap();
    assert!(report.interrupted && report.steps == 0 && untouched.steps() == 0);
    let free = workshop(1, || true);
    let hasty = UpdateConfig { max_drift: 1e-9, ..config() };
    let report = update(&free, &mut policy(&free), None, &batch(), &hasty, 1e-2).unwrap();
    assert!(report.stopped && report.steps < 3, "{report:?}");
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing_and_is_counted() {
    let workshop = workshop(1, || true);
    let mut policy = policy(&workshop);
    let mut poisoned = batch();
    poisoned[0].advantage = f64::NAN;
    let report = update(&workshop, &mut policy, None, &poisoned, &config(), 1e-3).unwrap();
    assert_eq!((report.skipped, report.steps, policy.steps()), (3, 0, 0));
}

/// All factors and the optimiser's memory.
fn values(policy: &Policy) -> Vec<Vec<f32>> {
    policy.state().values().map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

/// A workshop of one thread, and how often it asked for a turn.
fn counting() -> (Workshop, Arc<AtomicUsize>) {
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turns);
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        true
    };
    (workshop(1, count), turns)
}

#[test]
fn a_reference_that_the_run_begins_with_is_not_computed_again() {
    let run = |same: bool| {
        let (workshop, turns) = counting();
        // Exact, as rounding to bf16, where a processor does that, makes more of a last bit than what is compared here.
        let workshop = Workshop { model: starter::model::load(&Device::Cpu).unwrap().backbone, ..workshop };
        let mut policy = policy(&workshop);
        // Away from the base, so that the reference is an adapter of its own.
        update(&workshop, &mut policy, None, &batch(), &config(), 1e-2).unwrap();
        let start = policy.snapshot().unwrap();
        assert_eq!(start, policy.snapshot().unwrap(), "nothing has changed since");
        let shape = workshop.model.adaptable().unwrap();
        let twin = Policy::from_lora(shape, &start, OptimConfig::default()).unwrap().snapshot().unwrap();
        assert_ne!(start, twin);
        let config = UpdateConfig { loss: LossConfig { beta: 0.5, ..LossConfig::default() }, seed: 9, ..config() };
        let (reference, before) = (if same { &start } else { &twin }, turns.load(Ordering::Relaxed));
        let report = update(&workshop, &mut policy, Some(reference), &batch(), &config, 1e-3).unwrap();
        assert_ne!(start, policy.snapshot().unwrap(), "a step has been made");
        (report, values(&policy), turns.load(Ordering::Relaxed) - before)
    };
    let ((report, policy, turns), (want, want_policy, all)) = (run(true), run(false));
    assert!(report.kl > 0.0 && (report.kl - want.kl).abs() < 1e-3 * want.kl, "{report:?} {want:?}");
    for (a, b) in policy.iter().flatten().zip(want_policy.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    assert!(turns * 5 < all * 4, "{turns} turns of {all}");
}

#[test]
fn every_product_waits_for_its_turn() {
    let (workshop, turns) = counting();
    let config = UpdateConfig { inner: 1, micro_rows: 1000, ..config() };
    update(&workshop, &mut policy(&workshop), None, &batch(), &config, 1e-3).unwrap();
    // One micro-batch: a forward and a backward pass of five products a layer, and the head's.
    let layers = workshop.model.spec().n_layers;
    assert!(turns.load(Ordering::Relaxed) >= 2 * 5 * layers, "{turns:?} turns");
}

#[test]
fn what_sampled_a_completion_is_computed_in_turn_too() {
    let turns = |behaviour: bool| {
        let (workshop, turns) = counting();
        let mut policy = policy(&workshop);
        let start = behaviour.then(|| policy.snapshot().unwrap());
        let mut batch = batch();
        batch.iter_mut().for_each(|judged| judged.behaviour.clone_from(&start));
        update(&workshop, &mut policy, None, &batch, &UpdateConfig { inner: 1, ..config() }, 1e-3).unwrap();
        (turns.load(Ordering::Relaxed), workshop.model.spec().n_layers)
    };
    let ((without, _), (with, layers)) = (turns(false), turns(true));
    // Two more forward passes: of the policy and of the version that sampled.
    assert!(with >= without + 2 * 5 * layers, "{with} turns, {without} without");
}

#[test]
fn a_restored_policy_goes_on_as_if_nothing_had_happened() {
    let workshop = workshop(1, || true);
    let mut whole = policy(&workshop);
    update(&workshop, &mut whole, None, &batch(), &config(), 1e-3).unwrap();
    let (steps, state) = (whole.steps(), whole.state());
    let saved: std::collections::BTreeMap<_, _> = state.iter().map(|(n, t)| (n.clone(), t.copy().unwrap())).collect();
    let mut resumed = policy(&workshop);
    resumed.restore(steps, |name| saved.get(name).cloned()).unwrap();
    for policy in [&mut whole, &mut resumed] {
        update(&workshop, policy, None, &batch(), &UpdateConfig { seed: 6, ..config() }, 1e-3).unwrap();
    }
    assert!(values(&whole) == values(&resumed));
}
