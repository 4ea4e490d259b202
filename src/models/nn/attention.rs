//! Rotary attention over ragged spans: every query attends to the keys of its own span that [`Pattern`] lets it see.
//!
//! Rows of many sequences lie one after another without padding; nothing crosses a span, so a row's result depends
//! on its span only. `kernel` holds the CPU loops, `tables` what other devices are given of a plan.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, IndexOp, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::timing::timed;
use super::{filled, fused, slice};

#[cfg(feature = "flash-attn")]
mod flash;
mod kernel;
mod tables;

use kernel::Head;
use tables::Rotation;
pub(crate) use tables::Tables;

/// Query rows handled by one task.
const QUERIES_PER_TASK: usize = 32;

/// One sequence: which rows ask and which answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionSpan {
    /// Its rows among the queries.
    pub queries: Range<usize>,
    /// Its rows among the keys and values; key `i` is at position `i`.
    pub keys: Range<usize>,
}

/// Which positions of a sequence see which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Every position sees every other.
    #[default]
    Bidirectional,
    /// A position sees its own block of so many positions and all blocks before it (SDAR).
    BlockCausal {
        /// Positions of a block; blocks start at multiples of it.
        block: usize,
    },
}

impl Pattern {
    /// How many of `keys` keys, the first ones, a query at `position` sees.
    fn visible(self, position: u32, keys: usize) -> usize {
        match self {
            Self::Bidirectional => keys,
            Self::BlockCausal { block } => keys.min((position as usize + 1).next_multiple_of(block.max(1))),
        }
    }
}

/// Everything about a packed attention but the tensors.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    /// The sequences, contiguous and in order on both sides.
    pub spans: Vec<AttentionSpan>,
    /// Position of each query row within its span.
    pub positions: Vec<u32>,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotation angles.
    pub rope: Arc<RopeTable>,
    /// Which keys of its span a query sees.
    pub pattern: Pattern,
    /// The same on another device.
    pub(crate) tables: Tables,
}

