//! The tables `[metrics.NAME]`, `[reward]` and `[[reward.hook]]`: their fields, defaults and bounds, and the hooks
//! they describe.
//!
//! A hook's kind decides which of its fields mean something; one that does not is refused rather than ignored.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::combine::{Aggregate, OnMissing};

/// Why a reward configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct ConfigError {
    /// The table and field.
    pub at: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Shorthand for a refusal.
pub(super) fn refuse<T>(at: impl Into<String>, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError { at: at.into(), problem: problem.into() })
}

/// What a metric's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricType {
    /// true or false.
    #[serde(alias = "boolean")]
    Bool,
    /// A number.
    #[serde(alias = "float")]
    Number,
    /// One of some texts, each with a number.
    Choice,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimize {
    /// More is better.
    #[default]
    Max,
    /// Less is better.
    Min,
}

/// `[metrics.NAME]`: what people may say, and what it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// What its values are.
    #[serde(rename = "type")]
    pub kind: MetricType,
    /// Which way is better.
    #[serde(default)]
    pub optimize: Optimize,
    /// For numbers: least and greatest value, both allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// For true or false: the number of true.
    #[serde(default = "one")]
    pub true_value: f64,
    /// For true or false: the number of false.
    #[serde(default)]
    pub false_value: f64,
    /// For a choice: the number of each text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub choices: BTreeMap<String, f64>,
}

fn one() -> f64 {
    1.0
}

impl Metric {
    fn validate(&self, at: &str) -> Result<(), ConfigError> {
        range(at, self.range)?;
        let mut numbers = self.choices.values().copied().chain([self.true_value, self.false_value]);
        if !numbers.all(f64::is_finite) {
            return refuse(at, "every value must be finite");
        }
        if (self.kind == MetricType::Choice) == self.choices.is_empty() {
            return refuse(at, "choices = { text = number, … } belongs to type \"choice\", and only there");
        }
        if self.kind == MetricType::Bool && self.true_value == self.false_value {
            return refuse(at, "true_value and false_value are equal, so nothing could be learnt from it");
        }
        Ok(())
    }
}

/// Kinds of hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// A metric of `[metrics]`.
    Feedback,
    /// A verifier that is built in.
    Builtin,
    /// A judge over HTTP.
    Http,
    /// A child process.
    Command,
}

/// `[reward]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reward {
    /// How several hooks' scores become one.
    pub aggregate: Aggregate,
    /// Largest share of the weight that feedback hooks have together.
    pub user_weight_cap: f64,
    /// Lets feedback decide alone.
    pub allow_user_only_reward: bool,
    /// Least share of samples that a required hook must score.
    pub min_scored_fraction: f64,
    /// The hooks.
    pub hook: Vec<Hook>,
}

impl Default for Reward {
    fn default() -> Self {
        Self {
            aggregate: Aggregate::default(),
            user_weight_cap: 0.5,
            allow_user_only_reward: false,
            min_scored_fraction: 0.8,
            hook: Vec::new(),
        }
    }
}

/// `[[reward.hook]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Its name in logs, metrics and results.
    pub name: String,
    /// What kind of hook it is.
    pub kind: HookKind,
    /// How much it counts, against the other hooks.
    #[serde(default = "one")]
    pub weight: f64,
    /// Least and greatest reward that is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    /// Whether a run fails when too few samples have a score of it.
    #[serde(default)]
    pub required: bool,
    /// What becomes of a sample that it could not score.
    #[serde(default)]
    pub on_missing: OnMissing,
    /// A gate: a sample below `gate_min` has the reward `gate_fail_reward`, whatever the other hooks say. A gate adds
    /// nothing to the reward of those that pass.
    #[serde(default)]
    pub gate: bool,
    /// Reward of a sample that fails the gate.
    #[serde(default = "minus_one")]
    pub gate_fail_reward: f64,
    /// Least score that passes the gate.
    #[serde(default = "half")]
    pub gate_min: f64,
    /// Everything that belongs to its kind; what does not is refused by [`super::build()`].
    #[serde(flatten)]
    pub options: BTreeMap<String, serde_json::Value>,
}

