//! The same weights in other files: several shards with an index, bf16 and f16.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lacuna::models::Placement;
use lacuna::models::checkpoint::Checkpoint;
use lacuna::models::nn::Format;
use serde_json::json;
use tempfile::TempDir;

use super::logits::logits;
use super::{folder, open};

/// A copy of a golden folder without its weights.
pub(super) fn bare_copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        let from = folder(name).join(file);
        if from.is_file() {
            fs::write(copy.path().join(file), fs::read(from).unwrap()).unwrap();
        }
    }
    copy
}

pub(super) fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("model.safetensors"), &Device::Cpu).unwrap()
}

pub(super) fn save(tensors: &HashMap<String, Tensor>, folder: &Path, file: &str) {
    candle_core::safetensors::save(tensors, folder.join(file)).unwrap();
}

/// Splits the tensors into two files with an index; returns the index.
pub(super) fn shard(tensors: HashMap<String, Tensor>, folder: &Path) -> serde_json::Value {
    let (first, second): (HashMap<_, _>, HashMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| name.contains(".0."));
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut weight_map = serde_json::Map::new();
    for (part, file) in [first, second].iter().zip(names) {
        save(part, folder, file);
        weight_map.extend(part.keys().map(|name| (name.clone(), file.into())));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    index
}

fn probe(folder: &Path) -> (Vec<Vec<Vec<f32>>>, String) {
    let model = open(folder).unwrap_or_else(|e| panic!("{e}"));
    let ids = vec![vec![1, 2, 3, 250, 9], vec![7; 20]];
    (logits(&*model.backbone, &ids), model.backbone.spec().sha256.clone())
}

#[test]
fn shards_are_the_whole() {
    for name in ["llada", "dream", "sdar"] {
        let copy = bare_copy(name);
        shard(tensors(name), copy.path());
        let (whole, sharded) = (probe(&folder(name)), probe(copy.path()));
        assert_eq!(whole.0, sharded.0, "{name}");
        assert!(whole.1.len() == 64 && sharded.1.len() == 64 && whole.1 != sharded.1);
    }
}

/// What doctor counts, by the headers alone.
#[test]
fn weights_take_what_their_format_takes_however_they_are_filed() {
    for name in ["llada", "llada_gqa_tied"] {
        let copy = bare_copy(name);
        shard(tensors(name), copy.path());
        let bytes = |folder: &Path, format| {
            let to = Placement { device: Device::Cpu, format };
            Checkpoint::open(folder, name).unwrap().weight_bytes(&to)
        };
        let values: usize = tensors(name).values().map(Tensor::elem_count).sum();
        let f32 = bytes(&folder(name), Format::F32);
        // Packed weights are filled up to whole panels, and a tied head is packed beside its embedding.
        assert!(f32 >= 4 * values as u64 && f32 < 8 * values as u64, "{f32} bytes for {values} values");
        for format in [Format::F32, Format::Bf16, Format::Int8] {
            assert_eq!(bytes(copy.path(), format), bytes(&folder(name), format), "{name}");
        }
        let (bf16, int8) = (bytes(&folder(name), Format::Bf16), bytes(&folder(name), Format::Int8));
        assert!(int8 < bf16 && bf16 < f32, "{int8}, {bf16}, {f32}");
    }
}

#[test]
fn half_precision_files_give_the_logits_of_the_f32_file() {
    // The golden weights are bf16-representable, so nothing is lost.
    let copy = bare_copy("llada");
    fs::write(copy.path().join("model.safetensors"), fs::read(folder("llada").join("model.bf16.safetensors")).unwrap())
        .unwrap();
    assert_eq!(probe(copy.path()).0, probe(&folder("llada")).0);
    // f16 rounds, and the loader must do nothing more.
    let f16: HashMap<_, _> =
        tensors("llada").into_iter().map(|(name, t)| (name, t.to_dtype(DType::F16).unwrap())).collect();
    let back = f16.iter().map(|(name, t)| (name.clone(), t.to_dtype(DType::F32).unwrap())).collect();
    let (half, full) = (bare_copy("llada"), bare_copy("llada"));
    save(&f16, half.path(), "model.safetensors");
    save(&back, full.path(), "model.safetensors");
    assert_eq!(probe(half.path()).0, probe(full.path()).0);
}
