//! From the hidden states of some views to their log-probabilities.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::super::RlError;
use super::View;
use crate::models::lora::Lora;
use crate::models::nn::token_logprob::token_logprob;
use crate::models::{Backbone, Packed};

/// Contiguous rows of one vocabulary; guided ones are followed by as many unconditional rows.
pub(super) struct Head {
    rows: Range<usize>,
    vocab: Range<u32>,
    targets: Vec<u32>,
    /// w per row, when guided.
    scales: Option<Vec<f32>>,
    /// 1 / temperature per row.
    sharpness: Vec<f32>,
}

impl Head {
    /// Packs the inputs of `views`.
    pub(super) fn push<'a>(
        packed: &mut Packed,
        mask_id: u32,
        adapter: Option<&Arc<Lora>>,
        views: impl Iterator<Item = View<'a>> + Clone,
    ) -> Self {
        let start = packed.needed.len();
        let mut head =
            Self { rows: start..start, vocab: 0..0, targets: Vec::new(), scales: None, sharpness: Vec::new() };
        for view in views.clone() {
            let sample = view.sample;
            let at = |k: usize| (sample.prefix.len() + k) as u32;
            packed.push_adapted(&view.input(mask_id), view.mask.positions().map(at), adapter.cloned());
            head.targets.extend(view.mask.positions().map(|k| sample.completion[k] - sample.vocab.start));
            head.sharpness.extend(view.mask.positions().map(|_| (1.0 / sample.drawn.temperature) as f32));
            head.vocab = sample.vocab.clone();
        }
        for view in views {
            let Some(guidance) = &view.sample.drawn.guidance else { continue };
            let at = |k: usize| (guidance.prefix.len() + k) as u32;
            let prefix = guidance.prefix.iter().copied();
            let ids: Vec<u32> = prefix.chain(view.body(mask_id)).chain(guidance.suffix.iter().copied()).collect();
            packed.push_adapted(&ids, view.mask.positions().map(at), adapter.cloned());
            let scales = head.scales.get_or_insert_with(Vec::new);
            scales.extend(view.mask.positions().map(|_| guidance.scale as f32));
        }
        head.rows.end = packed.needed.len();
        head
    }

    /// The log-probabilities of its views' scored positions, one after another; `hidden` is of all that was packed.
    pub(super) fn logprobs(&self, model: &dyn Backbone, hidden: &Tensor) -> Result<Tensor, RlError> {
        let hidden = hidden.narrow(0, self.rows.start, self.rows.len())?;
        let mut logits = model.logits(&hidden, self.vocab.clone())?.to_dtype(DType::F32)?;
        let n = self.sharpness.len();
        if let Some(scales) = &self.scales {
            let scale = Tensor::from_slice(scales, (n, 1), logits.device())?;
            let (conditional, unconditional) = (logits.narrow(0, 0, n)?, logits.narrow(0, n, n)?);
            logits = (&conditional + (&conditional - unconditional)?.broadcast_mul(&scale)?)?;
        }
        if self.sharpness.iter().any(|sharpness| *sharpness != 1.0) {
            logits = logits.broadcast_mul(&Tensor::from_slice(&self.sharpness, (n, 1), logits.device())?)?;
        }
        Ok(token_logprob(&logits, &self.targets)?)
    }
}
