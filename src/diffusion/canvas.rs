//! A canvas: the ids of one completion, which of them are masked, and what is known of those that were committed.
//!
//! The mask state is a bitmap of its own; an id that happens to equal the mask id means nothing. The whole state is a
//! few kilobytes, so a canvas may wait between any two steps for as long as it likes. No tensors live here.

use std::ops::Range;
use std::sync::Arc;

use super::cache::{Cache, Caches, Feed, Stand};
use super::params::{Fidelity, FinishReason, Invalid};
use super::sample::{Barred, Draw, Rule};
use super::select::{Policy, View};
use crate::models::kept::Kept;
use crate::models::lora::Lora;

/// The commit step of a given position.
pub const GIVEN: i32 = -1;

/// The sequence that guidance moves away from. Follows the canvas at every commit.
#[derive(Debug, Clone)]
pub(crate) struct Unconditional {
    /// Its ids now.
    pub(crate) ids: Vec<u32>,
    /// Its position of canvas position 0 (may be negative).
    pub(crate) shift: isize,
    /// w of (1+w)·conditional − w·unconditional.
    pub(crate) scale: f32,
}

impl Unconditional {
    /// Where canvas position `position` is in this sequence.
    pub(crate) fn position(&self, position: u32) -> u32 {
        position.saturating_add_signed(self.shift as i32)
    }
}

/// What a canvas is made of; built by `frame`.
pub(crate) struct Parts {
    /// The whole sequence; `None` is masked.
    pub(crate) ids: Vec<Option<u32>>,
    /// What is returned of it. Masked positions after it fill the last block and are no part of the result.
    pub(crate) body: Range<usize>,
    /// Position that the random counter calls 0.
    pub(crate) origin: usize,
    pub(crate) unconditional: Option<Unconditional>,
    pub(crate) policy: Policy,
    /// Ids that may be drawn, and indices into them that are special.
    pub(crate) vocab: Range<u32>,
    pub(crate) barred: Arc<Barred>,
    pub(crate) mask_id: u32,
    /// Ids that end the text; none for images.
    pub(crate) eos: Vec<u32>,
    pub(crate) stop_at_eos: bool,
    pub(crate) fidelity: Fidelity,
    pub(crate) vicinity: usize,
    /// Length of the blocks that attention goes by.
    pub(crate) causal: Option<usize>,
    pub(crate) seed: u64,
}

/// A newly committed position of the returned part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Commit {
    /// Zero-based within the returned part (text) or the grid (image).
    pub position: usize,
    /// Token id for text, code for images.
    pub token: u32,
    /// The model's probability of it.
    pub confidence: f32,
}

/// What one step did to one canvas.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutcome {
    /// Zero-based step over the whole run.
    pub step: u32,
    /// Newly committed positions, ascending.
    pub commits: Vec<Commit>,
    /// A block of text that is complete since this step, zero-based.
    pub block: Option<u32>,
    /// Set when the canvas is done.
    pub finish: Option<FinishReason>,
}

/// One completion in the making.
#[derive(Debug, Clone)]
pub struct Canvas {
    /// All ids; the mask id where masked.
    ids: Vec<u32>,
    masked: Vec<bool>,
    /// Masked positions up to the end of the returned part. What follows it only fills the last block.
    left: usize,
    body: Range<usize>,
    origin: usize,
    unconditional: Option<Unconditional>,
    policy: Policy,
    vocab: Range<u32>,
    barred: Arc<Barred>,
    eos: Vec<u32>,
    stop_at_eos: bool,
    seed: u64,
    /// What the next step evaluates.
    due: Vec<u32>,
    /// Per position of the canvas.
    commit_steps: Vec<i32>,
    logprobs: Vec<f32>,
    /// First position that an EOS may end the text at: after the last given one.
    open: usize,
    /// Everything before it is committed.
    frontier: usize,
    /// The EOS with everything before it committed.
    end: Option<usize>,
    rushed: bool,
    forwards: u32,
    positions_evaluated: u64,
    adapter: Option<Arc<Lora>>,
    /// What is kept between its steps.
    pub(crate) cache: Cache,
}

impl Canvas {
    /// # Errors
    /// When nothing is masked.
    pub(crate) fn new(parts: Parts) -> Result<Self, Invalid> {
        let masked: Vec<bool> = parts.ids.iter().map(Option::is_none).collect();
        let len = masked.len();
        let mut canvas = Self {
            ids: parts.ids.iter().map(|id| id.unwrap_or(parts.mask_id)).collect(),
            left: masked[..parts.body.end].iter().filter(|&&m| m).count(),
            open: masked.iter().rposition(|m| !m).map_or(0, |last| last + 1),
            masked,
            body: parts.body,
            origin: parts.origin,
            unconditional: parts.unconditional,
            policy: parts.policy,
            vocab: parts.vocab,
            barred: parts.barred,
            eos: parts.eos,
            stop_at_eos: parts.stop_at_eos,
            seed: parts.seed,
            due: Vec::new(),
            commit_steps: vec![GIVEN; len],
            logprobs: vec![0.0; len],
            frontier: 0,
            end: None,
            rushed: false,
            forwards: 0,
            positions_evaluated: 0,
            adapter: None,
            cache: Cache::new(parts.fidelity, parts.vicinity, parts.causal),
        };
        canvas.prepare();
        if canvas.due.is_empty() {
            return Err(Invalid::new("prompt", "nothing is masked, so there is nothing to fill; leave a hole"));
        }
        Ok(canvas)
    }

