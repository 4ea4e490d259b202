//! Adapters against the real `peft` package: what it writes gives the logits here that it gives there, and what this
//! server writes it loads, to the same logits.
//!
//! `fixtures/KIND` was written by peft 0.21.2 (torch 2.15.0, CPU) through `check.py make`, and `fixtures/ours/adapter`
//! by this crate; its logits are peft's (`check.py logits`). Where `PEFT_PYTHON` names an interpreter with `peft`
//! (tests/run makes one), both directions are also run afresh.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lacuna::adapters::peft;
use lacuna::adapters::{Base, Limits, PeftFiles};
use lacuna::diffusion::rng::Stream;
use lacuna::models::Packed;
use lacuna::models::checkpoint::Checkpoint;
use lacuna::models::lora::{Lora, Pair, Target};
use lacuna::models::nn::Precision;
use lacuna::models::transformer::{Transformer, TransformerConfig};
use lacuna::models::weights::Weights;
use tempfile::TempDir;

use crate::golden;

const TOLERANCE: f32 = 1e-4;
const KINDS: [&str; 5] = ["plain", "rslora", "patterns", "layers", "bf16"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft")
}

fn fixture(kind: &str) -> PathBuf {
    folder().join("fixtures").join(kind)
}

/// A folder's base model.
fn model(folder: &Path) -> (Transformer, Base) {
    let config: TransformerConfig = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let weights = Weights::from_bytes(&bytes, &config, &Device::Cpu).unwrap();
    let transformer = Transformer::new(config.clone(), Precision::Exact, |name| weights.get(name)).unwrap();
    let base = Base { model: "tiny".into(), sha256: weights.sha256.clone(), config, device: Device::Cpu };
    (transformer, base)
}

/// Logits of each of `ids.json`'s sequences, all in one batch.
fn logits(folder: &Path, model: &Transformer, adapter: Option<&Arc<Lora>>) -> Vec<Vec<f32>> {
    let ids: Vec<Vec<u32>> = serde_json::from_slice(&fs::read(folder.join("ids.json")).unwrap()).unwrap();
    let mut packed = Packed::default();
    for row in &ids {
        packed.push_adapted(row, 0..row.len() as u32, adapter.cloned());
    }
    let hidden = model.hidden(&packed).unwrap();
    model.logits(&hidden, 0..model.config().embedding_size as u32).unwrap().to_vec2().unwrap()
}

/// PEFT's logits in `folder` are this server's with the adapter there, and not those of the base.
fn assert_same(folder: &Path) {
    let (model, base) = model(folder);
    let files = PeftFiles::from_dir(&folder.join("adapter"), &Limits::default()).unwrap();
    let lora = Arc::new(peft::read(&files, &base, &Limits::default()).unwrap());
    let expected: Vec<Vec<Vec<f32>>> = serde_json::from_slice(&fs::read(folder.join("logits.json")).unwrap()).unwrap();
    let expected = expected.concat();
    let (adapted, plain) = (logits(folder, &model, Some(&lora)), logits(folder, &model, None));
    let difference = |got: &[Vec<f32>]| {
        assert_eq!(got.len(), expected.len());
        let rows = got.iter().zip(&expected);
        rows.flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs())).fold(0.0, f32::max)
    };
    let (with, without) = (difference(&adapted), difference(&plain));
    assert!(with < TOLERANCE, "{}: differs by {with}", folder.display());
    assert!(without > 1e-2, "{}: the adapter does nothing ({without})", folder.display());
}

/// An adapter as training leaves one, with a module left out and one of another rank.
fn ours(base: &Base) -> Lora {
    let mut random = Stream::new(7, 0);
    let mut pairs = BTreeMap::new();
    for layer in 0..base.config.n_layers {
        for target in Target::ALL {
            if (layer, target) == (0, Target::V) {
                continue;
            }
            let rank = if target == Target::Down { 2 } else { 4 };
            let (out, width) = target.shape(&base.config);
            let mut factor = |rows: usize, columns: usize| {
                let values: Vec<f32> = (0..rows * columns).map(|_| random.unit() as f32 - 0.5).collect();
                Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
            };
            pairs.insert((layer, target), Pair { a: factor(rank, width), b: factor(out, rank) });
        }
    }
    Lora::new(&base.config, 1.5, pairs).unwrap()
}

fn write_ours(to: &Path) {
    for file in ["config.json", "model.safetensors", "ids.json"] {
        fs::copy(fixture("plain").join(file), to.join(file)).unwrap();
    }
    let (_, base) = model(to);
    write(&base, to);
}

