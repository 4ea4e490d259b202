//! RMSNorm: x · weight / √(mean(x²) + ε), over the last dimension, in f32.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::timing::timed;
use super::{elementwise, fused, in_chunks, slice};

/// Rows handled by one task; small enough to spread, large enough to be worth it.
const ROWS_PER_TASK: usize = 64;

/// Normalises the rows of `x` `(rows, d)` with gains `weight` `(d)`.
///
/// # Errors
/// When shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    timed(
        |t| &mut t.elementwise,
        || match fused(x) {
            true => x.contiguous()?.apply_op2(weight, RmsNorm { eps: eps as f32 }),
            false => composed(x, weight, eps),
        },
    )
}

/// The same of candle's differentiable operations.
fn composed(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(candle_core::DType::F32)?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.to_dtype(dtype)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(x, xl, "rms_norm x")?, slice(w, wl, "rms_norm weight")?);
        check_rows(xl, w.len())?;
        let chunk = w.len() * ROWS_PER_TASK;
        let out = in_chunks(x.len(), chunk, |task, out| {
            for (out, x) in out.chunks_exact_mut(w.len()).zip(x[chunk * task..].chunks_exact(w.len())) {
                elementwise::rms_norm(x, w, self.eps, out);
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grads = x.contiguous()?.apply_op3_no_bwd(w, &grad.contiguous()?, &RmsNormGrad { eps: self.eps })?;
        let n = x.elem_count();
        let dx = grads.narrow(0, 0, n)?.reshape(x.shape())?;
        let dw = grads.narrow(0, n, w.elem_count())?.reshape(w.shape())?;
        Ok((Some(dx), Some(dw)))
    }
}

/// (x, weight, grad) to [dx | dweight], flat.
struct RmsNormGrad {
    eps: f32,
}

impl CustomOp3 for RmsNormGrad {
    fn name(&self) -> &'static str {
        "rms-norm-grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, g) = (slice(x, xl, "x")?, slice(w, wl, "weight")?, slice(g, gl, "grad")?);
        check_rows(xl, w.len())?;
        let d = w.len();
        let mut out = vec![0.0; x.len() + d];
        let (dx, dw) = out.split_at_mut(x.len());
        for ((x, g), dx) in x.chunks_exact(d).zip(g.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
            let r = 1.0 / (elementwise::sum_squares(x) / d as f32 + self.eps).sqrt();
            elementwise::rms_norm_backward(x, w, r, g, dx, dw);
        }
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }
}

fn check_rows(layout: &Layout, d: usize) -> Result<()> {
    match layout.dims().last() {
        Some(&last) if last == d && d > 0 => Ok(()),
        last => candle_core::bail!("rms_norm: rows have {last:?} values, the weight has {d}"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn kernel_and_composition_agree_in_values_and_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (5, 48), &Device::Cpu)?)?;
        let w = Var::from_tensor(&Tensor::randn(1f32, 0.2, 48, &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 1.0, (5, 48), &Device::Cpu)?;
        let fused = rms_norm(&x, &w, 1e-5)?;
        let plain = composed(&x, &w, 1e-5)?;
        crate::models::nn::tests::close(&fused, &plain, 1e-5)?;
        let (a, b) = ((fused * &probe)?.sum_all()?.backward()?, (plain * &probe)?.sum_all()?.backward()?);
        for var in [&x, &w] {
            crate::models::nn::tests::close(a.get(var).unwrap(), b.get(var).unwrap(), 1e-4)?;
        }
        Ok(())
    }
}
