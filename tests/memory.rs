//! Memory, measured in processes of their own: what gradient checkpointing by layer saves in one update, and what loading
//! a model of LLaDA's kind takes over its weights. Not part of the ordinary tests; minutes and some gigabytes:
//!
//! ```text
//! cargo test --release --test all memory -- --ignored --nocapture
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use lacuna::diffusion::rng::Stream;
use lacuna::models::backbone::TransformerBackbone;
use lacuna::models::checkpoint::Checkpoint;
use lacuna::models::nn::{Format, Precision};
use lacuna::models::optim::OptimConfig;
use lacuna::models::shape::Variant;
use lacuna::models::transformer::{Transformer, TransformerConfig, parameters};
use lacuna::models::{Backbone, ModelSpec, Packed, Placement};
use lacuna::rl::estimator::Estimator;
use lacuna::rl::logprob::{Drawn, Sample};
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
            logprobs: vec![],
            drawn: Drawn::default(),
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
    let workshop = Workshop { model, pool, pace: Arc::new(|| true) };
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

/// The numbers that the test `child` prints when `variable` is set.
fn measure(child: &str, variable: &str, value: &str) -> Vec<f64> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([child, "--exact", "--ignored", "--nocapture"]).env(variable, value);
    let out = command.output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("PEAK ")).unwrap_or_else(|| panic!("{text}"));
    line.1.split(' ').map(|number| number.parse().unwrap()).collect()
}

#[test]
#[ignore = "measures; takes a minute and some gigabytes"]
fn checkpointing_by_layer_needs_less() {
    let run = |by_layer: &str| measure("memory::child", BY_LAYER, by_layer);
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

/// Tells the child which folder to load, and in which format.
const LOADED: &str = "LACUNA_TEST_LOADED";

/// Writes a checkpoint as LLaDA's official code does: random weights of `layers` layers, in f32 or bf16.
fn write_llada(folder: &Path, layers: usize, bf16: bool) {
    const D: usize = 1024;
    const FF: usize = 2816;
    const VOCABULARY: usize = 32_000;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llada");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("d_model", D),
        ("n_layers", layers),
        ("n_heads", 16),
        ("n_kv_heads", 16),
        ("mlp_hidden_size", FF),
        ("vocab_size", VOCABULARY),
        ("embedding_size", VOCABULARY),
    ] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        if golden.join(file).exists() {
            std::fs::copy(golden.join(file), folder.join(file)).unwrap();
        }
    }
    let mut tensors = vec![("model.transformer.wte.weight".to_owned(), vec![VOCABULARY, D])];
    for layer in 0..layers {
        let of =
            |name: &str, shape: &[usize]| (format!("model.transformer.blocks.{layer}.{name}.weight"), shape.to_vec());
        tensors.extend(["q_proj", "k_proj", "v_proj", "attn_out"].map(|name| of(name, &[D, D])));
        tensors.extend([of("ff_proj", &[FF, D]), of("up_proj", &[FF, D]), of("ff_out", &[D, FF])]);
        tensors.extend([of("attn_norm", &[D]), of("ff_norm", &[D])]);
    }
    tensors.push(("model.transformer.ln_f.weight".to_owned(), vec![D]));
    tensors.push(("model.transformer.ff_out.weight".to_owned(), vec![VOCABULARY, D]));
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in &tensors {
        let end = at + shape.iter().product::<usize>() * if bf16 { 2 } else { 4 };
        let dtype = if bf16 { "BF16" } else { "F32" };
        header.insert(name.clone(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    let header = serde_json::Value::Object(header).to_string();
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    file.write_all(&(padded.len() as u64).to_le_bytes()).unwrap();
    file.write_all(padded.as_bytes()).unwrap();
    let mut stream = Stream::new(3, 0);
    for (_, shape) in &tensors {
        let (gain, width) = if shape.len() == 1 { (1.0, 0.0) } else { (0.0, (12.0 / shape[1] as f64).sqrt()) };
        for _ in 0..shape.iter().product::<usize>() {
            let bytes = ((gain + width * (stream.unit() - 0.5)) as f32).to_le_bytes();
            file.write_all(if bf16 { &bytes[2..] } else { &bytes }).unwrap();
        }
    }
    file.flush().unwrap();
}

#[test]
#[ignore = "the child of the measurement below"]
fn loading_child() {
    let Ok(loaded) = std::env::var(LOADED) else { return };
    let (format, folder) = loaded.split_once(':').unwrap();
    let format = if format == "bf16" { Format::Bf16 } else { Format::F32 };
    let placement = Placement { device: Device::Cpu, format };
    let checkpoint = Checkpoint::open(Path::new(folder), "random").unwrap();
    let weights = checkpoint.weight_bytes(&placement) as f64 / f64::from(1 << 20);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let start = Instant::now();
    let model = checkpoint.load(placement).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let peak = status("VmHWM");
    let mut packed = Packed::default();
    packed.push(&(0..64).map(|i| i * 397 % 32_000).collect::<Vec<u32>>(), [5, 40]);
    let logits = model.backbone.logits(&model.backbone.forward(&packed).unwrap(), 0..32_000).unwrap();
    let some: Vec<f32> = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let some: Vec<String> = some.iter().step_by(16).map(f32::to_string).collect();
    println!("PEAK {weights} {peak} {seconds} {}", some.join(" "));
}

#[test]
#[ignore = "measures; takes some minutes and gigabytes"]
fn loading_takes_little_more_than_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let load = |format: &str, file: &str| {
        let found = measure("memory::loading_child", LOADED, &format!("{format}:{}", folder.path().display()));
        let [weights, peak, seconds] = found[..3] else { panic!("{found:?}") };
        println!(
            "{file} file, {format} weights: {weights:.0} MiB in {seconds:.2} s, peak {:.3} of them",
            peak / weights
        );
        assert!(peak < 1.15 * weights);
        found[3..].to_vec()
    };
    write_llada(folder.path(), 16, false);
    let (exact, rounded) = (load("f32", "f32"), load("bf16", "f32"));
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let gap = square(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / square(&mut exact.iter().copied());
    println!("first forward, bf16 against f32 weights: logits differ by {:.2} %", gap * 100.0);
    assert!(gap < 0.05);
    write_llada(folder.path(), 36, true);
    load("bf16", "bf16");
}
