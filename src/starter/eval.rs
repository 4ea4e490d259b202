//! How good the model is at its two tasks, on prompts that training never saw.

use std::collections::BTreeMap;

use image::RgbImage;
use serde::Serialize;

use super::scenes::{self, KINDS};
use super::words;
use crate::diffusion::canvas::Canvas;
use crate::diffusion::denoise::{DenoiseError, complete};
use crate::diffusion::frame::given;
use crate::diffusion::params::{ImageParams, Invalid, TextParams};
use crate::diffusion::rng::{Stream, mix64};
use crate::models::{Model, ModelError};
use crate::text::TextError;

/// Canvases in the air at once.
const BATCH: usize = 64;
/// Rows of one forward.
const MAX_ROWS: usize = 4096;

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A setting does not fit the model.
    #[error("{}: {}", .0.field, .0.message)]
    Setting(Invalid),
    /// The model failed.
    #[error(transparent)]
    Denoise(#[from] DenoiseError),
    /// An image could not be decoded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A prompt could not be tokenised.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model does not draw.
    #[error("the model has no image side, so its scenes cannot be evaluated")]
    NoImages,
}

impl From<Invalid> for EvalError {
    fn from(e: Invalid) -> Self {
        Self::Setting(e)
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Prompts of each kind.
    pub n: usize,
    /// Seed of the prompts and of the sampling.
    pub seed: u64,
    /// Settings of text.
    pub text: TextParams,
    /// Settings of images.
    pub image: ImageParams,
}

/// A share with its 95 % interval (Wilson).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// Successes over trials.
    pub share: f64,
    /// Lower and upper end of the interval.
    pub ci95: [f64; 2],
    /// Trials.
    pub n: usize,
}

impl Share {
    /// Of `successes` in `n` trials.
    #[must_use]
    pub fn of(successes: usize, n: usize) -> Self {
        const Z: f64 = 1.959_964;
        let (share, trials) = (successes as f64 / n.max(1) as f64, n.max(1) as f64);
        let centre = (share + Z * Z / (2.0 * trials)) / (1.0 + Z * Z / trials);
        let half =
            Z / (1.0 + Z * Z / trials) * (share * (1.0 - share) / trials + Z * Z / (4.0 * trials * trials)).sqrt();
        Self { share, ci95: [(centre - half).max(0.0), (centre + half).min(1.0)], n }
    }
}

/// Scenes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SceneKind {
    /// Share of images with everything right and nothing else in them.
    pub strict: f64,
    /// Its 95 % interval.
    pub ci95: [f64; 2],
    /// Mean partial credit.
    pub soft: f64,
    /// Images.
    pub n: usize,
}

/// All scenes, kinds weighted equally.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenes {
    /// Mean over kinds of the strict share.
    pub strict: f64,
    /// Mean over kinds of the partial credit.
    pub soft: f64,
    /// By kind.
    pub kinds: BTreeMap<&'static str, SceneKind>,
}

/// Word problems of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WordKind {
    /// Share of right answers.
    pub accuracy: f64,
    /// Its 95 % interval.
    pub ci95: [f64; 2],
    /// Share of completions whose every equation is true and leads to the answer.
    pub chain: f64,
    /// Problems.
    pub n: usize,
}

/// Word problems, kinds weighted equally.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Words {
    /// Mean over kinds on held-out texts.
    pub accuracy: f64,
    /// Problems on held-out texts.
    pub n: usize,
    /// By kind, on held-out texts.
    pub kinds: BTreeMap<&'static str, WordKind>,
    /// By kind, on operands that training never combined: harder, and not part of `accuracy`.
    pub held_out_operands: BTreeMap<&'static str, WordKind>,
}

/// The whole result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Captions to images.
    pub scenes: Scenes,
    /// Arithmetic word problems.
    pub words: Words,
}

/// An evaluated image, for the contact sheet.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// The caption.
    pub caption: String,
    /// The picture.
    pub image: RgbImage,
    /// It passed the strict verifier.
    pub passed: bool,
}

