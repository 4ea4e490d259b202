//! A thin layer over the `tokenizers` crate that fixes two policies: user text is only ever text, and control tokens
//! are never shown.

use super::TextError;
use super::marked::Controls;

/// A model's tokenizer. Cheap to share behind an `Arc`; all methods take `&self`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Sorted ids of the special tokens.
    special: Vec<u32>,
    controls: Controls,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`. Padding and truncation it asks for are ignored: a request is encoded
    /// whole or refused.
    ///
    /// # Errors
    /// [`TextError::Load`] when the bytes are not a tokenizer of a supported kind.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        let load = |e: tokenizers::Error| TextError::Load(e.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(load)?;
        inner.with_padding(None).with_truncation(None).map_err(load)?;
        // Without this the crate cuts special tokens out of the text before anything else sees it.
        inner.set_encode_special_tokens(true);
        let added = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        let (mut special, tokens): (Vec<u32>, Vec<_>) = added.map(|(id, token)| (id, (id, token))).unzip();
        special.sort_unstable();
        let controls = Controls::new(tokens).map_err(|e| TextError::Load(e.to_string()))?;
        Ok(Self { inner, special, controls })
    }

    /// Makes `id` a control token whatever the file says: a model's mask.
    pub fn reserve(&mut self, id: u32) {
        if let Err(at) = self.special.binary_search(&id) {
            self.special.insert(at, id);
        }
    }

    /// Where control tokens are spelled out in a text.
    pub(super) fn controls(&self) -> &Controls {
        &self.controls
    }

    /// The ids of a text in which control tokens are meant as such: what the reference's tokenizer makes of it. For
    /// text that people wrote there is [`encode`](Self::encode).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_marked(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.controls.encode(self, text, None)
    }

    /// The ids of `text`, without any token that the tokenizer would add around it.
    ///
    /// A literal `<mask>` or `<|endoftext|>` in `text` comes out as the ordinary tokens that spell it. Control tokens
    /// are placed by id ([`Self::token_id`]), by code that means them.
    ///
    /// # Errors
    /// [`TextError::Encode`] when the tokenizer fails, [`TextError::ControlToken`] when its model (a plain word list,
    /// for instance) cannot spell a control token in any other way.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| TextError::Encode { bytes: text.len(), cause: e.to_string() })?;
        let ids = encoding.get_ids();
        // The crate's switch covers its search for added tokens; a model with merges of its own could still spell one.
        if ids.iter().any(|&id| self.is_special(id)) {
            return Err(TextError::ControlToken { bytes: text.len() });
        }
        Ok(ids.to_vec())
    }

    /// The text of `ids`; special ids, and ids outside the vocabulary (image codes), are skipped. Bytes that are no
    /// UTF-8 come out as U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        // Only a `Replace` decoder can fail, on a pattern that backtracks without end; no supported family has one.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// The id of a token by its exact entry in the vocabulary, special or not.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's entry for `id`.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Number of tokens, special ones included. A model's embedding may have more rows than this.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether `id` is a control token, which [`Self::encode`] never gives and [`Self::decode`] never shows.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    /// Whether `id` has a text: it is in the vocabulary and not special.
    #[must_use]
    pub fn is_shown(&self, id: u32) -> bool {
        !self.is_special(id) && self.inner.id_to_token(id).is_some()
    }
}
