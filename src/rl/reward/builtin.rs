//! Verifiers that are built in and are about no one model: answers, patterns, JSON, length, repetition. Each gives 0
//! to 1 and applies to texts only.

pub mod answer;
pub mod schema;

use std::collections::HashSet;

use regex::Regex;

use super::wire::ANSWER_KEY;
use super::{HookError, Rule, SampleInput, Score};
use answer::{Extract, Wanted};
use schema::Schema;

/// One built-in verifier with its settings.
#[derive(Debug)]
pub enum Builtin {
    /// 1 if the answer is the expected text, but for white space around either.
    Answer(Wanted),
    /// 1 if the answer is the expected number, but for `tolerance`.
    Number {
        /// What is expected and where the answer is found.
        wanted: Wanted,
        /// Largest difference that is still right.
        tolerance: f64,
    },
    /// 1 if the pattern matches somewhere. The matcher takes linear time whatever the text.
    Regex(Regex),
    /// 1 if the whole text is JSON and the schema, if there is one, allows it.
    Json(Option<Schema>),
    /// 1 within the bounds (in characters), both included; outside, the quotient of length and nearer bound.
    Length {
        /// Least length.
        min: usize,
        /// Greatest length.
        max: usize,
    },
    /// The share of runs of `n` words that are new where they stand: 1 without repetition, near 0 for a loop.
    Repetition {
        /// Words of a run, at least 1.
        n: usize,
    },
}

impl Rule for Builtin {
    fn score(&self, _prompt: &str, sample: &SampleInput) -> Score {
        if sample.picture.is_some() {
            return Ok(None);
        }
        let text = sample.text.as_str();
        let holds = |holds: bool| Ok(Some(f64::from(u8::from(holds))));
        match self {
            Self::Answer(wanted) => {
                let expected = expected(wanted, sample)?;
                holds(wanted.extract.answer(text).is_some_and(|found| found.trim() == expected.trim()))
            }
            Self::Number { wanted, tolerance } => {
                let expected = expected(wanted, sample)?;
                let expected = answer::number(&expected).ok_or(HookError::Unusable("expected answer is no number"))?;
                let found = match wanted.extract {
                    Extract::Last => answer::last_number(text),
                    _ => wanted.extract.answer(text).and_then(answer::number),
                };
                holds(found.is_some_and(|found| (found - expected).abs() <= *tolerance))
            }
            Self::Regex(pattern) => holds(pattern.is_match(text)),
            Self::Json(schema) => {
                let value: Option<serde_json::Value> = serde_json::from_str(text).ok();
                holds(value.is_some_and(|value| schema.as_ref().is_none_or(|schema| schema.allows(&value))))
            }
            Self::Length { min, max } => Ok(Some(length(text.chars().count(), *min, *max))),
            Self::Repetition { n } => Ok(Some(fresh(text, *n))),
        }
    }
}

/// The answer that a sample should have. Its absence is an error, never an answer: two absent things are not equal.
fn expected(wanted: &Wanted, sample: &SampleInput) -> Result<String, HookError> {
    if let Some(fixed) = &wanted.fixed {
        return Ok(fixed.clone());
    }
    match sample.metadata.get(wanted.key.as_deref().unwrap_or(ANSWER_KEY)) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        _ => Err(HookError::Unusable("metadata holds no expected answer")),
    }
}

fn length(n: usize, min: usize, max: usize) -> f64 {
    if n < min {
        n as f64 / min as f64
    } else if n > max {
        max as f64 / n as f64
    } else {
        1.0
    }
}

fn fresh(text: &str, n: usize) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let total = words.windows(n.max(1)).len();
    let distinct = words.windows(n.max(1)).collect::<HashSet<_>>().len();
    if total == 0 { 1.0 } else { distinct as f64 / total as f64 }
}

#[cfg(test)]
#[path = "builtin/builtin_tests.rs"]
mod tests;