impl Hook {
    /// A hook of weight 1 named like what it asks, which `option` is the key of; what it cannot score is left to the
    /// others.
    #[must_use]
    pub fn named(name: &str, kind: HookKind, option: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            weight: one(),
            range: None,
            required: false,
            on_missing: OnMissing::Neutral,
            gate: false,
            gate_fail_reward: minus_one(),
            gate_min: half(),
            options: BTreeMap::from([(option.to_owned(), name.into())]),
        }
    }
}

fn minus_one() -> f64 {
    -1.0
}

fn half() -> f64 {
    0.5
}

/// Most hooks of one configuration.
pub const MAX_HOOKS: usize = 32;

impl Reward {
    /// Checks every value that does not belong to one kind of hook; [`super::build()`] checks those.
    ///
    /// # Errors
    /// The first table and field that is out of bounds.
    pub fn validate(&self, metrics: &BTreeMap<String, Metric>) -> Result<(), ConfigError> {
        for (name, metric) in metrics {
            identifier("metrics", name)?;
            metric.validate(&format!("metrics.{name}"))?;
        }
        between("reward.user_weight_cap", self.user_weight_cap, 0.0, 1.0)?;
        between("reward.min_scored_fraction", self.min_scored_fraction, 0.0, 1.0)?;
        if self.hook.len() > MAX_HOOKS {
            return refuse("reward.hook", format!("{} hooks; at most {MAX_HOOKS}", self.hook.len()));
        }
        let mut names = BTreeSet::new();
        for hook in &self.hook {
            identifier("reward.hook.name", &hook.name)?;
            if !names.insert(&hook.name) {
                return refuse(format!("reward.hook {}", hook.name), "two hooks have this name");
            }
            hook.validate()?;
        }
        let weight_of = |user: bool| {
            let counted = self.hook.iter().filter(|h| !h.gate && (h.kind == HookKind::Feedback) == user);
            counted.map(|h| h.weight).sum::<f64>()
        };
        if !self.hook.is_empty() && weight_of(true) + weight_of(false) <= 0.0 {
            return refuse(
                "reward.hook",
                "no hook has a weight above 0 (gates have none), so every reward would be the same",
            );
        }
        if weight_of(true) > 0.0 && weight_of(false) <= 0.0 && !self.allow_user_only_reward {
            return refuse(
                "reward.hook",
                "only feedback has a weight, so whoever rates most decides what is learnt; add another hook, or set \
                 reward.allow_user_only_reward = true",
            );
        }
        Ok(())
    }
}

impl Hook {
    fn validate(&self) -> Result<(), ConfigError> {
        let at = |field: &str| format!("reward.hook {}: {field}", self.name);
        between(&at("weight"), self.weight, 0.0, 1e6)?;
        between(&at("gate_fail_reward"), self.gate_fail_reward, -1e6, 1e6)?;
        between(&at("gate_min"), self.gate_min, -1e6, 1e6)?;
        if let OnMissing::Default(value) = self.on_missing {
            between(&at("on_missing"), value, -1e6, 1e6)?;
        }
        range(&at("range"), self.range)
    }
}

fn range(at: &str, range: Option<[f64; 2]>) -> Result<(), ConfigError> {
    match range {
        Some([low, high]) if !(low.is_finite() && high.is_finite() && low < high) => {
            refuse(at, format!("[{low}, {high}] must be two finite numbers, the lesser first"))
        }
        _ => Ok(()),
    }
}

fn between(at: &str, value: f64, low: f64, high: f64) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) { Ok(()) } else { refuse(at, format!("{value} is not from {low} to {high}")) }
}

fn identifier(at: &str, name: &str) -> Result<(), ConfigError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if plain && (1..=64).contains(&name.len()) {
        return Ok(());
    }
    refuse(at, format!("{name:?} must have 1 to 64 letters, digits, `_`, `-` or `.`"))
}
