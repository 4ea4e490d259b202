use super::*;

const NEW: [f64; 6] = [-1.0, -2.0, -0.1, -1.2, -0.7, -3.0];
const OLD: [f64; 6] = [-1.3, -1.5, -0.1, -1.0, -1.2, -2.5];
const REF: [f64; 6] = [-1.1, -1.9, -0.2, -1.1, -0.9, -2.8];
const A: f64 = 0.707_101_8;

fn segments(advantages: [f64; 2]) -> [Segment; 2] {
    let segment = |range, advantage| Segment { range, advantage, weight: 1.0, dropped: false };
    [segment(0..3, advantages[0]), segment(3..6, advantages[1])]
}

fn loss(new: &[f64], old: &[f64], segments: &[Segment], config: &LossConfig) -> Loss {
    maskgrpo_loss(&Terms { new, old, reference: Some(&REF[..new.len()]), segments }, config, None).unwrap()
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() < tolerance, "{a} {b}");
}

fn free(beta: f64) -> LossConfig {
    LossConfig { beta, ..LossConfig::default() }
}

fn every_config() -> Vec<LossConfig> {
    let mut all = Vec::new();
    for level in [Level::Token, Level::Sequence] {
        for clip in [Clip::Ppo, Clip::Dual, Clip::OneSided, Clip::Unconditional] {
            for kl in [Kl::K1, Kl::K2, Kl::K3] {
                for mean in [Mean::Token, Mean::Sequence] {
                    all.push(LossConfig { level, clip, kl, mean, ..LossConfig::default() });
                }
            }
        }
    }
    all
}

#[test]
fn p1_equal_policies_have_ratio_one_and_still_a_gradient() {
    let loss = loss(&OLD, &OLD, &segments([A, -A]), &free(0.0));
    assert_eq!((loss.stats.ratio_mean(), loss.stats.ratio_max, loss.stats.clip_fraction()), (1.0, 1.0, 0.0));
    close(loss.value, 0.0, 1e-12);
    close(loss.stats.drift(), 0.0, 1e-12);
    loss.gradient[..3].iter().for_each(|g| close(*g, -A / 6.0, 1e-12));
    loss.gradient[3..].iter().for_each(|g| close(*g, A / 6.0, 1e-12));
    // The weight scales the policy term.
    let mut weighted = segments([A, -A]);
    weighted[0].weight = 0.5;
    close(super::tests::loss(&OLD, &OLD, &weighted, &free(0.0)).value, A / 4.0, 1e-12);
}

#[test]
fn p2_b5_without_advantage_only_the_penalty_remains_and_dropped_groups_count_nothing() {
    let none = loss(&NEW, &OLD, &segments([0.0, 0.0]), &free(0.0));
    assert!(none.value == 0.0 && none.gradient.iter().all(|g| *g == 0.0));
    let penalty = loss(&NEW, &OLD, &segments([0.0, 0.0]), &free(0.01));
    close(penalty.value, 0.01 * penalty.stats.kl(), 1e-12);
    assert!(penalty.gradient.iter().all(|g| *g != 0.0));
    let mut dropped = segments([A, 0.0]);
    dropped[1].dropped = true;
    for config in every_config() {
        let with = loss(&NEW, &OLD, &dropped, &config);
        let alone = loss(&NEW[..3], &OLD[..3], &dropped[..1], &config);
        close(with.value, alone.value, 1e-12);
        assert!(with.gradient[3..].iter().all(|g| *g == 0.0) && with.stats == alone.stats);
        dropped[0].dropped = true;
        let nothing = loss(&NEW, &OLD, &dropped, &config);
        assert!(nothing.value == 0.0 && nothing.stats.tokens == 0 && nothing.is_finite());
        dropped[0].dropped = false;
    }
}

#[test]
fn p3_the_penalty_is_zero_at_the_reference_and_never_negative() {
    for kl in [Kl::K2, Kl::K3] {
        assert_eq!(penalty(kl, 0.0), (0.0, -0.0 + 0.0));
        for d in [-300.0, -15.0, -2.0, -1e-3, 1e-3, 2.0, 300.0] {
            let (value, derivative) = penalty(kl, d);
            assert!(value >= 0.0 && value.is_finite() && derivative * d > 0.0, "{kl:?} {d}");
        }
    }
    assert_eq!(penalty(Kl::K1, 0.5), (0.5, 1.5));
}

#[test]
fn b6_a_runaway_penalty_is_bounded_and_still_pulls_back() {
    let (_, slope) = penalty(Kl::K3, -50.0);
    close(slope, 1.0 - 10f64.exp(), 1e-6);
    // Continuous where it becomes linear.
    let (below, above) = (penalty(Kl::K3, -10.0 + 1e-9), penalty(Kl::K3, -10.0 - 1e-9));
    close(below.0, above.0, 1e-3);
    close(below.1, above.1, 1e-3);
}

