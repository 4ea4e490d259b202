//! What gradient checkpointing by layer saves, measured: peak memory of one update in a process of its own, with and
//! without. Not part of the ordinary tests; it takes a minute and some gigabytes:
//!
//! ```text
//! cargo test --release --test all memory -- --ignored --nocapture
//! ```

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use lacuna::diffusion::rng::Stream;
use lacuna::models::backbone::TransformerBackbone;
use lacuna::models::nn::Precision;
use lacuna::models::optim::OptimConfig;
use lacuna::models::shape::Variant;
use lacuna::models::transformer::{Transformer, TransformerConfig, parameters};
use lacuna::models::{Backbone, ModelSpec};
use lacuna::rl::estimator::Estimator;
use lacuna::rl::logprob::Sample;
use lacuna::rl::loss::LossConfig;
use lacuna::rl::masks::Role;
use lacuna::rl::policy::{LoraConfig, Policy};
use lacuna::rl::update::{Judged, UpdateConfig, Workshop, update};

const POSITIONS: usize = 256;
const BATCH: u64 = 8;
/// Tells the child which of the two it is.
const BY_LAYER: &str = "LACUNA_TEST_BY_LAYER";

fn config() -> TransformerConfig {
    TransformerConfig {
        d_model: 512,
        n_layers: 12,
        n_heads: 8,
        n_kv_heads: 8,
        mlp_hidden_size: 1408,
        embedding_size: 2048,
        max_sequence_length: POSITIONS,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        weight_tying: true,
        variant: Variant::default(),
    }
}

fn model() -> Arc<dyn Backbone> {
    let config = config();
    let mut stream = Stream::new(1, 0);
    let tensors: BTreeMap<String, Tensor> = config
        .tensors()
        .into_iter()
        .map(|(name, shape)| {
            let gain = if shape.len() == 1 { 1.0 } else { 0.0 };
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..n).map(|_| (gain + 0.04 * (stream.unit() - 0.5)) as f32).collect();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        })
        .collect();
    let spec = ModelSpec {
        name: "random".into(),
        vocab_size: config.embedding_size,
        text_ids: 0..2047,
        image: None,
        mask_id: 2047,
        eos_ids: vec![0],
        banned_ids: vec![2047],
        max_positions: POSITIONS,
        block: None,
        shifted: false,
        d_model: config.d_model,
        n_layers: config.n_layers,
        parameters: parameters(&config),
        sha256: String::new(),
    };
    let transformer = Transformer::new(config, Precision::Mixed, |name| tensors.get(name).cloned()).unwrap();
    Arc::new(TransformerBackbone::new(spec, transformer))
}

fn batch() -> Vec<Judged> {
    let of = |id: u64| {
        let completion: Vec<u32> = (0..POSITIONS as u64 - 16).map(|k| ((k * 31 + id * 17) % 2000) as u32).collect();
        let roles = vec![Role::Scored; completion.len()];
        let prefix = vec![5; 16];
        let sample = Sample {
            id,
            prefix,
            completion,
            suffix: vec![],
            vocab: 0..2047,
            roles,
            commit_steps: vec![],
            guidance: None,
        };
        Judged { sample, advantage: if id.is_multiple_of(2) { 1.0 } else { -1.0 }, weight: 1.0, behaviour: None }
    };
    (0..BATCH).map(of).collect()
}

/// A field of `/proc/self/status`, MiB.
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[test]
#[ignore = "the child of the measurement below"]
fn child() {
    let Ok(by_layer) = std::env::var(BY_LAYER) else { return };
    let model = model();
    let shape = model.adaptable().unwrap().clone();
    let mut policy =
        Policy::fresh(&shape, &LoraConfig { rank: 8, alpha: 16.0 }, OptimConfig::default(), 1, &Device::Cpu).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let workshop = Workshop { model, pool, pace: Box::new(|| true) };
    let config = UpdateConfig {
        estimator: Estimator::TEXT,
        loss: LossConfig { beta: 0.0, ..LossConfig::default() },
        bounds: None,
        draws: 2,
        inner: 1,
        micro_rows: POSITIONS * BATCH as usize,
        checkpointing: by_layer == "1",
        max_drift: 1.0,
        behaviour_cap: 2.0,
        max_staleness: 0.7,
        seed: 1,
    };
    let batch = batch();
    // Resets the peak: the model's construction is not what is measured.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, start) = (status("VmRSS"), Instant::now());
    let report = update(&workshop, &mut policy, None, &batch, &config, 1e-3).unwrap();
    assert_eq!((report.steps, report.skipped), (1, 0));
    println!("PEAK {} {} {}", status("VmHWM") - before, start.elapsed().as_secs_f64(), report.grad_norm);
}

#[test]
#[ignore = "measures; takes a minute and some gigabytes"]
fn checkpointing_by_layer_needs_less() {
    let run = |by_layer: &str| -> Vec<f64> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["memory::child", "--exact", "--ignored", "--nocapture"]).env(BY_LAYER, by_layer);
        let out = command.output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once("PEAK ")).unwrap_or_else(|| panic!("{text}"));
        line.1.split(' ').map(|number| number.parse().unwrap()).collect()
    };
    let (plain, by_layer) = (run("0"), run("1"));
    let config = config();
    println!(
        "one update, d {} · {} layers · {POSITIONS} positions · batch {BATCH}: {:.0} MiB above the model plain ({:.1} s), \
         {:.0} MiB by layer ({:.1} s)",
        config.d_model, config.n_layers, plain[0], plain[1], by_layer[0], by_layer[1]
    );
    assert!(by_layer[0] < 0.5 * plain[0]);
    assert!((plain[2] - by_layer[2]).abs() <= 1e-6 * plain[2], "gradient norms {} and {}", plain[2], by_layer[2]);
}
