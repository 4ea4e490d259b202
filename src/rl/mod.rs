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

use crate::models::ModelError;

pub mod advantage;
pub mod elbo;
pub mod estimator;
pub mod logprob;
pub mod loss;
pub mod masks;
pub mod preference;

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
}

impl RlError {
    fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }
}
