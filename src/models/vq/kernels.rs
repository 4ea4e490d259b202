//! Convolution and group norm on the CPU, in f32: what a codec spends its time on.
//!
//! candle's convolution gathers every patch before it multiplies, at a few GFLOP/s; here a k×k kernel is k² matrix
//! products with the padded planes themselves, shifted, so nothing is gathered. Planes are cut into blocks of rows by
//! their shape alone, and a block is computed by one thread: the bits do not depend on how many threads there are.
//! On other devices candle's operations do the same.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::models::nn::elementwise::sigmoid;
use crate::models::nn::gemm::{MatRef, matmul_exact};
use crate::models::nn::slice;

/// Pixels of a block: enough for full speed, and its products stay in the second-level cache.
const BLOCK: usize = 1024;

/// A convolution of images `(1, in, h, w)`.
#[derive(Debug, Clone)]
pub struct Conv {
    weight: Tensor,
    bias: Tensor,
    kernel: usize,
    stride: usize,
}

impl Conv {
    /// From a weight `(out, in, k, k)` and a bias `(out)`. Zeros surround the image: (k-1)/2 on every side with stride
    /// 1; with stride 2, k-2 on the right and at the bottom, so that height and width are halved.
    ///
    /// # Errors
    /// When the weight is not square.
    pub fn new(weight: Tensor, bias: Tensor, stride: usize) -> Result<Self> {
        match weight.dims4()? {
            (_, _, kernel, other) if kernel == other && kernel >= stride => Ok(Self { weight, bias, kernel, stride }),
            (_, _, h, w) => bail!("conv: a kernel of {h}×{w} with stride {stride}"),
        }
    }

    /// The image, convolved.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (before, after) = match self.stride {
            1 => (self.kernel / 2, self.kernel / 2),
            stride => (0, self.kernel - stride),
        };
        if x.device().is_cpu() {
            let op = ConvOp { kernel: self.kernel, stride: self.stride, before, after };
            return x.contiguous()?.apply_op3_no_bwd(&self.weight, &self.bias, &op);
        }
        let x = x.pad_with_zeros(2, before, after)?.pad_with_zeros(3, before, after)?;
        x.conv2d(&self.weight, 0, self.stride, 1, 1)?.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)
    }
}

struct ConvOp {
    kernel: usize,
    stride: usize,
    before: usize,
    after: usize,
}

impl CustomOp3 for ConvOp {
    fn name(&self) -> &'static str {
        "codec-conv"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, channels, h, w) = x_layout.shape().dims4()?;
        let (c_out, c_in, _, _) = weight_layout.shape().dims4()?;
        if n != 1 || channels != c_in {
            bail!("conv: {n} images of {channels} channels, expected 1 of {c_in}");
        }
        let x = slice(x, x_layout, "conv x")?;
        let weight = slice(weight, weight_layout, "conv weight")?;
        let bias = slice(bias, bias_layout, "conv bias")?;
        let Self { kernel, stride, before, after } = *self;
        let (ph, pw) = (h + before + after, w + before + after);
        let (out_h, out_w) = ((ph - kernel) / stride + 1, (pw - kernel) / stride + 1);
        let padded = pad(x, (h, w), (ph, pw), before);
        let plane = ph * pw;
        let rows = BLOCK.div_ceil(pw);
        // Output pixel (y, x) of a block is column y·pw + x of its product; columns between rows are thrown away.
        let block = |first: usize| -> Result<Vec<f32>> {
            let columns = (rows.min(out_h - first) - 1) * pw + out_w;
            let mut out = vec![0.0; c_out * columns];
            for (out, &bias) in out.chunks_exact_mut(columns).zip(bias) {
                out.fill(bias);
            }
            for tap in 0..kernel * kernel {
                let a = MatRef {
                    data: &weight[tap..],
                    rows: c_out,
                    cols: c_in,
                    row_stride: c_in * kernel * kernel,
                    col_stride: kernel * kernel,
                };
                let start = (first * stride + tap / kernel) * pw + tap % kernel;
                let b =
                    MatRef { data: &padded[start..], rows: c_in, cols: columns, row_stride: plane, col_stride: stride };
                matmul_exact(a, b, &mut out, true).map_err(candle_core::Error::wrap)?;
            }
            Ok(out)
        };
        let firsts: Vec<usize> = (0..out_h).step_by(rows).collect();
        let blocks = firsts.par_iter().map(|&first| block(first)).collect::<Result<Vec<_>>>()?;
        let mut out = vec![0.0; c_out * out_h * out_w];
        out.par_chunks_exact_mut(out_h * out_w).enumerate().for_each(|(channel, out)| {
            for (y, out) in out.chunks_exact_mut(out_w).enumerate() {
                let block = &blocks[y / rows];
                let start = channel * (block.len() / c_out) + y % rows * pw;
                out.copy_from_slice(&block[start..start + out_w]);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((1, c_out, out_h, out_w))))
    }
}

/// Planes `(h, w)` within planes `(ph, pw)` of zeros, `before` from the top and from the left.
fn pad(x: &[f32], (h, w): (usize, usize), (ph, pw): (usize, usize), before: usize) -> Vec<f32> {
    if (h, w) == (ph, pw) {
        return x.to_vec();
    }
    let mut padded = vec![0.0; x.len() / (h * w) * ph * pw];
    padded.par_chunks_exact_mut(ph * pw).zip(x.par_chunks_exact(h * w)).for_each(|(padded, x)| {
        for (row, x) in padded.chunks_exact_mut(pw).skip(before).zip(x.chunks_exact(w)) {
            row[before..before + w].copy_from_slice(x);
        }
    });
    padded
}

