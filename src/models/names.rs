//! What the families call their tensors: one table per naming, LLaDA's and Qwen's.

use serde::{Deserialize, Serialize};

/// A naming of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Names {
    /// `model.transformer.blocks.0.q_proj`: LLaDA, MMaDA and the built-in model.
    #[default]
    Llada,
    /// `model.layers.0.self_attn.q_proj`: Dream (Qwen2.5), SDAR (Qwen3).
    Qwen,
}

/// A module of a layer that has weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Part {
    AttnNorm,
    Q,
    K,
    V,
    QNorm,
    KNorm,
    O,
    FfNorm,
    Gate,
    Up,
    Down,
}

impl Part {
    fn llada(self) -> &'static str {
        match self {
            Self::AttnNorm => "attn_norm",
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::QNorm => "q_norm",
            Self::KNorm => "k_norm",
            Self::O => "attn_out",
            Self::FfNorm => "ff_norm",
            Self::Gate => "ff_proj",
            Self::Up => "up_proj",
            Self::Down => "ff_out",
        }
    }

    fn qwen(self) -> &'static str {
        match self {
            Self::AttnNorm => "input_layernorm",
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::QNorm => "self_attn.q_norm",
            Self::KNorm => "self_attn.k_norm",
            Self::O => "self_attn.o_proj",
            Self::FfNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

impl Names {
    /// Path of a module of layer `layer`; `.weight` or `.bias` follows.
    #[must_use]
    pub fn module(self, layer: usize, part: Part) -> String {
        format!("{}.{layer}.{}", self.layers(), self.part(part))
    }

    /// Path of the list of layers.
    #[must_use]
    pub const fn layers(self) -> &'static str {
        match self {
            Self::Llada => "model.transformer.blocks",
            Self::Qwen => "model.layers",
        }
    }

    /// Path of a module within its layer.
    #[must_use]
    pub fn part(self, part: Part) -> &'static str {
        match self {
            Self::Llada => part.llada(),
            Self::Qwen => part.qwen(),
        }
    }

    /// Name of the embedding table.
    #[must_use]
    pub const fn embedding(self) -> &'static str {
        match self {
            Self::Llada => "model.transformer.wte.weight",
            Self::Qwen => "model.embed_tokens.weight",
        }
    }

    /// Name of the gains of the last norm.
    #[must_use]
    pub const fn final_norm(self) -> &'static str {
        match self {
            Self::Llada => "model.transformer.ln_f.weight",
            Self::Qwen => "model.norm.weight",
        }
    }

    /// Name of the head; absent from a checkpoint whose head is its embedding table.
    #[must_use]
    pub const fn head(self) -> &'static str {
        match self {
            Self::Llada => "model.transformer.ff_out.weight",
            Self::Qwen => "lm_head.weight",
        }
    }
}
