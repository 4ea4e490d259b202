//! Packing: which rows a step feeds the model, and which rows of logits each position reads back.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::cache::Known;
use super::canvas::Canvas;
use super::denoise::Savings;
use super::memo::Memo;
use crate::models::kept::{Past, Place};
use crate::models::lora::Lora;
use crate::models::{Backbone, ModelError, Packed};

/// Where a row of logits comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Row of the hidden states.
    Hidden(u32),
    /// Known from an earlier tick.
    Known(Arc<[f32]>),
}

/// One position to draw.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Index of its canvas in the step.
    pub(crate) canvas: usize,
    /// Its position there.
    pub(crate) position: u32,
    conditional: u32,
    pub(crate) unconditional: Option<Source>,
}

/// The draws of one canvas and the rows it is charged for.
pub(crate) struct Group {
    pub(crate) canvas: usize,
    pub(crate) tasks: Range<usize>,
    pub(crate) rows: usize,
}

/// A packed step.
pub(crate) struct Batch {
    pub(crate) packed: Packed,
    /// Text first, then images; the tasks of a canvas lie together, positions ascending.
    pub(crate) tasks: Vec<Task>,
    pub(crate) groups: Vec<Group>,
    /// Which canvas keeps the keys and values of which span.
    pub(crate) keeps: Vec<(usize, usize)>,
    /// Per group, what the head is evaluated on.
    vocabs: Vec<Range<u32>>,
}

/// The sequences of a step before they are laid out; identical fresh ones are taken once.
#[derive(Default)]
struct Sequences<'a> {
    list: Vec<Part<'a>>,
    /// Those that may be shared.
    fresh: HashMap<(&'a [u32], Kin), usize>,
}

/// A sequence, or a part of one, of which `needed` positions are read.
struct Part<'a> {
    /// Of its rows.
    ids: &'a [u32],
    needed: Vec<u32>,
    adapter: Option<Arc<Lora>>,
    place: Place,
}

/// Where the rows of a canvas are.
struct Own {
    span: usize,
    /// How many were added.
    rows: usize,
    /// The span whose keys and values it keeps.
    keeps: Option<usize>,
}

/// What else than their ids must be equal for two sequences to be one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kin {
    /// The head reads it as an image.
    image: bool,
    adapter: Option<u64>,
    /// Positions whose keys and values are kept.
    keep: usize,
    /// What comes before its rows, by address.
    past: Option<usize>,
}

impl Savings {
    /// What a canvas' sequence must have in common with another to be evaluated once for both; nothing is shared later.
    fn share(self, canvas: &Canvas, place: &Place) -> Option<Kin> {
        let past = match &place.past {
            Past::Kept(kept) => Some(Arc::as_ptr(kept).addr()),
            Past::None | Past::Span(_) => None,
        };
        let kin = Kin { image: canvas.is_image(), adapter: canvas.adapter().map(|a| a.id()), keep: place.keep, past };
        (self.share_first_step && canvas.is_fresh()).then_some(kin)
    }
}

impl<'a> Sequences<'a> {
    /// Adds a sequence; returns its index and the rows that it adds to the batch. With a `share` key an equal sequence
    /// is added once.
    fn add(&mut self, part: Part<'a>, share: Option<Kin>) -> (usize, usize) {
        if let Some(&index) = share.and_then(|kin| self.fresh.get(&(part.ids, kin))) {
            self.list[index].needed.extend(part.needed);
            return (index, 0);
        }
        let (index, rows) = (self.list.len(), part.ids.len());
        if let Some(kin) = share {
            self.fresh.insert((part.ids, kin), index);
        }
        self.list.push(part);
        (index, rows)
    }