/// cos and sin of position · θ^(−2i/d), `(max_positions, head_dim / 2)`, computed in f64.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Angles for positions `0..max_positions` with base `theta`.
    #[must_use]
    pub fn new(max_positions: usize, head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
        let angles = (0..max_positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        Self {
            cos: angles.clone().map(|angle| angle.cos() as f32).collect(),
            sin: angles.map(|angle| angle.sin() as f32).collect(),
            half,
        }
    }

    /// cos and sin of one position, `(head_dim / 2)` each.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Attention of queries `(query rows, n_heads·head_dim)` over keys and values `(rows, 2·n_kv_heads·head_dim)`
/// (keys, then values), before rotation. Returns `(query rows, n_heads·head_dim)`.
///
/// # Errors
/// When shapes, spans or positions do not fit.
pub fn attention(q: &Tensor, kv: &Tensor, plan: &Arc<AttentionPlan>) -> Result<Tensor> {
    plan.check(q, kv)?;
    timed(
        |t| &mut t.attention,
        || match fused(q) {
            true => q.contiguous()?.apply_op2(&kv.contiguous()?, Attention(Arc::clone(plan))),
            false => elsewhere(q, kv, plan),
        },
    )
}

impl AttentionPlan {
    fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        2 * self.n_kv_heads * self.head_dim
    }

    /// How many of a span's `keys` keys the query row `query` sees: the first ones.
    fn visible(&self, query: usize, keys: usize) -> usize {
        self.pattern.visible(self.positions[query], keys)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn check(&self, q: &Tensor, kv: &Tensor) -> Result<()> {
        let (queries, keys) = (q.dims2()?, kv.dims2()?);
        let (mut at_query, mut at_key, mut longest) = (0, 0, 0);
        for span in &self.spans {
            if span.queries.start != at_query || span.keys.start != at_key || span.keys.is_empty() {
                candle_core::bail!("attention: spans must be contiguous and not empty, got {span:?}");
            }
            (at_query, at_key) = (span.queries.end, span.keys.end);
            longest = longest.max(span.keys.len());
        }
        let fits = queries == (at_query, self.q_width()) && keys == (at_key, self.kv_width());
        if !fits || self.positions.len() != at_query || !self.n_heads.is_multiple_of(self.n_kv_heads.max(1)) {
            candle_core::bail!("attention: q {queries:?}, kv {keys:?} do not fit {at_query} and {at_key} rows");
        }
        let last = self.positions.iter().max().map_or(0, |&p| p as usize + 1).max(longest);
        if last > self.rope.positions() || self.rope.half * 2 != self.head_dim {
            candle_core::bail!("attention: position {last} is beyond the {} of the model", self.rope.positions());
        }
        Ok(())
    }
}

struct Attention(Arc<AttentionPlan>);

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, q: &CpuStorage, ql: &Layout, kv: &CpuStorage, kvl: &Layout) -> Result<(CpuStorage, Shape)> {
        let plan = &*self.0;
        let (q, kv) = (slice(q, ql, "attention q")?, slice(kv, kvl, "attention kv")?);
        // Keys and values are rotated and laid out once a span and head, then shared by the span's tasks.
        let n_heads = plan.n_kv_heads;
        let each = (0..plan.spans.len() * n_heads).into_par_iter();
        let heads: Vec<Head> = each.map(|i| kernel::head(plan, &plan.spans[i / n_heads], kv, i % n_heads)).collect();
        let mut out = Vec::with_capacity(q.len());
        let mut tasks = Vec::new();
        let mut rest = &mut out.spare_capacity_mut()[..q.len()];
        for (span, heads) in plan.spans.iter().zip(heads.chunks_exact(n_heads.max(1))) {
            for start in span.queries.clone().step_by(QUERIES_PER_TASK) {
                let rows = start..span.queries.end.min(start + QUERIES_PER_TASK);
                let (chunk, tail) = rest.split_at_mut(rows.len() * plan.q_width());
                rest = tail;
                tasks.push((rows, heads, chunk));
            }
        }
        if !rest.is_empty() {
            candle_core::bail!("attention: {} values of q are in no span", rest.len());
        }
        tasks.into_par_iter().for_each(|(rows, heads, out)| kernel::attend(plan, heads, rows, q, filled(out, 0.0)));
        // SAFETY: the tasks' chunks were all of these values, and `filled` has set every one of them.
        unsafe { out.set_len(q.len()) };
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, kv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = AttentionGrad(Arc::clone(&self.0));
        let grads = q.contiguous()?.apply_op3_no_bwd(&kv.contiguous()?, &grad.contiguous()?, &op)?;
        let n = q.elem_count();
        let dq = grads.narrow(0, 0, n)?.reshape(q.shape())?;
        let dkv = grads.narrow(0, n, kv.elem_count())?.reshape(kv.shape())?;
        Ok((Some(dq), Some(dkv)))
    }
}

/// (q, kv, grad) to [dq | dkv], flat. Probabilities are computed again instead of being kept.
struct AttentionGrad(Arc<AttentionPlan>);

impl CustomOp3 for AttentionGrad {
    fn name(&self) -> &'static str {
        "attention-grad"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        kv: &CpuStorage,
        kvl: &Layout,
        g: &CpuStorage,
        gl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, kv, g) = (slice(q, ql, "q")?, slice(kv, kvl, "kv")?, slice(g, gl, "grad")?);
        let mut out = vec![0.0; q.len() + kv.len()];
        let (mut dq, mut dkv) = out.split_at_mut(q.len());
        let mut tasks = Vec::with_capacity(self.0.spans.len());
        for span in &self.0.spans {
            let (dq_span, dq_rest) = dq.split_at_mut(span.queries.len() * self.0.q_width());
            let (dkv_span, dkv_rest) = dkv.split_at_mut(span.keys.len() * self.0.kv_width());
            tasks.push((span, dq_span, dkv_span));
            (dq, dkv) = (dq_rest, dkv_rest);
        }
        tasks.into_par_iter().for_each(|(span, dq, dkv)| kernel::backward(&self.0, span, q, kv, g, dq, dkv));
        let len = out.len();
        Ok((CpuStorage::F32(out), Shape::from(len)))
    }
}

