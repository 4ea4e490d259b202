//! Losses on likelihood bounds B of whole completions (`elbo`): DPO for pairs (VRPO, arXiv 2505.19223) and KTO for
//! single good and bad ones (ELBO-KTO, arXiv 2510.23658). Pure, in f64, with the derivative by every bound.

use super::RlError;

/// A completion with a verdict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Bound of the trained policy.
    pub bound: f64,
    /// Bound of the reference, under the same masks.
    pub reference: f64,
    /// Thumbs up.
    pub good: bool,
    /// How strongly (|rating|); 1 for a plain thumb.
    pub weight: f64,
}

/// Settings of KTO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KtoConfig {
    /// Scale of the implicit reward.
    pub beta: f64,
    /// Weight of good completions.
    pub desired: f64,
    /// Weight of bad ones.
    pub undesired: f64,
}

impl Default for KtoConfig {
    fn default() -> Self {
        Self { beta: 0.1, desired: 1.0, undesired: 1.0 }
    }
}

/// A loss over bounds and its derivative.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundLoss {
    /// The loss, a mean.
    pub value: f64,
    /// dloss/dB by completion, in the order given (DPO: chosen and rejected of each pair in turn).
    pub gradient: Vec<f64>,
}

/// The detached reference point of KTO: the mean of B − B_ref over the whole batch (all micro-batches of it).
#[must_use]
pub fn reference_point(judged: &[Judged]) -> f64 {
    judged.iter().map(|j| j.bound - j.reference).sum::<f64>() / judged.len().max(1) as f64
}

/// Mean over completions of `weight · λ · (1 − σ(±β(B − B_ref − z₀)))`, `+` for good ones. `count` is the number of
/// completions of the whole batch (`None`: of these), so that micro-batches add up. 0 for none.
///
/// # Errors
/// When β is not a positive number.
pub fn kto_loss(
    judged: &[Judged],
    reference_point: f64,
    config: &KtoConfig,
    count: Option<usize>,
) -> Result<BoundLoss, RlError> {
    positive("beta", config.beta)?;
    let n = count.unwrap_or(judged.len()).max(1) as f64;
    let (mut value, mut gradient) = (0.0, Vec::with_capacity(judged.len()));
    for judged in judged {
        let (sign, lambda) = if judged.good { (1.0, config.desired) } else { (-1.0, config.undesired) };
        let p = sigmoid(sign * config.beta * (judged.bound - judged.reference - reference_point));
        let scale = judged.weight * lambda / n;
        value += scale * (1.0 - p);
        gradient.push(-scale * p * (1.0 - p) * sign * config.beta);
    }
    Ok(BoundLoss { value, gradient })
}

/// A preference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Bound of the preferred completion under the trained policy, and under the reference.
    pub chosen: (f64, f64),
    /// The same of the other.
    pub rejected: (f64, f64),
    /// Scored positions of the preferred completion.
    pub chosen_len: usize,
}

/// Settings of DPO.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpoConfig {
    /// Scale of the implicit reward.
    pub beta: f64,
    /// Weight of the preferred completion's negative log-likelihood per token, which keeps it from falling along.
    pub sft: f64,
}

impl Default for DpoConfig {
    fn default() -> Self {
        Self { beta: 0.2, sft: 0.05 }
    }
}

/// Mean over pairs of `−log σ(β((B − B_ref)(chosen) − (B − B_ref)(rejected)))` and the likelihood term. `count` as in
/// [`kto_loss`].
///
/// # Errors
/// When β is not a positive number.
pub fn dpo_loss(pairs: &[Pair], config: &DpoConfig, count: Option<usize>) -> Result<BoundLoss, RlError> {
    positive("beta", config.beta)?;
    let n = count.unwrap_or(pairs.len()).max(1) as f64;
    let (mut value, mut gradient) = (0.0, Vec::with_capacity(2 * pairs.len()));
    for pair in pairs {
        let margin = (pair.chosen.0 - pair.chosen.1) - (pair.rejected.0 - pair.rejected.1);
        let x = config.beta * margin;
        let sft = config.sft / pair.chosen_len.max(1) as f64;
        value += (softplus(-x) - sft * pair.chosen.0) / n;
        let slope = config.beta * sigmoid(-x);
        gradient.extend([(-slope - sft) / n, slope / n]);
    }
    Ok(BoundLoss { value, gradient })
}

