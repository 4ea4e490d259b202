//! The safetensors files of a model or codec: one, or several with an index. Checked by their headers before any value is
//! read, then mapped and copied one tensor at a time, so that loading takes the memory of the weights and no more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::fields::read;
use super::weights::{Take, WeightSource, hex, is_finite, misfit, misfits, widen};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Values that one task converts.
const GRAIN: usize = 1 << 16;
/// Values that are mapped at a time: enough for all threads, and little beside any model.
const WINDOW: usize = GRAIN << 6;

/// Where a tensor is.
#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    len: usize,
}

impl Entry {
    /// The type of its values, called `name` in the refusal of one that is not read.
    fn float(&self, name: &str) -> Result<DType, ModelError> {
        match self.dtype {
            Dtype::F32 => Ok(DType::F32),
            Dtype::BF16 => Ok(DType::BF16),
            Dtype::F16 => Ok(DType::F16),
            other => Err(weights(format!("tensor {name} is {other:?}; F32, BF16 and F16 are read"))),
        }
    }
}

/// The files, their headers read and their data not.
#[derive(Debug)]
pub struct Shards {
    files: Vec<(String, File)>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens the files of a model's `folder` and reads their headers.
    ///
    /// # Errors
    /// Names the file, the tensor on which index and files disagree, or that is not of floats.
    pub(super) fn open(folder: &Path) -> Result<Self, ModelError> {
        let shards = Self::headers(folder)?;
        shards.tensors.iter().try_for_each(|(name, entry)| entry.float(name).map(drop))?;
        Ok(shards)
    }

    fn headers(folder: &Path) -> Result<Self, ModelError> {
        if folder.join(SINGLE).is_file() {
            return Self::single(folder, SINGLE);
        }
        match read(folder, INDEX, 64 << 20)? {
            Some(index) => Self::indexed(folder, &index),
            None => Err(weights(format!(
                "neither {SINGLE} nor {INDEX} is there; weights in other formats must be converted to safetensors"
            ))),
        }
    }

    /// Opens the file `name` of `folder` and reads its header.
    ///
    /// # Errors
    /// When it is not a whole safetensors file.
    pub(super) fn single(folder: &Path, name: &str) -> Result<Self, ModelError> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        shards.add(folder, name)?;
        Ok(shards)
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
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| failed(&broken(&e)))?;
        for (tensor, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let offset = (size_of::<u64>() + header + from) as u64;
            let entry =
                Entry { file: self.files.len(), dtype: info.dtype, shape: info.shape.clone(), offset, len: to - from };
            if let Some(twice) = self.tensors.insert(tensor.clone(), entry) {
                let other = &self.files[twice.file].0;
                return Err(failed(&format!("tensor {tensor} is in {other}, too")));
            }
        }
        self.files.push((name.to_owned(), file));
        Ok(())
    }

    /// Compares names and shapes with those that are `expected`; tensors whose name starts with one of `ignored` may
    /// ride along.
    ///
    /// # Errors
    /// Names what is missing, unknown and mis-shaped.
    pub(super) fn check(
        &self,
        expected: impl IntoIterator<Item = (String, Vec<usize>)>,
        ignored: &[&str],
    ) -> Result<(), ModelError> {
        let found = self.tensors.iter().filter(|(name, _)| !ignored.iter().any(|prefix| name.starts_with(prefix)));
        misfits(expected, found.map(|(name, entry)| (name.as_str(), entry.shape.as_slice())))
    }

    /// Bytes that the tensors take in the types of the files.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.len as u64).sum()
    }

    /// The values of a tensor, which must be finite: in f32 on the CPU, where bf16 products would widen their operands
    /// again on every call, and as they are elsewhere.
    ///
    /// # Errors
    /// When it is missing, not finite, or does not fit the device.
    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor, ModelError> {
        let values = self.values(name)?;
        let shape = values.entry.shape.as_slice();
        if !device.is_cpu() {
            let map = values.map(0..values.len())?;
            map.par_chunks(GRAIN * values.width()).try_for_each(|bytes| values.finite(bytes))?;
            return Ok(Tensor::from_raw_buffer(&map, values.dtype, shape, device)?);
        }
        let mut all = vec![0.0f32; values.len()];
        for (i, window) in all.chunks_mut(WINDOW).enumerate() {
            values.read(i * WINDOW, window)?;
        }
        Ok(Tensor::from_vec(all, shape, device)?)
    }

    fn values<'a>(&'a self, name: &'a str) -> Result<Values<'a>, ModelError> {
        let entry = self.tensors.get(name).ok_or_else(|| weights(format!("tensor {name} is missing")))?;
        let (file_name, file) = &self.files[entry.file];
        Ok(Values { name, dtype: entry.float(name)?, entry, file, file_name })
    }

    /// The tensors, for a device.
    pub(super) fn source<'a>(&'a self, device: &'a Device) -> impl WeightSource + 'a {
        OnDevice { shards: self, device }
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
        let names: BTreeSet<String> = self.tensors.values().map(|entry| format!("{:?}", entry.dtype)).collect();
        names.into_iter().collect::<Vec<_>>().join(" ")
    }
}

