//! Which masked positions a step evaluates, and which of them commit. Pure: counts, confidences and counter-based
//! draws in, positions out.
//!
//! Where the choice does not depend on the logits (`random`, `emerge`) it is made before the forward, so that only
//! the positions that will commit are evaluated, and a step that commits nothing runs no forward at all.

use super::params::{ImageParams, ImageSampler, Schedule, TextSampler};
use super::rng::{Purpose, gumbel, uniform};
use super::sample::{Draw, Rule};
use super::schedule::{Block, emerge_probability, masked_after, quota};

/// What a policy sees of its canvas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    /// Which positions are masked.
    pub(crate) masked: &'a [bool],
    /// The completion's seed.
    pub(crate) seed: u64,
    /// Position that the random counter calls 0: the canvas' first for text, the grid's first for images.
    pub(crate) origin: usize,
}

impl View<'_> {
    fn eligible(&self, end: usize) -> Vec<u32> {
        (0..end.min(self.masked.len())).filter(|&p| self.masked[p]).map(|p| p as u32).collect()
    }

    /// The key of a position's draws.
    pub(crate) fn counter(&self, position: u32) -> u32 {
        position - self.origin as u32
    }
}

/// The remasking strategy of a canvas and how far it has come.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    /// Semi-autoregressive text.
    Text(TextPolicy),
    /// A grid of codes.
    Image(ImagePolicy),
}

/// Text: blocks from left to right, a number of steps for each.
#[derive(Debug, Clone)]
pub(crate) struct TextPolicy {
    pub(crate) sampler: TextSampler,
    pub(crate) rule: Rule,
    pub(crate) blocks: Vec<Block>,
    /// The current block, and steps taken in it.
    pub(crate) block: usize,
    within: usize,
    /// Masked positions of the block when it began.
    at_entry: usize,
    step: usize,
}

/// Image: all positions from the first step on.
#[derive(Debug, Clone)]
pub(crate) struct ImagePolicy {
    sampler: ImageSampler,
    schedule: Schedule,
    /// Scale of the confidence noise (maskgit).
    noise: f64,
    rule: Rule,
    cells: usize,
    steps: usize,
    step: usize,
}

impl Policy {
    pub(crate) fn text(sampler: TextSampler, rule: Rule, blocks: Vec<Block>) -> Self {
        Self::Text(TextPolicy { sampler, rule, blocks, block: 0, within: 0, at_entry: 0, step: 0 })
    }

    pub(crate) fn image(params: &ImageParams) -> Self {
        Self::Image(ImagePolicy {
            sampler: params.sampler,
            schedule: params.schedule,
            noise: params.temperature,
            rule: Rule { temperature: params.draw_temperature(), top_k: 0, top_p: 1.0 },
            cells: params.grid.0 * params.grid.1,
            steps: params.steps,
            step: 0,
        })
    }

    /// Zero-based number of the step that comes next.
    pub(crate) fn step(&self) -> usize {
        match self {
            Self::Text(t) => t.step,
            Self::Image(i) => i.step,
        }
    }

    /// Steps planned in all.
    pub(crate) fn steps(&self) -> usize {
        match self {
            Self::Text(t) => t.blocks.iter().map(|b| b.steps).sum(),
            Self::Image(i) => i.steps,
        }
    }

    /// How tokens are drawn.
    pub(crate) fn rule(&self) -> Rule {
        match self {
            Self::Text(t) => t.rule,
            Self::Image(i) => i.rule,
        }
    }

    /// Moves on to the next step that commits anything and returns the positions it evaluates, ascending; none when
    /// nothing is masked any more.
    pub(crate) fn due(&mut self, view: View<'_>) -> Vec<u32> {
        match self {
            Self::Text(t) => t.due(view),
            Self::Image(i) => i.due(view),
        }
    }

    /// Which of the evaluated `positions` commit, as indices into them.
    pub(crate) fn choose(&self, view: View<'_>, positions: &[u32], draws: &[Draw]) -> Vec<usize> {
        match self {
            Self::Text(t) => t.choose(view, draws),
            Self::Image(i) => i.choose(view, positions, draws),
        }
    }

    /// The step is done.
    pub(crate) fn advance(&mut self) {
        match self {
            Self::Text(t) => {
                t.step += 1;
                t.within += 1;
            }
            Self::Image(i) => i.step += 1,
        }
    }
}

impl TextPolicy {
    fn due(&mut self, view: View<'_>) -> Vec<u32> {
        while let Some(&block) = self.blocks.get(self.block) {
            if self.within == 0 {
                self.at_entry = view.masked[block.start..block.end].iter().filter(|&&m| m).count();
            }
            let mut eligible = view.eligible(block.end);
            if eligible.is_empty() || self.within >= block.steps {
                self.next_block(block);
                continue;
            }
            let n = self.commits(eligible.len());
            if n == 0 {
                self.step += 1;
                self.within += 1;
                continue;
            }
            if self.sampler == TextSampler::Random {
                let draw = |&p: &u32| uniform(view.seed, Purpose::Select, self.step as u32, view.counter(p));
                let chosen = highest(&eligible.iter().map(draw).collect::<Vec<_>>(), n);
                eligible = chosen.into_iter().map(|i| eligible[i]).collect();
            }
            return eligible;
        }
        Vec::new()
    }

    fn next_block(&mut self, block: Block) {
        // A fixed plan numbers its steps by the plan, so that skipped ones keep their numbers; an adaptive one counts.
        if !matches!(self.sampler, TextSampler::Threshold { .. }) {
            self.step += block.steps - self.within;
        }
        self.block += 1;
        self.within = 0;
    }

