//! The built-in model: its generated tasks, their verifiers, its tokenizer, its training and its weights.
//!
//! Everything here is data and plain functions; no server, no storage.

pub mod eval;
pub mod model;
pub mod pretrain;
pub mod reward;
pub mod scenes;
pub mod tokenizer;
pub mod words;

use std::ops::Range;

use crate::models::Layout;
use crate::models::shape::{TransformerConfig, Variant};

/// Name under which the built-in model is served.
pub const NAME: &str = "starter";

/// Shape of the built-in transformer.
#[must_use]
pub fn config() -> TransformerConfig {
    TransformerConfig {
        d_model: 192,
        n_layers: 6,
        n_heads: 6,
        n_kv_heads: 6,
        mlp_hidden_size: 512,
        embedding_size: code_ids().end as usize,
        max_sequence_length: 1024,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        weight_tying: false,
        variant: Variant::default(),
    }
}

/// Token ids of the image codes: they follow the text vocabulary.
#[must_use]
pub fn code_ids() -> Range<u32> {
    let start = tokenizer::VOCAB_SIZE as u32;
    start..start + scenes::CODES as u32
}

/// `<|lm|> prompt` before a text, `<|t2i|> caption <|soi|> … <|eoi|>` around an image.
#[derive(Debug, Clone, Copy, Default)]
pub struct StarterLayout;

impl Layout for StarterLayout {
    fn text_prefix(&self, prompt: &[u32]) -> Vec<u32> {
        [&[tokenizer::LM], prompt].concat()
    }

    fn image_frame(&self, prompt: &[u32]) -> (Vec<u32>, Vec<u32>) {
        ([&[tokenizer::T2I], prompt, &[tokenizer::SOI]].concat(), vec![tokenizer::EOI])
    }
}