/// Writes an adapter of `base` into a folder.
fn write(base: &Base, to: &Path) {
    peft::write(&ours(base), base).unwrap().write_to(&to.join("adapter")).unwrap();
}

/// The bases of the golden folders, with their folders.
fn checkpoints() -> impl Iterator<Item = (Base, PathBuf)> {
    golden::FOLDERS.into_iter().map(|name| {
        let folder = golden::folder(name);
        let checkpoint = Checkpoint::open(&folder, name).unwrap();
        let base = Base {
            model: name.into(),
            sha256: "ab".repeat(32),
            config: checkpoint.config().clone(),
            device: Device::Cpu,
        };
        (base, folder)
    })
}

#[test]
fn adapters_of_peft_do_here_what_they_do_there() {
    for kind in KINDS {
        assert_same(&fixture(kind));
    }
}

/// PEFT's logits of exactly these bytes are in the fixture, so the bytes are what is checked. After a change of the
/// format: write the files (`LACUNA_PEFT_REWRITE=1`) and run `check.py logits` on the folder.
#[test]
fn peft_loads_what_is_written_here() {
    let to = TempDir::new().unwrap();
    write_ours(to.path());
    if std::env::var_os("LACUNA_PEFT_REWRITE").is_some() {
        fs::create_dir_all(fixture("ours")).unwrap();
        write_ours(&fixture("ours"));
    }
    for file in ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model.safetensors"] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(to.path()) == read(&fixture("ours")), "{file} is not the one that PEFT was given");
    }
    if std::env::var_os("LACUNA_PEFT_REWRITE").is_none() {
        assert_same(&fixture("ours"));
    }
}

/// A factor is called as the checkpoint calls the weight that it adapts, so PEFT finds the module in the official class.
#[test]
fn adapters_of_a_checkpoint_have_its_names() {
    for (base, folder) in checkpoints() {
        let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
        let files = peft::write(&ours(&base), &base).unwrap();
        let factors = candle_core::safetensors::load_buffer(&files.model, &Device::Cpu).unwrap();
        assert_eq!(factors.len(), 2 * (7 * base.config.n_layers - 1), "{}", base.model);
        for (name, factor) in &factors {
            let path = name.strip_prefix("base_model.model.").unwrap();
            let (path, side) = path.strip_suffix(".weight").unwrap().rsplit_once('.').unwrap();
            let weight = weights.get(&format!("{path}.weight")).unwrap_or_else(|| panic!("{}: {name}", base.model));
            let (out, width) = weight.dims2().unwrap();
            match side {
                "lora_A" => assert_eq!(factor.dim(1).unwrap(), width, "{}: {name}", base.model),
                "lora_B" => assert_eq!(factor.dim(0).unwrap(), out, "{}: {name}", base.model),
                other => panic!("{other}"),
            }
        }
        let lora = peft::read(&files, &base, &Limits::default()).unwrap();
        assert_eq!(lora.pairs().len(), factors.len() / 2, "{}", base.model);
    }
}

#[test]
fn an_adapter_of_another_family_is_refused_with_the_names_that_fit() {
    let base = |name: &str| checkpoints().find(|(base, _)| base.model == name).unwrap().0;
    let (llada, dream) = (base("llada"), base("dream"));
    let files = peft::write(&ours(&llada), &llada).unwrap();
    let error = peft::read(&files, &dream, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("model.layers.N.{self_attn.q_proj"), "{error}");
}

#[test]
fn the_real_package_agrees_today() {
    let Some(python) = std::env::var_os("PEFT_PYTHON") else { return };
    let folders = TempDir::new().unwrap();
    let run = |arguments: &[&Path]| {
        let script = folder().join("check.py");
        let output = Command::new(&python).args(["-W", "ignore"]).arg(script).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&[Path::new("make"), folders.path()]);
    for kind in KINDS {
        assert_same(&folders.path().join(kind));
    }
    let ours = folders.path().join("ours");
    fs::create_dir_all(&ours).unwrap();
    write_ours(&ours);
    run(&[Path::new("logits"), &ours]);
    assert_same(&ours);
    for (base, folder) in checkpoints() {
        let to = folders.path().join(&base.model);
        fs::create_dir_all(&to).unwrap();
        fs::copy(folder.join("model.safetensors"), to.join("model.safetensors")).unwrap();
        write(&base, &to);
        run(&[Path::new("names"), &to]);
    }
}
