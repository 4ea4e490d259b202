//! Several hooks' scores as one reward per sample. Pure.
//!
//! Missing scores are never zeros: whatever leaves a sample without a reward has a reason, and every reason is
//! counted. A hook that does not apply to a sample is neutral: the sample has the mean of the hook's scores in its
//! group, and a hook that applies to no sample of a group is left out of that group.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HookError, Score};

/// Below this, a hook's scores in a group do not differ.
const SAME: f64 = 1e-6;
/// Keeps the quotient by a small deviation bounded, as in the advantages of MaskGRPO.
const EPSILON: f64 = 1e-5;
/// Samples with a reward that a group needs.
const LEAST: usize = 2;

/// How several scores become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Every hook's scores are standardised in their group; the reward is their weighted mean. Scales do not matter.
    #[default]
    NormalizeThenSum,
    /// The weighted mean of the scores as they are; the advantage standardises it.
    SumThenNormalize,
}

/// What becomes of a sample that a hook could not score.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OnMissing {
    /// It has no reward.
    #[default]
    SkipSample,
    /// Its group has no rewards.
    SkipGroup,
    /// As if the hook did not apply to it.
    Neutral,
    /// It has this score.
    Default(f64),
    /// The run ends.
    FailRun,
}

impl TryFrom<String> for OnMissing {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let value = || text.strip_prefix("default(")?.strip_suffix(')')?.trim().parse().ok();
        Ok(match text.as_str() {
            "skip_sample" => Self::SkipSample,
            "skip_group" => Self::SkipGroup,
            "neutral" => Self::Neutral,
            "fail_run" => Self::FailRun,
            _ => Self::Default(value().filter(|v: &f64| v.is_finite()).ok_or_else(|| {
                format!("{text:?} is none of skip_sample, skip_group, neutral, default(NUMBER), fail_run")
            })?),
        })
    }
}

impl From<OnMissing> for String {
    fn from(on_missing: OnMissing) -> Self {
        match on_missing {
            OnMissing::SkipSample => "skip_sample".to_owned(),
            OnMissing::SkipGroup => "skip_group".to_owned(),
            OnMissing::Neutral => "neutral".to_owned(),
            OnMissing::FailRun => "fail_run".to_owned(),
            OnMissing::Default(value) => format!("default({value})"),
        }
    }
}

/// A gate's bound and what failing it is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Least score that passes.
    pub least: f64,
    /// Reward of what does not pass, or less: see [`combine`].
    pub fail_reward: f64,
}

/// How one hook takes part.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The hook's name.
    pub name: String,
    /// Its weight; gates have none.
    pub weight: f64,
    /// Whether it is a gate.
    pub gate: Option<Gate>,
    /// What becomes of samples that it could not score.
    pub on_missing: OnMissing,
    /// Whether too few scores of it end the run.
    pub required: bool,
    /// Whether it is people's feedback.
    pub user: bool,
}

/// How all hooks' scores become one.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Standardise first, or sum first.
    pub aggregate: Aggregate,
    /// Largest share of a group's weight that feedback has.
    pub user_weight_cap: f64,
    /// Whether feedback may decide alone.
    pub allow_user_only: bool,
    /// Least share of samples that a required hook must score.
    pub min_scored_fraction: f64,
    /// The hooks.
    pub parts: Vec<Part>,
}

/// Why a sample has no reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// A hook could not score it.
    Missing,
    /// A hook could not score another of its group, and asks for all or none.
    GroupMissing,
    /// No hook applies to it.
    NotApplicable,
    /// Only feedback has scores in its group, and may not decide alone.
    UserOnly,
    /// Its group has fewer than two samples with rewards; `raw` is still there for what learns from singles.
    SmallGroup,
}

impl Skip {
    /// The class, for a metric's label.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::GroupMissing => "group_missing",
            Self::NotApplicable => "not_applicable",
            Self::UserOnly => "user_only",
            Self::SmallGroup => "small_group",
        }
    }
}

/// One sample's reward and where it comes from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reward {
    /// The reward, to be compared within the group; `None` with a reason in `skip`.
    pub reward: Option<f64>,
    /// The weighted mean of the scores as they are. With the same hooks it means the same in every group.
    pub raw: Option<f64>,
    /// Why there is no reward.
    pub skip: Option<Skip>,
    /// Whether a gate failed it.
    pub gated: bool,
    /// Every hook's own score, in the order of the parts; `None` where it has none.
    pub parts: Vec<Option<f64>>,
}

