use std::collections::BTreeMap;

use candle_core::Var;

use super::*;
use crate::diffusion::rng::Stream;
use crate::models::backbone::TransformerBackbone;
use crate::models::lora::{Pair, Target};
use crate::models::nn::Precision;
use crate::models::shape::Variant;
use crate::models::transformer::{Transformer, TransformerConfig};
use crate::models::{ImageSpec, ModelSpec};
use crate::rl::estimator::{Estimator, Step};
use crate::rl::loss::{LossConfig, Segment, Terms, maskgrpo_loss};
use crate::rl::masks::{Mask, Role, Tail, roles};

const MASK: u32 = 30;
/// Other batch shapes may round sums of widths this small differently.
const TOLERANCE: f32 = 1e-5;

fn config() -> TransformerConfig {
    TransformerConfig {
        d_model: 16,
        n_layers: 2,
        n_heads: 2,
        n_kv_heads: 1,
        mlp_hidden_size: 24,
        embedding_size: 48,
        max_sequence_length: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        weight_tying: false,
        variant: Variant::default(),
    }
}

fn random(shape: &[usize], scale: f64, stream: &mut Stream) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (scale * (stream.unit() * 2.0 - 1.0)) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn model() -> TransformerBackbone {
    let mut stream = Stream::new(1, 0);
    let tensors: BTreeMap<String, Tensor> = config()
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let value = random(&shape, 0.6, &mut stream);
            let value = if shape.len() == 1 { (value + 1.0).unwrap() } else { value };
            (name, value)
        })
        .collect();
    let transformer = Transformer::new(config(), Precision::Exact, |name| tensors.get(name).cloned()).unwrap();
    let spec = ModelSpec {
        name: "tiny".into(),
        vocab_size: 48,
        text_ids: 0..30,
        image: Some(ImageSpec { codes: 32..48, grid: (2, 4) }),
        mask_id: MASK,
        eos_ids: vec![0],
        banned_ids: vec![MASK],
        max_positions: 64,
        block: None,
        shifted: false,
        d_model: 16,
        n_layers: 2,
        parameters: 0,
        sha256: String::new(),
    };
    TransformerBackbone::new(spec, transformer)
}

/// Factors of every projection, B too different from zero, as variables.
fn variables() -> BTreeMap<(usize, Target), [Var; 2]> {
    let mut stream = Stream::new(2, 0);
    let mut variable = |shape: [usize; 2]| Var::from_tensor(&random(&shape, 0.5, &mut stream)).unwrap();
    (0..2)
        .flat_map(|layer| Target::ALL.map(|target| (layer, target)))
        .map(|key| {
            let (out, width) = key.1.shape(&config());
            (key, [variable([2, width]), variable([out, 2])])
        })
        .collect()
}

fn adapter(variables: &BTreeMap<(usize, Target), [Var; 2]>) -> Arc<Lora> {
    let pair = |[a, b]: &[Var; 2]| Pair { a: a.as_tensor().clone(), b: b.as_tensor().clone() };
    let pairs = variables.iter().map(|(key, factors)| (*key, pair(factors))).collect();
    Arc::new(Lora::new(&config(), 0.5, pairs).unwrap())
}

fn text(id: u64, len: usize) -> Sample {
    let completion: Vec<u32> = (0..len as u32).map(|k| 1 + (k * 7 + id as u32) % 28).collect();
    let roles = roles(&completion, &[0], Tail::Mask);
    Sample {
        id,
        prefix: vec![5, 9, 2],
        completion,
        suffix: vec![],
        vocab: 0..30,
        roles,
        commit_steps: vec![],
        logprobs: vec![],
        drawn: Drawn::default(),
    }
}

fn image(id: u64) -> Sample {
    let completion: Vec<u32> = (0..8).map(|k| 32 + (k * 5 + id as u32) % 16).collect();
    let roles = vec![Role::Scored; 8];
    Sample {
        id,
        prefix: vec![4, 31],
        completion,
        suffix: vec![31],
        vocab: 32..48,
        roles,
        commit_steps: vec![],
        logprobs: vec![],
        drawn: Drawn::default(),
    }
}

