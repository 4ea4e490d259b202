//! An adapter that can be served, and the base model that adapters fit.

use std::sync::Arc;

use candle_core::Device;

use super::{Manifest, VersionId};
use crate::models::lora::Lora;
use crate::models::transformer::TransformerConfig;

/// The model that adapters are made for.
#[derive(Debug, Clone)]
pub struct Base {
    /// Name under which it is served.
    pub model: String,
    /// SHA-256 of its weights, lower-case hexadecimal.
    pub sha256: String,
    /// Its shape.
    pub config: TransformerConfig,
    /// Where its weights are, and an adapter's tensors go.
    pub device: Device,
}

/// One immutable version, ready to serve. Shared as `Arc<Adapter>`: a request holds the one it began with to its end.
#[derive(Debug)]
pub struct Adapter {
    /// Its name and number.
    pub id: VersionId,
    /// Its tensors; `None` only of `base@0`.
    pub lora: Option<Arc<Lora>>,
    /// How it came about; `None` only of `base@0`.
    pub manifest: Option<Manifest>,
}

impl Adapter {
    /// `base@0`: the model as it is.
    #[must_use]
    pub fn base() -> Self {
        Self { id: VersionId::base(), lora: None, manifest: None }
    }
}
