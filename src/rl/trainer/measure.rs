//! What the gate judges by: candidate and current version on the same held-out prompts with the same seeds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::Parts;
use super::config::TrainingConfig;
use super::data::{AT_ONCE, fresh_input, group_input};
use crate::adapters::VersionId;
use crate::diffusion::rng::mix64;
use crate::engine::job::Priority;
use crate::models::lora::Lora;
use crate::rl::RlError;
use crate::rl::estimator::Step;
use crate::rl::gate::Trial;
use crate::rl::lanes::held_out;
use crate::rl::logprob::{Sample, logprobs};
use crate::rl::reward::GroupInput;
use crate::rl::rollout::Asked;
use crate::rl::update::{Judged, Workshop};
use crate::store::CompletionRow;

/// Rows of a forward here.
const ROWS: usize = 1024;
/// Completions scored at once: a moment beside people who wait.
const SCORED: usize = 8;

/// Completions of a held-out prompt by one version.
#[derive(Clone)]
struct Made {
    input: GroupInput,
    /// How many of them are distinct.
    distinct: usize,
}

/// What they were made of. The same of this makes the same again.
#[derive(PartialEq)]
struct Recipe {
    version: VersionId,
    asked: Asked,
    /// What the log says of the prompt, which hooks may look at.
    metadata: serde_json::Value,
    n: u32,
    seed: u64,
}

/// What versions made at the last gate: a candidate that went into service is the current version of the next one, and a
/// current version often stays it.
#[derive(Default)]
pub(super) struct Past(Mutex<Vec<(Recipe, Made)>>);

impl Past {
    fn find(&self, recipe: &Recipe) -> Option<Made> {
        let past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.iter().find(|(known, _)| known == recipe).map(|(_, made)| made.clone())
    }

    fn keep(&self, recipe: Recipe, made: Made) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((recipe, made));
    }

    fn keep_only(&self, version: &VersionId) {
        let mut past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|(recipe, _)| recipe.version == *version);
    }
}

/// Where trials run.
pub(super) struct Bench<'a> {
    pub(super) parts: &'a Parts,
    pub(super) past: &'a Past,
}

impl Bench<'_> {
    /// Names of the guards, in the order of the trials'.
    pub(super) fn guards(&self) -> Vec<String> {
        self.parts.guards.policy().parts.iter().map(|part| part.name.clone()).collect()
    }

    /// One trial per held-out prompt.
    ///
    /// # Errors
    /// When the store or the engine fails.
    pub(super) async fn trials(&self, candidate: &VersionId, current: &VersionId) -> Result<Vec<Trial>, RlError> {
        let gate = &self.parts.config.gate;
        let one_in = self.parts.config.data.hold_out_one_in.max(1);
        let wanted = u32::try_from(gate.prompts as u64 * one_in * 2).unwrap_or(u32::MAX).min(crate::store::MAX_POOL);
        let rows = self.parts.store.prompts_with_feedback(wanted, self.parts.config.seed).await?;
        let rows: Vec<_> =
            rows.into_iter().filter(|row| held_out(&row.prompt_ids, one_in)).take(gate.prompts).collect();
        let n = gate.each(rows.len());
        // More of one prompt, fewer prompts at once: what waits for its turn is no more.
        let at_once = (AT_ONCE * gate.completions as usize / n.max(1) as usize).max(1);
        self.past.keep_only(current);
        // Side by side, so that they share forwards; in order, so that a verdict can be repeated.
        let trials = rows.into_iter().map(|row| self.trial(row, n, candidate, current));
        futures_util::stream::iter(trials)
            .buffered(at_once)
            .filter_map(|trial| async { trial.transpose() })
            .try_collect()
            .await
    }

    /// `n` completions of a held-out prompt by both versions; `None` when it cannot be asked again.
    async fn trial(
        &self,
        row: CompletionRow,
        n: u32,
        candidate: &VersionId,
        current: &VersionId,
    ) -> Result<Option<Trial>, RlError> {
        let Ok(asked) = Asked::of(&row) else { return Ok(None) };
        // The prompt's own, wherever it comes among the others.
        let seed = row.prompt_ids.iter().fold(self.parts.config.seed ^ 0x6A7E, |seed, &id| mix64(seed ^ u64::from(id)));
        let recipe = |version: &VersionId| Recipe {
            version: version.clone(),
            asked: asked.clone(),
            metadata: row.metadata.clone(),
            n,
            seed,
        };
        let (new, old) = tokio::try_join!(self.make(&row, recipe(candidate)), self.make(&row, recipe(current)))?;
        let reward = match (self.rewards(&new.input).await, self.rewards(&old.input).await) {
            (Some(new), Some(old)) => Some((new, old)),
            _ => None,
        };
        let guards = self.guard_scores(&new.input).await.into_iter().zip(self.guard_scores(&old.input).await);
        let guards = guards.map(|(new, old)| Some((new?, old?))).collect();
        Ok(Some(Trial { reward, guards, distinct: (new.distinct, old.distinct) }))
    }

    /// What a recipe makes of the prompt of `row`.
    async fn make(&self, row: &CompletionRow, recipe: Recipe) -> Result<Made, RlError> {
        if let Some(made) = self.past.find(&recipe) {
            return Ok(made);
        }
        let Recipe { version, asked, metadata, n, seed } = &recipe;
        let finished = asked.complete(&self.parts.engine, version, *n, *seed, Priority::Rollout).await?;
        let distinct: HashSet<&[u32]> = finished.iter().map(|one| one.tokens.as_slice()).collect();
        let mut input = group_input(uuid::Uuid::now_v7(), &row.prompt, row.kind);
        let model = self.parts.engine.model();
        input.samples = finished.iter().map(|one| fresh_input(model, &asked.task, one, version, metadata)).collect();
        let made = Made { input, distinct: distinct.len() };
        self.past.keep(recipe, made.clone());
        Ok(made)
    }

    /// Mean score of what can score fresh completions; `None` when only people can.
    async fn rewards(&self, input: &GroupInput) -> Option<f64> {
        let scores = self.parts.rewards.scores(vec![input.clone()]).await;
        let parts =
            self.parts.rewards.policy().parts.iter().zip(&scores).filter(|(part, _)| !part.user && part.gate.is_none());
        let (mut sum, mut weight) = (0.0, 0.0);
        for (part, groups) in parts {
            for score in groups.iter().flatten().filter_map(|score| score.as_ref().ok().copied().flatten()) {
                sum += part.weight * score;
                weight += part.weight;
            }
        }
        (weight > 0.0).then(|| sum / weight)
    }

    async fn guard_scores(&self, input: &GroupInput) -> Vec<Option<f64>> {
        let mean = |groups: &Vec<Vec<_>>| {
            let known: Vec<f64> = groups
                .iter()
                .flatten()
                .filter_map(|s: &crate::rl::reward::Score| s.as_ref().ok().copied().flatten())
                .collect();
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
        };
        self.parts.guards.scores(vec![input.clone()]).await.iter().map(mean).collect()
    }
}

