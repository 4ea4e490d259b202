//! The safetensors files of a folder: one, or several with an index. Checked by their headers before any value is
//! read, then mapped and copied one tensor at a time, so that loading takes the memory of the weights and no more.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::models::ModelError;
use crate::models::shape::TransformerConfig;
use crate::models::weights::{hex, is_finite, misfits, widen};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Values that one task converts.
const GRAIN: usize = 1 << 18;
/// Values that are mapped at a time: enough for all threads.
const WINDOW: usize = GRAIN << 5;

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
    len: usize,
}

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<(String, File)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens the files of `folder` and reads their headers.
    ///
    /// # Errors
    /// Names the file, or the tensor on which index and files disagree.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        if folder.join(SINGLE).is_file() {
            let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
            shards.add(folder, SINGLE)?;
            return Ok(shards);
        }
        match super::read(folder, INDEX, 64 << 20)? {
            Some(index) => Self::indexed(folder, &index),
            None => Err(weights(format!(
                "neither {SINGLE} nor {INDEX} is there; weights in other formats must be converted to safetensors"
            ))),
        }
    }

    fn indexed(folder: &Path, index: &[u8]) -> Result<Self, ModelError> {
        let index: Index = serde_json::from_slice(index).map_err(|e| weights(format!("{INDEX}: {e}")))?;
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            // A file of this folder, nothing else.
            if Path::new(name).file_name() != Some(name.as_ref()) || !name.ends_with(".safetensors") {
                return Err(weights(format!("{INDEX}: {name:?} is not the name of a safetensors file beside it")));
            }
            shards.add(folder, name)?;
        }
        for (tensor, file) in &index.weight_map {
            let found = shards.tensors.get(tensor).map(|entry| &shards.files[entry.file].0);
            if found != Some(file) {
                return Err(weights(format!("{INDEX} puts tensor {tensor} into {file}, where it is missing")));
            }
        }
        match shards.tensors.keys().find(|name| !index.weight_map.contains_key(*name)) {
            Some(extra) => Err(weights(format!("tensor {extra} is in a file but not in {INDEX}"))),
            None => Ok(shards),
        }
    }

    /// Reads the header of a file.
    fn add(&mut self, folder: &Path, name: &str) -> Result<(), ModelError> {
        let path: PathBuf = folder.join(name);
        let failed = |e: &dyn std::fmt::Display| weights(format!("{name}: {e}"));
        let file = File::open(&path).map_err(|e| failed(&e))?;
        let map = map(&file, 0, None).map_err(|e| failed(&e))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| failed(&format!("{e}; is the file complete?")))?;
        for (tensor, info) in metadata.tensors() {
            let dtype = dtype(info.dtype)
                .ok_or_else(|| failed(&format!("tensor {tensor} is {:?}; F32, BF16 and F16 are read", info.dtype)))?;
            let (from, to) = info.data_offsets;
            let offset = (size_of::<u64>() + header + from) as u64;
            let entry = Entry { file: self.files.len(), dtype, shape: info.shape.clone(), offset, len: to - from };
            if let Some(twice) = self.tensors.insert(tensor.clone(), entry) {
                let other = &self.files[twice.file].0;
                return Err(failed(&format!("tensor {tensor} is in {other}, too")));
            }
        }
        self.files.push((name.to_owned(), file));
        Ok(())
    }

    /// Compares names and shapes with those of `config`.
    ///
    /// # Errors
    /// Names what is missing, unknown and mis-shaped.
    pub(super) fn check(&self, config: &TransformerConfig) -> Result<(), ModelError> {
        misfits(config, self.tensors.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice())))
    }

    /// Bytes that the tensors take on `device`.
    pub(super) fn bytes(&self, device: &Device) -> u64 {
        let values = |entry: &Entry| entry.shape.iter().product::<usize>() as u64;
        let size = |entry: &Entry| if device.is_cpu() { DType::F32 } else { entry.dtype }.size_in_bytes() as u64;
        self.tensors.values().map(|entry| values(entry) * size(entry)).sum()
    }

    /// The values of a tensor, which must be finite: in f32 on the CPU, where bf16 products would widen their operands
    /// again on every call, and as they are elsewhere.
    ///
    /// # Errors
    /// When it is missing, not finite, or does not fit the device.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, ModelError> {
        let entry = self.tensors.get(name).ok_or_else(|| weights(format!("tensor {name} is missing")))?;
        let (file_name, file) = &self.files[entry.file];
        let failed = |e: std::io::Error| weights(format!("{file_name}: {e}"));
        let finite = |bytes: &[u8]| match is_finite(bytes, entry.dtype) {
            true => Ok(()),
            false => Err(weights(format!("tensor {name} holds values that are not finite"))),
        };
        let width = entry.dtype.size_in_bytes();
        if !device.is_cpu() {
            let map = map(file, entry.offset, Some(entry.len)).map_err(failed)?;
            map.par_chunks(GRAIN * width).try_for_each(finite)?;
            return Ok(Tensor::from_raw_buffer(&map, entry.dtype, &entry.shape, device)?);
        }
        let mut values = vec![0.0f32; entry.len / width];
        let mut offset = entry.offset;
        for window in values.chunks_mut(WINDOW) {
            // Dropped with the window: pages of the file never add up to a second copy.
            let map = map(file, offset, Some(window.len() * width)).map_err(failed)?;
            offset += map.len() as u64;
            let parts = window.par_chunks_mut(GRAIN).zip(map.par_chunks(GRAIN * width));
            parts.try_for_each(|(values, bytes)| {
                widen(bytes, entry.dtype, values);
                finite(bytes)
            })?;
        }
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), device)?)
    }

    /// SHA-256 of the file; of several, of their digests in the order of their names.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn sha256(&self) -> Result<String, ModelError> {
        let digest = |(name, file): &(String, File)| -> Result<_, ModelError> {
            let failed = |e: std::io::Error| weights(format!("{name}: {e}"));
            let (mut hasher, mut buffer, mut file) = (Sha256::new(), vec![0; 1 << 20], file);
            file.rewind().map_err(failed)?;
            loop {
                match file.read(&mut buffer).map_err(failed)? {
                    0 => return Ok(hasher.finalize()),
                    n => hasher.update(&buffer[..n]),
                }
            }
        };
        let digests = self.files.iter().map(digest).collect::<Result<Vec<_>, _>>()?;
        match digests.as_slice() {
            [only] => Ok(hex(only)),
            several => Ok(hex(&several.iter().fold(Sha256::new(), |all, one| all.chain_update(one)).finalize())),
        }
    }

    /// The dtypes of the tensors, for the log.
    pub(super) fn dtypes(&self) -> String {
        let mut count: HashMap<&str, usize> = HashMap::new();
        for entry in self.tensors.values() {
            *count.entry(entry.dtype.as_str()).or_default() += 1;
        }
        let mut names: Vec<&str> = count.into_keys().collect();
        names.sort_unstable();
        names.join(" ")
    }
}

fn map(file: &File, offset: u64, len: Option<usize>) -> std::io::Result<Mmap> {
    let mut options = MmapOptions::new();
    options.offset(offset);
    if let Some(len) = len {
        options.len(len);
    }
    // SAFETY: nothing here writes to the file, the mapping is read-only, private to this module and dropped before its
    // caller returns. Whoever else truncates a checkpoint while it is being loaded ends the process, as with every
    // loader that maps its weights; values that merely change are caught or harmless, since every bit pattern is an f32.
    unsafe { options.map(file) }
}

fn dtype(dtype: safetensors::Dtype) -> Option<DType> {
    match dtype {
        safetensors::Dtype::F32 => Some(DType::F32),
        safetensors::Dtype::BF16 => Some(DType::BF16),
        safetensors::Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

fn weights(message: String) -> ModelError {
    ModelError::Weights(message)
}
