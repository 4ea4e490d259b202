//! SwiGLU: silu(gate) · up, where gate and up are the two halves of each row.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::timing::timed;
use super::{elementwise, fused, in_chunks, slice};

const ROWS_PER_TASK: usize = 32;

/// `(rows, 2·ff)`, gate then up, to `(rows, ff)`.
///
/// # Errors
/// When the last dimension is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    timed(
        |t| &mut t.elementwise,
        || match fused(gate_up) {
            true => gate_up.contiguous()?.apply_op1(SwiGlu),
            false => composed(gate_up),
        },
    )
}

/// The same of candle's differentiable operations.
fn composed(gate_up: &Tensor) -> Result<Tensor> {
    let halves = gate_up.chunk(2, D::Minus1)?;
    candle_nn::ops::silu(&halves[0])? * &halves[1]
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl, "swiglu")?;
        let (rows, ff) = halves(xl)?;
        let out = in_chunks(rows * ff, ff * ROWS_PER_TASK, |task, out| {
            let x = &x[2 * ff * ROWS_PER_TASK * task..];
            for (out, x) in out.chunks_exact_mut(ff).zip(x.chunks_exact(2 * ff)) {
                elementwise::swiglu(&x[..ff], &x[ff..], out);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((rows, ff))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(x.contiguous()?.apply_op2_no_bwd(&grad.contiguous()?, &SwiGluGrad)?))
    }
}

/// (gate|up, grad) to d(gate|up).
struct SwiGluGrad;

impl CustomOp2 for SwiGluGrad {
    fn name(&self) -> &'static str {
        "swiglu-grad"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (slice(x, xl, "swiglu")?, slice(g, gl, "swiglu grad")?);
        let (_, ff) = halves(xl)?;
        let mut out = vec![0.0; x.len()];
        for ((out, x), g) in out.chunks_exact_mut(2 * ff).zip(x.chunks_exact(2 * ff)).zip(g.chunks_exact(ff)) {
            let (d_gate, d_up) = out.split_at_mut(ff);
            elementwise::swiglu_backward(&x[..ff], &x[ff..], g, d_gate, d_up);
        }
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

fn halves(layout: &Layout) -> Result<(usize, usize)> {
    match *layout.dims() {
        [rows, width] if width % 2 == 0 && width > 0 => Ok((rows, width / 2)),
        ref dims => candle_core::bail!("swiglu: expected (rows, 2·ff), got {dims:?}"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn kernel_and_composition_agree_in_values_and_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 2.0, (7, 80), &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 1.0, (7, 40), &Device::Cpu)?;
        let (fused, plain) = (swiglu(&x)?, composed(&x)?);
        crate::models::nn::tests::close(&fused, &plain, 1e-5)?;
        let (a, b) = ((fused * &probe)?.sum_all()?.backward()?, (plain * &probe)?.sum_all()?.backward()?);
        crate::models::nn::tests::close(a.get(&x).unwrap(), b.get(&x).unwrap(), 1e-4)
    }
}
