//! Likelihood bounds of whole completions, as preference losses compare them:
//! `B = ∫ 1/t · E[Σ log p over the masked] dt = Σ over inputs of weight · Σ log p`.
//!
//! Which inputs: exactly counted masks, at random ratios (VRPO, ELBO-KTO) or at the nodes of a Gauss–Legendre rule
//! (GDPO: most of the variance of such a bound comes from the ratio, not from which positions are masked).

use std::ops::Range;

use super::RlError;
use super::logprob::Sample;
use super::masks::{Mask, MaskMode, Role, draw, uniforms};
use crate::diffusion::rng::Purpose;

/// Most inputs of one bound.
const MAX_DRAWS: u32 = 64;

/// At which mask ratios the bound is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// Masked counts uniform in 1..=n.
    Random(u32),
    /// The nodes of the Gauss–Legendre rule of this many points.
    Gauss(u32),
}

/// The masked inputs of `sample`'s bound, with their weights: pass them to `estimator::Step::new` and sum each
/// segment ([`sums`]). The same for the trained and the reference policy. None where nothing is scored: the bound is 0.
///
/// # Errors
/// When the number of inputs is outside 1 to 64.
pub fn masks(sample: &Sample, nodes: Nodes, seed: u64) -> Result<Vec<Mask>, RlError> {
    let scored = sample.roles.iter().filter(|role| **role == Role::Scored).count();
    let (Nodes::Random(draws) | Nodes::Gauss(draws)) = nodes;
    if !(1..=MAX_DRAWS).contains(&draws) {
        return Err(RlError::invalid("nodes", format!("{draws} inputs per bound; use 1 to {MAX_DRAWS}")));
    }
    if scored == 0 {
        return Ok(Vec::new());
    }
    let ratios: Vec<(f64, f64)> = match nodes {
        Nodes::Gauss(points) => gauss_legendre(points),
        Nodes::Random(draws) => {
            let count = |i| 1 + ((uniforms(seed, sample.id, i, Purpose::MaskRatio)(0)) * scored as f64) as usize;
            (0..draws).map(|i| (count(i) as f64 / scored as f64, 1.0 / f64::from(draws))).collect()
        }
    };
    let of = |(i, (ratio, weight)): (usize, (f64, f64))| {
        let uniforms = uniforms(seed, sample.id, i as u32, Purpose::Mask);
        let mask = Mask::new(draw(MaskMode::ExactCount, ratio, &sample.roles, uniforms));
        let weight = weight * scored as f64 / mask.count() as f64;
        Mask { weight, ..mask }
    };
    Ok(ratios.into_iter().enumerate().map(of).collect())
}

/// B of every completion: the sum of its segment of what `estimator::Step::gather` gave.
#[must_use]
pub fn sums(values: &[f64], segments: &[Range<usize>]) -> Vec<f64> {
    segments.iter().map(|range| values[range.clone()].iter().sum()).collect()
}

/// The derivative by every scored position of the derivative by every bound: the transpose of [`sums`].
#[must_use]
pub fn spread(gradient: &[f64], segments: &[Range<usize>]) -> Vec<f64> {
    segments.iter().zip(gradient).flat_map(|(range, &g)| std::iter::repeat_n(g, range.len())).collect()
}

/// Nodes and weights on (0, 1), ascending; exact for polynomials up to degree 2n − 1.
#[must_use]
pub fn gauss_legendre(points: u32) -> Vec<(f64, f64)> {
    let n = f64::from(points);
    let node = |i: u32| {
        // Newton's method from Tricomi's guess converges within a few steps for every root of P_n.
        let mut x = -((f64::from(i) + 0.75) / (n + 0.5) * std::f64::consts::PI).cos();
        let mut slope = 1.0;
        for _ in 0..8 {
            let (mut before, mut value) = (1.0, x);
            for k in 2..=points {
                let k = f64::from(k);
                (before, value) = (value, ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k);
            }
            slope = n * (x * value - before) / (x * x - 1.0);
            x -= value / slope;
        }
        ((x + 1.0) / 2.0, 1.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..points).map(node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::estimator::Step;
    use crate::rl::logprob::Drawn;

    fn sample(id: u64, scored: usize) -> Sample {
        let roles = vec![Role::Scored; scored];
        let completion = vec![3; scored];
        Sample {
            id,
            prefix: vec![1],
            suffix: vec![],
            vocab: 0..9,
            commit_steps: vec![],
            logprobs: vec![],
            drawn: Drawn::default(),
            completion,
            roles,
        }
    }

    #[test]
    fn the_rule_integrates_polynomials() {
        for points in 1..=12 {
            let rule = gauss_legendre(points);
            assert!(rule.windows(2).all(|w| w[0].0 < w[1].0) && rule.iter().all(|(t, w)| *t > 0.0 && *w > 0.0));
            for degree in 0..2 * points as i32 {
                let sum: f64 = rule.iter().map(|(t, w)| w * t.powi(degree)).sum();
                assert!((sum * f64::from(degree + 1) - 1.0).abs() < 1e-12, "{points} points, degree {degree}: {sum}");
            }
        }
    }

    #[test]
    fn the_bound_of_independent_tokens_is_their_log_likelihood() {
        // If log p does not depend on what is visible, every unbiased bound is n · mean log p, whatever the masks.
        for nodes in [Nodes::Random(4), Nodes::Gauss(3)] {
            let samples = [sample(1, 17), sample(2, 5), sample(3, 0)];
            let masks: Vec<Vec<Mask>> = samples.iter().map(|s| masks(s, nodes, 6).unwrap()).collect();
            assert!(masks[2].is_empty() && masks[0].iter().all(|m| m.count() > 0));
            let step = Step::new(&samples, masks);
            let logprobs: Vec<Vec<f32>> = step.views().iter().map(|v| vec![-1.5; v.mask.count()]).collect();
            let bounds = sums(&step.gather(&logprobs), step.segments());
            for (bound, expected) in bounds.iter().zip([-25.5, -7.5, 0.0]) {
                assert!((bound - expected).abs() < 1e-9, "{nodes:?}: {bound} {expected}");
            }
            assert_eq!(spread(&[1.0, 2.0, 4.0], step.segments()).len(), step.scored());
        }
        assert!(
            masks(&sample(1, 3), Nodes::Random(0), 0).is_err() && masks(&sample(1, 3), Nodes::Gauss(65), 0).is_err()
        );
    }

    #[test]
    fn random_counts_cover_one_to_all() {
        let mut seen = [0; 6];
        for id in 0..300 {
            masks(&sample(id, 5), Nodes::Random(2), 1).unwrap().iter().for_each(|m| seen[m.count()] += 1);
        }
        // 600 draws of 5 counts: 120 each, standard deviation 10.
        assert!(seen[0] == 0 && seen[1..].iter().all(|&n| (70..170).contains(&n)), "{seen:?}");
    }
}
