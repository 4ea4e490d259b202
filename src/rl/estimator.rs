//! Which masked inputs stand for a completion at an inner step, and how their log-probabilities become one number per
//! scored position: MaskGRPO, diffu-GRPO (d1), UniGRPO (MMaDA) and coupled-GRPO behind one interface.
//!
//! An estimate is linear: position k gets Σ weight · log p over the inputs that mask k. [`Step`] applies that map to
//! log-probabilities and its transpose to gradients. Only the masks of the *current* inner step have weight; the
//! released MaskGRPO code weights every position by how many of all μ masks cover it, visible ones included.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::RlError;
use super::logprob::{Sample, View};
use super::loss::Mean;
use super::masks::{Mask, MaskMode, coupled, decision, draw, ratio, spread_ratio, trajectory, uniforms};
use crate::diffusion::rng::Purpose;

/// A likelihood estimator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Estimator {
    /// One mask per inner step, its ratio between γ and 1 (arXiv 2510.02880).
    MaskGrpo {
        /// [`MaskMode::ArLike`] for text, [`MaskMode::Random`] for images.
        mode: MaskMode,
        /// Smallest ratio: 0.6 for text, 0.8 for images; below, image learning collapses.
        gamma: f64,
        /// How the ratios are laid out.
        ratios: Ratios,
    },
    /// The completion's own way, in μ parts: each inner step scores what was committed in one part, given what came
    /// before it (TraceRL, arXiv 2509.06949). With an ancestral sampler the sum over the parts is the likelihood of the
    /// choices that were made, up to what one part draws at once.
    Trajectory,
    /// The completion's own way, at the μ steps that were least decided, each as the sampler saw it: one an inner step.
    /// The gradient of the other steps is small (see [`decision`]).
    Decisions,
    /// The whole completion masked, prompt tokens too with this probability (arXiv 2504.12216: 0.15).
    DiffuGrpo {
        /// Probability of masking a prompt token.
        prompt: f64,
    },
    /// Ratios evenly spaced from one uniform draw per example to 1 (arXiv 2505.15809).
    UniGrpo,
    /// Fully masked, a random mask and its complement; every token is scored twice (arXiv 2506.20639).
    Coupled {
        /// The ratio is uniform in this range: 0.2 to 0.8. A small one inflates the log-ratio by its inverse.
        ratio: (f64, f64),
    },
}

/// Which mask ratios an inner step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratios {
    /// One for the whole batch, rising to 1 over the inner steps, as published.
    Rising,
    /// Each completion has its own, spread evenly over its inner steps: every inner step sees all ratios. With few
    /// inner steps the published schedule sees only the largest.
    #[default]
    Spread,
}

impl Estimator {
    /// MaskGRPO as published for text.
    pub const TEXT: Self = Self::MaskGrpo { mode: MaskMode::ArLike, gamma: 0.6, ratios: Ratios::Rising };
    /// MaskGRPO as published for images.
    pub const IMAGE: Self = Self::MaskGrpo { mode: MaskMode::Random, gamma: 0.8, ratios: Ratios::Rising };
    /// diffu-GRPO as published.
    pub const DIFFU: Self = Self::DiffuGrpo { prompt: 0.15 };
    /// coupled-GRPO as published.
    pub const COUPLED: Self = Self::Coupled { ratio: (0.2, 0.8) };

