//! Unconditional logits of first steps, kept from one request to the next.
//!
//! Before its first step the unconditional side of a canvas is the same for every request of a shape: all masks
//! (text), or the empty prompt's frame around all masks (images). Its rows are pure functions of those ids.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Chunk, Source};
use super::canvas::Canvas;

/// Most bytes kept; when they are spent everything is forgotten, and what would take more alone is not begun. A picture of
/// MMaDA, 1024 cells of 8192 codes, takes half of it.
const CAP: usize = 64 << 20;

/// Rows of one unconditional sequence by position, and by whether they are an image's codes.
type Rows = HashMap<(u32, bool), Arc<[f32]>>;

/// The rows that are known, of one base with any adapters.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// By adapter, then by ids.
    known: HashMap<Option<u64>, HashMap<Vec<u32>, Rows>>,
    bytes: usize,
}

impl Memo {
    /// The unconditional rows of a canvas' next step, if all are known.
    pub(crate) fn find(&self, canvas: &Canvas) -> Option<Vec<Arc<[f32]>>> {
        let side = canvas.unconditional().filter(|_| canvas.is_fresh())?;
        let rows = self.known.get(&adapter(canvas))?.get(&side.ids)?;
        canvas.due().iter().map(|&p| rows.get(&(side.position(p), canvas.is_image())).cloned()).collect()
    }

    /// Keeps what a tick found out. Called before the canvases commit.
    pub(crate) fn keep(&mut self, chunk: &Chunk<'_>, logits: &[f32], canvases: &[&mut Canvas]) {
        for task in chunk.tasks {
            let canvas = &*canvases[task.canvas];
            let (true, Some(side), Some(Source::Hidden(_))) =
                (canvas.is_fresh(), canvas.unconditional(), &task.unconditional)
            else {
                continue;
            };
            let Some(row) = chunk.unconditional(logits, task) else { continue };
            let cost = size_of_val(row);
            if cost * canvas.due().len() > CAP {
                continue;
            }
            if self.bytes + cost > CAP {
                *self = Self::default();
            }
            let known = self.known.entry(adapter(canvas)).or_default();
            if !known.contains_key(&side.ids) {
                known.insert(side.ids.clone(), Rows::new());
                self.bytes += size_of_val(side.ids.as_slice());
            }
            if let Some(rows) = known.get_mut(&side.ids)
                && rows.insert((side.position(task.position), canvas.is_image()), row.into()).is_none()
            {
                self.bytes += cost;
            }
        }
    }
}

fn adapter(canvas: &Canvas) -> Option<u64> {
    canvas.adapter().map(|adapter| adapter.id())
}
