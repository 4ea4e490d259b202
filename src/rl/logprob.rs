//! Log-probabilities of the masked tokens of completions: one function for the new policy (with gradient), the old,
//! the behaviour and the reference policy, so that they cannot differ in anything but the weights.
//!
//! No dropout, and the conditional model alone unless a sample says how it was drawn (`view`). The softmax is over the ids
//! that were sampled from (text ids, or the codebook slice), in f32 (`head`). Which positions: `masks`.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::RlError;
use crate::models::lora::Lora;
use crate::models::transformer::by_layer::{Found, Kept};
use crate::models::{Backbone, Packed};
use head::Head;

mod head;
mod view;

pub use view::{Drawn, Guidance, Sample, View};

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

#[cfg(test)]
mod tests;