/// On held-out ratings: how much more the candidate favours what was liked (mean of A · Δ log p over each completion's
/// scored positions), and the candidate's KL from the current version on them, nats a position.
///
/// # Errors
/// When the device fails.
pub(super) fn agreement(
    workshop: &Workshop,
    candidate: &Arc<Lora>,
    current: Option<&Arc<Lora>>,
    judged: &[Judged],
    config: &TrainingConfig,
) -> Result<(Vec<f64>, f64), RlError> {
    let (mut out, mut kl, mut tokens) = (Vec::with_capacity(judged.len()), 0.0, 0);
    let codes = workshop.model.spec().image.as_ref().map(|image| image.codes.start);
    for judged in judged.chunks(SCORED) {
        let samples: Vec<Sample> = judged.iter().map(|one| one.sample.clone()).collect();
        let image = samples.first().is_some_and(|sample| Some(sample.vocab.start) == codes);
        let step = Step::draw(&config.estimator(image), &samples, config.seed ^ 0xA97E, 1, 0)?;
        let views = step.views();
        let score = |adapter| -> Result<Vec<f64>, RlError> {
            // A verdict in progress is reached even when the run is told to stop.
            workshop.pace.turn();
            let scores = || workshop.paced(|| logprobs(&*workshop.model, adapter, &views, ROWS));
            Ok(step.gather(&workshop.pool.install(scores)?))
        };
        let (new, old) = (score(Some(candidate))?, score(current)?);
        for (one, range) in judged.iter().zip(step.segments()) {
            let n = range.len().max(1) as f64;
            let gap = range.clone().map(|i| new[i] - old[i]).sum::<f64>() / n;
            out.push(one.advantage * gap);
        }
        // k3 on tokens of the current version: exp(new − old) − (new − old) − 1, here as KL(current ‖ candidate).
        kl += new.iter().zip(&old).map(|(n, o)| (n - o).clamp(-20.0, 20.0)).map(|d| d.exp() - d - 1.0).sum::<f64>();
        tokens += new.len();
    }
    Ok((out, kl / tokens.max(1) as f64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::diffusion::params::{ImageSampler, Schedule};
    use crate::engine::job::{ImageParams, Prompt, Task};
    use crate::store::Kind;

    fn recipe(version: &str, prompt: &str, seed: u64) -> Recipe {
        let task = Task::Image(ImageParams {
            steps: 16,
            guidance_scale: 1.0,
            schedule: Schedule::Cosine,
            temperature: 1.0,
            token_temperature: None,
            sampler: ImageSampler::Emerge,
            grid: (8, 8),
            initial_codes: Vec::new(),
            preview_every: 0,
        });
        let asked = Asked { prompt: Prompt::Text(prompt.to_owned()), negative: None, task };
        Recipe { version: version.parse().unwrap(), asked, metadata: serde_json::Value::Null, n: 2, seed }
    }

    #[test]
    fn what_the_current_version_made_is_found_again_and_nothing_else() {
        let past = Past::default();
        let made = |distinct| Made { input: group_input(uuid::Uuid::nil(), &None, Kind::Text), distinct };
        past.keep(recipe("main@1", "a", 1), made(1));
        past.keep(recipe("main@2", "a", 1), made(2));
        let found = |recipe: &Recipe| past.find(recipe).map(|made| made.distinct);
        assert_eq!([found(&recipe("main@1", "a", 1)), found(&recipe("main@2", "a", 1))], [Some(1), Some(2)]);
        let others = [
            recipe("main@2", "b", 1),
            recipe("main@2", "a", 2),
            Recipe { n: 3, ..recipe("main@2", "a", 1) },
            Recipe { metadata: json!({ "answer": 4 }), ..recipe("main@2", "a", 1) },
        ];
        assert!(others.iter().all(|other| found(other).is_none()));
        past.keep_only(&"main@2".parse().unwrap());
        assert_eq!([found(&recipe("main@1", "a", 1)), found(&recipe("main@2", "a", 1))], [None, Some(2)]);
    }
}
