//! Which positions of a finished completion are masked again, so that the model can be asked for them.
//!
//! Pure: lengths, ratios and uniform draws in, booleans out. A draw is keyed by (seed, example, inner step, position)
//! and by nothing else, so the new, the old and the reference policy get the same mask in any batch and on any device.

use std::collections::BTreeMap;

use crate::diffusion::rng::{Purpose, mix64, uniform};

/// The largest ratio of a schedule: a little context always remains possible.
const MAX_RATIO: f64 = 0.999;

/// What a position of a completion is to training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Generated: may be masked, and is then scored.
    Scored,
    /// Part of the context, never masked (given by the request, or kept after the end).
    Given,
    /// Masked in every input and never scored.
    Hidden,
}

/// What becomes of the positions after the first end-of-text token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tail {
    /// Masked and scored like any other (the released MaskGRPO code).
    Train,
    /// Masked in the input, not scored (SPG, dLLM-RL): the end is predicted without seeing the filling after it.
    #[default]
    Mask,
    /// Visible, not scored.
    Keep,
}

/// The role of every position of `completion`; `eos` are the ids that end a text (empty for images).
#[must_use]
pub fn roles(completion: &[u32], eos: &[u32], tail: Tail) -> Vec<Role> {
    let end = completion.iter().position(|id| eos.contains(id)).map_or(completion.len(), |at| at + 1);
    let after = match tail {
        Tail::Train => Role::Scored,
        Tail::Mask => Role::Hidden,
        Tail::Keep => Role::Given,
    };
    (0..completion.len()).map(|k| if k < end { Role::Scored } else { after }).collect()
}

/// How positions are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskMode {
    /// Later positions more often (MaskGRPO's "fading-out", for text): see [`keep_probability`].
    ArLike,
    /// Each position on its own with the ratio's probability (images).
    Random,
    /// Exactly `ratio · n` of the `n` positions, at least one (likelihood bounds).
    ExactCount,
    /// All (diffu-GRPO).
    Full,
}

/// One masked input of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Per completion position: masked and scored.
    pub completion: Vec<bool>,
    /// Per completion position: masked and not scored. Empty is none.
    pub hidden: Vec<bool>,
    /// Per position before the completion: masked, never scored. Empty is none.
    pub prefix: Vec<bool>,
    /// Factor of this input's log-probabilities where several inputs make up one estimate.
    pub weight: f64,
}

impl Mask {
    /// A mask of completion positions alone, with weight 1.
    #[must_use]
    pub fn new(completion: Vec<bool>) -> Self {
        Self { completion, hidden: Vec::new(), prefix: Vec::new(), weight: 1.0 }
    }

    /// Its scored positions, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.completion.iter().enumerate().filter(|(_, masked)| **masked).map(|(k, _)| k)
    }

    /// Number of scored positions.
    #[must_use]
    pub fn count(&self) -> usize {
        self.positions().count()
    }
}

/// The mask ratio of inner step `j` of `inner`: `min(γ + (1−γ)(j+1)/μ, 0.999)`, ascending (MaskGRPO §3.3).
#[must_use]
pub fn ratio(gamma: f64, inner: u32, j: u32) -> f64 {
    (gamma + (1.0 - gamma) * (f64::from(j) + 1.0) / f64::from(inner.max(1))).min(MAX_RATIO)
}

/// The same with a start of the example's own, `first` in [0, 1): μ ratios evenly spaced on the circle from γ to 1.
#[must_use]
pub fn spread_ratio(gamma: f64, inner: u32, j: u32, first: f64) -> f64 {
    let at = (first + f64::from(j) / f64::from(inner.max(1))).fract();
    (gamma + (1.0 - gamma) * at).min(MAX_RATIO)
}

/// Part `part` of `parts` of the way a completion was generated, by the step at which each position was committed: what
/// came before is visible, what was committed in this part is scored, what came later is hidden. Positions of one step
/// were drawn without seeing each other and stay together. The parts have about as many positions each, and every
/// scored position is in one of them.
#[must_use]
pub fn trajectory(steps: &[u32], roles: &[Role], parts: u32, part: u32) -> Mask {
    let mut order: Vec<u32> = scored_steps(steps, roles).collect();
    order.sort_unstable();
    let of = |step: u32| {
        let before = order.partition_point(|&other| other < step) as u64;
        (before * u64::from(parts) / order.len().max(1) as u64) as u32
    };
    let parts: Vec<Option<u32>> =
        (0..roles.len()).map(|k| (roles[k] == Role::Scored).then(|| of(step_of(steps, k)))).collect();
    let scored = parts.iter().map(|of| *of == Some(part)).collect();
    let hidden = parts.iter().map(|of| of.is_some_and(|of| of > part)).collect();
    Mask { hidden, ..Mask::new(scored) }
}

