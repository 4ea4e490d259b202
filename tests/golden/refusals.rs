//! Broken folders: each is refused, before any weights are loaded where that is possible, with a message that names
//! what is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::folders::{bare_copy, save, shard, tensors};
use super::open;

type Break = fn(&Path);

fn config(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(path, config.to_string()).unwrap();
}

fn set(folder: &Path, field: &str, value: Value) {
    config(folder, |fields| drop(fields.insert(field.into(), value)));
}

fn weights(folder: &Path, change: impl FnOnce(&mut std::collections::HashMap<String, Tensor>)) {
    let mut tensors = tensors("llada");
    change(&mut tensors);
    save(&tensors, folder, "model.safetensors");
}

const Q: &str = "model.transformer.blocks.1.q_proj.weight";

fn full(value: f32) -> Tensor {
    Tensor::full(value, (64, 64), &Device::Cpu).unwrap()
}

/// What is done to a good folder, and what the refusal must say.
const BROKEN: [(&str, Break, &[&str]); 23] = [
    ("a configuration that is no JSON", |f| fs::write(f.join("config.json"), "{").unwrap(), &["config.json"]),
    ("no configuration", |f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json is missing"]),
    (
        "another family",
        |f| set(f, "architectures", json!(["LLaDAMoEModelLM"])),
        &["LLaDAMoEModelLM", "SDARForCausalLM"],
    ),
    ("a family under a wrong name", |f| set(f, "model_type", json!("mmada")), &["model_type", "mmada", "llada"]),
    ("alibi", |f| set(f, "alibi", json!(true)), &["alibi", "true", "rotary"]),
    ("an unknown field", |f| set(f, "attention_sinks", json!(4)), &["attention_sinks", "4", "does not know"]),
    ("no mask", |f| config(f, |c| drop(c.remove("mask_token_id"))), &["mask_token_id", "missing"]),
    ("a mask beyond the vocabulary", |f| set(f, "mask_token_id", json!(320)), &["mask_token_id", "320"]),
    ("heads that do not divide", |f| set(f, "n_heads", json!(3)), &["n_heads", "3", "divide"]),
    ("a size of the wrong kind", |f| set(f, "d_model", json!("64")), &["d_model", "\"64\"", "whole number"]),
    ("more layers than weights", |f| set(f, "n_layers", json!(3)), &["missing", "blocks.2.attn_norm.weight", "6 more"]),
    ("shapes of other sizes", |f| set(f, "n_kv_heads", json!(2)), &["k_proj", "[64, 64]", "[32, 64]"]),
    ("no weights", |f| fs::remove_file(f.join("model.safetensors")).unwrap(), &["model.safetensors", "neither"]),
    (
        "half a file",
        |f| {
            let bytes = fs::read(f.join("model.safetensors")).unwrap();
            fs::write(f.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
        },
        &["model.safetensors", "complete"],
    ),
    ("a file that is none", |f| fs::write(f.join("model.safetensors"), b"PK\x03\x04").unwrap(), &["model.safetensors"]),
    ("a missing tensor", |f| weights(f, |t| drop(t.remove(Q))), &["missing", Q, "[64, 64]"]),
    (
        "an extra tensor",
        |f| weights(f, |t| drop(t.insert("model.transformer.blocks.1.q_proj.bias".into(), full(0.0)))),
        &["blocks.1.q_proj.bias", "not part"],
    ),
    ("a value that is not finite", |f| weights(f, |t| drop(t.insert(Q.into(), full(f32::NAN)))), &[Q, "not finite"]),
    (
        "integers",
        |f| weights(f, |t| drop(t.insert(Q.into(), full(1.0).to_dtype(DType::I64).unwrap()))),
        &[Q, "I64", "BF16"],
    ),
    (
        "an index that leads out of the folder",
        |f| {
            let mut index = shard(tensors("llada"), f);
            index["weight_map"][Q] = json!("../model.safetensors");
            fs::write(f.join("model.safetensors.index.json"), index.to_string()).unwrap();
            fs::remove_file(f.join("model.safetensors")).unwrap();
        },
        &["index.json", "../model.safetensors"],
    ),
    (
        "a shard that is not there",
        |f| {
            shard(tensors("llada"), f);
            fs::remove_file(f.join("model.safetensors")).unwrap();
            fs::remove_file(f.join("model-00002-of-00002.safetensors")).unwrap();
        },
        &["model-00002-of-00002.safetensors"],
    ),
    ("no tokenizer", |f| fs::remove_file(f.join("tokenizer.json")).unwrap(), &["tokenizer", "vocab.json"]),
    (
        "a chat template that is none",
        |f| fs::write(f.join("chat_template.jinja"), "{% for %}").unwrap(),
        &["chat template"],
    ),
];

fn good() -> tempfile::TempDir {
    let folder = bare_copy("llada");
    weights(folder.path(), |_| ());
    folder
}

#[test]
fn broken_folders_are_refused_by_name() {
    assert!(open(good().path()).is_ok());
    for (what, break_it, said) in BROKEN {
        let folder = good();
        break_it(folder.path());
        let Err(error) = open(folder.path()) else { panic!("{what} was loaded") };
        let error = error.to_string();
        println!("{what}: {error}");
        assert!(said.iter().all(|word| error.contains(word)), "{what}: {error}");
        assert!(error.len() < 400, "{what}: {error}");
    }
}

#[test]
fn the_command_says_so() {
    let run = |folder: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["generate", "text", "hi", "--max-tokens", "8", "--model"]).arg(folder);
        command.output().unwrap()
    };
    for name in super::FOLDERS {
        let output = run(&super::folder(name));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let folder = good();
    set(folder.path(), "layer_norm_type", json!("low_precision"));
    let output = run(folder.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("layer_norm_type") && said.contains("low_precision") && said.contains("--model"), "{said}");
}