    /// Adds the rows of a canvas that its next step evaluates, guidance apart; and before them, when its cache was let go,
    /// what that is computed from.
    fn add_own(&mut self, canvas: &'a Canvas, savings: Savings) -> Own {
        let part = |ids, needed, place| Part { ids, needed, adapter: canvas.adapter().cloned(), place };
        let feed = canvas.feed(savings.keep_finished_blocks);
        let (mut again, mut keeps) = (0, None);
        let past = match feed.past {
            Known::Nothing => Past::None,
            Known::Kept(kept) => Past::Kept(kept),
            Known::Lost { keep } => {
                let whole = part(canvas.cache.entry(), Vec::new(), Place { keep, ..Place::default() });
                let (span, rows) = self.add(whole, None);
                (again, keeps) = (rows, Some(span));
                Past::Span(span)
            }
        };
        let place = Place { offset: feed.rows.start, past, keep: feed.keep };
        let ids = &canvas.ids()[feed.rows];
        let share = savings.share(canvas, &place);
        let (span, rows) = self.add(part(ids, canvas.due().to_vec(), place), share);
        Own { span, rows: rows + again, keeps: keeps.or((feed.keep > 0).then_some(span)) }
    }

    /// The packed batch, and per sequence its needed positions and the hidden row of the first of them.
    fn pack(self) -> (Packed, Vec<(Vec<u32>, u32)>) {
        let mut packed = Packed::default();
        let mut rows = Vec::with_capacity(self.list.len());
        for Part { ids, mut needed, adapter, place } in self.list {
            needed.sort_unstable();
            needed.dedup();
            let first = packed.needed.len() as u32;
            packed.push_part(ids, needed.iter().copied(), adapter, place);
            rows.push((needed, first));
        }
        (packed, rows)
    }
}

impl Batch {
    /// Lays out one step of every canvas.
    pub(crate) fn pack(canvases: &[&mut Canvas], savings: Savings, memo: &Memo) -> Self {
        let mut order: Vec<usize> = (0..canvases.len()).collect();
        // Text before images for the head, and rows of one adapter together for the products.
        order.sort_by_key(|&i| (canvases[i].is_image(), canvases[i].adapter().map(|a| a.id())));
        let mut sequences = Sequences::default();
        let mut tasks = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        let (mut vocabs, mut keeps) = (Vec::new(), Vec::new());
        // Rows are sequence indices until the sequences are laid out.
        for &index in &order {
            let canvas = &*canvases[index];
            let Own { span: own, mut rows, keeps: kept } = sequences.add_own(canvas, savings);
            keeps.extend(kept.map(|span| (index, span)));
            let known = if savings.memoise_unconditional { memo.find(canvas) } else { None };
            let other = canvas.unconditional().filter(|_| known.is_none()).map(|u| {
                let needed = canvas.due().iter().map(|&p| u.position(p)).collect();
                let part = Part { ids: &u.ids, needed, adapter: canvas.adapter().cloned(), place: Place::default() };
                let (other, more) = sequences.add(part, savings.share(canvas, &Place::default()));
                rows += more;
                other
            });
            let first = tasks.len();
            tasks.extend(canvas.due().iter().enumerate().map(|(i, &position)| Task {
                canvas: index,
                position,
                conditional: own as u32,
                unconditional: match (&known, other) {
                    (Some(rows), _) => Some(Source::Known(rows[i].clone())),
                    (None, other) => other.map(|s| Source::Hidden(s as u32)),
                },
            }));
            groups.push(Group { canvas: index, tasks: first..tasks.len(), rows });
            vocabs.push(canvas.vocab());
        }
        let (packed, laid_out) = sequences.pack();
        let row = |sequence: u32, position: u32| {
            let (needed, first) = &laid_out[sequence as usize];
            first + needed.partition_point(|&p| p < position) as u32
        };
        for task in &mut tasks {
            task.conditional = row(task.conditional, task.position);
            if let (Some(Source::Hidden(source)), Some(u)) =
                (&mut task.unconditional, canvases[task.canvas].unconditional())
            {
                *source = row(*source, u.position(task.position));
            }
        }
        Self { packed, tasks, groups, keeps, vocabs }
    }

    /// The tasks in runs whose logits take at most `cap` bytes (a single task may take more).
    pub(crate) fn chunks(&self, cap: usize) -> Vec<Chunk<'_>> {
        let mut chunks: Vec<Range<usize>> = Vec::new();
        let mut bytes = 0;
        for (group, vocab) in self.groups.iter().zip(&self.vocabs) {
            for i in group.tasks.clone() {
                let hidden = matches!(self.tasks[i].unconditional, Some(Source::Hidden(_)));
                let cost = (1 + usize::from(hidden)) * vocab.len() * size_of::<f32>();
                match chunks.last_mut() {
                    Some(last) if bytes + cost <= cap => last.end = i + 1,
                    _ => {
                        chunks.push(i..i + 1);
                        bytes = 0;
                    }
                }
                bytes += cost;
            }
        }
        chunks.into_iter().map(|range| Chunk::new(self, range)).collect()
    }
}

