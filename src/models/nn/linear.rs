//! Linear layers: y = x · Wᵀ (+ b), with W stored `(out, in)` as checkpoints do.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::gemm::{self, MatRef};
use super::slice;
use super::timing::timed;

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// In the dtype of the weights: what is served.
    #[default]
    Exact,
    /// Operands rounded to bf16, sums in f32: twice as fast on CPUs with AVX-512 BF16; for training.
    Mixed,
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    /// From a weight `(out, in)` and, perhaps, a bias `(out)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, precision: Precision) -> Self {
        Self { weight, bias, precision }
    }

    /// The same weights, computed in another way.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// The weight `(out, in)`.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// `(rows, in)` to `(rows, out)`.
    ///
    /// # Errors
    /// When the widths differ or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = timed(
            |t| &mut t.matmul,
            || match self.precision {
                Precision::Exact => exact(x, &self.weight),
                Precision::Mixed => x.contiguous()?.apply_op2(&self.weight, MixedLinear),
            },
        )?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// Outputs up to which a product takes another kernel, whose last bits differ (`gemm` 0.19, 16 × 16).
const FEW_OUTPUTS: usize = 256;

/// One row takes a matrix–vector kernel, and few outputs one of their own. Empty rows below keep every row's result
/// independent of how many ride along.
fn exact(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, w) = (x.dim(0)?, weight.t()?);
    let least = (FEW_OUTPUTS / weight.dim(0)?.max(1) + 1).max(2);
    if rows < least {
        return x.pad_with_zeros(0, 0, least - rows)?.matmul(&w)?.narrow(0, 0, rows);
    }
    x.matmul(&w)
}

/// x `(rows, in)`, W `(out, in)` to x · Wᵀ.
struct MixedLinear;

impl CustomOp2 for MixedLinear {
    fn name(&self) -> &'static str {
        "mixed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        product(matrix(x, xl)?, matrix(w, wl)?.t())
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = grad.apply_op2_no_bwd(w, &MixedProduct { transpose_left: false })?;
        // A frozen weight costs nothing: only the input's gradient is computed.
        let dw = if w.track_op() {
            Some(grad.apply_op2_no_bwd(&x.contiguous()?, &MixedProduct { transpose_left: true })?)
        } else {
            None
        };
        Ok((Some(dx), dw))
    }
}

/// a · b, or aᵀ · b.
struct MixedProduct {
    transpose_left: bool,
}

impl CustomOp2 for MixedProduct {
    fn name(&self) -> &'static str {
        "mixed-product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let a = matrix(a, al)?;
        product(if self.transpose_left { a.t() } else { a }, matrix(b, bl)?)
    }
}

fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<MatRef<'a>> {
    match *layout.dims() {
        [rows, cols] => Ok(MatRef::new(slice(storage, layout, "linear")?, rows, cols)),
        ref dims => candle_core::bail!("linear: expected a matrix, got {dims:?}"),
    }
}

fn product(a: MatRef<'_>, b: MatRef<'_>) -> Result<(CpuStorage, Shape)> {
    let (rows, cols) = (a.rows, b.cols);
    let mut out = vec![0.0; rows * cols];
    gemm::matmul(a, b, &mut out, false).map_err(candle_core::Error::wrap)?;
    Ok((CpuStorage::F32(out), Shape::from((rows, cols))))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn a_row_does_not_know_its_neighbours() -> Result<()> {
        for (k, n) in [(192, 192), (192, 384), (192, 1024), (512, 192), (192, 1600), (64, 64), (192, 16), (4096, 300)] {
            let layer = Linear::new(Tensor::randn(0f32, 1.0, (n, k), &Device::Cpu)?, None, Precision::Exact);
            let x = Tensor::randn(0f32, 1.0, (700, k), &Device::Cpu)?;
            let all = layer.forward(&x)?.to_vec2::<f32>()?;
            for rows in [1, 2, 3, 7, 31, 64, 65, 129, 500] {
                let some = layer.forward(&x.narrow(0, 0, rows)?.contiguous()?)?.to_vec2::<f32>()?;
                assert!(some.iter().zip(&all).all(|(a, b)| a == b), "{rows} rows of {k}×{n}");
            }
        }
        Ok(())
    }

    #[test]
    fn mixed_precision_stays_within_bf16_of_exact_in_values_and_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (33, 48), &Device::Cpu)?)?;
        let w = Var::from_tensor(&Tensor::randn(0f32, 0.15, (20, 48), &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 0.2, (33, 20), &Device::Cpu)?;
        let run = |precision| -> Result<_> {
            let y = Linear::new(w.as_tensor().clone(), None, precision).forward(&x)?;
            let grads = (&y * &probe)?.sum_all()?.backward()?;
            Ok((y.detach(), grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()))
        };
        let (exact, mixed) = (run(Precision::Exact)?, run(Precision::Mixed)?);
        for (a, b) in [(exact.0, mixed.0), (exact.1, mixed.1), (exact.2, mixed.2)] {
            crate::models::nn::tests::close(&b, &a, 0.03)?;
        }
        Ok(())
    }
}
