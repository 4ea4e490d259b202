//! The policy in training: LoRA factors as variables, their optimiser, and snapshots of them that can be served.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::RlError;
use crate::diffusion::rng::Stream;
use crate::models::lora::{Lora, Pair, Target};
use crate::models::optim::{OptimConfig, Optimizer, Parameter, Rule};
use crate::models::transformer::TransformerConfig;
use crate::models::transformer::by_layer::Found;

/// Shape of a new adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every factor.
    pub rank: usize,
    /// α; the update is applied with α / rank.
    pub alpha: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0 }
    }
}

/// An adapter that is being trained.
pub struct Policy {
    config: TransformerConfig,
    scale: f64,
    factors: BTreeMap<(usize, Target), (Var, Var)>,
    optimizer: Optimizer,
    /// The copy that was made since the factors last changed.
    copied: OnceLock<Arc<Lora>>,
}

impl Policy {
    /// An adapter of all projections that changes nothing yet: A uniform in ±1/√in, B zero (as PEFT initialises).
    ///
    /// # Errors
    /// When the rank is 0 or the device has no memory.
    pub fn fresh(
        config: &TransformerConfig,
        lora: &LoraConfig,
        optim: OptimConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, RlError> {
        if lora.rank == 0 {
            return Err(RlError::invalid("rank", "0; it must be at least 1"));
        }
        let mut factors = BTreeMap::new();
        for (layer, target) in (0..config.n_layers).flat_map(|layer| Target::ALL.map(|target| (layer, target))) {
            let (out, width) = target.shape(config);
            let mut stream = Stream::new(seed ^ 0x10CA, (layer * Target::ALL.len()) as u64 + target as u64);
            let bound = 1.0 / (width as f64).sqrt();
            let a: Vec<f32> = (0..lora.rank * width).map(|_| ((2.0 * stream.unit() - 1.0) * bound) as f32).collect();
            let a = Var::from_tensor(&Tensor::from_vec(a, (lora.rank, width), device)?)?;
            factors.insert((layer, target), (a, Var::zeros((out, lora.rank), DType::F32, device)?));
        }
        Self::new(config, lora.alpha / lora.rank as f64, factors, optim)
    }

    /// Goes on from an adapter; the optimiser starts anew.
    ///
    /// # Errors
    /// When the device has no memory.
    pub fn from_lora(config: &TransformerConfig, from: &Lora, optim: OptimConfig) -> Result<Self, RlError> {
        let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_dtype(DType::F32)?);
        let pairs = from.pairs().iter();
        let factors =
            pairs.map(|(&at, pair)| Ok((at, (var(&pair.a)?, var(&pair.b)?)))).collect::<Result<_, RlError>>()?;
        Self::new(config, from.scale(), factors, optim)
    }

    fn new(
        config: &TransformerConfig,
        scale: f64,
        factors: BTreeMap<(usize, Target), (Var, Var)>,
        optim: OptimConfig,
    ) -> Result<Self, RlError> {
        let parameters = factors.iter().flat_map(|(&(layer, target), (a, b))| {
            let parameter = |side: &str, var: &Var| Parameter {
                name: format!("{}.lora_{side}.weight", target.module(config, layer)),
                var: var.clone(),
                rule: Rule::AdamW,
            };
            [parameter("A", a), parameter("B", b)]
        });
        let optimizer = Optimizer::new(parameters.collect(), optim)?;
        Ok(Self { config: config.clone(), scale, factors, optimizer, copied: OnceLock::new() })
    }

    /// The adapter as it is now, differentiable by its factors.
    ///
    /// # Errors
    /// When the device fails.
    pub fn tracked(&self) -> Result<Arc<Lora>, RlError> {
        let pair = |(a, b): &(Var, Var)| Pair { a: a.as_tensor().clone(), b: b.as_tensor().clone() };
        let pairs = self.factors.iter().map(|(&at, factors)| (at, pair(factors))).collect();
        Ok(Arc::new(Lora::new(&self.config, self.scale, pairs)?))
    }

    /// A copy of the adapter as it is now, which later steps do not change. Until then it is the same one.
    ///
    /// # Errors
    /// When the device has no memory.
    pub fn snapshot(&self) -> Result<Arc<Lora>, RlError> {
        if let Some(copied) = self.copied.get() {
            return Ok(Arc::clone(copied));
        }
        let copy = |var: &Var| -> candle_core::Result<Tensor> { Ok(var.as_tensor().copy()?.detach()) };
        let mut pairs = BTreeMap::new();
        for (&at, (a, b)) in &self.factors {
            pairs.insert(at, Pair { a: copy(a)?, b: copy(b)? });
        }
        let copied = Arc::new(Lora::new(&self.config, self.scale, pairs)?);
        Ok(Arc::clone(self.copied.get_or_init(|| copied)))
    }

    /// The gradients that `backward` hands over, in one part or several, in the optimiser's order; zero where the loss
    /// does not depend on a factor.
    ///
    /// # Errors
    /// When `backward` fails or the device has no memory.
    pub fn gradients(
        &self,
        backward: impl FnOnce(&mut Found<'_>) -> Result<(), RlError>,
    ) -> Result<Vec<Tensor>, RlError> {
        let parameters = self.optimizer.parameters();
        let mut out: Vec<Option<Tensor>> = vec![None; parameters.len()];
        backward(&mut |store| {
            for (parameter, slot) in parameters.iter().zip(&mut out) {
                let Some(part) = store.get(&parameter.var) else { continue };
                *slot = Some(match slot.take() {
                    Some(sum) => (sum + part)?,
                    None => part.clone(),
                });
            }
            Ok(())
        })?;
        let whole =
            |(slot, parameter): (Option<Tensor>, &Parameter)| slot.map_or_else(|| parameter.var.zeros_like(), Ok);
        Ok(out.into_iter().zip(parameters).map(whole).collect::<candle_core::Result<_>>()?)
    }

    /// One update with rate `lr`. Returns the gradient's norm before clipping; when it is not finite nothing changes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<f64, RlError> {
        self.copied = OnceLock::new();
        Ok(self.optimizer.step(gradients, lr)?)
    }

    /// Updates made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Everything that a resumed run needs, by name.
    #[must_use]
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let weights = self.optimizer.parameters().iter().map(|p| (p.name.clone(), p.var.as_tensor().clone()));
        self.optimizer
            .state()
            .into_iter()
            .map(|(name, tensor)| (format!("optimizer.{name}"), tensor))
            .chain(weights)
            .collect()
    }

    /// Goes on where [`state`](Self::state) was taken, after `steps` updates.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn restore(&mut self, steps: u64, tensor: impl Fn(&str) -> Option<Tensor>) -> Result<(), RlError> {
        self.copied = OnceLock::new();
        let missing = |name: &str| candle_core::Error::Msg(format!("checkpoint: tensor {name} is missing"));
        for parameter in self.optimizer.parameters() {
            let value = tensor(&parameter.name).ok_or_else(|| missing(&parameter.name))?;
            parameter.var.set(&value)?;
        }
        Ok(self.optimizer.restore(steps, |name| {
            let name = format!("optimizer.{name}");
            tensor(&name).ok_or_else(|| missing(&name))
        })?)
    }
}
