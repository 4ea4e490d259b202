//! A [`Transformer`] with what the server must know of it: the [`Backbone`] of every family that it covers.

use std::ops::Range;

use candle_core::Tensor;

use super::transformer::Transformer;
use super::{Backbone, ModelError, ModelSpec, Packed};

/// A transformer to be served.
pub struct TransformerBackbone {
    spec: ModelSpec,
    transformer: Transformer,
}

impl TransformerBackbone {
    /// Joins the two.
    #[must_use]
    pub fn new(spec: ModelSpec, transformer: Transformer) -> Self {
        Self { spec, transformer }
    }
}

impl Backbone for TransformerBackbone {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        self.transformer.hidden(packed)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        self.transformer.logits(hidden, vocab)
    }
}
