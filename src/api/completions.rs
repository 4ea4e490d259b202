//! `/completions/{id}`: the record, its picture decoded again, and its removal.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::error::{ApiError, Problem};
use super::extract::{Path, Query};
use super::feedback::FeedbackValue;
use super::generate::common::Timing;
use super::generate::picture::{self, PictureFormat};
use super::generate::run;
use super::state::App;
use super::time::timestamp;
use crate::store::{self, CompletionRow, FeedbackRow, Kind};

/// A stored completion.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionRecord {
    /// Its id.
    pub id: Uuid,
    /// Shared by the completions of one request.
    pub group: Uuid,
    /// Which of the `n`.
    pub index: u32,
    /// `text` or `image`.
    #[schema(value_type = String, example = "text")]
    pub kind: Kind,
    /// Served model.
    pub model: String,
    /// SHA-256 of the base weights.
    pub base_sha256: String,
    /// `name@version`.
    pub adapter: String,
    /// The prompt as sent; null when it was ids.
    pub prompt: Option<String>,
    /// Ids that the model saw, layout included.
    pub prompt_token_ids: Vec<u32>,
    /// Generated ids; for an image its codes, row by row.
    pub tokens: Vec<u32>,
    /// Step at which each was committed; −1 when it was given.
    pub commit_steps: Vec<i32>,
    /// Log-probability of each when it was committed.
    pub logprobs: Vec<f32>,
    /// The text; empty for images.
    pub text: String,
    /// Rows and columns of an image's token grid.
    pub grid: Option<(u32, u32)>,
    /// Effective settings.
    #[schema(value_type = Object)]
    pub params: Value,
    /// Its seed.
    pub seed: u64,
    /// `stop`, `length` or `deadline`.
    pub finish_reason: String,
    /// Forwards.
    pub steps: u32,
    /// Rows evaluated.
    pub positions_evaluated: u64,
    /// Milliseconds.
    pub timing: Timing,
    /// The client's own pairs.
    #[schema(value_type = Object)]
    pub metadata: Value,
    /// RFC 3339.
    #[schema(example = "2026-01-31T12:00:00.123456Z")]
    pub created_at: String,
    /// Ratings: the newest of each rater for each metric.
    pub feedback: Vec<FeedbackRecord>,
}

/// A stored rating.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FeedbackRecord {
    /// Its id, for `DELETE /feedback/{id}`.
    pub id: Uuid,
    /// Name of the metric.
    pub metric: String,
    /// Boolean, number or text.
    #[schema(value_type = FeedbackValue)]
    pub value: store::Value,
    /// RFC 3339.
    #[schema(example = "2026-01-31T12:00:00.123456Z")]
    pub created_at: String,
}

/// How to show the picture.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PictureQuery {
    /// Encoding.
    format: Option<PictureFormat>,
    /// The picture as it was after this zero-based step.
    step: Option<u32>,
}

/// The record of a completion, with its ratings.
#[utoipa::path(get, path = "/completions/{id}", tag = "completions", params(("id" = Uuid, Path)), responses(
    (status = 200, description = "The record.", body = CompletionRecord),
    (status = 404, description = "Not in the log.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_completion(
    State(app): State<App>,
    Path(id): Path<Uuid>,
) -> Result<Json<CompletionRecord>, ApiError> {
    let row = find(&app, id).await?;
    let feedback = app.store.feedback_of(id).await?;
    Ok(Json(CompletionRecord::new(row, feedback)))
}

