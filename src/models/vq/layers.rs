//! The blocks that convolutional image codecs are made of, over images `(1, channels, height, width)`, in f32.
//!
//! MAGVIT-v2 and the diffusers `VQModel` descend from the same encoder and decoder (Esser et al., "Taming
//! Transformers", 2021) and differ in the names of tensors, in where the shortcut is kept and in the order in which
//! levels are counted; a [`Dialect`] says which.

use candle_core::{D, Tensor};

use super::kernels::{Conv, GroupNorm};
use super::tensors::Scope;
use crate::models::ModelError;

/// Added to the variance by every group norm of both families.
const EPSILON: f64 = 1e-6;

/// How a family names the tensors of its blocks.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// The 1×1 convolution beside a residual block whose width changes.
    pub shortcut: &'static str,
    /// The attention block's norm, query, key, value and output.
    pub attention: [&'static str; 5],
    /// Whether attention weights are stored as matrices, not as 1×1 convolutions.
    pub matrices: bool,
    /// Groups of every norm.
    pub groups: usize,
}

/// A convolution that keeps height and width (kernel 1 or 3, stride 1).
///
/// # Errors
/// When the tensors cannot be had.
pub fn conv(scope: &Scope<'_>, name: &str, c_in: usize, c_out: usize, kernel: usize) -> Result<Conv, ModelError> {
    strided(scope, name, (c_in, c_out, kernel), 1)
}

fn strided(
    scope: &Scope<'_>,
    name: &str,
    (c_in, c_out, kernel): (usize, usize, usize),
    stride: usize,
) -> Result<Conv, ModelError> {
    let scope = scope.at(name);
    let weight = scope.tensor("weight", &[c_out, c_in, kernel, kernel])?;
    Ok(Conv::new(weight, scope.tensor("bias", &[c_out])?, stride)?)
}

fn norm(scope: &Scope<'_>, name: &str, channels: usize, groups: usize) -> Result<GroupNorm, ModelError> {
    let scope = scope.at(name);
    let (weight, bias) = (scope.tensor("weight", &[channels])?, scope.tensor("bias", &[channels])?);
    Ok(GroupNorm::new(weight, bias, groups, EPSILON)?)
}

/// Normalise, swish, convolve: the step that everything here repeats.
struct NormConv {
    norm: GroupNorm,
    conv: Conv,
}

impl NormConv {
    fn new(
        scope: &Scope<'_>,
        (norm_name, conv_name): (&str, &str),
        (c_in, c_out): (usize, usize),
        groups: usize,
    ) -> Result<Self, ModelError> {
        Ok(Self { norm: norm(scope, norm_name, c_in, groups)?, conv: conv(scope, conv_name, c_in, c_out, 3)? })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.conv.forward(&self.norm.forward(x, true)?)
    }
}

/// x + conv(conv(x)), each after norm and swish; the x of the sum goes through a 1×1 convolution if widths differ.
pub struct Residual {
    first: NormConv,
    second: NormConv,
    shortcut: Option<Conv>,
}

impl Residual {
    /// The block at `scope`.
    ///
    /// # Errors
    /// When its tensors cannot be had.
    pub fn new(scope: &Scope<'_>, c_in: usize, c_out: usize, dialect: &Dialect) -> Result<Self, ModelError> {
        let half = |norm, conv, c_in| NormConv::new(scope, (norm, conv), (c_in, c_out), dialect.groups);
        Ok(Self {
            first: half("norm1", "conv1", c_in)?,
            second: half("norm2", "conv2", c_out)?,
            shortcut: (c_in != c_out).then(|| conv(scope, dialect.shortcut, c_in, c_out, 1)).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let h = self.second.forward(&self.first.forward(x)?)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)? + h,
            None => x + h,
        }
    }
}

/// Self-attention of all pixels with all pixels, one head: x + out(attention(norm(x))).
pub struct Attention {
    norm: GroupNorm,
    /// Query, key, value, output.
    projections: [Conv; 4],
    channels: usize,
}

