//! MAGVIT-v2 as MMaDA and Show-o use it (Yu et al., "Language Model Beats Diffusion", 2023; showlab's weights).
//!
//! The codebook is not learned: a code's bits, the most significant first, are the signs of its latent's channels
//! ("lookup-free quantization").

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use image::RgbImage;
use image::imageops::FilterType;
use serde_json::json;

use super::kernels::Conv;
use super::layers::{Attention, Decoder, Dialect, Encoder, Head, Level, Middle, Residual, conv};
use super::tensors::{Loaded, Scope, Source, Wanted};
use super::{MAX_LEVELS, check_codes, check_grid, note, picture};
use crate::models::fields::{Fields, refused};
use crate::models::shards::Shards;
use crate::models::{ImageCodec, ModelError};

/// The class in `config.json`.
pub const CLASS: &str = "MAGVITv2";

const DIALECT: Dialect =
    Dialect { shortcut: "nin_shortcut", attention: ["norm", "q", "k", "v", "proj_out"], matrices: false, groups: 32 };

/// Most bits of a code.
const MAX_BITS: usize = 20;

/// Sizes of one half of the network, from the highest resolution to the lowest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Channels of each resolution, as multiples of the base width.
    pub multiples: Vec<usize>,
    /// Residual blocks of each resolution.
    pub blocks: Vec<usize>,
}

/// Sizes of the network. The published `config.json` holds none of them: they are the defaults of the official class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Channels at the highest resolution.
    pub width: usize,
    /// Pixels to latent.
    pub encoder: Half,
    /// Latent to pixels.
    pub decoder: Half,
    /// Bits of a code: channels of the latent.
    pub bits: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 128,
            encoder: Half { multiples: vec![1, 2, 2, 4, 4], blocks: vec![4, 3, 4, 3, 4] },
            decoder: Half { multiples: vec![1, 1, 2, 2, 4], blocks: vec![4, 4, 3, 4, 3] },
            bits: 13,
        }
    }
}

impl Config {
    /// From `config.json`; absent fields have the official class's defaults.
    ///
    /// # Errors
    /// Names the field that is not supported.
    pub fn from_fields(mut fields: Fields) -> Result<Self, ModelError> {
        let default = Self::default();
        let width = fields.maybe_size("ch")?.unwrap_or(default.width);
        if width % DIALECT.groups != 0 {
            let hint = format!("a multiple of {} is expected", DIALECT.groups);
            return Err(refused("ch", &width.into(), &hint));
        }
        // One list is for both halves; the published network's, which differ, are nowhere written down.
        let (multiples, blocks) = (fields.sizes("ch_mult", MAX_LEVELS)?, fields.sizes("num_res_blocks", MAX_LEVELS)?);
        let (encoder, decoder) = match (multiples, blocks) {
            (None, None) => (default.encoder, default.decoder),
            (Some(multiples), Some(blocks)) if multiples.len() == blocks.len() => {
                let half = Half { multiples, blocks };
                (half.clone(), half)
            }
            (multiples, blocks) => {
                let hint = format!("one number for each of ch_mult = {} is expected", json!(multiples));
                return Err(refused("num_res_blocks", &json!(blocks), &hint));
            }
        };
        let bits = fields.maybe_size("z_channels")?.unwrap_or(default.bits);
        if bits > MAX_BITS {
            return Err(refused("z_channels", &bits.into(), &format!("at most {MAX_BITS} bits are")));
        }
        fields.only("codebook_dim", bits, "it must be z_channels")?;
        let resolution = fields.maybe_size("resolution")?.unwrap_or(256);
        for attended in fields.sizes("attn_resolutions", MAX_LEVELS)?.unwrap_or_default() {
            if (0..decoder.multiples.len()).any(|level| resolution >> level == attended) {
                return Err(refused(
                    "attn_resolutions",
                    &attended.into(),
                    "attention is in the middle only, as in the published network",
                ));
            }
        }
        fields.finish(note)?;
        Ok(Self { width, encoder, decoder, bits })
    }

    /// Pixels along each side of a code.
    #[must_use]
    pub fn factor(&self) -> usize {
        1 << (self.decoder.multiples.len() - 1)
    }

