//! Fields of a codec's `config.json`: each is honoured or refused by its name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::models::ModelError;

/// Largest width, count or size that a field may hold; keeps products of a few of them far from overflow.
const MAX: usize = 1 << 16;

/// Most levels of resolution.
const MAX_LEVELS: usize = 8;

/// The fields that are not yet accounted for.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Those of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be read or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let refused = |why: String| ModelError::Config {
            field: "file".to_owned(),
            actual: path.display().to_string(),
            hint: format!("a JSON object is expected: {why}"),
        };
        let bytes = std::fs::read(path).map_err(|e| refused(e.to_string()))?;
        Ok(Self(serde_json::from_slice(&bytes).map_err(|e| refused(e.to_string()))?))
    }

    /// Those of a JSON object.
    #[must_use]
    pub fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// The class that the configuration is of.
    ///
    /// # Errors
    /// When it does not say.
    pub fn class(&self) -> Result<&str, ModelError> {
        let found = self.0.get("_class_name");
        found.and_then(Value::as_str).ok_or_else(|| refused("_class_name", found, "the codec's class is expected"))
    }

    /// Takes a positive number.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(&mut self, name: &'static str, default: usize) -> Result<usize, ModelError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => positive(&value)
                .ok_or_else(|| refused(name, Some(&value), &format!("a whole number from 1 to {MAX} is expected"))),
        }
    }

    /// Takes a list of positive numbers, one per level of resolution.
    ///
    /// # Errors
    /// When it is something else.
    pub fn numbers(&mut self, name: &'static str) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        let numbers: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(positive).collect());
        match numbers.filter(|list| (1..=MAX_LEVELS).contains(&list.len())) {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(refused(name, Some(&value), &format!("1 to {MAX_LEVELS} numbers are expected"))),
        }
    }

    /// Takes a flag.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&mut self, name: &'static str, default: bool) -> Result<bool, ModelError> {
        match self.0.remove(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| refused(name, Some(&value), "true or false is expected")),
        }
    }

    /// Takes a field that has one supported value, which `default` says whether is also that of an absent field.
    ///
    /// # Errors
    /// When it has another.
    pub fn only(&mut self, name: &'static str, supported: &Value, default: bool) -> Result<(), ModelError> {
        match self.0.remove(name) {
            None if default => Ok(()),
            Some(value) if value == *supported => Ok(()),
            found => Err(refused(name, found.as_ref(), &format!("only {supported} is"))),
        }
    }

    /// Takes a field that says nothing about how codes become pixels.
    pub fn ignore(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Refuses what nothing has taken; names that start with an underscore are notes.
    ///
    /// # Errors
    /// Names the first such field.
    pub fn finish(self) -> Result<(), ModelError> {
        match self.0.iter().find(|(name, _)| !name.starts_with('_')) {
            None => Ok(()),
            Some((name, value)) => Err(ModelError::Config {
                field: name.clone(),
                actual: value.to_string(),
                hint: "remove it if it does not change what is computed".to_owned(),
            }),
        }
    }
}

fn positive(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX).contains(n))
}

/// The refusal of a field's value; `None` is an absent field.
pub(super) fn refused(field: &'static str, found: Option<&Value>, hint: &str) -> ModelError {
    ModelError::Config {
        field: field.to_owned(),
        actual: found.map_or("(absent)".to_owned(), Value::to_string),
        hint: hint.to_owned(),
    }
}
