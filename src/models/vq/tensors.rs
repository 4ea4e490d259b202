//! Tensors of a codec: a network says what it wants by name and shape, and they come from a safetensors file.
//!
//! A network is described once, by its constructor. Run against a [`Wanted`] it costs nothing and yields the list of
//! its tensors, which the header of a file is compared with before any data is read; run against a [`TensorFile`] it
//! reads them one by one, so that loading takes no more memory than the weights.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::models::ModelError;

/// Longest header that is read: that of a codec takes some tens of kilobytes.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Where a network's tensors come from.
pub trait Source {
    /// The tensor called `name`, f32, of this shape.
    ///
    /// # Errors
    /// When it cannot be had.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError>;

    /// A tensor that belongs to the file and is not needed.
    fn unused(&self, name: &str, shape: &[usize]);
}

/// A place in the tree of names, such as `decoder.mid.block_1`.
#[derive(Clone)]
pub struct Scope<'a> {
    source: &'a dyn Source,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// The root: names are whole.
    #[must_use]
    pub fn root(source: &'a dyn Source) -> Self {
        Self { source, prefix: String::new() }
    }

    /// The place `name` within this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { source: self.source, prefix: format!("{}{name}.", self.prefix) }
    }

    /// The tensor `name` of this place.
    ///
    /// # Errors
    /// When the source does not have it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.source.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// Declares a tensor that the file holds and the network does without.
    pub fn unused(&self, name: &str, shape: &[usize]) {
        self.source.unused(&format!("{}{name}", self.prefix), shape);
    }
}

/// Takes down what a network asks for; gives zeros without storage.
#[derive(Default)]
pub struct Wanted(RefCell<BTreeMap<String, Vec<usize>>>);

impl Wanted {
    /// Every tensor by name.
    #[must_use]
    pub fn into_shapes(self) -> BTreeMap<String, Vec<usize>> {
        self.0.into_inner()
    }
}

impl Source for Wanted {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.unused(name, shape);
        Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
    }

    fn unused(&self, name: &str, shape: &[usize]) {
        self.0.borrow_mut().insert(name.to_owned(), shape.to_vec());
    }
}

/// A safetensors file, its header read and its data not.
pub struct TensorFile {
    path: PathBuf,
    file: RefCell<File>,
    metadata: Metadata,
    data_start: u64,
    device: Device,
}

impl TensorFile {
    /// Opens `path`; tensors will go to `device`.
    ///
    /// # Errors
    /// When it is not a whole safetensors file.
    pub fn open(path: &Path, device: &Device) -> Result<Self, ModelError> {
        let refused = |why: String| ModelError::Weights(format!("{}: {why}", path.display()));
        let mut file = File::open(path).map_err(|e| refused(e.to_string()))?;
        let size = file.metadata().map_err(|e| refused(e.to_string()))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|e| refused(format!("not a safetensors file: {e}")))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length + 8 > size {
            return Err(refused(format!(
                "not a safetensors file: a header of {length} bytes in a file of {size} (at most {MAX_HEADER_BYTES})"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|e| refused(e.to_string()))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| refused(format!("the header is malformed: {e}")))?;
        let data_start = 8 + length;
        let whole = data_start + metadata.data_len() as u64;
        if whole != size {
            return Err(refused(format!("{size} bytes, the header says {whole}; download it again")));
        }
        Ok(Self { path: path.to_owned(), file: RefCell::new(file), metadata, data_start, device: device.clone() })
    }

    /// Compares the header with what a network wants; tensors whose name starts with one of `ignored` may ride along.
    ///
    /// # Errors
    /// Names the tensor that is missing, unknown or mis-shaped.
    pub fn check(&self, wanted: &BTreeMap<String, Vec<usize>>, ignored: &[&str]) -> Result<(), ModelError> {
        for (name, shape) in wanted {
            let info =
                self.metadata.info(name).ok_or_else(|| self.refused(format!("tensor {name} {shape:?} is missing")))?;
            if info.shape != *shape {
                return Err(self.refused(format!("tensor {name} has shape {:?}, expected {shape:?}", info.shape)));
            }
        }
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        match names.iter().find(|name| !wanted.contains_key(*name) && !ignored.iter().any(|i| name.starts_with(i))) {
            Some(name) => {
                Err(self.refused(format!("tensor {name} is not part of this codec; is it another family or size?")))
            }
            None => Ok(()),
        }
    }

    /// Bytes that the tensors take in memory; with `widen`, halves are held as f32.
    #[must_use]
    pub fn memory(&self, widen: bool) -> u64 {
        let bytes = |info: &&TensorInfo| {
            let bytes = (info.data_offsets.1 - info.data_offsets.0) as u64;
            if widen && matches!(info.dtype, Dtype::F16 | Dtype::BF16) { 2 * bytes } else { bytes }
        };
        self.metadata.tensors().values().map(bytes).sum()
    }

    fn refused(&self, why: String) -> ModelError {
        ModelError::Weights(format!("{}: {why}", self.path.display()))
    }

    fn bytes(&self, (start, end): (usize, usize)) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; end - start];
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.data_start + start as u64))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Source for TensorFile {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let info = self
            .metadata
            .info(name)
            .filter(|info| info.shape == shape)
            .ok_or_else(|| self.refused(format!("tensor {name} {shape:?} is missing")))?;
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(self.refused(format!("tensor {name} is {:?}; expected F32, F16 or BF16", info.dtype)));
        }
        let bytes = self.bytes(info.data_offsets).map_err(|e| self.refused(format!("tensor {name}: {e}")))?;
        let view = TensorView::new(info.dtype, info.shape.clone(), &bytes)
            .map_err(|e| self.refused(format!("tensor {name}: {e}")))?;
        let tensor = view.load(&self.device)?.to_dtype(DType::F32)?;
        if !tensor.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(self.refused(format!("tensor {name} holds values that are not finite")));
        }
        Ok(tensor)
    }

    fn unused(&self, _: &str, _: &[usize]) {}
}
