//! What a client may ask of the algorithm: samplers, schedules, parameters, and why a completion ended.
//!
//! The engine's `job` re-exports these, so that nothing here knows of requests or priorities.

use serde::{Deserialize, Serialize};

/// A parameter that this model or the algorithm cannot honour. Names the request field at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// The request field at fault.
    pub field: &'static str,
    /// Limit, actual value and what to do.
    pub message: String,
}

impl Invalid {
    pub(crate) fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }
}

/// How a masked text position gets its token and when it commits (`reference` names: LLaDA, Fast-dLLM).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TextSampler {
    /// The most confident positions commit, a fixed number per step (LLaDA `low_confidence`).
    LowConfidence,
    /// Random positions commit, a fixed number per step (LLaDA `random`).
    Random,
    /// Every position at least this confident commits, and always the best one (Fast-dLLM).
    Threshold {
        /// Probability in `(0, 1]`.
        threshold: f64,
    },
}

/// How masked image positions commit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageSampler {
    /// Confidence order with annealed Gumbel noise (MaskGIT, MMaDA).
    Maskgit,
    /// Ancestral sampling of the absorbing process (MaskGRPO, Alg. 4).
    Emerge,
}

/// Share of positions still masked after a share of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// cos(πr/2).
    Cosine,
    /// 1 − r.
    Linear,
    /// 1 − r².
    Pow2,
}

/// Parameters of a text completion, already validated against the limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextParams {
    /// Length of the generated canvas; a template ignores it.
    pub max_tokens: usize,
    /// Forwards over the whole canvas; spread over the blocks. With `threshold` an upper bound.
    pub steps: usize,
    /// Length of a semi-autoregressive block; `max_tokens` for one block.
    pub block_length: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: usize,
    /// Which positions commit.
    pub sampler: TextSampler,
    /// w in (1+w)·conditional − w·unconditional; 0 is off.
    pub guidance_scale: f64,
    /// End when EOS and everything before it are committed.
    pub stop_at_eos: bool,
    /// Strings that end the text.
    pub stop: Vec<String>,
}

/// Parameters of an image, already validated against the limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageParams {
    /// Forwards.
    pub steps: usize,
    /// w in (1+w)·conditional − w·unconditional; 0 is off.
    pub guidance_scale: f64,
    /// Reveal schedule.
    pub schedule: Schedule,
    /// maskgit: Gumbel noise on the confidence, annealed to 0; emerge: temperature of the token draw. 0 is greedy.
    pub temperature: f64,
    /// Temperature of the token draw; `None`: maskgit 1, or 0 when `temperature` is 0; emerge `temperature`.
    pub token_temperature: Option<f64>,
    /// Which positions commit.
    pub sampler: ImageSampler,
    /// Rows and columns of the token grid.
    pub grid: (usize, usize),
    /// Known codes, for inpainting: one entry per grid cell; empty when all are to be drawn.
    pub initial_codes: Vec<Option<u32>>,
    /// Send a preview every so many steps; 0 for none.
    pub preview_every: usize,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// EOS or a stop string; for an image, every code is drawn.
    Stop,
    /// The whole canvas is committed without an end.
    Length,
    /// The deadline passed; what was left was committed in one step.
    Deadline,
}

impl TextParams {
    /// Checks what would make the algorithm undefined. Sizes are checked where the canvas is built.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        at_least("max_tokens", self.max_tokens, 1)?;
        at_least("steps", self.steps, 1)?;
        at_least("block_length", self.block_length, 1)?;
        not_negative("temperature", self.temperature)?;
        not_negative("guidance_scale", self.guidance_scale)?;
        share("top_p", self.top_p)?;
        if let TextSampler::Threshold { threshold } = self.sampler {
            share("sampler.threshold", threshold)?;
        }
        Ok(())
    }
}

impl ImageParams {
    /// Checks what would make the algorithm undefined. Sizes are checked where the canvas is built.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        at_least("steps", self.steps, 1)?;
        not_negative("temperature", self.temperature)?;
        not_negative("guidance_scale", self.guidance_scale)?;
        self.token_temperature.map_or(Ok(()), |t| not_negative("token_temperature", t))
    }

    /// Temperature at which codes are drawn.
    pub(crate) fn draw_temperature(&self) -> f64 {
        let default = match self.sampler {
            ImageSampler::Maskgit if self.temperature > 0.0 => 1.0,
            ImageSampler::Maskgit | ImageSampler::Emerge => self.temperature,
        };
        self.token_temperature.unwrap_or(default)
    }
}

fn at_least(field: &'static str, actual: usize, least: usize) -> Result<(), Invalid> {
    if actual >= least {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be at least {least}, got {actual}")))
}

fn not_negative(field: &'static str, actual: f64) -> Result<(), Invalid> {
    if actual.is_finite() && actual >= 0.0 {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be a finite number from 0 on, got {actual}")))
}

fn share(field: &'static str, actual: f64) -> Result<(), Invalid> {
    if actual > 0.0 && actual <= 1.0 {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be above 0 and at most 1, got {actual}")))
}
