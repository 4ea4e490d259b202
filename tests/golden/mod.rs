//! The official PyTorch code's inputs and outputs on tiny random models (torch 2.3.1, CPU, f32), each in a folder laid
//! out as its family's repository: the folders are loaded as `--model DIR` loads them.

use std::path::{Path, PathBuf};

use candle_core::Device;
use lacuna::models::Model;
use lacuna::models::checkpoint::Checkpoint;
use serde_json::Value;

mod caches;
mod folders;
mod layouts;
mod learning;
mod logits;
mod maskgrpo;
mod pictures;
mod refusals;
mod replays;
mod runs;
mod samplers;
mod sdar;
mod served;
mod text;
mod vq;

/// Every folder with a transformer.
pub(crate) const FOLDERS: [&str; 5] = ["llada", "llada_gqa_tied", "dream", "sdar", "mmada"];

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(name: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(name).join(file)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(crate) fn model(name: &str) -> Model {
    open(&folder(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn open(folder: &Path) -> Result<Model, lacuna::models::ModelError> {
    Checkpoint::open(folder, "golden")?.load(&Device::Cpu)
}

/// The ids that an attention mask lets through (left padding gone), and how many there were before them.
fn unpadded(ids: &[u32], mask: &Value) -> (Vec<u32>, usize) {
    let pads = mask.as_array().map_or(0, |mask| mask.iter().take_while(|m| m.as_u64() == Some(0)).count());
    (ids[pads..].to_vec(), pads)
}
