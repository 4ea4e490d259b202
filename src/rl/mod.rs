//! Learning from ratings by MaskGRPO (arXiv 2510.02880) and its relatives: from rewards to a gradient.
//!
//! One update reads, in this order: [`advantage`] (rewards to advantages), [`estimator`] (which masked inputs stand for
//! a completion at inner step j), [`logprob`] (one forward: log-probabilities of the masked tokens, the same function
//! for the new, the old, the behaviour and the reference policy), [`loss`] or [`preference`] (a number, and its
//! derivative by every log-probability), and back through the forward by [`logprob::Estimate::objective`].
//!
//! Masks are pure functions of (seed, example, inner step, position), so every policy sees the same ones: the noise of
//! a crude likelihood estimate cancels in the ratio. Nothing here draws from a global generator, reads a clock or
//! knows HTTP.

use crate::adapters::AdapterError;
use crate::engine::EngineError;
use crate::models::ModelError;
use crate::store::StoreError;

pub mod advantage;
pub mod elbo;
pub mod estimator;
pub mod gate;
pub mod lanes;
pub mod logprob;
pub mod loss;
pub mod masks;
pub mod policy;
pub mod preference;
pub mod publish;
pub mod reward;
pub mod rollout;
pub mod trainer;
pub mod update;

/// Why a step of learning could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum RlError {
    /// The model refused the batch or the device failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A setting or an input is outside what the algorithm is defined for.
    #[error("{field}: {message}")]
    Invalid {
        /// Name of the setting or input.
        field: &'static str,
        /// The value found, the limit and what to do.
        message: String,
    },
    /// A file of an adapter, or its life.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine refused or failed a completion.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// What was asked for is not possible now.
    #[error("{0}")]
    Refused(String),
}

impl RlError {
    pub(crate) fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }
}
