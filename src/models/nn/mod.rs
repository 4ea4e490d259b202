//! The layers: linear, RMSNorm, SwiGLU, rotary attention over ragged spans, token log-probabilities.
//!
//! Every fused operation comes in one CPU kernel with its own backward pass, so that serving and training run the
//! same forward bit for bit, and in one composition of candle's differentiable operations for other devices, which
//! is also the reference of the tests. Adapters are the exception: they serve in place (`low_rank`) and are composed where
//! they learn; both agree up to rounding. candle's own fused operations (`softmax_last_dim`, `rms_norm`, `rope`) are
//! not used: they have no backward pass and cut gradients without an error.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};
use rayon::prelude::*;

pub mod attention;
pub mod calibrate;
pub mod elementwise;
pub mod gemm;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod packed;
pub mod pause;
pub mod residual;
pub mod swiglu;
pub mod timing;
pub mod token_logprob;

pub use linear::{Linear, Precision, Products};
pub use packed::{Format, Packing, Panels};

/// Whether `x` is computed by the kernels of this folder, which are for the CPU and f32. Anything else is composed.
pub(crate) fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// Whether `x` is [`fused`] and nobody will ask for a gradient through it, so that it may be written over.
pub(crate) fn frozen(x: &Tensor) -> bool {
    fused(x) && !x.track_op()
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout, what: &'static str) -> Result<&'a [f32]> {
    let (from, to) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg(format!("{what}: the tensor must be contiguous")))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

/// The same, to be written over.
pub(crate) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout, what: &'static str) -> Result<&'a mut [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((from, to)), CpuStorage::F32(values)) => Ok(&mut values[from..to]),
        _ => candle_core::bail!("{what}: the tensor must be contiguous and f32"),
    }
}

/// `len` values, `chunk` at a time in parallel: `write` gets a chunk's number and its values, zeros so far.
pub(crate) fn in_chunks(len: usize, chunk: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    let chunks = out.spare_capacity_mut()[..len].par_chunks_mut(chunk.max(1));
    chunks.enumerate().for_each(|(i, chunk)| write(i, filled(chunk, 0.0)));
    // SAFETY: the chunks were all of these values, and `filled` has set every one of them.
    unsafe { out.set_len(len) };
    out
}

/// Memory of a vector's that is still to be written, set to `value` by the thread that will write it: `vec![0.0; n]`
/// would have one thread go through all of it while the others wait.
pub(crate) fn filled<T: Copy>(memory: &mut [MaybeUninit<T>], value: T) -> &mut [T] {
    memory.fill(MaybeUninit::new(value));
    // SAFETY: all of it has just been set.
    unsafe { memory.assume_init_mut() }
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::{Result, Tensor};

    /// Fails unless all values agree within `tolerance`, relative to the larger of 1 and the value.
    pub(crate) fn close(a: &Tensor, b: &Tensor, tolerance: f32) -> Result<()> {
        assert_eq!(a.dims(), b.dims());
        let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
        for (i, (a, b)) in a.iter().zip(&b).enumerate() {
            assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "value {i}: {a} and {b}");
        }
        Ok(())
    }
}
