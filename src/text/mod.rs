//! Text to token ids and back, for any model that ships a `tokenizer.json`, or Qwen2's `vocab.json` and `merges.txt`.
//!
//! Lives here: encoding that never turns what a user typed into a control token, chat templates, decoding, and decoding
//! as tokens arrive. Knows nothing of models, requests or storage.

mod chat;
mod decode;
mod files;
mod marked;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use decode::Incremental;
pub use files::TextFiles;
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
    /// A file of a checkpoint's text side is missing or unreadable.
    #[error("{0}")]
    Files(String),
    /// The chat template cannot be read.
    #[error("the chat template cannot be read: {0}")]
    Template(String),
    /// The chat template refused a conversation.
    #[error("the model's chat template refuses this conversation ({0}); check the roles and their order")]
    Conversation(String),
    /// The model has no chat template.
    #[error("the model has no chat template, so it takes no messages; send a prompt instead")]
    NoTemplate,
    /// The messages use every character that could stand between theirs and the template's.
    #[error("the messages hold every character of Unicode's private use area; remove some")]
    PrivateUse,
    /// A tokenizer could not be assembled.
    #[error("the tokenizer cannot be built: {0}")]
    Build(String),
}

#[cfg(test)]
mod tests;
