//! Text: blocks from left to right, a number of steps for each. What the families share, and LLaDA's own samplers.

use super::{View, dream, fast, highest, sdar};
use crate::diffusion::params::{TextParams, TextSampler};
use crate::diffusion::sample::{Rule, Score};
use crate::diffusion::schedule::{Block, dream_quota, dream_share, quota};

/// Where a text stands.
#[derive(Debug, Clone)]
pub(crate) struct TextPolicy {
    sampler: TextSampler,
    pub(super) rule: Rule,
    pub(super) blocks: Vec<Block>,
    /// The current block, and steps taken in it.
    pub(super) block: usize,
    within: usize,
    /// Masked positions of the block when it began.
    at_entry: usize,
    pub(super) step: usize,
}

impl TextPolicy {
    pub(super) fn new(params: &TextParams, blocks: Vec<Block>) -> Self {
        let score = match params.sampler {
            TextSampler::LowConfidence | TextSampler::Random | TextSampler::Origin { .. } => Score::Plain,
            // Fast-dLLM bans the mask id before the softmax.
            TextSampler::Threshold { .. } | TextSampler::Factor { .. } => Score::Allowed,
            TextSampler::MaskgitPlus { .. } => Score::Filtered,
            TextSampler::TopkMargin { .. } => Score::Margin,
            TextSampler::Entropy { .. } => Score::NegativeEntropy,
            TextSampler::LowConfidenceDynamic { .. } | TextSampler::LowConfidenceStatic | TextSampler::Sequential => {
                Score::Drawn
            }
            TextSampler::EntropyBounded { .. } => Score::DrawnEntropy,
        };
        let rule = Rule { temperature: params.temperature, top_k: params.top_k, top_p: params.top_p, score };
        Self { sampler: params.sampler, rule, blocks, block: 0, within: 0, at_entry: 0, step: 0 }
    }

    pub(super) fn due(&mut self, view: View<'_>) -> Vec<u32> {
        while let Some(&block) = self.blocks.get(self.block) {
            if self.within == 0 {
                self.at_entry = view.masked[block.start..block.end].iter().filter(|&&m| m).count();
            }
            let eligible = view.eligible(block.end);
            if eligible.is_empty() || self.within >= block.steps {
                self.next_block(block);
                continue;
            }
            let due = self.evaluated(view, eligible, block);
            if !due.is_empty() {
                return due;
            }
            self.advance();
        }
        Vec::new()
    }

    /// The eligible positions that the step evaluates: those that will commit, where that is known; none when none will.
    fn evaluated(&self, view: View<'_>, eligible: Vec<u32>, block: Block) -> Vec<u32> {
        match self.sampler {
            TextSampler::Random => {
                let draws: Vec<f64> = eligible.iter().map(|&p| view.uniform(self.step, p)).collect();
                highest(&draws, self.commits(eligible.len())).into_iter().map(|i| eligible[i]).collect()
            }
            TextSampler::Origin { eps } => {
                view.picked(self.step, &eligible, f64::from(dream_share(block.steps, eps, self.within)))
            }
            TextSampler::Sequential => eligible[..self.commits(eligible.len())].to_vec(),
            _ if self.commits(eligible.len()) == 0 => Vec::new(),
            _ => eligible,
        }
    }

    pub(super) fn advance(&mut self) {
        self.step += 1;
        self.within += 1;
    }

    fn next_block(&mut self, block: Block) {
        // A fixed plan numbers its steps by the plan, so that skipped ones keep their numbers; an adaptive one counts.
        if !self.sampler.adaptive() {
            self.step += block.steps - self.within;
        }
        self.block += 1;
        self.within = 0;
    }

    /// SDAR: the least that this step commits of the `eligible` positions, an even share of the whole block.
    fn share(&self, block: Block, eligible: usize) -> usize {
        if self.within + 1 == block.steps && self.block + 1 == self.blocks.len() {
            return eligible;
        }
        quota(block.end - block.start, block.steps, self.within).min(eligible)
    }

    /// The most positions that this step may commit of the `eligible` ones.
    fn commits(&self, eligible: usize) -> usize {
        let Some(&block) = self.blocks.get(self.block) else { return 0 };
        let last_step = self.within + 1 == block.steps;
        let last_block = self.block + 1 == self.blocks.len();
        match self.sampler {
            TextSampler::Threshold { .. } | TextSampler::Factor { .. } | TextSampler::Origin { .. } => eligible,
            TextSampler::LowConfidenceDynamic { .. } | TextSampler::EntropyBounded { .. } => eligible,
            TextSampler::LowConfidenceStatic | TextSampler::Sequential => self.share(block, eligible),
            TextSampler::MaskgitPlus { eps, .. }
            | TextSampler::TopkMargin { eps, .. }
            | TextSampler::Entropy { eps, .. } => dream_quota(eligible, block.steps, eps, self.within),
            // Masks inside the prompt take places of the plan (LLaDA counts the block alone): the end clears them.
            TextSampler::LowConfidence | TextSampler::Random if last_step && last_block => eligible,
            TextSampler::LowConfidence | TextSampler::Random => {
                quota(self.at_entry, block.steps, self.within).min(eligible)
            }
        }
    }

    pub(super) fn choose(&self, view: View<'_>, positions: &[u32], scores: &[f64]) -> Vec<usize> {
        let Some(&block) = self.blocks.get(self.block) else { return Vec::new() };
        let all = || (0..scores.len()).collect();
        let n = || self.commits(view.eligible(block.end).len());
        match self.sampler {
            TextSampler::Random | TextSampler::Origin { .. } | TextSampler::Sequential => all(),
            TextSampler::LowConfidence | TextSampler::LowConfidenceStatic => highest(scores, n()),
            TextSampler::LowConfidenceDynamic { threshold } => {
                sdar::dynamic(scores, self.share(block, scores.len()), threshold)
            }
            TextSampler::EntropyBounded { threshold } => {
                sdar::entropy_bounded(scores, self.share(block, scores.len()), threshold)
            }
            TextSampler::Threshold { .. } | TextSampler::Factor { .. } if self.within + 1 >= block.steps => all(),
            TextSampler::Threshold { threshold } => fast::confident(scores, threshold),
            TextSampler::Factor { factor } => fast::by_factor(scores, factor),
            TextSampler::MaskgitPlus { alg_temp, .. }
            | TextSampler::TopkMargin { alg_temp, .. }
            | TextSampler::Entropy { alg_temp, .. } => {
                dream::choose(scores, n(), alg_temp, |i| view.gumbel(self.step, positions[i]))
            }
        }
    }
}
