//! One step of masked diffusion for any mix of canvases. Start reading here.
//!
//! pack → one forward → logits of the positions that may commit → guidance → one copy to the host → draw → select →
//! commit. What is drawn depends on (seed, step, position) and the row of logits alone, so a canvas gets the same
//! tokens whoever rides along. Who steps when is the engine's business.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::batch::{Batch, Chunk, Task};
use super::cache::Caches;
use super::canvas::{Canvas, StepOutcome};
use super::guidance::combine;
use super::memo::Memo;
use super::rng::{Purpose, uniform};
use super::sample::{Draw, draw};
use crate::models::nn::timing::{self, Split};
use crate::models::{Backbone, ModelError, Packed};

/// A canvas cannot go on; it is as before the step. Others of the same step are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logits at position {position} are not finite; lower guidance_scale, or check the weights")]
pub struct NotFinite {
    /// Position in its canvas.
    pub position: u32,
}

/// Logits worth waking another thread for: about 0.1 ms of draws.
const GRAIN: usize = 1 << 16;

/// Why canvases could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum DenoiseError {
    /// The model or its device failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There was nothing to draw from.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
}

/// What a step may save without changing a token. All on by default; tests turn them off to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// Canvases that are still identical (`n` completions before their first step) share one forward.
    pub share_first_step: bool,
    /// Logits of the first unconditional step are kept from one request to the next.
    pub memoise_unconditional: bool,
    /// Where attention goes by blocks, finished ones are not evaluated again, nor those that nobody sees yet.
    pub keep_finished_blocks: bool,
    /// Such blocks are taken over from other sequences that begin alike.
    pub share_beginnings: bool,
}

impl Default for Savings {
    fn default() -> Self {
        Self { share_first_step: true, memoise_unconditional: true, keep_finished_blocks: true, share_beginnings: true }
    }
}

/// What a step did and what it took.
#[derive(Debug, Clone, Default)]
pub struct Tick {
    /// One per canvas, in order.
    pub outcomes: Vec<Result<StepOutcome, NotFinite>>,
    /// The forward's batch.
    pub batch: Packed,
    /// Time by class of operation, transformer and head.
    pub split: Split,
    /// Time in guidance, draws, selection and the copy to the host.
    pub sampling: Duration,
}

/// Steps canvases of one model.
#[derive(Debug)]
pub struct Denoiser {
    /// What may be saved.
    pub savings: Savings,
    /// Most bytes of logits at a time.
    pub logits_cap: usize,
    /// Keys and values between steps.
    pub caches: Caches,
    memo: Memo,
}

impl Default for Denoiser {
    fn default() -> Self {
        Self { savings: Savings::default(), logits_cap: 64 << 20, caches: Caches::new(1 << 30), memo: Memo::default() }
    }
}

impl Denoiser {
    /// With these caches, which bound what is held between steps.
    #[must_use]
    pub fn new(caches: Caches) -> Self {
        Self { caches, ..Self::default() }
    }

    /// One step of every canvas, in one packed forward. Canvases that are done must not be passed.
    ///
    /// # Errors
    /// When the model fails; the canvases are then as before.
    pub fn step(&mut self, model: &dyn Backbone, canvases: &mut [&mut Canvas]) -> Result<Tick, ModelError> {
        let before = timing::spent();
        if self.savings.keep_finished_blocks && self.savings.share_beginnings {
            canvases.iter_mut().for_each(|canvas| canvas.adopt(&mut self.caches));
        }
        let batch = Batch::pack(canvases, self.savings, &self.memo);
        self.caches.begin();
        let (hidden, kept) = match batch.packed.rows() {
            0 => (None, Vec::new()),
            _ => model.forward_keeping(&batch.packed).map(|(hidden, kept)| (Some(hidden), kept))?,
        };
        let (started, body) = (Instant::now(), timing::spent());

        let mut draws = Vec::with_capacity(batch.tasks.len());
        for chunk in batch.chunks(self.logits_cap) {
            let logits = chunk.logits(model, hidden.as_ref())?;
            let grain = GRAIN / (logits.len() / chunk.tasks.len()).max(1);
            let tasks = chunk.tasks.par_iter().with_min_len(grain.max(1));
            let drawn = tasks.map(|task| draw_one(&chunk, &logits, task, canvases));
            draws.extend(drawn.collect::<Vec<_>>());
            if self.savings.memoise_unconditional {
                self.memo.keep(&chunk, &logits, canvases);
            }
        }

        for &(canvas, span) in &batch.keeps {
            if let Some(Some(kept)) = kept.get(span) {
                canvases[canvas].hold(&mut self.caches, kept);
            }
        }
        let mut outcomes = vec![Ok(StepOutcome::default()); canvases.len()];
        for group in &batch.groups {
            let canvas = &mut canvases[group.canvas];
            canvas.note_forward(group.rows);
            let drawn = draws[group.tasks.clone()].iter().copied().collect::<Result<Vec<Draw>, _>>();
            outcomes[group.canvas] = drawn.map(|drawn| canvas.commit(&drawn));
        }
        let head = timing::spent() - body;
        let sampling = started.elapsed().saturating_sub(head.matmul);
        Ok(Tick { outcomes, split: timing::spent() - before, sampling, batch: batch.packed })
    }
}

/// The draw for one position.
fn draw_one(chunk: &Chunk<'_>, logits: &[f32], task: &Task, canvases: &[&mut Canvas]) -> Result<Draw, NotFinite> {
    let canvas = &canvases[task.canvas];
    let (seed, step, counter) = canvas.counter(task.position);
    let u = uniform(seed, Purpose::Token, step, counter);
    let conditional = chunk.conditional(logits, task);
    let drawn = match (chunk.unconditional(logits, task), canvas.unconditional()) {
        (Some(row), Some(side)) => draw(&combine(conditional, row, side.scale), canvas.barred(), canvas.rule(), u),
        _ => draw(conditional, canvas.barred(), canvas.rule(), u),
    };
    drawn.ok_or(NotFinite { position: task.position })
}

/// Runs canvases to their end without a server, at most `max_rows` rows at a time (a larger canvas runs alone).
///
/// # Errors
/// When the model fails, or for the first canvas that cannot go on.
pub fn complete(model: &dyn Backbone, canvases: &mut [Canvas], max_rows: usize) -> Result<(), DenoiseError> {
    let mut denoiser = Denoiser::default();
    loop {
        let mut rows = 0;
        let mut batch: Vec<&mut Canvas> = Vec::new();
        for canvas in canvases.iter_mut().filter(|c| c.finish().is_none()) {
            if batch.is_empty() || rows + canvas.rows() <= max_rows {
                rows += canvas.rows();
                batch.push(canvas);
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        denoiser.step(model, &mut batch)?.outcomes.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
}