    /// The most positions that this step may commit of the `eligible` ones.
    fn commits(&self, eligible: usize) -> usize {
        let Some(block) = self.blocks.get(self.block) else { return 0 };
        let last_step = self.within + 1 == block.steps;
        let last_block = self.block + 1 == self.blocks.len();
        match self.sampler {
            TextSampler::Threshold { .. } => eligible,
            // Masks inside the prompt take places of the plan (LLaDA counts the block alone): the end clears them.
            _ if last_step && last_block => eligible,
            _ => quota(self.at_entry, block.steps, self.within).min(eligible),
        }
    }

    fn choose(&self, view: View<'_>, draws: &[Draw]) -> Vec<usize> {
        let Some(block) = self.blocks.get(self.block) else { return Vec::new() };
        match self.sampler {
            TextSampler::Random => (0..draws.len()).collect(),
            TextSampler::LowConfidence => {
                let confidence: Vec<f64> = draws.iter().map(|d| d.confidence).collect();
                highest(&confidence, self.commits(view.eligible(block.end).len()))
            }
            TextSampler::Threshold { .. } if self.within + 1 >= block.steps => (0..draws.len()).collect(),
            TextSampler::Threshold { threshold } => {
                // Fast-dLLM bans the mask id before the softmax.
                let confidence: Vec<f64> = draws.iter().map(|d| d.share).collect();
                confident(&confidence, threshold)
            }
        }
    }
}

impl ImagePolicy {
    fn due(&mut self, view: View<'_>) -> Vec<u32> {
        let masked = view.eligible(view.masked.len());
        while !masked.is_empty() {
            match self.sampler {
                ImageSampler::Maskgit if self.commits(masked.len()) > 0 => return masked,
                ImageSampler::Maskgit => {}
                ImageSampler::Emerge => {
                    let p = emerge_probability(self.schedule, self.step, self.steps);
                    let draw = |p: u32| uniform(view.seed, Purpose::Select, self.step as u32, view.counter(p));
                    let chosen: Vec<u32> = masked.iter().copied().filter(|&position| draw(position) < p).collect();
                    if !chosen.is_empty() {
                        return chosen;
                    }
                }
            }
            self.step += 1;
        }
        Vec::new()
    }

    fn commits(&self, masked: usize) -> usize {
        masked - masked_after(self.schedule, self.cells, masked, self.step, self.steps).min(masked)
    }

    fn choose(&self, view: View<'_>, positions: &[u32], draws: &[Draw]) -> Vec<usize> {
        match self.sampler {
            ImageSampler::Emerge => (0..draws.len()).collect(),
            ImageSampler::Maskgit => {
                let scale = self.noise * (1.0 - (self.step + 1) as f64 / self.steps as f64);
                let noisy = |(&position, d): (&u32, &Draw)| {
                    let noise = if scale > 0.0 {
                        scale * gumbel(view.seed, Purpose::Select, self.step as u32, view.counter(position))
                    } else {
                        0.0
                    };
                    // The floor is the reference's.
                    d.confidence.max(1e-20).ln() + noise
                };
                let confidence: Vec<f64> = positions.iter().zip(draws).map(noisy).collect();
                highest(&confidence, self.commits(draws.len()))
            }
        }
    }
}

/// Indices of the `n` highest values, ascending. Of equals the first is taken.
pub(crate) fn highest(values: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    if n < order.len() {
        order.sort_unstable_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        order.truncate(n);
        order.sort_unstable();
    }
    order
}

/// Indices of all values from `threshold` on, and of the highest one in any case (Fast-dLLM).
pub(crate) fn confident(values: &[f64], threshold: f64) -> Vec<usize> {
    let chosen: Vec<usize> = (0..values.len()).filter(|&i| values[i] >= threshold).collect();
    if chosen.is_empty() { highest(values, 1) } else { chosen }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { temperature: 0.0, top_k: 0, top_p: 1.0 };

    fn sure(confidence: f64) -> Draw {
        Draw { index: 0, confidence, share: confidence, logprob: confidence.ln() }
    }

    #[test]
    fn highest_breaks_ties_by_position() {
        assert_eq!(highest(&[0.5, 0.9, 0.9, 0.1], 1), [1]);
        assert_eq!(highest(&[0.5, 0.9, 0.9, 0.5], 3), [0, 1, 2]);
        assert_eq!(highest(&[0.5], 4), [0]);
    }

    #[test]
    fn the_threshold_rule_always_takes_one() {
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.75), [1]);
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.7), [1, 2]);
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.95), [1]);
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
        let mut policy = Policy::text(TextSampler::LowConfidence, RULE, blocks(2, 2, 3));
        let trace = run(&mut policy, &mut [true; 4], 0);
        // The second block starts at step 3 of the plan though the first was done after two forwards.
        assert_eq!(trace, [(0, vec![1]), (1, vec![0]), (3, vec![3]), (4, vec![2])]);
    }

    #[test]
    fn masks_before_the_block_are_eligible_and_nothing_stays_masked() {
        let blocks = vec![Block { start: 2, end: 4, steps: 2 }];
        let trace = run(&mut Policy::text(TextSampler::LowConfidence, RULE, blocks), &mut [true; 4], 0);
        assert_eq!(trace, [(0, vec![3]), (1, vec![0, 1, 2])]);
    }

    #[test]
    fn threshold_counts_its_steps_and_commits_the_rest_at_its_limit() {
        let sampler = TextSampler::Threshold { threshold: 0.03 };
        let trace = run(&mut Policy::text(sampler, RULE, blocks(2, 4, 2)), &mut [true; 8], 0);
        assert_eq!(trace, [(0, vec![2, 3]), (1, vec![0, 1]), (2, vec![4, 5, 6, 7])]);
    }

    #[test]
    fn random_evaluates_only_what_commits() {
        let mut policy = Policy::text(TextSampler::Random, RULE, blocks(1, 8, 4));
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
}
