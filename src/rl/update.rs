//! One update of the policy: μ inner steps over a batch of judged completions, each on masks of its own.
//!
//! The batch is split into micro-batches that run side by side and are summed in a fixed order, with the denominator
//! of the whole batch: the result depends on neither the number of threads nor the size of the parts. Which
//! completions, and how often, is the trainer's business.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::RlError;
use super::estimator::{Estimator, Step};
use super::logprob::{Estimate, Sample, View, logprob_estimate, logprob_estimate_by_layer, logprobs};
use super::loss::{LossConfig, Segment, Stats, Terms, behaviour_weight, denominator, maskgrpo_loss};
use super::policy::Policy;
use crate::models::Backbone;
use crate::models::lora::Lora;
use crate::models::nn::pause::between_products;
pub use bounds::Bounds;

mod bounds;

/// A completion with its advantage.
#[derive(Debug, Clone)]
pub struct Judged {
    /// What was generated.
    pub sample: Sample,
    /// A: how much better it was than what its prompt usually gets.
    pub advantage: f64,
    /// Factor of its policy term.
    pub weight: f64,
    /// The adapter that sampled it, when that is not the one the run starts from: its weight is then corrected.
    pub behaviour: Option<Arc<Lora>>,
}

/// Settings of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateConfig {
    /// Which masked inputs stand for a completion.
    pub estimator: Estimator,
    /// Clip and penalty.
    pub loss: LossConfig,
    /// A loss on likelihood bounds instead of one on clipped ratios; estimator, clip and penalty then have no part.
    pub bounds: Option<Bounds>,
    /// Masked inputs of a bound.
    pub draws: u32,
    /// μ: inner steps, each an update of its own on masks of its own.
    pub inner: u32,
    /// Rows of one micro-batch.
    pub micro_rows: usize,
    /// Keep only the layers' inputs of a forward pass and compute the layers again in the backward pass: less memory,
    /// about a third more time, the same gradients.
    pub checkpointing: bool,
    /// Largest mean KL(new ‖ old); beyond it the inner steps end.
    pub max_drift: f64,
    /// Largest weight of a completion that an older version sampled.
    pub behaviour_cap: f64,
    /// Largest |mean log-ratio| between the policy and the version that sampled a completion; beyond it the completion
    /// says nothing about the policy and is dropped.
    pub max_staleness: f64,
    /// Seed of the masks.
    pub seed: u64,
}

/// What an update did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateReport {
    /// Optimiser steps made.
    pub steps: u32,
    /// Inner steps whose loss or gradient was not finite; they changed nothing.
    pub skipped: u32,
    /// Completions dropped because the version that sampled them is too far from the policy.
    pub stale: u32,
    /// Scored positions over all inner steps.
    pub tokens: u64,
    /// Mean loss.
    pub loss: f64,
    /// Mean penalty against the reference, nats a position.
    pub kl: f64,
    /// Mean KL(new ‖ old) of the last inner step, nats a position.
    pub drift: f64,
    /// Share of positions that the clip held.
    pub clip_fraction: f64,
    /// Largest ratio.
    pub ratio_max: f64,
    /// Gradient norm before clipping, mean.
    pub grad_norm: f64,
    /// Mean log-probability of scored positions: its fall is learning, a fall in its spread is collapse.
    pub logprob: f64,
    /// Losses on bounds: by how much more than the reference the policy favoured what was liked, at the last inner
    /// step, nats a completion.
    #[serde(default)]
    pub margin: f64,
    /// The inner steps ended early: the policy had gone too far.
    pub stopped: bool,
    /// The update was cut short from outside.
    pub interrupted: bool,
}

/// When learning may compute.
pub trait Pace: Send + Sync {
    /// Waits for a turn; `false` cuts the update short, at the next micro-batch.
    fn turn(&self) -> bool;

    /// The turn took `time` of its thread.
    fn took(&self, time: Duration) {
        let _ = time;
    }
}

/// Always, until it is false.
impl<F: Fn() -> bool + Send + Sync> Pace for F {
    fn turn(&self) -> bool {
        self()
    }
}

/// What the micro-batches run on, and when they may.
pub struct Workshop {
    /// The base in the arithmetic of learning.
    pub model: Arc<dyn Backbone>,
    /// Threads of the micro-batches.
    pub pool: rayon::ThreadPool,
    /// Asked before every micro-batch, and between its products.
    pub pace: Arc<dyn Pace>,
}

impl Workshop {
    /// Runs `f` on this thread, whose turn it is, with a turn of its own for every product.
    pub(super) fn paced<T>(&self, f: impl FnOnce() -> T) -> T {
        let pace = Arc::clone(&self.pace);
        let pause = move |took| {
            pace.took(took);
            pace.turn();
        };
        let (out, rest) = between_products(Rc::new(pause), f);
        self.pace.took(rest);
        out
    }

