//! Samples and groups for the tests of this folder.

use serde_json::json;
use uuid::Uuid;

use super::{GroupInput, Kind, SampleInput};

pub(super) fn sample(id: u128, text: &str) -> SampleInput {
    SampleInput {
        id: Uuid::from_u128(id),
        text: text.to_owned(),
        picture: None,
        finish_reason: "stop".to_owned(),
        adapter: None,
        ratings: Vec::new(),
        metadata: json!({}),
    }
}

/// Group `g` with `n` samples; ids are distinct among groups.
pub(super) fn group(g: u128, n: u128) -> GroupInput {
    let samples = (0..n).map(|i| sample(g * 1000 + i, &format!("completion {i}"))).collect();
    GroupInput { group_id: Uuid::from_u128(1_000_000 + g), prompt: format!("prompt {g}"), kind: Kind::Text, samples }
}
