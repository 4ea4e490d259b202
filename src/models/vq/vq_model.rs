//! The decoder of the diffusers `VQModel`, as aMUSEd, Meissonic, Muddit and Lumina-DiMOO use it.
//!
//! Codes index a learned codebook. The file's encoder, where there is one, is not loaded: these families only draw.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::Value;

use super::kernels::Conv;
use super::layers::{Attention, Decoder, Dialect, Head, Level, Middle, Residual, conv};
use super::tensors::{Loaded, Scope, Source, Wanted};
use super::{MAX_LEVELS, check_codes, note, picture};
use crate::models::fields::{Fields, refused};
use crate::models::shards::Shards;
use crate::models::{ImageCodec, ModelError};

/// The class in `config.json`.
pub const CLASS: &str = "VQModel";

/// Sizes of the network; the names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Channels of each resolution, from the highest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of the encoder at each resolution; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Entries of the codebook.
    pub num_vq_embeddings: usize,
    /// Channels of an entry.
    pub vq_embed_dim: usize,
    /// Groups of every norm.
    pub norm_num_groups: usize,
    /// Whether the middle has attention.
    pub mid_block_add_attention: bool,
}

impl Config {
    /// From `config.json`; absent fields have diffusers' defaults.
    ///
    /// # Errors
    /// Names the field that is not supported.
    pub fn from_fields(mut fields: Fields) -> Result<Self, ModelError> {
        let block_out_channels = fields.sizes("block_out_channels", MAX_LEVELS)?.unwrap_or_else(|| vec![64]);
        let latent_channels = fields.maybe_size("latent_channels")?.unwrap_or(3);
        let config = Self {
            layers_per_block: fields.maybe_size("layers_per_block")?.unwrap_or(1),
            latent_channels,
            num_vq_embeddings: fields.maybe_size("num_vq_embeddings")?.unwrap_or(256),
            vq_embed_dim: fields.maybe_size("vq_embed_dim")?.unwrap_or(latent_channels),
            norm_num_groups: fields.maybe_size("norm_num_groups")?.unwrap_or(32),
            mid_block_add_attention: fields.flag("mid_block_add_attention", true)?,
            block_out_channels,
        };
        if config.block_out_channels.iter().any(|channels| channels % config.norm_num_groups != 0) {
            let found: Value = config.block_out_channels.into();
            let hint = format!("multiples of norm_num_groups = {} are expected", config.norm_num_groups);
            return Err(refused("block_out_channels", &found, &hint));
        }
        let repeated = |block: &str| Value::from(vec![block; config.block_out_channels.len()]);
        let (up, plain) = (repeated("UpDecoderBlock2D"), "only blocks without attention are served");
        match config.block_out_channels.len() {
            // The class's default has one block.
            1 => fields.only("up_block_types", up, plain)?,
            _ => fields.must("up_block_types", up, plain)?,
        }
        fields.only("down_block_types", repeated("DownEncoderBlock2D"), plain)?;
        fields.only("in_channels", 3, "pictures have three channels")?;
        fields.only("out_channels", 3, "pictures have three channels")?;
        fields.only("act_fn", "silu", "only silu is served")?;
        fields.only("norm_type", "group", "only group norms are served")?;
        fields.must("lookup_from_codebook", true, "without it, diffusers decodes latents, not codes")?;
        // Everything is computed in f32 here, which is what force_upcast asks for; the others serve training.
        fields.skip(&["force_upcast", "sample_size", "scaling_factor"]);
        fields.finish(note)?;
        Ok(config)
    }

    /// Names and shapes of the tensors of the file, the encoder's left out.
    ///
    /// # Errors
    /// When sizes do not fit together.
    pub fn tensors(&self) -> Result<BTreeMap<String, Vec<usize>>, ModelError> {
        let wanted = Wanted::default();
        Network::new(self, &wanted)?;
        Ok(wanted.into_shapes())
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            shortcut: "conv_shortcut",
            attention: ["group_norm", "to_q", "to_k", "to_v", "to_out.0"],
            matrices: true,
            groups: self.norm_num_groups,
        }
    }
}

