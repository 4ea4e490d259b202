//! A `config.json` read to the last field: what is not honoured must be known to change nothing, or it is refused.
//! The one reader for models and codecs; which fields there are is theirs to say.

use std::path::Path;

use serde_json::{Map, Value};

use super::ModelError;

/// Its name in a model's folder and in a codec's.
pub const CONFIG: &str = "config.json";

/// Most bytes of a JSON file that is not an index of tensors.
const MAX_BYTES: u64 = 1 << 20;
/// Largest number of things: one beyond this is a typing error, and products of two stay far from overflow.
const MAX_SIZE: u64 = 0x7FFF_FFFF;

/// The fields that have not been read yet.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    most: u64,
}

impl Fields {
    /// Those of a JSON object.
    #[must_use]
    pub fn new(left: Map<String, Value>) -> Self {
        Self { left, most: MAX_SIZE }
    }

    /// With sizes of `most` and not more.
    #[must_use]
    pub fn up_to(self, most: u64) -> Self {
        Self { most, ..self }
    }

    /// Looks at a text without reading it.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.left.get(name).and_then(Value::as_str)
    }

    /// The value of a field, read once; null is absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// A required number of things.
    ///
    /// # Errors
    /// Names the field.
    pub fn size(&mut self, name: &str) -> Result<usize, ModelError> {
        self.maybe_size(name)?.ok_or_else(|| missing(name, "it must be a number from 1 on"))
    }

    /// A number of things, if there is one.
    ///
    /// # Errors
    /// Names the field.
    pub fn maybe_size(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        self.counts(&value)
            .map(Some)
            .ok_or_else(|| refused(name, &value, &format!("it must be a whole number from 1 to {}", self.most)))
    }

    /// A list of 1 to `most` numbers of things, if there is one.
    ///
    /// # Errors
    /// Names the field.
    pub fn sizes(&mut self, name: &str, most: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let sizes =
            value.as_array().and_then(|list| list.iter().map(|one| self.counts(one)).collect::<Option<Vec<_>>>());
        match sizes.filter(|list| (1..=most).contains(&list.len())) {
            Some(sizes) => Ok(Some(sizes)),
            None => {
                Err(refused(name, &value, &format!("it must be a list of 1 to {most} numbers up to {}", self.most)))
            }
        }
    }

    fn counts(&self, value: &Value) -> Option<usize> {
        value.as_u64().filter(|size| (1..=self.most).contains(size)).map(|size| size as usize)
    }

    /// A required token id.
    ///
    /// # Errors
    /// Names the field.
    pub fn id(&mut self, name: &str, hint: &str) -> Result<u32, ModelError> {
        self.maybe_id(name)?.ok_or_else(|| missing(name, hint))
    }

    /// A token id, if there is one.
    ///
    /// # Errors
    /// Names the field.
    pub fn maybe_id(&mut self, name: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| refused(name, &value, "it must be one token id"))
    }

    /// A number above 0.
    ///
    /// # Errors
    /// Names the field.
    pub fn positive(&mut self, name: &str, default: Option<f64>) -> Result<f64, ModelError> {
        let Some(value) = self.take(name) else {
            return default.ok_or_else(|| missing(name, "it must be a number above 0"));
        };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| refused(name, &value, "it must be a number above 0"))
    }

    /// A switch.
    ///
    /// # Errors
    /// Names the field.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.take(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| refused(name, &value, "it must be true or false"))
    }

    /// Refuses a field that has another value than the one implemented; absent or null is that value.
    ///
    /// # Errors
    /// Names the field.
    pub fn only(&mut self, name: &str, value: impl Into<Value>, hint: &str) -> Result<(), ModelError> {
        let value = value.into();
        match self.take(name) {
            Some(found) if found != value && !(found.as_f64().is_some() && found.as_f64() == value.as_f64()) => {
                Err(refused(name, &found, hint))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a field that has not the one value implemented, which is not what its absence means.
    ///
    /// # Errors
    /// Names the field.
    pub fn must(&mut self, name: &str, value: impl Into<Value>, hint: &str) -> Result<(), ModelError> {
        match self.left.get(name) {
            None | Some(Value::Null) => Err(missing(name, hint)),
            Some(_) => self.only(name, value, hint),
        }
    }

    /// Skips fields that change nothing here.
    pub fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.left.remove(*name);
        }
    }

    /// Refuses what nobody has read and is not `harmless`.
    ///
    /// # Errors
    /// Names the field.
    pub fn finish(self, harmless: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let hint = "this build does not know the field; if it changes nothing, remove it from the file";
        let unread = self.left.iter().find(|(name, _)| !harmless(name));
        unread.map_or(Ok(()), |(name, value)| Err(refused(name, value, hint)))
    }
}

/// A JSON object of `folder`, if the file is there.
///
/// # Errors
/// When it cannot be read, is too large or is something else.
pub fn object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, ModelError> {
    let bytes = read(folder, name, MAX_BYTES)?;
    let parsed = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    parsed.map_err(|e| ModelError::File(format!("{name}: {e}")))
}

/// The fields of the `config.json` of `folder`.
///
/// # Errors
/// When it is missing or is no JSON object.
pub fn config(folder: &Path) -> Result<Map<String, Value>, ModelError> {
    object(folder, CONFIG)?.ok_or_else(|| ModelError::File(format!("{CONFIG} is missing")))
}

/// The bytes of a file of `folder`, if it is there.
pub(super) fn read(folder: &Path, name: &str, most: u64) -> Result<Option<Vec<u8>>, ModelError> {
    let failed = |e: &dyn std::fmt::Display| ModelError::File(format!("{name}: {e}"));
    let path = folder.join(name);
    match std::fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(&e)),
        Ok(found) if found.len() > most => Err(failed(&format!("{} bytes; at most {most} are read", found.len()))),
        Ok(_) => std::fs::read(&path).map(Some).map_err(|e| failed(&e)),
    }
}

/// The refusal of a value.
#[must_use]
pub fn refused(field: &str, actual: &Value, hint: &str) -> ModelError {
    let mut actual = actual.to_string();
    if actual.len() > 200 {
        actual = format!("{}…", actual.chars().take(200).collect::<String>());
    }
    ModelError::Config { field: field.to_owned(), actual, hint: hint.to_owned() }
}

/// The refusal of a file without the field.
#[must_use]
pub fn missing(field: &str, hint: &str) -> ModelError {
    ModelError::ConfigMissing { field: field.to_owned(), hint: hint.to_owned() }
}
