//! What the gate judges by: candidate and current version on the same held-out prompts with the same seeds.

use std::collections::HashSet;
use std::sync::Arc;

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

/// Where trials run.
pub(super) struct Bench<'a>(pub(super) &'a Parts);

impl Bench<'_> {
    /// Names of the guards, in the order of the trials'.
    pub(super) fn guards(&self) -> Vec<String> {
        self.0.guards.policy().parts.iter().map(|part| part.name.clone()).collect()
    }

    /// One trial per held-out prompt.
    ///
    /// # Errors
    /// When the store or the engine fails.
    pub(super) async fn trials(&self, candidate: &VersionId, current: &VersionId) -> Result<Vec<Trial>, RlError> {
        let gate = &self.0.config.gate;
        let one_in = self.0.config.data.hold_out_one_in.max(1);
        let wanted = u32::try_from(gate.prompts as u64 * one_in * 2).unwrap_or(u32::MAX).min(crate::store::MAX_POOL);
        let rows = self.0.store.prompts_with_feedback(wanted, self.0.config.seed).await?;
        let rows: Vec<_> =
            rows.into_iter().filter(|row| held_out(&row.prompt_ids, one_in)).take(gate.prompts).collect();
        let n = gate.each(rows.len());
        // More of one prompt, fewer prompts at once: what waits for its turn is no more.
        let at_once = (AT_ONCE * gate.completions as usize / n.max(1) as usize).max(1);
        // Side by side, so that they share forwards; in order, so that a verdict can be repeated.
        let trials = (0u64..).zip(rows).map(|(at, row)| self.trial(row, at, n, candidate, current));
        futures_util::stream::iter(trials)
            .buffered(at_once)
            .filter_map(|trial| async { trial.transpose() })
            .try_collect()
            .await
    }

    /// `n` completions of held-out prompt number `at` by both versions; `None` when it cannot be asked again.
    async fn trial(
        &self,
        row: CompletionRow,
        at: u64,
        n: u32,
        candidate: &VersionId,
        current: &VersionId,
    ) -> Result<Option<Trial>, RlError> {
        let Ok(asked) = Asked::of(&row) else { return Ok(None) };
        let seed = mix64(self.0.config.seed ^ 0x6A7E ^ at);
        let (new, old) = tokio::try_join!(
            self.complete(&row, &asked, n, candidate, seed),
            self.complete(&row, &asked, n, current, seed)
        )?;
        let reward = match (self.rewards(&new.0).await, self.rewards(&old.0).await) {
            (Some(new), Some(old)) => Some((new, old)),
            _ => None,
        };
        let guards = self.guard_scores(&new.0).await.into_iter().zip(self.guard_scores(&old.0).await);
        let guards = guards.map(|(new, old)| Some((new?, old?))).collect();
        Ok(Some(Trial { reward, guards, distinct: (new.1, old.1) }))
    }

    /// `n` completions of a prompt by one version, and how many of them are distinct.
    async fn complete(
        &self,
        row: &CompletionRow,
        asked: &Asked,
        n: u32,
        version: &VersionId,
        seed: u64,
    ) -> Result<(GroupInput, usize), RlError> {
        let finished = asked.complete(&self.0.engine, version, n, seed, Priority::Rollout).await?;
        let distinct: HashSet<&[u32]> = finished.iter().map(|one| one.tokens.as_slice()).collect();
        let distinct = distinct.len();
        let mut input = group_input(uuid::Uuid::now_v7(), &row.prompt, row.kind);
        let model = self.0.engine.model();
        input.samples =
            finished.iter().map(|one| fresh_input(model, &asked.task, one, version, &row.metadata)).collect();
        Ok((input, distinct))
    }

    /// Mean score of what can score fresh completions; `None` when only people can.
    async fn rewards(&self, input: &GroupInput) -> Option<f64> {
        let scores = self.0.rewards.scores(vec![input.clone()]).await;
        let parts =
            self.0.rewards.policy().parts.iter().zip(&scores).filter(|(part, _)| !part.user && part.gate.is_none());
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
        self.0.guards.scores(vec![input.clone()]).await.iter().map(mean).collect()
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