fn guided(scale: f64) -> Sample {
    let guidance = Some(Guidance { scale, prefix: vec![31, 31, 31, 7], suffix: vec![31] });
    Sample { drawn: Drawn { guidance, ..Drawn::default() }, ..image(9) }
}

/// Guided and cold.
fn cold() -> Sample {
    let drawn = Drawn { temperature: 0.6, ..guided(1.5).drawn };
    let logprobs = vec![-2.0, -0.1, -0.5, -1.0, 0.0, 0.0, -3.0, -0.2];
    Sample { drawn, commit_steps: vec![0, 3, 1, 2, 0, 1, 3, 2], logprobs, ..image(7) }
}

/// Images and text mixed, so that the order of the forward is not theirs.
fn batch() -> Vec<Sample> {
    let warm = Sample { drawn: Drawn { temperature: 1.3, ..Drawn::default() }, ..text(5, 12) };
    vec![image(1), text(2, 9), guided(1.5), text(3, 1), cold(), image(4), warm]
}

fn max_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.iter().map(Vec::len).collect::<Vec<_>>(), b.iter().map(Vec::len).collect::<Vec<_>>());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_view_alone_and_in_any_batch_has_the_same_log_probabilities() {
    let (model, samples, adapter) = (model(), batch(), adapter(&variables()));
    let step = Step::draw(&Estimator::TEXT, &samples, 1, 4, 0).unwrap();
    let views = step.views();
    let together = logprob_estimate(&model, Some(&adapter), &views).unwrap().split().unwrap();
    for (view, expected) in views.iter().zip(&together) {
        let alone = logprob_estimate(&model, Some(&adapter), &[*view]).unwrap().split().unwrap();
        assert!(max_difference(&alone, std::slice::from_ref(expected)) < TOLERANCE);
        assert!(expected.iter().all(|lp| *lp < 0.0) && expected.len() == view.mask.count());
    }
    for max_rows in [1, 30, 1000] {
        let parts = logprobs(&model, Some(&adapter), &views, max_rows).unwrap();
        assert!(max_difference(&parts, &together) < TOLERANCE);
    }
    // The adapter matters, and none is the base.
    assert!(max_difference(&logprobs(&model, None, &views, 99).unwrap(), &together) > 1e-3);
}

#[test]
fn p1_the_same_function_gives_ratios_of_exactly_one() {
    let (model, samples, variables) = (model(), batch(), variables());
    for estimator in [Estimator::TEXT, Estimator::IMAGE, Estimator::DIFFU, Estimator::UniGrpo, Estimator::COUPLED] {
        let step = Step::draw(&estimator, &samples, 3, 4, 1).unwrap();
        // Old: detached; new: tracked, from another `Lora` of the same factors.
        let old = step.gather(&logprobs(&model, Some(&adapter(&variables)), &step.views(), 9999).unwrap());
        let new = logprob_estimate(&model, Some(&adapter(&variables)), &step.views()).unwrap();
        let new = step.gather(&new.split().unwrap());
        let segment =
            |range: &Range<usize>| Segment { range: range.clone(), advantage: 1.0, weight: 1.0, dropped: false };
        let segments: Vec<Segment> = step.segments().iter().map(segment).collect();
        let terms = Terms { new: &new, old: &old, reference: None, segments: &segments };
        let loss = maskgrpo_loss(&terms, &LossConfig { beta: 0.0, ..LossConfig::default() }, None).unwrap();
        assert_eq!((loss.stats.ratio_max, loss.stats.ratio_mean()), (1.0, 1.0), "{estimator:?}");
    }
}

