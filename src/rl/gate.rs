//! Whether a candidate may be served: what it gains over the current version on prompts that it never learned from,
//! with an interval, and what it must not lose.
//!
//! Pure statistics over paired measurements; who measures is the trainer's business.

use serde::{Deserialize, Serialize};

use crate::diffusion::rng::Stream;

/// Resamples of a bootstrap interval.
const RESAMPLES: usize = 2000;
/// Most completions of a prompt that stands in for others when few are held out.
const MAX_EACH: u32 = 16;

/// Rules of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Held-out prompts that are completed by both versions.
    pub prompts: usize,
    /// Completions of each; more while there are fewer prompts, so that as many are compared: one picture that fails
    /// would refuse a version else.
    pub completions: u32,
    /// The lower end of the interval of the gain must be above this.
    pub min_gain: f64,
    /// A guard reward may fall by so much at the lower end of its interval.
    pub max_guard_loss: f64,
    /// Largest KL from the current version, nats a position.
    pub max_kl: f64,
    /// Distinct completions of a prompt must be at least this share of the current version's.
    pub min_diversity: f64,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { prompts: 48, completions: 2, min_gain: 0.0, max_guard_loss: 0.1, max_kl: 0.5, min_diversity: 0.5 }
    }
}

impl GateConfig {
    /// Completions of each of `prompts` prompts: as many in all as for the configured number of prompts, but no more
    /// than 16 of one for that.
    #[must_use]
    pub fn each(&self, prompts: usize) -> u32 {
        let most = (MAX_EACH / self.completions.max(1)).max(1);
        let times = self.prompts.div_ceil(prompts.max(1)).clamp(1, most as usize);
        self.completions * times as u32
    }
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Lower and upper end.
    pub ci95: [f64; 2],
    /// Pairs.
    pub n: usize,
}

/// Mean of paired `differences`, with the percentile bootstrap's interval; deterministic by `seed`.
#[must_use]
pub fn bootstrap(differences: &[f64], seed: u64) -> Interval {
    let n = differences.len();
    if n == 0 {
        return Interval::default();
    }
    let mean = differences.iter().sum::<f64>() / n as f64;
    let mut means: Vec<f64> = (0..RESAMPLES as u64)
        .map(|i| {
            let mut stream = Stream::new(seed, i);
            (0..n).map(|_| differences[stream.below(n)]).sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Interval { mean, ci95: [at(0.025), at(0.975)], n }
}

/// One held-out prompt: means over its completions, both versions with the same seeds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trial {
    /// Reward of candidate and current.
    pub reward: Option<(f64, f64)>,
    /// Guard rewards of candidate and current, by hook in a fixed order.
    pub guards: Vec<Option<(f64, f64)>>,
    /// Distinct completions of candidate and current.
    pub distinct: (usize, usize),
}

/// A rule and how it was met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Such as `gain`, `kl`, `diversity` or `guard:NAME`.
    pub name: String,
    /// It was met.
    pub passed: bool,
    /// What was measured.
    pub value: f64,
    /// What was allowed.
    pub limit: f64,
    /// Interval of the value, where it is a mean of pairs.
    pub interval: Option<Interval>,
}

/// The gate's decision with all it rests on; stored with the candidate.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Every check was met.
    pub passed: bool,
    /// The rules.
    pub checks: Vec<Check>,
}

