//! The rows' way through the layers: which of them attend to which keys, which are adapted how, and which are read.

use std::sync::Arc;

use candle_core::Tensor;

use super::Transformer;
use crate::models::lora::Runs;
use crate::models::nn::attention::{AttentionPlan, AttentionSpan, Tables};
use crate::models::{ModelError, Packed, Span};

/// Which rows attend to which, and which are adapted how.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) attention: Arc<AttentionPlan>,
    pub(super) runs: Runs,
}

/// The rows' way through the layers.
#[derive(Debug)]
pub(super) struct Route {
    /// All rows: every layer but the last.
    pub(super) full: Plan,
    /// The needed rows only.
    pub(super) pruned: Plan,
    /// Which these are.
    pub(super) needed: Tensor,
    /// The spans, when some are parts of sequences.
    pub(super) joined: Option<Packed>,
}

impl Transformer {
    /// Where the rows of a batch go.
    pub(super) fn route(&self, packed: &Packed) -> Result<Route, ModelError> {
        let read = self.read_rows(packed);
        let needed = Tensor::from_slice(&read, read.len(), self.device())?;
        let spans = || Packed { spans: packed.spans.clone(), places: packed.places.clone(), ..Packed::default() };
        let joined = packed.has_parts().then(spans);
        Ok(Route { full: self.plan(packed, None), pruned: self.plan(packed, Some(&read)), needed, joined })
    }

    /// The rows whose hidden states predict `packed.needed`, ascending. Where logits are shifted the first position of
    /// a sequence is predicted from its own row, so that row may come twice.
    fn read_rows(&self, packed: &Packed) -> Vec<u32> {
        if !self.config.variant.shifted {
            return packed.needed.clone();
        }
        let mut spans = packed.spans.iter().peekable();
        let row = |&row: &u32| {
            while spans.next_if(|span| span.start + span.len <= row as usize).is_some() {}
            let first = spans.peek().is_some_and(|span| span.start == row as usize);
            if first { row } else { row.saturating_sub(1) }
        };
        packed.needed.iter().map(row).collect()
    }

    /// The rows of `read`, or all.
    fn plan(&self, packed: &Packed, read: Option<&[u32]>) -> Plan {
        let (mut positions, mut runs, mut keys) = (Vec::new(), Runs::default(), 0);
        let spans = packed.spans.iter().zip(&packed.adapters).enumerate().map(|(index, (span, adapter))| {
            let from = positions.len();
            let offset = packed.places[index].offset as u32;
            if let Some(read) = read {
                let (start, end) = (span.start as u32, (span.start + span.len) as u32);
                let first = read.partition_point(|&row| row < start);
                let last = read.partition_point(|&row| row < end);
                positions.extend(read[first..last].iter().map(|row| row - start + offset));
            } else {
                positions.extend(offset..offset + span.len as u32);
            }
            runs.push(positions.len() - from, adapter.as_ref());
            let first = keys;
            keys += packed.reach(index);
            AttentionSpan { queries: from..positions.len(), keys: first..keys }
        });
        let spans = spans.collect();
        let attention = AttentionPlan {
            spans,
            positions,
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim(),
            rope: Arc::clone(&self.rope),
            pattern: self.config.variant.pattern,
            tables: Tables::default(),
        };
        Plan { attention: Arc::new(attention), runs }
    }

    pub(super) fn check(&self, packed: &Packed) -> Result<(), ModelError> {
        let (rows, limit) = (packed.rows(), self.config.max_sequence_length);
        packed.check_places()?;
        if packed.has_parts() && self.config.variant.shifted {
            return Err(ModelError::Input(
                "logits are shifted: a part of a sequence lacks what its first row is read from".into(),
            ));
        }
        let reach = |(index, span): (usize, &Span)| if span.len == 0 { 0 } else { packed.reach(index) };
        if let Some(len) = packed.spans.iter().enumerate().map(reach).find(|len| !(1..=limit).contains(len)) {
            return Err(ModelError::Input(format!("a sequence of {len} positions; the model takes 1 to {limit}")));
        }
        if let Some(id) = packed.ids.iter().find(|&&id| id as usize >= self.config.embedding_size) {
            let size = self.config.embedding_size;
            return Err(ModelError::Input(format!("token id {id} is outside the vocabulary of {size}")));
        }
        if packed.adapters.len() != packed.spans.len() {
            let (adapters, spans) = (packed.adapters.len(), packed.spans.len());
            return Err(ModelError::Input(format!("{adapters} adapters for {spans} sequences; one each is needed")));
        }
        let ascending = packed.needed.windows(2).all(|w| w[0] < w[1]);
        if !ascending || packed.needed.last().is_none_or(|&last| last as usize >= rows) {
            return Err(ModelError::Input(format!("needed rows must ascend within the {rows} rows and not be empty")));
        }
        Ok(())
    }
}