/// What happened, for metrics and `GET /training`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Samples seen.
    pub samples: usize,
    /// Samples with a reward.
    pub rewarded: usize,
    /// Samples that a gate failed.
    pub gated: usize,
    /// Samples without a reward, by reason.
    pub skipped: BTreeMap<Skip, usize>,
    /// Scores that could not be had, by hook and [`HookError::reason`].
    pub errors: BTreeMap<(String, &'static str), usize>,
}

/// All rewards, in the order of groups and samples.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Combined {
    /// One list per group.
    pub groups: Vec<Vec<Reward>>,
    /// What happened.
    pub counts: Counts,
}

/// Why a run has to end.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// A hook whose `on_missing` is `fail_run` could not score a sample.
    #[error("hook {hook} could not score a sample ({error}) and on_missing = \"fail_run\"")]
    Missing {
        /// The hook.
        hook: String,
        /// What went wrong.
        error: HookError,
    },
    /// A required hook scored too few samples: what is left would be biased.
    #[error("hook {hook} scored {scored} of {asked} samples; at least {least} are required")]
    TooFew {
        /// The hook.
        hook: String,
        /// Samples it scored.
        scored: usize,
        /// Samples it applies to.
        asked: usize,
        /// The share wanted.
        least: f64,
    },
}

/// Combines `scores[hook][group][sample]`; every hook has a score for every sample. A sample that fails a gate has the
/// gate's reward, or the least reward of its group's passing samples if that is less: failing a gate never pays.
///
/// # Errors
/// When a hook's configuration says that the run must not go on.
pub fn combine(policy: &Policy, scores: &[Vec<Vec<Score>>]) -> Result<Combined, RunError> {
    let mut combined = Combined::default();
    for (part, of_part) in policy.parts.iter().zip(scores) {
        survey(part, of_part.iter().flatten(), policy.min_scored_fraction, &mut combined.counts)?;
    }
    for g in 0..scores.first().map_or(0, Vec::len) {
        let of_group: Vec<&[Score]> = scores.iter().map(|of_part| of_part[g].as_slice()).collect();
        let rewards = group(policy, &of_group);
        for reward in &rewards {
            combined.counts.samples += 1;
            combined.counts.rewarded += usize::from(reward.reward.is_some());
            combined.counts.gated += usize::from(reward.gated);
            if let Some(skip) = reward.skip {
                *combined.counts.skipped.entry(skip).or_default() += 1;
            }
        }
        combined.groups.push(rewards);
    }
    Ok(combined)
}

/// Counts a hook's errors and ends the run if they are too many.
fn survey<'a>(
    part: &Part,
    scores: impl Iterator<Item = &'a Score>,
    least: f64,
    counts: &mut Counts,
) -> Result<(), RunError> {
    let (mut scored, mut asked) = (0, 0);
    for score in scores {
        match score {
            Ok(None) => continue,
            Ok(Some(_)) => scored += 1,
            Err(error) if part.on_missing == OnMissing::FailRun => {
                return Err(RunError::Missing { hook: part.name.clone(), error: error.clone() });
            }
            Err(error) => *counts.errors.entry((part.name.clone(), error.reason())).or_default() += 1,
        }
        asked += 1;
    }
    if part.required && (scored as f64) < least * asked as f64 {
        return Err(RunError::TooFew { hook: part.name.clone(), scored, asked, least });
    }
    Ok(())
}

/// Rewards of one group from `scores[hook][sample]`.
fn group(policy: &Policy, scores: &[&[Score]]) -> Vec<Reward> {
    let n = scores.first().map_or(0, |of_hook| of_hook.len());
    let mut rewards: Vec<Reward> = (0..n)
        .map(|s| {
            let parts = policy.parts.iter().zip(scores);
            Reward { parts: parts.map(|(part, of_hook)| effective(part, &of_hook[s])).collect(), ..Reward::default() }
        })
        .collect();
    let failed = |s: usize, on_missing: OnMissing| {
        policy.parts.iter().zip(scores).any(|(part, of_hook)| part.on_missing == on_missing && of_hook[s].is_err())
    };
    let none = (0..n).any(|s| failed(s, OnMissing::SkipGroup));
    let mut fail_rewards = vec![None; n];
    for (s, reward) in rewards.iter_mut().enumerate() {
        fail_rewards[s] = gate_failed(policy, reward).filter(|_| !none);
        reward.gated = fail_rewards[s].is_some();
        if none {
            reward.skip = Some(Skip::GroupMissing);
        } else if !reward.gated && failed(s, OnMissing::SkipSample) {
            reward.skip = Some(Skip::Missing);
        }
    }
    weigh(policy, &mut rewards);
    let least = |of: fn(&Reward) -> Option<f64>| rewards.iter().filter_map(of).fold(f64::INFINITY, f64::min);
    let (least, least_raw) = (least(|reward| reward.reward), least(|reward| reward.raw));
    for (reward, fail) in rewards.iter_mut().zip(fail_rewards) {
        if let Some(fail) = fail {
            (reward.reward, reward.raw) = (Some(least.min(fail)), Some(least_raw.min(fail)));
        }
    }
    if rewards.iter().filter(|reward| reward.reward.is_some()).count() < LEAST {
        for reward in rewards.iter_mut().filter(|reward| reward.reward.is_some()) {
            (reward.reward, reward.skip) = (None, Some(Skip::SmallGroup));
        }
    }
    rewards
}

