//! `adapter_model.safetensors`: the format promises no more than that the buffer is covered; values, names, shapes
//! and sizes are checked here.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::config::{Settings, adaptable};
use super::json::Object;
use super::{AdapterError, Base, Limits, MODEL_FILE, same_base, within};
use crate::models::lora::{Lora, Pair, Target};

const PREFIX: &str = "base_model.model.";
/// Key of the header's metadata that names the base.
const BASE_KEY: &str = "base_sha256";
/// Bytes that say how long the header is.
const LENGTH: usize = 8;

/// Layer and projection.
type Place = (usize, Target);

pub(super) fn read(bytes: &[u8], settings: &Settings, base: &Base, limits: &Limits) -> Result<Lora, AdapterError> {
    within(MODEL_FILE, "size in bytes", bytes.len() as u64, limits.file_bytes)?;
    check_header(bytes, base, limits)?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| malformed(e.to_string()))?;
    let places = places(base);
    settings.check_modules(&places.keys().cloned().collect::<Vec<_>>(), base)?;
    let mut halves: BTreeMap<Place, [Option<Half>; 2]> = BTreeMap::new();
    for (name, view) in file.iter() {
        let (path, half) = parse(name).ok_or_else(|| unknown(name, base))?;
        let place = *places.get(path).ok_or_else(|| unknown(name, base))?;
        let read = Half::read(name, &view, &shape(place, half, path, settings, base, limits)?, base)?;
        halves.entry(place).or_default()[half as usize] = Some(read);
    }
    check_targets(settings, &places, &halves)?;
    let mut pairs = BTreeMap::new();
    for (place, pair) in halves {
        let path = place.1.module(&base.config, place.0);
        pairs.insert(place, join(path, pair, settings, limits)?);
    }
    if pairs.is_empty() {
        return Err(malformed(format!(
            "holds no tensors; expected {PREFIX}{}.lora_A.weight and lora_B",
            adaptable(base)
        )));
    }
    Ok(Lora::new(&base.config, settings.scale(), pairs)?)
}

/// The file of a LoRA's factors as they are, in f32. Equal factors give equal bytes: one key of metadata only, as
/// several would be written in any order.
pub(super) fn write(lora: &Lora, base: &Base) -> Result<Vec<u8>, AdapterError> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for ((layer, target), pair) in lora.pairs() {
        let path = target.module(&base.config, *layer);
        for (half, tensor) in [("A", &pair.a), ("B", &pair.b)] {
            let tensor = tensor.detach().to_dtype(DType::F32)?.contiguous()?;
            tensors.insert(format!("{PREFIX}{path}.lora_{half}.weight"), tensor);
        }
    }
    let metadata = HashMap::from([(BASE_KEY.to_owned(), base.sha256.clone())]);
    safetensors::serialize(tensors, Some(metadata)).map_err(|e| malformed(e.to_string()))
}

/// The header's size, its keys, and the base that it names.
fn check_header(bytes: &[u8], base: &Base, limits: &Limits) -> Result<(), AdapterError> {
    let size = bytes.len();
    let short = || malformed(format!("{size} bytes are too few for a safetensors file; is it complete?"));
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(short)?;
    let length = u64::from_le_bytes(*length);
    within(MODEL_FILE, "size of the header in bytes", length, limits.header_bytes)?;
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or_else(short)?;
    let Object(keys) = serde_json::from_slice(header).map_err(|e| malformed(format!("header: {e}")))?;
    match keys.get("__metadata__").and_then(|metadata| metadata.get(BASE_KEY)) {
        Some(Value::String(sha256)) => same_base(MODEL_FILE, sha256, base),
        _ => Ok(()),
    }
}

/// Which factor a tensor is.
#[derive(Clone, Copy)]
enum Factor {
    A,
    B,
}

/// Module path and factor of a tensor's name.
fn parse(name: &str) -> Option<(&str, Factor)> {
    let path = name.strip_prefix(PREFIX)?;
    match (path.strip_suffix(".lora_A.weight"), path.strip_suffix(".lora_B.weight")) {
        (Some(path), _) => Some((path, Factor::A)),
        (_, Some(path)) => Some((path, Factor::B)),
        _ => None,
    }
}

