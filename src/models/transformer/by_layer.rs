//! Gradient checkpointing (Chen et al., arXiv 1604.06174) with one segment per layer: the forward pass keeps what each
//! layer was given and nothing of what it computed; the backward pass computes one layer again at a time.
//!
//! Kept activations fall from everything that every layer computes to one hidden state a layer and the insides of one
//! layer, for one more forward pass. The gradients are those of the plain pass, bit for bit: each layer runs the same
//! operations on the same values.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::{Route, Transformer};
use crate::models::nn::norm::rms_norm;
use crate::models::{ModelError, Packed};

/// What takes the gradients of a backward pass, part by part. Every variable's is in one part only.
pub type Found<'a> = dyn FnMut(&GradStore) -> candle_core::Result<()> + 'a;

/// What a forward pass by layer keeps.
#[derive(Debug)]
pub struct Kept {
    route: Route,
    /// What each layer was given.
    inputs: Vec<Tensor>,
    /// What the last layer gave: the leaf that the rest of the computation is differentiated to.
    last: Var,
}

impl Transformer {
    /// [`hidden`](Self::hidden), and what [`backward_by_layer`](Self::backward_by_layer) needs. The result is
    /// differentiable down to the last layer; the layers' own operations are forgotten.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn hidden_by_layer(&self, packed: &Packed) -> Result<(Tensor, Kept), ModelError> {
        let (mut x, route) = self.enter(packed)?;
        let mut inputs = Vec::with_capacity(self.blocks.len());
        for layer in 0..self.blocks.len() {
            let next = self.layer(layer, &x, &route)?.detach();
            inputs.push(std::mem::replace(&mut x, next));
        }
        let last = Var::from_tensor(&x)?;
        Ok((rms_norm(&last, &self.final_norm, self.config.rms_norm_eps)?, Kept { route, inputs, last }))
    }

    /// Takes a backward pass on through the layers: `above` is what was found down to the last layer. Every layer's
    /// gradients go to `found`.
    ///
    /// # Errors
    /// When the device or `found` fails.
    pub fn backward_by_layer(&self, kept: &Kept, above: &GradStore, found: &mut Found<'_>) -> Result<(), ModelError> {
        let mut gradient = above.get(&kept.last).cloned();
        for (layer, input) in kept.inputs.iter().enumerate().rev() {
            let Some(of_output) = gradient.take() else { break };
            // Nothing is learned below the first layer.
            let x = if layer == 0 { input.clone() } else { Var::from_tensor(input)?.into_inner() };
            let y = self.layer(layer, &x, &kept.route)?;
            let mut store = (y * of_output)?.sum_all()?.backward()?;
            gradient = store.remove(&x);
            found(&store)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use candle_core::{DType, Device};

    use super::*;
    use crate::diffusion::rng::Stream;
    use crate::models::lora::{Lora, Pair, Target};
    use crate::models::nn::{Format, Precision, Products};
    use crate::models::shape::{TransformerConfig, Variant};

    fn config() -> TransformerConfig {
        TransformerConfig {
            d_model: 24,
            n_layers: 5,
            n_heads: 4,
            n_kv_heads: 2,
            mlp_hidden_size: 40,
            embedding_size: 50,
            max_sequence_length: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            weight_tying: false,
            variant: Variant::default(),
        }
    }

    fn random(shape: impl Into<candle_core::Shape>, scale: f64, stream: &mut Stream) -> Tensor {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count()).map(|_| (scale * (2.0 * stream.unit() - 1.0)) as f32).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Every factor's gradient of Σ hidden · probe on a ragged batch of two adapted spans and one of the base.
    fn gradients(transformer: &Transformer, vars: &[(usize, Target, Var, Var)], by_layer: bool) -> Vec<Vec<u32>> {
        let pairs: BTreeMap<_, _> = vars
            .iter()
            .map(|(layer, target, a, b)| {
                ((*layer, *target), Pair { a: a.as_tensor().clone(), b: b.as_tensor().clone() })
            })
            .collect();
        let lora = Arc::new(Lora::new(transformer.config(), 0.7, pairs).unwrap());
        let mut packed = Packed::default();
        packed.push_adapted(&[3, 9, 11, 40, 2], [1, 3], Some(Arc::clone(&lora)));
        packed.push(&[7, 7, 1], [0, 2]);
        packed.push_adapted(&[30, 31, 32, 33, 34, 35, 36], [0, 1, 2, 6], Some(lora));
        let probe = random((8, 24), 1.0, &mut Stream::new(9, 9));
        let mut out = vec![None; 2 * vars.len()];
        let mut found = |store: &GradStore| {
            for (i, var) in vars.iter().flat_map(|(_, _, a, b)| [a, b]).enumerate() {
                if let Some(gradient) = store.get(var) {
                    assert!(out[i].replace(bits(gradient)).is_none(), "a gradient in two parts");
                }
            }
            Ok(())
        };
        let loss = |hidden: Tensor| (hidden * &probe).unwrap().sum_all().unwrap().backward().unwrap();
        if by_layer {
            let (hidden, kept) = transformer.hidden_by_layer(&packed).unwrap();
            assert_eq!(bits(&hidden), bits(&transformer.hidden(&packed).unwrap()));
            let above = loss(hidden);
            found(&above).unwrap();
            transformer.backward_by_layer(&kept, &above, &mut found).unwrap();
        } else {
            found(&loss(transformer.hidden(&packed).unwrap())).unwrap();
        }
        out.into_iter().map(|gradient| gradient.expect("every factor has a gradient")).collect()
    }

    #[test]
    fn gradients_are_those_of_the_plain_pass_bit_for_bit() {
        let (config, mut stream) = (config(), Stream::new(4, 0));
        let tensors: BTreeMap<String, Tensor> =
            config.tensors().into_iter().map(|(name, shape)| (name, random(shape, 0.5, &mut stream))).collect();
        let mut vars = Vec::new();
        for (layer, target) in (0..config.n_layers).flat_map(|layer| Target::ALL.map(|target| (layer, target))) {
            let (out, width) = target.shape(&config);
            let mut var = |shape| Var::from_tensor(&random(shape, 0.4, &mut stream)).unwrap();
            vars.push((layer, target, var((3, width)), var((out, 3))));
        }
        let packed = |precision, format| Products { precision, format: Some(format) };
        let [_, of_tensors, of_panels, ..] = [
            Precision::Exact.into(),
            Precision::Mixed.into(),
            packed(Precision::Mixed, Format::F32),
            packed(Precision::Mixed, Format::Int8),
            packed(Precision::Exact, Format::Bf16),
        ]
        .map(|products: Products| {
            let transformer = Transformer::new(config.clone(), products, |name| tensors.get(name).cloned()).unwrap();
            let (plain, layered) = (gradients(&transformer, &vars, false), gradients(&transformer, &vars, true));
            assert!(plain == layered, "{products:?}");
            assert!(plain.iter().all(|gradient| gradient.iter().any(|bits| f32::from_bits(*bits) != 0.0)));
            plain
        });
        assert!(of_tensors == of_panels, "learning does not see that the weights it shares are packed");
    }
}
