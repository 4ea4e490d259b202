//! `adapter_config.json`: what of PEFT's `LoraConfig` is honoured, what is harmless, and what is refused by name.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::json::Object;
use super::{AdapterError, Base, CONFIG_FILE};
use crate::models::lora::{Lora, Target};

/// Largest scale: beyond, f32 factors lose all meaning.
const MAX_SCALE: f64 = 1e4;

/// Fields that do not change what a trained adapter computes.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// Fields that are read.
const READ: &[&str] = &[
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_rslora",
];

/// Ways of initialising that leave the base as it is. The others (PiSSA, OLoRA, LoftQ, CorDA…) subtract from it, so
/// their factors mean something else on the plain base.
const INIT: &[&str] = &["gaussian", "orthogonal", "eva", "lora_ga"];

/// How the factors are applied.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    rank: usize,
    alpha: f64,
    /// α/√r instead of α/r (arXiv 2312.03732).
    rslora: bool,
    ranks: BTreeMap<String, usize>,
    alphas: BTreeMap<String, f64>,
    /// Ends of module paths; `None` when a regular expression chose them.
    targets: Option<Vec<String>>,
    /// Some modules that `targets` names were left out on purpose.
    partial: bool,
    /// The base it was made for, when it says so.
    pub(super) base_sha256: Option<String>,
}

