//! Text as its tokens arrive: append-only, and never half a character.

use super::Tokenizer;

/// Tokens kept as context when the window moves on: enough for a decoder that treats the start of a text specially.
const CONTEXT: usize = 4;
/// Window length at which it moves on, so that a push costs the same late in a text as early.
const WINDOW: usize = 64;
/// What decoders write for bytes that are no UTF-8, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// Decodes a growing sequence of ids. The pushes and the final [`Incremental::finish`], joined, equal the decoding of
/// everything at once (for byte-level decoders, which all supported families have).
#[derive(Debug)]
pub struct Incremental<'t> {
    tokenizer: &'t Tokenizer,
    /// The last tokens; the ones before cannot change the text any more.
    window: Vec<u32>,
    /// Bytes of the window's text that have been handed out.
    emitted: usize,
}

impl<'t> Incremental<'t> {
    /// An empty text.
    #[must_use]
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), emitted: 0 }
    }

    /// Appends `ids` and returns the text that has become certain. Empty while a character is incomplete.
    pub fn push(&mut self, ids: &[u32]) -> String {
        // Ids without text would push the context out of the window.
        self.window.extend(ids.iter().filter(|&&id| self.tokenizer.is_shown(id)));
        let text = self.tokenizer.decode(&self.window);
        let certain = text.trim_end_matches(REPLACEMENT);
        let new = certain.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted += new.len();
        // Only a text that ends on a whole character may be cut: nothing before it can change any more.
        if self.window.len() > WINDOW && self.emitted == text.len() {
            self.window.drain(..self.window.len() - CONTEXT);
            self.emitted = self.tokenizer.decode(&self.window).len();
        }
        new
    }

    /// The rest: what an incomplete character decodes to, usually nothing.
    #[must_use]
    pub fn finish(self) -> String {
        self.tokenizer.decode(&self.window).get(self.emitted..).unwrap_or_default().to_owned()
    }
}
