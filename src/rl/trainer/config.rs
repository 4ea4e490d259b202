//! What an operator decides about learning: `[training]` of the configuration.

use serde::{Deserialize, Serialize};

use crate::models::optim::OptimConfig;
use crate::rl::RlError;
use crate::rl::advantage::Baseline;
use crate::rl::estimator::{Estimator, Ratios};
use crate::rl::gate::GateConfig;
use crate::rl::lanes::{Lane, LaneConfig};
use crate::rl::loss::{Clip, Kl, LossConfig};
use crate::rl::masks::MaskMode;
use crate::rl::policy::LoraConfig;
use crate::rl::preference::{DpoConfig, KtoConfig};
use crate::rl::update::{Bounds, UpdateConfig};

/// Rows of one micro-batch: few enough to stay in the cache.
const MICRO_ROWS: usize = 900;

/// When a candidate that passed the gate is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// When a person approves it.
    #[default]
    Approve,
    /// At once.
    Auto,
}

/// What stands for a completion's likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EstimatorKind {
    /// MaskGRPO, arXiv 2510.02880.
    #[default]
    MaskGrpo,
    /// diffu-GRPO, arXiv 2504.12216.
    DiffuGrpo,
    /// UniGRPO, arXiv 2505.15809.
    UniGrpo,
    /// coupled-GRPO, arXiv 2506.20639.
    CoupledGrpo,
    /// The completion's own way, arXiv 2509.06949.
    Trajectory,
    /// The completion's own way, at its least decided steps.
    Decisions,
}

/// What an update makes smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Clipped ratios weighted by advantages, with `estimator`, `epsilon` and `beta`.
    #[default]
    MaskGrpo,
    /// ELBO-KTO, arXiv 2510.23658: good and bad completions, each for itself. For ratings of singles.
    Kto,
    /// VRPO/DPO, arXiv 2505.19223: pairs of a preferred and a rejected completion of one prompt.
    Dpo,
}

impl LossKind {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaskGrpo => "maskgrpo",
            Self::Kto => "kto",
            Self::Dpo => "dpo",
        }
    }
}

/// What the policy must not leave without need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The version that a run starts from: each may go as far as the one before.
    #[default]
    Served,
    /// The base, without adapter: all versions together may go as far as one. `max_kl` then bounds them together.
    Base,
}

/// Settings of the losses on likelihood bounds: `kto` and `dpo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceConfig {
    /// Scale of the implicit reward: the smaller, the further the policy may go.
    pub beta: f64,
    /// KTO: weight of good completions.
    pub desired: f64,
    /// KTO: weight of bad ones.
    pub undesired: f64,
    /// DPO: weight of the preferred completions' own likelihood, which keeps it from falling along.
    pub sft: f64,
    /// Masked inputs of a bound.
    pub draws: u32,
}

impl Default for PreferenceConfig {
    fn default() -> Self {
        Self { beta: 0.1, desired: 1.0, undesired: 1.0, sft: 0.05, draws: 2 }
    }
}

