//! What is sent to judges and what they may answer: protocol v1 (JSON, whole groups) and OpenRLHF's `/get_reward`.
//!
//! An answer is read sample by sample: a lie about one costs only that one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{GroupInput, HookError, SampleInput, Score};

/// Longest answer that is read, bytes.
pub const MAX_ANSWER: usize = 8 << 20;
/// Key of a sample's metadata that holds the expected answer.
pub const ANSWER_KEY: &str = "answer";

/// Rewards that a hook may give, both ends included; `None` for any finite one.
pub type Range = Option<[f64; 2]>;

/// A request of protocol v1. Pictures travel as PNG in a data URL.
#[must_use]
pub fn request_v1(run: Uuid, hook: &str, groups: &[GroupInput]) -> Value {
    let groups: Vec<Value> = groups
        .iter()
        .map(|group| {
            let samples: Vec<Value> = group.samples.iter().map(sample_v1).collect();
            json!({ "group_id": group.group_id, "prompt": { "text": group.prompt }, "samples": samples })
        })
        .collect();
    json!({ "schema": 1, "run_id": run, "hook": hook, "groups": groups })
}

fn sample_v1(sample: &SampleInput) -> Value {
    let feedback: Vec<Value> = sample
        .ratings
        .iter()
        .map(|rating| json!({ "metric": rating.metric, "value": rating.value, "source": "user" }))
        .collect();
    let mut value = json!({
        "sample_id": sample.id,
        "completion": sample.text,
        "finish": sample.finish_reason,
        "adapter_version": sample.adapter,
        "feedback": feedback,
        "metadata": sample.metadata,
    });
    if let Some(url) = sample.picture.as_ref().and_then(|picture| data_url(picture.get()?)) {
        value["image"] = Value::String(url);
    }
    value
}

fn data_url(image: &RgbImage) -> Option<String> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).ok()?;
    Some(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())))
}

/// A request as OpenRLHF's trainer sends it: parallel lists over all samples; a query is prompt and completion. Labels
/// are the metadata's expected answers. It has no place for pictures.
#[must_use]
pub fn request_openrlhf(groups: &[GroupInput]) -> Value {
    let each = || groups.iter().flat_map(|group| group.samples.iter().map(move |sample| (&group.prompt, sample)));
    json!({
        "query": each().map(|(prompt, sample)| format!("{prompt}{}", sample.text)).collect::<Vec<_>>(),
        "prompts": each().map(|(prompt, _)| prompt).collect::<Vec<_>>(),
        "labels": each().map(|(_, sample)| sample.metadata.get(ANSWER_KEY)).collect::<Vec<_>>(),
    })
}

#[derive(Deserialize)]
struct AnswerV1 {
    results: Vec<Value>,
}

/// Reads an answer of protocol v1 to a request about `groups`.
///
/// # Errors
/// `Protocol` or `NotFinite` when nothing of it can be read.
pub fn answer_v1(body: &[u8], groups: &[GroupInput], range: Range) -> Result<Vec<Vec<Score>>, HookError> {
    let answer: AnswerV1 = parse(body)?;
    let mut told: HashMap<Uuid, Option<Score>> =
        groups.iter().flat_map(|group| &group.samples).map(|sample| (sample.id, None)).collect();
    let mut unknown = false;
    for result in &answer.results {
        let id = result.get("sample_id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        match id.and_then(|id: Uuid| told.get_mut(&id)) {
            None => unknown = true,
            Some(slot) => {
                let first = slot.is_none();
                *slot = Some(if first { result_v1(result, range) } else { Err(HookError::DuplicateId) });
            }
        }
    }
    let absent = if unknown { HookError::UnknownId } else { HookError::Missing };
    let mut of = |sample: &SampleInput| told.remove(&sample.id).flatten().unwrap_or_else(|| Err(absent.clone()));
    Ok(groups.iter().map(|group| group.samples.iter().map(&mut of).collect()).collect())
}