/// Where there is no kernel of ours.
fn elsewhere(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> Result<Tensor> {
    #[cfg(feature = "flash-attn")]
    if flash::applies(q, kv, plan) {
        return flash::attention(q, kv, plan);
    }
    composed(q, kv, plan)
}

/// The same of candle's differentiable operations, span by span.
fn composed(q: &Tensor, kv: &Tensor, plan: &AttentionPlan) -> Result<Tensor> {
    let (h, n_kv, d) = (plan.n_heads, plan.n_kv_heads, plan.head_dim);
    let tables = plan.tables.of(plan, q.device())?;
    let mut outs = Vec::with_capacity(plan.spans.len());
    for (span, bias) in plan.spans.iter().zip(&tables.bias) {
        let (nq, nk) = (span.queries.len(), span.keys.len());
        if nq == 0 {
            continue;
        }
        let q = q.i(span.queries.clone())?.reshape((nq, h, d))?.transpose(0, 1)?;
        let kv = kv.i(span.keys.clone())?.reshape((nk, 2, n_kv, d))?;
        let k = kv.i((.., 0))?.transpose(0, 1)?;
        let v = kv.i((.., 1))?.transpose(0, 1)?;
        let q = rotate(&q, &tables.queries.of(&span.queries)?)?;
        let k = rotate(&k, &tables.keys.of(&span.keys)?)?;
        let repeat = |x: Tensor| -> Result<Tensor> {
            let groups = h / n_kv;
            x.unsqueeze(1)?.broadcast_as((n_kv, groups, nk, d))?.reshape((h, nk, d))?.contiguous()
        };
        let scores = (q.contiguous()?.matmul(&repeat(k)?.transpose(1, 2)?)? * f64::from(plan.scale()))?;
        let scores = match bias {
            None => scores,
            Some(bias) => scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?,
        };
        let out = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&repeat(v)?)?;
        outs.push(out.transpose(0, 1)?.reshape((nq, h * d))?);
    }
    Tensor::cat(&outs, 0)
}

