//! Where weights come from, what a file's tensors must be before they are trusted, and the weights that are embedded in
//! the program.

use std::collections::HashMap;
use std::fmt::Write;

use candle_core::{DType, Device, Storage, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::nn::slice;
use super::shape::TransformerConfig;

/// Names shown of a kind of misfit.
const SHOWN: usize = 3;

/// Where a transformer's weights come from. Each is asked for once.
pub trait WeightSource {
    /// The tensor called `name`.
    ///
    /// # Errors
    /// When it is missing or cannot be read.
    fn tensor(&mut self, name: &str) -> Result<Tensor, ModelError>;

    /// Hands the rows of the matrix called `name`, which is of `shape` and on the CPU, to `take`: in order, some at a
    /// time, in f32.
    ///
    /// # Errors
    /// When it is missing, has another shape or cannot be read, and what `take` says.
    fn rows(&mut self, name: &str, shape: &[usize], take: &mut Take<'_>) -> Result<(), ModelError> {
        let tensor = self.tensor(name)?;
        if tensor.dims() != shape {
            return Err(misfit(name, tensor.dims(), shape));
        }
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => take(slice(storage, layout, "rows of a weight")?),
            _ => Err(ModelError::Weights(format!("tensor {name} is not on the CPU"))),
        }
    }
}

/// Takes some rows of a matrix.
pub type Take<'a> = dyn FnMut(&[f32]) -> Result<(), ModelError> + 'a;

impl<F: FnMut(&str) -> Result<Tensor, ModelError>> WeightSource for F {
    fn tensor(&mut self, name: &str) -> Result<Tensor, ModelError> {
        self(name)
    }
}

/// Of a tensor that does not have the shape that is `expected`.
pub(super) fn misfit(name: &str, actual: &[usize], expected: &[usize]) -> ModelError {
    ModelError::Weights(format!("tensor {name} has shape {actual:?}, expected {expected:?}"))
}

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
        let file = SafeTensors::deserialize(bytes).map_err(|e| ModelError::Weights(e.to_string()))?;
        let views = file.tensors();
        misfits(config.tensors(), views.iter().map(|(name, view)| (name.as_str(), view.shape())))?;
        let mut tensors = HashMap::new();
        for (name, view) in views {
            let dtype = DType::try_from(view.dtype())?;
            if !is_finite(view.data(), dtype) {
                return Err(ModelError::Weights(format!("tensor {name} holds values that are not finite")));
            }
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), device)?;
            tensors.insert(name, if device.is_cpu() { tensor.to_dtype(DType::F32)? } else { tensor });
        }
        Ok(Self { tensors, sha256: hex(&Sha256::digest(bytes)) })
    }

    /// The tensor called `name`; shares storage.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }
}

/// Compares the names and shapes that were `found` with those that are `expected`.
///
/// # Errors
/// Names what is missing, unknown and mis-shaped, a few of each.
pub(super) fn misfits<'a>(
    expected: impl IntoIterator<Item = (String, Vec<usize>)>,
    found: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> Result<(), ModelError> {
    let mut expected: HashMap<String, Vec<usize>> = expected.into_iter().collect();
    let (mut shapes, mut unknown) = (Vec::new(), Vec::new());
    for (name, shape) in found {
        match expected.remove(name) {
            None => unknown.push(name.to_owned()),
            Some(expected) if expected != shape => {
                shapes.push(format!("{name} has shape {shape:?}, expected {expected:?}"));
            }
            Some(_) => {}
        }
    }
    let missing = expected.into_iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
    let kinds = [
        some_of("missing: ", missing),
        some_of("not part of this model (is it another family?): ", unknown),
        some_of("", shapes),
    ];
    let problems: Vec<String> = kinds.into_iter().flatten().collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(ModelError::Weights(format!("tensors do not fit the configuration; {}", problems.join("; "))))
}

/// The first few of `all`, in order of their names.
fn some_of(what: &str, mut all: Vec<String>) -> Option<String> {
    all.sort_unstable();
    let more = all.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    all.truncate(SHOWN);
    (!all.is_empty()).then(|| format!("{what}{}{rest}", all.join(", ")))
}

/// Whether all little-endian values of `bytes` are finite. Types other than the three floats are not.
pub(super) fn is_finite(bytes: &[u8], dtype: DType) -> bool {
    let half = |exponent: u16| {
        // Counted rather than searched, which vectorises.
        let bad = |b: &&[u8; 2]| u16::from_le_bytes(**b) & exponent == exponent;
        bytes.as_chunks::<2>().0.iter().filter(bad).count() == 0
    };
    match dtype {
        DType::F32 => {
            let bad = |b: &&[u8; 4]| u32::from_le_bytes(**b) & 0x7F80_0000 == 0x7F80_0000;
            bytes.as_chunks::<4>().0.iter().filter(bad).count() == 0
        }
        DType::BF16 => half(0x7F80),
        DType::F16 => half(0x7C00),
        _ => false,
    }
}

/// Little-endian finite floats to f32.
pub(super) fn widen(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u32::from(u16::from_le_bytes(*b)));
    match dtype {
        DType::BF16 => out.iter_mut().zip(halves()).for_each(|(x, half)| *x = f32::from_bits(half << 16)),
        DType::F16 => out.iter_mut().zip(halves()).for_each(|(x, half)| {
            // Exponent and fraction in their f32 places; 2^112 is the difference of the biases, subnormals included.
            let magnitude = f32::from_bits((half & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
            *x = if half & 0x8000 == 0 { magnitude } else { -magnitude };
        }),
        _ => out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, b)| *x = f32::from_le_bytes(*b)),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
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