/// Tasks whose logits are on the host at the same time: at most one head product for each vocabulary, one copy.
pub(crate) struct Chunk<'a> {
    pub(crate) tasks: &'a [Task],
    /// Per vocabulary (text, image): the ids and the distinct hidden rows, ascending.
    heads: Vec<(Range<u32>, Vec<u32>)>,
    /// Hidden row to its place in the flat logits.
    places: HashMap<u32, Range<usize>>,
}

impl<'a> Chunk<'a> {
    fn new(batch: &'a Batch, range: Range<usize>) -> Self {
        let mut heads: Vec<(Range<u32>, Vec<u32>)> = Vec::new();
        for (group, vocab) in batch.groups.iter().zip(&batch.vocabs) {
            let tasks = group.tasks.start.max(range.start)..group.tasks.end.min(range.end);
            if tasks.is_empty() {
                continue;
            }
            if heads.last().is_none_or(|(v, _)| v != vocab) {
                heads.push((vocab.clone(), Vec::new()));
            }
            if let Some((_, rows)) = heads.last_mut() {
                rows.extend(batch.tasks[tasks].iter().flat_map(Task::hidden_rows));
            }
        }
        let mut places = HashMap::new();
        let mut offset = 0;
        for (vocab, rows) in &mut heads {
            rows.sort_unstable();
            rows.dedup();
            for &row in rows.iter() {
                places.insert(row, offset..offset + vocab.len());
                offset += vocab.len();
            }
        }
        Self { tasks: &batch.tasks[range], heads, places }
    }

    /// The logits of all its rows on the host, flat.
    pub(crate) fn logits(&self, model: &dyn Backbone, hidden: Option<&Tensor>) -> Result<Vec<f32>, ModelError> {
        let Some(hidden) = hidden else { return Ok(Vec::new()) };
        let mut parts = Vec::with_capacity(self.heads.len());
        for (vocab, rows) in &self.heads {
            let chosen = select_rows(hidden, rows)?;
            parts.push(model.logits(&chosen, vocab.clone())?.flatten_all()?);
        }
        let flat = if let [only] = parts.as_slice() { only.clone() } else { Tensor::cat(&parts, 0)? };
        let flat = flat.to_vec1::<f32>()?;
        let expected: usize = self.heads.iter().map(|(vocab, rows)| vocab.len() * rows.len()).sum();
        if flat.len() != expected {
            return Err(ModelError::Input(format!("the head gave {} logits, {expected} expected", flat.len())));
        }
        Ok(flat)
    }

    /// The conditional row of a task.
    pub(crate) fn conditional<'l>(&self, logits: &'l [f32], task: &Task) -> &'l [f32] {
        self.row(logits, task.conditional)
    }

    /// The unconditional row of a task, with guidance.
    pub(crate) fn unconditional<'l>(&self, logits: &'l [f32], task: &'l Task) -> Option<&'l [f32]> {
        match task.unconditional.as_ref()? {
            Source::Hidden(row) => Some(self.row(logits, *row)),
            Source::Known(row) => Some(row),
        }
    }

    fn row<'l>(&self, logits: &'l [f32], row: u32) -> &'l [f32] {
        self.places.get(&row).and_then(|place| logits.get(place.clone())).unwrap_or_default()
    }
}

impl Task {
    fn hidden_rows(&self) -> impl Iterator<Item = u32> {
        let other = match self.unconditional {
            Some(Source::Hidden(row)) => Some(row),
            _ => None,
        };
        std::iter::once(self.conditional).chain(other)
    }
}

/// Rows of `hidden` `(needed, d)`; all of them without a copy.
fn select_rows(hidden: &Tensor, rows: &[u32]) -> Result<Tensor, ModelError> {
    if rows.len() == hidden.dim(0)? {
        return Ok(hidden.clone());
    }
    let index = Tensor::new(rows, &Device::Cpu)?.to_device(hidden.device())?;
    Ok(hidden.index_select(&index, 0)?)
}
