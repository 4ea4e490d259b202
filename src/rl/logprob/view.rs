//! What is scored: a completion in its frame, how it was drawn, and what the model does not see of it.

use std::ops::Range;

use super::super::RlError;
use super::super::masks::{Mask, Role};

/// A finished completion in its frame: prefix, completion, suffix.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Keys the random draws of this example; stable for its whole life.
    pub id: u64,
    /// Ids before the completion: the prompt in the family's layout.
    pub prefix: Vec<u32>,
    /// The generated ids.
    pub completion: Vec<u32>,
    /// Ids after the completion (images: the end marker).
    pub suffix: Vec<u32>,
    /// Ids that were sampled from; the softmax is over these.
    pub vocab: Range<u32>,
    /// What each completion position is to training.
    pub roles: Vec<Role>,
    /// Step at which each completion position was committed; what is missing at the end came last. Only
    /// `Estimator::Trajectory` and `Estimator::Decisions` ask.
    pub commit_steps: Vec<u32>,
    /// Log-probability that the sampler gave each completion token; what is missing is not known. Only
    /// `Estimator::Decisions` asks.
    pub logprobs: Vec<f32>,
    /// How it was drawn.
    pub drawn: Drawn,
}

/// How a completion was drawn, as far as its log-probabilities are to know. The default knows nothing, as published: they
/// are the conditional model's, of the tokens alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Temperature of the tokens, above 0: logits are divided by it.
    pub temperature: f64,
    /// What it was steered away from.
    pub guidance: Option<Guidance>,
}

impl Default for Drawn {
    fn default() -> Self {
        Self { temperature: 1.0, guidance: None }
    }
}

/// The unconditional frame of guided log-probabilities: logits are `(1+w)·conditional − w·unconditional`.
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance {
    /// w.
    pub scale: f64,
    /// Ids before the completion.
    pub prefix: Vec<u32>,
    /// Ids after it.
    pub suffix: Vec<u32>,
}

/// A sample under one mask.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What was generated.
    pub sample: &'a Sample,
    /// What the model does not see of it.
    pub mask: &'a Mask,
}

impl View<'_> {
    /// The input `(prefix ++ completion ++ suffix)` with the mask applied.
    #[must_use]
    pub fn input(&self, mask_id: u32) -> Vec<u32> {
        let hidden = |k: usize| self.mask.prefix.get(k).copied().unwrap_or(false);
        let prefix = self.sample.prefix.iter().enumerate().map(|(k, &id)| if hidden(k) { mask_id } else { id });
        prefix.chain(self.body(mask_id)).chain(self.sample.suffix.iter().copied()).collect()
    }

    pub(super) fn body(&self, mask_id: u32) -> impl Iterator<Item = u32> + '_ {
        let roles = self.sample.roles.iter().zip(&self.mask.completion);
        let hidden = |k: usize| self.mask.hidden.get(k).copied().unwrap_or(false);
        let visible = roles.enumerate().map(move |(k, (role, masked))| !masked && *role != Role::Hidden && !hidden(k));
        self.sample.completion.iter().zip(visible).map(move |(&id, visible)| if visible { id } else { mask_id })
    }

    /// Rows of its input.
    #[must_use]
    pub fn rows(&self) -> usize {
        let frame = |prefix: &[u32], suffix: &[u32]| prefix.len() + suffix.len() + self.sample.completion.len();
        let guidance = self.sample.drawn.guidance.as_ref();
        frame(&self.sample.prefix, &self.sample.suffix) + guidance.map_or(0, |g| frame(&g.prefix, &g.suffix))
    }

    pub(super) fn check(&self) -> Result<(), RlError> {
        let (sample, mask) = (self.sample, self.mask);
        let (len, masked, roles) = (sample.completion.len(), mask.completion.len(), sample.roles.len());
        if masked != len || roles != len {
            let message = format!("{masked} mask entries and {roles} roles for {len} completion tokens; one each");
            return Err(RlError::invalid("mask", message));
        }
        if !mask.hidden.is_empty() && mask.hidden.len() != len {
            let message = format!("{} entries for {len} completion tokens", mask.hidden.len());
            return Err(RlError::invalid("mask.hidden", message));
        }
        if !mask.prefix.is_empty() && mask.prefix.len() != sample.prefix.len() {
            let message = format!("{} entries for {} prompt tokens", mask.prefix.len(), sample.prefix.len());
            return Err(RlError::invalid("mask.prefix", message));
        }
        if let Some(k) = mask.positions().find(|&k| !sample.vocab.contains(&sample.completion[k])) {
            let (id, vocab) = (sample.completion[k], &sample.vocab);
            let message = format!("token id {id} at position {k} is outside the ids {vocab:?} that were sampled from");
            return Err(RlError::invalid("completion", message));
        }
        Ok(())
    }

    /// Views that are equal here share one head: text before images, unguided before guided.
    pub(super) fn head(&self) -> (u32, u32, bool) {
        let Sample { vocab, drawn, .. } = self.sample;
        (vocab.start, vocab.end, drawn.guidance.is_some())
    }
}
