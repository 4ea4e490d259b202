//! Every greedy run of LLaDA's sampler, identical in tokens and in the order of commits, alone and mixed. Other samplers:
//! `samplers.rs`; the same runs over HTTP: `served.rs`.

use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::frame::with_holes;
use lacuna::diffusion::params::{Ends, Fidelity, TextParams, TextSampler};
use lacuna::engine::job::Task;
use lacuna::models::Model;
use serde_json::Value;

use super::{ids, json, model, unpadded};

pub(super) const FOLDERS: [&str; 2] = ["llada", "llada_gqa_tied"];

/// A greedy run of the official code.
pub(super) struct Run {
    pub(super) label: String,
    /// Of a text everything before it, of an image the text before any layout.
    pub(super) prompt: Vec<u32>,
    pub(super) task: Task,
    /// What was generated: ids, or codes.
    pub(super) output: Vec<u32>,
    /// Positions of `output` committed by each step; empty where the folder does not say.
    pub(super) order: Vec<Vec<usize>>,
    /// Forwards, where the folder says.
    pub(super) forwards: Option<u32>,
    /// Positions that the forwards evaluated, where the folder says.
    pub(super) rows: Option<u64>,
}

impl Run {
    pub(super) fn canvas(&self, model: &Model, seed: u64) -> Canvas {
        let spec = model.backbone.spec();
        let canvas = match &self.task {
            Task::Text(params) => Canvas::text(spec, with_holes(&self.prompt, spec.mask_id), None, params, seed),
            Task::Image(params) => {
                let frames = (model.layout.image_frame(&self.prompt), model.layout.image_frame(&[]));
                Canvas::image(spec, frames.0, frames.1, params, seed)
            }
        };
        canvas.unwrap()
    }

    pub(super) fn assert_official(&self, tokens: &[u32], commit_steps: &[i32], forwards: u32) {
        assert_eq!(tokens, self.output, "{}", self.label);
        for (position, &step) in commit_steps.iter().enumerate().filter(|_| !self.order.is_empty()) {
            let at = self.order.iter().position(|s| s.contains(&position));
            // What was given is committed by no step.
            assert_eq!(at, usize::try_from(step).ok(), "{}: position {position}", self.label);
        }
        assert!(self.forwards.is_none_or(|official| official == forwards), "{}: {forwards} forwards", self.label);
    }
}

/// Positions of what follows `prompt` ids, of the whole sequence's.
pub(super) fn after(prompt: usize, positions: &Value) -> Vec<usize> {
    ids(positions).iter().filter_map(|&p| (p as usize).checked_sub(prompt)).collect()
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
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: vec![],
    }
}

/// The runs of one case, one per sequence of its batch. Padding is left out.
fn case(name: &str, case: &Value) -> Vec<Run> {
    let run = |(row, padded): (usize, &Value)| {
        let (prompt, pads) = unpadded(&ids(padded), &case["attention_mask"][row]);
        let start = pads + prompt.len();
        let steps = case["unmasked_at_step"].as_array().unwrap().iter();
        Run {
            label: format!("{name}/{}/{row}", case["name"]),
            task: Task::Text(params(&case["params"], "gen_length")),
            output: ids(&case["output"][row])[start..].to_vec(),
            order: steps.map(|step| after(start, &step[row])).collect(),
            prompt,
            forwards: None,
            rows: None,
        }
    };
    case["prompt"].as_array().unwrap().iter().enumerate().map(run).collect()
}

pub(super) fn runs(name: &str) -> Vec<Run> {
    let golden = json(name, "golden.json");
    golden["generate"].as_array().unwrap().iter().flat_map(|c| case(name, c)).collect()
}

/// Questions about an image (MMaDA), whose texts LLaDA's sampler writes.
pub(super) fn understanding() -> Vec<Run> {
    let golden = json("mmada", "golden.json");
    let prompt = ids(&golden["mmu"]["input_ids"][0]);
    let run = |(i, case): (usize, &Value)| Run {
        label: format!("mmada/mmu/{i}"),
        prompt: prompt.clone(),
        task: Task::Text(params(case, "max_new_tokens")),
        output: ids(&case["output"][0])[prompt.len()..].to_vec(),
        order: vec![],
        forwards: None,
        rows: None,
    };
    golden["mmu"]["runs"].as_array().unwrap().iter().enumerate().map(run).collect()
}

pub(super) fn assert_official(run: &Run, canvas: &Canvas) {
    run.assert_official(&canvas.tokens(), canvas.commit_steps(), canvas.forwards());
}

/// Runs them alone, then again, joining one after another.
pub(super) fn check(model: &Model, runs: &[Run]) {
    let backbone = &*model.backbone;
    for run in runs {
        // Alone to the last: what other runs kept is not there.
        let (mut denoiser, mut canvas) = (Denoiser::default(), run.canvas(model, 0));
        while canvas.finish().is_none() {
            denoiser.step(backbone, &mut [&mut canvas]).unwrap();
        }
        assert_official(run, &canvas);
        let evaluated = canvas.positions_evaluated();
        assert!(run.rows.is_none_or(|rows| rows == evaluated), "{}: {evaluated} positions", run.label);
    }
    let mut denoiser = Denoiser::default();
    let mut mixed: Vec<Canvas> = runs.iter().map(|run| run.canvas(model, 0)).collect();
    for tick in 0.. {
        let joined = mixed.iter_mut().enumerate().filter(|(i, canvas)| i % 4 <= tick && canvas.finish().is_none());
        let mut batch: Vec<&mut Canvas> = joined.map(|(_, canvas)| canvas).collect();
        if batch.is_empty() {
            break;
        }
        denoiser.step(backbone, &mut batch).unwrap();
    }
    runs.iter().zip(&mixed).for_each(|(run, canvas)| assert_official(run, canvas));
}

#[test]
fn greedy_runs_are_the_official_ones_alone_and_mixed() {
    for name in FOLDERS {
        // Eleven prompts, and two batches of two with left padding.
        let runs = runs(name);
        assert_eq!(runs.len(), 15);
        check(&model(name), &runs);
    }
}

#[test]
fn answers_about_an_image_are_the_official_ones() {
    let runs = understanding();
    assert_eq!(runs.len(), 2);
    check(&model("mmada"), &runs);
}