/// Judges a candidate. `kl` is its KL from the current version in nats a position; `agreement` is, per held-out rating, how
/// much more the candidate favours what people favoured (see the trainer), for when nothing can score fresh completions.
#[must_use]
pub fn judge(
    config: &GateConfig,
    trials: &[Trial],
    guards: &[String],
    agreement: &[f64],
    kl: f64,
    seed: u64,
) -> Verdict {
    let mut checks = Vec::new();
    let rewards: Vec<f64> = trials.iter().filter_map(|t| t.reward).map(|(new, old)| new - old).collect();
    let (name, differences) = if rewards.is_empty() { ("agreement", agreement) } else { ("gain", rewards.as_slice()) };
    let gain = bootstrap(differences, seed);
    checks.push(Check {
        name: name.to_owned(),
        passed: gain.n > 0 && gain.ci95[0] > config.min_gain,
        value: gain.ci95[0],
        limit: config.min_gain,
        interval: Some(gain),
    });
    for (at, guard) in guards.iter().enumerate() {
        let pairs = trials.iter().filter_map(|trial| trial.guards.get(at).copied().flatten());
        let change = bootstrap(&pairs.map(|(new, old)| new - old).collect::<Vec<_>>(), seed);
        checks.push(Check {
            name: format!("guard:{guard}"),
            passed: change.n == 0 || change.ci95[0] >= -config.max_guard_loss,
            value: change.ci95[0],
            limit: -config.max_guard_loss,
            interval: Some(change),
        });
    }
    checks.push(Check {
        name: "kl".to_owned(),
        passed: kl <= config.max_kl,
        value: kl,
        limit: config.max_kl,
        interval: None,
    });
    let (new, old) = trials.iter().fold((0, 0), |(new, old), trial| (new + trial.distinct.0, old + trial.distinct.1));
    if old > 0 {
        let share = new as f64 / old as f64;
        let passed = share >= config.min_diversity;
        checks.push(Check {
            name: "diversity".to_owned(),
            passed,
            value: share,
            limit: config.min_diversity,
            interval: None,
        });
    }
    Verdict { passed: checks.iter().all(|check| check.passed), checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(n: usize, gain: impl Fn(usize) -> f64) -> Vec<Trial> {
        let trial = |i| Trial { reward: Some((0.5 + gain(i), 0.5)), guards: vec![Some((1.0, 1.0))], distinct: (2, 2) };
        (0..n).map(trial).collect()
    }

    fn verdict(trials: &[Trial], kl: f64) -> Verdict {
        judge(&GateConfig::default(), trials, &["scene".to_owned()], &[], kl, 1)
    }

    #[test]
    fn the_interval_covers_the_mean_of_the_population() {
        let mut covered = 0;
        for seed in 0..200 {
            let mut stream = Stream::new(77, seed);
            let sample: Vec<f64> = (0..60).map(|_| stream.unit() - 0.5).collect();
            let interval = bootstrap(&sample, seed);
            covered += usize::from(interval.ci95[0] <= 0.0 && 0.0 <= interval.ci95[1]);
        }
        assert!((180..=199).contains(&covered), "{covered} of 200");
        assert_eq!(bootstrap(&[], 1), Interval::default());
        assert_eq!(bootstrap(&[0.25], 1).ci95, [0.25, 0.25]);
    }

    #[test]
    fn a_clear_gain_passes_and_noise_does_not() {
        assert!(verdict(&trials(40, |i| if i % 4 == 0 { 0.0 } else { 0.3 }), 0.1).passed);
        assert!(!verdict(&trials(40, |i| if i % 2 == 0 { -0.3 } else { 0.31 }), 0.1).passed);
        assert!(!verdict(&[], 0.0).passed);
    }

    #[test]
    fn few_prompts_are_completed_more_often() {
        let gate = GateConfig { prompts: 8, completions: 2, ..GateConfig::default() };
        assert_eq!([0, 1, 2, 3, 8, 20].map(|prompts| gate.each(prompts)), [16, 16, 8, 6, 2, 2]);
        assert_eq!(GateConfig::default().each(1), 16, "one prompt is no reason for hundreds");
        let many = GateConfig { completions: 64, ..GateConfig::default() };
        assert_eq!(many.each(1), 64, "nor for more than were asked for");
    }

    #[test]
    fn every_rule_can_refuse_alone() {
        let good = trials(40, |_| 0.3);
        assert!(verdict(&good, 0.1).passed);
        let refused = |trials: &[Trial], kl: f64, name: &str| {
            let verdict = verdict(trials, kl);
            let failed: Vec<_> = verdict.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect();
            assert_eq!(failed, [name]);
        };
        refused(&good, 0.6, "kl");
        refused(&trials(40, |_| -0.1), 0.1, "gain");
        let worse = |trial: &Trial| Trial { guards: vec![Some((0.7, 1.0))], ..trial.clone() };
        refused(&good.iter().map(worse).collect::<Vec<_>>(), 0.1, "guard:scene");
        let same = |trial: &Trial| Trial { distinct: (0, 2), ..trial.clone() };
        refused(&good.iter().map(same).collect::<Vec<_>>(), 0.1, "diversity");
    }

    #[test]
    fn ratings_decide_where_nothing_can_score() {
        let unscored: Vec<Trial> = (0..10).map(|_| Trial { distinct: (2, 2), ..Trial::default() }).collect();
        let judged = |agreement: &[f64]| judge(&GateConfig::default(), &unscored, &[], agreement, 0.1, 1);
        assert!(judged(&[0.2; 30]).passed);
        assert!(!judged(&[]).passed && !judged(&[-0.1; 30]).passed);
        assert_eq!(judged(&[0.2; 30]).checks[0].name, "agreement");
    }
}
