//! Sequences of the families: raw prompts and conversations before a text, MMaDA's markers around an image.
//!
//! No family is padded here. Rotary positions are relative, so leaving the official left padding out (`[iPAD]` of MMaDA,
//! the padded batches of LLaDA and Dream) gives the logits that masking it gives, for fewer rows.

use std::ops::Range;

use super::family::Family;
use crate::models::{Layout, ModelError};
use crate::text::{ChatTemplate, Message, TextError, TextFiles, Tokenizer};

/// MMaDA's conversations: its programs replace the template that its tokenizer came with (`generate.py`, `app.py`) by
/// one with a single line break after a role.
const MMADA_TEMPLATE: &str = "{% for message in messages %}{{ bos_token if loop.first }}<|start_header_id|>\
    {{ message['role'] }}<|end_header_id|>\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}\
    {{ '<|start_header_id|>assistant<|end_header_id|>\n' }}";

/// A text model: the prompt is all there is before the text.
pub(super) struct TextLayout {
    chat: Option<ChatTemplate>,
}

impl TextLayout {
    pub(super) fn new(text: &TextFiles) -> Result<Self, TextError> {
        Ok(Self { chat: text.chat()? })
    }
}

impl Layout for TextLayout {
    fn text_prefix(&self, prompt: &[u32]) -> Vec<u32> {
        prompt.to_vec()
    }

    fn image_frame(&self, _: &[u32]) -> (Vec<u32>, Vec<u32>) {
        (Vec::new(), Vec::new())
    }

    fn conversation(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        self.chat.as_ref().ok_or(TextError::NoTemplate)?.encode(tokenizer, messages)
    }
}

/// MMaDA: text as LLaDA has it, pictures drawn as `<|t2i|> bos caption eos <|soi|> codes <|eoi|>`, and texts about
/// pictures after `<|mmu|> <|soi|> codes <|eoi|> bos question`.
pub(super) struct MmadaLayout {
    text: TextLayout,
    bos: u32,
    eos: u32,
    soi: u32,
    eoi: u32,
    t2i: u32,
    mmu: u32,
    codes: Range<u32>,
}

impl MmadaLayout {
    /// The markers are the tokenizer's reserved tokens, in the order of `prompting_utils.py`: soi, eoi, sov, eov, t2i,
    /// mmu, …
    pub(super) fn new(text: &TextFiles, eos: u32, codes: Range<u32>) -> Result<Self, ModelError> {
        let failed = |e: String| ModelError::Tokenizer(e);
        let id = |token: &str| {
            let id = text.tokenizer.token_id(token);
            id.ok_or_else(|| failed(format!("{token} is missing; MMaDA's image layout needs it")))
        };
        let marker = |name: &str, reserved: usize| id(name).or_else(|_| id(&format!("<|reserved_token_{reserved}|>")));
        let chat = ChatTemplate::new(MMADA_TEMPLATE, text.tokens.clone()).map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            text: TextLayout { chat: Some(chat) },
            bos: id(text.tokens.get("bos_token").map_or("<|startoftext|>", String::as_str))?,
            eos,
            soi: marker("<|soi|>", 0)?,
            eoi: marker("<|eoi|>", 1)?,
            t2i: marker("<|t2i|>", 4)?,
            mmu: marker("<|mmu|>", 5)?,
            codes,
        })
    }

    /// The prompt with a beginning, which it may bring itself (`prompting_utils.py`).
    fn begun(&self, prompt: &[u32]) -> impl Iterator<Item = u32> {
        let bos = (prompt.first() != Some(&self.bos)).then_some(self.bos);
        bos.into_iter().chain(prompt.iter().copied())
    }
}

impl Layout for MmadaLayout {
    fn text_prefix(&self, prompt: &[u32]) -> Vec<u32> {
        self.text.text_prefix(prompt)
    }

    fn image_frame(&self, prompt: &[u32]) -> (Vec<u32>, Vec<u32>) {
        let before = std::iter::once(self.t2i).chain(self.begun(prompt)).chain([self.eos, self.soi]);
        (before.collect(), vec![self.eoi])
    }

    fn conversation(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        self.text.conversation(tokenizer, messages)
    }

    fn seen_prefix(&self, codes: &[u32], prompt: &[u32]) -> Option<Vec<u32>> {
        let codes = codes.iter().map(|code| self.codes.start + code);
        let before = [self.mmu, self.soi].into_iter().chain(codes).chain([self.eoi]);
        Some(before.chain(self.begun(prompt)).collect())
    }
}

/// Names of the tokens that end a turn of a conversation, beside the end of a text.
pub(super) fn turn_end(family: Family) -> &'static str {
    match family {
        Family::Llada | Family::Mmada => "<|eot_id|>",
        Family::Dream | Family::Sdar => "<|im_end|>",
    }
}