    /// The same canvas, denoised by the base with `adapter`. It keeps it to its end: no completion mixes versions.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<Arc<Lora>>) -> Self {
        self.adapt(adapter);
        self
    }

    /// As [`with_adapter`](Self::with_adapter). To be called before the first step.
    pub fn adapt(&mut self, adapter: Option<Arc<Lora>>) {
        self.adapter = adapter;
        self.cache.forget();
    }

    /// What the base is adapted with.
    pub(crate) fn adapter(&self) -> Option<&Arc<Lora>> {
        self.adapter.as_ref()
    }

    fn view(&self) -> View<'_> {
        View { masked: &self.masked, seed: self.seed, origin: self.origin }
    }

    /// Finds the next step that commits anything.
    fn prepare(&mut self) {
        let view = View { masked: &self.masked, seed: self.seed, origin: self.origin };
        self.due = self.policy.due(view);
    }

    /// Rows of the next step: its own and those of the unconditional sequence.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.feed(true).cost(self.ids.len()) + self.unconditional.as_ref().map_or(0, |u| u.ids.len())
    }

    /// Rows of any step, at most: a cache may have to be computed again.
    #[must_use]
    pub fn most_rows(&self) -> usize {
        let again = self.cache.most_again(self.policy.blocks(), self.ids.len());
        self.ids.len() + again + self.unconditional.as_ref().map_or(0, |u| u.ids.len())
    }

    /// What the next step evaluates of it; with `finished_blocks` less than everything where that changes nothing.
    pub(crate) fn feed(&self, finished_blocks: bool) -> Feed {
        let stand = Stand { masked: &self.masked, due: &self.due, block: self.policy.window() };
        self.cache.feed(&stand, finished_blocks)
    }

    /// Takes over what is kept of another sequence that begins alike.
    pub(crate) fn adopt(&mut self, caches: &mut Caches) {
        self.cache.adopt(caches, self.adapter.as_ref().map(|adapter| adapter.id()), &self.ids, &self.masked);
    }

    /// Refers to what was kept of its last forward.
    pub(crate) fn hold(&mut self, caches: &mut Caches, kept: &Arc<Kept>) {
        self.cache.hold(caches, kept, self.adapter.as_ref().map(|adapter| adapter.id()), &self.ids);
    }

    /// Commits everything that is left at the next step ("anytime").
    pub fn rush(&mut self) {
        if self.finish().is_none() && !self.rushed {
            self.rushed = true;
            self.due = (0..self.body.end as u32).filter(|&p| self.masked[p as usize]).collect();
        }
    }

    /// Ends the text before position `tokens` of the returned part: a stop string was found.
    pub fn cut(&mut self, tokens: usize) {
        let at = (self.body.start + tokens).min(self.body.end);
        self.end = Some(self.end.map_or(at, |end| end.min(at)));
        self.stop_at_eos = true;
    }

    /// Writes one step's draws, one per [`Canvas::due`] position, and moves on.
    pub(crate) fn commit(&mut self, draws: &[Draw]) -> StepOutcome {
        let step = self.policy.step() as u32;
        self.cache.stepped(&self.ids);
        let chosen = match self.rushed {
            true => (0..draws.len()).collect(),
            false => self.policy.choose(self.view(), &self.due, draws),
        };
        let due = std::mem::take(&mut self.due);
        let first = if self.is_image() { self.vocab.start } else { 0 };
        let mut commits = Vec::with_capacity(chosen.len());
        for i in chosen {
            let (position, draw) = (due[i] as usize, draws[i]);
            let id = self.vocab.start + draw.index as u32;
            self.write(position, id, step, draw.logprob as f32);
            if self.body.contains(&position) {
                commits.push(Commit {
                    position: position - self.body.start,
                    token: id - first,
                    confidence: draw.confidence as f32,
                });
            }
        }
        self.find_end();
        let before = self.policy.block();
        self.policy.advance();
        self.prepare();
        if self.policy.block() != before {
            self.cache.leave_block();
        }
        let block = before.filter(|&b| self.policy.block() != Some(b) || self.left == 0);
        StepOutcome { step, commits, block, finish: self.finish() }
    }

    fn write(&mut self, position: usize, id: u32, step: u32, logprob: f32) {
        self.ids[position] = id;
        self.masked[position] = false;
        self.left -= usize::from(position < self.body.end);
        self.commit_steps[position] = step as i32;
        self.logprobs[position] = logprob;
        if let Some(u) = &mut self.unconditional {
            let there = u.position(position as u32) as usize;
            if let Some(slot) = u.ids.get_mut(there) {
                *slot = id;
            }
        }
    }

    fn find_end(&mut self) {
        while self.end.is_none() && self.frontier < self.body.end && !self.masked[self.frontier] {
            if self.frontier >= self.open && self.eos.contains(&self.ids[self.frontier]) {
                self.end = Some(self.frontier);
            }
            self.frontier += 1;
        }
    }

    /// Why the canvas is done; `None` while it is not.
    #[must_use]
    pub fn finish(&self) -> Option<FinishReason> {
        match (self.left, self.rushed) {
            (0, true) => Some(FinishReason::Deadline),
            (0, false) if self.is_image() || self.end.is_some() => Some(FinishReason::Stop),
            (0, false) => Some(FinishReason::Length),
            _ if self.stop_at_eos && self.end.is_some() => Some(FinishReason::Stop),
            _ => None,
        }
    }

    pub(crate) fn note_forward(&mut self, rows: usize) {
        self.forwards += 1;
        self.positions_evaluated += rows as u64;
    }

    pub(crate) fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub(crate) fn unconditional(&self) -> Option<&Unconditional> {
        self.unconditional.as_ref()
    }

    /// Positions that the next step evaluates, ascending.
    pub(crate) fn due(&self) -> &[u32] {
        &self.due
    }

    pub(crate) fn rule(&self) -> Rule {
        self.policy.rule()
    }

    pub(crate) fn barred(&self) -> &Barred {
        &self.barred
    }

    /// Key of a position's random draws in the next step.
    pub(crate) fn counter(&self, position: u32) -> (u64, u32, u32) {
        (self.seed, self.policy.step() as u32, self.view().counter(position))
    }

    /// Ids that the head is evaluated on for its masked positions.
    #[must_use]
    pub fn vocab(&self) -> Range<u32> {
        self.vocab.clone()
    }

    /// No step has been taken yet.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.forwards == 0
    }

    /// A grid of codes rather than a text.
    #[must_use]
    pub fn is_image(&self) -> bool {
        matches!(self.policy, Policy::Image(_))
    }

    /// Its seed.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Forwards it took part in.
    #[must_use]
    pub fn forwards(&self) -> u32 {
        self.forwards
    }

    /// Rows that were evaluated for it, guidance included; rows shared with another canvas count once, for the other.
    #[must_use]
    pub fn positions_evaluated(&self) -> u64 {
        self.positions_evaluated
    }

    /// Steps planned in all.
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.policy.steps() as u32
    }

    /// Ids before the returned part.
    #[must_use]
    pub fn prompt_ids(&self) -> &[u32] {
        &self.ids[..self.body.start]
    }

    /// Positions of the returned part that belong to the result: all, or those before the end, which may be in a hole
    /// of the prompt.
    fn result(&self) -> Range<usize> {
        let end = if self.stop_at_eos { self.end } else { None };
        self.body.start..end.map_or(self.body.end, |end| end.max(self.body.start))
    }

    /// The result: ids of text up to its end, or codes row by row. Meaningful once [`Canvas::finish`] is set.
    #[must_use]
    pub fn tokens(&self) -> Vec<u32> {
        let first = if self.is_image() { self.vocab.start } else { 0 };
        self.ids[self.result()].iter().map(|id| id.saturating_sub(first)).collect()
    }

    /// Step at which each of [`Canvas::tokens`] was committed; [`GIVEN`] when it was given.
    #[must_use]
    pub fn commit_steps(&self) -> &[i32] {
        &self.commit_steps[self.result()]
    }

    /// Log-probability of each of [`Canvas::tokens`] when it was committed; 0 when it was given.
    #[must_use]
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs[self.result()]
    }

    /// Number of [`Canvas::tokens`] before the end of the text, wherever the result ends.
    #[must_use]
    pub fn text_length(&self) -> usize {
        self.end.map_or(self.body.len(), |end| end.saturating_sub(self.body.start))
    }

    /// Ids of the text that is final: everything up to the first masked position, or the end.
    #[must_use]
    pub fn final_text(&self) -> &[u32] {
        let upto = self.end.unwrap_or(self.frontier).max(self.body.start);
        &self.ids[self.body.start..upto]
    }

    /// The returned part as far as it is known (ids of text, codes of an image); `None` where masked.
    #[must_use]
    pub fn partial(&self) -> Vec<Option<u32>> {
        let first = if self.is_image() { self.vocab.start } else { 0 };
        let known = |p: usize| (!self.masked[p]).then(|| self.ids[p].saturating_sub(first));
        self.body.clone().map(known).collect()
    }
}
