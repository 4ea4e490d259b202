//! The MaskGRPO loss (arXiv 2510.02880, eq. 11 as its code computes it) over the scored positions of some completions.
//!
//! A pure function on the host, in f64: log-probabilities in, the loss and its derivative by every one of them out.
//! `logprob::Estimate::objective` carries that derivative into the transformer. So every branch of the clip is written
//! down instead of being left to how a tensor library splits a gradient at a tie, no sum is in f32, a micro-batch
//! accumulates with the denominator of the whole batch, and the numbers can be tested without a device.

use std::ops::Range;

use super::RlError;

/// Largest |log-ratio| that is exponentiated.
const MAX_LOG_RATIO: f64 = 20.0;
/// Largest exponent of the k3 penalty; beyond it the penalty goes on along its tangent, so that a token far from the
/// reference is still pulled back, by a bounded force (a plain clamp would let it go).
const MAX_KL_EXPONENT: f64 = 10.0;

/// Ratio at which [`Clip::Dual`] lets go of what was made more likely although it was bad; as in its paper.
const DUAL: f64 = 3.0;

/// What is compared with the clip range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The ratio of each token.
    Token,
    /// One ratio per completion, of the mean log-ratio (never of the sum: 1024 image tokens overflow it).
    Sequence,
}

/// How far a ratio may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clip {
    /// PPO: `−min(ρA, clip(ρ)A)`. Bounds what an update gains, not what it loses: A < 0 with ρ ≫ 1 is unbounded.
    Ppo,
    /// PPO's, bounded there too: A < 0 with ρ > 3 has no gradient (dual-clip PPO, arXiv 1912.09729).
    Dual,
    /// The log-ratio is clipped on the side where the advantage has been followed too far (the code's `gmpo`).
    OneSided,
    /// `−clip(ρ)·A·log π` with the clipped ratio detached (StableDRL, arXiv 2603.06743): bounded on both sides.
    Unconditional,
}

/// Estimator of KL(new ‖ reference) from tokens of the new policy, d = new − reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kl {
    /// d, with the derivative of the true divergence, 1 + d (d's own derivative, 1, has mean zero and pulls nowhere).
    K1,
    /// d²/2: for images, where single tokens are improbable and k3 explodes.
    K2,
    /// exp(−d) + d − 1: for text.
    K3,
}

/// What every completion counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mean {
    /// As much as it has scored positions (the code).
    Token,
    /// The same (1/|o| of the paper).
    Sequence,
}

/// Settings of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossConfig {
    /// Token or sequence ratios.
    pub level: Level,
    /// Clip rule.
    pub clip: Clip,
    /// The ratio may fall to 1 − this.
    pub eps_low: f64,
    /// The ratio may rise to 1 + this.
    pub eps_high: f64,
    /// Weight of the penalty for leaving the reference.
    pub beta: f64,
    /// Estimator of that penalty.
    pub kl: Kl,
    /// Average over tokens or completions.
    pub mean: Mean,
}

impl Default for LossConfig {
    /// As published for text.
    fn default() -> Self {
        let (level, clip, kl, mean) = (Level::Token, Clip::Ppo, Kl::K3, Mean::Token);
        Self { level, clip, eps_low: 0.2, eps_high: 0.2, beta: 0.01, kl, mean }
    }
}

impl LossConfig {
    /// As for text, with the penalty that suits images.
    #[must_use]
    pub fn image() -> Self {
        Self { kl: Kl::K2, ..Self::default() }
    }

    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), RlError> {
        for (field, value, limit) in
            [("eps_low", self.eps_low, 1.0), ("eps_high", self.eps_high, f64::MAX), ("beta", self.beta, f64::MAX)]
        {
            if !(0.0..=limit).contains(&value) {
                return Err(RlError::invalid(field, format!("{value} is outside 0 to {limit}")));
            }
        }
        Ok(())
    }
}

/// One completion's share of the flat positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its scored positions.
    pub range: Range<usize>,
    /// A.
    pub advantage: f64,
    /// Multiplies the policy term, not the penalty: the truncated behaviour weight ([`behaviour_weight`]) or 1.
    pub weight: f64,
    /// Counts nothing, in the denominator neither (a group whose rewards are all equal).
    pub dropped: bool,
}