fn positive(field: &'static str, value: f64) -> Result<(), RlError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(RlError::invalid(field, format!("{value}; use a positive number")))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair = Pair { chosen: (-8.0, -9.0), rejected: (-7.0, -8.0), chosen_len: 4 };

    fn judged(bound: f64, good: bool) -> Judged {
        Judged { bound, reference: -10.0, good, weight: 1.0 }
    }

    #[test]
    fn p15_kto_is_half_lambda_at_its_reference_point_and_symmetric() {
        let config = KtoConfig { beta: 0.3, desired: 1.5, undesired: 1.5 };
        let of = |bound, good| kto_loss(&[judged(bound, good)], 0.0, &config, None).unwrap();
        assert!((of(-10.0, true).value - 0.75).abs() < 1e-12 && (of(-10.0, false).value - 0.75).abs() < 1e-12);
        let (good, bad) = (of(-8.0, true), of(-12.0, false));
        assert!((good.value - bad.value).abs() < 1e-12 && (good.gradient[0] + bad.gradient[0]).abs() < 1e-12);
        assert!(good.gradient[0] < 0.0, "good completions become more likely");
        assert_eq!(reference_point(&[judged(-10.0, true), judged(-10.0, false)]), 0.0);
        // One completion that is its own reference point still has a gradient: the point is detached.
        let alone = [judged(-4.0, true)];
        assert!(kto_loss(&alone, reference_point(&alone), &config, None).unwrap().gradient[0] < 0.0);
        assert_eq!(kto_loss(&[], 0.0, &config, None).unwrap(), BoundLoss { value: 0.0, gradient: vec![] });
    }

    #[test]
    fn p15_dpo_of_equal_margins_is_log_two() {
        let config = DpoConfig { sft: 0.0, ..DpoConfig::default() };
        let loss = dpo_loss(&[PAIR], &config, None).unwrap();
        assert!((loss.value - std::f64::consts::LN_2).abs() < 1e-12);
        assert!((loss.gradient[0] + 0.1).abs() < 1e-12 && (loss.gradient[1] - 0.1).abs() < 1e-12);
        // Margins of any size give numbers.
        let far = dpo_loss(&[Pair { rejected: (9e5, 0.0), ..PAIR }], &config, None).unwrap();
        assert!(far.value.is_finite() && (far.gradient[0] + 0.2).abs() < 1e-12);
    }

    #[test]
    fn gradients_are_those_of_differences_and_micro_batches_add_up() {
        let config = DpoConfig::default();
        let at = |pair: Pair| dpo_loss(&[pair], &config, None).unwrap().value;
        let h = 1e-5;
        let moved = |by: f64| Pair { chosen: (PAIR.chosen.0 + by, PAIR.chosen.1), ..PAIR };
        let whole = dpo_loss(&[PAIR, moved(2.0)], &config, None).unwrap();
        assert!(((at(moved(h)) - at(moved(-h))) / (2.0 * h) - 2.0 * whole.gradient[0]).abs() < 1e-8);
        let parts = [PAIR, moved(2.0)].map(|pair| dpo_loss(&[pair], &config, Some(2)).unwrap());
        assert!((parts[0].value + parts[1].value - whole.value).abs() < 1e-12);
        let config = KtoConfig::default();
        let kto = |bound| kto_loss(&[judged(bound, false)], 0.4, &config, None).unwrap();
        let numeric = (kto(-9.0 + h).value - kto(-9.0 - h).value) / (2.0 * h);
        assert!((numeric - kto(-9.0).gradient[0]).abs() < 1e-8);
        assert!(kto_loss(&[], 0.0, &KtoConfig { beta: 0.0, ..config }, None).is_err());
        assert!(dpo_loss(&[], &DpoConfig { beta: f64::NAN, sft: 0.0 }, None).is_err());
    }
}