/// `[training]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Learn at all.
    pub enabled: bool,
    /// Name of the adapter whose versions are trained.
    pub adapter: String,
    /// New judgements that start a run.
    pub min_samples: u64,
    /// Distinct subjects that they must come from.
    pub min_subjects: u64,
    /// Least time between the starts of two runs, seconds.
    pub min_interval_s: u64,
    /// Judgements read for one run.
    pub max_samples: u32,
    /// Lanes that are learned from.
    pub lanes: Vec<Lane>,
    /// Prompts regenerated in a run, and completions of each.
    pub regenerate: [u32; 2],
    /// Candidates go into service when they pass, or when a person approves them.
    pub promotion: Promotion,
    /// Share of the subjects that get a promoted version first; 0 serves everybody at once.
    pub canary_share: f64,
    /// Ratings of a canary, or of a new version, before it is judged by them.
    pub trial_ratings: u64,
    /// Metric by which a version in service is judged.
    pub trial_metric: String,
    /// Completions of one optimiser step.
    pub batch: usize,
    /// Passes over the samples of a run.
    pub epochs: u32,
    /// μ: inner steps on a batch.
    pub inner: u32,
    /// Learning rate.
    pub lr: f64,
    /// Versions after which the rate is half, and a third after twice as many: the adapter settles where noise would
    /// otherwise keep it moving. 0 never lowers it, for likes that change.
    pub settle: u32,
    /// What is made smaller.
    pub loss: LossKind,
    /// What the rewards of a group are compared with; singles have a running mean.
    pub baseline: Baseline,
    /// What the policy is compared with.
    pub reference: Reference,
    /// Settings of `loss = "kto"` and `loss = "dpo"`.
    pub preference: PreferenceConfig,
    /// Which likelihood.
    pub estimator: EstimatorKind,
    /// Smallest share of a text, and of an image, that is masked.
    pub gamma: [f64; 2],
    /// How the shares are laid out over inner steps.
    pub ratios: Ratios,
    /// Score completions as they were drawn, rather than by the conditional model: at the temperature of their tokens, and
    /// images also with their guidance.
    pub as_drawn: bool,
    /// Clip range.
    pub epsilon: f64,
    /// Weight of the penalty for leaving the reference.
    pub beta: f64,
    /// Largest gradient norm.
    pub max_grad_norm: f64,
    /// A run ends when its mean penalty exceeds this, nats a position.
    pub max_kl: f64,
    /// A run ends when the mean uncertainty (−log p of its own tokens) falls below this share of what it was.
    pub min_entropy_share: f64,
    /// Keep only what each layer was given, and compute the layers again for the gradient: less memory, about a third
    /// more time. Unset: for models of a billion parameters or more.
    pub checkpointing: Option<bool>,
    /// Threads.
    pub threads: usize,
    /// Share of one thread's time that learning takes while interactive requests are queued or running; while none is,
    /// it takes what it can get.
    pub busy_share: f64,
    /// Shape of a new adapter.
    pub lora: LoraConfig,
    /// Which completions may be learned from.
    pub data: LaneConfig,
    /// What a candidate must show.
    pub gate: GateConfig,
    /// Seed of masks, batches and regenerated completions.
    pub seed: u64,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            adapter: "main".to_owned(),
            min_samples: 256,
            min_subjects: 1,
            min_interval_s: 60,
            max_samples: 2048,
            lanes: vec![Lane::Groups, Lane::Singles],
            regenerate: [16, 8],
            promotion: Promotion::default(),
            canary_share: 0.0,
            trial_ratings: 100,
            trial_metric: "thumbs".to_owned(),
            batch: 96,
            epochs: 1,
            inner: 2,
            lr: 1e-3,
            settle: 0,
            loss: LossKind::default(),
            baseline: Baseline::default(),
            reference: Reference::default(),
            preference: PreferenceConfig::default(),
            estimator: EstimatorKind::default(),
            gamma: [0.3, 0.3],
            ratios: Ratios::default(),
            as_drawn: false,
            epsilon: 0.2,
            beta: 0.01,
            max_grad_norm: 1.0,
            max_kl: 1.0,
            min_entropy_share: 0.2,
            checkpointing: None,
            threads: 1,
            busy_share: 0.02,
            lora: LoraConfig::default(),
            data: LaneConfig::default(),
            gate: GateConfig::default(),
            seed: 1,
        }
    }
}