/// Log-probabilities by scored position.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Of the policy being trained.
    pub new: &'a [f64],
    /// Of the policy at the start of the update, under the same masks.
    pub old: &'a [f64],
    /// Of the reference, under the same masks; not needed without penalty.
    pub reference: Option<&'a [f64]>,
    /// The completions.
    pub segments: &'a [Segment],
}

/// A loss and its derivative.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// dloss/dnew by scored position.
    pub gradient: Vec<f64>,
    /// What to watch.
    pub stats: Stats,
}

impl Loss {
    /// No NaN and no infinity in the value or the gradient; otherwise the step must be skipped.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.value.is_finite() && self.gradient.iter().all(|g| g.is_finite())
    }
}

/// Sums over scored positions that are not dropped; the methods give means.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Positions.
    pub tokens: usize,
    /// Completions with any.
    pub samples: usize,
    /// Positions whose ratio the clip holds.
    pub clipped: usize,
    /// Positions outside the range on the side that PPO's minimum leaves open.
    pub escaped: usize,
    /// Largest ratio.
    pub ratio_max: f64,
    kl: f64,
    drift: f64,
    ratio: f64,
}

impl Stats {
    /// Mean penalty against the reference (before β); 0 without reference.
    #[must_use]
    pub fn kl(&self) -> f64 {
        self.kl / self.tokens.max(1) as f64
    }

    /// Mean k3 estimate of KL(new ‖ old): stop the inner loop when it exceeds 0.05.
    #[must_use]
    pub fn drift(&self) -> f64 {
        self.drift / self.tokens.max(1) as f64
    }

    /// Mean ratio; 1 at the first inner step.
    #[must_use]
    pub fn ratio_mean(&self) -> f64 {
        self.ratio / self.tokens.max(1) as f64
    }

    /// Share of the positions that the clip holds.
    #[must_use]
    pub fn clip_fraction(&self) -> f64 {
        self.clipped as f64 / self.tokens.max(1) as f64
    }

    /// Adds those of another micro-batch.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.samples += other.samples;
        self.clipped += other.clipped;
        self.escaped += other.escaped;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.kl += other.kl;
        self.drift += other.drift;
        self.ratio += other.ratio;
    }
}

/// What [`maskgrpo_loss`] divides by: scored positions, or completions, that are not dropped; at least 1. Summed over
/// micro-batches it makes their losses add up to the loss of the whole batch.
#[must_use]
pub fn denominator(segments: &[Segment], mean: Mean) -> f64 {
    let count = |s: &Segment| if mean == Mean::Token { s.range.len() } else { usize::from(!s.range.is_empty()) };
    segments.iter().filter(|s| !s.dropped).map(count).sum::<usize>().max(1) as f64
}

/// The loss over `terms`, divided by `denominator` (`None`: that of these segments).
///
/// With nothing to score the loss is 0.
///
/// # Errors
/// When settings have no meaning or lengths do not fit.
pub fn maskgrpo_loss(terms: &Terms<'_>, config: &LossConfig, denominator: Option<f64>) -> Result<Loss, RlError> {
    config.check()?;
    check(terms, config)?;
    let mut loss = Loss { value: 0.0, gradient: vec![0.0; terms.new.len()], stats: Stats::default() };
    let denominator = denominator.unwrap_or_else(|| self::denominator(terms.segments, config.mean)).max(1.0);
    for segment in terms.segments.iter().filter(|s| !s.dropped && !s.range.is_empty()) {
        let per_token = match config.mean {
            Mean::Token => 1.0 / denominator,
            Mean::Sequence => 1.0 / (denominator * segment.range.len() as f64),
        };
        add(&mut loss, terms, config, segment, per_token);
    }
    Ok(loss)
}

fn check(terms: &Terms<'_>, config: &LossConfig) -> Result<(), RlError> {
    let n = terms.new.len();
    let reference = terms.reference.map_or(n, <[f64]>::len);
    if terms.old.len() != n || reference != n {
        let message = format!("{n} new, {} old and {reference} reference log-probabilities", terms.old.len());
        return Err(RlError::invalid("logprobs", message));
    }
    if config.beta > 0.0 && terms.reference.is_none() {
        return Err(RlError::invalid("reference", format!("beta = {} needs reference log-probabilities", config.beta)));
    }
    if let Some(s) = terms.segments.iter().find(|s| s.range.end > n || s.range.start > s.range.end) {
        return Err(RlError::invalid("segments", format!("{:?} is outside the {n} positions", s.range)));
    }
    Ok(())
}