/// Evaluates all kinds. `progress` hears how many of all prompts are done; `keep` sees every image.
///
/// # Errors
/// When a setting does not fit the model or the model fails.
pub fn run(
    model: &Model,
    options: &Options,
    mut progress: impl FnMut(usize, usize),
    mut keep: impl FnMut(scenes::Kind, Drawn),
) -> Result<Report, EvalError> {
    let groups = KINDS.len() + 2 * words::Kind::ALL.len();
    let total = groups * options.n;
    let mut done = 0;
    let mut tick = |more: usize| {
        done += more;
        progress(done, total);
    };
    let mut kinds = BTreeMap::new();
    for kind in KINDS {
        kinds.insert(kind.name(), scenes_of(model, options, kind, &mut tick, &mut |drawn| keep(kind, drawn))?);
    }
    let mean = |pick: fn(&SceneKind) -> f64| kinds.values().map(pick).sum::<f64>() / kinds.len().max(1) as f64;
    let scenes = Scenes { strict: mean(|k| k.strict), soft: mean(|k| k.soft), kinds: kinds.clone() };
    let mut of_split = |split| -> Result<BTreeMap<_, _>, EvalError> {
        let of_kind = |kind: words::Kind| Ok((kind.name(), words_of(model, options, kind, split, &mut tick)?));
        words::Kind::ALL.into_iter().map(of_kind).collect()
    };
    let (held_out, held_out_operands) = (of_split(words::Split::HeldOut)?, of_split(words::Split::HeldOutOperands)?);
    let accuracy = held_out.values().map(|k: &WordKind| k.accuracy).sum::<f64>() / held_out.len().max(1) as f64;
    let n = held_out.values().map(|k| k.n).sum();
    Ok(Report { scenes, words: Words { accuracy, n, kinds: held_out, held_out_operands } })
}

fn scenes_of(
    model: &Model,
    options: &Options,
    kind: scenes::Kind,
    tick: &mut impl FnMut(usize),
    keep: &mut impl FnMut(Drawn),
) -> Result<SceneKind, EvalError> {
    let (mut strict, mut soft) = (0, 0.0);
    draw(model, options, kind, tick, &mut |_, example, image| {
        let verdict = scenes::verify(&image, &example.spec);
        strict += usize::from(verdict.strict);
        soft += f64::from(verdict.soft);
        keep(Drawn { caption: example.caption.clone(), image, passed: verdict.strict });
    })?;
    let Share { share, ci95, n } = Share::of(strict, options.n);
    Ok(SceneKind { strict: share, ci95, soft: soft / n.max(1) as f64, n })
}

fn words_of(
    model: &Model,
    options: &Options,
    kind: words::Kind,
    split: words::Split,
    tick: &mut impl FnMut(usize),
) -> Result<WordKind, EvalError> {
    let (mut right, mut chains) = (0, 0);
    answer(model, options, (kind, split), tick, &mut |_, problem, text| {
        let verdict = words::verify(text, problem.answer);
        right += usize::from(verdict.correct);
        chains += usize::from(verdict.correct && verdict.chain_ok);
    })?;
    let Share { share, ci95, n } = Share::of(right, options.n);
    Ok(WordKind { accuracy: share, ci95, chain: chains as f64 / n.max(1) as f64, n })
}

/// What the completions of a task took and which of them were right, in the order of the prompts: the same prompts for
/// the same `n` and `seed`, so that two settings can be compared prompt by prompt.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Right or not.
    pub right: Vec<bool>,
    /// Forwards that completions took part in, in sum.
    pub forwards: u64,
    /// Rows evaluated, guidance included.
    pub positions: u64,
    /// Tokens of the results.
    pub tokens: u64,
}

impl Marks {
    fn note(&mut self, canvas: &Canvas, right: bool) {
        self.right.push(right);
        self.forwards += u64::from(canvas.forwards());
        self.positions += canvas.positions_evaluated();
        self.tokens += canvas.tokens().len() as u64;
    }

    /// The share that was right.
    #[must_use]
    pub fn share(&self) -> Share {
        Share::of(self.right.iter().filter(|right| **right).count(), self.right.len())
    }
}