impl TrainingConfig {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// Names the field, the value and the bounds.
    pub fn validate(&self) -> Result<(), RlError> {
        let within = |field: &'static str, value: f64, low: f64, high: f64| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(RlError::invalid(field, format!("{value} is outside {low} to {high}"))),
        };
        within("training.min_samples", self.min_samples as f64, 1.0, 1e6)?;
        within("training.max_samples", f64::from(self.max_samples), 2.0, f64::from(crate::store::MAX_POOL))?;
        within("training.min_interval_s", self.min_interval_s as f64, 0.0, 1e7)?;
        within("training.canary_share", self.canary_share, 0.0, 1.0)?;
        within("training.batch", self.batch as f64, 2.0, 65_536.0)?;
        within("training.epochs", f64::from(self.epochs), 1.0, 64.0)?;
        within("training.inner", f64::from(self.inner), 1.0, 64.0)?;
        within("training.lr", self.lr, 0.0, 1.0)?;
        within("training.gamma", self.gamma[0].max(self.gamma[1]), 0.0, 0.999)?;
        within("training.gamma", self.gamma[0].min(self.gamma[1]), 0.0, 0.999)?;
        within("training.epsilon", self.epsilon, 0.0, 1.0)?;
        within("training.beta", self.beta, 0.0, 100.0)?;
        within("training.preference.beta", self.preference.beta, 1e-6, 100.0)?;
        within("training.preference.desired", self.preference.desired, 0.0, 100.0)?;
        within("training.preference.undesired", self.preference.undesired, 0.0, 100.0)?;
        within("training.preference.sft", self.preference.sft, 0.0, 100.0)?;
        within("training.preference.draws", f64::from(self.preference.draws), 1.0, 64.0)?;
        self.check_loss()?;
        within("training.threads", self.threads as f64, 1.0, 1024.0)?;
        within("training.busy_share", self.busy_share, 0.001, 1.0)?;
        within("training.lora.rank", self.lora.rank as f64, 1.0, 256.0)?;
        within("training.regenerate", f64::from(self.regenerate[1]), 2.0, 64.0)
    }

    /// Refuses a loss that none of the lanes could feed.
    fn check_loss(&self) -> Result<(), RlError> {
        let fed = self.lanes.iter().any(|lane| self.loss != LossKind::Dpo || *lane != Lane::Singles);
        if fed || self.lanes.is_empty() {
            return Ok(());
        }
        Err(RlError::invalid("training.lanes", "dpo learns from pairs; add \"groups\" or \"regenerated\" to singles"))
    }

    /// The loss on bounds, where one is chosen.
    #[must_use]
    pub fn bounds(&self) -> Option<Bounds> {
        let PreferenceConfig { beta, desired, undesired, sft, .. } = self.preference;
        match self.loss {
            LossKind::MaskGrpo => None,
            LossKind::Kto => Some(Bounds::Kto(KtoConfig { beta, desired, undesired })),
            LossKind::Dpo => Some(Bounds::Dpo(DpoConfig { beta, sft })),
        }
    }

    /// The learning rate of a run that starts from version number `version`.
    #[must_use]
    pub fn rate(&self, version: u64) -> f64 {
        let versions = if self.settle == 0 { 0.0 } else { version as f64 / f64::from(self.settle) };
        self.lr / (1.0 + versions)
    }

    /// The estimator of images or of texts.
    #[must_use]
    pub fn estimator(&self, image: bool) -> Estimator {
        let (gamma, ratios) = (self.gamma[usize::from(image)], self.ratios);
        match self.estimator {
            EstimatorKind::MaskGrpo => {
                let mode = if image { MaskMode::Random } else { MaskMode::ArLike };
                Estimator::MaskGrpo { mode, gamma, ratios }
            }
            EstimatorKind::Trajectory => Estimator::Trajectory,
            EstimatorKind::Decisions => Estimator::Decisions,
            EstimatorKind::DiffuGrpo => Estimator::DIFFU,
            EstimatorKind::UniGrpo => Estimator::UniGrpo,
            EstimatorKind::CoupledGrpo => Estimator::COUPLED,
        }
    }

    /// One update on images or on texts.
    #[must_use]
    pub fn update(&self, image: bool, seed: u64) -> UpdateConfig {
        UpdateConfig {
            estimator: self.estimator(image),
            loss: self.clipped(image),
            bounds: self.bounds(),
            draws: self.preference.draws,
            inner: self.inner,
            micro_rows: MICRO_ROWS,
            checkpointing: self.checkpointing.unwrap_or(false),
            max_drift: 0.05,
            behaviour_cap: 2.0,
            max_staleness: 0.7,
            seed,
        }
    }

    /// The optimiser of a policy.
    #[must_use]
    pub fn optimizer(&self) -> OptimConfig {
        OptimConfig { beta2: 0.99, weight_decay: 0.0, max_grad_norm: self.max_grad_norm, ..OptimConfig::default() }
    }

    /// Clip and penalty of images or of texts.
    #[must_use]
    pub fn clipped(&self, image: bool) -> LossConfig {
        LossConfig {
            eps_low: self.epsilon,
            eps_high: self.epsilon,
            beta: self.beta,
            kl: if image { Kl::K2 } else { Kl::K3 },
            // Codes of an image are improbable. A few inner steps can raise one that was disliked a thousandfold, and
            // PPO's clip, which leaves that side open, lets it outweigh the rest of the batch.
            clip: if image { Clip::Dual } else { Clip::Ppo },
            mean: self.estimator(image).mean(),
            ..LossConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::loss::{Segment, Terms, maskgrpo_loss};

    #[test]
    fn the_rate_settles_from_version_to_version() {
        let rates =
            |settle| [0, 6, 12].map(|version| TrainingConfig { lr: 6.0, settle, ..Default::default() }.rate(version));
        assert_eq!(rates(6), [6.0, 3.0, 2.0]);
        assert_eq!(rates(0), [6.0; 3]);
    }

    #[test]
    fn a_disliked_code_that_rose_does_not_outweigh_an_image() {
        let segments = [Segment { range: 0..2, advantage: -1.0, weight: 1.0, dropped: false }];
        let terms = Terms { new: &[-1.0, -1.0], old: &[-1.0, -8.0], reference: None, segments: &segments };
        let gradient = |image| {
            let config = TrainingConfig { beta: 0.0, ..Default::default() }.clipped(image);
            maskgrpo_loss(&terms, &config, None).unwrap().gradient
        };
        let (image, text) = (gradient(true), gradient(false));
        assert!(image[0] > 0.0 && image[1] == 0.0, "{image:?}");
        assert!(text[1] / text[0] > 1000.0, "as published: {text:?}");
    }

    #[test]
    fn learning_has_a_share_beside_people() {
        let refused = |busy_share| TrainingConfig { busy_share, ..Default::default() }.validate().err();
        assert!(refused(0.001).is_none() && refused(1.0).is_none());
        for share in [0.0, 1.01, f64::NAN] {
            let said = refused(share).map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains("training.busy_share") && said.contains("0.001 to 1"), "{said}");
        }
    }
}
