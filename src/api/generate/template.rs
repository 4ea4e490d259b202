//! Templates: text with holes for the model to fill.
//!
//! As a string, `[[8]]` is a hole of eight tokens: `[[`, one to six digits, `]]`, nothing else between. Any other
//! bracket is plain text, so there is nothing to escape. Text that happens to look like a hole is written in the other
//! form, a list of pieces: `[{"text": "see [[1]]: "}, {"hole": 8}]`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::check;
use crate::api::error::ApiError;
use crate::api::limits::{ApiLimits, fixed};
use crate::engine::job::TemplatePart;

/// How a hole is written in a string, for `/info`.
pub(in crate::api) const HOLE: &str = "[[n]]";

/// Text with holes: `"2+3=[[4]]."`, or the same as a list of pieces.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected a string with holes such as [[8]], or a list of {\"text\"} and {\"hole\"}")]
pub(crate) enum Template {
    /// `[[8]]` is a hole of eight tokens.
    Inline(String),
    /// Pieces in order.
    Pieces(Vec<Piece>),
}

/// A piece of a template.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Piece {
    /// Given text.
    Text(String),
    /// A hole of so many tokens.
    Hole(u64),
}

impl Template {
    /// The template as one string, for the log.
    pub(in crate::api) fn rendered(&self) -> String {
        match self {
            Self::Inline(text) => text.clone(),
            Self::Pieces(pieces) => pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Text(text) => text.clone(),
                    Piece::Hole(tokens) => format!("[[{tokens}]]"),
                })
                .collect(),
        }
    }

    /// The pieces, within the limits, and the tokens of all holes together.
    pub(in crate::api) fn parts(self, limits: &ApiLimits) -> Result<(Vec<TemplatePart>, usize), ApiError> {
        let pieces = match self {
            Self::Inline(text) => {
                check::chars("template", &text, limits.max_prompt_chars, &check::flag("max_prompt_chars"))?;
                split(&text)
            }
            Self::Pieces(pieces) => pieces,
        };
        check::count("template", pieces.len(), fixed::TEMPLATE_PARTS, check::FIXED)?;
        let chars: usize = pieces.iter().map(Piece::chars).sum();
        check::size("template", chars as u64, 0, limits.max_prompt_chars, &check::flag("max_prompt_chars"))?;
        let holes = holes(&pieces, limits.max_tokens)?;
        let parts = pieces.into_iter().map(|piece| match piece {
            Piece::Text(text) => TemplatePart::Text(text),
            Piece::Hole(tokens) => TemplatePart::Hole(tokens as usize), // bounded by `holes`
        });
        Ok((parts.collect(), holes))
    }
}

impl Piece {
    fn chars(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Hole(_) => 0,
        }
    }
}

/// Tokens of all holes: at least one hole, none empty, together at most `max`.
fn holes(pieces: &[Piece], max: usize) -> Result<usize, ApiError> {
    let mut total: u64 = 0;
    for piece in pieces {
        if let Piece::Hole(tokens) = piece {
            check::integer("template", *tokens, 1, max as u64, &check::flag("max_tokens"))?;
            total += tokens;
        }
    }
    if total == 0 {
        return Err(ApiError::invalid("template", "has no hole", "write [[8]] where eight tokens are to be filled in"));
    }
    check::size("template", total, 1, max, &check::flag("max_tokens"))
}

/// Splits at the holes; the pieces spell the input.
fn split(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(open) = rest.find("[[") {
        let (before, after) = rest.split_at(open);
        literal.push_str(before);
        if let Some((tokens, tail)) = hole(after) {
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Hole(tokens));
            rest = tail;
        } else {
            literal.push('[');
            rest = &after[1..];
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    pieces
}

/// A hole at the start of `text`, and what follows it.
fn hole(text: &str) -> Option<(u64, &str)> {
    let (digits, tail) = text.strip_prefix("[[")?.split_once("]]")?;
    let valid = (1..=6).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| digits.parse().ok())?.map(|tokens| (tokens, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(text: &str) -> Vec<TemplatePart> {
        Template::Inline(text.to_owned()).parts(&ApiLimits::default()).unwrap().0
    }

    #[test]
    fn holes_are_double_brackets_around_a_number() {
        let text = |text: &str| TemplatePart::Text(text.to_owned());
        assert_eq!(parts("2+3=[[4]]."), [text("2+3="), TemplatePart::Hole(4), text(".")]);
        assert_eq!(parts("[[1]][[2]]"), [TemplatePart::Hole(1), TemplatePart::Hole(2)]);
        assert_eq!(parts("[[[3]]]"), [text("["), TemplatePart::Hole(3), text("]")]);
        assert_eq!(parts("[[x]] [[ 1]] [[1] [[2]]"), [text("[[x]] [[ 1]] [[1] "), TemplatePart::Hole(2)]);
    }

    #[test]
    fn both_forms_say_the_same() {
        let list: Template = serde_json::from_str(r#"[{"text":"2+3="},{"hole":4},{"text":"."}]"#).unwrap();
        assert_eq!(list.rendered(), "2+3=[[4]].");
        assert_eq!(list.parts(&ApiLimits::default()).unwrap().0, parts("2+3=[[4]]."));
    }

    #[test]
    fn holes_are_bounded() {
        let status =
            |text: &str| Template::Inline(text.to_owned()).parts(&ApiLimits::default()).map_err(|e| e.problem().status);
        assert!(status("[[512]]").is_ok());
        for bad in ["no hole", "[[0]]", "[[513]]", "[[500]][[13]]"] {
            assert_eq!(status(bad).unwrap_err(), 400, "{bad}");
        }
        let many = "[[1]]".repeat(fixed::TEMPLATE_PARTS + 1);
        assert_eq!(status(&many).unwrap_err(), 400);
    }

    proptest! {
        #[test]
        fn splitting_loses_nothing(text in "[\\[\\]0-9a ]{0,40}") {
            let again = Template::Pieces(split(&text)).rendered();
            // Leading zeros of a hole are the only thing that is not kept.
            prop_assert_eq!(again.replace('0', ""), text.replace('0', ""));
        }
    }
}
