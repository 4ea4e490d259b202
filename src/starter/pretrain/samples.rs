//! What the averaged weights can do in the middle of a run: a few answers and a sheet of pictures.

use std::path::Path;

use candle_core::Tensor;

use crate::diffusion::canvas::Canvas;
use crate::diffusion::denoise::complete;
use crate::diffusion::frame::given;
use crate::diffusion::params::{Ends, Fidelity, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use crate::diffusion::rng::Stream;
use crate::models::nn::Precision;
use crate::models::transformer::{Transformer, TransformerConfig};
use crate::models::{Model, ModelError};
use crate::starter::scenes::{self, GRID, KINDS};
use crate::starter::{model, words};

const MAX_ROWS: usize = 4096;
const PICTURES_PER_KIND: usize = 4;

/// A question and what the model makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The question.
    pub question: String,
    /// The model's text.
    pub text: String,
}

/// Draws held-out captions into `dir/samples.png` (green frames passed) and answers a held-out problem of each kind.
pub(super) fn take(
    dir: &Path,
    config: &TransformerConfig,
    weights: &[(String, Tensor)],
    seed: u64,
) -> Result<Vec<Answer>, ModelError> {
    let named = |name: &str| weights.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let transformer = Transformer::new(config.clone(), Precision::Exact, named)?;
    let model = model::assemble(transformer, String::new())?;
    pictures(&model, seed)?
        .save(dir.join("samples.png"))
        .map_err(|e| ModelError::Input(format!("{}: {e}", dir.join("samples.png").display())))?;
    answers(&model, seed)
}

fn pictures(model: &Model, seed: u64) -> Result<image::RgbImage, ModelError> {
    let params = ImageParams {
        steps: 16,
        guidance_scale: 1.0,
        schedule: Schedule::Cosine,
        temperature: 1.0,
        token_temperature: None,
        sampler: ImageSampler::Maskgit,
        grid: (GRID, GRID),
        initial_codes: Vec::new(),
        preview_every: 0,
    };
    let (mut examples, mut canvases) = (Vec::new(), Vec::new());
    for (k, kind) in KINDS.into_iter().enumerate() {
        for i in 0..PICTURES_PER_KIND {
            let mut stream = Stream::new(seed ^ 0x5A3, (k * PICTURES_PER_KIND + i) as u64);
            let example = scenes::sample(&mut stream, kind, scenes::Split::HeldOut);
            let frame = model.layout.image_frame(&encode(model, &example.caption)?);
            let empty = model.layout.image_frame(&[]);
            canvases.push(
                Canvas::image(model.backbone.spec(), frame, empty, &params, i as u64)
                    .map_err(|e| ModelError::Input(format!("{}: {}", e.field, e.message)))?,
            );
            examples.push(example);
        }
    }
    run(model, &mut canvases)?;
    let codec = model.codec.as_ref().ok_or_else(|| ModelError::Input("the model has no image codec".into()))?;
    let mut framed = Vec::with_capacity(canvases.len());
    for (canvas, example) in canvases.iter().zip(&examples) {
        let image = codec.decode(&canvas.tokens(), params.grid)?;
        let passed = scenes::verify(&image, &example.spec).strict;
        framed.push((image, passed));
    }
    Ok(scenes::contact_sheet(&framed, PICTURES_PER_KIND))
}

fn answers(model: &Model, seed: u64) -> Result<Vec<Answer>, ModelError> {
    let params = TextParams {
        max_tokens: 16,
        steps: 8,
        block_length: 16,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        sampler: TextSampler::LowConfidence,
        ends: Ends::default(),
        guidance_scale: 0.0,
        stop_at_eos: true,
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: Vec::new(),
    };
    let ask = |(i, kind)| -> Result<Answer, ModelError> {
        let mut stream = Stream::new(seed ^ 0xA45, i as u64);
        let question = words::sample(&mut stream, kind, words::Split::HeldOut).question;
        let prefix = given(&model.layout.text_prefix(&encode(model, &question)?));
        let canvas = Canvas::text(model.backbone.spec(), prefix, None, &params, 0)
            .map_err(|e| ModelError::Input(format!("{}: {}", e.field, e.message)))?;
        let mut canvases = [canvas];
        run(model, &mut canvases)?;
        Ok(Answer { question, text: model.tokenizer.decode(&canvases[0].tokens()) })
    };
    words::Kind::ALL.into_iter().enumerate().map(ask).collect()
}

fn encode(model: &Model, text: &str) -> Result<Vec<u32>, ModelError> {
    model.tokenizer.encode(text).map_err(|e| ModelError::Tokenizer(e.to_string()))
}

fn run(model: &Model, canvases: &mut [Canvas]) -> Result<(), ModelError> {
    complete(&*model.backbone, canvases, MAX_ROWS).map_err(|e| ModelError::Input(e.to_string()))
}
