//! How many positions commit at which step. Pure arithmetic on counts; which positions is `select`'s business.

use std::f32::consts::PI;

use super::params::{Invalid, Schedule};

impl Schedule {
    /// Share of the positions still masked after a share `r` of the steps.
    #[must_use]
    pub fn masked_share(self, r: f64) -> f64 {
        match self {
            Self::Cosine => (r * std::f64::consts::FRAC_PI_2).cos(),
            Self::Linear => 1.0 - r,
            Self::Pow2 => 1.0 - r * r,
            Self::Sigmoid => {
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                (sigmoid(3.0) - sigmoid(6.0 * r - 3.0)) / (sigmoid(3.0) - sigmoid(-3.0))
            }
        }
    }

    /// The same in f32, operation for operation as the reference code: `floor(N·κ)` has knife edges (1024 tokens at
    /// r = 2/3 give 511, not 512).
    fn masked_share_f32(self, r: f32) -> f32 {
        match self {
            Self::Cosine => (r * PI * 0.5).cos(),
            Self::Linear => 1.0 - r,
            Self::Pow2 => 1.0 - r * r,
            Self::Sigmoid => {
                let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
                (sigmoid(3.0) - sigmoid(r * 6.0 - 3.0)) / (sigmoid(3.0) - sigmoid(-3.0))
            }
        }
    }
}

/// Positions that commit in step `i` of a block whose `masked` positions are spread over `steps`: evenly, the
/// remainder in the first steps (LLaDA, `get_num_transfer_tokens`).
#[must_use]
pub fn quota(masked: usize, steps: usize, i: usize) -> usize {
    masked / steps + usize::from(i < masked % steps)
}

/// Share of the masked positions that commit in step `i` of `steps` under Dream's schedule, `1 − t(i+1)/t(i)` with t from
/// 1 to `eps`, in f32 as the official code; everything in the last one.
#[must_use]
pub fn dream_share(steps: usize, eps: f64, i: usize) -> f32 {
    if i + 1 >= steps {
        return 1.0;
    }
    let eps = eps as f32;
    let step = (eps - 1.0) / steps as f32;
    // `torch.linspace` counts from the nearer end.
    let t = |i: usize| if i < steps.div_ceil(2) { 1.0 + step * i as f32 } else { eps - step * (steps - i) as f32 };
    1.0 - t(i + 1) / t(i)
}

/// Positions of `masked` that commit in step `i` of `steps` under Dream's schedule; may be none.
#[must_use]
pub fn dream_quota(masked: usize, steps: usize, eps: f64, i: usize) -> usize {
    if i + 1 >= steps {
        return masked;
    }
    // A float-to-integer `as` truncates.
    (masked as f32 * dream_share(steps, eps, i)) as usize
}

/// Scale of MMaDA's confidence noise in step `step` of `steps`: its code multiplies the temperature by `1 − (j+1)/steps`
/// before every use, and keeps the product.
#[must_use]
pub fn compat_noise(temperature: f64, step: usize, steps: usize) -> f64 {
    (0..=step).map(|j| 1.0 - (j + 1) as f64 / steps as f64).product::<f64>() * temperature
}

/// Positions of a grid of `cells` that stay masked after `step` of `steps`, of the `masked` ones now (MaskGIT:
/// `max(1, min(masked − 1, floor(cells·κ(r))))`, none after the last step).
#[must_use]
pub fn masked_after(schedule: Schedule, cells: usize, masked: usize, step: usize, steps: usize) -> usize {
    if step + 1 >= steps {
        return 0;
    }
    let r = (step + 1) as f64 / steps as f64;
    let scheduled = (cells as f32 * schedule.masked_share_f32(r as f32)).floor();
    // A float-to-integer `as` saturates: a negative rounding error gives 0.
    (scheduled as usize).min(masked.saturating_sub(1)).max(1)
}