/// Codebook and decoder.
struct Network {
    /// `(entries, channels)`.
    codebook: Tensor,
    post_quant_conv: Conv,
    decoder: Decoder,
}

impl Network {
    fn new(config: &Config, source: &dyn Source) -> Result<Self, ModelError> {
        let root = Scope::root(source);
        let (latent, entry) = (config.latent_channels, config.vq_embed_dim);
        root.unused("quant_conv.weight", &[entry, latent, 1, 1]);
        root.unused("quant_conv.bias", &[entry]);
        Ok(Self {
            codebook: root.tensor("quantize.embedding.weight", &[config.num_vq_embeddings, entry])?,
            post_quant_conv: conv(&root, "post_quant_conv", entry, latent, 1)?,
            decoder: new_decoder(config, &root.at("decoder"))?,
        })
    }
}

fn new_decoder(config: &Config, scope: &Scope<'_>) -> Result<Decoder, ModelError> {
    let dialect = config.dialect();
    let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
    let lowest = channels[0];
    let mut width = lowest;
    let mut levels = Vec::new();
    for (level, &to) in channels.iter().enumerate() {
        let scope = scope.at("up_blocks").at(level);
        let block = |i| Residual::new(&scope.at("resnets").at(i), std::mem::replace(&mut width, to), to, &dialect);
        let blocks = (0..=config.layers_per_block).map(block).collect::<Result<_, _>>()?;
        let is_last = level + 1 == channels.len();
        let resize = (!is_last).then(|| conv(&scope, "upsamplers.0.conv", to, to, 3)).transpose()?;
        levels.push(Level { blocks, resize });
    }
    let middle = scope.at("mid_block");
    let attention = || Attention::new(&middle.at("attentions").at(0), lowest, &dialect);
    Ok(Decoder {
        conv_in: conv(scope, "conv_in", config.latent_channels, lowest, 3)?,
        middle: Middle {
            first: Residual::new(&middle.at("resnets").at(0), lowest, lowest, &dialect)?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            second: Residual::new(&middle.at("resnets").at(1), lowest, lowest, &dialect)?,
        },
        levels,
        head: Head::new(scope, "conv_norm_out", "conv_out", (width, 3), &dialect)?,
    })
}

/// A loaded `VQModel`.
pub struct VqModel {
    config: Config,
    network: Network,
    device: Device,
}

impl VqModel {
    /// From its configuration and its weights.
    ///
    /// # Errors
    /// Names the field that is not supported or the tensor that does not fit.
    pub fn load(fields: Fields, shards: &Shards, device: &Device) -> Result<Self, ModelError> {
        let config = Config::from_fields(fields)?;
        shards.check(config.tensors()?, &["encoder."])?;
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

    /// What the decoder makes of the codes, before rounding: `(3, f·rows, f·columns)`, nominally within 0..1.
    ///
    /// # Errors
    /// When a code is outside the codebook, the grid does not fit, or the device fails.
    pub fn pixels(&self, codes: &[u32], grid: (usize, usize)) -> Result<Tensor, ModelError> {
        check_codes(codes, grid, self.config.num_vq_embeddings)?;
        let codes = Tensor::new(codes, &self.device)?;
        let entries = self.network.codebook.index_select(&codes, 0)?; // (cells, channels)
        let latent = entries.t()?.reshape((1, self.config.vq_embed_dim, grid.0, grid.1))?.contiguous()?;
        Ok(self.network.decoder.forward(&self.network.post_quant_conv.forward(&latent)?)?.squeeze(0)?)
    }
}

impl ImageCodec for VqModel {
    fn decode(&self, codes: &[u32], grid: (usize, usize)) -> Result<RgbImage, ModelError> {
        // diffusers rounds.
        picture(&self.pixels(codes, grid)?, |y| (y.clamp(0.0, 1.0) * 255.0).round() as u8)
    }

    fn encode(&self, _: &RgbImage, _: (usize, usize)) -> Result<Vec<u32>, ModelError> {
        Err(ModelError::Input(
            "image: this model's codec (VQModel) only draws; send `initial_codes` instead".to_owned(),
        ))
    }
}
