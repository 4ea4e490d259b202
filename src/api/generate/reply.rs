//! The replies of the generate routes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::common::{Returns, Timing, Usage};
use super::picture::{Picture, PictureFormat};
use crate::engine::Finished;
use crate::engine::job::FinishReason;

/// The plain reply, and the data of the SSE event `done`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(in crate::api) enum Reply {
    Text(TextReply),
    Image(ImageReply),
}

/// The reply of `POST /generate/text`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TextReply {
    /// Shared by the completions of this request.
    pub id: Uuid,
    /// Served model.
    #[schema(example = "starter")]
    pub model: String,
    /// `name@version`.
    #[schema(example = "base@0")]
    pub adapter: String,
    /// In order of index.
    pub completions: Vec<TextCompletion>,
    /// Tokens.
    pub usage: Usage,
    /// Milliseconds.
    pub timing: Timing,
    /// Effective settings, defaults filled in.
    #[schema(value_type = Object)]
    pub params: Value,
}

/// One text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TextCompletion {
    /// For `/completions/{id}` and `/feedback`.
    pub id: Uuid,
    /// The text.
    pub text: String,
    /// `stop`, `length` or `deadline`.
    #[schema(example = "stop")]
    pub finish_reason: &'static str,
    /// Its seed.
    pub seed: u64,
    /// Generated ids, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Step at which each was committed; −1 when it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_steps: Option<Vec<i32>>,
    /// Log-probability of each when it was committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// Forwards.
    pub steps: u32,
    /// Rows evaluated.
    pub positions_evaluated: u64,
    /// PPT: rows evaluated per token of the result.
    pub ppt: f64,
}

/// The reply of `POST /generate/image`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageReply {
    /// Shared by the images of this request.
    pub id: Uuid,
    /// Served model.
    #[schema(example = "starter")]
    pub model: String,
    /// `name@version`.
    #[schema(example = "base@0")]
    pub adapter: String,
    /// In order of index.
    pub images: Vec<ImageCompletion>,
    /// Tokens.
    pub usage: Usage,
    /// Milliseconds.
    pub timing: Timing,
    /// Effective settings, defaults filled in.
    #[schema(value_type = Object)]
    pub params: Value,
}

/// One image.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ImageCompletion {
    /// For `/completions/{id}` and `/feedback`.
    pub id: Uuid,
    /// The picture file in base64.
    pub b64: String,
    /// Its encoding.
    pub format: PictureFormat,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// `stop` or `deadline`.
    #[schema(example = "stop")]
    pub finish_reason: &'static str,
    /// Its seed.
    pub seed: u64,
    /// Codes row by row, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes: Option<Vec<u32>>,
    /// Step at which each was committed; −1 when it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_steps: Option<Vec<i32>>,
    /// Log-probability of each when it was committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    /// Forwards.
    pub steps: u32,
    /// Rows evaluated.
    pub positions_evaluated: u64,
    /// PPT: rows evaluated per token of the result.
    pub ppt: f64,
}

impl TextCompletion {
    pub(super) fn new(finished: Finished, returns: Returns) -> Self {
        Self {
            id: finished.id,
            finish_reason: reason(finished.finish_reason),
            seed: finished.seed,
            steps: finished.steps,
            positions_evaluated: finished.positions_evaluated,
            ppt: finished.ppt(),
            token_ids: returns.tokens.then_some(finished.tokens),
            commit_steps: returns.commit_steps.then_some(finished.commit_steps),
            logprobs: returns.logprobs.then_some(finished.logprobs),
            text: finished.text,
        }
    }
}

impl ImageCompletion {
    pub(super) fn new(finished: Finished, picture: &Picture, returns: Returns) -> Self {
        Self {
            id: finished.id,
            b64: base64(&picture.bytes),
            format: picture.format,
            width: picture.width,
            height: picture.height,
            finish_reason: reason(finished.finish_reason),
            seed: finished.seed,
            steps: finished.steps,
            positions_evaluated: finished.positions_evaluated,
            ppt: finished.ppt(),
            codes: returns.tokens.then_some(finished.tokens),
            commit_steps: returns.commit_steps.then_some(finished.commit_steps),
            logprobs: returns.logprobs.then_some(finished.logprobs),
        }
    }
}

impl Usage {
    pub(super) fn of(finished: &[Finished]) -> Self {
        Self {
            prompt_tokens: finished.first().map_or(0, |one| one.prompt_ids.len()),
            completion_tokens: finished.iter().map(Finished::committed).sum(),
        }
    }
}

impl Timing {
    pub(super) fn of(finished: &[Finished]) -> Self {
        let slowest = |time: fn(&Finished) -> std::time::Duration| finished.iter().map(time).max().unwrap_or_default();
        Self {
            queue_ms: milliseconds(slowest(|one| one.queued)),
            denoise_ms: milliseconds(slowest(|one| one.denoising)),
        }
    }
}

/// Milliseconds, to the microsecond.
pub(in crate::api) fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// The word for it in replies and in the log.
pub(in crate::api) fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Deadline => "deadline",
    }
}

/// Standard base64 with padding.
pub(in crate::api) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