#[test]
fn p4_the_gradient_is_cut_only_where_an_advantage_was_followed_too_far() {
    let gradient = |d: f64, a: f64, clip| {
        let segment = [Segment { range: 0..1, advantage: a, weight: 1.0, dropped: false }];
        let config = LossConfig { clip, ..free(0.0) };
        let loss = loss(&[-1.0 + d], &[-1.0], &segment, &config);
        (loss.gradient[0], loss.stats.clipped, loss.stats.escaped)
    };
    for clip in [Clip::Ppo, Clip::OneSided] {
        close(gradient(0.1, 2.0, clip).0, -2.0 * 0.1f64.exp(), 1e-12);
        assert_eq!(gradient(0.5, 2.0, clip), (0.0, 1, 0));
        assert_eq!(gradient(-0.5, -2.0, clip), (0.0, 1, 0));
        close(gradient(-0.5, 2.0, clip).0, -2.0 * (-0.5f64).exp(), 1e-12);
        // B6: PPO's minimum does not bound what was made more likely although it was bad.
        assert_eq!(gradient(3.0, -2.0, clip), (2.0 * 3f64.exp(), 0, 1));
    }
    // Below its bound it is PPO's; there the value goes on without a step, and then not at all.
    for (d, a) in [(0.1, 2.0), (0.5, 2.0), (-0.5, -2.0), (-0.5, 2.0), (1.0, -2.0), (3.0, 2.0)] {
        assert_eq!(gradient(d, a, Clip::Dual), gradient(d, a, Clip::Ppo));
    }
    assert_eq!(gradient(1.2, -2.0, Clip::Dual), (0.0, 1, 0));
    let value = |d: f64| policy(&LossConfig { clip: Clip::Dual, ..free(0.0) }, -1.0, d, -2.0).value;
    close(value(3f64.ln() - 1e-9), value(3f64.ln() + 1e-9), 1e-6);
    let stable = |d, a| gradient(d, a, Clip::Unconditional).0;
    close(stable(3.0, -2.0), 2.4, 1e-12);
    close(stable(-3.0, -2.0), 1.6, 1e-12);
    close(stable(3.0, 2.0), -2.4, 1e-12);
    assert!(gradient(800.0, -1.0, Clip::Ppo).0.is_finite());
}

#[test]
fn p5_b1_positions_that_are_not_scored_have_no_weight() {
    // Positions 6 and 7 belong to nobody: whatever they hold, NaN included, changes nothing.
    let garbage = [f64::NAN, 1e9];
    let long = |values: [f64; 6]| [values.as_slice(), &garbage].concat();
    let (new, old, reference) = (long(NEW), long(OLD), long(REF));
    for config in every_config() {
        let segments = segments([A, -A]);
        let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
        let with = maskgrpo_loss(&terms, &config, None).unwrap();
        let without = loss(&NEW, &OLD, &segments, &config);
        assert_eq!((with.value, with.stats), (without.value, without.stats));
        assert_eq!((&with.gradient[..6], &with.gradient[6..]), (&without.gradient[..], &[0.0, 0.0][..]));
    }
}

#[test]
fn p6_the_order_of_completions_does_not_matter() {
    let segments = segments([A, -A]);
    let reversed = [segments[1].clone(), segments[0].clone()];
    for config in every_config() {
        let (a, b) = (loss(&NEW, &OLD, &segments, &config), loss(&NEW, &OLD, &reversed, &config));
        close(a.value, b.value, 1e-12);
        a.gradient.iter().zip(&b.gradient).for_each(|(a, b)| close(*a, *b, 1e-12));
    }
}

#[test]
fn p14_micro_batches_with_the_whole_denominator_add_up() {
    let mut segments = segments([A, -A]).to_vec();
    segments[0].range = 0..2;
    segments[1].range = 2..6;
    for config in every_config() {
        let whole = loss(&NEW, &OLD, &segments, &config);
        let parts = segments.chunks(1);
        let total: f64 = parts.clone().map(|part| denominator(part, config.mean)).sum();
        let (mut value, mut gradient, mut stats) = (0.0, vec![0.0; 6], Stats::default());
        for part in parts {
            let terms = Terms { new: &NEW, old: &OLD, reference: Some(&REF), segments: part };
            let part = maskgrpo_loss(&terms, &config, Some(total)).unwrap();
            value += part.value;
            gradient.iter_mut().zip(&part.gradient).for_each(|(sum, g)| *sum += g);
            stats.merge(&part.stats);
        }
        close(value, whole.value, 1e-12);
        gradient.iter().zip(&whole.gradient).for_each(|(a, b)| close(*a, *b, 1e-12));
        assert_eq!((stats.tokens, stats.clipped, stats.samples), (6, whole.stats.clipped, 2));
        close(stats.kl(), whole.stats.kl(), 1e-12);
    }
}

