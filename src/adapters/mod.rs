//! Adapters as values: immutable versions, the files they are exchanged in, where they are kept, who gets which.
//!
//! Lives here: version names, PEFT files ([`peft`]), manifests, the store on disk ([`registry`]), and the pure rules of
//! publication ([`lifecycle`]). Does not: tensors and how they are applied (`models::lora`), training (`rl`), the
//! record of which version is active (`store`), HTTP.
//!
//! A version never changes once it is committed; a better one gets the next number. Nothing that was refused leaves a
//! trace on the disk.

pub mod adapter;
pub mod lifecycle;
pub mod manifest;
pub mod peft;
pub mod registry;
pub mod version;

pub use adapter::{Adapter, Base};
pub use lifecycle::{Routes, Status};
pub use manifest::Manifest;
pub use peft::{Limits, PeftFiles};
pub use registry::Registry;
pub use version::VersionId;

use crate::models::ModelError;

/// Why an adapter was refused, or could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A version or name that is not one.
    #[error("adapter version {actual:?}: {hint}")]
    Version {
        /// What was given.
        actual: String,
        /// What a version looks like.
        hint: &'static str,
    },
    /// A file that is not what its name says.
    #[error("{file}: {reason}")]
    Malformed {
        /// Name of the file.
        file: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Something that exceeds a limit.
    #[error("{file}: {what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// Name of the file.
        file: &'static str,
        /// What is too large, with its unit.
        what: String,
        /// How large it is.
        actual: u64,
        /// How large it may be.
        limit: u64,
    },
    /// A setting of PEFT that changes results and is not built.
    #[error("adapter_config.json: {field} = {actual} is not supported: {hint}")]
    Unsupported {
        /// Name of the field.
        field: String,
        /// Its value, shortened.
        actual: String,
        /// What would be supported.
        hint: String,
    },
    /// A tensor that does not fit the base model, or holds values that cannot be served.
    #[error("adapter_model.safetensors: {tensor}: {reason}")]
    Tensor {
        /// The tensor or module.
        tensor: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The adapter was made for other weights.
    #[error("{file}: made for the base with SHA-256 {actual}, this server's base has {expected}; use that base")]
    WrongBase {
        /// Where the base was recorded.
        file: &'static str,
        /// The base it was made for.
        actual: String,
        /// The base that is loaded.
        expected: String,
    },
    /// No such version.
    #[error("adapter {0} is not in the store")]
    NotFound(VersionId),
    /// A folder of the store whose content is not what was committed.
    #[error("adapter folder {folder} is damaged: {reason}")]
    Damaged {
        /// Name of the folder.
        folder: String,
        /// What was found.
        reason: String,
    },
    /// A move that the life of a version does not have.
    #[error("adapter {0}")]
    Lifecycle(String),
    /// The disk refused.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The tensors could not be built.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<candle_core::Error> for AdapterError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]).collect()
}