/// One step of the way a completion was generated, as the sampler saw it: what came before is visible, what was committed
/// is scored, what came later is hidden. It is the step that is number `rank` when the least decided comes first: most
/// tokens are all but certain once those around them are known, and have no gradient; what differs between completions was
/// decided in a few steps. `logprobs` are those of the tokens when they were drawn; one that is not known counts as open.
#[must_use]
pub fn decision(steps: &[u32], logprobs: &[f32], roles: &[Role], rank: usize) -> Mask {
    let mut open: BTreeMap<u32, f64> = BTreeMap::new();
    for k in (0..roles.len()).filter(|&k| roles[k] == Role::Scored) {
        // The squared gradient by the logit of the token that was drawn.
        let left = 1.0 - logprobs.get(k).map_or(0.0, |logprob| f64::from(*logprob).exp());
        *open.entry(step_of(steps, k)).or_default() += left * left;
    }
    let mut ranked: Vec<(u32, f64)> = open.into_iter().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let chosen = ranked.get(rank).map(|(step, _)| *step);
    let at = |k: usize| (roles[k] == Role::Scored).then(|| step_of(steps, k)).zip(chosen);
    let scored = (0..roles.len()).map(|k| at(k).is_some_and(|(step, chosen)| step == chosen)).collect();
    let hidden = (0..roles.len()).map(|k| at(k).is_some_and(|(step, chosen)| step > chosen)).collect();
    Mask { hidden, ..Mask::new(scored) }
}

fn scored_steps<'a>(steps: &'a [u32], roles: &'a [Role]) -> impl Iterator<Item = u32> + 'a {
    (0..roles.len()).filter(|&k| roles[k] == Role::Scored).map(|k| step_of(steps, k))
}

/// A position whose step is not known came last: the end of a text is not in the log.
fn step_of(steps: &[u32], k: usize) -> u32 {
    steps.get(k).copied().unwrap_or(u32::MAX)
}

/// Probability that each of `len` positions stays visible under [`MaskMode::ArLike`]: falls linearly to 0 at the last,
/// with mean `1 − ratio` for ratios from one half on; below, the clamp at 1 masks more than `ratio`.
#[must_use]
pub fn keep_probability(len: usize, ratio: f64) -> Vec<f64> {
    let last = len.saturating_sub(1);
    let keep = |k: usize| if k == last { 0.0 } else { 2.0 * (1.0 - ratio) * (1.0 - k as f64 / last as f64) };
    (0..len).map(|k| keep(k).min(1.0)).collect()
}

/// `u > keep` per position. Strict: at `u = 0` even the last position stays visible.
#[must_use]
pub fn fade_out(keep: &[f64], uniforms: &[f64]) -> Vec<bool> {
    keep.iter().zip(uniforms).map(|(keep, u)| u > keep).collect()
}

/// `u < ratio` per position.
#[must_use]
pub fn bernoulli(ratio: f64, uniforms: &[f64]) -> Vec<bool> {
    uniforms.iter().map(|&u| u < ratio).collect()
}

/// The `count` smallest draws, the earlier position first among equals.
#[must_use]
pub fn smallest(count: usize, uniforms: &[f64]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..uniforms.len()).collect();
    order.sort_by(|&a, &b| uniforms[a].total_cmp(&uniforms[b]));
    let mut masked = vec![false; uniforms.len()];
    order.iter().take(count).for_each(|&k| masked[k] = true);
    masked
}

/// A mask over the scored positions of `roles`; `draw` gives the uniform of a position. Where any position can be
/// masked at least one is: the last scored one, if chance leaves none (the official code divides 0 by 0 there).
#[must_use]
pub fn draw(mode: MaskMode, ratio: f64, roles: &[Role], draw: impl Fn(u32) -> f64) -> Vec<bool> {
    let (scored, uniforms) = uniforms_of(roles, draw);
    let n = scored.len();
    let chosen = match mode {
        MaskMode::ArLike => fade_out(&keep_probability(n, ratio), &uniforms),
        MaskMode::Random => bernoulli(ratio, &uniforms),
        // A float-to-integer `as` saturates, and the clamp bounds it.
        MaskMode::ExactCount => smallest(((ratio * n as f64).round() as usize).clamp(1, n.max(1)), &uniforms),
        MaskMode::Full => vec![true; n],
    };
    let mut masked = spread(roles.len(), &scored, &chosen);
    if let Some(&last) = scored.last()
        && !chosen.contains(&true)
    {
        masked[last] = true;
    }
    masked
}

/// A mask and its complement within the scored positions (coupled-GRPO): every scored position is in exactly one.
#[must_use]
pub fn coupled(ratio: f64, roles: &[Role], draw: impl Fn(u32) -> f64) -> [Vec<bool>; 2] {
    let (scored, uniforms) = uniforms_of(roles, draw);
    let chosen = bernoulli(ratio, &uniforms);
    let others: Vec<bool> = chosen.iter().map(|masked| !masked).collect();
    [spread(roles.len(), &scored, &chosen), spread(roles.len(), &scored, &others)]
}

