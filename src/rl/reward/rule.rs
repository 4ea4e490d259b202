//! Rules: hooks that are plain functions of one sample. A model's own verifiers are rules, so that what they judge
//! needs no word about tasks or threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::{GroupInput, HookError, RewardHook, SampleInput, Score, all};

/// A pure verifier.
pub trait Rule: Send + Sync {
    /// The score of `sample`, a completion of `prompt`; `None` if the rule does not apply to it.
    ///
    /// # Errors
    /// `Unusable`, naming what the sample lacks.
    fn score(&self, prompt: &str, sample: &SampleInput) -> Score;
}

/// Rules by the name that a configuration gives them.
pub type Rules = BTreeMap<&'static str, Arc<dyn Rule>>;

/// A [`Rule`] as a hook: it runs on a thread for blocking work, because looking at pictures takes milliseconds each.
pub struct RuleHook {
    name: String,
    rule: Arc<dyn Rule>,
}

impl RuleHook {
    /// The hook called `name`.
    #[must_use]
    pub fn new(name: String, rule: Arc<dyn Rule>) -> Self {
        Self { name, rule }
    }
}

#[async_trait]
impl RewardHook for RuleHook {
    fn name(&self) -> &str {
        &self.name
    }

    async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>> {
        let (rule, owned) = (Arc::clone(&self.rule), groups.to_vec());
        let scored = tokio::task::spawn_blocking(move || {
            let of = |group: &GroupInput| group.samples.iter().map(|s| rule.score(&group.prompt, s)).collect();
            owned.iter().map(of).collect()
        });
        scored.await.unwrap_or_else(|_| all(groups, &Err(HookError::Died("a rule panicked".to_owned()))))
    }
}