fn result_v1(result: &Value, range: Range) -> Score {
    if result.get("error").is_some_and(|error| !error.is_null()) {
        return Err(HookError::Reported);
    }
    match result.get("reward") {
        None => Err(HookError::Protocol("a result has neither reward nor error".to_owned())),
        Some(reward) => score(reward, range),
    }
}

#[derive(Deserialize)]
struct AnswerOpenRlhf {
    rewards: Vec<Value>,
}

/// Reads an answer of OpenRLHF's protocol: one reward per sample, in order.
///
/// # Errors
/// `Protocol` also for a list of another length: there is no telling which rewards are whose.
pub fn answer_openrlhf(body: &[u8], groups: &[GroupInput], range: Range) -> Result<Vec<Vec<Score>>, HookError> {
    let answer: AnswerOpenRlhf = parse(body)?;
    let wanted: usize = groups.iter().map(|group| group.samples.len()).sum();
    if answer.rewards.len() != wanted {
        return Err(HookError::Protocol(format!("{} rewards for {wanted} samples", answer.rewards.len())));
    }
    let mut rewards = answer.rewards.iter().map(|reward| score(reward, range));
    Ok(groups.iter().map(|group| rewards.by_ref().take(group.samples.len()).collect()).collect())
}

fn score(reward: &Value, range: Range) -> Score {
    match reward {
        Value::Null => Ok(None),
        Value::Number(number) => within(number.as_f64().unwrap_or(f64::NAN), range).map(Some),
        Value::String(text) if NONFINITE.contains(&text.as_str()) => Err(HookError::NotFinite),
        _ => Err(HookError::Protocol("a reward is not a number".to_owned())),
    }
}

/// `value` if it is finite and in `range`.
///
/// # Errors
/// `NotFinite`, `OutOfRange`.
pub fn within(value: f64, range: Range) -> Result<f64, HookError> {
    if !value.is_finite() {
        return Err(HookError::NotFinite);
    }
    match range {
        Some([low, high]) if !(low..=high).contains(&value) => Err(HookError::OutOfRange { value, low, high }),
        _ => Ok(value),
    }
}

fn parse<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, HookError> {
    let quoted;
    let body = match quote_nonfinite(body) {
        Cow::Borrowed(body) => body,
        Cow::Owned(owned) => {
            quoted = owned;
            return serde_json::from_slice::<Value>(&quoted).and_then(T::deserialize).map_err(|e| fault(&e));
        }
    };
    serde_json::from_slice(body).map_err(|e| fault(&e))
}

/// Says what is wrong and where, never with what: an answer may quote a prompt.
fn fault(error: &serde_json::Error) -> HookError {
    if error.to_string().starts_with("number out of range") {
        return HookError::NotFinite;
    }
    let what = match error.classify() {
        serde_json::error::Category::Eof => "JSON that ends early",
        serde_json::error::Category::Syntax => "not JSON",
        _ => "JSON of another shape",
    };
    HookError::Protocol(format!("{what} at line {} column {}", error.line(), error.column()))
}

const NONFINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// Python writes numbers that JSON does not have, outside quotes; inside quotes they cost one sample, not the batch.
fn quote_nonfinite(body: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let (mut copied, mut i, mut in_string) = (0, 0, false);
    while i < body.len() {
        match body[i] {
            b'\\' if in_string => i += 1,
            b'"' => in_string = !in_string,
            b'-' | b'I' | b'N' if !in_string => {
                if let Some(word) = NONFINITE.iter().find(|word| body[i..].starts_with(word.as_bytes())) {
                    out.extend_from_slice(&body[copied..i]);
                    out.extend_from_slice(format!("\"{word}\"").as_bytes());
                    i += word.len();
                    copied = i;
                    continue;
                }
            }
            _ => {}
        }
        i += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(body);
    }
    out.extend_from_slice(&body[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
