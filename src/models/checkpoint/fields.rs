//! A `config.json` read to the last field: what is not honoured must be known to change nothing, or it is refused.

use serde_json::{Map, Value};

use crate::models::ModelError;

/// Fields that say nothing about what the model computes: how it is loaded, trained or exported elsewhere.
const HARMLESS: [&str; 15] = [
    "_name_or_path",
    "architectures",
    "attention_dropout", // at training time only, as all dropouts
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "dtype", // the dtype of the tensors is in their files
    "initializer_range",
    "pad_token_id", // nothing is ever padded here
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "gradient_checkpointing",
];

/// The fields that have not been read yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// The value of a field, read once; null is absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A required number of things.
    pub(super) fn size(&mut self, name: &str) -> Result<usize, ModelError> {
        self.maybe_size(name)?.ok_or_else(|| missing(name, "it must be a number from 1 on"))
    }

    /// A number of things, if there is one.
    pub(super) fn maybe_size(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        // Sizes beyond this are typing errors, and products of two stay far from overflow.
        match value.as_u64() {
            Some(size @ 1..=0x7FFF_FFFF) => Ok(Some(size as usize)),
            _ => Err(refused(name, &value, "it must be a whole number from 1 to 2147483647")),
        }
    }

    /// A required token id.
    pub(super) fn id(&mut self, name: &str, hint: &str) -> Result<u32, ModelError> {
        self.maybe_id(name)?.ok_or_else(|| missing(name, hint))
    }

    /// A token id, if there is one.
    pub(super) fn maybe_id(&mut self, name: &str) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(Some).ok_or_else(|| refused(name, &value, "it must be one token id"))
    }

    /// A number above 0.
    pub(super) fn positive(&mut self, name: &str, default: Option<f64>) -> Result<f64, ModelError> {
        let Some(value) = self.take(name) else {
            return default.ok_or_else(|| missing(name, "it must be a number above 0"));
        };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| refused(name, &value, "it must be a number above 0"))
    }

    /// A switch.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.take(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| refused(name, &value, "it must be true or false"))
    }

    /// Refuses a field that has another value than the one implemented; absent or null is that value.
    pub(super) fn only(&mut self, name: &str, value: impl Into<Value>, hint: &str) -> Result<(), ModelError> {
        let value = value.into();
        match self.take(name) {
            Some(found) if found != value && !(found.as_f64().is_some() && found.as_f64() == value.as_f64()) => {
                Err(refused(name, &found, hint))
            }
            _ => Ok(()),
        }
    }

    /// Skips fields that change nothing in this family.
    pub(super) fn skip(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Refuses what nobody has read.
    pub(super) fn finish(mut self) -> Result<(), ModelError> {
        self.skip(&HARMLESS);
        let hint = "this build does not know the field; if it changes nothing, remove it from the file";
        self.0.iter().next().map_or(Ok(()), |(name, value)| Err(refused(name, value, hint)))
    }
}

pub(super) fn refused(field: &str, actual: &Value, hint: &str) -> ModelError {
    let mut actual = actual.to_string();
    if actual.len() > 200 {
        actual = format!("{}…", actual.chars().take(200).collect::<String>());
    }
    ModelError::Config { field: field.to_owned(), actual, hint: hint.to_owned() }
}

pub(super) fn missing(field: &str, hint: &str) -> ModelError {
    ModelError::ConfigMissing { field: field.to_owned(), hint: hint.to_owned() }
}
