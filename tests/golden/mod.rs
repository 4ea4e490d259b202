//! The official PyTorch code's inputs and outputs on tiny random models (LLaDA's `modeling_llada.py` and `generate.py`,
//! torch 2.3.1, CPU, f32): logits within 1e-4, every greedy run identical in tokens and in the order of commits.

use std::path::{Path, PathBuf};

use candle_core::Device;
use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::Denoiser;
use lacuna::diffusion::frame::with_holes;
use lacuna::diffusion::params::{TextParams, TextSampler};
use lacuna::models::backbone::TransformerBackbone;
use lacuna::models::nn::Precision;
use lacuna::models::transformer::{Transformer, TransformerConfig, parameters};
use lacuna::models::weights::Weights;
use lacuna::models::{Backbone, ModelSpec, Packed};
use serde_json::Value;

mod maskgrpo;
mod vq;

const TOLERANCE: f64 = 1e-4;
const FOLDERS: [&str; 2] = ["llada", "llada_gqa_tied"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn backbone(name: &str) -> TransformerBackbone {
    let file = json(name, "config.json");
    let config: TransformerConfig = serde_json::from_value(file.clone()).unwrap();
    let bytes = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let weights = Weights::from_bytes(&bytes, &config, &Device::Cpu).unwrap();
    let id = |field: &str| file[field].as_u64().unwrap() as u32;
    let spec = ModelSpec {
        name: name.to_owned(),
        vocab_size: config.embedding_size,
        text_ids: 0..config.embedding_size as u32,
        image: None,
        mask_id: id("mask_token_id"),
        eos_ids: vec![id("eos_token_id")],
        banned_ids: vec![id("mask_token_id")],
        max_positions: config.max_sequence_length,
        d_model: config.d_model,
        n_layers: config.n_layers,
        parameters: parameters(&config),
        sha256: weights.sha256.clone(),
    };
    let transformer = Transformer::new(config, Precision::Exact, |name| weights.get(name)).unwrap();
    TransformerBackbone::new(spec, transformer)
}

#[test]
fn logits_are_the_official_ones() {
    for name in FOLDERS {
        let model = backbone(name);
        for case in json(name, "golden.json")["logits"].as_array().unwrap() {
            let mut packed = Packed::default();
            let rows: Vec<Vec<u32>> = case["input_ids"].as_array().unwrap().iter().map(ids).collect();
            for row in &rows {
                packed.push(row, 0..row.len() as u32);
            }
            let hidden = model.forward(&packed).unwrap();
            let logits = model.logits(&hidden, model.spec().text_ids.clone()).unwrap().to_vec2::<f32>().unwrap();
            match case["logits"].as_array() {
                Some(rows) => assert_close(name, &logits, rows.iter().flat_map(|row| row.as_array().unwrap())),
                // The long sequence comes as its argmax everywhere and its last position.
                None => {
                    let best = |row: &Vec<f32>| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                    let argmax: Vec<u32> = logits.iter().map(|row| best(row) as u32).collect();
                    assert_eq!(argmax, ids(&case["logits_argmax"][0]), "{name}");
                    assert_close(name, &logits[logits.len() - 1..], case["logits_last"].as_array().unwrap().iter());
                }
            }
        }
    }
}

fn assert_close<'a>(name: &str, logits: &[Vec<f32>], expected: impl Iterator<Item = &'a Value>) {
    let mut compared = 0;
    for (got, expected) in logits.iter().zip(expected) {
        for (got, expected) in got.iter().zip(expected.as_array().unwrap()) {
            let difference = (f64::from(*got) - expected.as_f64().unwrap()).abs();
            assert!(difference < TOLERANCE, "{name}: differs by {difference}");
            compared += 1;
        }
    }
    assert_eq!(compared, logits.iter().map(Vec::len).sum::<usize>());
}

/// A greedy run of the official code.
struct Run {
    label: String,
    canvas: Canvas,
    output: Vec<u32>,
    /// Positions committed by each step.
    order: Vec<Vec<usize>>,
    prompt: usize,
}

fn runs(name: &str, model: &TransformerBackbone) -> Vec<Run> {
    let golden = json(name, "golden.json");
    let build = |case: &Value| {
        let params = &case["params"];
        let size = |field: &str| params[field].as_u64().unwrap() as usize;
        let prompt = ids(&case["prompt"][0]);
        let text = TextParams {
            max_tokens: size("gen_length"),
            steps: size("steps"),
            block_length: size("block_length"),
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            sampler: TextSampler::LowConfidence,
            guidance_scale: params["cfg_scale"].as_f64().unwrap(),
            stop_at_eos: false,
            stop: vec![],
        };
        let slots = with_holes(&prompt, model.spec().mask_id);
        let steps = case["unmasked_at_step"].as_array().unwrap().iter();
        Run {
            label: format!("{name}/{}", case["name"]),
            canvas: Canvas::text(model.spec(), slots, None, &text, 0).unwrap(),
            output: ids(&case["output"][0]),
            order: steps.map(|s| ids(&s[0]).iter().map(|&p| p as usize).collect()).collect(),
            prompt: prompt.len(),
        }
    };
    golden["generate"].as_array().unwrap().iter().map(build).collect()
}

fn assert_official(run: &Run) {
    assert_eq!(run.canvas.tokens(), run.output[run.prompt..], "{}", run.label);
    for (position, &step) in run.canvas.commit_steps().iter().enumerate() {
        let at = run.order.iter().position(|s| s.contains(&(run.prompt + position)));
        assert_eq!(at, Some(step as usize), "{}: position {position}", run.label);
    }
}

#[test]
fn greedy_runs_are_the_official_ones_alone_and_mixed() {
    for name in FOLDERS {
        let model = backbone(name);
        let mut denoiser = Denoiser::default();
        let mut alone = runs(name, &model);
        assert_eq!(alone.len(), 9);
        for run in &mut alone {
            while run.canvas.finish().is_none() {
                denoiser.step(&model, &mut [&mut run.canvas]).unwrap();
            }
            assert_official(run);
        }
        let mut mixed = runs(name, &model);
        for tick in 0.. {
            let joined = mixed.iter_mut().enumerate().filter(|(i, run)| i % 4 <= tick && run.canvas.finish().is_none());
            let mut batch: Vec<&mut Canvas> = joined.map(|(_, run)| &mut run.canvas).collect();
            if batch.is_empty() {
                break;
            }
            denoiser.step(&model, &mut batch).unwrap();
        }
        mixed.iter().for_each(assert_official);
    }
}
