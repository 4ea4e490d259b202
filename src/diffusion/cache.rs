//! Keys and values between steps: what a canvas evaluates when some are known, and how many are held in all.
//!
//! A cache never decides a result, only what it costs to compute. Two ways of denoising use one:
//!
//! - `exact`, where attention goes by blocks (SDAR): finished blocks see nothing of what follows them, so their keys and
//!   values never change. They are appended when the next block begins, in its first forward. They are also those of any
//!   other sequence that begins with the same ids: a request with a known beginning (a system prompt, a conversation so
//!   far) takes its blocks over.
//! - `prefix` and `dual` (Fast-dLLM, arXiv 2505.22618), where all positions see each other: a block's first forward
//!   evaluates the whole canvas; the following ones see its keys and values, as stale as they are, outside of the suffix
//!   (`prefix`) or of the block (`dual`). This is an approximation, so a client asks for it by name. With a vicinity
//!   (dInfer, arXiv 2510.08666) they evaluate the block's neighbours, too, whose keys and values are then not stale.
//!
//! What is kept is a function of the ids at the block's first forward, which the canvas remembers (a few kilobytes). A
//! cache that was let go, or for which there was no room, is therefore computed again from these ids, as one more span of
//! the same packed forward. So there is nothing to wait for, preemption costs nothing but that span, and a canvas gets the
//! same tokens whatever was held when.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::params::Fidelity;
use super::schedule::Block;
use crate::models::kept::Kept;

/// Ticks after which what a canvas has not used makes room for others. Those that take turns keep theirs: exchanging them
/// at every tick would cost more than it saves.
const IDLE: u64 = 16;

/// What a step evaluates of a canvas.
#[derive(Debug, Clone)]
pub(crate) struct Feed {
    /// The positions.
    pub(crate) rows: Range<usize>,
    /// What is known of the others.
    pub(crate) past: Known,
    /// The first so many positions' keys and values are to be kept.
    pub(crate) keep: usize,
}

/// What is known besides the rows that are evaluated.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// Nothing: the rows begin at the first position, and what follows them does not matter.
    Nothing,
    /// Keys and values.
    Kept(Arc<Kept>),
    /// They have been let go: these ids have to be evaluated first, to keep the first so many positions'.
    Lost { keep: usize },
}

/// The cache of one canvas.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cache {
    fidelity: Fidelity,
    /// Positions on each side of a block that are evaluated with it.
    vicinity: usize,
    /// Length of the blocks that attention goes by.
    causal: Option<usize>,
    /// Ids at the first forward of the block that is being denoised; empty before it, and for `exact`.
    entry: Vec<u32>,
    kept: Weak<Kept>,
}

/// Where a canvas is, as far as its cache has to know.
pub(crate) struct Stand<'a> {
    pub(crate) masked: &'a [bool],
    /// Positions that the step draws, ascending.
    pub(crate) due: &'a [u32],
    /// The block that is being denoised.
    pub(crate) block: Option<Range<usize>>,
}

impl Cache {
    pub(crate) fn new(fidelity: Fidelity, vicinity: usize, causal: Option<usize>) -> Self {
        Self { fidelity, vicinity, causal, ..Self::default() }
    }

    /// The ids at the block's first forward.
    pub(crate) fn entry(&self) -> &[u32] {
        &self.entry
    }

    /// What the next step evaluates.
    pub(crate) fn feed(&self, stand: &Stand<'_>, finished_blocks: bool) -> Feed {
        match (self.fidelity, self.causal.filter(|_| finished_blocks), &stand.block) {
            (Fidelity::Exact, Some(length), _) => self.finished_blocks(stand, length),
            (Fidelity::Exact, None, _) | (_, _, None) => Feed::whole(stand, 0),
            (_, _, Some(block)) => self.stale(stand, block),
        }
    }

    /// Attention by blocks: everything from the first unfinished block, or what is kept, to the block of the last position
    /// that matters.
    fn finished_blocks(&self, stand: &Stand<'_>, length: usize) -> Feed {
        let len = stand.masked.len();
        let finished = finished(stand.masked, length);
        // The end of the sampler's block, not of what is due in it: completions of one prompt then have the same rows.
        let block_end = stand.block.as_ref().map_or(len, |block| block.end);
        let last = stand.due.last().map_or(0, |&p| p as usize + 1).max(block_end);
        let horizon = last.next_multiple_of(length).min(len);
        let kept = self.kept.upgrade().filter(|kept| kept.positions() <= finished);
        let start = kept.as_ref().map_or(0, |kept| kept.positions());
        let keep = if finished > start { finished } else { 0 };
        Feed { rows: start..horizon, past: kept.map_or(Known::Nothing, Known::Kept), keep }
    }

