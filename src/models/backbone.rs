//! A [`Transformer`] with what the server must know of it: the [`Backbone`] of every family that it covers.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::kept::KeptSpans;
use super::nn::Precision;
use super::transformer::{Transformer, TransformerConfig};
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

    fn forward_keeping(&self, packed: &Packed) -> Result<(Tensor, KeptSpans), ModelError> {
        self.transformer.hidden_keeping(packed)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        self.transformer.logits(hidden, vocab)
    }

    fn adaptable(&self) -> Option<&TransformerConfig> {
        Some(self.transformer.config())
    }

    fn transformer(&self) -> Option<&Transformer> {
        Some(&self.transformer)
    }

    fn for_learning(&self) -> Option<Arc<dyn Backbone>> {
        // bf16 products are a CPU kernel; elsewhere the served arithmetic is the fast one.
        let mixed = self.transformer.device().is_cpu();
        let precision = if mixed { Precision::Mixed } else { Precision::Exact };
        Some(Arc::new(Self { spec: self.spec.clone(), transformer: self.transformer.with_precision(precision) }))
    }
}
