//! The sum on the residual stream: in place of what a product has just made, where nobody asks for a gradient.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use rayon::prelude::*;

use super::{frozen, slice, slice_mut};

/// Values handled by one task.
const GRAIN: usize = 1 << 14;

/// x + y, of one shape; y must be nobody else's.
///
/// # Errors
/// When the shapes differ.
pub fn add(x: &Tensor, y: Tensor) -> Result<Tensor> {
    if x.dims() == y.dims() && frozen(x) && frozen(&y) && y.is_contiguous() {
        y.inplace_op2(&x.contiguous()?, &AddTo)?;
        return Ok(y);
    }
    x + y
}

struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "residual-add"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let (x, y) = (slice(x, xl, "residual x")?, slice_mut(y, yl, "residual y")?);
        y.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(y, x)| {
            for (y, x) in y.iter_mut().zip(x) {
                *y += x;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn in_place_and_with_a_gradient_the_sum_is_the_same() -> Result<()> {
        let random = || Tensor::randn(0f32, 1.0, (300, 70), &Device::Cpu);
        let (x, y) = (random()?, random()?);
        let expected = (&x + &y)?.to_vec2::<f32>()?;
        assert_eq!(add(&x, y.copy()?)?.to_vec2::<f32>()?, expected);
        let var = Var::from_tensor(&y)?;
        let sum = add(&x, var.as_tensor().clone())?;
        assert_eq!((sum.to_vec2::<f32>()?, var.to_vec2::<f32>()?), (expected, y.to_vec2::<f32>()?));
        assert!(sum.sum_all()?.backward()?.get(&var).is_some());
        assert!(add(&x, random()?.narrow(0, 0, 5)?).is_err());
        Ok(())
    }
}