/// Held-out word problems of all kinds with the settings of `options`.
///
/// # Errors
/// As [`run`].
pub fn words_marks(model: &Model, options: &Options, tick: &mut impl FnMut(usize)) -> Result<Marks, EvalError> {
    let mut marks = Marks::default();
    for kind in words::Kind::ALL {
        answer(model, options, (kind, words::Split::HeldOut), tick, &mut |canvas, problem, text| {
            marks.note(canvas, words::verify(text, problem.answer).correct);
        })?;
    }
    Ok(marks)
}

/// Held-out captions of all kinds with the settings of `options`.
///
/// # Errors
/// As [`run`].
pub fn scenes_marks(model: &Model, options: &Options, tick: &mut impl FnMut(usize)) -> Result<Marks, EvalError> {
    let mut marks = Marks::default();
    for kind in KINDS {
        draw(model, options, kind, tick, &mut |canvas, example, image| {
            marks.note(canvas, scenes::verify(&image, &example.spec).strict);
        })?;
    }
    Ok(marks)
}

/// Draws held-out captions of a kind; `each` sees every finished canvas, what was asked for, and the picture.
fn draw(
    model: &Model,
    options: &Options,
    kind: scenes::Kind,
    tick: &mut impl FnMut(usize),
    each: &mut impl FnMut(&Canvas, &scenes::Example, RgbImage),
) -> Result<(), EvalError> {
    let codec = model.codec.as_ref().ok_or(EvalError::NoImages)?;
    let base = mix64(options.seed ^ mix64(kind as u64 + 1));
    let examples: Vec<_> = (0..options.n as u64)
        .map(|i| scenes::sample(&mut Stream::new(base, i), kind, scenes::Split::HeldOut))
        .collect();
    for (chunk, part) in examples.chunks(BATCH).enumerate() {
        let mut canvases = Vec::with_capacity(part.len());
        for (i, example) in part.iter().enumerate() {
            let frame = model.layout.image_frame(&model.tokenizer.encode(&example.caption)?);
            let seed = base.wrapping_add((chunk * BATCH + i) as u64);
            let spec = model.backbone.spec();
            canvases.push(Canvas::image(spec, frame, model.layout.image_frame(&[]), &options.image, seed)?);
        }
        complete(&*model.backbone, &mut canvases, MAX_ROWS)?;
        for (canvas, example) in canvases.iter().zip(part) {
            each(canvas, example, codec.decode(&canvas.tokens(), options.image.grid)?);
        }
        tick(part.len());
    }
    Ok(())
}

/// Answers held-out word problems of a kind; `each` sees every finished canvas, the problem, and the text.
fn answer(
    model: &Model,
    options: &Options,
    (kind, split): (words::Kind, words::Split),
    tick: &mut impl FnMut(usize),
    each: &mut impl FnMut(&Canvas, &words::Problem, &str),
) -> Result<(), EvalError> {
    let base = mix64(options.seed ^ mix64(1000 + 10 * split as u64 + kind as u64));
    let problems: Vec<_> =
        (0..options.n as u64).map(|i| words::sample(&mut Stream::new(base, i), kind, split)).collect();
    for (chunk, part) in problems.chunks(BATCH).enumerate() {
        let mut canvases = Vec::with_capacity(part.len());
        for (i, problem) in part.iter().enumerate() {
            let prefix = given(&model.layout.text_prefix(&model.tokenizer.encode(&problem.question)?));
            let seed = base.wrapping_add((chunk * BATCH + i) as u64);
            canvases.push(Canvas::text(model.backbone.spec(), prefix, None, &options.text, seed)?);
        }
        complete(&*model.backbone, &mut canvases, MAX_ROWS)?;
        for (canvas, problem) in canvases.iter().zip(part) {
            each(canvas, problem, &model.tokenizer.decode(&canvas.tokens()));
        }
        tick(part.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // 8 of 10: 0.49 to 0.94 (Wilson, 1927, as tabulated).
        let share = Share::of(8, 10);
        assert!((share.ci95[0] - 0.4902).abs() < 1e-3 && (share.ci95[1] - 0.9433).abs() < 1e-3, "{share:?}");
        assert_eq!(Share::of(0, 0).share, 0.0);
        let all = Share::of(200, 200);
        assert!(all.ci95[1] > 0.999_999 && all.ci95[0] > 0.97);
    }
}
