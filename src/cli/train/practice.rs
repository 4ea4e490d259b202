//! Practice: sample, judge, update, again, in this process. The same rollouts, estimators and updates as the server's
//! trainer, without its log, gate and crowd, so that a number says something of the method alone.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use candle_core::Device;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::Value;

use crate::adapters::{Adapter, Routes, VersionId};
use crate::api::defaults::Defaults;
use crate::cli::demo::judge::Marks;
use crate::cli::demo::task::{Opinion, Prompt, Task};
use crate::cli::host::Host;
use crate::cli::settings::overlaid;
use crate::diffusion::rng::mix64;
use crate::engine::job::{self, Finished, ImageParams, Priority, TextParams};
use crate::engine::{Engine, Serving};
use crate::rl::advantage::group;
use crate::rl::logprob::Sample;
use crate::rl::policy::Policy;
use crate::rl::rollout::{Asked, as_drawn, sample_of};
use crate::rl::trainer::{Duty, TrainingConfig, learning_threads};
use crate::rl::update::{Judged, UpdateReport, Workshop, update};
use crate::starter::scenes::Codec;

/// What is practised, and how.
pub struct Practice {
    /// Prompts and what people want of them.
    pub task: Task,
    /// Estimator, loss, rates.
    pub config: TrainingConfig,
    /// Completes prompts.
    pub engine: Engine,
    /// Prompts of an update.
    pub prompts: usize,
    /// Completions of each.
    pub completions: u32,
    /// Fields of their requests.
    pub sampling: Value,
    /// Weights of what is wanted, what is right, and of partial credit.
    pub reward: [f64; 3],
    seed: u64,
    device: Device,
    codec: Codec,
}

/// What learns.
pub struct Learner {
    /// The adapter.
    pub policy: Policy,
    workshop: Workshop,
}

/// One update.
#[derive(Debug, Serialize)]
pub struct Update {
    /// Share of its completions that people want.
    pub wanted: f64,
    /// Share that is what was asked for.
    pub correct: f64,
    /// Groups without a difference to learn from.
    pub even: usize,
    /// What the update did.
    pub report: UpdateReport,
    /// Time of the completions.
    #[serde(skip)]
    pub sampling: Duration,
    /// Time of the update.
    #[serde(skip)]
    pub learning: Duration,
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UpdateReport { kl, clip_fraction, grad_norm, .. } = self.report;
        let Self { wanted, correct, even, .. } = self;
        write!(f, "wanted {wanted:.3}  as asked {correct:.3}  even {even:>2}  kl {kl:.4}  ")?;
        write!(f, "clipped {clip_fraction:.3}  norm {grad_norm:.3}")
    }
}

impl Practice {
    /// As the demo learns `task`: 24 prompts with 8 completions an update.
    #[must_use]
    pub fn new(task: Task, host: &Host, config: TrainingConfig, seed: u64) -> Self {
        let (engine, device) = (host.engine.clone(), host.device_handle.clone());
        let (sampling, reward) = (task.asked(), task.weights());
        Self { task, config, engine, prompts: 24, completions: 8, sampling, reward, seed, device, codec: Codec::new() }
    }

    /// A policy that changes nothing yet, whose updates end when `stop` returns true.
    ///
    /// # Errors
    /// When the model cannot learn.
    pub fn learner(&self, stop: impl Fn() -> bool + Send + Sync + 'static) -> anyhow::Result<Learner> {
        let (model, config) = (self.engine.model(), &self.config);
        let shape = model.backbone.adaptable().context("this model takes no adapters")?;
        let policy = Policy::fresh(shape, &config.lora, config.optimizer(), config.seed, &self.device)?;
        let model = model.backbone.for_learning().context("this model cannot learn")?;
        Ok(Learner {
            policy,
            workshop: Workshop {
                model,
                pool: learning_threads(config.threads)?,
                pace: Arc::new(Duty::new(self.engine.clone(), config.busy_share, stop)),
            },
        })
    }

    /// Completions of round `at` by the policy as it is, and an update on them with rate `lr`.
    ///
    /// # Errors
    /// When settings do not fit, or the device fails.
    pub async fn round(&self, learner: &mut Learner, at: usize, lr: f64) -> anyhow::Result<Update> {
        let begun = Instant::now();
        let version = self.publish(&learner.policy, at)?;
        let (batch, mut done) = self.sample(&version, at).await?;
        done.sampling = begun.elapsed();
        let begun = Instant::now();
        if !batch.is_empty() {
            let settings = self.config.update(self.task.draws(), mix64(self.config.seed ^ mix64(at as u64)));
            let Learner { policy, workshop } = learner;
            // The penalty pulls to the base: nothing is served in between that it could pull to.
            done.report = tokio::task::block_in_place(|| update(workshop, policy, None, &batch, &settings, lr))?;
        }
        done.learning = begun.elapsed();
        Ok(done)
    }