impl Attention {
    /// The block at `scope`.
    ///
    /// # Errors
    /// When its tensors cannot be had.
    pub fn new(scope: &Scope<'_>, channels: usize, dialect: &Dialect) -> Result<Self, ModelError> {
        let [norm_name, names @ ..] = dialect.attention;
        let projection = |name: &str| {
            if !dialect.matrices {
                return conv(scope, name, channels, channels, 1);
            }
            let scope = scope.at(name);
            let weight = scope.tensor("weight", &[channels, channels])?.reshape((channels, channels, 1, 1))?;
            Ok(Conv::new(weight, scope.tensor("bias", &[channels])?, 1)?)
        };
        let [q, k, v, out] = names;
        let projections = [projection(q)?, projection(k)?, projection(v)?, projection(out)?];
        Ok(Self { norm: norm(scope, norm_name, channels, dialect.groups)?, projections, channels })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let [query, key, value, out] = &self.projections;
        let h = self.norm.forward(x, false)?;
        let flat = |projection: &Conv| projection.forward(&h)?.flatten_from(2);
        let (q, k, v) = (flat(query)?, flat(key)?, flat(value)?); // (1, C, N) each
        let scores = (q.transpose(1, 2)?.contiguous()?.matmul(&k)? * (self.channels as f64).powf(-0.5))?; // (1, N, N)
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = v.matmul(&weights.transpose(1, 2)?.contiguous()?)?; // (1, C, N)
        x + out.forward(&mixed.reshape(x.shape())?)?
    }
}

/// The middle, at the lowest resolution: a residual block, attention in most networks, a residual block.
pub struct Middle {
    /// Before.
    pub first: Residual,
    /// Between.
    pub attention: Option<Attention>,
    /// After.
    pub second: Residual,
}

impl Middle {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.first.forward(x)?;
        let x = match &self.attention {
            Some(attention) => attention.forward(&x)?,
            None => x,
        };
        self.second.forward(&x)
    }
}

/// The residual blocks of one resolution and, except at the last one, the way to the next.
pub struct Level {
    /// In order.
    pub blocks: Vec<Residual>,
    /// The convolution that goes with the change of resolution.
    pub resize: Option<Conv>,
}

impl Level {
    fn blocks(&self, x: Tensor) -> candle_core::Result<Tensor> {
        self.blocks.iter().try_fold(x, |x, block| block.forward(&x))
    }
}

/// What lies after the last level: norm, swish, convolution to the channels wanted.
pub struct Head(NormConv);

impl Head {
    /// The head at `scope`, with the names of its norm and of its convolution.
    ///
    /// # Errors
    /// When its tensors cannot be had.
    pub fn new(
        scope: &Scope<'_>,
        norm: &str,
        conv: &str,
        widths: (usize, usize),
        dialect: &Dialect,
    ) -> Result<Self, ModelError> {
        Ok(Self(NormConv::new(scope, (norm, conv), widths, dialect.groups)?))
    }
}

/// Latents to pixels: every level but the last doubles height and width.
pub struct Decoder {
    /// Latent channels to the width of the lowest resolution.
    pub conv_in: Conv,
    /// At the lowest resolution.
    pub middle: Middle,
    /// From the lowest resolution to the highest.
    pub levels: Vec<Level>,
    /// To three channels.
    pub head: Head,
}

impl Decoder {
    /// `(1, latent, h, w)` to `(1, 3, f·h, f·w)`, f = 2 to the number of levels less one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, z: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.middle.forward(&self.conv_in.forward(z)?)?;
        for level in &self.levels {
            x = level.blocks(x)?;
            if let Some(conv) = &level.resize {
                let (_, _, h, w) = x.dims4()?;
                x = conv.forward(&x.upsample_nearest2d(2 * h, 2 * w)?)?;
            }
        }
        self.head.0.forward(&x)
    }
}

/// Pixels to latents: every level but the last halves height and width.
pub struct Encoder {
    /// Three channels to the width of the highest resolution.
    pub conv_in: Conv,
    /// From the highest resolution to the lowest.
    pub levels: Vec<Level>,
    /// At the lowest resolution.
    pub middle: Middle,
    /// To the latent channels.
    pub head: Head,
}

impl Encoder {
    /// The convolution that halves a level's resolution: stride 2, its padding on the right and at the bottom only.
    ///
    /// # Errors
    /// When the tensors cannot be had.
    pub fn halving(scope: &Scope<'_>, name: &str, channels: usize) -> Result<Conv, ModelError> {
        strided(scope, name, (channels, channels, 3), 2)
    }

    /// `(1, 3, h, w)` to `(1, latent, h / f, w / f)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn forward(&self, pixels: &Tensor) -> candle_core::Result<Tensor> {
        let mut x = self.conv_in.forward(pixels)?;
        for level in &self.levels {
            x = level.blocks(x)?;
            if let Some(conv) = &level.resize {
                x = conv.forward(&x)?;
            }
        }
        self.head.0.forward(&self.middle.forward(&x)?)
    }
}
