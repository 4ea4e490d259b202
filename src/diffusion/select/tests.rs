//! Policies run on scores that grow with the position.

use super::*;

use crate::diffusion::params::{Ends, Fidelity, ImageSampler, Schedule, TextSampler};

fn sure(confidence: f64) -> Draw {
    Draw { index: 0, confidence, score: confidence, logprob: confidence.ln() }
}

fn text(sampler: TextSampler, blocks: Vec<Block>) -> Policy {
    let params = TextParams {
        max_tokens: 1,
        steps: 1,
        block_length: 1,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        sampler,
        ends: Ends::default(),
        guidance_scale: 0.0,
        stop_at_eos: false,
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: Vec::new(),
    };
    Policy::text(&params, blocks)
}

#[test]
fn highest_breaks_ties_by_position() {
    assert_eq!(highest(&[0.5, 0.9, 0.9, 0.1], 1), [1]);
    assert_eq!(highest(&[0.5, 0.9, 0.9, 0.5], 3), [0, 1, 2]);
    assert_eq!(highest(&[0.5], 4), [0]);
}

/// Runs a policy on confidences that grow with the position; returns (step, positions committed).
fn run(policy: &mut Policy, masked: &mut [bool], seed: u64) -> Vec<(usize, Vec<u32>)> {
    let mut trace = Vec::new();
    loop {
        let view = View { masked, seed, origin: 0 };
        let due = policy.due(view);
        if due.is_empty() {
            return trace;
        }
        let draws: Vec<Draw> = due.iter().map(|&p| sure(f64::from(p + 1) / 100.0)).collect();
        let chosen: Vec<u32> = policy.choose(view, &due, &draws).into_iter().map(|i| due[i]).collect();
        chosen.iter().for_each(|&p| masked[p as usize] = false);
        trace.push((policy.step(), chosen));
        policy.advance();
    }
}

fn blocks(n: usize, length: usize, steps: usize) -> Vec<Block> {
    (0..n).map(|b| Block { start: b * length, end: (b + 1) * length, steps }).collect()
}

#[test]
fn low_confidence_fills_blocks_in_order_and_skips_steps_that_commit_nothing() {
    let mut policy = text(TextSampler::LowConfidence, blocks(2, 2, 3));
    let trace = run(&mut policy, &mut [true; 4], 0);
    // The second block starts at step 3 of the plan though the first was done after two forwards.
    assert_eq!(trace, [(0, vec![1]), (1, vec![0]), (3, vec![3]), (4, vec![2])]);
}

#[test]
fn masks_before_the_block_are_eligible_and_nothing_stays_masked() {
    let blocks = vec![Block { start: 2, end: 4, steps: 2 }];
    let trace = run(&mut text(TextSampler::LowConfidence, blocks), &mut [true; 4], 0);
    assert_eq!(trace, [(0, vec![3]), (1, vec![0, 1, 2])]);
}

#[test]
fn threshold_counts_its_steps_and_commits_the_rest_at_its_limit() {
    let sampler = TextSampler::Threshold { threshold: 0.03 };
    let trace = run(&mut text(sampler, blocks(2, 4, 2)), &mut [true; 8], 0);
    assert_eq!(trace, [(0, vec![2, 3]), (1, vec![0, 1]), (2, vec![4, 5, 6, 7])]);
}

#[test]
fn factor_grows_braver_with_confidence() {
    let trace = run(&mut text(TextSampler::Factor { factor: 1.96 }, blocks(1, 4, 4)), &mut [true; 4], 0);
    // The ranks must reach 0.02, 0.35: one at a time, until the last step takes what is left.
    assert_eq!(trace, [(0, vec![3]), (1, vec![2]), (2, vec![1]), (3, vec![0])]);
    let trace = run(&mut text(TextSampler::Factor { factor: 3.9 }, blocks(1, 4, 4)), &mut [true; 4], 0);
    // They must reach −0.95, −0.3, 0.025, 0.22.
    assert_eq!(trace, [(0, vec![2, 3]), (1, vec![0, 1])]);
}