    /// Positions of a canvas of `len` that are not stale: a block's and its vicinity's, and with `prefix` all that follow.
    fn anew(&self, block: &Range<usize>, len: usize) -> Range<usize> {
        let end = if self.fidelity == Fidelity::Dual { block.end.saturating_add(self.vicinity).min(len) } else { len };
        block.start.saturating_sub(self.vicinity)..end
    }

    /// Fast-dLLM: the whole canvas at a block's first forward, then the suffix or the block alone.
    fn stale(&self, stand: &Stand<'_>, block: &Range<usize>) -> Feed {
        let len = stand.masked.len();
        let rows = self.anew(block, len);
        if rows.len() == len {
            return Feed::whole(stand, 0);
        }
        let keep = if rows.end < len { len } else { rows.start };
        let inside = |&p: &u32| rows.contains(&(p as usize));
        if self.entry.is_empty() {
            return Feed::whole(stand, keep);
        }
        // At a deadline positions outside of the block are due: the last step is an exact one.
        if !stand.due.iter().all(inside) {
            return Feed::whole(stand, 0);
        }
        let past = self.kept.upgrade().map_or(Known::Lost { keep }, Known::Kept);
        Feed { rows, past, keep: 0 }
    }

    /// Rows that a step may take besides the `len` of the canvas: those of a block, when the cache has to be computed again.
    pub(crate) fn most_again(&self, blocks: &[Block], len: usize) -> usize {
        if self.fidelity == Fidelity::Exact {
            return 0;
        }
        blocks.iter().map(|block| self.anew(&(block.start..block.end), len).len()).max().unwrap_or(0)
    }

    /// The step took place on `ids`.
    pub(crate) fn stepped(&mut self, ids: &[u32]) {
        if self.fidelity != Fidelity::Exact && self.entry.is_empty() {
            self.entry = ids.to_vec();
        }
    }

    /// The block is done.
    pub(crate) fn leave_block(&mut self) {
        if self.fidelity != Fidelity::Exact {
            self.forget();
        }
    }

    /// Forgets everything.
    pub(crate) fn forget(&mut self) {
        self.entry.clear();
        self.kept = Weak::new();
    }

    /// Refers to what is held for it from now on: the keys and values of the first of `ids` under `adapter`.
    pub(crate) fn hold(&mut self, caches: &mut Caches, kept: &Arc<Kept>, adapter: Option<u64>, ids: &[u32]) {
        // Let go of first: it may be what makes room.
        self.kept = Weak::new();
        let lasting = self.fidelity == Fidelity::Exact && self.causal.is_some();
        let beginning = lasting.then(|| Beginning { adapter, ids: ids[..kept.positions().min(ids.len())].to_vec() });
        self.kept = caches.hold(kept, beginning);
    }

    /// Takes over what is held of another sequence with the same beginning: the finished blocks of `ids`.
    pub(crate) fn adopt(&mut self, caches: &mut Caches, adapter: Option<u64>, ids: &[u32], masked: &[bool]) {
        let Some(length) = self.causal.filter(|_| self.fidelity == Fidelity::Exact) else { return };
        if self.kept.strong_count() == 0 {
            self.kept = caches.find(adapter, &ids[..finished(masked, length)], length);
        }
    }
}

/// Positions of the blocks of `length` before the first masked position.
fn finished(masked: &[bool], length: usize) -> usize {
    masked.iter().position(|&masked| masked).unwrap_or(masked.len()) / length * length
}

impl Feed {
    /// Everything.
    fn whole(stand: &Stand<'_>, keep: usize) -> Self {
        Self { rows: 0..stand.masked.len(), past: Known::Nothing, keep }
    }

    /// Rows that it takes, for a canvas of `len` positions.
    pub(crate) fn cost(&self, len: usize) -> usize {
        let again = if matches!(self.past, Known::Lost { .. }) { len } else { 0 };
        again + self.rows.len()
    }
}

/// What keys and values belong to, where they hold for any sequence that begins like this.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Beginning {
    adapter: Option<u64>,
    ids: Vec<u32>,
}

/// All that is held, up to a limit. What no canvas refers to any more is let go by itself, but for beginnings, which stay
/// until there is no room.
#[derive(Debug, Default)]
pub struct Caches {
    /// Most bytes.
    limit: usize,
    held: Vec<Held>,
    tick: u64,
}

#[derive(Debug)]
struct Held {
    kept: Arc<Kept>,
    /// Tick that used it last.
    used: u64,
    beginning: Option<Beginning>,
}

impl Held {
    fn in_use(&self) -> bool {
        Arc::weak_count(&self.kept) > 0
    }
}

impl Caches {
    /// Holds nothing yet, and at most `limit` bytes of keys and values.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// A tick has gathered what it uses.
    pub(crate) fn begin(&mut self) {
        self.tick += 1;
        for held in &mut self.held {
            // The batch holds it, too.
            if Arc::strong_count(&held.kept) > 1 {
                held.used = self.tick;
            }
        }
        self.purge();
    }

