//! Everything that families add is differentiable, in every tensor, and shifts and pruning choose the rows they should.

use std::collections::BTreeMap;

use candle_core::Var;

use super::*;
use crate::diffusion::rng::Stream;
use crate::models::lora::{Lora, Pair, Target};
use crate::models::shape::{Pattern, Variant};

fn config(variant: Variant) -> TransformerConfig {
    TransformerConfig {
        d_model: 16,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        mlp_hidden_size: 24,
        embedding_size: 20,
        max_sequence_length: 32,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        weight_tying: false,
        variant,
    }
}

/// Qwen's names, wide heads, and everything else that a family may do.
fn everything() -> Variant {
    Variant {
        names: Names::Qwen,
        head_dim: Some(6),
        qkv_bias: true,
        qk_norm: true,
        pattern: Pattern::BlockCausal { block: 3 },
        shifted: true,
        scale_logits: true,
    }
}

fn variables(config: &TransformerConfig) -> BTreeMap<String, Var> {
    let mut stream = Stream::new(7, 0);
    let mut values = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (stream.unit() * 2.0 - 1.0) as f32 * 0.5).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        Var::from_tensor(&if shape.len() == 1 { (tensor + 1.0).unwrap() } else { tensor }).unwrap()
    };
    config.tensors().into_iter().map(|(name, shape)| (name, values(&shape))).collect()
}

fn model(config: &TransformerConfig, tensors: &BTreeMap<String, Var>) -> Transformer {
    Transformer::new(config.clone(), Precision::Exact, |name| tensors.get(name).map(|v| v.as_tensor().clone())).unwrap()
}

fn batch(needed: &[u32]) -> Packed {
    let mut packed = Packed::default();
    packed.push(&[3, 1, 4, 1, 5, 9, 2], needed.iter().copied());
    packed.push(&[6, 5, 3, 5], needed.iter().copied().filter(|&p| p < 4));
    packed
}

#[test]
fn every_tensor_s_gradient_is_the_slope() {
    let config = config(everything());
    let tensors = variables(&config);
    let packed = batch(&[0, 1, 4, 6]);
    let loss = |tensors: &BTreeMap<String, Var>| {
        let model = model(&config, tensors);
        let logits = model.logits(&model.hidden(&packed).unwrap(), 0..20).unwrap();
        logits.sqr().unwrap().sum_all().unwrap()
    };
    let gradients = loss(&tensors).backward().unwrap();
    let mut stream = Stream::new(8, 0);
    for (name, var) in &tensors {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let signs = (0..var.elem_count()).map(|_| if stream.unit() < 0.5 { -1.0f32 } else { 1.0 }).collect::<Vec<_>>();
        let direction = Tensor::from_vec(signs, var.shape(), &Device::Cpu).unwrap();
        let slope = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
            let value = loss(&tensors).to_scalar::<f32>().unwrap();
            var.set(&start).unwrap();
            f64::from(value)
        };
        let numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
        let error = (numeric - f64::from(slope)).abs();
        assert!(error < 0.03 * f64::from(slope).abs().max(1.0), "{name}: {slope} and {numeric}");
    }
}

#[test]
fn a_shifted_model_predicts_from_the_left_neighbour() {
    let tensors = variables(&config(everything()));
    let hidden = |shifted: bool, needed: &[u32]| {
        let config = config(Variant { shifted, ..everything() });
        model(&config, &tensors).hidden(&batch(needed)).unwrap().to_vec2::<f32>().unwrap()
    };
    let own = hidden(false, &[0, 1, 2, 3, 4, 5, 6]);
    let rows = |positions: &[usize]| positions.iter().map(|&p| own[p].clone()).collect::<Vec<_>>();
    // Of both sequences: 0 from itself, the others from the one before; the second sequence begins at row 7.
    assert_eq!(hidden(true, &[0, 1, 2, 6]), rows(&[0, 0, 1, 5, 7, 7, 8]));
    assert_eq!(hidden(true, &[3]), rows(&[2, 9]));
    assert_eq!(hidden(false, &[3]), rows(&[3, 10]));
}

/// As on a GPU: weights of half precision take the composed operations, while an adapter's factors are f32 and learn.
#[test]
fn half_precision_agrees_and_its_adapters_learn() {
    let config = config(everything());
    let tensors = variables(&config);
    let mut stream = Stream::new(9, 0);
    let mut factor = |shape: (usize, usize)| {
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| stream.unit() as f32 * 0.6 - 0.3).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    };
    let mut factors = BTreeMap::new();
    for at in (0..config.n_layers).flat_map(|layer| Target::ALL.map(|target| (layer, target))) {
        let (out, width) = at.1.shape(&config);
        factors.insert(at, (factor((2, width)), factor((out, 2))));
    }
    let pair = |(a, b): &(Var, Var)| Pair { a: a.as_tensor().clone(), b: b.as_tensor().clone() };
    let lora = Lora::new(&config, 0.5, factors.iter().map(|(&at, of)| (at, pair(of))).collect()).unwrap();
    let mut packed = batch(&[0, 1, 4, 6]);
    packed.adapters = vec![Some(Arc::new(lora)), None];
    let run = |dtype: DType| {
        let weight = |name: &str| Some(tensors.get(name)?.as_detached_tensor().to_dtype(dtype).unwrap());
        let model = Transformer::new(config.clone(), Precision::Exact, weight).unwrap();
        let logits = model.logits(&model.hidden(&packed).unwrap(), 0..20).unwrap();
        let gradients = logits.sqr().unwrap().mean_all().unwrap().backward().unwrap();
        let of = |var: &Var| gradients.get(var).unwrap_or_else(|| panic!("a factor without a gradient")).clone();
        let all: Vec<Tensor> = factors.values().flat_map(|(a, b)| [of(a), of(b)]).collect();
        let all: Vec<Tensor> = all.iter().map(|gradient| gradient.flatten_all().unwrap()).collect();
        (logits, Tensor::cat(&all, 0).unwrap())
    };
    let (logits, gradients) = run(DType::F32);
    let size = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
        let (half, half_gradients) = run(dtype);
        let gap = |a: &Tensor, b: &Tensor| size(&(a - b).unwrap()) / size(b);
        let (forward, backward) = (gap(&half, &logits), gap(&half_gradients, &gradients));
        assert!(forward < tolerance && backward < tolerance, "{dtype:?}: {forward} and {backward}");
    }
}