/// Probability that a masked position commits in `step` of `steps` under the absorbing process: `1 − κ(s)/κ(t)`
/// (MaskGRPO, Alg. 4).
#[must_use]
pub fn emerge_probability(schedule: Schedule, step: usize, steps: usize) -> f64 {
    if step + 1 >= steps {
        return 1.0;
    }
    let share = |step: usize| schedule.masked_share(step as f64 / steps as f64);
    1.0 - share(step + 1) / share(step)
}

/// One semi-autoregressive block: where it ends in the canvas, and how many steps it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// First position of the block.
    pub start: usize,
    /// One past its last position; masked positions before it are eligible.
    pub end: usize,
    /// Steps of the run that belong to it.
    pub steps: usize,
}

/// Blocks of a plain completion: `max_tokens` after a prefix of `prefix`.
///
/// # Errors
/// When lengths or steps do not divide, as in the reference; names the nearest values that do.
pub fn even_blocks(prefix: usize, max_tokens: usize, block_length: usize, steps: usize) -> Result<Vec<Block>, Invalid> {
    if block_length > max_tokens || !max_tokens.is_multiple_of(block_length) {
        let (below, above) = neighbours(block_length, |b| b <= max_tokens && max_tokens.is_multiple_of(b));
        return Err(Invalid::new(
            "block_length",
            format!("{block_length} does not divide max_tokens = {max_tokens}; use {}", either(below, above)),
        ));
    }
    let blocks = max_tokens / block_length;
    if !steps.is_multiple_of(blocks) {
        let below = (steps / blocks) * blocks;
        return Err(Invalid::new(
            "steps",
            format!(
                "{steps} steps do not spread evenly over {blocks} blocks (max_tokens {max_tokens} / block_length \
                 {block_length}); use {}",
                either((below > 0).then_some(below), Some(below + blocks))
            ),
        ));
    }
    let block = |b: usize| {
        let start = prefix + b * block_length;
        Block { start, end: start + block_length, steps: steps / blocks }
    };
    Ok((0..blocks).map(block).collect())
}

/// SDAR's blocks of a completion: they begin at multiples of `block_length`, so that the first one may hold the end of the
/// prefix, and the last one may end after the completion. Each gets `steps`.
///
/// # Errors
/// When a block has more steps than positions.
pub fn aligned_blocks(
    prefix: usize,
    max_tokens: usize,
    block_length: usize,
    steps: usize,
) -> Result<Vec<Block>, Invalid> {
    check_steps_per_block(block_length, steps)?;
    let block = |b: usize| Block { start: b * block_length, end: (b + 1) * block_length, steps };
    Ok((prefix / block_length..(prefix + max_tokens).div_ceil(block_length)).map(block).collect())
}

/// Every step commits at least one position.
fn check_steps_per_block(block_length: usize, steps: usize) -> Result<(), Invalid> {
    if steps <= block_length {
        return Ok(());
    }
    let message = format!("{steps} steps for each block of {block_length}; this sampler takes at most {block_length}");
    Err(Invalid::new("steps", message))
}

/// Blocks of a template: windows of `block_length` from the start of the canvas, the last one shorter; those without
/// a hole get no steps, the others an even share, the remainder to the first.
///
/// # Errors
/// When there are fewer steps than blocks with holes.
pub fn template_blocks(masked: &[bool], block_length: usize, steps: usize) -> Result<Vec<Block>, Invalid> {
    let windows = masked.chunks(block_length).enumerate();
    let holes: Vec<usize> = windows.filter(|(_, w)| w.contains(&true)).map(|(i, _)| i).collect();
    if steps < holes.len() {
        return Err(Invalid::new(
            "steps",
            format!("{steps} steps are too few for the {} blocks with holes; use at least as many", holes.len()),
        ));
    }
    let block = |(i, &window): (usize, &usize)| Block {
        start: window * block_length,
        end: ((window + 1) * block_length).min(masked.len()),
        steps: quota(steps, holes.len(), i),
    };
    Ok(holes.iter().enumerate().map(block).collect())
}

