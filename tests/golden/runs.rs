//! Every greedy run of LLaDA's sampler, identical in tokens and in the order of commits, alone and mixed. Other samplers:
//! `samplers.rs`.

use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::frame::with_holes;
use lacuna::diffusion::params::{Ends, TextParams, TextSampler};
use lacuna::models::{Backbone, Model};
use serde_json::Value;

use super::{ids, json, model, unpadded};

const FOLDERS: [&str; 2] = ["llada", "llada_gqa_tied"];

/// A greedy run of the official code.
pub(super) struct Run {
    pub(super) label: String,
    pub(super) canvas: Canvas,
    /// The prompt and what follows it; an image's codes.
    pub(super) output: Vec<u32>,
    /// Positions committed by each step; empty where the folder does not say.
    pub(super) order: Vec<Vec<usize>>,
    pub(super) prompt: usize,
}

pub(super) fn params(params: &Value, length: &str) -> TextParams {
    let size = |field: &str| params[field].as_u64().unwrap() as usize;
    TextParams {
        max_tokens: size(length),
        steps: size("steps"),
        block_length: size("block_length"),
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        sampler: TextSampler::LowConfidence,
        ends: Ends {
            logits_eos_inf: params["logits_eos_inf"] == true,
            confidence_eos_eot_inf: params["confidence_eos_eot_inf"] == true,
        },
        guidance_scale: params["cfg_scale"].as_f64().unwrap_or(0.0),
        stop_at_eos: false,
        stop: vec![],
    }
}

/// The runs of one case, one per sequence of its batch. Padding is left out.
fn case(name: &str, model: &Model, case: &Value) -> Vec<Run> {
    let spec = model.backbone.spec();
    let run = |(row, prompt): (usize, &Value)| {
        let (prompt, pads) = unpadded(&ids(prompt), &case["attention_mask"][row]);
        let text = params(&case["params"], "gen_length");
        let steps = case["unmasked_at_step"].as_array().unwrap().iter();
        Run {
            label: format!("{name}/{}/{row}", case["name"]),
            canvas: Canvas::text(spec, with_holes(&prompt, spec.mask_id), None, &text, 0).unwrap(),
            output: ids(&case["output"][row])[pads..].to_vec(),
            order: steps.map(|s| ids(&s[row]).iter().map(|&p| p as usize - pads).collect()).collect(),
            prompt: prompt.len(),
        }
    };
    case["prompt"].as_array().unwrap().iter().enumerate().map(run).collect()
}

pub(super) fn runs(name: &str, model: &Model) -> Vec<Run> {
    let golden = json(name, "golden.json");
    golden["generate"].as_array().unwrap().iter().flat_map(|c| case(name, model, c)).collect()
}

/// Questions about an image (MMaDA), whose texts LLaDA's sampler writes.
pub(super) fn understanding(model: &Model) -> Vec<Run> {
    let golden = json("mmada", "golden.json");
    let prompt = ids(&golden["mmu"]["input_ids"][0]);
    let run = |(i, case): (usize, &Value)| Run {
        label: format!("mmada/mmu/{i}"),
        canvas: {
            let spec = model.backbone.spec();
            let text = params(case, "max_new_tokens");
            Canvas::text(spec, with_holes(&prompt, spec.mask_id), None, &text, 0).unwrap()
        },
        output: ids(&case["output"][0]),
        order: vec![],
        prompt: prompt.len(),
    };
    golden["mmu"]["runs"].as_array().unwrap().iter().enumerate().map(run).collect()
}

fn assert_official(run: &Run) {
    assert_eq!(run.canvas.tokens(), run.output[run.prompt..], "{}", run.label);
    for (position, &step) in run.canvas.commit_steps().iter().enumerate().filter(|_| !run.order.is_empty()) {
        let at = run.order.iter().position(|s| s.contains(&(run.prompt + position)));
        // What was given is committed by no step.
        assert_eq!(at, usize::try_from(step).ok(), "{}: position {position}", run.label);
    }
}

/// Runs them alone, then again, joining one after another.
pub(super) fn check(backbone: &dyn Backbone, runs: impl Fn() -> Vec<Run>) {
    let mut denoiser = Denoiser::default();
    let mut alone = runs();
    for run in &mut alone {
        while run.canvas.finish().is_none() {
            denoiser.step(backbone, &mut [&mut run.canvas]).unwrap();
        }
        assert_official(run);
    }
    let mut mixed = runs();
    for tick in 0.. {
        let joined = mixed.iter_mut().enumerate().filter(|(i, run)| i % 4 <= tick && run.canvas.finish().is_none());
        let mut batch: Vec<&mut Canvas> = joined.map(|(_, run)| &mut run.canvas).collect();
        if batch.is_empty() {
            break;
        }
        denoiser.step(backbone, &mut batch).unwrap();
    }
    mixed.iter().for_each(assert_official);
}

#[test]
fn greedy_runs_are_the_official_ones_alone_and_mixed() {
    for name in FOLDERS {
        let model = model(name);
        // Eleven prompts, and two batches of two with left padding.
        assert_eq!(runs(name, &model).len(), 15);
        check(&*model.backbone, || runs(name, &model));
    }
}

#[test]
fn answers_about_an_image_are_the_official_ones() {
    let model = model("mmada");
    assert_eq!(understanding(&model).len(), 2);
    check(&*model.backbone, || understanding(&model));
}
