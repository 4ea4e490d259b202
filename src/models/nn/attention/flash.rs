//! Flash attention (arXiv 2205.14135) over the ragged spans of a packed batch, on NVIDIA GPUs with f16 or bf16: no matrix
//! of scores is ever in memory, and one launch serves all spans. Without a backward pass.

use candle_core::{DType, IndexOp, Result, Tensor};

use super::{AttentionPlan, rotate};

/// Widest head that the kernels know.
const WIDEST: usize = 256;

/// Whether [`attention`] can be used: where its kernels run, nobody asks for a gradient, every span has queries, and
/// every query sees all keys of its span.
pub(super) fn applies(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> bool {
    let half = matches!(q.dtype(), DType::F16 | DType::BF16) && q.device().is_cuda();
    let frozen = !q.track_op() && !kv.track_op();
    let sees_all = |span: &super::AttentionSpan| {
        let keys = span.keys.len();
        !span.queries.is_empty() && span.queries.clone().all(|query| plan.visible(query, keys) == keys)
    };
    half && frozen && plan.head_dim <= WIDEST && plan.head_dim.is_multiple_of(8) && plan.spans.iter().all(sees_all)
}

/// As [`attention`](super::attention).
pub(super) fn attention(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> Result<Tensor> {
    let (rows, keys) = (q.dim(0)?, kv.dim(0)?);
    let (h, n_kv, d) = (plan.n_heads, plan.n_kv_heads, plan.head_dim);
    let key_positions: Vec<u32> = plan.spans.iter().flat_map(|span| 0..span.keys.len() as u32).collect();
    let rotated = |x: &Tensor, positions: &[u32]| {
        rotate(&x.transpose(0, 1)?, positions, &plan.rope)?.transpose(0, 1)?.contiguous()
    };
    let kv = kv.reshape((keys, 2, n_kv, d))?;
    let q = rotated(&q.reshape((rows, h, d))?, &plan.positions)?;
    let k = rotated(&kv.i((.., 0))?, &key_positions)?;
    let v = kv.i((.., 1))?.contiguous()?;
    let ends = |lengths: &[usize]| {
        let mut at = 0;
        let mut ends = vec![0];
        ends.extend(lengths.iter().map(|&n| {
            at += n as u32;
            at
        }));
        Tensor::from_vec(ends, lengths.len() + 1, q.device())
    };
    let lengths = |of: fn(&super::AttentionSpan) -> usize| plan.spans.iter().map(of).collect::<Vec<_>>();
    let (asked, answering) = (lengths(|span| span.queries.len()), lengths(|span| span.keys.len()));
    let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
    let out = candle_flash_attn::flash_attn_varlen(
        &q,
        &k,
        &v,
        &ends(&asked)?,
        &ends(&answering)?,
        longest(&asked),
        longest(&answering),
        plan.scale(),
        false,
    )?;
    out.reshape((rows, h * d))
}
