//! The shape of a transformer, what sets one family's apart from another's, and the tensors that follow from both.

use serde::{Deserialize, Serialize};

use super::ModelError;
use super::names::{Names, Part};
pub use super::nn::attention::Pattern;

/// Shape of a transformer; field names as in the checkpoints' `config.json` (LLaDA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransformerConfig {
    /// Hidden size.
    pub d_model: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Inner width of the feed-forward layer.
    pub mlp_hidden_size: usize,
    /// Rows of the embedding table.
    pub embedding_size: usize,
    /// Longest sequence.
    pub max_sequence_length: usize,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// The head is the embedding table.
    pub weight_tying: bool,
    /// What the family does differently.
    #[serde(default)]
    pub variant: Variant,
}

/// What sets one family's transformer apart from another's. The default is LLaDA's, and the built-in model's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// What its checkpoints call the tensors.
    pub names: Names,
    /// Width of a head where it is not `d_model / n_heads` (SDAR-4B).
    pub head_dim: Option<usize>,
    /// The query, key and value projections have biases (Dream).
    pub qkv_bias: bool,
    /// Every query and key head goes through an RMSNorm before its rotation (SDAR).
    pub qk_norm: bool,
    /// Which positions see which.
    pub pattern: Pattern,
    /// Position i is predicted from the hidden state of position i − 1, the first one from its own (Dream).
    pub shifted: bool,
    /// Logits are divided by √`d_model`.
    pub scale_logits: bool,
}

impl TransformerConfig {
    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.variant.head_dim.unwrap_or(self.d_model / self.n_heads.max(1))
    }

    /// Width of all query heads.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim()
    }

    /// Width of all key heads, and of all value heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim()
    }

    /// Refuses shapes that cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        let refuse = |field: &str, actual: String, hint: &str| {
            Err(ModelError::Config { field: field.to_owned(), actual, hint: hint.to_owned() })
        };
        let sizes = [
            ("n_layers", self.n_layers),
            ("embedding_size", self.embedding_size),
            ("mlp_hidden_size", self.mlp_hidden_size),
            ("max_sequence_length", self.max_sequence_length),
        ];
        if let Some((field, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
            return refuse(field, "0".into(), "it must be at least 1");
        }
        let divides =
            self.n_heads > 0 && (self.variant.head_dim.is_some() || self.d_model.is_multiple_of(self.n_heads));
        if !divides || self.head_dim() == 0 || !self.head_dim().is_multiple_of(2) {
            return refuse("n_heads", self.n_heads.to_string(), "it must divide d_model into heads of even width");
        }
        if self.n_kv_heads == 0 || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return refuse("n_kv_heads", self.n_kv_heads.to_string(), "it must divide n_heads");
        }
        if self.variant.pattern == (Pattern::BlockCausal { block: 0 }) {
            return refuse("block_size", "0".into(), "it must be at least 1");
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(self.rope_theta) || !positive(self.rms_norm_eps) {
            let both = format!("{} with rms_norm_eps = {}", self.rope_theta, self.rms_norm_eps);
            return refuse("rope_theta", both, "both must be finite and above 0");
        }
        Ok(())
    }

    /// Name and shape of every tensor, in the order of the forward pass.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, names) = (self.d_model, self.variant.names);
        let mut out = vec![(names.embedding().to_owned(), vec![self.embedding_size, d])];
        for layer in 0..self.n_layers {
            for part in self.parts() {
                let (name, shape) = (names.module(layer, part), self.weight(part));
                if self.biased(part) {
                    out.push((format!("{name}.bias"), vec![shape[0]]));
                }
                out.push((format!("{name}.weight"), shape));
            }
        }
        out.push((names.final_norm().to_owned(), vec![d]));
        if !self.weight_tying {
            out.push((names.head().to_owned(), vec![self.embedding_size, d]));
        }
        out
    }

    /// The modules of a layer, in the order of the forward pass.
    fn parts(&self) -> Vec<Part> {
        let norms: &[Part] = if self.variant.qk_norm { &[Part::QNorm, Part::KNorm] } else { &[] };
        let before = [Part::AttnNorm, Part::Q, Part::K, Part::V];
        let after = [Part::O, Part::FfNorm, Part::Gate, Part::Up, Part::Down];
        [&before, norms, &after].concat()
    }

    /// Shape of a module's weight.
    #[must_use]
    pub fn weight(&self, part: Part) -> Vec<usize> {
        let (d, ff, q, kv) = (self.d_model, self.mlp_hidden_size, self.q_width(), self.kv_width());
        match part {
            Part::AttnNorm | Part::FfNorm => vec![d],
            Part::QNorm | Part::KNorm => vec![self.head_dim()],
            Part::Q => vec![q, d],
            Part::K | Part::V => vec![kv, d],
            Part::O => vec![d, q],
            Part::Gate | Part::Up => vec![ff, d],
            Part::Down => vec![d, ff],
        }
    }

    /// Whether a module adds a bias.
    #[must_use]
    pub fn biased(&self, part: Part) -> bool {
        self.variant.qkv_bias && matches!(part, Part::Q | Part::K | Part::V)
    }
}

/// The number of values in the tensors of `config`.
#[must_use]
pub fn parameters(config: &TransformerConfig) -> usize {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}