    /// Refuses settings without a meaning.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), RlError> {
        let (field, values) = match *self {
            Self::MaskGrpo { gamma, .. } => ("gamma", [gamma, gamma]),
            Self::DiffuGrpo { prompt } => ("prompt", [prompt, prompt]),
            Self::UniGrpo | Self::Trajectory | Self::Decisions => return Ok(()),
            Self::Coupled { ratio: (low, high) } if low > 0.0 && low <= high => ("ratio", [low, high]),
            Self::Coupled { ratio: (low, high) } => {
                return Err(RlError::invalid("ratio", format!("{low} to {high}; it must rise from above 0")));
            }
        };
        match values.iter().find(|value| !(0.0..1.0).contains(*value)) {
            Some(value) => Err(RlError::invalid(field, format!("{value} is outside 0 to 1 (exclusive)"))),
            None => Ok(()),
        }
    }

    /// How the method averages over tokens.
    #[must_use]
    pub fn mean(&self) -> Mean {
        match self {
            Self::UniGrpo => Mean::Sequence,
            _ => Mean::Token,
        }
    }

    /// The masked inputs of `sample` at inner step `j` of `inner`. Depends on the sample's id, never on its batch.
    #[must_use]
    pub fn masks(&self, sample: &Sample, seed: u64, inner: u32, j: u32) -> Vec<Mask> {
        let by = |purpose| uniforms(seed, sample.id, j, purpose);
        // One draw for all inner steps of the example.
        let first = || uniforms(seed, sample.id, 0, Purpose::MaskRatio)(0);
        // Where an example begins is its own matter, so that every inner step sees all of the way.
        let turn = || ((first() * f64::from(inner)) as u32 + j) % inner.max(1);
        let roles = &sample.roles;
        match *self {
            Self::MaskGrpo { mode, gamma, ratios } => {
                let ratio = match ratios {
                    Ratios::Rising => ratio(gamma, inner, j),
                    Ratios::Spread => spread_ratio(gamma, inner, j, first()),
                };
                vec![Mask::new(draw(mode, ratio, roles, by(Purpose::Mask)))]
            }
            Self::Trajectory => vec![trajectory(&sample.commit_steps, roles, inner.max(1), turn())],
            Self::Decisions => vec![decision(&sample.commit_steps, &sample.logprobs, roles, turn() as usize)],
            Self::DiffuGrpo { prompt } => {
                let draw_prompt = by(Purpose::PromptMask);
                let prefix = (0..sample.prefix.len() as u32).map(|k| draw_prompt(k) < prompt).collect();
                vec![Mask { prefix, ..Mask::new(draw(MaskMode::Full, 1.0, roles, |_| 0.0)) }]
            }
            Self::UniGrpo => {
                let first = first();
                let ratio = first + (1.0 - first) * f64::from(j) / f64::from(inner.max(2) - 1);
                vec![Mask::new(draw(MaskMode::Random, ratio, roles, by(Purpose::Mask)))]
            }
            Self::Coupled { ratio: (low, high) } => {
                let ratio = low + (high - low) * by(Purpose::MaskRatio)(0);
                let [mask, complement] = coupled(ratio, roles, by(Purpose::Mask));
                coupled_masks(mask, complement, [1.0, 1.0 / ratio, 1.0 / (1.0 - ratio)])
            }
        }
    }
}

/// The three inputs of coupled-GRPO with their `weights` (fully masked, mask, complement), halved.
#[must_use]
pub fn coupled_masks(mask: Vec<bool>, complement: Vec<bool>, weights: [f64; 3]) -> Vec<Mask> {
    let all = mask.iter().zip(&complement).map(|(a, b)| *a || *b).collect();
    let masks = [all, mask, complement].into_iter().zip(weights);
    masks.map(|(completion, weight)| Mask { weight: weight / 2.0, ..Mask::new(completion) }).collect()
}

/// The masked inputs of some samples at one inner step, and the linear map from their log-probabilities to one number
/// per scored position.
#[derive(Debug)]
pub struct Step<'a> {
    samples: &'a [Sample],
    /// Sample and mask of every input.
    masks: Vec<(usize, Mask)>,
    /// Per input: which scored position each of its log-probabilities adds to.
    slots: Vec<Vec<usize>>,
    segments: Vec<Range<usize>>,
}

impl<'a> Step<'a> {
    /// Inner step `j` of `inner` of `estimator` over `samples`.
    ///
    /// # Errors
    /// When the estimator's settings have no meaning.
    pub fn draw(estimator: &Estimator, samples: &'a [Sample], seed: u64, inner: u32, j: u32) -> Result<Self, RlError> {
        estimator.check()?;
        if j >= inner {
            return Err(RlError::invalid("inner", format!("inner step {j} of {inner}; they count from 0")));
        }
        Ok(Self::new(samples, samples.iter().map(|sample| estimator.masks(sample, seed, inner, j)).collect()))
    }

    /// Given masks, one list per sample. A sample's scored positions are the union of its masks.
    #[must_use]
    pub fn new(samples: &'a [Sample], masks: Vec<Vec<Mask>>) -> Self {
        let (mut flat, mut slots, mut segments, mut total) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (i, masks) in masks.into_iter().enumerate() {
            let len = masks.iter().map(|mask| mask.completion.len()).max().unwrap_or(0);
            let scored = |k: usize| masks.iter().any(|mask| mask.completion.get(k) == Some(&true));
            let mut slot = vec![0; len];
            let start = total;
            for (_, slot) in slot.iter_mut().enumerate().filter(|(k, _)| scored(*k)) {
                *slot = total;
                total += 1;
            }
            segments.push(start..total);
            for mask in masks {
                slots.push(mask.positions().map(|k| slot[k]).collect());
                flat.push((i, mask));
            }
        }
        Self { samples, masks: flat, slots, segments }
    }