/// Adds `per_token · Σ (w·policy + β·penalty)` of one completion.
fn add(loss: &mut Loss, terms: &Terms<'_>, config: &LossConfig, segment: &Segment, per_token: f64) {
    let n = segment.range.len() as f64;
    let mean = |values: &[f64]| values[segment.range.clone()].iter().sum::<f64>() / n;
    let whole = (mean(terms.new), mean(terms.old));
    loss.stats.samples += 1;
    for k in segment.range.clone() {
        // For a sequence ratio ρ(mean d), n equal terms with derivative ρ'/n each add up to one token's derivative ρ'.
        let (new, old) = if config.level == Level::Token { (terms.new[k], terms.old[k]) } else { whole };
        let term = policy(config, new, new - old, segment.advantage);
        loss.value += per_token * segment.weight * term.value;
        loss.gradient[k] += per_token * segment.weight * term.derivative;
        let stats = &mut loss.stats;
        stats.tokens += 1;
        stats.clipped += usize::from(term.clipped);
        stats.escaped += usize::from(term.outside && !term.clipped);
        let d = (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
        stats.ratio += d.exp();
        stats.ratio_max = stats.ratio_max.max(d.exp());
        stats.drift += penalty(Kl::K3, d).0;
        if let Some(reference) = terms.reference {
            let (value, derivative) = penalty(config.kl, terms.new[k] - reference[k]);
            stats.kl += value;
            if config.beta > 0.0 {
                loss.value += per_token * config.beta * value;
                loss.gradient[k] += per_token * config.beta * derivative;
            }
        }
    }
}

/// The policy term of one token, its derivative by the new log-probability, and what the clip did.
struct Policy {
    value: f64,
    derivative: f64,
    clipped: bool,
    outside: bool,
}

/// `d` is the log-ratio, `a` the advantage.
fn policy(config: &LossConfig, new: f64, d: f64, a: f64) -> Policy {
    let bounded = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
    let ratio = bounded.exp();
    // Beyond the numerical bound the ratio is constant.
    let slope = if d == bounded { ratio } else { 0.0 };
    let within = ratio.clamp(1.0 - config.eps_low, 1.0 + config.eps_high);
    match config.clip {
        Clip::Dual if a < 0.0 && ratio > DUAL => {
            Policy { value: -DUAL * a, derivative: 0.0, clipped: true, outside: true }
        }
        Clip::Ppo | Clip::Dual => {
            let clipped = ratio * a > within * a;
            let (value, derivative) = if clipped { (-within * a, 0.0) } else { (-ratio * a, -slope * a) };
            Policy { value, derivative, clipped, outside: ratio != within && a != 0.0 }
        }
        Clip::OneSided => {
            let clipped = if a >= 0.0 { d > config.eps_high } else { d < -config.eps_low };
            let limit = if a >= 0.0 { config.eps_high } else { -config.eps_low };
            let (value, derivative) = if clipped { (-limit.exp() * a, 0.0) } else { (-ratio * a, -slope * a) };
            Policy { value, derivative, clipped, outside: d > config.eps_high || d < -config.eps_low }
        }
        Clip::Unconditional => {
            let outside = ratio != within;
            Policy { value: -within * a * new, derivative: -within * a, clipped: outside, outside }
        }
    }
}

/// The penalty for d = new − reference and its derivative by the new log-probability.
fn penalty(kl: Kl, d: f64) -> (f64, f64) {
    match kl {
        Kl::K1 => (d, 1.0 + d),
        Kl::K2 => (d * d / 2.0, d),
        Kl::K3 => {
            let e = -d;
            let bounded = if e > MAX_KL_EXPONENT { MAX_KL_EXPONENT } else { e };
            let slope = bounded.exp() - 1.0;
            (bounded.exp() - bounded - 1.0 + slope * (e - bounded), -slope)
        }
    }
}

/// The truncated weight of a completion that an older policy sampled: `min(cap, exp(mean(prox − behaviour)))` over its
/// scored positions, both under the masks of the update (decoupled PPO; cap 2). 1 for none.
#[must_use]
pub fn behaviour_weight(prox: &[f64], behaviour: &[f64], cap: f64) -> f64 {
    let n = prox.len().max(1) as f64;
    let mean = prox.iter().zip(behaviour).map(|(p, b)| p - b).sum::<f64>() / n;
    let weight = mean.min(MAX_LOG_RATIO).exp();
    if weight > cap { cap } else { weight }
}

#[cfg(test)]
mod tests;
