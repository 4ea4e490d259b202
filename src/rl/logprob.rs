//! Log-probabilities of the masked tokens of completions: one function for the new policy (with gradient), the old,
//! the behaviour and the reference policy, so that they cannot differ in anything but the weights.
//!
//! No dropout and, unless a sample asks for it, no guidance: the likelihood is the conditional model's. The softmax is
//! over the ids that were sampled from (text ids, or the codebook slice), in f32. Which positions: `masks`.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::RlError;
use super::masks::{Mask, Role};
use crate::models::lora::Lora;
use crate::models::nn::token_logprob::token_logprob;
use crate::models::transformer::by_layer::{Found, Kept};
use crate::models::{Backbone, Packed};

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
    /// `Estimator::Trajectory` asks.
    pub commit_steps: Vec<u32>,
    /// Scores the guided distribution instead of the conditional one. `None` for training as published.
    pub guidance: Option<Guidance>,
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

    fn body(&self, mask_id: u32) -> impl Iterator<Item = u32> + '_ {
        let roles = self.sample.roles.iter().zip(&self.mask.completion);
        let hidden = |k: usize| self.mask.hidden.get(k).copied().unwrap_or(false);
        let visible = roles.enumerate().map(move |(k, (role, masked))| !masked && *role != Role::Hidden && !hidden(k));
        self.sample.completion.iter().zip(visible).map(move |(&id, visible)| if visible { id } else { mask_id })
    }

    /// Rows of its input.
    #[must_use]
    pub fn rows(&self) -> usize {
        let frame = |prefix: &[u32], suffix: &[u32]| prefix.len() + suffix.len() + self.sample.completion.len();
        let guidance = self.sample.guidance.as_ref();
        frame(&self.sample.prefix, &self.sample.suffix) + guidance.map_or(0, |g| frame(&g.prefix, &g.suffix))
    }

    fn check(&self) -> Result<(), RlError> {
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
    fn head(&self) -> (u32, u32, bool) {
        (self.sample.vocab.start, self.sample.vocab.end, self.sample.guidance.is_some())
    }
}

/// The log-probabilities of some views' masked tokens, in one tensor.
#[derive(Debug)]
pub struct Estimate {
    /// All of them `(n)`, f32, in the order of the forward.
    values: Tensor,
    /// Where each view's are, positions ascending.
    ranges: Vec<Range<usize>>,
    /// The forward pass, where it is to be computed again by layer.
    kept: Option<Kept>,
}

impl Estimate {
    /// The log-probabilities by view, positions ascending.
    ///
    /// # Errors
    /// When the device fails.
    pub fn split(&self) -> Result<Vec<Vec<f32>>, RlError> {
        let values = self.values.to_vec1::<f32>()?;
        Ok(self.ranges.iter().map(|range| values[range.clone()].to_vec()).collect())
    }

    /// A scalar whose value is `value` and whose derivative by every log-probability is the given one: calling
    /// `backward` on it is backward through the loss that `value` and `gradient` (by view) were computed from.
    ///
    /// # Errors
    /// When the gradient has another shape than the estimate, or the device fails.
    pub fn objective(&self, value: f64, gradient: &[Vec<f32>]) -> Result<Tensor, RlError> {
        let fits = gradient.len() == self.ranges.len()
            && gradient.iter().zip(&self.ranges).all(|(gradient, range)| gradient.len() == range.len());
        if !fits {
            let shape: Vec<usize> = gradient.iter().map(Vec::len).collect();
            return Err(RlError::invalid("gradient", format!("one number per log-probability wanted, got {shape:?}")));
        }
        let device = self.values.device();
        let value = Tensor::new(value as f32, device)?;
        if self.values.elem_count() == 0 {
            return Ok(value);
        }
        let mut flat = vec![0f32; self.values.elem_count()];
        for (gradient, range) in gradient.iter().zip(&self.ranges) {
            flat[range.clone()].copy_from_slice(gradient);
        }
        let linear = (&self.values * Tensor::from_vec(flat, self.values.shape(), device)?)?.sum_all()?;
        Ok(((&linear - linear.detach())? + value)?)
    }

    /// Backward through [`objective`](Self::objective) and the forward of `model`, which the estimate is of; every
    /// variable's gradient goes to `found`.
    ///
    /// # Errors
    /// As [`objective`](Self::objective), and when `found` fails.
    pub fn backward(
        &self,
        model: &dyn Backbone,
        value: f64,
        gradient: &[Vec<f32>],
        found: &mut Found<'_>,
    ) -> Result<(), RlError> {
        let store = self.objective(value, gradient)?.backward()?;
        found(&store)?;
        if let (Some(kept), Some(transformer)) = (&self.kept, model.transformer()) {
            transformer.backward_by_layer(kept, &store, found)?;
        }
        Ok(())
    }
}

