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

/// How much of a step is computed anew. Everything but `exact` changes the results, so it is asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fidelity {
    /// All that matters.
    #[default]
    Exact,
    /// Keys and values before the block are those of the block's first forward (Fast-dLLM, prefix cache).
    Prefix,
    /// So are those after it (Fast-dLLM, dual cache).
    Dual,
}

/// How a masked text position gets its token and when it commits, by the names of the official codes: LLaDA
/// (`low_confidence`, `random`), Fast-dLLM (`threshold`, `factor`), SDAR (`low_confidence_dynamic`,
/// `low_confidence_static`, `sequential`, `entropy_bounded`), Dream (the others).
///
/// SDAR's samplers go by blocks that begin at multiples of their length, counted from the first position of the prompt;
/// their `steps` are those of one block. They rank by the distribution that tokens are drawn from.
///
///
/// Dream's samplers rank by the distribution that tokens are drawn from, tempered and filtered. Of a block's masked
/// positions a step commits the share `1 − t(i+1)/t(i)`, with t falling evenly from 1 to `eps` over its steps.
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
    /// The most confident positions commit while the r-th of them is at least `1 − factor/(r + 1)` confident, and always
    /// the best one (Fast-dLLM).
    Factor {
        /// From 0 (one per step) on.
        factor: f64,
    },
    /// Every position that is more confident than the threshold commits, and at least the step's even share of the block
    /// (SDAR; LLaDA2, with blocks of 32 and 0.95).
    LowConfidenceDynamic {
        /// Probability in `(0, 1]`.
        threshold: f64,
    },
    /// The most confident positions commit, an even share of the block per step (SDAR).
    LowConfidenceStatic,
    /// The leftmost positions commit, an even share of the block per step (SDAR).
    Sequential,
    /// The positions of least entropy commit while the sum of their entropies is below the threshold, and at least the
    /// step's even share of the block (SDAR, `JetEngine`).
    EntropyBounded {
        /// In nats, from 0 on.
        threshold: f64,
    },
    /// Every masked position commits with the step's share as its probability (Dream `origin`).
    Origin {
        /// In `(0, 1)`.
        eps: f64,
    },
    /// The likeliest tokens commit (Dream `maskgit_plus`).
    MaskgitPlus {
        /// In `(0, 1)`.
        eps: f64,
        /// Temperature of the choice of positions; 0 takes the highest.
        alg_temp: f64,
    },
    /// The positions whose two likeliest tokens differ most in probability commit (Dream `topk_margin`).
    TopkMargin {
        /// In `(0, 1)`.
        eps: f64,
        /// Temperature of the choice of positions; 0 takes the highest.
        alg_temp: f64,
    },
    /// The positions of least entropy commit (Dream `entropy`).
    Entropy {
        /// In `(0, 1)`.
        eps: f64,
        /// Temperature of the choice of positions; 0 takes the highest.
        alg_temp: f64,
    },
}

/// What a sampler makes of the ids that end a text (LLaDA's options).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// EOS, the first of the model's end ids, is never drawn and counts in no confidence.
    pub logits_eos_inf: bool,
    /// Every end id may be drawn, but has no confidence: it commits last. (At a temperature above 0 the official code
    /// forgets EOS and doubts EOT alone.)
    pub confidence_eos_eot_inf: bool,
}

/// How masked image positions commit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ImageSampler {
    /// Confidence order with annealed Gumbel noise (MaskGIT, MMaDA).
    Maskgit,
    /// The same with MMaDA's rules to the letter: the noise of step i is `temperature·∏(1 − (j+1)/steps)` over all
    /// j ≤ i, and all cells as confident as the last one to commit do so too.
    MaskgitCompat,
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
    /// (σ(3) − σ(6r − 3)) / (σ(3) − σ(−3)).
    Sigmoid,
}

/// Parameters of a text completion, already validated against the limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextParams {
    /// Length of the generated canvas; a template ignores it.
    pub max_tokens: usize,
    /// Forwards over the whole canvas; spread over the blocks. With `threshold` and `factor` an upper bound. With SDAR's
    /// samplers those of one block, an upper bound, too.
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
    /// What it makes of end ids.
    #[serde(default)]
    pub ends: Ends,
    /// w in (1+w)·conditional − w·unconditional; 0 is off.
    pub guidance_scale: f64,
    /// End when EOS and everything before it are committed.
    pub stop_at_eos: bool,
    /// What is computed anew at each step.
    #[serde(default)]
    pub fidelity: Fidelity,
    /// Positions on each side of the block that an approximation computes anew along with it (dInfer, arXiv 2510.08666).
    #[serde(default)]
    pub vicinity: usize,
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
        self.sampler.check(self.ends)
    }
}

impl TextSampler {
    /// A fixed plan numbers its steps in advance; the others take as many as they need.
    pub(crate) fn adaptive(self) -> bool {
        self.by_threshold() || self.per_block()
    }

    fn by_threshold(self) -> bool {
        matches!(self, Self::Threshold { .. } | Self::Factor { .. })
    }

    /// SDAR's: blocks begin at multiples of their length, and `steps` are those of one block.
    #[must_use]
    pub fn per_block(self) -> bool {
        matches!(
            self,
            Self::LowConfidenceDynamic { .. }
                | Self::LowConfidenceStatic
                | Self::Sequential
                | Self::EntropyBounded { .. }
        )
    }

    /// The reference knows no blocks.
    #[must_use]
    pub fn spans_the_canvas(self) -> bool {
        matches!(self, Self::Origin { .. } | Self::MaskgitPlus { .. } | Self::TopkMargin { .. } | Self::Entropy { .. })
    }

    fn check(self, ends: Ends) -> Result<(), Invalid> {
        let by_confidence = matches!(self, Self::LowConfidence) || self.by_threshold();
        if ends.confidence_eos_eot_inf && !by_confidence {
            let message = "has no meaning for this sampler; leave it out, or use low_confidence, threshold or factor";
            return Err(Invalid::new("sampler.confidence_eos_eot_inf", message));
        }
        match self {
            Self::LowConfidence | Self::Random | Self::LowConfidenceStatic | Self::Sequential => Ok(()),
            Self::Threshold { threshold } | Self::LowConfidenceDynamic { threshold } => {
                share("sampler.threshold", threshold)
            }
            Self::EntropyBounded { threshold } => not_negative("sampler.threshold", threshold),
            Self::Factor { factor } => not_negative("sampler.factor", factor),
            Self::Origin { eps } => inside("sampler.eps", eps),
            Self::MaskgitPlus { eps, alg_temp }
            | Self::TopkMargin { eps, alg_temp }
            | Self::Entropy { eps, alg_temp } => {
                inside("sampler.eps", eps)?;
                not_negative("sampler.alg_temp", alg_temp)
            }
        }
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
            ImageSampler::Maskgit | ImageSampler::MaskgitCompat if self.temperature > 0.0 => 1.0,
            _ => self.temperature,
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

fn inside(field: &'static str, actual: f64) -> Result<(), Invalid> {
    if actual > 0.0 && actual < 1.0 {
        return Ok(());
    }
    Err(Invalid::new(field, format!("must be above 0 and below 1, got {actual}")))
}
