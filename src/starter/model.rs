//! The built-in model, ready to serve: embedded weights, tokenizer, layout and image codec.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use super::scenes::{Codec, GRID};
use super::{NAME, StarterLayout, code_ids, config, tokenizer};
use crate::models::backbone::TransformerBackbone;
use crate::models::transformer::{Transformer, TransformerConfig, parameters};
use crate::models::weights::Weights;
use crate::models::{ImageCodec, ImageSpec, Model, ModelError, ModelSpec, Placement};

/// The weights that ship with the program, bf16.
static WEIGHTS: &[u8] = include_bytes!("model.safetensors");

/// The built-in model, on a device.
///
/// # Errors
/// When the device has no room for it.
pub fn load(to: impl Into<Placement>) -> Result<Model, ModelError> {
    from_bytes(WEIGHTS, config(), to)
}

/// The weights that `lacuna pretrain` left in `dir`, in the place of the built-in ones.
///
/// # Errors
/// When the file cannot be read or does not fit.
pub fn load_from(dir: &Path, to: impl Into<Placement>) -> Result<Model, ModelError> {
    let path = dir.join("model.safetensors");
    let bytes = std::fs::read(&path).map_err(|e| ModelError::Weights(format!("{}: {e}", path.display())))?;
    from_bytes(&bytes, config(), to)
}

/// A model of the starter's family from weights in memory.
///
/// # Errors
/// When they do not fit `config`.
pub fn from_bytes(bytes: &[u8], config: TransformerConfig, to: impl Into<Placement>) -> Result<Model, ModelError> {
    let to = to.into();
    let weights = Weights::from_bytes(bytes, &config, &to.device)?;
    let transformer = Transformer::new(config, to.products(), |name| weights.get(name))?;
    assemble(transformer, weights.sha256)
}

/// A transformer of the starter's family with its tokenizer, layout and codec.
///
/// # Errors
/// When the built-in tokenizer cannot be read.
pub fn assemble(transformer: Transformer, sha256: String) -> Result<Model, ModelError> {
    let config = transformer.config();
    let tokenizer = tokenizer::load().map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    let text_ids = 0..tokenizer::VOCAB_SIZE as u32;
    let spec = ModelSpec {
        name: NAME.to_owned(),
        vocab_size: config.embedding_size,
        image: Some(ImageSpec { codes: code_ids(), grid: (GRID, GRID) }),
        mask_id: tokenizer::MASK,
        eos_ids: vec![tokenizer::EOS],
        banned_ids: text_ids.clone().filter(|&id| id != tokenizer::EOS && tokenizer.is_special(id)).collect(),
        text_ids,
        max_positions: config.max_sequence_length,
        block: None,
        shifted: false,
        d_model: config.d_model,
        n_layers: config.n_layers,
        parameters: parameters(config),
        sha256,
    };
    Ok(Model {
        backbone: Arc::new(TransformerBackbone::new(spec, transformer)),
        tokenizer: Arc::new(tokenizer),
        layout: Arc::new(StarterLayout),
        codec: Some(Arc::new(SceneCodec(Codec::new()))),
    })
}

/// The scenes' codebook as a codec.
struct SceneCodec(Codec);

impl ImageCodec for SceneCodec {
    fn decode(&self, codes: &[u32], grid: (usize, usize)) -> Result<RgbImage, ModelError> {
        check(grid)?;
        // A code beyond u16 is beyond the codebook, too, and refused by the codebook with its position.
        let codes: Vec<u16> = codes.iter().map(|&code| u16::try_from(code).unwrap_or(u16::MAX)).collect();
        self.0.decode(&codes).map_err(|e| ModelError::Input(e.to_string()))
    }

    fn encode(&self, image: &RgbImage, grid: (usize, usize)) -> Result<Vec<u32>, ModelError> {
        check(grid)?;
        Ok(self.0.encode(image).into_iter().map(u32::from).collect())
    }
}

fn check(grid: (usize, usize)) -> Result<(), ModelError> {
    if grid == (GRID, GRID) {
        return Ok(());
    }
    let (rows, cols) = grid;
    Err(ModelError::Input(format!("grid: {rows}×{cols} cells; this model draws {GRID}×{GRID}")))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::Packed;
    use crate::models::nn::Format;

    /// Logits of half of a text's positions, with another text beside it or alone.
    fn logits(model: &Model, beside: bool) -> Vec<f32> {
        let mut packed = Packed::default();
        let ids: Vec<u32> = (0..40).map(|i| if i % 2 == 0 { tokenizer::MASK } else { 200 + 7 * i }).collect();
        packed.push(&ids, (0..40).step_by(2));
        if beside {
            packed.push(&ids[..33], [3, 30]);
        }
        let hidden = model.backbone.forward(&packed).unwrap().narrow(0, 0, 20).unwrap();
        let logits = model.backbone.logits(&hidden, model.backbone.spec().text_ids.clone()).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn rms(x: impl Iterator<Item = f32>) -> f64 {
        let (sum, n) = x.fold((0.0, 0), |(sum, n), x| (sum + f64::from(x) * f64::from(x), n + 1));
        (sum / f64::from(n)).sqrt()
    }

    /// A row passes four products one after another in each layer, and the head. Each adds its own error, relative to what it
    /// computes, and hands on that of its input at about its size, since norms keep both in proportion.
    ///
    /// bf16: two factors, rounded to 8 bits, 2⁻⁹ each. int8: two factors, each off by Δ/√12 of its own root mean square
    /// σ, with Δ the largest of 256 values by 127; of normal values the largest is 4σ at most in 99 of 100 blocks.
    #[test]
    fn smaller_formats_change_logits_by_what_they_round() {
        let model = |format| load(&Placement { device: Device::Cpu, format }).unwrap();
        let exact = logits(&model(Format::F32), false);
        let products = (4 * config().n_layers + 1) as f64;
        let int8 = 2f64.sqrt() * 4.0 / (127.0 * 12f64.sqrt());
        for (format, one) in [(Format::F32, 0.0), (Format::Bf16, 2.0 * 2f64.powi(-9)), (Format::Int8, int8)] {
            let model = model(format);
            let got = logits(&model, false);
            let error = rms(got.iter().zip(&exact).map(|(a, b)| a - b)) / rms(exact.iter().copied());
            assert!(error <= products * one, "{format:?}: {error}, at most {}", products * one);
            assert!(format == Format::F32 || error > 0.0, "{format:?} rounds");
            assert_eq!(got, logits(&model, true), "{format:?}: alone and in a batch");
        }
    }
}
