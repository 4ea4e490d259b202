//! What the gate judges by: candidate and current version on the same held-out prompts with the same seeds.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::Parts;
use super::config::TrainingConfig;
use super::data::{AT_ONCE, fresh_input, group_input};
use crate::adapters::VersionId;
use crate::diffusion::rng::mix64;
use crate::engine::job::{Finished, Priority};
use crate::models::lora::Lora;
use crate::rl::RlError;
use crate::rl::estimator::Step;
use crate::rl::gate::Trial;
use crate::rl::lanes::held_out;
use crate::rl::logprob::Sample;
use crate::rl::reward::GroupInput;
use crate::rl::rollout::Asked;
use crate::rl::update::{Judged, Workshop};
use crate::store::CompletionRow;

/// Rows of a forward here.
const ROWS: usize = 1024;
/// Completions scored at once: a moment beside people who wait.
const SCORED: usize = 8;

/// What completions were made of. The same of this makes the same again.
#[derive(PartialEq)]
struct Recipe {
    version: VersionId,
    asked: Asked,
    n: u32,
    seed: u64,
}

/// What versions made at the last gate: a candidate that went into service is the current version of the next one, and a
/// current version often stays it.
#[derive(Default)]
pub(super) struct Past(Mutex<Vec<(Recipe, Arc<[Finished]>)>>);

impl Past {
    fn find(&self, recipe: &Recipe) -> Option<Arc<[Finished]>> {
        let past = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        past.iter().find(|(known, _)| known == recipe).map(|(_, made)| Arc::clone(made))
    }

    fn keep(&self, recipe: Recipe, made: Arc<[Finished]>) {
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
        let recipe = |version: &VersionId| Recipe { version: version.clone(), asked: asked.clone(), n, seed };
        let (new, old) = tokio::try_join!(self.make(recipe(candidate)), self.make(recipe(current)))?;
        let distinct = |made: &[Finished]| made.iter().map(|one| &one.tokens).collect::<HashSet<_>>().len();
        let distinct = (distinct(&new), distinct(&old));
        let model = self.parts.engine.model();
        let input = |made: &[Finished], version| {
            let mut input = group_input(uuid::Uuid::now_v7(), &row.prompt, row.kind);
            input.samples =
                made.iter().map(|one| fresh_input(model, &asked.task, one, version, &row.metadata)).collect();
            input
        };
        let (new, old) = (input(&new, candidate), input(&old, current));
        let reward = match (self.rewards(&new).await, self.rewards(&old).await) {
            (Some(new), Some(old)) => Some((new, old)),
            _ => None,
        };
        let guards = self.guard_scores(&new).await.into_iter().zip(self.guard_scores(&old).await);
        let guards = guards.map(|(new, old)| Some((new?, old?))).collect();
        Ok(Some(Trial { reward, guards, distinct }))
    }

    /// What a recipe makes: what it made at the last gate, or new completions.
    async fn make(&self, recipe: Recipe) -> Result<Arc<[Finished]>, RlError> {
        if let Some(made) = self.past.find(&recipe) {
            return Ok(made);
        }
        let Recipe { version, asked, n, seed } = &recipe;
        let made = asked.complete(&self.parts.engine, version, *n, *seed, Priority::Rollout).await?;
        let made: Arc<[Finished]> = made.into();
        self.past.keep(recipe, Arc::clone(&made));
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
        let score = |adapter| workshop.logprobs(adapter, &step, ROWS);
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
    use super::*;
    use crate::diffusion::params::{ImageSampler, Schedule};
    use crate::engine::job::{ImageParams, Prompt, Task};

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
        Recipe { version: version.parse().unwrap(), asked, n: 2, seed }
    }

    #[test]
    fn what_the_current_version_made_is_found_again_and_nothing_else() {
        let past = Past::default();
        let [one, two]: [Arc<[Finished]>; 2] = [Arc::new([]), Arc::new([])];
        past.keep(recipe("main@1", "a", 1), Arc::clone(&one));
        past.keep(recipe("main@2", "a", 1), Arc::clone(&two));
        let is = |recipe: Recipe, made: &Arc<_>| past.find(&recipe).is_some_and(|found| Arc::ptr_eq(&found, made));
        assert!(is(recipe("main@1", "a", 1), &one) && is(recipe("main@2", "a", 1), &two));
        let others = [recipe("main@2", "b", 1), recipe("main@2", "a", 2), Recipe { n: 3, ..recipe("main@2", "a", 1) }];
        assert!(others.iter().all(|other| past.find(other).is_none()));
        past.keep_only(&"main@2".parse().unwrap());
        assert!(past.find(&recipe("main@1", "a", 1)).is_none() && is(recipe("main@2", "a", 1), &two));
    }
}