    /// Makes the policy after `at` updates something that can be asked for.
    ///
    /// # Errors
    /// When the device fails.
    pub fn publish(&self, policy: &Policy, at: usize) -> anyhow::Result<VersionId> {
        let id = VersionId::new("practice", at as u64 + 1)?;
        let adapter = Adapter { id: id.clone(), lora: Some(policy.snapshot()?), manifest: None };
        self.engine.publish(Serving::new(Routes::default(), [Arc::new(adapter)])?);
        Ok(id)
    }

    /// Completions of this update's prompts with their advantages, on-policy.
    async fn sample(&self, version: &VersionId, at: usize) -> anyhow::Result<(Vec<Judged>, Update)> {
        let model = self.engine.model();
        let first = (at * self.prompts) as u64;
        let asked = (first..first + self.prompts as u64).map(|index| async move {
            let prompt = self.task.prompt(self.seed, index, false);
            let asked = self.asked(&prompt, &self.sampling)?;
            let seed = mix64(self.seed ^ mix64(index));
            let made = asked.complete(&self.engine, version, self.completions, seed, Priority::Rollout).await?;
            anyhow::Ok((seed, prompt, asked, made))
        });
        let (mut batch, mut opinions) = (Vec::new(), Vec::new());
        let mut even = 0;
        for (seed, prompt, asked, made) in try_join_all(asked).await? {
            let seen = made.iter().map(|one| self.opinion(&prompt, one)).collect::<anyhow::Result<Vec<_>>>()?;
            let rewards: Vec<f64> = seen.iter().map(|opinion| self.worth(*opinion)).collect();
            let before = batch.len();
            for ((number, one), advantage) in (0..).zip(&made).zip(group(&rewards, self.config.baseline)) {
                let Ok(advantage) = advantage else { continue };
                // Completions get another id in every run; with one of the seed's they are masked alike.
                let sample = Sample { id: mix64(seed ^ number), ..sample_of(model, &asked.task, one)? };
                let sample = if self.config.as_drawn { as_drawn(model, &asked, sample)? } else { sample };
                batch.push(Judged { sample, advantage, weight: 1.0, behaviour: None });
            }
            even += usize::from(batch.len() == before);
            opinions.extend(seen);
        }
        let marks = Marks { opinions };
        let (wanted, correct) = (marks.success().share, marks.correctness().share);
        Ok((
            batch,
            Update {
                wanted,
                correct,
                even,
                report: UpdateReport::default(),
                sampling: Duration::ZERO,
                learning: Duration::ZERO,
            },
        ))
    }

    /// A request: `settings` over what a request gets that does not say.
    ///
    /// # Errors
    /// When a setting has no meaning.
    pub fn asked(&self, prompt: &Prompt, settings: &Value) -> anyhow::Result<Asked> {
        let defaults = Defaults::default();
        let mut settings = settings.clone();
        // How many it completes is its own business.
        settings.as_object_mut().and_then(|settings| settings.remove("n"));
        let task = if self.task.draws() {
            let grid = self.engine.spec().image.as_ref().context("this model draws nothing")?.grid;
            let mut params: ImageParams = overlaid(&defaults.image.params(grid), &settings)?;
            if settings.get("token_temperature").is_none() {
                params.token_temperature = defaults.image.token_temperature(params.sampler, params.temperature);
            }
            job::Task::Image(params)
        } else {
            job::Task::Text(overlaid::<TextParams>(&defaults.text.params(), &settings)?)
        };
        Ok(Asked { prompt: job::Prompt::Text(prompt.text().to_owned()), negative: None, task })
    }

    /// What somebody who looks closely thinks of it.
    ///
    /// # Errors
    /// When the codes are no picture.
    pub fn opinion(&self, prompt: &Prompt, made: &Finished) -> anyhow::Result<Opinion> {
        let codes: Vec<u16> = made.tokens.iter().map(|&code| code as u16).collect();
        self.task.opinion(&self.codec, prompt, &codes, &made.text)
    }

    fn worth(&self, opinion: Opinion) -> f64 {
        let number = |value: bool| f64::from(u8::from(value));
        let parts = [number(opinion.liked()), number(opinion.correct), opinion.soft];
        parts.iter().zip(&self.reward).map(|(part, weight)| part * weight).sum()
    }
}
