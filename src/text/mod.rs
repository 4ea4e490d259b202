//! Text to token ids and back, for any model that ships a `tokenizer.json`.
//!
//! Lives here: encoding that never turns what a user typed into a control token, decoding, and decoding as tokens
//! arrive. Knows nothing of models, requests or storage.

mod decode;
mod tokenizer;

pub use decode::Incremental;
pub use tokenizer::Tokenizer;

/// What can go wrong with a tokenizer. The prompt itself is never part of a message.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The bytes are no usable `tokenizer.json`.
    #[error("tokenizer.json cannot be read: {0}; check that it is complete and written for a `tokenizers` release")]
    Load(String),
    /// The tokenizer refused to encode a text.
    #[error("a text of {bytes} bytes cannot be encoded: {cause}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer said.
        cause: String,
    },
    /// The tokenizer has no ordinary tokens for a text that spells one of its control tokens.
    #[error("a text of {bytes} bytes spells a control token and has no other encoding; remove it from the text")]
    ControlToken {
        /// Length of the text.
        bytes: usize,
    },
    /// A tokenizer could not be assembled.
    #[error("the tokenizer cannot be built: {0}")]
    Build(String),
}

#[cfg(test)]
mod tests;
