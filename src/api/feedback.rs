//! `POST /feedback`: what people say of a completion. A 201 means that it is on stable storage.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Problem};
use super::extract::{Json, Path};
use super::generate::check::{self, FIXED};
use super::generate::common::user;
use super::idempotency::{self, Identity};
use super::limits::fixed;
use super::metrics;
use super::state::App;
use crate::store::{NewFeedback, SubjectKey, Value};

/// A rating.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"completion_id": "0199b3a4-7c1e-7d10-8a00-000000000000", "metric": "thumbs", "value": true}))]
pub(crate) struct FeedbackRequest {
    /// What is rated.
    pub completion_id: String,
    /// Name of the metric: a letter, then letters, digits, `_`, `-` or `.`, at most 64.
    #[schema(pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
    pub metric: String,
    /// Boolean (thumbs), finite number (score) or text (comment or correction).
    pub value: FeedbackValue,
    /// Id of the rater; only a keyed hash is kept. A rater's newest rating of a metric counts.
    pub user: Option<String>,
}

/// The value of a rating.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected true, false, a number or a text")]
pub(crate) enum FeedbackValue {
    /// Thumbs.
    Bool(bool),
    /// A finite score.
    Number(f64),
    /// A comment or correction.
    Text(String),
}

/// The answer to a rating.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FeedbackReply {
    /// For `DELETE /feedback/{id}`.
    pub feedback_id: Uuid,
    /// What was rated.
    pub completion_id: Uuid,
    /// Adapter that made it.
    pub adapter: String,
}

/// Rates a completion.
///
/// With an `Idempotency-Key` a repeated request is stored once: it gets the first answer, with the header
/// `Idempotency-Replayed: true`.
#[utoipa::path(post, path = "/feedback", tag = "feedback", request_body = FeedbackRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "Up to 255 bytes.")), responses(
    (status = 201, description = "On stable storage.", body = FeedbackReply),
    (status = 400, description = "A field is wrong or outside its bounds.", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "The completion is not in the log.", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "The key was used with another body.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "The log is busy; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn add_feedback(
    State(app): State<App>,
    headers: HeaderMap,
    Json { value, bytes }: Json<FeedbackRequest>,
) -> Result<Response, ApiError> {
    let feedback = value.check(Identity::of(&headers, &bytes)?, &app.subjects)?;
    let (completion_id, rating) = (feedback.completion, feedback.value.clone());
    let ack = app.store.add_feedback(feedback).await?;
    if !ack.replayed {
        metrics::rated(&rating);
    }
    let reply = FeedbackReply { feedback_id: ack.id, completion_id, adapter: ack.adapter };
    Ok(idempotency::created(reply, ack.replayed))
}

/// Takes a rating back.
#[utoipa::path(delete, path = "/feedback/{id}", tag = "feedback", params(("id" = Uuid, Path)), responses(
    (status = 204, description = "Removed."),
    (status = 404, description = "Not in the log.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn delete_feedback(State(app): State<App>, Path(id): Path<Uuid>) -> Result<StatusCode, ApiError> {
    if app.store.delete_feedback(id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    let hint = "use the feedback_id of a POST /feedback reply";
    Err(ApiError::NotFound { what: "feedback", name: id.to_string(), field: None, hint })
}

impl FeedbackRequest {
    /// Checks every field; pure.
    fn check(self, identity: Identity, subjects: &SubjectKey) -> Result<NewFeedback, ApiError> {
        let completion = completion_id("completion_id", &self.completion_id)?;
        metric(&self.metric)?;
        user(self.user.as_deref())?;
        Ok(NewFeedback {
            completion,
            metric: self.metric,
            value: self.value.check()?,
            subject_hash: self.user.as_deref().map(|user| subjects.hash_subject(user)),
            idempotency_key: identity.key,
            body_sha256: identity.body_sha256,
        })
    }
}

impl FeedbackValue {
    fn check(self) -> Result<Value, ApiError> {
        match self {
            Self::Bool(value) => Ok(Value::Bool(value)),
            Self::Number(value) if value.is_finite() => Ok(Value::Number(value)),
            Self::Number(_) => Err(ApiError::invalid("value", "is not a finite number", "send a finite number")),
            Self::Text(text) => {
                check::chars("value", &text, fixed::FEEDBACK_CHARS, FIXED)?;
                Ok(Value::Text(text))
            }
        }
    }
}

/// Checks the name of a metric.
pub(super) fn metric(name: &str) -> Result<(), ApiError> {
    check::chars("metric", name, fixed::METRIC_CHARS, FIXED)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.starts_with(|first: char| first.is_ascii_alphabetic()) && name.bytes().all(plain) {
        return Ok(());
    }
    let hint = "start with a letter and use only letters, digits, _ - and .";
    Err(ApiError::invalid("metric", "is not a metric's name", hint))
}

/// The id of a completion in a body; what is no UUID names none.
pub(super) fn completion_id(field: &'static str, id: &str) -> Result<Uuid, ApiError> {
    check::chars(field, id, 64, "ids are UUIDs, as in the replies")?;
    id.parse().map_err(|_| ApiError::unknown_completion(field, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(body: serde_json::Value) -> Result<NewFeedback, ApiError> {
        let request: FeedbackRequest = serde_json::from_value(body).unwrap();
        request.check(Identity { key: None, body_sha256: vec![] }, &SubjectKey::new([1; 32]))
    }

    fn with(field: &str, value: serde_json::Value) -> Result<NewFeedback, ApiError> {
        let mut body = json!({"completion_id": Uuid::nil(), "metric": "thumbs", "value": true});
        body[field] = value;
        checked(body)
    }

    #[test]
    fn three_kinds_of_value() {
        assert_eq!(with("value", json!(true)).unwrap().value, Value::Bool(true));
        assert_eq!(with("value", json!(0.5)).unwrap().value, Value::Number(0.5));
        assert_eq!(with("value", json!(3)).unwrap().value, Value::Number(3.0));
        assert_eq!(with("value", json!("good")).unwrap().value, Value::Text("good".to_owned()));
        assert!(FeedbackValue::Number(f64::NAN).check().is_err());
        assert!(serde_json::from_value::<FeedbackValue>(json!([1])).is_err());
        assert!(serde_json::from_value::<FeedbackValue>(json!(null)).is_err());
    }

    #[test]
    fn every_field_is_bounded() {
        let problem = |field, value| with(field, value).unwrap_err().problem();
        assert_eq!(problem("value", json!("x".repeat(4001))).limit, Some(4000.into()));
        assert_eq!(problem("metric", json!("x".repeat(65))).limit, Some(64.into()));
        assert_eq!(problem("user", json!("x".repeat(257))).limit, Some(256.into()));
        for bad in ["", "1st", "a b", "ä", "a\n"] {
            assert_eq!(problem("metric", json!(bad)).field.unwrap(), "metric", "{bad:?}");
        }
    }

    #[test]
    fn an_id_that_is_no_uuid_is_an_unknown_completion() {
        let problem = with("completion_id", json!("nope")).unwrap_err().problem();
        assert_eq!((problem.status, problem.field.as_deref()), (404, Some("completion_id")));
    }

    #[test]
    fn the_rater_is_hashed() {
        let subject = with("user", json!("ann")).unwrap().subject_hash.unwrap();
        assert_eq!(subject, SubjectKey::new([1; 32]).hash_subject("ann"));
    }
}