    /// Names and shapes of the tensors of the file.
    ///
    /// # Errors
    /// When sizes do not fit together.
    pub fn tensors(&self) -> Result<BTreeMap<String, Vec<usize>>, ModelError> {
        let wanted = Wanted::default();
        Network::new(self, &wanted)?;
        Ok(wanted.into_shapes())
    }
}

/// Both halves, with the 1×1 convolutions on either side of the quantizer.
struct Network {
    encoder: Encoder,
    quant_conv: Conv,
    post_quant_conv: Conv,
    decoder: Decoder,
}

impl Network {
    fn new(config: &Config, source: &dyn Source) -> Result<Self, ModelError> {
        let root = Scope::root(source);
        let (encoder, decoder) = (root.at("encoder"), root.at("decoder"));
        // Buffers of the official quantizer: the codebook written out, and the powers of two.
        root.unused("quantize.embedding", &[1 << config.bits, config.bits]);
        root.unused("quantize.power_vals", &[config.bits]);
        Ok(Self {
            quant_conv: conv(&encoder, "quant_conv", config.bits, config.bits, 1)?,
            post_quant_conv: conv(&decoder, "post_quant_conv", config.bits, config.bits, 1)?,
            encoder: new_encoder(config, &encoder)?,
            decoder: new_decoder(config, &decoder)?,
        })
    }
}

fn new_encoder(config: &Config, scope: &Scope<'_>) -> Result<Encoder, ModelError> {
    let Half { multiples, blocks } = &config.encoder;
    let mut width = config.width;
    let mut levels = Vec::new();
    for (level, (multiple, n)) in multiples.iter().zip(blocks).enumerate() {
        let scope = scope.at("down").at(level);
        let blocks = new_blocks(&scope, *n, &mut width, config.width * multiple)?;
        let resize =
            (level + 1 != multiples.len()).then(|| Encoder::halving(&scope, "downsample.conv", width)).transpose()?;
        levels.push(Level { blocks, resize });
    }
    Ok(Encoder {
        conv_in: conv(scope, "conv_in", 3, config.width, 3)?,
        middle: new_middle(scope, width)?,
        head: Head::new(scope, "norm_out", "conv_out", (width, config.bits), &DIALECT)?,
        levels,
    })
}

fn new_decoder(config: &Config, scope: &Scope<'_>) -> Result<Decoder, ModelError> {
    let Half { multiples, blocks } = &config.decoder;
    let lowest = config.width * multiples[multiples.len() - 1];
    let mut width = lowest;
    let mut levels = Vec::new();
    // `up.0` is the highest resolution, which comes last.
    for (level, (multiple, n)) in multiples.iter().zip(blocks).enumerate().rev() {
        let scope = scope.at("up").at(level);
        let blocks = new_blocks(&scope, *n, &mut width, config.width * multiple)?;
        let resize = (level != 0).then(|| conv(&scope, "upsample.conv", width, width, 3)).transpose()?;
        levels.push(Level { blocks, resize });
    }
    Ok(Decoder {
        conv_in: conv(scope, "conv_in", config.bits, lowest, 3)?,
        middle: new_middle(scope, lowest)?,
        head: Head::new(scope, "norm_out", "conv_out", (width, 3), &DIALECT)?,
        levels,
    })
}

/// Blocks from `width` to `to` channels; `width` follows.
fn new_blocks(scope: &Scope<'_>, n: usize, width: &mut usize, to: usize) -> Result<Vec<Residual>, ModelError> {
    let block = |i| Residual::new(&scope.at("block").at(i), std::mem::replace(width, to), to, &DIALECT);
    (0..n).map(block).collect()
}

fn new_middle(scope: &Scope<'_>, width: usize) -> Result<Middle, ModelError> {
    let scope = scope.at("mid");
    Ok(Middle {
        first: Residual::new(&scope.at("block_1"), width, width, &DIALECT)?,
        attention: Some(Attention::new(&scope.at("attn_1"), width, &DIALECT)?),
        second: Residual::new(&scope.at("block_2"), width, width, &DIALECT)?,
    })
}