    /// The log-probabilities of a step's scored positions under `adapter` (`None`: the base), at most `rows` at once; on
    /// the threads of learning, when it is its turn. What has begun is finished even if the run is told to stop.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn logprobs(
        &self,
        adapter: Option<&Arc<Lora>>,
        step: &Step<'_>,
        rows: usize,
    ) -> Result<Vec<f64>, RlError> {
        let views = step.views();
        self.pool.install(|| {
            self.pace.turn();
            Ok(step.gather(&self.paced(|| logprobs(&*self.model, adapter, &views, rows))?))
        })
    }
}

/// Makes one update of `policy` with rate `lr`. `reference` is what the penalty pulls towards (`None`: the base).
///
/// # Errors
/// When settings have no meaning, a completion does not fit the model, or the device fails.
pub fn update(
    workshop: &Workshop,
    policy: &mut Policy,
    reference: Option<&Arc<Lora>>,
    batch: &[Judged],
    config: &UpdateConfig,
    lr: f64,
) -> Result<UpdateReport, RlError> {
    let mut report = UpdateReport::default();
    let samples: Vec<Sample> = batch.iter().map(|judged| judged.sample.clone()).collect();
    let old = policy.snapshot()?;
    let weights = match &config.bounds {
        Some(bounds) => {
            bounds::check(bounds, batch)?;
            // No ratio to the version that sampled a completion is in these losses.
            vec![Some(1.0); batch.len()]
        }
        None => weights(workshop, &old, batch, &samples, config)?,
    };
    report.stale = weights.iter().filter(|weight| weight.is_none()).count() as u32;
    let mut sums = Sums::default();
    for j in 0..config.inner {
        let pass = Pass { workshop, policy, old: &old, reference, config, first: j == 0 };
        let outcome = match &config.bounds {
            Some(bounds) => pass.run_bounds(&bounds::step(&samples, config, j)?, batch, bounds)?,
            None => {
                let step = Step::draw(&config.estimator, &samples, config.seed, config.inner, j)?;
                pass.run(&step, &segments(&step, batch, &weights))?
            }
        };
        let Some(outcome) = outcome else {
            report.interrupted = true;
            break;
        };
        let norm = match outcome.finite {
            true => policy.step(&outcome.gradients, lr)?,
            false => f64::NAN,
        };
        if !norm.is_finite() {
            report.skipped += 1;
            continue;
        }
        report.steps += 1;
        report.drift = outcome.stats.drift();
        report.margin = outcome.margin;
        sums.add(&outcome, norm);
        if report.drift > config.max_drift {
            report.stopped = true;
            break;
        }
    }
    sums.fill(&mut report);
    Ok(report)
}

/// The weight of each completion; `None` when it is too stale.
fn weights(
    workshop: &Workshop,
    policy: &Arc<Lora>,
    batch: &[Judged],
    samples: &[Sample],
    config: &UpdateConfig,
) -> Result<Vec<Option<f64>>, RlError> {
    let mut out: Vec<Option<f64>> = batch.iter().map(|judged| Some(judged.weight)).collect();
    let foreign: Vec<usize> = (0..batch.len()).filter(|&i| batch[i].behaviour.is_some()).collect();
    for same in foreign.chunk_by(|&a, &b| batch[a].behaviour == batch[b].behaviour) {
        let part: Vec<Sample> = same.iter().map(|&i| samples[i].clone()).collect();
        let masks = same.iter().map(|&i| config.estimator.masks(&samples[i], config.seed, config.inner, 0)).collect();
        let part = Step::new(&part, masks);
        let score = |adapter| workshop.logprobs(adapter, &part, config.micro_rows);
        let behaviour = same.first().and_then(|&i| batch[i].behaviour.as_ref());
        let (prox, behaviour) = (score(Some(policy))?, score(behaviour)?);
        for (&i, range) in same.iter().zip(part.segments()) {
            let (prox, behaviour) = (&prox[range.clone()], &behaviour[range.clone()]);
            let gap = prox.iter().zip(behaviour).map(|(p, b)| p - b).sum::<f64>() / prox.len().max(1) as f64;
            let fits = gap.abs() <= config.max_staleness;
            out[i] = fits.then(|| batch[i].weight * behaviour_weight(prox, behaviour, config.behaviour_cap));
        }
    }
    Ok(out)
}

fn segments(step: &Step<'_>, batch: &[Judged], weights: &[Option<f64>]) -> Vec<Segment> {
    let of = |((range, judged), weight): ((&Range<usize>, &Judged), &Option<f64>)| Segment {
        range: range.clone(),
        advantage: judged.advantage,
        weight: weight.unwrap_or(0.0),
        dropped: weight.is_none(),
    };
    step.segments().iter().zip(batch).zip(weights).map(of).collect()
}

/// One inner step, before the optimiser's.
struct Pass<'a> {
    workshop: &'a Workshop,
    policy: &'a Policy,
    old: &'a Arc<Lora>,
    reference: Option<&'a Arc<Lora>>,
    config: &'a UpdateConfig,
    /// The policy is still the old one.
    first: bool,
}

/// The summed micro-batches of an inner step.
struct Outcome {
    gradients: Vec<Tensor>,
    stats: Stats,
    loss: f64,
    logprob: f64,
    margin: f64,
    finite: bool,
}

