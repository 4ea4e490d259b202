//! Keys and values that outlive the forward that computed them, and where the rows of a span belong in its sequence.
//!
//! Lives here: what is kept, and joining it with the keys and values of a batch. Does not: who keeps what for how long
//! (`diffusion::cache`).

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{ModelError, Packed, Span};

/// Keys and values of the first positions of a sequence, of every layer. Immutable: several canvases may share them.
#[derive(Debug)]
pub struct Kept {
    /// Per layer, keys, then values `(positions, 2·n_kv_heads·head_dim)`; keys are not rotated yet (positions never move,
    /// so that is done with all others).
    layers: Vec<Tensor>,
    positions: usize,
    bytes: usize,
}

/// What each span of a batch keeps; `None` where nothing is to be kept.
pub type KeptSpans = Vec<Option<Arc<Kept>>>;

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Kept {}

impl Kept {
    pub(crate) fn new(layers: Vec<Tensor>, positions: usize) -> Self {
        let bytes = layers.iter().map(|layer| layer.elem_count() * layer.dtype().size_in_bytes()).sum();
        Self { layers, positions, bytes }
    }

    /// How many positions, from the first on.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The part of the first `positions`; it shares their memory, and counts it once more.
    ///
    /// # Errors
    /// When there are not so many.
    pub(crate) fn first(self: &Arc<Self>, positions: usize) -> Result<Arc<Self>> {
        if positions == self.positions {
            return Ok(Arc::clone(self));
        }
        let layers = self.layers.iter().map(|layer| layer.narrow(0, 0, positions)).collect::<Result<_>>()?;
        Ok(Arc::new(Self::new(layers, positions)))
    }

    /// Zeros of the same shape, in next to no memory: what is timed on a batch does not depend on the values.
    fn blank(&self) -> Result<Self> {
        let blank = |layer: &Tensor| layer.narrow(0, 0, 1)?.zeros_like()?.broadcast_as(layer.shape());
        let layers = self.layers.iter().map(blank).collect::<Result<_>>()?;
        Ok(Self { layers, positions: self.positions, bytes: 0 })
    }
}

/// What the rows of a span see besides themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Past {
    /// Nothing.
    #[default]
    None,
    /// What was kept of the sequence.
    Kept(Arc<Kept>),
    /// The rows of an earlier span of the same batch, which holds the sequence from its first position on.
    Span(usize),
}

/// Where a span is in its sequence. The default is a whole sequence.
///
/// Its rows see the keys and values of all positions of their `past`, their own in place of those at their positions or
/// after them. Appending to finished blocks (SDAR), a suffix after a prefix (Fast-dLLM's prefix cache) and a block inside
/// a sequence (its dual cache) are all of this one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Position of its first row.
    pub offset: usize,
    /// What is known of the sequence; reaches at least to `offset`.
    pub past: Past,
    /// Keys and values of so many positions, from the first on, are handed back; 0 for none.
    pub keep: usize,
}

impl Place {
    fn is_whole(&self) -> bool {
        self.offset == 0 && self.past == Past::None
    }
}

impl Packed {
    /// Positions that the rows of span `index` see.
    pub(super) fn reach(&self, index: usize) -> usize {
        let end = self.places[index].offset + self.spans[index].len;
        end.max(self.past(index))
    }

    /// Positions of the past of span `index`.
    fn past(&self, index: usize) -> usize {
        match &self.places[index].past {
            Past::None => 0,
            Past::Kept(kept) => kept.positions,
            Past::Span(earlier) => self.spans[*earlier].len,
        }
    }

    /// Refuses spans whose past does not reach them, and wishes beyond what they see.
    pub(super) fn check_places(&self) -> std::result::Result<(), ModelError> {
        if self.places.len() != self.spans.len() {
            let (places, spans) = (self.places.len(), self.spans.len());
            return Err(ModelError::Input(format!("{places} places for {spans} sequences; one each is needed")));
        }
        for (index, place) in self.places.iter().enumerate() {
            let whole = |&earlier: &usize| earlier < index && self.places[earlier].is_whole();
            let known = match &place.past {
                Past::Span(earlier) => whole(earlier),
                _ => true,
            };
            if !known || place.offset > self.past(index) || place.keep > self.reach(index) {
                let (offset, keep) = (place.offset, place.keep);
                return Err(ModelError::Input(format!(
                    "span {index} at {offset}, keeping {keep}, does not fit its past"
                )));
            }
        }
        Ok(())
    }

    /// Positions that are seen without being evaluated.
    #[must_use]
    pub fn reused(&self) -> usize {
        let kept = |&(_, place): &(usize, &Place)| matches!(place.past, Past::Kept(_));
        let spans = self.places.iter().enumerate().filter(kept);
        spans.map(|(index, _)| self.reach(index) - self.spans[index].len).sum()
    }

    /// Whether any span is less than a whole sequence.
    pub(super) fn has_parts(&self) -> bool {
        !self.places.iter().all(Place::is_whole)
    }

    /// Keys and values of a layer as the spans see them, one span after another: `kv` of the rows, and what is known.
    pub(super) fn join(&self, kv: &Tensor, layer: usize) -> Result<Tensor> {
        let rows = |span: &Span| kv.narrow(0, span.start, span.len);
        let mut parts = Vec::with_capacity(self.spans.len());
        for (index, (span, place)) in self.spans.iter().zip(&self.places).enumerate() {
            let past = match &place.past {
                Past::None => None,
                Past::Kept(kept) => kept.layers.get(layer).cloned(),
                Past::Span(earlier) => Some(rows(&self.spans[*earlier])?),
            };
            let end = place.offset + span.len;
            if let Some(past) = past.as_ref().filter(|_| place.offset > 0) {
                parts.push(past.narrow(0, 0, place.offset)?);
            }
            parts.push(rows(span)?);
            if let Some(past) = past.filter(|_| self.past(index) > end) {
                parts.push(past.narrow(0, end, self.past(index) - end)?);
            }
        }
        Tensor::cat(&parts, 0)
    }

    /// What the spans wish to have kept, of the joined keys and values of every layer.
    pub(super) fn kept(&self, layers: &[Tensor]) -> Result<KeptSpans> {
        let mut start = 0;
        let keep = |(index, place): (usize, &Place)| {
            let from = start;
            start += self.reach(index);
            if place.keep == 0 {
                return Ok(None);
            }
            // A copy of its own: a view would hold the whole batch.
            let copy = |layer: &Tensor| Ok(layer.narrow(0, from, place.keep)?.force_contiguous()?.detach());
            let layers = layers.iter().map(copy).collect::<Result<_>>()?;
            Ok(Some(Arc::new(Kept::new(layers, place.keep))))
        };
        self.places.iter().enumerate().map(keep).collect()
    }

    /// The same shapes without their contents: ids are 0, and nothing that was kept is held.
    ///
    /// # Errors
    /// When the device fails.
    pub fn blank(&self) -> std::result::Result<Self, ModelError> {
        let mut blank = Self { ids: vec![0; self.rows()], ..self.clone() };
        for place in &mut blank.places {
            place.keep = 0;
            if let Past::Kept(kept) = &place.past {
                place.past = Past::Kept(Arc::new(kept.blank()?));
            }
        }
        Ok(blank)
    }
}