    /// The same in parts of at most `max_rows` rows (or one sample), each with the samples that it is about.
    #[must_use]
    pub fn split(&self, max_rows: usize) -> Vec<(Range<usize>, Step<'a>)> {
        let mut masks: Vec<Vec<Mask>> = vec![Vec::new(); self.samples.len()];
        for (i, mask) in &self.masks {
            masks[*i].push(mask.clone());
        }
        let rows = |i: usize| masks[i].iter().map(|mask| View { sample: &self.samples[i], mask }.rows()).sum::<usize>();
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut filled = 0;
        for i in 0..self.samples.len() {
            match parts.last_mut() {
                Some(part) if filled + rows(i) <= max_rows => part.end = i + 1,
                _ => {
                    parts.push(i..i + 1);
                    filled = 0;
                }
            }
            filled += rows(i);
        }
        parts
            .into_iter()
            .map(|part| (part.clone(), Step::new(&self.samples[part.clone()], masks[part].to_vec())))
            .collect()
    }

    /// The inputs to evaluate.
    #[must_use]
    pub fn views(&self) -> Vec<View<'_>> {
        self.masks.iter().map(|(i, mask)| View { sample: &self.samples[*i], mask }).collect()
    }

    /// Where each sample's scored positions are in what [`gather`](Self::gather) returns; positions ascend.
    #[must_use]
    pub fn segments(&self) -> &[Range<usize>] {
        &self.segments
    }

    /// Number of scored positions.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.segments.last().map_or(0, |last| last.end)
    }

    /// One number per scored position, of the log-probabilities by view.
    #[must_use]
    pub fn gather(&self, logprobs: &[Vec<f32>]) -> Vec<f64> {
        let mut out = vec![0.0; self.scored()];
        for ((slots, (_, mask)), logprobs) in self.slots.iter().zip(&self.masks).zip(logprobs) {
            slots.iter().zip(logprobs).for_each(|(&slot, &lp)| out[slot] += mask.weight * f64::from(lp));
        }
        out
    }

    /// The gradient by view, of the gradient per scored position: the transpose of [`gather`](Self::gather).
    #[must_use]
    pub fn scatter(&self, gradient: &[f64]) -> Vec<Vec<f32>> {
        let of = |(slots, (_, mask)): (&Vec<usize>, &(usize, Mask))| {
            slots.iter().map(|&slot| (mask.weight * gradient[slot]) as f32).collect()
        };
        self.slots.iter().zip(&self.masks).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::logprob::Drawn;
    use crate::rl::masks::{Role, Tail, roles};

    fn sample(id: u64, len: usize) -> Sample {
        let completion: Vec<u32> = (0..len as u32).collect();
        let roles = roles(&completion, &[], Tail::Mask);
        Sample {
            id,
            prefix: vec![1; 40],
            suffix: vec![],
            vocab: 0..100,
            commit_steps: vec![],
            logprobs: vec![],
            drawn: Drawn::default(),
            completion,
            roles,
        }
    }

    #[test]
    fn p5_only_diffu_grpo_masks_prompt_positions() {
        let sample = sample(7, 30);
        for estimator in [Estimator::TEXT, Estimator::IMAGE, Estimator::UniGrpo, Estimator::COUPLED] {
            for j in 0..4 {
                assert!(estimator.masks(&sample, 1, 4, j).iter().all(|mask| mask.prefix.is_empty()));
            }
        }
        let prompts: Vec<usize> = (0..400)
            .map(|id| Estimator::DIFFU.masks(&Sample { id, ..sample.clone() }, 1, 4, 0)[0].prefix.clone())
            .map(|prefix| prefix.iter().filter(|m| **m).count())
            .collect();
        // 400 · 40 draws at 0.15: standard error 0.0028.
        let share = prompts.iter().sum::<usize>() as f64 / (400.0 * 40.0);
        assert!((share - 0.15).abs() < 0.012, "{share}");
    }

    #[test]
    fn p8_masks_do_not_depend_on_the_batch() {
        let many: Vec<Sample> = (0..5).map(|id| sample(id, 20 + id as usize)).collect();
        let alone = [many[3].clone()];
        for estimator in [Estimator::TEXT, Estimator::DIFFU, Estimator::UniGrpo, Estimator::COUPLED] {
            let batch = Step::draw(&estimator, &many, 5, 6, 2).unwrap();
            let single = Step::draw(&estimator, &alone, 5, 6, 2).unwrap();
            let masks: Vec<&Mask> = batch.masks.iter().filter(|(i, _)| *i == 3).map(|(_, mask)| mask).collect();
            assert_eq!(masks, single.masks.iter().map(|(_, mask)| mask).collect::<Vec<_>>());
        }
    }

    #[test]
    fn p11_the_fully_masked_input_without_prompt_masking_is_d1s() {
        let sample = sample(1, 12);
        let masks = Estimator::DiffuGrpo { prompt: 0.0 }.masks(&sample, 3, 2, 1);
        let input = View { sample: &sample, mask: &masks[0] }.input(99);
        assert_eq!((masks.len(), &input[..40], &input[40..]), (1, &[1; 40][..], &[99; 12][..]));
    }

    #[test]
    fn uni_grpo_spaces_its_ratios_evenly_up_to_all() {
        let sample = sample(2, 4000);
        let share = |j| Estimator::UniGrpo.masks(&sample, 8, 5, j)[0].count() as f64 / 4000.0;
        let shares: Vec<f64> = (0..5).map(share).collect();
        assert_eq!(shares[4], 1.0);
        for pair in shares.windows(2) {
            // Standard error of a difference below 0.012.
            assert!((pair[1] - pair[0] - (1.0 - shares[0]) / 4.0).abs() < 0.05, "{shares:?}");
        }
        assert!(Estimator::UniGrpo.masks(&sample, 8, 1, 0)[0].count() > 0);
    }

    #[test]
    fn every_inner_step_is_used_once_whatever_the_accumulation() {
        // B2: the released code counts micro-batches and so skips masks under gradient accumulation.
        let samples = [sample(1, 64)];
        let drawn = (0..12).map(|j| Step::draw(&Estimator::TEXT, &samples, 1, 12, j).unwrap().masks[0].1.clone());
        let drawn: Vec<Mask> = drawn.collect();
        assert!((0..12).all(|a| (0..a).all(|b| drawn[a] != drawn[b])));
        assert!(Step::draw(&Estimator::TEXT, &samples, 1, 12, 12).is_err());
    }

    #[test]
    fn decisions_are_the_least_decided_steps_once_each_wherever_an_example_begins() {
        let steps: Vec<u32> = (0..12).map(|k| k / 2).collect();
        let logprobs = vec![-0.1, 0.0, -3.0, 0.0, -0.2, 0.0, -1.0, 0.0, -0.3, 0.0, -2.0, 0.0];
        let begins: Vec<usize> = (0..40)
            .map(|id| {
                let sample = Sample { commit_steps: steps.clone(), logprobs: logprobs.clone(), ..sample(id, 12) };
                let at = |j| Estimator::Decisions.masks(&sample, 1, 3, j)[0].positions().collect::<Vec<_>>();
                let mut all: Vec<Vec<usize>> = (0..3).map(at).collect();
                let first = all[0][0];
                all.sort();
                assert_eq!(all, [vec![2, 3], vec![6, 7], vec![10, 11]]);
                first
            })
            .collect();
        assert!([2, 6, 10].iter().all(|first| begins.contains(first)), "{begins:?}");
    }

    #[test]
    fn scatter_is_the_transpose_of_gather() {
        let samples = [sample(1, 9), sample(2, 5)];
        let step = Step::draw(&Estimator::COUPLED, &samples, 4, 2, 0).unwrap();
        assert_eq!((step.scored(), step.segments()), (14, &[0..9, 9..14][..]));
        let value = |i: usize| ((i * 37 % 11) as f32 - 5.0) / 4.0;
        let logprobs: Vec<Vec<f32>> = step.views().iter().map(|v| (0..v.mask.count()).map(value).collect()).collect();
        let gradient: Vec<f64> = (0..14).map(|i| f64::from(value(i + 3))).collect();
        let forward: f64 = step.gather(&logprobs).iter().zip(&gradient).map(|(a, b)| a * b).sum();
        let back = step.scatter(&gradient);
        let pairs = logprobs.iter().flatten().zip(back.iter().flatten());
        let backward: f64 = pairs.map(|(a, b)| f64::from(a * b)).sum();
        assert!((forward - backward).abs() < 1e-5, "{forward} {backward}");
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        let text = |gamma| Estimator::MaskGrpo { mode: MaskMode::ArLike, gamma, ratios: Ratios::Spread };
        let refused = [text(1.0), text(-0.1), text(f64::NAN), Estimator::DiffuGrpo { prompt: 2.0 }];
        assert!(refused.iter().all(|e| e.check().is_err()));
        assert!(Estimator::Coupled { ratio: (0.0, 0.8) }.check().is_err());
        assert!(Estimator::Coupled { ratio: (0.8, 0.2) }.check().is_err());
        let fine = [Estimator::TEXT, Estimator::IMAGE, Estimator::DIFFU, Estimator::UniGrpo, Estimator::COUPLED];
        assert!(fine.iter().all(|e| e.check().is_ok()));
    }

    #[test]
    fn a_completion_without_scored_positions_has_an_empty_segment() {
        let mut samples = [sample(1, 4), sample(2, 3)];
        samples[0].roles = vec![Role::Given; 4];
        let step = Step::draw(&Estimator::TEXT, &samples, 4, 2, 0).unwrap();
        assert_eq!(step.segments()[0], 0..0);
        assert!(step.scored() > 0);
    }
}
