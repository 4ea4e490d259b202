//! Dream: the choice of a step's positions at a temperature. How many they are is `schedule`'s business.

use super::highest;

/// `n` indices of `scores`: the highest, or with `alg_temp` drawn from softmax(scores / `alg_temp`) without replacement.
///
/// Adding a Gumbel draw per index and taking the highest is such a draw (Kool et al., 2019), and it takes one random
/// number per position, whatever was drawn before.
pub(super) fn choose(scores: &[f64], n: usize, alg_temp: f64, gumbel: impl Fn(usize) -> f64) -> Vec<usize> {
    if alg_temp > 0.0 {
        let noisy: Vec<f64> = scores.iter().enumerate().map(|(i, score)| score / alg_temp + gumbel(i)).collect();
        return highest(&noisy, n);
    }
    highest(scores, n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::{Purpose, gumbel};

    #[test]
    fn the_temperature_spreads_the_choice_as_a_softmax() {
        assert_eq!(choose(&[0.1, 0.3, 0.2], 2, 0.0, |_| f64::NAN), [1, 2]);
        let scores = [0.9f64.ln(), 0.06f64.ln(), 0.04f64.ln()].map(|s| s * 0.5);
        let (mut first, mut out) = ([0.0; 3], [0.0; 3]);
        let n = 20_000;
        for seed in 0..n {
            let noise = |i: usize| gumbel(seed, Purpose::Select, 0, i as u32);
            first[choose(&scores, 1, 0.5, noise)[0]] += 1.0 / n as f64;
            let two = choose(&scores, 2, 0.5, noise);
            out[3 - two[0] - two[1]] += 1.0 / n as f64;
        }
        // Left out last: Σ p_a·p_b/(1−p_a) over both orders. The standard error is below 0.0036.
        let p = [0.9, 0.06, 0.04];
        for i in 0..3 {
            let (a, b) = (p[(i + 1) % 3], p[(i + 2) % 3]);
            assert!((first[i] - p[i]).abs() < 0.015, "{first:?}");
            assert!((out[i] - a * b * (1.0 / (1.0 - a) + 1.0 / (1.0 - b))).abs() < 0.015, "{out:?}");
        }
    }
}