/// Tensors on their way to a device.
struct OnDevice<'a> {
    shards: &'a Shards,
    device: &'a Device,
}

impl WeightSource for OnDevice<'_> {
    fn tensor(&mut self, name: &str) -> Result<Tensor, ModelError> {
        self.shards.tensor(name, self.device)
    }

    fn rows(&mut self, name: &str, shape: &[usize], take: &mut Take<'_>) -> Result<(), ModelError> {
        let values = self.shards.values(name)?;
        let found = values.entry.shape.as_slice();
        if found != shape {
            return Err(misfit(name, found, shape));
        }
        let inputs = shape.iter().skip(1).product::<usize>().max(1);
        let mut buffer = vec![0.0; values.len().min((WINDOW / inputs).max(1) * inputs)];
        for first in (0..values.len()).step_by(buffer.len().max(1)) {
            let some = buffer.len().min(values.len() - first);
            values.read(first, &mut buffer[..some])?;
            take(&buffer[..some])?;
        }
        Ok(())
    }
}

/// The values of a tensor of floats, still in their file.
struct Values<'a> {
    name: &'a str,
    dtype: DType,
    entry: &'a Entry,
    file: &'a File,
    file_name: &'a str,
}

impl Values<'_> {
    fn width(&self) -> usize {
        self.dtype.size_in_bytes()
    }

    fn len(&self) -> usize {
        self.entry.len / self.width()
    }

    /// Reads those from `first` on, in f32.
    fn read(&self, first: usize, out: &mut [f32]) -> Result<(), ModelError> {
        // Dropped on return: pages of the file never add up to a second copy.
        let map = self.map(first..first + out.len())?;
        let parts = out.par_chunks_mut(GRAIN).zip(map.par_chunks(GRAIN * self.width()));
        parts.try_for_each(|(values, bytes)| {
            widen(bytes, self.dtype, values);
            self.finite(bytes)
        })
    }

    fn map(&self, values: Range<usize>) -> Result<Mmap, ModelError> {
        let (offset, len) = (self.entry.offset + (values.start * self.width()) as u64, values.len() * self.width());
        map(self.file, offset, Some(len)).map_err(|e| weights(format!("{}: {e}", self.file_name)))
    }

    fn finite(&self, bytes: &[u8]) -> Result<(), ModelError> {
        match is_finite(bytes, self.dtype) {
            true => Ok(()),
            false => Err(weights(format!("tensor {} holds values that are not finite", self.name))),
        }
    }
}

/// What is wrong with a header.
fn broken(error: &SafeTensorError) -> String {
    use SafeTensorError::{HeaderTooLarge, HeaderTooSmall, InvalidHeaderLength, MetadataIncompleteBuffer};
    match error {
        HeaderTooSmall | HeaderTooLarge | InvalidHeaderLength => {
            format!("not a safetensors file, or not a complete one: {error}")
        }
        MetadataIncompleteBuffer => format!("the file is not complete, download it again: {error}"),
        _ => format!("the header is malformed: {error}"),
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

fn weights(message: String) -> ModelError {
    ModelError::Weights(message)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn rows_come_some_at_a_time_and_are_those_of_the_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let shape = [WINDOW / 1000 + 7, 1000];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let tensor = Tensor::randn(0f32, 1.0, &shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            safetensors::serialize_to_file(HashMap::from([("w", tensor)]), None, &folder.path().join(SINGLE)).unwrap();
            let shards = Shards::open(folder.path()).unwrap();
            let (mut source, mut pieces) = (shards.source(&Device::Cpu), Vec::new());
            let mut take = |rows: &[f32]| {
                pieces.push(rows.to_vec());
                Ok(())
            };
            source.rows("w", &shape, &mut take).unwrap();
            assert!(pieces.len() > 1 && pieces.iter().all(|rows| rows.len() <= WINDOW), "{dtype:?}");
            let whole = source.tensor("w").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(pieces.concat() == whole, "{dtype:?}");

            let mut nothing = |_: &[f32]| -> Result<(), ModelError> { panic!("it is not to be read") };
            let refused = source.rows("w", &[2, 2], &mut nothing).unwrap_err().to_string();
            assert!(refused.contains("tensor w has shape [") && refused.contains("expected [2, 2]"), "{refused}");
            let refused = source.rows("v", &shape, &mut nothing).unwrap_err().to_string();
            assert!(refused.contains("tensor v is missing"), "{refused}");
        }
    }

    #[test]
    fn what_take_says_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap();
        safetensors::serialize_to_file(HashMap::from([("w", tensor)]), None, &folder.path().join(SINGLE)).unwrap();
        let shards = Shards::open(folder.path()).unwrap();
        let refused = shards.source(&Device::Cpu).rows("w", &[4, 2], &mut |_| Err(weights("full".into())));
        assert!(refused.unwrap_err().to_string().contains("full"));
    }
}
