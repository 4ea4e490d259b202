//! Image codecs of published checkpoints: pictures to discrete codes and back, behind [`ImageCodec`].
//!
//! Lives here: MAGVIT-v2 (MMaDA, Show-o) and the diffusers `VQModel` decoder (aMUSEd, Meissonic, Lumina-DiMOO), their
//! configurations and tensors. Does not: the built-in model's codec, token ids (a code is an index of the codebook),
//! sampling.
//!
//! One picture is one computation, in f32, whatever else is decoded at the time: the bits of its result do not depend
//! on other requests. Its size is bounded by [`MAX_CODES`]. The largest activation takes width · height · base width
//! (128 in the published models) · 4 bytes, 134 MB at 512 × 512; a decode holds up to six of them at once (measured:
//! 0.8 GB at 512 × 512), which the bound keeps under 3.5 GB.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::{Map, Value};

use super::fields::{self, Fields};
use super::shards::Shards;
use super::{ImageCodec, ModelError};

pub mod kernels;
pub mod layers;
pub mod magvit_v2;
pub mod tensors;
pub mod vq_model;

/// Most codes of one picture: 64 × 64, which is 1024 × 1024 pixels for codecs that shrink by 16.
pub const MAX_CODES: usize = 4096;

/// Largest width, count or size of a configuration; keeps products of a few of them far from overflow.
const MAX_SIZE: u64 = 1 << 16;

/// Most levels of resolution.
const MAX_LEVELS: usize = 8;

/// File names under which weights are published, in the order in which they are looked for.
const WEIGHT_FILES: [&str; 3] =
    ["pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors"];

/// The codec in `folder`: `config.json` and a safetensors file, as published.
///
/// # Errors
/// Names the field that is not supported, or the tensor that is missing, unknown, mis-shaped or not finite.
pub fn load(folder: &Path, device: &Device) -> Result<Arc<dyn ImageCodec>, ModelError> {
    let fields = fields(fields::config(folder)?);
    match fields.text("_class_name") {
        Some(magvit_v2::CLASS) => Ok(Arc::new(magvit_v2::MagvitV2::load(fields, &weights(folder)?, device)?)),
        Some(vq_model::CLASS) => Ok(Arc::new(vq_model::VqModel::load(fields, &weights(folder)?, device)?)),
        other => {
            let hint = format!("codecs are {:?} and {:?}", magvit_v2::CLASS, vq_model::CLASS);
            Err(fields::refused("_class_name", &other.into(), &hint))
        }
    }
}

/// The fields of a codec's configuration. Those whose names start with an underscore are notes.
#[must_use]
pub fn fields(config: Map<String, Value>) -> Fields {
    Fields::new(config).up_to(MAX_SIZE)
}

fn note(name: &str) -> bool {
    name.starts_with('_')
}

/// The safetensors file of a codec's folder.
///
/// # Errors
/// When there is none, or it is not whole.
pub fn weights(folder: &Path) -> Result<Shards, ModelError> {
    match WEIGHT_FILES.into_iter().find(|name| folder.join(name).is_file()) {
        Some(name) => Shards::single(folder, name),
        None => Err(ModelError::Weights(format!(
            "{}: none of {} is there; other formats than safetensors are not read",
            folder.display(),
            WEIGHT_FILES.join(", ")
        ))),
    }
}

/// Refuses grids that are empty or too large, and codes that do not fill the grid or are not in the codebook.
fn check_codes(codes: &[u32], grid: (usize, usize), codebook: usize) -> Result<(), ModelError> {
    check_grid(grid)?;
    let (rows, columns) = grid;
    if codes.len() != rows * columns {
        return Err(ModelError::Input(format!("codes: {} for a grid of {rows}×{columns}", codes.len())));
    }
    match codes.iter().position(|&code| code as usize >= codebook) {
        Some(at) => Err(ModelError::Input(format!("codes[{at}] = {}: the codebook has {codebook} entries", codes[at]))),
        None => Ok(()),
    }
}

fn check_grid((rows, columns): (usize, usize)) -> Result<(), ModelError> {
    match rows.checked_mul(columns) {
        Some(1..=MAX_CODES) => Ok(()),
        _ => Err(ModelError::Input(format!("grid: {rows}×{columns}; from 1 to {MAX_CODES} cells are supported"))),
    }
}

/// Pixels `(3, height, width)` as a picture; `byte` says what a value shows as.
fn picture(pixels: &Tensor, byte: impl Fn(f32) -> u8) -> Result<RgbImage, ModelError> {
    let (_, height, width) = pixels.dims3()?;
    let bytes = pixels.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(byte).collect();
    RgbImage::from_raw(width as u32, height as u32, bytes)
        .ok_or_else(|| ModelError::Input(format!("a picture of {width}×{height} pixels needs three channels")))
}

#[cfg(test)]
mod tests;