impl Pass<'_> {
    /// `None` when it was cut short.
    fn run(&self, step: &Step<'_>, segments: &[Segment]) -> Result<Option<Outcome>, RlError> {
        let denominator = denominator(segments, self.config.loss.mean);
        let parts = self.each(step, |part, range| self.micro_batch(part, &localise(&segments[range]), denominator))?;
        let Some(parts) = parts else { return Ok(None) };
        let mut total: Option<Outcome> = None;
        for part in parts {
            total = Some(match total {
                None => part,
                Some(mut sum) => {
                    sum.add(part)?;
                    sum
                }
            });
        }
        Ok(total)
    }

    /// What `f` gives of every micro-batch and the samples it is about, in their order; `None` when it was cut short.
    fn each<T: Send>(
        &self,
        step: &Step<'_>,
        f: impl Fn(&Step<'_>, Range<usize>) -> Result<T, RlError> + Sync,
    ) -> Result<Option<Vec<T>>, RlError> {
        let parts = step.split(self.config.micro_rows);
        let go_on = AtomicBool::new(true);
        let one = |(range, step): &(Range<usize>, Step<'_>)| {
            if !go_on.load(Ordering::Relaxed) || !self.workshop.pace.turn() {
                go_on.store(false, Ordering::Relaxed);
                return Ok(None);
            }
            self.workshop.paced(|| f(step, range.clone())).map(Some)
        };
        self.workshop.pool.install(|| parts.par_iter().map(one).collect())
    }

    /// The policy's log-probabilities, differentiable.
    fn tracked(&self, views: &[View<'_>]) -> Result<Estimate, RlError> {
        let forward = if self.config.checkpointing { logprob_estimate_by_layer } else { logprob_estimate };
        forward(&*self.workshop.model, Some(&self.policy.tracked()?), views)
    }

    fn micro_batch(&self, step: &Step<'_>, segments: &[Segment], denominator: f64) -> Result<Outcome, RlError> {
        let model = &*self.workshop.model;
        let views = step.views();
        let frozen = |adapter: Option<&Arc<Lora>>| -> Result<Vec<f64>, RlError> {
            Ok(step.gather(&logprob_estimate(model, adapter, &views)?.split()?))
        };
        let estimate = self.tracked(&views)?;
        let new = step.gather(&estimate.split()?);
        // At the first inner step the old policy is the new one, to the bit.
        let old = if self.first { new.clone() } else { frozen(Some(self.old))? };
        let reference = match self.reference {
            _ if self.config.loss.beta <= 0.0 => None,
            // A run begins where its reference is: nothing to compute again.
            Some(reference) if reference == self.old => Some(old.clone()),
            reference => Some(frozen(reference)?),
        };
        let terms = Terms { new: &new, old: &old, reference: reference.as_deref(), segments };
        let loss = maskgrpo_loss(&terms, &self.config.loss, Some(denominator))?;
        let (finite, gradient) = (loss.is_finite(), step.scatter(&loss.gradient));
        let gradients = self.policy.gradients(|found| estimate.backward(model, loss.value, &gradient, found))?;
        let logprob = new.iter().sum::<f64>();
        Ok(Outcome { gradients, stats: loss.stats, loss: loss.value, logprob, margin: 0.0, finite })
    }
}

/// Segments whose ranges count from the first of them.
fn localise(segments: &[Segment]) -> Vec<Segment> {
    let start = segments.first().map_or(0, |segment| segment.range.start);
    let shift = |s: &Segment| Segment { range: s.range.start - start..s.range.end - start, ..s.clone() };
    segments.iter().map(shift).collect()
}

impl Outcome {
    fn add(&mut self, other: Self) -> Result<(), RlError> {
        for (sum, gradient) in self.gradients.iter_mut().zip(&other.gradients) {
            *sum = (&*sum + gradient)?;
        }
        self.stats.merge(&other.stats);
        self.loss += other.loss;
        self.logprob += other.logprob;
        self.finite &= other.finite;
        Ok(())
    }
}

/// Sums over the inner steps that were made.
#[derive(Default)]
struct Sums {
    stats: Stats,
    loss: f64,
    logprob: f64,
    norm: f64,
}

impl Sums {
    fn add(&mut self, outcome: &Outcome, norm: f64) {
        self.stats.merge(&outcome.stats);
        self.loss += outcome.loss;
        self.logprob += outcome.logprob;
        self.norm += norm;
    }

    fn fill(&self, report: &mut UpdateReport) {
        let (steps, tokens) = (f64::from(report.steps.max(1)), self.stats.tokens.max(1) as f64);
        report.tokens = self.stats.tokens as u64;
        report.loss = self.loss / steps;
        report.kl = self.stats.kl();
        report.clip_fraction = self.stats.clip_fraction();
        report.ratio_max = self.stats.ratio_max;
        report.grad_norm = self.norm / steps;
        report.logprob = self.logprob / tokens;
    }
}

#[cfg(test)]
mod tests;
