//! Losses and their gradients by log-probabilities and bounds.

use lacuna::rl::loss::{Clip, Kl, Level, LossConfig, Mean, Segment, Terms, maskgrpo_loss};
use serde_json::Value;

use super::{bools, cases, close, golden, number, numbers, size};

fn segment(range: std::ops::Range<usize>, advantage: f64) -> Segment {
    Segment { range, advantage, weight: 1.0, dropped: false }
}

/// Numbers at the masked positions, row by row: as f32, which they are, since some lie on the edge of the clip.
fn at_masked(case: &Value, name: &str, mask: &[Vec<bool>]) -> Vec<f64> {
    let rows = cases(&case[name]).iter().zip(mask);
    let of = |(row, mask): (&Value, &Vec<bool>)| {
        numbers(row)
            .into_iter()
            .zip(mask.clone())
            .filter(|(_, masked)| *masked)
            .map(|(x, _)| f64::from(x as f32))
            .collect::<Vec<_>>()
    };
    rows.flat_map(of).collect()
}

#[test]
fn losses_and_gradients_are_the_official_ones() {
    let mut compared = 0;
    for case in cases(&golden("compute_loss_current.json")["cases"]) {
        let mask: Vec<Vec<bool>> = cases(&case["mask"][size(&case["j"])]).iter().map(bools).collect();
        let [new, old, reference] = ["new", "old", "ref"].map(|name| at_masked(case, name, &mask));
        let mut segments = Vec::new();
        for (mask, advantage) in mask.iter().zip(numbers(&case["advantages"])) {
            let start = segments.last().map_or(0, |s: &Segment| s.range.end);
            segments.push(segment(start..start + mask.iter().filter(|m| **m).count(), advantage));
        }
        for run in cases(&case["runs"]) {
            let (epsilon, beta) = (number(&run["epsilon"]), number(&run["beta"]));
            let clip = if run["mean_method"] == "grpo" { Clip::Ppo } else { Clip::OneSided };
            let config = LossConfig { clip, eps_low: epsilon, eps_high: epsilon, beta, ..LossConfig::default() };
            let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
            let loss = maskgrpo_loss(&terms, &config, None).unwrap();
            let name = format!("{} {run}", case["name"]);
            if new.is_empty() {
                // Officially 0/0.
                assert!(loss.value == 0.0 && loss.stats.tokens == 0 && number(&run["loss"]).is_nan());
                continue;
            }
            close(&name, &[loss.value], &[number(&run["loss_f64"])], 1e-7, 1e-7);
            close(&name, &[loss.value], &[number(&run["loss"])], 1e-5, 1e-5);
            if beta > 0.0 {
                close(&name, &[loss.stats.kl()], &[number(&run["kl"])], 1e-5, 1e-5);
            }
            // What the official code counts: with grpo the ratios that the minimum does *not* hold, with gmpo all
            // outside the range.
            let stats = &loss.stats;
            let counted = if clip == Clip::Ppo { stats.escaped } else { stats.clipped + stats.escaped };
            let expected = number(&run["clip_fraction"]) * stats.tokens as f64;
            assert!((counted as f64 - expected).abs() < 1e-4, "{name}: {counted}, expected {expected}");
            close(&name, &loss.gradient, &at_masked(run, "grad_new", &mask), 2e-6, 1e-5);
            compared += 1;
        }
    }
    assert_eq!(compared, 88);
}

#[test]
fn divergences_are_espos() {
    let espo = golden("espo.json");
    for (kl, name) in [(Kl::K1, "k1"), (Kl::K2, "k2"), (Kl::K3, "k3")] {
        let config = LossConfig { kl, beta: 1.0, ..LossConfig::default() };
        let expected = &espo["approx_kl"][name];
        let grid = |value: &Value| super::flat(value);
        let (new, reference) = (grid(&espo["logp"]), grid(&espo["logp_base"]));
        for (i, value) in grid(&expected["value"]).into_iter().enumerate() {
            let segments = [segment(i..i + 1, 0.0)];
            let terms = Terms { new: &new, old: &new, reference: Some(&reference), segments: &segments };
            let loss = maskgrpo_loss(&terms, &config, None).unwrap();
            close(name, &[loss.value], &[value], 1e-6, 1e-6);
            close(name, &[loss.gradient[i]], &[grid(&expected["grad_logp"])[i]], 2e-6, 1e-6);
        }
    }
}

#[test]
fn the_sequence_loss_is_espos() {
    for case in cases(&golden("espo.json")["sequence_loss"]) {
        // A bound over its length is the mean log-probability: a sequence of one position with that value.
        let length = number(&case["length"]);
        let bounds = |name: &str| numbers(&case[name]).iter().map(|b| b / length).collect::<Vec<_>>();
        let [new, old, reference] = ["elbo", "elbo_old", "elbo_ref"].map(bounds);
        let advantages = numbers(&case["advantages"]);
        let segments: Vec<Segment> = advantages.iter().enumerate().map(|(i, a)| segment(i..i + 1, *a)).collect();
        let (epsilon, beta) = (number(&case["epsilon"]), number(&case["beta"]));
        let config = LossConfig {
            level: Level::Sequence,
            clip: Clip::Ppo,
            eps_low: epsilon,
            eps_high: epsilon,
            // Officially the square is of the whole bound, then divided by the length once.
            beta: beta * length,
            kl: Kl::K2,
            mean: Mean::Sequence,
        };
        let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
        let loss = maskgrpo_loss(&terms, &config, None).unwrap();
        close("loss", &[loss.value], &[number(&case["loss"])], 1e-5, 1e-5);
        let gradient: Vec<f64> = loss.gradient.iter().map(|g| g / length).collect();
        close("gradient", &gradient, &numbers(&case["grad_elbo"]), 2e-6, 1e-5);
        if beta > 0.0 {
            close("kl", &[loss.stats.kl() * length], &[number(&case["mean_kl"])], 1e-5, 1e-5);
        }
    }
}