    /// Bytes that are held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held.iter().map(|held| held.kept.bytes()).sum()
    }

    /// Holds `kept` if there is room: what no canvas refers to makes some, then the idle, the longest unused first; others
    /// keep what they have. Without room the reference is a dead one.
    fn hold(&mut self, kept: &Arc<Kept>, beginning: Option<Beginning>) -> Weak<Kept> {
        let same =
            |held: &&mut Held| Arc::ptr_eq(&held.kept, kept) || (beginning.is_some() && held.beginning == beginning);
        if let Some(held) = self.held.iter_mut().find(same) {
            held.used = self.tick;
            return Arc::downgrade(&held.kept);
        }
        if let Some(longer) = &beginning {
            // A longer one does for it.
            self.held.retain(|held| {
                let covered = |b: &Beginning| b.adapter == longer.adapter && longer.ids.starts_with(&b.ids);
                held.in_use() || !held.beginning.as_ref().is_some_and(covered)
            });
        }
        if !self.fits(kept) {
            self.purge();
        }
        while !self.fits(kept) {
            let spare = |held: &Held| !held.in_use() || held.used + IDLE < self.tick;
            let spare = self.held.iter().enumerate().filter(|(_, held)| spare(held));
            let Some((oldest, _)) = spare.min_by_key(|(_, held)| (held.in_use(), held.used)) else {
                return Weak::new();
            };
            self.held.swap_remove(oldest);
        }
        self.held.push(Held { kept: Arc::clone(kept), used: self.tick, beginning });
        Arc::downgrade(kept)
    }

    /// What is held of sequences under `adapter` that begin as `ids` do, as far as they have whole blocks of `length` in
    /// common; a dead reference when that is nothing, or there is no room for a part of what is held.
    fn find(&mut self, adapter: Option<u64>, ids: &[u32], length: usize) -> Weak<Kept> {
        let common = |held: &Held| {
            let beginning = held.beginning.as_ref().filter(|b| b.adapter == adapter)?;
            let common = beginning.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
            Some(common.min(held.kept.positions()) / length * length).filter(|&common| common > 0)
        };
        let found = self.held.iter().filter_map(|held| Some((common(held)?, Arc::clone(&held.kept))));
        let Some((positions, kept)) = found.max_by_key(|(positions, _)| *positions) else { return Weak::new() };
        let beginning = Beginning { adapter, ids: ids[..positions].to_vec() };
        match kept.first(positions) {
            Ok(part) => self.hold(&part, Some(beginning)),
            // It is computed instead.
            Err(_) => Weak::new(),
        }
    }

    fn fits(&self, kept: &Kept) -> bool {
        self.bytes() + kept.bytes() <= self.limit
    }

    fn purge(&mut self) {
        self.held.retain(|held| held.in_use() || held.beginning.is_some());
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// Eight bytes a position.
    fn kept(positions: usize) -> Arc<Kept> {
        let layer = Tensor::zeros((positions, 2), DType::F32, &Device::Cpu).unwrap();
        Arc::new(Kept::new(vec![layer], positions))
    }

    #[test]
    fn what_nobody_refers_to_is_let_go() {
        let mut caches = Caches::new(1000);
        let reference = caches.hold(&kept(10), None);
        caches.begin();
        assert_eq!((caches.bytes(), reference.upgrade().map(|kept| kept.positions())), (80, Some(10)));
        drop(reference);
        caches.begin();
        assert_eq!(caches.bytes(), 0);
    }

    #[test]
    fn one_that_is_shared_counts_once() {
        let mut caches = Caches::new(1000);
        let shared = kept(10);
        let _references = [caches.hold(&shared, None), caches.hold(&shared, None)];
        assert_eq!(caches.bytes(), 80);
    }

    #[test]
    fn the_idle_make_room_the_longest_idle_first_and_the_others_keep_theirs() {
        let mut caches = Caches::new(250);
        let (first, second) = (caches.hold(&kept(10), None), caches.hold(&kept(20), None));
        assert!(caches.hold(&kept(10), None).upgrade().is_none(), "no room, and nobody is idle");
        for _ in 0..=IDLE {
            // The second one is in use: a batch holds it.
            let _used = second.upgrade();
            caches.begin();
        }
        assert!(first.upgrade().is_some(), "idleness alone is no reason");
        let third = caches.hold(&kept(11), None);
        assert!(third.upgrade().is_some() && first.upgrade().is_none() && second.upgrade().is_some());
        assert!(caches.hold(&kept(32), None).upgrade().is_none() && caches.bytes() == 248, "more than the limit");
    }

    #[test]
    fn a_beginning_is_taken_over_as_far_as_it_goes() {
        let new = || Cache::new(Fidelity::Exact, 0, Some(4));
        let mut caches = Caches::new(200);
        let ids: Vec<u32> = (0..12).collect();
        new().hold(&mut caches, &kept(8), Some(7), &ids);
        caches.begin();
        assert_eq!(caches.bytes(), 64, "nobody refers to it, and it stays");
        let adopt = |caches: &mut Caches, adapter, ids: &[u32], given| {
            let mut cache = new();
            let masked: Vec<bool> = (0..=ids.len()).map(|position| position >= given).collect();
            cache.adopt(caches, adapter, ids, &masked);
            cache.kept.upgrade().map(|kept| kept.positions())
        };
        assert_eq!(adopt(&mut caches, Some(7), &ids, 11), Some(8));
        assert_eq!(adopt(&mut caches, Some(7), &ids, 3), None, "no whole block is given");
        assert_eq!(adopt(&mut caches, Some(8), &ids, 11), None, "another adapter");
        let other: Vec<u32> = (0..6).chain(50..60).collect();
        assert_eq!(adopt(&mut caches, Some(7), &other, 16), Some(4), "one block in common");
        assert_eq!(adopt(&mut caches, Some(7), &[9; 8], 8), None);
        // The longer one does for the shorter; without room beginnings go.
        new().hold(&mut caches, &kept(12), Some(7), &ids);
        assert_eq!(adopt(&mut caches, Some(7), &ids, 12), Some(12));
        let _used = caches.hold(&kept(22), None);
        assert!(caches.bytes() <= 200 && adopt(&mut caches, Some(7), &ids, 12).is_none());
    }

    fn stand<'a>(masked: &'a [bool], due: &'a [u32], block: Range<usize>) -> Stand<'a> {
        Stand { masked, due, block: Some(block) }
    }

    fn shape(feed: &Feed) -> (Range<usize>, usize, usize) {
        (feed.rows.clone(), feed.keep, feed.cost(9))
    }

    #[test]
    fn finished_blocks_are_kept_and_what_nobody_sees_is_left_out() {
        let mut cache = Cache::new(Fidelity::Exact, 0, Some(3));
        let masked = [false, false, false, false, true, true, true, true, true];
        let block = stand(&masked, &[4], 3..6);
        assert_eq!(shape(&cache.feed(&block, true)), (0..6, 3, 6));
        assert_eq!(shape(&cache.feed(&block, false)), (0..9, 0, 9));
        let mut caches = Caches::new(1000);
        cache.hold(&mut caches, &kept(3), None, &[0; 9]);
        assert_eq!(shape(&cache.feed(&block, true)), (3..6, 0, 3));
        // The next block begins: the one before it is evaluated along with it, and kept.
        let masked = [false, false, false, false, false, false, true, true, true];
        assert_eq!(shape(&cache.feed(&stand(&masked, &[6, 7], 6..9), true)), (3..9, 6, 6));
        // More is kept than is finished: not of this sequence.
        cache.hold(&mut caches, &kept(9), None, &[0; 9]);
        assert_eq!(shape(&cache.feed(&block, true)), (0..6, 3, 6));
    }

    #[test]
    fn stale_ones_are_made_at_a_blocks_first_forward_and_again_when_they_are_lost() {
        let masked = [false, false, false, true, true, true, true, true, true];
        let block = stand(&masked, &[3, 5], 3..6);
        for (fidelity, keep, rows) in [(Fidelity::Prefix, 3, 3..9), (Fidelity::Dual, 9, 3..6)] {
            let mut cache = Cache::new(fidelity, 0, None);
            let mut caches = Caches::new(1000);
            assert_eq!(shape(&cache.feed(&block, true)), (0..9, keep, 9));
            cache.hold(&mut caches, &kept(keep), None, &[7; 9]);
            cache.stepped(&[7; 9]);
            assert_eq!(shape(&cache.feed(&block, true)), (rows.clone(), 0, rows.len()));
            // The ids are those of the first forward, whatever has been committed since.
            cache.stepped(&[8; 9]);
            assert_eq!(cache.entry(), [7; 9]);
            caches = Caches::new(0);
            let lost = cache.feed(&block, true);
            assert_eq!(shape(&lost), (rows.clone(), 0, 9 + rows.len()));
            assert!(matches!(lost.past, Known::Lost { keep: k } if k == keep) && caches.bytes() == 0);
            // All that is masked is due at a deadline.
            let all = cache.feed(&stand(&masked, &[3, 4, 5, 6, 7, 8], 3..6), true);
            assert_eq!(all.rows.len(), if fidelity == Fidelity::Dual { 9 } else { 6 });
            cache.leave_block();
            assert_eq!(shape(&cache.feed(&block, true)), (0..9, keep, 9));
        }
    }
}
