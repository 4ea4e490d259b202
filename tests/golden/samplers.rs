//! Every greedy run of Dream's samplers, of Fast-dLLM without its caches (with them: `caches.rs`) and of MMaDA's images:
//! identical in tokens and in the order of commits, alone and mixed with each other.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;
use lacuna::diffusion::params::{Ends, Fidelity, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use lacuna::engine::job::Task;
use lacuna::models::kept::KeptSpans;
use lacuna::models::{Backbone, Model, ModelError, ModelSpec, Packed};
use serde_json::Value;

use super::runs::{Run, after, check, understanding};
use super::{ids, json, model, unpadded};

const CELLS: usize = 16;

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(params: &Value, max_tokens: usize, block_length: usize, sampler: TextSampler) -> TextParams {
    TextParams {
        max_tokens,
        steps: params["steps"].as_u64().unwrap() as usize,
        block_length,
        temperature: 0.0,
        top_p: params["top_p"].as_f64().unwrap_or(1.0),
        top_k: params["top_k"].as_u64().unwrap_or(0) as usize,
        sampler,
        ends: Ends::default(),
        guidance_scale: 0.0,
        stop_at_eos: false,
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: vec![],
    }
}

pub(super) fn dream() -> Vec<Run> {
    let run = |case: &Value| {
        let params = &case["params"];
        let eps = params["eps"].as_f64().unwrap();
        let sampler = match params["alg"].as_str().unwrap() {
            "maskgit_plus" => TextSampler::MaskgitPlus { eps, alg_temp: 0.0 },
            "topk_margin" => TextSampler::TopkMargin { eps, alg_temp: 0.0 },
            "entropy" => TextSampler::Entropy { eps, alg_temp: 0.0 },
            other => panic!("{other}"),
        };
        let prompt = ids(&case["prompt"][0]);
        let length = case["max_new_tokens"].as_u64().unwrap() as usize;
        Run {
            label: format!("dream/{}", case["name"]),
            task: Task::Text(text(params, length, length, sampler)),
            output: ids(&case["output"][0])[prompt.len()..].to_vec(),
            order: list(&case["unmasked_at_step"]).iter().map(|step| after(prompt.len(), &step[0])).collect(),
            prompt,
            forwards: None,
            rows: None,
        }
    };
    list(&json("dream", "golden.json")["generate"]).iter().map(run).collect()
}

/// Runs of Fast-dLLM on the model `name`, with a cache or without.
pub(super) fn fast_dllm(name: &str, fidelity: Fidelity) -> Vec<Run> {
    let golden = json("llada_fastdllm", "golden.json");
    let function = match fidelity {
        Fidelity::Exact => "generate",
        Fidelity::Prefix => "generate_with_prefix_cache",
        Fidelity::Dual => "generate_with_dual_cache",
    };
    let mine = |case: &&Value| case["model"] == name && case["fn"] == function;
    let run = |case: &Value| {
        let params = &case["params"];
        let size = |field: &str| params[field].as_u64().unwrap() as usize;
        let sampler = match params["threshold"].as_f64() {
            Some(threshold) => TextSampler::Threshold { threshold },
            None => TextSampler::LowConfidence,
        };
        let prompt = ids(&case["prompt"]);
        Run {
            label: format!("{name}/{params}/{}", prompt.len()),
            task: Task::Text(TextParams {
                fidelity,
                ..text(params, size("gen_length"), size("block_length"), sampler)
            }),
            output: ids(&case["output"])[prompt.len()..].to_vec(),
            order: list(&case["order"]).iter().map(|step| after(prompt.len(), step)).collect(),
            prompt,
            forwards: Some(case["nfe"].as_u64().unwrap() as u32),
            rows: Some(list(&case["calls"]).iter().map(|call| call[0].as_u64().unwrap()).sum()),
        }
    };
    list(&golden["runs"]).iter().filter(mine).map(run).collect()
}

/// A model that can never say the mask: the official runs were made so, or Fast-dLLM would wait forever for a position
/// where the mask is the likeliest.
struct Unmasked(Arc<dyn Backbone>);

impl Backbone for Unmasked {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        self.0.forward(packed)
    }

    fn forward_keeping(&self, packed: &Packed) -> Result<(Tensor, KeptSpans), ModelError> {
        self.0.forward_keeping(packed)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        let mask = self.spec().mask_id;
        let muted: Vec<f32> = vocab.clone().map(|id| if id == mask { f32::NEG_INFINITY } else { 0.0 }).collect();
        Ok(self.0.logits(hidden, vocab)?.broadcast_add(&Tensor::new(muted, hidden.device())?)?)
    }
}

