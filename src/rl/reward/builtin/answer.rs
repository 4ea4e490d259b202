//! Finding an answer in a text, and reading numbers as people write them.

use serde::{Deserialize, Serialize};

/// What is expected and where the answer is found.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The expected answer, the same for every sample.
    pub fixed: Option<String>,
    /// Key of the metadata that holds it instead.
    pub key: Option<String>,
    /// Where in a text the answer is.
    pub extract: Extract,
}

/// Where in a text the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// All of it.
    #[default]
    Whole,
    /// In the last `\boxed{…}`.
    Boxed,
    /// The rest of the line after the last `####`.
    Hash,
    /// Between the last `<answer>` and the `</answer>` after it.
    Tag,
    /// The last number, for numeric answers.
    Last,
}

impl Extract {
    /// The answer in `text`; `None` if it is not marked as asked for.
    #[must_use]
    pub fn answer(self, text: &str) -> Option<&str> {
        match self {
            Self::Whole | Self::Last => Some(text),
            Self::Boxed => boxed(text),
            Self::Hash => text.rsplit_once("####").map(|(_, rest)| rest.lines().next().unwrap_or_default()),
            Self::Tag => text.rsplit_once("<answer>")?.1.split_once("</answer>").map(|(inside, _)| inside),
        }
    }
}

/// What the last `\boxed{…}` holds, braces balanced; also the word after `\boxed `.
fn boxed(text: &str) -> Option<&str> {
    let rest = text.rsplit_once("\\boxed")?.1;
    let Some(inside) = rest.strip_prefix('{') else {
        return rest.strip_prefix(' ')?.split(['$', ' ', '\n']).next().filter(|word| !word.is_empty());
    };
    let mut depth = 1;
    for (at, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..at]);
        }
    }
    None
}

/// Reads a whole text as one number: `-3`, `1,000`, `3.0`, `.5`, `$4`, `1e3`; groups of digits must be of three.
/// Digits are ASCII: `²` is not 2.
#[must_use]
pub fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let (negative, rest) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let rest = rest.strip_prefix('$').unwrap_or(rest);
    let digits = ungroup(rest)?;
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') || !digits.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value: f64 = digits.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some(if negative { -value } else { value })
}

/// Without the commas between groups of three digits; `None` if they are anywhere else.
fn ungroup(text: &str) -> Option<String> {
    if !text.contains(',') {
        return Some(text.to_owned());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let digits = |group: &str| group.bytes().all(|b| b.is_ascii_digit());
    let fits = (1..=3).contains(&first.len()) && digits(first) && groups.all(|g| g.len() == 3 && digits(g));
    fits.then(|| text.replace(',', "")).filter(|_| !fraction.contains(','))
}

/// The last number of a text. A minus counts as a sign unless it stands between two things: `7-4` ends in 4.
#[must_use]
pub fn last_number(text: &str) -> Option<f64> {
    let part_of = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start =
        text[..end].rfind(|c| !part_of(c)).map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let run = text[start..end].trim_start_matches(',');
    let value = number(run).or_else(|| number(run.rsplit(',').next()?))?;
    let mut before = text[..start].chars().rev();
    let minus =
        matches!(before.next(), Some('-' | '−')) && !before.next().is_some_and(|c| c.is_alphanumeric() || c == ')');
    Some(if minus { -value } else { value })
}