/// log p(token | everything visible) of every masked position of `views`, by the model with `adapter` (`None`: the
/// base). Differentiable through the adapter's factors where these are variables.
///
/// # Errors
/// When a mask does not fit its sample, an id is outside its vocabulary, or the model fails.
pub fn logprob_estimate(
    model: &dyn Backbone,
    adapter: Option<&Arc<Lora>>,
    views: &[View<'_>],
) -> Result<Estimate, RlError> {
    estimate(model, adapter, views, |packed| Ok((model.forward(packed)?, None)))
}

/// [`logprob_estimate`] that keeps only the layers' inputs for [`Estimate::backward`], which computes the layers again;
/// the plain one where the model has no layers to show.
///
/// # Errors
/// As [`logprob_estimate`].
pub fn logprob_estimate_by_layer(
    model: &dyn Backbone,
    adapter: Option<&Arc<Lora>>,
    views: &[View<'_>],
) -> Result<Estimate, RlError> {
    let Some(transformer) = model.transformer() else { return logprob_estimate(model, adapter, views) };
    estimate(model, adapter, views, |packed| {
        let (hidden, kept) = transformer.hidden_by_layer(packed)?;
        Ok((hidden, Some(kept)))
    })
}

fn estimate(
    model: &dyn Backbone,
    adapter: Option<&Arc<Lora>>,
    views: &[View<'_>],
    forward: impl FnOnce(&Packed) -> Result<(Tensor, Option<Kept>), RlError>,
) -> Result<Estimate, RlError> {
    views.iter().try_for_each(View::check)?;
    let mut order: Vec<usize> = (0..views.len()).filter(|&i| views[i].mask.count() > 0).collect();
    order.sort_by_key(|&i| views[i].head());
    let mut ranges = vec![0..0; views.len()];
    if order.is_empty() {
        return Ok(Estimate { values: Tensor::zeros(0, DType::F32, &Device::Cpu)?, ranges, kept: None });
    }
    let mut packed = Packed::default();
    let (mut heads, mut total) = (Vec::new(), 0);
    for same in order.chunk_by(|&a, &b| views[a].head() == views[b].head()) {
        let head = Head::push(&mut packed, model.spec().mask_id, adapter, same.iter().map(|&i| views[i]));
        for &i in same {
            let count = views[i].mask.count();
            ranges[i] = total..total + count;
            total += count;
        }
        heads.push(head);
    }
    let (hidden, kept) = forward(&packed)?;
    let parts = heads.iter().map(|head| head.logprobs(model, &hidden)).collect::<Result<Vec<_>, _>>()?;
    Ok(Estimate { values: Tensor::cat(&parts, 0)?, ranges, kept })
}

/// [`logprob_estimate`] without a gradient, by view, in forwards of at most `max_rows` rows (or one view).
///
/// # Errors
/// As [`logprob_estimate`].
pub fn logprobs(
    model: &dyn Backbone,
    adapter: Option<&Arc<Lora>>,
    views: &[View<'_>],
    max_rows: usize,
) -> Result<Vec<Vec<f32>>, RlError> {
    let mut out = Vec::with_capacity(views.len());
    let mut rest = views;
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = |view: &&View<'_>| {
            rows += view.rows();
            rows <= max_rows
        };
        let (part, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        out.extend(logprob_estimate(model, adapter, part)?.split()?);
        rest = after;
    }
    Ok(out)
}

/// Contiguous rows of one vocabulary; guided ones are followed by as many unconditional rows.
struct Head {
    rows: Range<usize>,
    vocab: Range<u32>,
    targets: Vec<u32>,
    /// w per row, when guided.
    scales: Option<Vec<f32>>,
}

impl Head {
    fn push<'a>(
        packed: &mut Packed,
        mask_id: u32,
        adapter: Option<&Arc<Lora>>,
        views: impl Iterator<Item = View<'a>> + Clone,
    ) -> Self {
        let start = packed.needed.len();
        let (mut targets, mut scales, mut vocab) = (Vec::new(), None, 0..0);
        for view in views.clone() {
            let at = |k: usize| (view.sample.prefix.len() + k) as u32;
            packed.push_adapted(&view.input(mask_id), view.mask.positions().map(at), adapter.cloned());
            targets.extend(view.mask.positions().map(|k| view.sample.completion[k] - view.sample.vocab.start));
            vocab = view.sample.vocab.clone();
        }
        for view in views {
            let Some(guidance) = &view.sample.guidance else { continue };
            let at = |k: usize| (guidance.prefix.len() + k) as u32;
            let prefix = guidance.prefix.iter().copied();
            let ids: Vec<u32> = prefix.chain(view.body(mask_id)).chain(guidance.suffix.iter().copied()).collect();
            packed.push_adapted(&ids, view.mask.positions().map(at), adapter.cloned());
            let scales = scales.get_or_insert_with(Vec::new);
            scales.extend(std::iter::repeat_n(guidance.scale as f32, view.mask.count()));
        }
        Self { rows: start..packed.needed.len(), vocab, targets, scales }
    }

    fn logprobs(&self, model: &dyn Backbone, hidden: &Tensor) -> Result<Tensor, RlError> {
        let hidden = hidden.narrow(0, self.rows.start, self.rows.len())?;
        let mut logits = model.logits(&hidden, self.vocab.clone())?.to_dtype(DType::F32)?;
        if let Some(scales) = &self.scales {
            let n = self.targets.len();
            let scale = Tensor::from_slice(scales, (n, 1), logits.device())?;
            let (conditional, unconditional) = (logits.narrow(0, 0, n)?, logits.narrow(0, n, n)?);
            logits = (&conditional + (&conditional - unconditional)?.broadcast_mul(&scale)?)?;
        }
        Ok(token_logprob(&logits, &self.targets)?)
    }
}

#[cfg(test)]
mod tests;
