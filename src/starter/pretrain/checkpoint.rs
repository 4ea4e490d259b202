//! Checkpoints of a training run (weights, averaged weights, optimiser state) and the export of the final model.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::models::ModelError;
use crate::models::optim::Optimizer;

const CHECKPOINT: &str = "checkpoint.safetensors";
const WEIGHTS: &str = "weights.";
const EMA: &str = "ema.";
const STATE: &str = "state.";

/// A saved run.
pub struct Checkpoint {
    /// Updates made.
    pub step: u64,
    /// Weights by name, in the order of the model.
    pub weights: Vec<(String, Tensor)>,
    /// Averaged weights, same order.
    pub ema: Vec<(String, Tensor)>,
    tensors: HashMap<String, Tensor>,
}

impl Checkpoint {
    /// Reads the checkpoint in `dir`.
    ///
    /// # Errors
    /// When there is none or it is damaged.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(CHECKPOINT);
        let bytes = std::fs::read(&path)
            .map_err(|e| ModelError::Weights(format!("{}: {e}; start without --resume", path.display())))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let step = tensors.get("step").ok_or_else(|| ModelError::Weights("checkpoint without a step".into()))?;
        let step = step.to_vec1::<i64>()?.first().copied().unwrap_or(0) as u64;
        let order = tensors.get("order").ok_or_else(|| ModelError::Weights("checkpoint without an order".into()))?;
        let order = String::from_utf8_lossy(&order.to_vec1::<u8>()?).into_owned();
        let named = |prefix: &str| -> Result<Vec<(String, Tensor)>, ModelError> {
            let find = |name: &str| {
                let found = tensors.get(&format!("{prefix}{name}")).cloned();
                let missing = || ModelError::Weights(format!("checkpoint without {prefix}{name}"));
                Ok((name.to_owned(), found.ok_or_else(missing)?))
            };
            order.lines().map(find).collect()
        };
        Ok(Self { step, weights: named(WEIGHTS)?, ema: named(EMA)?, tensors })
    }

    /// A tensor of the optimiser's state.
    ///
    /// # Errors
    /// When it is missing.
    pub fn state(&self, name: &str) -> candle_core::Result<Tensor> {
        let missing = || candle_core::Error::Msg(format!("checkpoint without {STATE}{name}"));
        self.tensors.get(&format!("{STATE}{name}")).cloned().ok_or_else(missing)
    }
}

/// Writes a checkpoint to `dir`, replacing the old one only when the new one is complete.
pub(super) fn save(dir: &Path, optimizer: &Optimizer, ema: &[(String, Tensor)]) -> Result<(), ModelError> {
    let mut tensors = HashMap::new();
    for parameter in optimizer.parameters() {
        tensors.insert(format!("{WEIGHTS}{}", parameter.name), parameter.var.as_tensor().clone());
    }
    tensors.extend(ema.iter().map(|(name, value)| (format!("{EMA}{name}"), value.clone())));
    tensors.extend(optimizer.state().into_iter().map(|(name, value)| (format!("{STATE}{name}"), value)));
    let order: Vec<&str> = ema.iter().map(|(name, _)| name.as_str()).collect();
    let order = order.join("\n").into_bytes();
    tensors.insert("order".into(), Tensor::from_slice(&order, order.len(), &Device::Cpu)?);
    tensors.insert("step".into(), Tensor::from_slice(&[optimizer.steps() as i64], 1, &Device::Cpu)?);
    write(dir, CHECKPOINT, &tensors)
}

/// Writes the final weights to `dir/model.safetensors`, in bf16.
///
/// # Errors
/// When the file cannot be written.
pub fn export(dir: &Path, weights: &[(String, Tensor)]) -> Result<(), ModelError> {
    let tensors = weights.iter().map(|(name, value)| Ok((name.clone(), value.to_dtype(DType::BF16)?)));
    write(dir, "model.safetensors", &tensors.collect::<candle_core::Result<_>>()?)
}

fn write(dir: &Path, name: &str, tensors: &HashMap<String, Tensor>) -> Result<(), ModelError> {
    let failed = |e: std::io::Error| ModelError::Weights(format!("{}: {e}", dir.join(name).display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let partial = dir.join(format!("{name}.partial"));
    candle_core::safetensors::save(tensors, &partial)?;
    std::fs::rename(&partial, dir.join(name)).map_err(failed)
}