#[test]
fn guidance_of_zero_is_none_and_otherwise_moves_away_from_the_unconditional() {
    let model = model();
    let mask = Mask::new(vec![true, false, true, true, false, true, true, false]);
    let of = |sample: &Sample| logprobs(&model, None, &[View { sample, mask: &mask }], 99).unwrap();
    let plain = of(&image(9));
    assert!(max_difference(&of(&guided(0.0)), &plain) < TOLERANCE);
    assert!(max_difference(&of(&guided(2.0)), &plain) > 1e-3);
    // By hand: (1+w)·conditional − w·unconditional before the softmax.
    let sample = guided(2.0);
    let frame = sample.drawn.guidance.clone().unwrap();
    let bare = Sample { prefix: frame.prefix, suffix: frame.suffix, drawn: Drawn::default(), ..sample.clone() };
    let logits = |sample: &Sample| {
        let mut packed = Packed::default();
        let at = |k: usize| (sample.prefix.len() + k) as u32;
        packed.push(&View { sample, mask: &mask }.input(MASK), mask.positions().map(at));
        model.logits(&model.forward(&packed).unwrap(), 32..48).unwrap().to_vec2::<f32>().unwrap()
    };
    let (conditional, unconditional) = (logits(&image(9)), logits(&bare));
    for ((row, k), got) in mask.positions().enumerate().zip(&of(&sample)[0]) {
        let mixed: Vec<f64> =
            (0..16).map(|i| 3.0 * f64::from(conditional[row][i]) - 2.0 * f64::from(unconditional[row][i])).collect();
        let total = mixed.iter().map(|x| x.exp()).sum::<f64>().ln();
        let expected = mixed[(sample.completion[k] - 32) as usize] - total;
        assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} {expected}");
    }
}

/// The log-probabilities of all ids at all positions, each scored alone among all masked ones.
fn all_choices(model: &TransformerBackbone, sample: &Sample) -> Vec<Vec<f64>> {
    let each = |k: usize, id: u32| {
        let mut completion = sample.completion.clone();
        completion[k] = id;
        let sample = Sample { completion, ..sample.clone() };
        let mask =
            Mask { hidden: (0..8).map(|other| other != k).collect(), ..Mask::new((0..8).map(|at| at == k).collect()) };
        f64::from(logprobs(model, None, &[View { sample: &sample, mask: &mask }], 99).unwrap()[0][0])
    };
    (0..8).map(|k| (32..48).map(|id| each(k, id)).collect()).collect()
}

fn tempered(row: &[f64], temperature: f64) -> Vec<f64> {
    let total = row.iter().map(|lp| (lp / temperature).exp()).sum::<f64>().ln();
    row.iter().map(|lp| lp / temperature - total).collect()
}

#[test]
fn a_temperature_divides_the_logits() {
    let model = model();
    let of = |temperature| {
        let drawn = Drawn { temperature, ..guided(1.0).drawn };
        all_choices(&model, &Sample { drawn, ..image(9) })
    };
    for (plain, cold) in of(1.0).iter().zip(of(0.6)) {
        tempered(plain, 0.6).iter().zip(cold).for_each(|(lp, got)| assert!((lp - got).abs() < 1e-4, "{lp} {got}"));
    }
}

