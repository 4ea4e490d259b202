//! The log-probability of one token per row: log softmax(logits) at the target, the term of every likelihood and loss.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};

use super::{elementwise, fused, slice};

/// `logits` `(rows, vocab)` and one target per row to log-probabilities `(rows)`.
///
/// # Errors
/// When the number of targets is not the number of rows or a target is outside the vocabulary.
pub fn token_logprob(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (rows, vocab) = logits.dims2()?;
    if targets.len() != rows || targets.iter().any(|&t| t as usize >= vocab) {
        candle_core::bail!("token_logprob: {} targets below {vocab} wanted for {rows} rows", targets.len());
    }
    if fused(logits) {
        return logits.contiguous()?.apply_op1(TokenLogprob { targets: targets.into() });
    }
    composed(logits, targets)
}

/// The same of candle's differentiable operations.
fn composed(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
    candle_nn::ops::log_softmax(logits, D::Minus1)?.gather(&targets, D::Minus1)?.squeeze(D::Minus1)
}

struct TokenLogprob {
    targets: Arc<[u32]>,
}

impl CustomOp1 for TokenLogprob {
    fn name(&self) -> &'static str {
        "token-logprob"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl, "token_logprob")?;
        let vocab = xl.dims()[1];
        let rows = x.chunks_exact(vocab).zip(self.targets.iter());
        let out: Vec<f32> = rows.map(|(x, &t)| x[t as usize] - elementwise::log_sum_exp(x)).collect();
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let op = TokenLogprobGrad { targets: Arc::clone(&self.targets) };
        Ok(Some(x.contiguous()?.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

/// d/dlogits: (onehot(target) − softmax(logits)) · grad.
struct TokenLogprobGrad {
    targets: Arc<[u32]>,
}

impl CustomOp2 for TokenLogprobGrad {
    fn name(&self) -> &'static str {
        "token-logprob-grad"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, g) = (slice(x, xl, "token_logprob")?, slice(g, gl, "token_logprob grad")?);
        let vocab = xl.dims()[1];
        let mut out = x.to_vec();
        for ((row, &g), &target) in out.chunks_exact_mut(vocab).zip(g).zip(self.targets.iter()) {
            elementwise::softmax(row);
            for p in row.iter_mut() {
                *p *= -g;
            }
            row[target as usize] += g;
        }
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn kernel_and_composition_agree_in_values_and_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 3.0, (4, 37), &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 1.0, 4, &Device::Cpu)?;
        let targets = [0, 36, 5, 5];
        let (fused, plain) = (token_logprob(&x, &targets)?, composed(&x, &targets)?);
        crate::models::nn::tests::close(&fused, &plain, 1e-5)?;
        let (a, b) = ((fused * &probe)?.sum_all()?.backward()?, (plain * &probe)?.sum_all()?.backward()?);
        crate::models::nn::tests::close(a.get(&x).unwrap(), b.get(&x).unwrap(), 1e-4)
    }

    #[test]
    fn targets_outside_the_vocabulary_are_refused() -> Result<()> {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        assert!(token_logprob(&x, &[0, 3]).is_err());
        assert!(token_logprob(&x, &[0]).is_err());
        Ok(())
    }
}
