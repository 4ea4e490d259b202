//! Text with control tokens in it: a chat template's output, where what the template wrote is meant and what people
//! wrote is not.
//!
//! A [`Guard`] character goes into everything in a message that spells a control token before the template sees it. It
//! takes the spelling apart, and comes out again when the rest is encoded.

use regex::Regex;
use tokenizers::AddedToken;

use super::{TextError, Tokenizer};

/// The control tokens of a tokenizer, to be found in a text.
#[derive(Debug)]
pub(super) struct Controls {
    /// `None` when there are none.
    pattern: Option<Regex>,
    tokens: Vec<(u32, AddedToken)>,
}

/// A character that occurs in no message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard(char);

impl Guard {
    /// One of the characters that Unicode leaves to private use.
    pub(super) fn absent_from<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Result<Self, TextError> {
        let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{E000}'..='\u{F8FF}');
        let absent = |c: &char| !texts.clone().any(|text| text.contains(*c));
        private.into_iter().find(absent).map(Self).ok_or(TextError::PrivateUse)
    }
}

impl Controls {
    pub(super) fn new(mut tokens: Vec<(u32, AddedToken)>) -> Result<Self, regex::Error> {
        // Of two that begin at the same place the longer one is meant.
        tokens.sort_by_key(|(id, token)| (std::cmp::Reverse(token.content.len()), *id));
        let spelled: Vec<String> = tokens.iter().map(|(_, token)| regex::escape(&token.content)).collect();
        let pattern = if tokens.is_empty() { None } else { Some(Regex::new(&spelled.join("|"))?) };
        Ok(Self { pattern, tokens })
    }

    /// `text` with the guard in everything that spells a control token, overlapping ones included.
    pub(super) fn guarded(&self, text: &str, guard: Guard) -> String {
        let Some(pattern) = &self.pattern else { return text.to_owned() };
        let mut out = String::with_capacity(text.len());
        let (mut copied, mut from) = (0, 0);
        while let Some(found) = pattern.find_at(text, from) {
            let first = text[found.start()..].chars().next().map_or(1, char::len_utf8);
            from = found.start() + first;
            out.push_str(&text[copied..from]);
            out.push(guard.0);
            copied = from;
        }
        out.push_str(&text[copied..]);
        out
    }

    /// The ids of `text`, in which control tokens are control tokens and the guard is nothing.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        guard: Option<Guard>,
    ) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        let plain = |text: &str, ids: &mut Vec<u32>| -> Result<(), TextError> {
            let text = guard.map_or_else(|| text.to_owned(), |guard| text.replace(guard.0, ""));
            if !text.is_empty() {
                ids.extend(tokenizer.encode(&text)?);
            }
            Ok(())
        };
        let mut rest = text;
        while let Some((start, end, id, token)) = self.next(rest) {
            let before = &rest[..start];
            plain(if token.lstrip { before.trim_end() } else { before }, &mut ids)?;
            ids.push(id);
            rest = &rest[end..];
            if token.rstrip {
                rest = rest.trim_start();
            }
        }
        plain(rest, &mut ids)?;
        Ok(ids)
    }

    /// The first control token in `text`.
    fn next(&self, text: &str) -> Option<(usize, usize, u32, &AddedToken)> {
        let found = self.pattern.as_ref()?.find(text)?;
        let (id, token) = self.tokens.iter().find(|(_, token)| token.content == found.as_str())?;
        Some((found.start(), found.end(), *id, token))
    }
}