#[test]
fn hidden_positions_are_masked_in_the_input_and_kept_ones_are_not() {
    let completion = vec![3, 0, 7, 8];
    let sample = |tail| Sample { roles: roles(&completion, &[0], tail), completion: completion.clone(), ..text(1, 4) };
    let mask = Mask::new(vec![true, false, false, false]);
    let input = |tail| View { sample: &sample(tail), mask: &mask }.input(MASK)[3..].to_vec();
    assert_eq!(input(Tail::Mask), [MASK, 0, MASK, MASK]);
    assert_eq!(input(Tail::Keep), [MASK, 0, 7, 8]);
    let prefix = Mask { prefix: vec![false, true, false], ..mask.clone() };
    assert_eq!(View { sample: &sample(Tail::Keep), mask: &prefix }.input(MASK)[..3], [5, MASK, 2]);
    let hidden = Mask { hidden: vec![false, false, false, true], ..Mask::new(vec![true, false, false, false]) };
    let sample = sample(Tail::Train);
    let input = View { sample: &sample, mask: &hidden }.input(MASK);
    let (body, shown) = (&input[3..7], &sample.completion);
    assert_eq!(body, [MASK, shown[1], shown[2], MASK], "hidden is masked, and not scored");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_an_empty_estimate() {
    let (model, sample) = (model(), text(1, 4));
    let of = |sample: &Sample, mask: &Mask| logprob_estimate(&model, None, &[View { sample, mask }]);
    assert!(of(&sample, &Mask::new(vec![true; 3])).is_err());
    assert!(of(&sample, &Mask { hidden: vec![true], ..Mask::new(vec![true; 4]) }).is_err());
    assert!(of(&sample, &Mask { prefix: vec![true], ..Mask::new(vec![true; 4]) }).is_err());
    assert!(of(&Sample { vocab: 0..2, ..sample.clone() }, &Mask::new(vec![true; 4])).is_err());
    let empty = of(&sample, &Mask::new(vec![false; 4])).unwrap();
    assert_eq!(empty.split().unwrap(), [Vec::<f32>::new()]);
    assert_eq!(empty.objective(0.5, &[vec![]]).unwrap().to_scalar::<f32>().unwrap(), 0.5);
    assert!(empty.objective(0.5, &[vec![1.0]]).is_err() && empty.objective(0.5, &[]).is_err());
    assert!(logprobs(&model, None, &[], 10).unwrap().is_empty());
}

#[test]
fn every_variable_has_the_gradient_of_finite_differences() {
    let (model, samples, variables) = (model(), batch(), variables());
    for estimator in [Estimator::TEXT, Estimator::COUPLED, Estimator::Trajectory, Estimator::Decisions] {
        let step = Step::draw(&estimator, &samples, 3, 4, 0).unwrap();
        // The old policy and the reference are other adapters: ratios and penalties away from one and zero.
        let reference = step.gather(&logprobs(&model, None, &step.views(), 99).unwrap());
        let at = |variables| logprob_estimate(&model, Some(&adapter(variables)), &step.views()).unwrap();
        let old: Vec<f64> = step.gather(&at(&variables).split().unwrap()).iter().map(|lp| lp + 0.05).collect();
        let segments: Vec<Segment> = step
            .segments()
            .iter()
            .enumerate()
            .map(|(i, range)| Segment {
                range: range.clone(),
                advantage: [1.0, -1.5][i % 2],
                weight: 1.0,
                dropped: false,
            })
            .collect();
        let config = LossConfig { beta: 0.1, ..LossConfig::image() };
        let loss = |estimate: &Estimate| {
            let new = step.gather(&estimate.split().unwrap());
            let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
            maskgrpo_loss(&terms, &config, None).unwrap()
        };
        let estimate = at(&variables);
        let whole = loss(&estimate);
        let objective = estimate.objective(whole.value, &step.scatter(&whole.gradient)).unwrap();
        assert!((f64::from(objective.to_scalar::<f32>().unwrap()) - whole.value).abs() < 1e-6);
        let gradients = objective.backward().unwrap();
        for ((layer, target), factors) in &variables {
            for (factor, name) in factors.iter().zip(["A", "B"]) {
                let gradient = gradients.get(factor).unwrap_or_else(|| panic!("{target:?} {name} has no gradient"));
                // Along the gradient the derivative is its norm: one number tests every entry.
                let norm = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
                assert!(norm > 1e-5, "{layer} {target:?} {name}: {norm}");
                let direction = (gradient / norm).unwrap();
                let original = factor.as_tensor().copy().unwrap();
                let step = 5e-3;
                let moved = |by: f64| {
                    factor.set(&(&original + (&direction * by).unwrap()).unwrap()).unwrap();
                    loss(&at(&variables)).value
                };
                let numeric = (moved(step) - moved(-step)) / (2.0 * step);
                factor.set(&original).unwrap();
                let error = (numeric - norm).abs() / norm;
                assert!(error < 0.02, "{layer} {target:?} {name}: {numeric} by differences, {norm} by backward");
            }
        }
    }
}
