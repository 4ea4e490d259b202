//! Settings of a request as a JSON object on the command line, for what has no flag of its own.

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a flag's value.
///
/// # Errors
/// When it is no JSON object.
pub(super) fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("a JSON object, such as '{\"steps\": 16}'".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// `params` with the fields of `settings` in place of its own.
///
/// # Errors
/// When a field is not one of `params`, or its value not one of the field's.
pub(super) fn overlaid<T: Serialize + DeserializeOwned>(params: &T, settings: &Value) -> anyhow::Result<T> {
    let mut value = serde_json::to_value(params)?;
    if let (Value::Object(value), Value::Object(settings)) = (&mut value, settings) {
        for (key, setting) in settings {
            let Some(field) = value.get_mut(key) else {
                let known: Vec<&str> = value.keys().map(String::as_str).collect();
                bail!("there is no setting {key}; there are {}", known.join(", "));
            };
            *field = setting.clone();
        }
    }
    serde_json::from_value(value).with_context(|| format!("settings {settings}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::defaults::TextDefaults;
    use crate::engine::job::{TextParams, TextSampler};

    #[test]
    fn settings_replace_what_they_name_and_nothing_unknown_passes() {
        let with = |settings: Value| overlaid::<TextParams>(&TextDefaults::default().params(), &settings);
        let params = with(json!({ "sampler": { "kind": "factor", "factor": 0.5 }, "steps": 3 })).unwrap();
        assert_eq!(params.sampler, TextSampler::Factor { factor: 0.5 });
        assert_eq!(params, TextParams { sampler: params.sampler, steps: 3, ..TextDefaults::default().params() });
        let said = |settings| format!("{:#}", with(settings).unwrap_err());
        assert!(said(json!({ "stpes": 3 })).contains("no setting stpes; there are block_length"));
        assert!(said(json!({ "steps": "three" })).contains("three"));
        assert!(object("[1]").unwrap_err().contains("a JSON object") && object("{").is_err());
    }
}