/// The draws of one example at inner step `j` for `purpose`, by position.
pub fn uniforms(seed: u64, example: u64, j: u32, purpose: Purpose) -> impl Fn(u32) -> f64 {
    let key = mix64(mix64(seed) ^ example);
    move |position| uniform(key, purpose, j, position)
}

fn uniforms_of(roles: &[Role], draw: impl Fn(u32) -> f64) -> (Vec<usize>, Vec<f64>) {
    let scored: Vec<usize> = (0..roles.len()).filter(|&k| roles[k] == Role::Scored).collect();
    let uniforms = scored.iter().map(|&k| draw(k as u32)).collect();
    (scored, uniforms)
}

fn spread(len: usize, scored: &[usize], chosen: &[bool]) -> Vec<bool> {
    let mut masked = vec![false; len];
    scored.iter().zip(chosen).for_each(|(&k, &chosen)| masked[k] = chosen);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODES: [MaskMode; 4] = [MaskMode::ArLike, MaskMode::Random, MaskMode::ExactCount, MaskMode::Full];

    fn share(mask: &[bool]) -> f64 {
        mask.iter().filter(|m| **m).count() as f64 / mask.len() as f64
    }

    fn close(got: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance), "{got:?} {expected:?}");
    }

    #[test]
    fn p8_masks_depend_on_seed_example_step_and_position_alone() {
        let roles = vec![Role::Scored; 64];
        let mask = |seed, example, j| draw(MaskMode::Random, 0.5, &roles, uniforms(seed, example, j, Purpose::Mask));
        assert_eq!(mask(1, 2, 3), mask(1, 2, 3));
        assert!([mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4)].iter().all(|other| *other != mask(1, 2, 3)));
        // A longer completion has the same draws where the shorter one has positions.
        let longer = vec![Role::Scored; 80];
        let long = draw(MaskMode::Random, 0.5, &longer, uniforms(1, 2, 3, Purpose::Mask));
        assert_eq!(long[..64], mask(1, 2, 3));
    }

    #[test]
    fn the_parts_of_a_trajectory_show_what_came_before_and_score_everything_once() {
        let steps = [4, 0, 0, 7, 2, 2, 5, 1];
        let mut roles = vec![Role::Scored; 9];
        roles[1] = Role::Given;
        let parts: Vec<Mask> = (0..3).map(|part| trajectory(&steps, &roles, 3, part)).collect();
        let times = |k: usize| parts.iter().filter(|mask| mask.completion[k]).count();
        // The ninth position has no step, so it came last.
        assert_eq!((0..9).map(times).collect::<Vec<_>>(), [1, 0, 1, 1, 1, 1, 1, 1, 1]);
        let of = |k: usize| parts.iter().position(|mask| mask.completion[k]);
        assert!(of(2) == Some(0) && of(8) == Some(2) && of(4) == of(5), "one step, one part");
        for (part, mask) in parts.iter().enumerate() {
            for k in (0..9).filter(|&k| roles[k] == Role::Scored) {
                assert_eq!(mask.hidden[k], of(k) > Some(part), "position {k} in part {part}");
            }
            assert!(!mask.hidden[1] && !mask.completion[1], "a given position is never masked");
        }
    }

    #[test]
    fn a_trajectory_of_unknown_steps_is_all_of_it_at_once() {
        let all = trajectory(&[], &[Role::Scored; 5], 4, 0);
        assert_eq!((all.count(), all.hidden.iter().any(|h| *h)), (5, false));
        assert!((1..4).all(|part| trajectory(&[], &[Role::Scored; 5], 4, part).count() == 0));
    }

    #[test]
    fn the_least_decided_step_comes_first_as_the_sampler_saw_it() {
        let (steps, logprobs) = ([1, 0, 0, 2, 2, 1, 4], [0.0, -0.1, -0.1, -2.0, -0.01, -5.0]);
        let mut roles = vec![Role::Scored; 7];
        roles[5] = Role::Given;
        let ranked: Vec<Mask> = (0..5).map(|rank| decision(&steps, &logprobs, &roles, rank)).collect();
        let scored = |mask: &Mask| mask.positions().collect::<Vec<_>>();
        // What is not known counts as open; after that 0.75 at step 2, 0.02 at step 0, nothing at step 1.
        assert_eq!(ranked.iter().map(scored).collect::<Vec<_>>(), [vec![6], vec![3, 4], vec![1, 2], vec![0], vec![]]);
        let hidden = |mask: &Mask| (0..7).filter(|&k| mask.hidden[k]).collect::<Vec<_>>();
        assert_eq!(
            ranked.iter().map(hidden).collect::<Vec<_>>(),
            [vec![], vec![6], vec![0, 3, 4, 6], vec![3, 4, 6], vec![]]
        );
    }

    #[test]
    fn spread_ratios_cover_the_range_evenly_whatever_the_start() {
        for first in [0.0, 0.13, 0.5, 0.99] {
            let mut ratios: Vec<f64> = (0..4).map(|j| spread_ratio(0.6, 4, j, first)).collect();
            ratios.sort_by(f64::total_cmp);
            assert!(ratios.iter().all(|r| (0.6..=0.999).contains(r)), "{ratios:?}");
            close(&ratios.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>(), &[0.1; 3], 1e-9);
        }
    }

    #[test]
    fn p9_ar_like_masks_the_ratio_and_always_the_end() {
        close(
            &keep_probability(8, 0.6 + 0.4 / 12.0),
            &[0.73333, 0.62857, 0.52381, 0.41905, 0.31429, 0.20952, 0.10476, 0.0],
            1e-5,
        );
        close(&keep_probability(8, 0.3), &[1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0], 1e-12);
        assert_eq!(keep_probability(1, 0.7), [0.0]);
        assert!(keep_probability(0, 0.7).is_empty());
        let roles = vec![Role::Scored; 256];
        for ratio in [0.5, 0.65, 0.8, 0.95] {
            let masks: Vec<Vec<bool>> = (0..200)
                .map(|example| draw(MaskMode::ArLike, ratio, &roles, uniforms(9, example, 0, Purpose::Mask)))
                .collect();
            let mean = masks.iter().map(|m| share(m)).sum::<f64>() / masks.len() as f64;
            // Standard error below 0.5 / √(200·256) = 0.0022.
            assert!((mean - ratio).abs() < 0.01, "{ratio}: {mean}");
            assert!(masks.iter().all(|m| m[255]));
            let front = masks.iter().map(|m| share(&m[..128])).sum::<f64>();
            let back = masks.iter().map(|m| share(&m[128..])).sum::<f64>();
            assert!(front < back, "the end fades out, not the beginning");
        }
    }

    #[test]
    fn p10_the_schedule_rises_to_its_cap() {
        let schedule = |gamma, inner| (0..inner).map(|j| ratio(gamma, inner, j)).collect::<Vec<_>>();
        close(&schedule(0.8, 6), &[0.83333, 0.86667, 0.9, 0.93333, 0.96667, 0.999], 1e-5);
        let text = schedule(0.6, 12);
        close(&[text[0], text[11]], &[0.63333, 0.999], 1e-5);
        // B4: one inner step is defined.
        close(&schedule(0.6, 1), &[0.999], 1e-12);
    }

    #[test]
    fn p11_a_mask_and_its_complement_partition_the_scored_positions() {
        let roles: Vec<Role> = (0..40).map(|k| if k % 5 == 0 { Role::Given } else { Role::Scored }).collect();
        let [mask, complement] = coupled(0.4, &roles, uniforms(1, 1, 0, Purpose::Mask));
        for (k, role) in roles.iter().enumerate() {
            assert_eq!(u8::from(mask[k]) + u8::from(complement[k]), u8::from(*role == Role::Scored));
        }
    }

    #[test]
    fn masks_are_never_empty_and_only_scored_positions_are_masked() {
        let roles = [Role::Given, Role::Scored, Role::Scored, Role::Hidden];
        for mode in MODES {
            for u in [0.0, 0.5, 1.0 - 1e-9] {
                let mask = draw(mode, 0.001, &roles, |_| u);
                assert!(mask.contains(&true) && !mask[0] && !mask[3], "{mode:?} {u} {mask:?}");
            }
            assert_eq!(draw(mode, 0.6, &[Role::Given, Role::Hidden], |_| 0.0), [false, false]);
            assert!(draw(mode, 0.6, &[], |_| 0.0).is_empty());
        }
        assert_eq!(draw(MaskMode::ExactCount, 0.5, &[Role::Scored; 10], |p| f64::from(p) / 10.0), {
            let mut half = [true; 10];
            half[5..].fill(false);
            half
        });
    }

    #[test]
    fn the_tail_is_trained_on_hidden_or_kept() {
        let completion = [5, 1, 9, 9, 1];
        let of = |tail| roles(&completion, &[9, 8], tail)[3..].to_vec();
        assert_eq!(of(Tail::Train), [Role::Scored; 2]);
        assert_eq!(of(Tail::default()), [Role::Hidden; 2]);
        assert_eq!(of(Tail::Keep), [Role::Given; 2]);
        // The end itself is scored; without one everything is.
        assert_eq!(roles(&completion, &[9], Tail::Mask)[..3], [Role::Scored; 3]);
        assert_eq!(roles(&completion, &[], Tail::Mask), [Role::Scored; 5]);
    }
}