/// Half-split (NeoX) rotation of `x` `(heads, rows, head_dim)`, in f32 as the reference does it.
fn rotate(x: &Tensor, Rotation { cos, sin }: &Rotation) -> Result<Tensor> {
    let (dtype, half) = (x.dtype(), cos.dim(D::Minus1)?);
    let x = x.to_dtype(DType::F32)?;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], D::Minus1)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::models::nn::tests::close;

    fn plan(spans: &[(usize, usize)], heads: (usize, usize, usize), positions: Vec<u32>) -> Arc<AttentionPlan> {
        let (mut q, mut k) = (0, 0);
        let spans = spans
            .iter()
            .map(|&(nq, nk)| {
                let span = AttentionSpan { queries: q..q + nq, keys: k..k + nk };
                (q, k) = (q + nq, k + nk);
                span
            })
            .collect();
        let (n_heads, n_kv_heads, head_dim) = heads;
        let rope = Arc::new(RopeTable::new(128, head_dim, 10_000.0));
        let pattern = Pattern::Bidirectional;
        let tables = Tables::default();
        Arc::new(AttentionPlan { spans, positions, n_heads, n_kv_heads, head_dim, rope, pattern, tables })
    }

    #[test]
    fn tables_are_sent_once_for_all_layers_and_a_changed_plan_has_its_own() -> Result<()> {
        let plan = plan(&[(3, 5), (0, 2), (4, 4)], (2, 1, 8), vec![0, 2, 4, 0, 1, 2, 3]);
        let first = plan.tables.of(&plan, &Device::Cpu)?;
        assert!(Arc::ptr_eq(&first, &plan.tables.of(&plan, &Device::Cpu)?));
        assert!(first.bias.iter().all(Option::is_none));
        let causal = causal(&plan, 2);
        let bias = &causal.tables.of(&causal, &Device::Cpu)?.bias;
        assert_eq!(bias.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        Ok(())
    }

    fn causal(plan: &Arc<AttentionPlan>, block: usize) -> Arc<AttentionPlan> {
        Arc::new(AttentionPlan { pattern: Pattern::BlockCausal { block }, ..(**plan).clone() })
    }

    #[test]
    fn kernel_and_composition_agree_in_values_and_gradients() -> Result<()> {
        // Ragged spans, pruned queries, grouped heads, head widths that fill and that do not fill a vector.
        for heads in [(4, 4, 32), (4, 2, 16), (2, 1, 40)] {
            let positions = (0..5).chain([3, 7, 8]).chain(0..70).collect();
            let plan = plan(&[(5, 5), (3, 9), (70, 70)], heads, positions);
            for plan in [Arc::clone(&plan), causal(&plan, 4), causal(&plan, 1)] {
                let q = Var::from_tensor(&Tensor::randn(0f32, 1.0, (78, plan.q_width()), &Device::Cpu)?)?;
                let kv = Var::from_tensor(&Tensor::randn(0f32, 1.0, (84, plan.kv_width()), &Device::Cpu)?)?;
                let probe = Tensor::randn(0f32, 1.0, (78, plan.q_width()), &Device::Cpu)?;
                let (fused, plain) = (attention(&q, &kv, &plan)?, composed(&q, &kv, &plan)?);
                close(&fused, &plain, 1e-5)?;
                let (a, b) = ((fused * &probe)?.sum_all()?.backward()?, (plain * &probe)?.sum_all()?.backward()?);
                for var in [&q, &kv] {
                    close(a.get(var).unwrap(), b.get(var).unwrap(), 2e-4)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn blocks_do_not_see_what_follows_them() -> Result<()> {
        let short = causal(&plan(&[(12, 12)], (2, 1, 32), (0..12).collect()), 4);
        let long = causal(&plan(&[(12, 17)], (2, 1, 32), (0..12).collect()), 4);
        let q = Tensor::randn(0f32, 1.0, (12, 64), &Device::Cpu)?;
        let kv = Tensor::randn(0f32, 1.0, (17, 64), &Device::Cpu)?;
        let before = attention(&q, &kv.narrow(0, 0, 12)?, &short)?.to_vec2::<f32>()?;
        // Bit for bit: this is what makes a cache of finished blocks exact.
        assert_eq!(before, attention(&q, &kv, &long)?.to_vec2::<f32>()?);
        let open = attention(&q, &kv, &plan(&[(12, 17)], (2, 1, 32), (0..12).collect()))?.to_vec2::<f32>()?;
        assert_ne!(before, open);
        Ok(())
    }

    #[test]
    fn a_query_does_not_know_its_neighbours() -> Result<()> {
        let full = plan(&[(50, 50), (33, 33)], (3, 3, 32), (0..50).chain(0..33).collect());
        let q = Tensor::randn(0f32, 1.0, (83, 96), &Device::Cpu)?;
        let kv = Tensor::randn(0f32, 1.0, (83, 192), &Device::Cpu)?;
        let all = attention(&q, &kv, &full)?.to_vec2::<f32>()?;
        let picked: Vec<u32> = vec![3, 4, 9, 17, 31, 32, 32 + 17];
        let alone = plan(&[(7, 50)], (3, 3, 32), picked.clone());
        let index = Tensor::new(picked.as_slice(), &Device::Cpu)?;
        let some = attention(&q.index_select(&index, 0)?, &kv.narrow(0, 0, 50)?, &alone)?.to_vec2::<f32>()?;
        for (row, &at) in some.iter().zip(&picked) {
            assert_eq!(row, &all[at as usize]);
        }
        Ok(())
    }

    #[test]
    fn misfits_are_refused() -> Result<()> {
        let plan = plan(&[(4, 4)], (2, 2, 8), (0..4).collect());
        let q = Tensor::zeros((4, 16), candle_core::DType::F32, &Device::Cpu)?;
        let kv = |rows, width| Tensor::zeros((rows, width), candle_core::DType::F32, &Device::Cpu);
        assert!(attention(&q, &kv(4, 32)?, &plan).is_ok());
        assert!(attention(&q, &kv(5, 32)?, &plan).is_err());
        assert!(attention(&q, &kv(4, 16)?, &plan).is_err());
        let far = super::tests::plan(&[(1, 1)], (2, 2, 8), vec![128]);
        assert!(attention(&q.narrow(0, 0, 1)?, &kv(1, 32)?, &far).is_err());
        Ok(())
    }
}
