//! Flash attention (arXiv 2205.14135) over the ragged spans of a packed batch, on NVIDIA GPUs with f16 or bf16: no matrix
//! of scores is ever in memory, and one launch serves all spans. Without a backward pass.

use candle_core::{DType, IndexOp, Result, Tensor};

use super::{AttentionPlan, AttentionSpan, Rotation, rotate};

/// Widest head that the kernels know.
const WIDEST: usize = 256;

/// Whether [`attention`] can be used: where its kernels run, nobody asks for a gradient, every span has queries, and
/// every query sees all keys of its span.
pub(super) fn applies(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> bool {
    let half = matches!(q.dtype(), DType::F16 | DType::BF16) && q.device().is_cuda();
    let frozen = !q.track_op() && !kv.track_op();
    let sees_all = |span: &AttentionSpan| {
        let keys = span.keys.len();
        !span.queries.is_empty() && span.queries.clone().all(|query| plan.visible(query, keys) == keys)
    };
    half && frozen && plan.head_dim <= WIDEST && plan.head_dim.is_multiple_of(8) && plan.spans.iter().all(sees_all)
}

/// As [`attention`](super::attention).
pub(super) fn attention(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> Result<Tensor> {
    let (rows, keys) = (q.dim(0)?, kv.dim(0)?);
    let (h, n_kv, d) = (plan.n_heads, plan.n_kv_heads, plan.head_dim);
    let tables = plan.tables.of(plan, q.device())?;
    let rotated = |x: &Tensor, by: &Rotation| rotate(&x.transpose(0, 1)?, by)?.transpose(0, 1)?.contiguous();
    let kv = kv.reshape((keys, 2, n_kv, d))?;
    let q = rotated(&q.reshape((rows, h, d))?, &tables.queries)?;
    let k = rotated(&kv.i((.., 0))?, &tables.keys)?;
    let v = kv.i((.., 1))?.contiguous()?;
    let longest = |of: fn(&AttentionSpan) -> usize| plan.spans.iter().map(of).max().unwrap_or(0);
    let [asked, answering] = &tables.ends;
    let out = candle_flash_attn::flash_attn_varlen(
        &q,
        &k,
        &v,
        asked,
        answering,
        longest(|span| span.queries.len()),
        longest(|span| span.keys.len()),
        plan.scale(),
        false,
    )?;
    out.reshape((rows, h * d))
}
