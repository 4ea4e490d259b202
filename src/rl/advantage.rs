//! Rewards to advantages: what a completion earned beyond what its prompt usually earns.
//!
//! Groups are compared with themselves, singles with a running mean of their key (a prompt, a user). A reward that
//! cannot be compared is dropped with its reason, never given a made-up advantage: one completion is not a group.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Added to standard deviations.
const EPSILON: f64 = 1e-5;
/// Below this deviation a group says nothing: rewards are equal.
const MIN_DEVIATION: f64 = 1e-6;
/// Largest |advantage|.
const MAX_ADVANTAGE: f64 = 5.0;
/// Rewards that a running mean needs before it is one.
const WARM_UP: u64 = 16;
/// Keys with a running mean of their own; further ones use the mean over all.
const MAX_KEYS: usize = 16_384;

/// What a group's rewards are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Mean, divided by the sample deviation (n − 1) + 1e-5 (MaskGRPO). Every group counts alike.
    #[default]
    Standard,
    /// Mean (diffu-GRPO). Groups count by how much they differ: where all but one are liked, one wrong thumb does not
    /// weigh as much as a whole group that people disagree on.
    MeanOnly,
    /// Mean of the others (coupled-GRPO, ESPO).
    LeaveOneOut,
}

/// Why a reward has no advantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// NaN or infinite.
    NotFinite,
    /// All rewards of its group are equal.
    NoVariance,
    /// Its group has no other reward.
    Alone,
    /// Too few rewards so far for a running mean.
    WarmingUp,
}

impl Dropped {
    /// The label of its counter.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::NoVariance => "no_variance",
            Self::Alone => "alone",
            Self::WarmingUp => "warming_up",
        }
    }
}

/// The advantages of one group's rewards, in their order, each within ±5.
#[must_use]
pub fn group(rewards: &[f64], baseline: Baseline) -> Vec<Result<f64, Dropped>> {
    let finite: Vec<f64> = rewards.iter().copied().filter(|r| r.is_finite()).collect();
    let n = finite.len() as f64;
    let mean = finite.iter().sum::<f64>() / n;
    let deviation = (finite.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    let advantage = |reward: f64| {
        if !reward.is_finite() {
            return Err(Dropped::NotFinite);
        }
        if finite.len() < 2 {
            return Err(Dropped::Alone);
        }
        if deviation < MIN_DEVIATION {
            return Err(Dropped::NoVariance);
        }
        Ok(clamp(match baseline {
            Baseline::Standard => (reward - mean) / (deviation + EPSILON),
            Baseline::MeanOnly => reward - mean,
            Baseline::LeaveOneOut => (reward - mean) * n / (n - 1.0),
        }))
    };
    rewards.iter().map(|&reward| advantage(reward)).collect()
}

fn clamp(advantage: f64) -> f64 {
    advantage.clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)
}

/// A running mean and deviation.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct Running {
    count: u64,
    mean: f64,
    variance: f64,
}

impl Running {
    fn push(&mut self, reward: f64, decay: f64) {
        self.count += 1;
        // Plain averages until the window of the decay is full, so that the first rewards do not linger.
        let step = (1.0 / self.count as f64).max(1.0 - decay);
        let delta = reward - self.mean;
        self.mean += step * delta;
        self.variance = (1.0 - step) * (self.variance + step * delta * delta);
    }

    fn advantage(&self, reward: f64) -> Option<Result<f64, Dropped>> {
        let deviation = self.variance.sqrt();
        match (self.count >= WARM_UP, deviation < MIN_DEVIATION && (reward - self.mean).abs() < MIN_DEVIATION) {
            (false, _) => None,
            (true, true) => Some(Err(Dropped::NoVariance)),
            (true, false) => Some(Ok(clamp((reward - self.mean) / (deviation + EPSILON)))),
        }
    }
}

/// Running means by key, for completions without a group. Serialisable: part of a trainer's checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baselines {
    decay: f64,
    all: Running,
    keys: HashMap<String, Running>,
}

impl Default for Baselines {
    fn default() -> Self {
        Self::new(0.98)
    }
}

impl Baselines {
    /// With this `decay` per reward (0.98: the last 50).
    #[must_use]
    pub fn new(decay: f64) -> Self {
        Self { decay: decay.clamp(0.0, 1.0), all: Running::default(), keys: HashMap::new() }
    }

    /// The advantage of a reward over what came before it under `key`, or under all keys while `key` is new; then
    /// counts it in.
    ///
    /// # Errors
    /// Why it has none; a finite reward is counted in all the same.
    pub fn single(&mut self, key: &str, reward: f64) -> Result<f64, Dropped> {
        if !reward.is_finite() {
            return Err(Dropped::NotFinite);
        }
        let own = self.keys.get(key).and_then(|own| own.advantage(reward));
        let advantage = own.or_else(|| self.all.advantage(reward)).unwrap_or(Err(Dropped::WarmingUp));
        self.all.push(reward, self.decay);
        if self.keys.len() < MAX_KEYS || self.keys.contains_key(key) {
            self.keys.entry(key.to_owned()).or_default().push(reward, self.decay);
        }
        advantage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rewards: &[f64], baseline: Baseline) -> Vec<f64> {
        group(rewards, baseline).into_iter().map(Result::unwrap).collect()
    }