/// Group norm with gains and biases per channel, then, perhaps, swish.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    gains: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// From gains and biases `(channels)`; `groups` divides the channels.
    ///
    /// # Errors
    /// When it does not.
    pub fn new(gains: Tensor, bias: Tensor, groups: usize, eps: f64) -> Result<Self> {
        match gains.dim(0)? % groups {
            0 => Ok(Self { gains, bias, groups, eps }),
            _ => bail!("group norm: {groups} groups of {} channels", gains.dim(0)?),
        }
    }

    /// `(1, channels, h, w)`, normalised; with `swish`, y ↦ y · sigmoid(y) of that.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn forward(&self, x: &Tensor, swish: bool) -> Result<Tensor> {
        if x.device().is_cpu() {
            let op = NormOp { groups: self.groups, eps: self.eps, swish };
            return x.contiguous()?.apply_op3_no_bwd(&self.gains, &self.bias, &op);
        }
        let (gains, bias) = (self.gains.clone(), self.bias.clone());
        let norm = candle_nn::GroupNorm::new(gains, bias, self.gains.dim(0)?, self.groups, self.eps)?;
        let y = candle_core::Module::forward(&norm, x)?;
        if swish { y.silu() } else { Ok(y) }
    }
}

struct NormOp {
    groups: usize,
    eps: f64,
    swish: bool,
}

impl CustomOp3 for NormOp {
    fn name(&self) -> &'static str {
        "codec-group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gains: &CpuStorage,
        gains_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, channels, h, w) = x_layout.shape().dims4()?;
        let x = slice(x, x_layout, "group norm x")?;
        let (gains, bias) = (slice(gains, gains_layout, "gains")?, slice(bias, bias_layout, "bias")?);
        if n != 1 || channels != gains.len() || channels != bias.len() || x.is_empty() {
            bail!("group norm: {n} images of {channels} channels, expected 1 of {}", gains.len());
        }
        let (plane, per_group) = (h * w, channels / self.groups);
        let mut out = vec![0.0; x.len()];
        let groups = out.par_chunks_exact_mut(per_group * plane).zip(x.par_chunks_exact(per_group * plane));
        groups.enumerate().for_each(|(group, (out, x))| {
            let (mean, scale) = moments(x, self.eps);
            for (i, (out, x)) in out.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
                let gain = gains[group * per_group + i] * scale;
                let shift = bias[group * per_group + i] - mean * gain;
                match self.swish {
                    true => affine_swish(x, gain, shift, out),
                    false => affine(x, gain, shift, out),
                }
            }
        });
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// The mean, and one over the standard deviation; sums of sums of a thousand, in f64, as a group may have millions.
fn moments(x: &[f32], eps: f64) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = x.chunks(1024).map(|x| x.iter().map(|&x| f64::from(x)).sum::<f64>()).sum::<f64>() / n;
    let square = |x: &f32| (f64::from(*x) - mean).powi(2);
    let variance = x.chunks(1024).map(|x| x.iter().map(square).sum::<f64>()).sum::<f64>() / n;
    (mean as f32, (variance + eps).sqrt().recip() as f32)
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn affine_swish(x: &[f32], gain: f32, shift: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        let y = x * gain + shift;
        *out = y * sigmoid(y);
    }
}

#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn affine(x: &[f32], gain: f32, shift: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * gain + shift;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Module as _};
    use candle_nn::Conv2dConfig;

    use super::*;
    use crate::models::nn::tests::close;

    fn random(shape: impl Into<Shape>) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn convolutions_are_candles() -> Result<()> {
        for (kernel, stride, c_in, c_out, h, w) in
            [(3, 1, 5, 7, 9, 4), (3, 1, 3, 2, 40, 33), (1, 1, 6, 3, 5, 8), (3, 2, 4, 5, 8, 6), (3, 2, 2, 3, 64, 50)]
        {
            let (weight, bias) = (random((c_out, c_in, kernel, kernel)), random(c_out));
            let x = random((1, c_in, h, w));
            let padding = if stride == 1 { kernel / 2 } else { 0 };
            let config = Conv2dConfig { padding, stride, ..Conv2dConfig::default() };
            let reference = candle_nn::Conv2d::new(weight.clone(), Some(bias.clone()), config);
            let padded = if stride == 2 { x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)? } else { x.clone() };
            close(&Conv::new(weight, bias, stride)?.forward(&x)?, &reference.forward(&padded)?, 1e-5)?;
        }
        Ok(())
    }

    #[test]
    fn group_norms_are_candles() -> Result<()> {
        let (gains, bias, x) = (random(12), random(12), (random((1, 12, 37, 31)) + 3.0)?);
        let reference = candle_nn::GroupNorm::new(gains.clone(), bias.clone(), 12, 4, 1e-6)?.forward(&x)?;
        let norm = GroupNorm::new(gains, bias, 4, 1e-6)?;
        close(&norm.forward(&x, false)?, &reference, 1e-5)?;
        close(&norm.forward(&x, true)?, &reference.silu()?, 1e-5)
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() -> Result<()> {
        let conv = Conv::new(random((16, 16, 3, 3)), random(16), 1)?;
        let norm = GroupNorm::new(random(16), random(16), 8, 1e-6)?;
        let x = random((1, 16, 70, 70));
        let run = |threads: usize| -> Result<Vec<f32>> {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
            pool.install(|| norm.forward(&conv.forward(&x)?, true)?.flatten_all()?.to_vec1())
        };
        assert!(run(1)? == run(5)?);
        Ok(())
    }
}