#[test]
fn dream_counts_what_is_masked_and_skips_empty_steps() {
    let sampler = TextSampler::Entropy { eps: 1e-3, alg_temp: 0.0 };
    let trace = run(&mut text(sampler, blocks(1, 4, 4)), &mut [true; 4], 0);
    assert_eq!(trace, [(1, vec![3]), (2, vec![2]), (3, vec![0, 1])]);
    let trace = run(&mut text(sampler, blocks(2, 2, 1)), &mut [true, false, true, true], 0);
    assert_eq!(trace, [(0, vec![0]), (1, vec![2, 3])]);
    let hot = TextSampler::Entropy { eps: 1e-3, alg_temp: 1.0 };
    let orders: std::collections::HashSet<_> =
        (0..20).map(|seed| run(&mut text(hot, blocks(1, 4, 4)), &mut [true; 4], seed)[0].1.clone()).collect();
    assert_eq!(orders.len(), 4, "any position may be the first");
}

#[test]
fn origin_commits_everything_by_the_last_step() {
    let mut counts = [0.0; 4];
    for seed in 0..500 {
        let trace = run(&mut text(TextSampler::Origin { eps: 1e-3 }, blocks(1, 16, 4)), &mut [true; 16], seed);
        for (step, chosen) in trace {
            counts[step] += chosen.len() as f64 / 8000.0;
        }
    }
    // A quarter at each step; the standard error is below 0.005.
    assert!(counts.iter().all(|share| (share - 0.25).abs() < 0.02), "{counts:?}");
}

#[test]
fn random_evaluates_only_what_commits() {
    let mut policy = text(TextSampler::Random, blocks(1, 8, 4));
    let due = policy.due(View { masked: &[true; 8], seed: 3, origin: 0 });
    assert_eq!(due.len(), 2);
    let trace = run(&mut policy, &mut [true; 8], 3);
    assert_eq!(trace.len(), 4);
    assert_eq!(trace[0].1, due);
}

fn image(sampler: ImageSampler, steps: usize, temperature: f64) -> Policy {
    Policy::image(&ImageParams {
        steps,
        guidance_scale: 0.0,
        schedule: Schedule::Cosine,
        temperature,
        token_temperature: None,
        sampler,
        grid: (4, 4),
        initial_codes: Vec::new(),
        preview_every: 0,
    })
}

#[test]
fn maskgit_follows_its_schedule() {
    let trace = run(&mut image(ImageSampler::Maskgit, 4, 0.0), &mut [true; 16], 1);
    // floor(16·cos(π/8, π/4, 3π/8)) = 14, 11, 6 stay masked; without noise the most confident are the last ones.
    assert_eq!(trace.iter().map(|(s, c)| (*s, c.len())).collect::<Vec<_>>(), [(0, 2), (1, 3), (2, 5), (3, 6)]);
    assert_eq!(trace[0].1, [14, 15]);
}

#[test]
fn compat_follows_the_same_schedule_and_commits_equals() {
    let trace = run(&mut image(ImageSampler::MaskgitCompat, 4, 0.0), &mut [true; 16], 1);
    assert_eq!(trace.iter().map(|(s, c)| (*s, c.len())).collect::<Vec<_>>(), [(0, 2), (1, 3), (2, 5), (3, 6)]);
    let policy = image(ImageSampler::MaskgitCompat, 4, 0.0);
    let view = View { masked: &[true; 16], seed: 0, origin: 0 };
    let due: Vec<u32> = (0..16).collect();
    assert_eq!(policy.choose(view, &due, &[sure(0.5); 16]).len(), 16);
}

#[test]
fn emerge_commits_everything_by_the_last_step() {
    let mut counts = [0usize; 4];
    for seed in 0..500 {
        for (step, chosen) in run(&mut image(ImageSampler::Emerge, 4, 1.0), &mut [true; 16], seed) {
            counts[step] += chosen.len();
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 16 * 500);
    // Expected shares are the differences of cos(πr/2); the standard error is below 0.006.
    for (count, share) in counts.iter().zip([0.0761, 0.2168, 0.3244, 0.3827]) {
        assert!((*count as f64 / 8000.0 - share).abs() < 0.02, "{counts:?}");
    }
}