/// The same, with `steps` for each block that has a hole (SDAR).
///
/// # Errors
/// When a block has more steps than positions.
pub fn aligned_template_blocks(masked: &[bool], block_length: usize, steps: usize) -> Result<Vec<Block>, Invalid> {
    check_steps_per_block(block_length, steps)?;
    let spread = template_blocks(masked, block_length, masked.len())?;
    Ok(spread.into_iter().map(|block| Block { steps, ..block }).collect())
}

/// The nearest values below and above `value` that satisfy `valid`; the search ends at 1 and where `valid` cannot hold.
fn neighbours(value: usize, valid: impl Fn(usize) -> bool) -> (Option<usize>, Option<usize>) {
    let below = (1..value).rev().find(|&v| valid(v));
    let above = (value + 1..=value.saturating_mul(2).max(value + 64)).find(|&v| valid(v));
    (below, above)
}

fn either(below: Option<usize>, above: Option<usize>) -> String {
    match (below, above) {
        (Some(a), Some(b)) => format!("{a} or {b}"),
        (Some(a), None) | (None, Some(a)) => a.to_string(),
        (None, None) => "1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_those_of_the_reference() {
        // golden/llada/golden.json, num_transfer_tokens; golden/maskgrpo/transfer_counts.json
        let counts = |masked, steps| (0..steps).map(|i| quota(masked, steps, i)).collect::<Vec<_>>();
        assert_eq!(counts(16, 5), [4, 3, 3, 3, 3]);
        assert_eq!(counts(8, 12), [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(counts(10, 4), [3, 3, 2, 2]);
        assert_eq!(counts(0, 4), [0, 0, 0, 0]);
    }

    #[test]
    fn dream_commits_as_many_as_the_reference() {
        // golden/dream/golden.json, transfer_counts
        let counts = |mut masked: usize, steps, eps| -> Vec<usize> {
            let quotas = (0..steps).map(|i| {
                let quota = dream_quota(masked, steps, eps, i);
                masked -= quota;
                quota
            });
            quotas.collect()
        };
        assert_eq!(counts(14, 14, 1e-3), [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
        assert_eq!(counts(20, 6, 1e-3), [3, 3, 3, 3, 3, 5]);
        assert_eq!(counts(96, 96, 1e-3), [&[0][..], &[1; 94], &[2]].concat());
        assert_eq!(counts(300, 77, 1e-3), [&[3; 9][..], &[4; 67], &[5]].concat());
        assert_eq!(counts(90, 11, 1e-3), [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 10]);
        assert_eq!(counts(50, 9, 0.2), [4, 4, 4, 4, 4, 4, 4, 5, 17]);
        assert_eq!(counts(11, 1, 1e-3), [11]);
    }

    #[test]
    fn schedules_are_those_of_mmada() {
        // golden/mmada/golden.json, schedules
        let sigmoid = [
            1.0,
            0.968_588_23,
            0.920_701_3,
            0.850_853_56,
            0.755_271_55,
            0.635_292,
            0.5,
            0.364_707_98,
            0.244_728_46,
            0.149_146_5,
            0.079_298_73,
            0.031_411_77,
            1e-6,
        ];
        for (i, expected) in sigmoid.into_iter().enumerate() {
            let r = i as f64 / 12.0;
            assert!((Schedule::Sigmoid.masked_share(r) - expected).abs() < 2e-6, "{i}");
            assert!((f64::from(Schedule::Sigmoid.masked_share_f32(r as f32)) - expected).abs() < 2e-6, "{i}");
        }
    }

    #[test]
    fn maskgit_keeps_what_the_reference_keeps() {
        // golden/maskgrpo/schedules.json, maskgit_mask_len (before the clamp, which these counts do not reach)
        let kept = |schedule, cells, steps: usize| -> Vec<usize> {
            (0..steps - 1).map(|s| masked_after(schedule, cells, cells, s, steps)).collect()
        };
        assert_eq!(kept(Schedule::Cosine, 1024, 12), [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133]);
        assert_eq!(kept(Schedule::Linear, 1024, 12), [938, 853, 768, 682, 597, 512, 426, 341, 256, 170, 85]);
        assert_eq!(kept(Schedule::Cosine, 256, 8), [251, 236, 212, 181, 142, 97, 49]);
    }

    #[test]
    fn maskgit_commits_at_least_one_and_all_at_the_end() {
        assert_eq!(masked_after(Schedule::Cosine, 16, 16, 0, 20), 15);
        assert_eq!(masked_after(Schedule::Cosine, 16, 1, 3, 20), 1);
        assert_eq!(masked_after(Schedule::Cosine, 16, 7, 19, 20), 0);
    }

    #[test]
    fn emerge_stays_masked_as_the_paper_says() {
        // reference/maskgrpo.md §2.2, T = 12
        let stay: Vec<f64> = (0..11).map(|s| 1.0 - emerge_probability(Schedule::Cosine, s, 12)).collect();
        let expected =
            [0.99144, 0.97426, 0.95647, 0.93738, 0.91609, 0.89129, 0.86092, 0.82134, 0.76537, 0.67633, 0.50431];
        for (actual, expected) in stay.iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-5, "{actual} {expected}");
        }
        assert_eq!(emerge_probability(Schedule::Cosine, 11, 12), 1.0);
    }

    #[test]
    fn blocks_that_do_not_divide_are_refused_with_numbers() {
        let error = even_blocks(5, 64, 24, 32).unwrap_err();
        assert_eq!(error.to_string(), "block_length: 24 does not divide max_tokens = 64; use 16 or 32");
        let error = even_blocks(5, 64, 16, 30).unwrap_err();
        assert!(error.to_string().ends_with("use 28 or 32"), "{error}");
        let error = even_blocks(5, 64, 16, 3).unwrap_err();
        assert!(error.to_string().ends_with("use 4"), "{error}");
        let error = even_blocks(5, 8, 32, 8).unwrap_err();
        assert!(error.to_string().ends_with("use 8"), "{error}");
    }

    #[test]
    fn blocks_tile_the_completion() {
        let blocks = even_blocks(3, 8, 4, 6).unwrap();
        assert_eq!(blocks, [Block { start: 3, end: 7, steps: 3 }, Block { start: 7, end: 11, steps: 3 }]);
    }

    #[test]
    fn aligned_blocks_begin_at_multiples_and_cover_the_completion() {
        let blocks = aligned_blocks(6, 5, 4, 3).unwrap();
        assert_eq!(blocks, [Block { start: 4, end: 8, steps: 3 }, Block { start: 8, end: 12, steps: 3 }]);
        assert_eq!(aligned_blocks(8, 4, 4, 1).unwrap(), [Block { start: 8, end: 12, steps: 1 }]);
        let error = aligned_blocks(6, 5, 4, 5).unwrap_err().to_string();
        assert_eq!(error, "steps: 5 steps for each block of 4; this sampler takes at most 4");
        let masked = [false, true, true, false, false, false, true];
        let blocks = aligned_template_blocks(&masked, 3, 2).unwrap();
        assert_eq!(blocks, [Block { start: 0, end: 3, steps: 2 }, Block { start: 6, end: 7, steps: 2 }]);
    }

    #[test]
    fn template_blocks_skip_given_text() {
        let masked = [false, true, true, false, false, false, true];
        let blocks = template_blocks(&masked, 3, 5).unwrap();
        assert_eq!(blocks, [Block { start: 0, end: 3, steps: 3 }, Block { start: 6, end: 7, steps: 2 }]);
        assert!(template_blocks(&masked, 3, 1).is_err());
    }
}