impl Settings {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, AdapterError> {
        let Object(fields) = serde_json::from_slice(bytes).map_err(|e| malformed(format!("not a JSON object: {e}")))?;
        refuse_unsupported(&fields)?;
        let get = |field: &str| fields.get(field).filter(|value| !value.is_null());
        let rank = get("r").ok_or_else(|| malformed("r (the rank) is missing".into()))?;
        let alpha = get("lora_alpha").ok_or_else(|| malformed("lora_alpha is missing".into()))?;
        let hex = |text: &&str| text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit());
        let settings = Self {
            rank: positive("r", rank)?,
            alpha: alpha_of("lora_alpha", alpha)?,
            rslora: get("use_rslora").is_some_and(|value| *value == json!(true)),
            ranks: pattern("rank_pattern", get("rank_pattern"), positive)?,
            alphas: pattern("alpha_pattern", get("alpha_pattern"), alpha_of)?,
            targets: targets(get("target_modules"))?,
            partial: get("layers_to_transform").is_some() || get("exclude_modules").is_some(),
            base_sha256: get("revision").and_then(Value::as_str).filter(hex).map(str::to_owned),
        };
        check_scale("lora_alpha", settings.scale_with(settings.alpha, settings.rank))?;
        Ok(settings)
    }

    /// The scale of modules that no pattern names.
    pub(super) fn scale(&self) -> f64 {
        self.scale_with(self.alpha, self.rank)
    }

    /// Rank and scale of a module.
    pub(super) fn of(&self, module: &str) -> Result<(usize, f64), AdapterError> {
        let rank = chosen("rank_pattern", &self.ranks, module)?.unwrap_or(self.rank);
        let alpha = chosen("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let scale = self.scale_with(alpha, rank);
        check_scale(module, scale)?;
        Ok((rank, scale))
    }

    /// Refuses patterns and targets that name no module of the base: they were meant for another one.
    pub(super) fn check_modules(&self, modules: &[String], base: &Base) -> Result<(), AdapterError> {
        let keys = self.ranks.keys().map(|key| ("rank_pattern", key));
        let keys = keys.chain(self.alphas.keys().map(|key| ("alpha_pattern", key)));
        let keys = keys.chain(self.targets.iter().flatten().map(|key| ("target_modules", key)));
        for (field, key) in keys {
            if !modules.iter().any(|module| ends(module, key)) {
                let hint = format!("it names no module of the base that can be adapted; those are {}", adaptable(base));
                return Err(unsupported(field, &json!(key), &hint));
            }
        }
        Ok(())
    }

    /// Whether `target_modules` names `module`; `None` when it is a regular expression.
    pub(super) fn targets(&self, module: &str) -> Option<bool> {
        Some(self.targets.as_ref()?.iter().any(|target| ends(module, target)))
    }

    /// Whether every module that `target_modules` names must be in the file.
    pub(super) fn complete(&self) -> bool {
        !self.partial
    }

    fn scale_with(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// The modules of `base` that can be adapted, for messages.
pub(super) fn adaptable(base: &Base) -> String {
    let names = base.config.variant.names;
    let parts = Target::ALL.map(|target| names.part(target.part())).join(", ");
    format!("{}.N.{{{parts}}}", names.layers())
}

/// Whether `key` is `module` or an end of it, from a dot on: what PEFT's `target_modules` and patterns mean.
fn ends(module: &str, key: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The value of the keys that match a module. PEFT takes the first in file order; JSON objects have no order, so two
/// that differ are refused.
fn chosen<T: PartialEq + Copy>(
    field: &str,
    patterns: &BTreeMap<String, T>,
    module: &str,
) -> Result<Option<T>, AdapterError> {
    let mut found = patterns.iter().filter(|(key, _)| ends(module, key));
    let Some((first, value)) = found.next() else { return Ok(None) };
    match found.find(|(_, other)| *other != value) {
        None => Ok(Some(*value)),
        Some((second, _)) => {
            let hint = format!("{first} and {second} both match {module}; name it once");
            Err(unsupported(field, &json!([first, second]), &hint))
        }
    }
}

fn refuse_unsupported(fields: &BTreeMap<String, Value>) -> Result<(), AdapterError> {
    let none = Value::Null;
    let get = |field: &str| fields.get(field).unwrap_or(&none);
    let refuse = |field: &str, hint: &str| Err(unsupported(field, get(field), hint));
    if get("peft_type").as_str() != Some("LORA") {
        return refuse("peft_type", "only LORA adapters can be loaded");
    }
    for (field, value) in fields {
        let inert = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty() || (field == "bias" && text == "none"),
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if !inert && !HARMLESS.contains(&field.as_str()) && !READ.contains(&field.as_str()) {
            return refuse(field, hint(field));
        }
    }
    match get("init_lora_weights") {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::String(init) if INIT.contains(&init.as_str()) => Ok(()),
        _ => {
            refuse("init_lora_weights", "it changes the base's weights; have PEFT convert it to a plain LoRA on saving")
        }
    }?;
    match get("use_rslora") {
        Value::Null | Value::Bool(_) => Ok(()),
        _ => refuse("use_rslora", "it is true or false"),
    }
}

fn hint(field: &str) -> &'static str {
    match field {
        "bias" => "biases are not trained here; train with bias=\"none\"",
        "use_dora" => "DoRA's magnitudes are not built; train a plain LoRA",
        "modules_to_save" => "whole modules cannot be replaced; adapt them with low-rank factors",
        "fan_in_fan_out" => "weights here are stored (out, in); train with fan_in_fan_out=false",
        "lora_bias" => "biases of the factors are not built; train with lora_bias=false",
        "target_parameters" => "only modules can be adapted; use target_modules",
        _ => "this build does not know what it does to the result; leave it at its default",
    }
}

fn targets(value: Option<&Value>) -> Result<Option<Vec<String>>, AdapterError> {
    match value {
        None | Some(Value::String(_)) => Ok(None),
        Some(Value::Array(items)) => {
            let text = |item: &Value| match item.as_str() {
                Some(text) if !text.is_empty() => Ok(text.to_owned()),
                _ => Err(unsupported("target_modules", item, "entries are names of modules")),
            };
            items.iter().map(text).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => Err(unsupported("target_modules", other, "it is a list of names or a regular expression")),
    }
}

/// `rank_pattern` or `alpha_pattern`. PEFT's keys are regular expressions; those that are plain paths are honoured.
fn pattern<T>(
    field: &str,
    value: Option<&Value>,
    read: fn(&str, &Value) -> Result<T, AdapterError>,
) -> Result<BTreeMap<String, T>, AdapterError> {
    let Some(value) = value else { return Ok(BTreeMap::new()) };
    let entries = value.as_object().ok_or_else(|| unsupported(field, value, "it maps module paths to numbers"))?;
    let plain =
        |key: &str| !key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.'));
    let entry = |(key, value): (&String, &Value)| {
        if !plain(key) {
            return Err(unsupported(field, &json!(key), "regular expressions are not; write each module's path"));
        }
        Ok((key.clone(), read(&format!("{field}.{key}"), value)?))
    };
    entries.iter().map(entry).collect()
}

fn positive(field: &str, value: &Value) -> Result<usize, AdapterError> {
    let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|&rank| rank > 0);
    rank.ok_or_else(|| unsupported(field, value, "a rank is a whole number of at least 1"))
}

fn alpha_of(field: &str, value: &Value) -> Result<f64, AdapterError> {
    let alpha = value.as_f64().filter(|alpha| alpha.is_finite() && *alpha > 0.0);
    alpha.ok_or_else(|| unsupported(field, value, "alpha is a number above 0"))
}

fn check_scale(field: &str, scale: f64) -> Result<(), AdapterError> {
    if scale <= MAX_SCALE {
        return Ok(());
    }
    Err(unsupported(
        field,
        &json!(scale),
        &format!("the scale that follows from alpha and rank is at most {MAX_SCALE}"),
    ))
}

fn unsupported(field: &str, value: &Value, hint: &str) -> AdapterError {
    let short = |text: String| match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    AdapterError::Unsupported {
        field: short(field.to_owned()),
        actual: short(value.to_string()),
        hint: hint.to_owned(),
    }
}

fn malformed(reason: String) -> AdapterError {
    // Parsers quote what they were given.
    AdapterError::Malformed { file: CONFIG_FILE, reason: reason.chars().take(300).collect() }
}

/// The settings with which PEFT applies `lora` as the transformer does. Modules of another rank than the largest have
/// theirs, and the α that gives the same scale, in the patterns.
pub(super) fn write(lora: &Lora, base: &Base) -> Result<Vec<u8>, AdapterError> {
    let rank = lora.pairs().values().map(|pair| pair.a.dims()[0]).max().unwrap_or(1);
    let (mut ranks, mut alphas, mut targets) = (serde_json::Map::new(), serde_json::Map::new(), Vec::new());
    for ((layer, target), pair) in lora.pairs() {
        // Whole paths: LLaDA's `ff_out` alone would name the head as well.
        let path = target.module(&base.config, *layer);
        let own = pair.a.dims()[0];
        if own != rank {
            ranks.insert(path.clone(), json!(own));
            alphas.insert(path.clone(), json!(lora.scale() * own as f64));
        }
        targets.push(path);
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": null,
        "base_model_name_or_path": base.model,
        "revision": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": lora.scale() * rank as f64,
        "lora_dropout": 0.0,
        "use_rslora": false,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "modules_to_save": null,
        "init_lora_weights": true,
    });
    serde_json::to_vec_pretty(&config).map_err(|e| malformed(e.to_string()))
}
