//! Everything that families add is differentiable, in every tensor, and shifts and pruning choose the rows they should.

use std::collections::BTreeMap;

use candle_core::Var;

use super::*;
use crate::diffusion::rng::Stream;
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
