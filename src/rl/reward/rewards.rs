//! All hooks of a configuration over some groups: they run at the same time, what they say is checked whoever says
//! it, and one reward per sample comes out.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::combine::{Combined, Policy, RunError, combine};
use super::wire::{Range, within};
use super::{GroupInput, HookError, RewardHook, Score, all};
use crate::telemetry::metrics as names;

/// The hooks and how their scores become one reward.
pub struct Rewards {
    hooks: Vec<(Arc<dyn RewardHook>, Range)>,
    policy: Policy,
}

impl std::fmt::Debug for Rewards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewards").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Rewards {
    /// `hooks`, in the order of `policy.parts`, each with the rewards that are believed of it.
    #[must_use]
    pub fn new(hooks: Vec<(Arc<dyn RewardHook>, Range)>, policy: Policy) -> Self {
        Self { hooks, policy }
    }

    /// How the scores are combined.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether nothing is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hooks.is_empty()
    }

    /// The rewards of `groups`. Dropping the future stops every hook.
    ///
    /// # Errors
    /// When a hook's configuration says that the run must not go on.
    pub async fn score(&self, groups: Vec<GroupInput>) -> Result<Combined, RunError> {
        combine(&self.policy, &self.scores(groups).await)
    }

    /// Every hook's scores as `[hook][group][sample]`: finite, in range, of the groups' shape. A hook that panics, or
    /// answers in another shape, has only errors.
    pub async fn scores(&self, groups: Vec<GroupInput>) -> Vec<Vec<Vec<Score>>> {
        let groups: Arc<[GroupInput]> = groups.into();
        let mut running = JoinSet::new();
        for (h, (hook, range)) in self.hooks.iter().enumerate() {
            let (hook, range, groups) = (Arc::clone(hook), *range, Arc::clone(&groups));
            metrics::counter!(names::REWARD_CALLS, "hook" => hook.name().to_owned()).increment(1);
            running.spawn(async move {
                let start = Instant::now();
                let scores = hook.score(&groups).await;
                metrics::histogram!(names::REWARD_DURATION, "hook" => hook.name().to_owned()).record(start.elapsed());
                (h, checked(scores, &groups, range))
            });
        }
        let mut scores = vec![all(&groups, &Err(HookError::Died("its task ended".to_owned()))); self.hooks.len()];
        while let Some(done) = running.join_next().await {
            if let Ok((h, of_hook)) = done {
                scores[h] = of_hook;
            }
        }
        for ((hook, _), of_hook) in self.hooks.iter().zip(&scores) {
            let failures = of_hook.iter().flatten().filter_map(|score| score.as_ref().err());
            for reason in failures.map(HookError::reason) {
                let labels = [("hook", hook.name().to_owned()), ("reason", reason.to_owned())];
                metrics::counter!(names::REWARD_FAILURES, &labels).increment(1);
            }
        }
        scores
    }
}

fn checked(scores: Vec<Vec<Score>>, groups: &[GroupInput], range: Range) -> Vec<Vec<Score>> {
    let fits =
        scores.len() == groups.len() && scores.iter().zip(groups).all(|(s, group)| s.len() == group.samples.len());
    if !fits {
        return all(groups, &Err(HookError::Protocol("another number of scores than of samples".to_owned())));
    }
    let check = |score: Score| match score {
        Ok(Some(value)) => within(value, range).map(Some),
        other => other,
    };
    scores.into_iter().map(|group| group.into_iter().map(check).collect()).collect()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::super::combine::{Aggregate, OnMissing, Part};
    use super::super::fixture_tests::group;
    use super::*;

    /// A hook that does what its name says.
    struct Rogue(&'static str);

    #[async_trait]
    impl RewardHook for Rogue {
        fn name(&self) -> &str {
            self.0
        }

        async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>> {
            match self.0 {
                "panics" => panic!("as it should"),
                "short" => vec![vec![Ok(Some(1.0))]],
                "nan" => all(groups, &Ok(Some(f64::NAN))),
                "far" => all(groups, &Ok(Some(2.0))),
                _ => all(groups, &Ok(Some(0.5))),
            }
        }
    }

    fn rogues(names: &[&'static str]) -> Rewards {
        let hook = |name: &&'static str| -> (Arc<dyn RewardHook>, Range) { (Arc::new(Rogue(name)), Some([0.0, 1.0])) };
        let part = |name: &&str| Part {
            name: (*name).to_owned(),
            weight: 1.0,
            gate: None,
            on_missing: OnMissing::Neutral,
            required: false,
            user: false,
        };
        let policy = Policy {
            aggregate: Aggregate::SumThenNormalize,
            user_weight_cap: 0.5,
            allow_user_only: false,
            min_scored_fraction: 0.8,
            parts: names.iter().map(part).collect(),
        };
        Rewards::new(names.iter().map(hook).collect(), policy)
    }

    #[tokio::test]
    async fn no_hook_reaches_the_rewards_unchecked() {
        let rewards = rogues(&["panics", "short", "nan", "far", "good"]);
        let combined = rewards.score(vec![group(1, 2), group(2, 3)]).await.unwrap();
        assert!(combined.groups.iter().flatten().all(|reward| reward.reward == Some(0.5)));
        let reasons: Vec<_> =
            combined.counts.errors.iter().map(|((hook, reason), n)| (hook.as_str(), *reason, *n)).collect();
        let expected =
            [("far", "out_of_range", 5), ("nan", "not_finite", 5), ("panics", "died", 5), ("short", "protocol", 5)];
        assert_eq!(reasons, expected);
    }

    #[test]
    fn calls_failures_and_seconds_are_counted_by_hook() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        // One thread: the recorder is this thread's.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let rewards = rogues(&["panics", "nan", "good"]);
        metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                for _ in 0..2 {
                    rewards.scores(vec![group(1, 3)]).await;
                }
            });
        });
        let text = recorder.handle().render();
        for line in [
            "lacuna_reward_calls_total{hook=\"good\"} 2",
            "lacuna_reward_calls_total{hook=\"panics\"} 2",
            "lacuna_reward_failures_total{hook=\"panics\",reason=\"died\"} 6",
            "lacuna_reward_failures_total{hook=\"nan\",reason=\"not_finite\"} 6",
            "lacuna_reward_duration_seconds_count{hook=\"good\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("lacuna_reward_failures_total{hook=\"good\""), "{text}");
    }
}