#[test]
fn p16_the_hand_computed_example() {
    let advantages = [2.5, 0.5].map(|r: f64| (r - 1.5) / (2f64.sqrt() + 1e-5));
    let loss_of = |beta| loss(&NEW, &OLD, &segments(advantages), &free(beta));
    let with = loss_of(0.01);
    close(with.value, 0.054_419_969_9, 1e-9);
    close(with.stats.kl(), 0.010_025_030_6, 1e-9);
    close(with.stats.clip_fraction(), 1.0 / 3.0, 1e-12);
    close(loss_of(0.0).value, 0.054_319_719_6, 1e-9);
}

#[test]
fn gradients_are_those_of_differences() {
    for config in every_config().into_iter().filter(|c| c.clip != Clip::Unconditional && c.kl != Kl::K1) {
        // A range none of whose ends is hit exactly: there the derivative jumps.
        let config = LossConfig { eps_low: 0.23, eps_high: 0.27, ..config };
        let at = |k: usize, by: f64| {
            let mut new = NEW;
            new[k] += by;
            loss(&new, &OLD, &segments([0.7, -1.1]), &config)
        };
        for k in 0..6 {
            let h = 1e-6;
            let numeric = (at(k, h).value - at(k, -h).value) / (2.0 * h);
            close(numeric, at(k, 0.0).gradient[k], 1e-8);
        }
    }
}

#[test]
fn b13_a_sequence_ratio_is_of_the_mean() {
    // 1024 tokens, each a little more likely: the sum would be e^102.
    let (new, old) = (vec![-6.9; 1024], vec![-7.0; 1024]);
    let segments = [Segment { range: 0..1024, advantage: 1.0, weight: 1.0, dropped: false }];
    let config = LossConfig { level: Level::Sequence, ..free(0.0) };
    let terms = Terms { new: &new, old: &old, reference: None, segments: &segments };
    let loss = maskgrpo_loss(&terms, &config, None).unwrap();
    close(loss.stats.ratio_max, 0.1f64.exp(), 1e-9);
    close(loss.gradient.iter().sum::<f64>(), -(0.1f64.exp()), 1e-9);
}

#[test]
fn b14_the_two_means_weigh_lengths_differently() {
    let mut segments = segments([1.0, -1.0]);
    segments[0].range = 0..1;
    segments[1].range = 1..6;
    let of = |mean| loss(&OLD, &OLD, &segments, &LossConfig { mean, ..free(0.0) });
    close(of(Mean::Token).value, 4.0 / 6.0, 1e-12);
    close(of(Mean::Sequence).value, 0.0, 1e-12);
    close(of(Mean::Sequence).gradient[5], 0.1, 1e-12);
}

#[test]
fn not_a_number_is_seen() {
    let mut new = NEW;
    new[1] = f64::NAN;
    for config in every_config() {
        assert!(!loss(&new, &OLD, &segments([A, -A]), &config).is_finite(), "{config:?}");
        assert!(loss(&NEW, &OLD, &segments([A, -A]), &config).is_finite());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let segments = segments([A, -A]);
    let terms = Terms { new: &NEW, old: &OLD, reference: None, segments: &segments };
    let refused = |terms: &Terms<'_>, config| maskgrpo_loss(terms, &config, None).is_err();
    assert!(refused(&terms, free(0.01)) && !refused(&terms, free(0.0)));
    assert!(refused(&Terms { old: &OLD[1..], ..terms }, free(0.0)));
    assert!(refused(&Terms { new: &NEW[1..], old: &OLD[1..], ..terms }, free(0.0)));
    assert!(refused(&terms, LossConfig { eps_low: 1.5, ..free(0.0) }));
    assert!(refused(&terms, LossConfig { eps_high: f64::NAN, ..free(0.0) }) && refused(&terms, free(-1.0)));
}

#[test]
fn stale_completions_are_weighted_by_a_truncated_mean_ratio() {
    close(behaviour_weight(&[-1.0, -2.0], &[-1.2, -2.2], 2.0), 0.2f64.exp(), 1e-12);
    assert_eq!(behaviour_weight(&[0.0; 1024], &[-9.0; 1024], 2.0), 2.0);
    assert!(behaviour_weight(&[-9.0], &[-1.0], 2.0) < 1e-3);
    assert_eq!(behaviour_weight(&[], &[], 2.0), 1.0);
    assert!(behaviour_weight(&[f64::INFINITY], &[0.0], 2.0) == 2.0);
}