/// The picture of an image completion, decoded again from its codes.
#[utoipa::path(get, path = "/completions/{id}/image", tag = "completions",
    params(("id" = Uuid, Path), PictureQuery), responses(
    (status = 200, description = "The picture.", content(
        (String = "image/png"), (String = "image/jpeg"), (String = "image/webp"))),
    (status = 404, description = "Not in the log, or a text.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_completion_image(
    State(app): State<App>,
    Path(id): Path<Uuid>,
    Query(query): Query<PictureQuery>,
) -> Result<Response, ApiError> {
    let (codes, grid) = codes_at(find(&app, id).await?, query.step)?;
    let picture = picture::draw(&app, codes, grid, query.format.unwrap_or_default()).await?;
    Ok(run::file(picture, "private, max-age=3600"))
}

/// Removes a completion and its ratings.
#[utoipa::path(delete, path = "/completions/{id}", tag = "completions", params(("id" = Uuid, Path)), responses(
    (status = 204, description = "Removed."),
    (status = 404, description = "Not in the log.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_completion(State(app): State<App>, Path(id): Path<Uuid>) -> Result<StatusCode, ApiError> {
    if app.store.delete_completion(id).await? { Ok(StatusCode::NO_CONTENT) } else { Err(missing(id)) }
}

async fn find(app: &App, id: Uuid) -> Result<CompletionRow, ApiError> {
    app.store.completion(id).await?.ok_or_else(|| missing(id))
}

fn missing(id: Uuid) -> ApiError {
    ApiError::NotFound {
        what: "completion",
        name: id.to_string(),
        field: None,
        hint: "it was deleted, or made with \"store\": false; use an id from a generate reply",
    }
}

/// Codes row by row; `None` where masked.
type PartialCodes = Vec<Option<u32>>;

/// The codes of an image after a step (or at the end), masked where they were not committed yet.
fn codes_at(row: CompletionRow, step: Option<u32>) -> Result<(PartialCodes, (usize, usize)), ApiError> {
    let (Kind::Image, Some((rows, columns))) = (row.kind, row.grid) else {
        return Err(ApiError::NotFound {
            what: "image of completion",
            name: row.id.to_string(),
            field: None,
            hint: "it is a text: GET /completions/{id} has it",
        });
    };
    let committed = |at: &i32| step.is_none_or(|step| i64::from(*at) <= i64::from(step));
    let codes = row.tokens.iter().zip(&row.commit_steps).map(|(code, at)| committed(at).then_some(*code));
    Ok((codes.collect(), (rows as usize, columns as usize)))
}

impl CompletionRecord {
    fn new(row: CompletionRow, feedback: Vec<FeedbackRow>) -> Self {
        Self {
            id: row.id,
            group: row.group,
            index: row.index,
            kind: row.kind,
            model: row.model,
            base_sha256: row.base_sha256,
            adapter: row.adapter,
            prompt: row.prompt,
            prompt_token_ids: row.prompt_ids,
            tokens: row.tokens,
            commit_steps: row.commit_steps,
            logprobs: row.logprobs,
            text: row.text,
            grid: row.grid,
            params: row.params,
            seed: row.seed,
            finish_reason: row.finish_reason,
            steps: row.steps,
            positions_evaluated: row.positions_evaluated,
            timing: Timing { queue_ms: row.queue_ms, denoise_ms: row.denoise_ms },
            metadata: row.metadata,
            created_at: timestamp(row.created_us),
            feedback: feedback.into_iter().map(FeedbackRecord::from).collect(),
        }
    }
}

impl From<FeedbackRow> for FeedbackRecord {
    fn from(row: FeedbackRow) -> Self {
        Self { id: row.id, metric: row.metric, value: row.value, created_at: timestamp(row.created_us) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(kind: Kind) -> CompletionRow {
        CompletionRow {
            id: Uuid::nil(),
            group: Uuid::nil(),
            index: 0,
            kind,
            model: "starter".to_owned(),
            base_sha256: "00".to_owned(),
            adapter: "base@0".to_owned(),
            prompt: None,
            prompt_ids: vec![],
            tokens: vec![5, 6, 7, 8],
            commit_steps: vec![-1, 0, 2, 1],
            logprobs: vec![0.0; 4],
            text: String::new(),
            grid: (kind == Kind::Image).then_some((2, 2)),
            params: json!({}),
            seed: 1,
            finish_reason: "stop".to_owned(),
            steps: 3,
            positions_evaluated: 12,
            queue_ms: 0.0,
            denoise_ms: 1.0,
            subject_hash: Some(vec![1, 2, 3]),
            metadata: json!({}),
            created_us: 1_000_000,
        }
    }

    #[test]
    fn replay_masks_what_was_not_committed_yet() {
        let at = |step| codes_at(row(Kind::Image), step).unwrap().0;
        assert_eq!(at(None), [Some(5), Some(6), Some(7), Some(8)]);
        assert_eq!(at(Some(0)), [Some(5), Some(6), None, None]);
        assert_eq!(at(Some(1)), [Some(5), Some(6), None, Some(8)]);
        assert_eq!(at(Some(u32::MAX)), at(None));
    }

    #[test]
    fn a_text_has_no_picture() {
        assert_eq!(codes_at(row(Kind::Text), None).unwrap_err().problem().status, 404);
    }

    #[test]
    fn the_subject_is_not_shown() {
        let record = serde_json::to_value(CompletionRecord::new(row(Kind::Text), vec![])).unwrap();
        assert!(record.get("subject_hash").is_none());
        assert_eq!(record["created_at"], "1970-01-01T00:00:01Z");
    }
}
