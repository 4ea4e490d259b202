//! An inner step of a loss on likelihood bounds: ELBO-KTO and VRPO/DPO (`preference`, `elbo`).
//!
//! Such a loss compares completions across the batch (KTO's reference point, DPO's pairs), so it is computed before any
//! gradient: a first pass takes every bound, the loss is a number on the host with a derivative by every bound, and a
//! second pass carries these back, micro-batch by micro-batch. Nothing is approximated by the split.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Judged, Outcome, Pass, UpdateConfig};
use crate::diffusion::rng::mix64;
use crate::models::lora::Lora;
use crate::rl::RlError;
use crate::rl::elbo::{self, Nodes};
use crate::rl::estimator::Step;
use crate::rl::logprob::{Sample, logprob_estimate};
use crate::rl::loss::{Kl, LossConfig, Segment, Stats, Terms, maskgrpo_loss};
use crate::rl::masks::Role;
use crate::rl::preference::{
    BoundLoss, DpoConfig, Judged as Verdict, KtoConfig, Pair, dpo_loss, kto_loss, reference_point,
};

/// A loss on bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bounds {
    /// Good and bad completions, by the sign of their advantage.
    Kto(KtoConfig),
    /// Pairs: the completions at even places are preferred to those that follow them.
    Dpo(DpoConfig),
}

/// Refuses a batch that the loss cannot read.
pub(super) fn check(bounds: &Bounds, batch: &[Judged]) -> Result<(), RlError> {
    let n = batch.len();
    match bounds {
        Bounds::Dpo(_) if !n.is_multiple_of(2) => {
            Err(RlError::invalid("batch", format!("{n} completions for DPO; pairs of two are needed")))
        }
        _ => Ok(()),
    }
}

/// The masked inputs of inner step `j`.
pub(super) fn step<'a>(samples: &'a [Sample], config: &UpdateConfig, j: u32) -> Result<Step<'a>, RlError> {
    let seed = mix64(config.seed ^ u64::from(j));
    let masks = samples.iter().map(|sample| elbo::masks(sample, Nodes::Gauss(config.draws), seed));
    Ok(Step::new(samples, masks.collect::<Result<_, _>>()?))
}

/// One policy's bounds of a micro-batch, and the log-probabilities that they are sums of.
struct Scored {
    bounds: Vec<f64>,
    logprobs: Vec<f64>,
}

impl Pass<'_> {
    /// `None` when it was cut short.
    pub(super) fn run_bounds(
        &self,
        step: &Step<'_>,
        batch: &[Judged],
        bounds: &Bounds,
    ) -> Result<Option<Outcome>, RlError> {
        let policy = self.policy.snapshot()?;
        let first =
            self.each(step, |part, _| Ok((self.scored(part, Some(&policy))?, self.scored(part, self.reference)?)))?;
        let Some(first) = first else { return Ok(None) };
        let (mut pairs, mut new, mut reference) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        for (of_policy, of_reference) in first {
            pairs.extend(of_policy.bounds.into_iter().zip(of_reference.bounds));
            new.extend(of_policy.logprobs);
            reference.extend(of_reference.logprobs);
        }
        let (loss, margin) = evaluate(bounds, batch, &pairs)?;
        let finite = loss.value.is_finite() && loss.gradient.iter().all(|g| g.is_finite());
        let parts = self.each(step, |part, range| self.bound_gradients(part, &loss.gradient[range]))?;
        let Some(parts) = parts else { return Ok(None) };
        let gradients = parts.into_iter().reduce(|sum, part| {
            let (sum, part) = (sum?, part?);
            sum.iter().zip(&part).map(|(a, b)| Ok((a + b)?)).collect()
        });
        let gradients = gradients.transpose()?.unwrap_or_default();
        let logprob = new.iter().sum();
        let stats = distance(&new, &reference)?;
        Ok(Some(Outcome { gradients, stats, loss: loss.value, logprob, margin, finite }))
    }

    fn scored(&self, step: &Step<'_>, adapter: Option<&Arc<Lora>>) -> Result<Scored, RlError> {
        let logprobs = logprob_estimate(&*self.workshop.model, adapter, &step.views())?.split()?;
        let bounds = elbo::sums(&step.gather(&logprobs), step.segments());
        Ok(Scored { bounds, logprobs: logprobs.into_iter().flatten().map(f64::from).collect() })
    }

    fn bound_gradients(&self, step: &Step<'_>, gradient: &[f64]) -> Result<Result<Vec<Tensor>, RlError>, RlError> {
        let estimate = self.tracked(&step.views())?;
        let gradient = step.scatter(&elbo::spread(gradient, step.segments()));
        let model = &*self.workshop.model;
        Ok(self.policy.gradients(|found| estimate.backward(model, 0.0, &gradient, found)))
    }
}

/// The loss of the bounds `(policy, reference)` of a batch, and its margin: by how much more the policy has come to
/// favour the good ones, nats a completion.
fn evaluate(bounds: &Bounds, batch: &[Judged], values: &[(f64, f64)]) -> Result<(BoundLoss, f64), RlError> {
    let gain = |at: usize| values[at].0 - values[at].1;
    let mean = |of: Vec<f64>| of.iter().sum::<f64>() / of.len().max(1) as f64;
    match bounds {
        Bounds::Kto(config) => {
            let verdict = |(judged, &(bound, reference)): (&Judged, &(f64, f64))| Verdict {
                bound,
                reference,
                good: judged.advantage > 0.0,
                weight: judged.weight * judged.advantage.abs(),
            };
            let judged: Vec<Verdict> = batch.iter().zip(values).map(verdict).collect();
            let of = |good: bool| mean((0..judged.len()).filter(|&i| judged[i].good == good).map(gain).collect());
            let margin = of(true) - of(false);
            Ok((kto_loss(&judged, reference_point(&judged), config, None)?, margin))
        }
        Bounds::Dpo(config) => {
            let starts = (0..values.len().saturating_sub(1)).step_by(2);
            let pair = |i: usize| Pair {
                chosen: values[i],
                rejected: values[i + 1],
                chosen_len: batch[i].sample.roles.iter().filter(|role| **role == Role::Scored).count(),
            };
            let pairs: Vec<Pair> = starts.clone().map(pair).collect();
            let margin = mean(starts.map(|i| gain(i) - gain(i + 1)).collect());
            Ok((dpo_loss(&pairs, config, None)?, margin))
        }
    }
}

/// How far the policy is from the reference on these positions.
fn distance(new: &[f64], reference: &[f64]) -> Result<Stats, RlError> {
    let range: Range<usize> = 0..new.len();
    let segments = [Segment { range, advantage: 0.0, weight: 0.0, dropped: false }];
    let terms = Terms { new, old: new, reference: Some(reference), segments: &segments };
    Ok(maskgrpo_loss(&terms, &LossConfig { beta: 0.0, kl: Kl::K3, ..LossConfig::default() }, None)?.stats)
}
