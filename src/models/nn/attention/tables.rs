//! What attention away from the CPU needs of a plan, on its device: sent there once in a forward, not once in a layer, for
//! each time the host waits.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use super::{AttentionPlan, AttentionSpan, Pattern, RopeTable};

/// Made when they are first asked for.
#[derive(Debug, Default)]
pub(crate) struct Tables(OnceLock<Arc<OnDevice>>);

/// Of a plan that may be changed before it is used.
impl Clone for Tables {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Tables {
    /// Those of `plan`, which has them, on `device`, where all of its forward is.
    pub(super) fn of(&self, plan: &AttentionPlan, device: &Device) -> Result<Arc<OnDevice>> {
        if let Some(made) = self.0.get() {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(OnDevice::new(plan, device)?);
        Ok(Arc::clone(self.0.get_or_init(|| made)))
    }
}

/// A plan's numbers as tensors.
#[derive(Debug)]
pub(super) struct OnDevice {
    /// Of all query rows.
    pub(super) queries: Rotation,
    /// Of all rows of keys.
    pub(super) keys: Rotation,
    /// Per span, unless all see all: 0 where a query sees a key, −∞ where it does not, f32 `(1, queries, keys)`.
    pub(super) bias: Vec<Option<Tensor>>,
    /// Where spans end among the queries and among the keys, 0 first, u32 `(spans + 1)`.
    #[cfg(feature = "flash-attn")]
    pub(super) ends: [Tensor; 2],
}

impl OnDevice {
    fn new(plan: &AttentionPlan, device: &Device) -> Result<Self> {
        let keys: Vec<u32> = plan.spans.iter().flat_map(|span| 0..span.keys.len() as u32).collect();
        let bias = |span: &AttentionSpan| match plan.pattern {
            Pattern::BlockCausal { .. } if !span.queries.is_empty() => bias(plan, span, device).map(Some),
            _ => Ok(None),
        };
        Ok(Self {
            queries: Rotation::new(&plan.positions, &plan.rope, device)?,
            keys: Rotation::new(&keys, &plan.rope, device)?,
            bias: plan.spans.iter().map(bias).collect::<Result<_>>()?,
            #[cfg(feature = "flash-attn")]
            ends: [
                ends(plan.spans.iter().map(|span| span.queries.end), device)?,
                ends(plan.spans.iter().map(|span| span.keys.end), device)?,
            ],
        })
    }
}

/// cos and sin of rows' angles, `(1, rows, head_dim / 2)` each.
#[derive(Debug)]
pub(super) struct Rotation {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rotation {
    fn new(positions: &[u32], rope: &RopeTable, device: &Device) -> Result<Self> {
        let table = |pick: fn(&RopeTable, usize) -> &[f32]| {
            let values: Vec<f32> = positions.iter().flat_map(|&p| pick(rope, p as usize)).copied().collect();
            Tensor::from_vec(values, (1, positions.len(), rope.half), device)
        };
        Ok(Self { cos: table(|rope, p| rope.at(p).0)?, sin: table(|rope, p| rope.at(p).1)? })
    }

    /// Of some of the rows.
    pub(super) fn of(&self, rows: &Range<usize>) -> Result<Self> {
        let some = |table: &Tensor| table.narrow(1, rows.start, rows.len());
        Ok(Self { cos: some(&self.cos)?, sin: some(&self.sin)? })
    }
}

fn bias(plan: &AttentionPlan, span: &AttentionSpan, device: &Device) -> Result<Tensor> {
    let keys = span.keys.len();
    let row = |query: usize| {
        let visible = plan.visible(query, keys);
        (0..keys).map(move |key| if key < visible { 0.0f32 } else { f32::NEG_INFINITY })
    };
    let values: Vec<f32> = span.queries.clone().flat_map(row).collect();
    Tensor::from_vec(values, (1, span.queries.len(), keys), device)
}

#[cfg(feature = "flash-attn")]
fn ends(of: impl Iterator<Item = usize>, device: &Device) -> Result<Tensor> {
    let ends: Vec<u32> = std::iter::once(0).chain(of.map(|end| end as u32)).collect();
    let n = ends.len();
    Tensor::from_vec(ends, n, device)
}
