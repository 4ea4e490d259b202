//! `lacuna train --task`: rounds of practice with the base and the policy judged on held-out prompts before and after.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::{Value, json};

use super::TrainArgs;
use super::practice::{Practice, Update};
use crate::adapters::{VersionId, peft};
use crate::cli::demo::judge::Marks;
use crate::cli::demo::task::Task;
use crate::cli::host::{self, Host};
use crate::cli::{learning, term};
use crate::config::Config;
use crate::diffusion::rng::mix64;
use crate::engine::job::Priority;
use crate::rl::gate::Interval;
use crate::rl::policy::Policy;
use crate::rl::trainer::TrainingConfig;

/// Canvases that may be waiting: a whole evaluation.
const QUEUE: usize = 1 << 16;
/// Canvases that denoise at the same time.
const RUNNING: usize = 96;

/// What it came to.
#[derive(Debug, Serialize)]
struct Report {
    task: Task,
    seed: u64,
    training: TrainingConfig,
    sampling: Value,
    reward: [f64; 3],
    updates: Vec<Update>,
    /// At the served settings, and at those of `--judge-at`.
    judged: Vec<Judgement>,
    /// Seconds of sampling and of updates.
    sampling_s: f64,
    learning_s: f64,
}

/// The policy after some updates against the base, on the same prompts and seeds.
#[derive(Debug, Clone, Serialize)]
struct Judgement {
    after: usize,
    settings: Value,
    n: usize,
    /// Shares that are wanted, and correct.
    base: [f64; 2],
    policy: [f64; 2],
    gain: Interval,
    correctness: Interval,
}

/// Runs it and prints the report.
///
/// # Errors
/// When the model cannot be loaded, settings do not fit, or learning fails.
pub async fn run(task: Task, args: &TrainArgs, config: &Config) -> anyhow::Result<()> {
    let mut engine = config.engine.clone();
    (engine.max_queue, engine.max_running) = (QUEUE, RUNNING.max(engine.max_running));
    let host = tokio::task::spawn_blocking(move || host::start(&engine)).await??;
    let mut practice = Practice::new(task, &host, config.training.clone(), args.seed);
    (practice.prompts, practice.completions) = (args.prompts, args.completions);
    if let Some(sampling) = &args.sampling {
        practice.sampling = sampling.clone();
    }
    if let Some(reward) = args.reward {
        practice.reward = reward;
    }
    let report = Course { args, practice, host }.go().await?;
    if args.json {
        term::line(serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

struct Course<'a> {
    args: &'a TrainArgs,
    practice: Practice,
    host: Host,
}

impl Course<'_> {
    async fn go(&self) -> anyhow::Result<Report> {
        let (practice, total) = (&self.practice, self.args.updates);
        let mut learner = practice.learner(|| false)?;
        let settings: Vec<Value> = std::iter::once(json!({})).chain(self.args.judge_at.iter().cloned()).collect();
        let mut base = Vec::new();
        for settings in &settings {
            let marks = self.judge(&VersionId::base(), settings).await?;
            self.say(format!(
                "base at {settings}: {:.3}, as asked {:.3}",
                marks.success().share,
                marks.correctness().share
            ));
            base.push(marks);
        }
        let (mut updates, mut judged) = (Vec::new(), Vec::new());
        let (mut sampling, mut learning) = (Duration::ZERO, Duration::ZERO);
        for at in 0..total {
            let lr = practice.config.lr * (1.0 - self.args.decay * at as f64 / total.max(1) as f64);
            let update = practice.round(&mut learner, at, lr).await?;
            sampling += update.sampling;
            learning += update.learning;
            self.say(format!(
                "{:>3} of {total}  {}  {:.0} s + {:.0} s",
                at + 1,
                update,
                sampling.as_secs_f64(),
                learning.as_secs_f64()
            ));
            updates.push(update);
            if at + 1 == total || (self.args.eval_every > 0 && (at + 1).is_multiple_of(self.args.eval_every)) {
                let version = practice.publish(&learner.policy, at + 1)?;
                for (settings, base) in settings.iter().zip(&base) {
                    let marks = self.judge(&version, settings).await?;
                    judged.push(self.compare(at + 1, settings, base, &marks));
                }
            }
        }
        if let Some(folder) = &self.args.save {
            self.save(&learner.policy).with_context(|| format!("--save {}", folder.display()))?;
        }
        Ok(Report {
            task: practice.task,
            seed: self.args.seed,
            training: practice.config.clone(),
            sampling: practice.sampling.clone(),
            reward: practice.reward,
            updates,
            judged,
            sampling_s: sampling.as_secs_f64(),
            learning_s: learning.as_secs_f64(),
        })
    }

    fn say(&self, line: String) {
        if self.args.json { term::note(line) } else { term::line(line) }
    }

    /// `version` on the held-out prompts at `settings` over the served ones.
    async fn judge(&self, version: &VersionId, settings: &Value) -> anyhow::Result<Marks> {
        let (practice, seed) = (&self.practice, self.args.seed);
        let opinions = (0..self.args.eval_n as u64).map(|index| async move {
            let prompt = practice.task.prompt(seed, index, true);
            let asked = practice.asked(&prompt, settings)?;
            let seed = mix64(mix64(seed ^ 0x10D6E) ^ index);
            let made = asked.complete(&practice.engine, version, 1, seed, Priority::Batch).await?;
            practice.opinion(&prompt, made.first().context("no completion")?)
        });
        Ok(Marks { opinions: try_join_all(opinions).await? })
    }

    fn compare(&self, after: usize, settings: &Value, base: &Marks, marks: &Marks) -> Judgement {
        let shares = |marks: &Marks| [marks.success().share, marks.correctness().share];
        let gain = marks.gain(base, |opinion| opinion.wanted, self.args.seed);
        let correctness = marks.gain(base, |opinion| opinion.correct, self.args.seed);
        let judgement = Judgement {
            after,
            settings: settings.clone(),
            n: marks.opinions.len(),
            base: shares(base),
            policy: shares(marks),
            gain,
            correctness,
        };
        let points = |interval: &Interval| {
            let [low, high] = interval.ci95.map(|x| 100.0 * x);
            format!("{:+.1} points [{low:+.1}, {high:+.1}]", 100.0 * interval.mean)
        };
        self.say(format!(
            "after {after} at {settings}: {:.3} -> {:.3}, {}; as asked {:.3} -> {:.3}, {}",
            judgement.base[0],
            judgement.policy[0],
            points(&judgement.gain),
            judgement.base[1],
            judgement.policy[1],
            points(&judgement.correctness)
        ));
        judgement
    }

    /// As PEFT reads it.
    fn save(&self, policy: &Policy) -> anyhow::Result<()> {
        let Some(folder) = &self.args.save else { return Ok(()) };
        let base = learning::base(&self.host).context("this model takes no adapters")?;
        Ok(peft::write(&*policy.snapshot()?, &base)?.write_to(folder)?)
    }
}