    fn close(a: &[f64], b: &[f64], tolerance: f64) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance), "{a:?} {b:?}");
    }

    #[test]
    fn p6_advantages_follow_permutations_and_ignore_shifts_and_scales() {
        let rewards = [0.3, 2.0, -1.0, 0.5];
        let of = |f: &dyn Fn(f64) -> f64| all(&rewards.map(f), Baseline::Standard);
        let plain = of(&|r| r);
        assert!(plain.iter().sum::<f64>().abs() < 1e-12);
        close(&of(&|r| r + 100.0), &plain, 1e-9);
        close(&of(&|r| r * 7.0), &plain, 1e-4);
        let permuted = all(&[rewards[2], rewards[0], rewards[3], rewards[1]], Baseline::Standard);
        close(&permuted, &[plain[2], plain[0], plain[3], plain[1]], 1e-12);
        close(&all(&rewards, Baseline::MeanOnly), &[-0.15, 1.55, -1.45, 0.05], 1e-12);
        close(&all(&rewards, Baseline::LeaveOneOut)[..1], &[0.3 - 0.5], 1e-12);
    }

    #[test]
    fn p7_two_rewards_give_their_known_advantages() {
        close(&all(&[2.5, 0.5], Baseline::Standard), &[0.707_101_8, -0.707_101_8], 1e-7);
    }

    #[test]
    fn b4_a_group_of_one_is_refused_and_never_nan() {
        for baseline in [Baseline::Standard, Baseline::MeanOnly, Baseline::LeaveOneOut] {
            assert_eq!(group(&[1.5], baseline), [Err(Dropped::Alone)]);
            assert_eq!(group(&[1.5, f64::NAN], baseline), [Err(Dropped::Alone), Err(Dropped::NotFinite)]);
            assert!(group(&[], baseline).is_empty());
        }
    }

    #[test]
    fn b4_a_missing_reward_is_dropped_and_not_a_zero() {
        let with = group(&[1.0, f64::NAN, 3.0, f64::INFINITY], Baseline::Standard);
        let without = group(&[1.0, 3.0], Baseline::Standard);
        assert_eq!(with, [without[0], Err(Dropped::NotFinite), without[1], Err(Dropped::NotFinite)]);
    }

    #[test]
    fn b5_equal_rewards_drop_the_group() {
        assert_eq!(group(&[0.1; 6], Baseline::MeanOnly), [Err(Dropped::NoVariance); 6]);
    }

    #[test]
    fn advantages_are_bounded() {
        let mut rewards = vec![0.0; 99];
        rewards.push(1.0);
        assert_eq!(group(&rewards, Baseline::Standard)[99], Ok(5.0));
        assert_eq!(all(&[1e9, 0.0], Baseline::MeanOnly), [5.0, -5.0]);
    }

    #[test]
    fn singles_are_compared_with_their_key_after_a_warm_up() {
        let mut baselines = Baselines::default();
        for i in 0..16 {
            assert_eq!(baselines.single("a", f64::from(i % 2)), Err(Dropped::WarmingUp));
        }
        assert_eq!(baselines.single("a", f64::NAN), Err(Dropped::NotFinite));
        let good = baselines.single("a", 1.0).unwrap();
        assert!((good - 1.0).abs() < 0.01, "mean 0.5, deviation 0.5: {good}");
        // A new key falls back to all; later it has a mean of its own.
        assert!(baselines.single("b", 9.0).unwrap() > 3.0);
        for i in 0..40 {
            let _ = baselines.single("b", 9.0 + f64::from(i % 2));
        }
        assert!(baselines.single("b", 9.0).unwrap() < 0.0 && baselines.single("a", 1.0).unwrap() > 0.0);
        let restored: Baselines = serde_json::from_str(&serde_json::to_string(&baselines).unwrap()).unwrap();
        assert_eq!(restored.all.count, baselines.all.count);
    }

    #[test]
    fn a_constant_key_says_nothing_until_it_changes() {
        let mut baselines = Baselines::default();
        for _ in 0..20 {
            let _ = baselines.single("a", 1.0);
        }
        assert_eq!(baselines.single("a", 1.0), Err(Dropped::NoVariance));
        assert_eq!(baselines.single("a", 0.0), Ok(-5.0));
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let mut baselines = Baselines::default();
        for i in 0..MAX_KEYS + 10 {
            let _ = baselines.single(&i.to_string(), i as f64);
        }
        assert_eq!(baselines.keys.len(), MAX_KEYS);
    }
}
