//! Which masked positions a step evaluates, and which of them commit. Pure: counts, scores and counter-based draws in,
//! positions out. One file per family of samplers; the canvas knows [`Policy`] alone.
//!
//! Where the choice does not depend on the logits (`random`, `origin`, `emerge`) it is made before the forward, so that
//! only the positions that will commit are evaluated, and a step that commits nothing runs no forward at all.

use std::ops::Range;

use super::params::{ImageParams, TextParams};
use super::rng::{Purpose, gumbel, uniform};
use super::sample::{Draw, Rule};
use super::schedule::Block;

mod dream;
mod fast;
mod image;
mod sdar;
mod text;

use image::ImagePolicy;
use text::TextPolicy;

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

    /// The selector's uniform draw for a position.
    fn uniform(&self, step: usize, position: u32) -> f64 {
        uniform(self.seed, Purpose::Select, step as u32, self.counter(position))
    }

    /// The selector's Gumbel noise for a position.
    fn gumbel(&self, step: usize, position: u32) -> f64 {
        gumbel(self.seed, Purpose::Select, step as u32, self.counter(position))
    }

    /// Those of `positions` that a draw below `probability` picks.
    fn picked(&self, step: usize, positions: &[u32], probability: f64) -> Vec<u32> {
        positions.iter().copied().filter(|&p| self.uniform(step, p) < probability).collect()
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

impl Policy {
    pub(crate) fn text(params: &TextParams, blocks: Vec<Block>) -> Self {
        Self::Text(TextPolicy::new(params, blocks))
    }

    pub(crate) fn image(params: &ImageParams) -> Self {
        Self::Image(ImagePolicy::new(params))
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

    /// How tokens are drawn and positions ranked.
    pub(crate) fn rule(&self) -> Rule {
        match self {
            Self::Text(t) => t.rule,
            Self::Image(i) => i.rule,
        }
    }

    /// The block that is being denoised, zero-based; `None` for images and when all are done.
    pub(crate) fn block(&self) -> Option<u32> {
        match self {
            Self::Text(t) => (t.block < t.blocks.len()).then_some(t.block as u32),
            Self::Image(_) => None,
        }
    }

    /// Its positions.
    pub(crate) fn window(&self) -> Option<Range<usize>> {
        match self {
            Self::Text(t) => t.blocks.get(t.block).map(|block| block.start..block.end),
            Self::Image(_) => None,
        }
    }

    /// All blocks; none for images.
    pub(crate) fn blocks(&self) -> &[Block] {
        match self {
            Self::Text(t) => &t.blocks,
            Self::Image(_) => &[],
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
        let scores: Vec<f64> = draws.iter().map(|d| d.score).collect();
        match self {
            Self::Text(t) => t.choose(view, positions, &scores),
            Self::Image(i) => i.choose(view, positions, &scores),
        }
    }

    /// The step is done.
    pub(crate) fn advance(&mut self) {
        match self {
            Self::Text(t) => t.advance(),
            Self::Image(i) => i.step += 1,
        }
    }
}

/// Indices of the `n` highest values, ascending. Of equals the first is taken.
fn highest(values: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    if n < order.len() {
        order.sort_unstable_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
        order.truncate(n);
        order.sort_unstable();
    }
    order
}

#[cfg(test)]
mod tests;
