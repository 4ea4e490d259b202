//! The text of a canvas while it fills: what is final, append-only, and where a stop string ends it.
//!
//! Positions commit in any order; text is final up to the first masked one. Lives on the client's side of the channel
//! (a slow decoder must not hold up the device), except that the device thread looks for stop strings.

use std::sync::Arc;

use crate::text::Tokenizer;

/// What decoders write for bytes that are no UTF-8, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// What all completions of a request have in common.
#[derive(Debug, Clone)]
pub(super) struct Style {
    pub(super) tokenizer: Arc<Tokenizer>,
    /// The returned part at the start: given ids, `None` where masked.
    pub(super) initial: Arc<[Option<u32>]>,
    /// Ids that end the text.
    pub(super) eos: Arc<[u32]>,
    /// Strings that end the text.
    pub(super) stop: Arc<[String]>,
    /// An image has no text.
    pub(super) is_text: bool,
}

impl Style {
    /// First position that an EOS or a stop string may end the text at: after everything given.
    fn open(&self) -> usize {
        self.initial.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Whether any stop string is to be looked for.
    pub(super) fn has_stop(&self) -> bool {
        self.is_text && self.stop.iter().any(|s| !s.is_empty())
    }

    /// The text of `ids`, the first positions of the returned part, cut before the first stop string.
    pub(super) fn text(&self, ids: &[u32]) -> String {
        if !self.is_text {
            return String::new();
        }
        let mut text = self.tokenizer.decode(ids);
        if let Some(at) = self.find_stop(ids, &text) {
            text.truncate(at);
        }
        text
    }

    /// Byte at which the first stop string begins in `text`, the text of `ids`.
    fn find_stop(&self, ids: &[u32], text: &str) -> Option<usize> {
        let open = self.open();
        if !self.has_stop() || ids.len() <= open {
            return None;
        }
        let from = if open == 0 { 0 } else { self.tokenizer.decode(&ids[..open]).len() };
        let tail = text.get(from..)?;
        self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| tail.find(s.as_str())).min().map(|at| from + at)
    }

    /// The shortest prefix of `ids` whose text holds a stop string; it is known that `ids[..known]` has none.
    pub(super) fn stop_after(&self, ids: &[u32], known: usize) -> Option<usize> {
        self.find_stop(ids, &self.tokenizer.decode(ids))?;
        let holds = |len: &usize| self.find_stop(&ids[..*len], &self.tokenizer.decode(&ids[..*len])).is_some();
        (known + 1..ids.len()).find(holds).or(Some(ids.len()))
    }

    /// Bytes at the end of `text` that may be the beginning of a stop string or of a character.
    fn undecided(&self, text: &str) -> usize {
        let whole = text.trim_end_matches(REPLACEMENT);
        let starts = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(whole.len());
            (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && whole.ends_with(&stop[..n])).unwrap_or(0)
        };
        text.len() - whole.len() + self.stop.iter().map(starts).max().unwrap_or(0)
    }
}

/// One completion's text as its positions commit.
#[derive(Debug)]
pub(super) struct Transcript {
    style: Style,
    slots: Vec<Option<u32>>,
    /// Positions that are final: all before them are known, and the text goes on.
    frontier: usize,
    ended: bool,
    /// Bytes handed out.
    emitted: usize,
}

impl Transcript {
    pub(super) fn new(style: Style) -> Self {
        let slots = style.initial.to_vec();
        Self { style, slots, frontier: 0, ended: false, emitted: 0 }
    }

    /// Notes newly committed `(position, id)` pairs and returns the text that has become final.
    pub(super) fn push(&mut self, commits: impl Iterator<Item = (usize, u32)>) -> String {
        for (position, id) in commits {
            if let Some(slot) = self.slots.get_mut(position) {
                *slot = Some(id);
            }
        }
        let before = self.frontier;
        let open = self.style.open();
        while let (false, Some(&Some(id))) = (self.ended, self.slots.get(self.frontier)) {
            if self.frontier >= open && self.style.eos.contains(&id) {
                self.ended = true;
            } else {
                self.frontier += 1;
            }
        }
        if self.frontier == before || !self.style.is_text {
            return String::new();
        }
        let ids: Vec<u32> = self.slots[..self.frontier].iter().flatten().copied().collect();
        let text = self.style.text(&ids);
        self.emit(&text, text.len() - self.style.undecided(&text))
    }

    /// The text of the finished completion, whose text is `ids`, and what of it has not been handed out.
    pub(super) fn finish(&mut self, ids: &[u32]) -> (String, String) {
        let text = self.style.text(ids);
        let rest = self.emit(&text, text.len());
        (text, rest)
    }

    fn emit(&mut self, text: &str, upto: usize) -> String {
        let new = text.get(self.emitted..upto).unwrap_or_default().to_owned();
        self.emitted += new.len();
        new
    }
}
