//! Tensors of a codec: a network says what it wants by name and shape, and they come from a safetensors file.
//!
//! A network is described once, by its constructor. Run against a [`Wanted`] it costs nothing and yields the list of
//! its tensors, which the header of a file is compared with before any data is read; run against [`Loaded`] it reads
//! them one by one, so that loading takes no more memory than the weights.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::models::ModelError;
use crate::models::shards::Shards;

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

/// The tensors of files, in f32 on a device.
pub struct Loaded<'a> {
    /// The files.
    pub shards: &'a Shards,
    /// Where tensors go.
    pub device: &'a Device,
}

impl Source for Loaded<'_> {
    fn tensor(&self, name: &str, _: &[usize]) -> Result<Tensor, ModelError> {
        Ok(self.shards.tensor(name, self.device)?.to_dtype(DType::F32)?)
    }

    fn unused(&self, _: &str, _: &[usize]) {}
}