/// The score that counts; `None` where the hook does not apply or could not score.
fn effective(part: &Part, score: &Score) -> Option<f64> {
    match (score, part.on_missing) {
        (Ok(score), _) => *score,
        (Err(_), OnMissing::Default(value)) => Some(value),
        (Err(_), _) => None,
    }
}

/// The least reward of the gates that the sample fails.
fn gate_failed(policy: &Policy, reward: &Reward) -> Option<f64> {
    let failed = policy.parts.iter().zip(&reward.parts).filter_map(|(part, score)| {
        let gate = part.gate?;
        (*score < Some(gate.least) && score.is_some()).then_some(gate.fail_reward)
    });
    failed.reduce(f64::min)
}

/// Gives every sample that is neither skipped nor gated its reward.
fn weigh(policy: &Policy, rewards: &mut [Reward]) {
    let open: Vec<usize> = (0..rewards.len()).filter(|&s| rewards[s].skip.is_none() && !rewards[s].gated).collect();
    let hooks: Vec<(usize, Spread)> = policy
        .parts
        .iter()
        .enumerate()
        .filter(|(_, part)| part.gate.is_none() && part.weight > 0.0)
        .filter_map(|(h, _)| Some((h, Spread::of(open.iter().filter_map(|&s| rewards[s].parts[h]))?)))
        .collect();
    let weights = weights(policy, &hooks.iter().map(|(h, _)| &policy.parts[*h]).collect::<Vec<_>>());
    for s in open {
        let reward = &mut rewards[s];
        if hooks.iter().all(|(h, _)| reward.parts[*h].is_none()) {
            reward.skip = Some(Skip::NotApplicable);
            continue;
        }
        let Some(weights) = &weights else {
            reward.skip = Some(Skip::UserOnly);
            continue;
        };
        let (mut raw, mut standard) = (0.0, 0.0);
        for ((h, spread), weight) in hooks.iter().zip(weights) {
            let score = reward.parts[*h].unwrap_or(spread.mean);
            raw += weight * score;
            standard += weight * spread.standard(score);
        }
        reward.raw = Some(raw);
        reward.reward = Some(match policy.aggregate {
            Aggregate::NormalizeThenSum => standard,
            Aggregate::SumThenNormalize => raw,
        });
    }
}

/// Weights with sum 1 in which feedback has at most its share; `None` when only feedback is there and may not decide
/// alone.
fn weights(policy: &Policy, parts: &[&Part]) -> Option<Vec<f64>> {
    let sum = |user: bool| parts.iter().filter(|part| part.user == user).map(|part| part.weight).sum::<f64>();
    let (user, other) = (sum(true), sum(false));
    if other <= 0.0 {
        return policy.allow_user_only.then(|| parts.iter().map(|part| part.weight / user).collect());
    }
    let share = (user / (user + other)).min(policy.user_weight_cap);
    let of = |part: &&Part| if part.user { share * part.weight / user } else { (1.0 - share) * part.weight / other };
    Some(parts.iter().map(of).collect())
}

/// Mean and deviation of a hook's scores in one group.
struct Spread {
    mean: f64,
    deviation: f64,
}

impl Spread {
    fn of(scores: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        let n = scores.clone().count();
        if n == 0 {
            return None;
        }
        let mean = scores.clone().sum::<f64>() / n as f64;
        let squares: f64 = scores.map(|score| (score - mean).powi(2)).sum();
        Some(Self { mean, deviation: if n < 2 { 0.0 } else { (squares / (n - 1) as f64).sqrt() } })
    }

    fn standard(&self, score: f64) -> f64 {
        if self.deviation < SAME { 0.0 } else { (score - self.mean) / (self.deviation + EPSILON) }
    }
}

#[cfg(test)]
#[path = "combine_tests.rs"]
mod tests;
