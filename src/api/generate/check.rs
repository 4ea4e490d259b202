//! Bounds as pure functions: each error names the field, the limit, what was sent and what to do.

use serde_json::Value;

use crate::api::error::{ApiError, Violation};

/// What to tell someone who hits a limit that a flag raises.
pub(in crate::api) fn flag(name: &str) -> String {
    format!("lower it, or start the server with a larger --{}", name.replace('_', "-"))
}

/// What to tell someone who hits a limit that no flag raises.
pub(in crate::api) const FIXED: &str = "this limit is fixed";

/// A violated bound.
pub(in crate::api) fn beyond(
    field: &str,
    message: String,
    limit: impl Into<Value>,
    actual: impl Into<Value>,
    hint: impl Into<String>,
) -> ApiError {
    ApiError::Invalid(Box::new(Violation {
        field: field.to_owned(),
        limit: Some(limit.into()),
        actual: Some(actual.into()),
        message,
        hint: Some(hint.into()),
    }))
}

/// An integer in `min..=max`.
pub(in crate::api) fn integer(field: &str, actual: u64, min: u64, max: u64, hint: &str) -> Result<u64, ApiError> {
    if actual < min {
        let message = format!("is {actual}, must be at least {min}");
        return Err(beyond(field, message, min, actual, "raise it, or leave it out for the default"));
    }
    if actual > max {
        return Err(beyond(field, format!("is {actual}, at most {max} is allowed"), max, actual, hint));
    }
    Ok(actual)
}

/// The same, as a size.
pub(in crate::api) fn size(field: &str, actual: u64, min: usize, max: usize, hint: &str) -> Result<usize, ApiError> {
    // Bounded by `max`, itself a `usize`.
    integer(field, actual, min as u64, max as u64, hint).map(|value| value as usize)
}

/// A finite number in `min..=max`.
pub(in crate::api) fn number(field: &str, actual: f64, min: f64, max: f64) -> Result<f64, ApiError> {
    if (min..=max).contains(&actual) {
        return Ok(actual);
    }
    let limit = if actual < min { min } else { max };
    Err(beyond(field, format!("is {actual}, must be between {min} and {max}"), limit, actual, FIXED))
}

/// A number in `(0, 1]`.
pub(in crate::api) fn probability(field: &str, actual: f64) -> Result<f64, ApiError> {
    if actual > 0.0 && actual <= 1.0 {
        return Ok(actual);
    }
    let message = format!("is {actual}, must be above 0 and at most 1");
    Err(beyond(field, message, 1, actual, "it is a probability"))
}

/// A number in `(0, 1)`.
pub(in crate::api) fn between_0_and_1(field: &str, actual: f64) -> Result<f64, ApiError> {
    if actual > 0.0 && actual < 1.0 {
        return Ok(actual);
    }
    let message = format!("is {actual}, must be above 0 and below 1");
    Err(beyond(field, message, 1, actual, "it ends a schedule that falls from 1; 0.001 is usual"))
}

/// A string of at most `max` characters.
pub(in crate::api) fn chars(field: &str, text: &str, max: usize, hint: &str) -> Result<(), ApiError> {
    let actual = text.chars().count();
    if actual > max {
        let message = format!("has {actual} characters, at most {max} are allowed");
        return Err(beyond(field, message, max, actual, hint));
    }
    Ok(())
}

/// A list, or object, of at most `max` entries.
pub(in crate::api) fn count(field: &str, actual: usize, max: usize, hint: &str) -> Result<(), ApiError> {
    if actual > max {
        let message = format!("has {actual} entries, at most {max} are allowed");
        return Err(beyond(field, message, max, actual, hint));
    }
    Ok(())
}

/// One of a set of words; the error lists them.
pub(in crate::api) fn choice<T: Copy>(field: &str, word: &str, choices: &[(&str, T)]) -> Result<T, ApiError> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let shown: String = word.chars().take(64).collect();
    let message = format!("\"{shown}\" is not supported; supported are {}", names.join(", "));
    Err(beyond(field, message, names, shown, "use one of these"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_limit_actual_and_hint() {
        let problem = integer("n", 17, 1, 16, &flag("max_n")).unwrap_err().problem();
        assert_eq!(problem.detail, "n: is 17, at most 16 is allowed");
        assert_eq!((problem.limit, problem.actual), (Some(16.into()), Some(17.into())));
        assert!(problem.hint.unwrap().contains("--max-n"));
    }

    #[test]
    fn bounds_are_inclusive_and_nan_is_outside() {
        assert!(integer("n", 16, 1, 16, FIXED).is_ok() && integer("n", 0, 1, 16, FIXED).is_err());
        assert!(number("t", 2.0, 0.0, 2.0).is_ok() && number("t", 2.1, 0.0, 2.0).is_err());
        assert!(number("t", f64::NAN, 0.0, 2.0).is_err() && number("t", f64::INFINITY, 0.0, 2.0).is_err());
        assert!(probability("p", 1.0).is_ok() && probability("p", 0.0).is_err() && probability("p", f64::NAN).is_err());
        assert!(chars("s", "äöü", 3, FIXED).is_ok() && chars("s", "äöüß", 3, FIXED).is_err());
    }

    #[test]
    fn a_wrong_word_is_told_the_right_ones() {
        let problem = choice("kind", "x", &[("a", 1), ("b", 2)]).unwrap_err().problem();
        assert_eq!(problem.limit, Some(serde_json::json!(["a", "b"])));
        assert_eq!(choice("kind", "b", &[("a", 1), ("b", 2)]).unwrap(), 2);
    }
}
