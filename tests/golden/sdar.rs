//! Every run of SDAR: the official tokens and commits, alone and mixed, with finished blocks kept. Its forwards that only
//! store a block's keys and values are part of the next block's first forward here, and that of the last block is left
//! out; rows are the same.

use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::complete;
use lacuna::diffusion::frame::given;
use lacuna::diffusion::params::{TextParams, TextSampler};
use lacuna::engine::job::Task;
use lacuna::models::Model;
use serde_json::Value;

use super::folders::bare_copy;
use super::runs::{Run, check};
use super::{folder, ids, json, model, open};
use crate::properties::exactness::quiet;

/// Position and id of everything that a forward commits.
type Step = Vec<(usize, u32)>;

/// What the official code did.
struct Trace {
    /// Per denoising forward.
    steps: Vec<Step>,
    /// It wrote over what was committed: where fewer positions are masked than the step commits, `topk` takes others.
    overwrote: bool,
    /// Forwards, and rows without storing the last block.
    forwards: u32,
    rows: u64,
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn trace(case: &Value, mask: u32) -> Trace {
    let calls: Vec<(Vec<u32>, usize, bool)> = case["calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| (ids(&call["ids"]), number(&call["pos0"]), call["store_kv"] == true))
        .collect();
    let (mut steps, mut overwrote) = (Vec::new(), false);
    for pair in calls.windows(2) {
        let ((before, start, stored), (after, ..)) = (&pair[0], &pair[1]);
        if *stored {
            continue;
        }
        let changes = || before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after);
        overwrote |= changes().any(|(_, (&before, _))| before != mask);
        let commits = changes().filter(|(_, (before, _))| **before == mask);
        steps.push(commits.map(|(i, (_, &after))| (start + i, after)).collect());
    }
    let rows = |calls: &[(Vec<u32>, usize, bool)]| calls.iter().map(|(ids, ..)| ids.len() as u64).sum();
    Trace { forwards: steps.len() as u32, rows: rows(&calls[..calls.len() - 1]), steps, overwrote }
}

fn params(case: &Value, max_tokens: usize) -> TextParams {
    let params = &case["params"];
    let sampler = match params["remasking_strategy"].as_str().unwrap() {
        "low_confidence_dynamic" => {
            TextSampler::LowConfidenceDynamic { threshold: params["confidence_threshold"].as_f64().unwrap() }
        }
        "low_confidence_static" => TextSampler::LowConfidenceStatic,
        "sequential" => TextSampler::Sequential,
        other => panic!("{other}"),
    };
    TextParams {
        max_tokens,
        steps: number(&params["denoising_steps"]),
        block_length: number(&params["block_length"]),
        sampler,
        stop_at_eos: params["stopping_criteria_idx"].is_array(),
        ..quiet()
    }
}

/// A run that continues `prefix` by `steps` up to position `end`.
fn run(model: &Model, label: String, case: &Value, prefix: &[u32], steps: &[Step], end: usize) -> Run {
    let spec = model.backbone.spec();
    let params = params(case, end - prefix.len());
    let mut output = vec![spec.mask_id; params.max_tokens];
    steps.iter().flatten().for_each(|&(position, id)| output[position - prefix.len()] = id);
    if params.stop_at_eos {
        // The text ends before the first id that ends it; the official code goes on to the end of its block.
        let end = output.iter().position(|id| spec.eos_ids.contains(id));
        output.truncate(end.unwrap_or(output.len()));
    }
    let positions = |step: &Step| step.iter().map(|&(position, _)| position - prefix.len()).collect();
    Run {
        label,
        prompt: prefix.to_vec(),
        task: Task::Text(params),
        output,
        order: steps.iter().map(positions).collect(),
        forwards: None,
        rows: None,
    }
}

/// The runs with blocks of the model's length, and what those that were not stopped cost.
pub(super) fn runs(model: &Model) -> Vec<Run> {
    let spec = model.backbone.spec();
    let block = spec.block.unwrap();
    let golden = json("sdar", "golden.json");
    let mut runs = Vec::new();
    let cases = golden["generate"].as_array().unwrap().iter().enumerate();
    for (index, case) in cases.filter(|(_, case)| number(&case["params"]["block_length"]) == block) {
        let Trace { steps, overwrote, forwards, rows } = trace(case, spec.mask_id);
        let (prompt, output) = (ids(&case["prompt"]), ids(&case["output"]));
        if !overwrote {
            let whole = !output.contains(&spec.mask_id);
            let run = run(model, format!("sdar/{index}"), case, &prompt, &steps, output.len());
            runs.push(Run { forwards: whole.then_some(forwards), rows: whole.then_some(rows), ..run });
            continue;
        }
        // Block by block then, each from what the official code had made of those before it.
        for start in (prompt.len() / block * block..output.len()).step_by(block) {
            let inside = |step: &&Step| step.iter().all(|(position, _)| (start..start + block).contains(position));
            let steps: Vec<Step> = steps.iter().filter(inside).cloned().collect();
            let prefix = &output[..start.max(prompt.len())];
            runs.push(run(model, format!("sdar/{index}/{start}"), case, prefix, &steps, start + block));
        }
    }
    runs
}

/// The same weights, trained for blocks of 8 as far as the configuration says: the official code takes any length.
fn blocks_of_eight() -> Model {
    let copy = bare_copy("sdar");
    std::fs::copy(folder("sdar").join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["block_size"] = 8.into();
    std::fs::write(path, config.to_string()).unwrap();
    open(copy.path()).unwrap()
}

#[test]
fn greedy_runs_of_sdar_are_the_official_ones() {
    let (four, eight) = (model("sdar"), blocks_of_eight());
    // Of ten runs one goes by its five blocks.
    for (model, count) in [(&four, 9 + 5), (&eight, 2)] {
        let runs = runs(model);
        assert_eq!(runs.len(), count);
        assert!(runs.iter().any(|run| run.rows.is_some()));
        check(model, &runs);
    }
    let ends = &four.backbone.spec().eos_ids;
    assert!(ends.contains(&256) && ends.contains(&258), "{ends:?}");
}

#[test]
fn a_length_that_fills_no_block_gets_the_beginning_of_one_that_does() {
    let model = model("sdar");
    let spec = model.backbone.spec();
    let golden = json("sdar", "golden.json");
    let case = &golden["generate"][0];
    let (prompt, output) = (ids(&case["prompt"]), ids(&case["output"]));
    for length in [1, 2, 3, 5, 16] {
        let mut canvas = Canvas::text(spec, given(&prompt), None, &params(case, length), 0).unwrap();
        complete(&*model.backbone, std::slice::from_mut(&mut canvas), 1000).unwrap();
        assert_eq!(canvas.tokens(), output[prompt.len()..prompt.len() + length], "{length}");
    }
}

#[test]
fn other_block_lengths_than_the_models_are_refused() {
    let model = model("sdar");
    let golden = json("sdar", "golden.json");
    let params = TextParams { block_length: 8, ..params(&golden["generate"][0], 16) };
    let error = Canvas::text(model.backbone.spec(), given(&[97]), None, &params, 0).unwrap_err();
    assert_eq!(error.to_string(), "block_length: 8 is not the model's: its blocks have 4; use that");
}
