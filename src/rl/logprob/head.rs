//! From the hidden states of some views to their log-probabilities.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};

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
    /// Of views with an order, one by one.
    choices: Vec<Choice>,
}

/// The choice of some of a view's rows, and of their tokens.
struct Choice {
    /// Rows that could have been chosen.
    among: usize,
    /// Those that were.
    rows: Vec<usize>,
    /// Scale of the noise.
    noise: f64,
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
        let mut head = Self {
            rows: start..start,
            vocab: 0..0,
            targets: Vec::new(),
            scales: None,
            sharpness: Vec::new(),
            choices: Vec::new(),
        };
        for view in views.clone() {
            let (sample, needed) = (view.sample, view.needed());
            let at = |&k: &usize| (sample.prefix.len() + k) as u32;
            packed.push_adapted(&view.input(mask_id), needed.iter().map(at), adapter.cloned());
            head.targets.extend(view.mask.positions().map(|k| sample.completion[k] - sample.vocab.start));
            head.sharpness.extend(std::iter::repeat_n((1.0 / sample.drawn.temperature) as f32, needed.len()));
            head.choices.extend(view.noise().map(|noise| Choice {
                among: needed.len(),
                rows: (0..needed.len()).filter(|&row| view.mask.completion[needed[row]]).collect(),
                noise,
            }));
            head.vocab = sample.vocab.clone();
        }
        for view in views {
            let Some(guidance) = &view.sample.drawn.guidance else { continue };
            let needed = view.needed();
            let at = |&k: &usize| (guidance.prefix.len() + k) as u32;
            let prefix = guidance.prefix.iter().copied();
            let ids: Vec<u32> = prefix.chain(view.body(mask_id)).chain(guidance.suffix.iter().copied()).collect();
            packed.push_adapted(&ids, needed.iter().map(at), adapter.cloned());
            let scales = head.scales.get_or_insert_with(Vec::new);
            scales.extend(std::iter::repeat_n(guidance.scale as f32, needed.len()));
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
        let tempered = match self.sharpness.iter().all(|sharpness| *sharpness == 1.0) {
            true => logits.clone(),
            false => logits.broadcast_mul(&Tensor::from_slice(&self.sharpness, (n, 1), logits.device())?)?,
        };
        if self.choices.is_empty() {
            return Ok(token_logprob(&tempered, &self.targets)?);
        }
        self.chosen(&logits, &tempered)
    }

    /// log P of the choices of position and token. Every masked position j draws a token y with probability `t_j(y)`, at
    /// the temperature, and the highest `log p_j(y) + noise·Gumbel` commits, p without the temperature. With the draws of
    /// the other positions at their mean, P is a softmax over all pairs: `t_j(y) · p_j(y)^(1/noise)`, normalised.
    fn chosen(&self, logits: &Tensor, tempered: &Tensor) -> Result<Tensor, RlError> {
        let (width, mut start, mut targets) = (self.vocab.len(), 0, self.targets.iter());
        let mut out = Vec::with_capacity(self.choices.len());
        for Choice { among, rows, noise } in &self.choices {
            let log_softmax = |of: &Tensor| candle_nn::ops::log_softmax(&of.narrow(0, start, *among)?, D::Minus1);
            let joint = (log_softmax(tempered)? + (log_softmax(logits)? / *noise)?)?.flatten_all()?;
            let chosen: Vec<u32> =
                rows.iter().zip(&mut targets).map(|(row, target)| (row * width) as u32 + target).collect();
            let chosen = joint.index_select(&Tensor::new(chosen, joint.device())?, 0)?;
            out.push(chosen.broadcast_sub(&joint.log_sum_exp(0)?)?);
            start += among;
        }
        Ok(Tensor::cat(&out, 0)?)
    }
}
