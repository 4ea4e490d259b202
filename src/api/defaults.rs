//! What a request gets when it does not say: the one place where the defaults live. `/info` shows them.

use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::job::{Ends, Fidelity, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};

/// Defaults of both generate routes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Defaults {
    /// `POST /generate/text`.
    pub text: TextDefaults,
    /// `POST /generate/image`.
    pub image: ImageDefaults,
}

/// Defaults of `POST /generate/text`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TextDefaults {
    /// Length of the generated canvas.
    pub max_tokens: usize,
    /// `steps` is `max_tokens` divided by this, at least 1.
    pub tokens_per_step: usize,
    /// Longest block; a shorter canvas is one block.
    pub block_length: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: usize,
    /// Confidence of sampler `threshold`.
    pub threshold: f64,
    /// Of sampler `factor`.
    pub factor: f64,
    /// Confidence of sampler `low_confidence_dynamic`, which is the default of models that go by blocks.
    pub dynamic_threshold: f64,
    /// Nats of sampler `entropy_bounded`.
    pub entropy_threshold: f64,
    /// Where the schedule of Dream's samplers ends.
    pub eps: f64,
    /// 0 is off.
    pub guidance_scale: f64,
    /// End when EOS and everything before it are committed.
    pub stop_at_eos: bool,
}

impl Default for TextDefaults {
    fn default() -> Self {
        Self {
            max_tokens: 32,
            tokens_per_step: 2,
            block_length: 8,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            threshold: 0.9,
            factor: 1.0,
            dynamic_threshold: 0.85,
            entropy_threshold: 0.35,
            eps: 1e-3,
            guidance_scale: 0.0,
            stop_at_eos: true,
        }
    }
}

impl TextDefaults {
    /// What a request with nothing but a prompt runs with.
    #[must_use]
    pub fn params(&self) -> TextParams {
        TextParams {
            max_tokens: self.max_tokens,
            steps: (self.max_tokens / self.tokens_per_step.max(1)).max(1),
            block_length: self.block_length.min(self.max_tokens),
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            sampler: TextSampler::LowConfidence,
            ends: Ends::default(),
            guidance_scale: self.guidance_scale,
            stop_at_eos: self.stop_at_eos,
            fidelity: Fidelity::Exact,
            vicinity: 0,
            stop: Vec::new(),
        }
    }
}

/// Defaults of `POST /generate/image`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ImageDefaults {
    /// Forwards.
    pub steps: usize,
    /// w in (1+w)·conditional − w·unconditional.
    pub guidance_scale: f64,
    /// Noise of the reveal order.
    pub temperature: f64,
    /// Temperature of the token draws of `maskgit` (not `maskgit_compat`, which has 1), unless `temperature` is 0.
    pub token_temperature: f64,
    /// Previews of a streamed image, spread over its steps, when `preview_every` is absent.
    pub previews: usize,
}

impl Default for ImageDefaults {
    fn default() -> Self {
        Self { steps: 64, guidance_scale: 1.0, temperature: 2.0, token_temperature: 0.6, previews: 16 }
    }
}

impl ImageDefaults {
    /// What a request with nothing but a prompt runs with on a model that draws `grid`; no previews.
    #[must_use]
    pub fn params(&self, grid: (usize, usize)) -> ImageParams {
        ImageParams {
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            schedule: Schedule::Cosine,
            temperature: self.temperature,
            token_temperature: self.token_temperature(ImageSampler::Maskgit, self.temperature),
            sampler: ImageSampler::Maskgit,
            grid,
            initial_codes: Vec::new(),
            preview_every: 0,
        }
    }

    /// The temperature of token draws when a request does not say. `emerge` has only one temperature, and 0 is greedy.
    #[must_use]
    pub fn token_temperature(&self, sampler: ImageSampler, temperature: f64) -> Option<f64> {
        (sampler == ImageSampler::Maskgit && temperature > 0.0).then_some(self.token_temperature)
    }
}