/// A loaded MAGVIT-v2.
pub struct MagvitV2 {
    config: Config,
    network: Network,
    device: Device,
}

impl MagvitV2 {
    /// From its configuration and its weights.
    ///
    /// # Errors
    /// Names the field that is not supported or the tensor that does not fit.
    pub fn load(fields: Fields, shards: &Shards, device: &Device) -> Result<Self, ModelError> {
        let config = Config::from_fields(fields)?;
        shards.check(config.tensors()?, &[])?;
        Self::new(config, &Loaded { shards, device }, device)
    }

    /// From any source of tensors.
    ///
    /// # Errors
    /// When the source lacks one.
    pub fn new(config: Config, source: &dyn Source, device: &Device) -> Result<Self, ModelError> {
        let network = Network::new(&config, source)?;
        Ok(Self { config, network, device: device.clone() })
    }

    /// What the decoder makes of the codes, before rounding: `(3, f·rows, f·columns)`, nominally within -1..1.
    ///
    /// # Errors
    /// When a code is outside the codebook, the grid does not fit, or the device fails.
    pub fn pixels(&self, codes: &[u32], grid: (usize, usize)) -> Result<Tensor, ModelError> {
        let bits = self.config.bits;
        check_codes(codes, grid, 1 << bits)?;
        let sign = |bit: usize, code: u32| if (code >> (bits - 1 - bit)) & 1 == 1 { 1f32 } else { -1.0 };
        let latent: Vec<f32> = (0..bits).flat_map(|bit| codes.iter().map(move |&code| sign(bit, code))).collect();
        let latent = Tensor::from_vec(latent, (1, bits, grid.0, grid.1), &self.device)?;
        Ok(self.network.decoder.forward(&self.network.post_quant_conv.forward(&latent)?)?.squeeze(0)?)
    }

    /// The latent of pixels `(3, f·rows, f·columns)` within -1..1: `(bits, rows, columns)`. Its signs are the codes.
    ///
    /// # Errors
    /// When the device fails.
    pub fn latent(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let z = self.network.encoder.forward(&pixels.unsqueeze(0)?)?;
        Ok(self.network.quant_conv.forward(&z)?.squeeze(0)?)
    }

    /// The codes of a latent `(bits, rows, columns)`, row by row.
    ///
    /// # Errors
    /// When the device fails.
    pub fn codes(&self, latent: &Tensor) -> Result<Vec<u32>, ModelError> {
        let signs = latent.flatten_from(1)?.to_vec2::<f32>()?;
        let cells = signs.first().map_or(0, Vec::len);
        let code = |cell: usize| signs.iter().fold(0, |code, bit| code << 1 | u32::from(bit[cell] > 0.0));
        Ok((0..cells).map(code).collect())
    }
}

impl ImageCodec for MagvitV2 {
    fn decode(&self, codes: &[u32], grid: (usize, usize)) -> Result<RgbImage, ModelError> {
        // The official demo truncates.
        picture(&self.pixels(codes, grid)?, |y| (((y + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0) as u8)
    }

    /// Pictures of other sizes are scaled to cover the grid and cut around the centre, as the official code does.
    fn encode(&self, image: &RgbImage, grid: (usize, usize)) -> Result<Vec<u32>, ModelError> {
        check_grid(grid)?;
        let f = self.config.factor();
        let (width, height) = ((grid.1 * f) as u32, (grid.0 * f) as u32);
        if image.width() == 0 || image.height() == 0 {
            return Err(ModelError::Input(format!("image: {}×{} pixels", image.width(), image.height())));
        }
        let bytes = match image.dimensions() == (width, height) {
            true => image.as_raw().clone(),
            false => image::DynamicImage::ImageRgb8(image.clone())
                .resize_to_fill(width, height, FilterType::CatmullRom)
                .into_rgb8()
                .into_raw(),
        };
        let pixels: Vec<f32> = bytes.into_iter().map(|byte| f32::from(byte) / 255.0 * 2.0 - 1.0).collect();
        let pixels = Tensor::from_vec(pixels, (height as usize, width as usize, 3), &self.device)?;
        self.codes(&self.latent(&pixels.permute((2, 0, 1))?.contiguous()?)?)
    }
}
