//! Weights from safetensors bytes: checked before they are trusted.

use std::collections::HashMap;
use std::fmt::Write;

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::ModelError;
use super::shape::TransformerConfig;

/// Tensors by name, with the hash of the file they came from.
pub struct Weights {
    tensors: HashMap<String, Tensor>,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
}

impl Weights {
    /// Reads a safetensors file that must hold exactly the tensors of `config`, all finite. They are converted to
    /// f32 on the CPU, where bf16 products would widen their operands again on every call, and kept otherwise.
    ///
    /// # Errors
    /// Names the tensor that is missing, unknown, mis-shaped or not finite.
    pub fn from_bytes(bytes: &[u8], config: &TransformerConfig, device: &Device) -> Result<Self, ModelError> {
        let mut tensors = candle_core::safetensors::load_buffer(bytes, device)?;
        let expected: HashMap<String, Vec<usize>> = config.tensors().into_iter().collect();
        if let Some(name) = tensors.keys().find(|name| !expected.contains_key(*name)) {
            return Err(ModelError::Weights(format!("tensor {name} is not part of this model; is it another family?")));
        }
        for (name, shape) in &expected {
            let tensor = tensors
                .get_mut(name)
                .ok_or_else(|| ModelError::Weights(format!("tensor {name} {shape:?} is missing")))?;
            if tensor.dims() != shape {
                let dims = tensor.dims();
                return Err(ModelError::Weights(format!("tensor {name} has shape {dims:?}, expected {shape:?}")));
            }
            if device.is_cpu() {
                *tensor = tensor.to_dtype(DType::F32)?;
            }
            let sum = tensor.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
            if !sum.is_finite() {
                return Err(ModelError::Weights(format!("tensor {name} holds values that are not finite")));
            }
        }
        Ok(Self { tensors, sha256: hex(&Sha256::digest(bytes)) })
    }

    /// The tensor called `name`; shares storage.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::shape::Variant;

    fn config() -> TransformerConfig {
        TransformerConfig {
            d_model: 8,
            n_layers: 1,
            n_heads: 2,
            n_kv_heads: 2,
            mlp_hidden_size: 12,
            embedding_size: 10,
            max_sequence_length: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            weight_tying: false,
            variant: Variant::default(),
        }
    }

    fn refusal(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> Option<String> {
        let ones = |shape: &Vec<usize>| Tensor::ones(shape.as_slice(), DType::F32, &Device::Cpu).unwrap();
        let mut tensors = config().tensors().iter().map(|(name, shape)| (name.clone(), ones(shape))).collect();
        change(&mut tensors);
        let bytes = safetensors::serialize(tensors, None).unwrap();
        Weights::from_bytes(&bytes, &config(), &Device::Cpu).err().map(|e| e.to_string())
    }

    #[test]
    fn what_does_not_fit_is_named() {
        const GATE: &str = "model.transformer.blocks.0.ff_proj.weight";
        let value = |x: f32, shape: (usize, usize)| Tensor::full(x, shape, &Device::Cpu).unwrap();
        assert_eq!(refusal(|_| ()), None);
        let missing = refusal(|t| drop(t.remove(GATE))).unwrap();
        assert!(missing.contains(GATE) && missing.contains("missing") && missing.contains("[12, 8]"), "{missing}");
        let unknown = refusal(|t| drop(t.insert("lm_head.weight".into(), value(1.0, (2, 2))))).unwrap();
        assert!(unknown.contains("lm_head.weight"), "{unknown}");
        let shape = refusal(|t| drop(t.insert(GATE.into(), value(1.0, (12, 7))))).unwrap();
        assert!(shape.contains("[12, 7]") && shape.contains("[12, 8]"), "{shape}");
        let nan = refusal(|t| drop(t.insert(GATE.into(), value(f32::NAN, (12, 8))))).unwrap();
        assert!(nan.contains("not finite"), "{nan}");
    }
}