/// The model that the runs of Fast-dLLM were made with.
pub(super) fn unmasked(name: &str) -> Model {
    let model = model(name);
    Model { backbone: Arc::new(Unmasked(Arc::clone(&model.backbone))), ..model }
}

pub(super) fn images(model: &Model) -> Vec<Run> {
    let golden = json("mmada", "golden.json");
    let spec = model.backbone.spec();
    let run = |case: &Value, row: usize| {
        let text = golden["prompt"]["texts"][row].as_str().unwrap();
        let mut prompt = model.tokenizer.encode(text).unwrap();
        // The official code cuts a long prompt.
        prompt.truncate(14);
        let official = ids(&golden["prompt"]["inpaint_ids"][row]);
        let cells = &official[official.len() - CELLS - 1..official.len() - 1];
        let known = cells.iter().map(|&id| (id != spec.mask_id).then(|| id - 300)).collect();
        let params = &case["params"];
        let params = ImageParams {
            steps: params["timesteps"].as_u64().unwrap() as usize,
            guidance_scale: params["guidance_scale"].as_f64().unwrap(),
            schedule: serde_json::from_value::<Schedule>(params["schedule"].clone()).unwrap(),
            temperature: 0.0,
            token_temperature: None,
            sampler: ImageSampler::MaskgitCompat,
            grid: (4, 4),
            initial_codes: if case["input"] == "inpaint" { known } else { vec![] },
            preview_every: 0,
        };
        Run {
            label: format!("mmada/{}/{row}", case["name"]),
            output: ids(&case["codes"][row]),
            order: image_order(case, row, &params.initial_codes),
            task: Task::Image(params),
            prompt,
            forwards: None,
            rows: None,
        }
    };
    list(&golden["t2i"]).iter().flat_map(|case| [run(case, 0), run(case, 1)]).collect()
}

/// Which cells each step commits. The last one returns all, although the official code keeps one of them masked.
fn image_order(case: &Value, row: usize, known: &[Option<u32>]) -> Vec<Vec<usize>> {
    let steps = list(&case["steps"]);
    let mut masked: Vec<bool> = (0..CELLS).map(|i| known.get(i).copied().flatten().is_none()).collect();
    let mut order = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let after = ids(&step["masked_after"][row]);
        let unknown = masked.iter().filter(|&&m| m).count();
        let kept = after.iter().filter(|&&m| m == 1).count();
        assert_eq!(step["mask_len"][row].as_f64().unwrap() as usize, kept, "of {unknown}");
        let last = i + 1 == steps.len();
        let leaves: Vec<usize> = (0..CELLS).filter(|&p| masked[p] && (last || after[p] == 0)).collect();
        leaves.iter().for_each(|&p| masked[p] = false);
        order.push(leaves);
    }
    order
}

#[test]
fn dreams_greedy_runs_are_the_official_ones() {
    let runs = dream();
    assert_eq!(runs.len(), 14);
    check(&model("dream"), &runs);
}

#[test]
fn runs_of_fast_dllm_without_caches_are_the_official_ones() {
    for name in ["llada", "llada_gqa_tied"] {
        let runs = fast_dllm(name, Fidelity::Exact);
        assert_eq!(runs.len(), 8);
        check(&unmasked(name), &runs);
    }
}

#[test]
fn greedy_images_are_the_official_ones() {
    let model = model("mmada");
    let mut runs = images(&model);
    assert_eq!(runs.len(), 18);
    let prompt = &json("mmada", "golden.json")["prompt"];
    // What `images` builds is what the official code was given.
    for (row, run) in runs.iter().take(2).enumerate() {
        let official = unpadded(&ids(&prompt["cond_ids"][row]), &prompt["cond_mask"][row]).0;
        assert_eq!(run.canvas(&model, 0).prompt_ids(), &official[..official.len() - CELLS - 1], "{}", run.label);
    }
    check(&model, &runs);
    // Texts and images in one batch.
    runs.extend(understanding());
    check(&model, &runs);
}