/// Every module that can be adapted, by path.
fn places(base: &Base) -> BTreeMap<String, Place> {
    let layers = 0..base.config.n_layers;
    layers.flat_map(|layer| Target::ALL.map(|target| (target.module(&base.config, layer), (layer, target)))).collect()
}

/// The shape that a factor must have.
fn shape(
    (_, target): Place,
    factor: Factor,
    path: &str,
    settings: &Settings,
    base: &Base,
    limits: &Limits,
) -> Result<[usize; 2], AdapterError> {
    let (rank, _) = settings.of(path)?;
    within(super::CONFIG_FILE, &format!("rank of {path}"), rank as u64, limits.max_rank as u64)?;
    let (out, width) = target.shape(&base.config);
    Ok(match factor {
        Factor::A => [rank, width],
        Factor::B => [out, rank],
    })
}

/// A factor and its Frobenius norm.
struct Half {
    tensor: Tensor,
    norm: f64,
}

impl Half {
    fn read(name: &str, view: &TensorView<'_>, shape: &[usize; 2], base: &Base) -> Result<Self, AdapterError> {
        let refuse = |reason| Err(AdapterError::Tensor { tensor: short(name), reason });
        if view.shape() != shape {
            let actual = view.shape();
            return refuse(format!("has shape {actual:?}, the base and adapter_config.json ask for {shape:?}"));
        }
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return refuse(format!("has dtype {other:?}; F32, F16 and BF16 can be read")),
        };
        let cpu = candle_core::Device::Cpu;
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, shape, &cpu)?.to_dtype(DType::F32)?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return refuse(format!(
                "holds {} at [{}, {}]; values must be finite",
                values[at],
                at / shape[1],
                at % shape[1]
            ));
        }
        let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        Ok(Self { tensor: tensor.to_device(&base.device)?, norm })
    }
}

/// The pair of a module. A scale of its own is folded into B.
fn join(path: String, pair: [Option<Half>; 2], settings: &Settings, limits: &Limits) -> Result<Pair, AdapterError> {
    let missing = |half: &str| AdapterError::Tensor {
        tensor: format!("{PREFIX}{path}.lora_{half}.weight"),
        reason: "is missing; both factors of a module are needed".to_owned(),
    };
    let [a, b] = pair;
    let (a, b) = (a.ok_or_else(|| missing("A"))?, b.ok_or_else(|| missing("B"))?);
    let (_, scale) = settings.of(&path)?;
    let limit = limits.max_norm;
    for (what, norm) in [("A", a.norm), ("scale · B", scale * b.norm), ("scale · B · A", scale * b.norm * a.norm)] {
        if norm > limit {
            let reason =
                format!("the norm of {what} may be {norm:.3e}, the limit is {limit:e}; it would break the model");
            return Err(AdapterError::Tensor { tensor: path, reason });
        }
    }
    let common = settings.scale();
    let b = if scale.to_bits() == common.to_bits() { b.tensor } else { (b.tensor * (scale / common))? };
    Ok(Pair { a: a.tensor, b })
}

/// The tensors must be those of `target_modules`: PEFT ignores others, and leaves out nothing that it names.
fn check_targets(
    settings: &Settings,
    places: &BTreeMap<String, Place>,
    halves: &BTreeMap<Place, [Option<Half>; 2]>,
) -> Result<(), AdapterError> {
    for (path, place) in places {
        let reason = match (settings.targets(path), halves.contains_key(place)) {
            (Some(false), true) => "has factors, but target_modules in adapter_config.json does not name it",
            (Some(true), false) if settings.complete() => "is named by target_modules, but its factors are missing",
            _ => continue,
        };
        return Err(AdapterError::Tensor { tensor: path.clone(), reason: reason.to_owned() });
    }
    Ok(())
}

fn unknown(name: &str, base: &Base) -> AdapterError {
    let reason =
        format!("is no factor of a module of the base; those are {PREFIX}{}.lora_A.weight and lora_B", adaptable(base));
    AdapterError::Tensor { tensor: short(name), reason }
}

fn short(name: &str) -> String {
    name.chars().take(200).collect()
}

fn malformed(reason: String) -> AdapterError {
    // Parsers quote what they were given.
    AdapterError::Malformed { file: MODEL_FILE, reason: reason.chars().take(300).collect() }
}
