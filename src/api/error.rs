//! What a client is told when something is wrong: one [`ApiError`], one body (RFC 9457 problem details).
//!
//! Errors of the layers below end here; nothing else turns an error into a status. A message names the field, the
//! limit, the actual value and what to do; what only the operator can mend is logged and not told.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::adapters::AdapterError;
use crate::adapters::peft::{CONFIG_FILE, MODEL_FILE};
use crate::engine::EngineError;
use crate::rl::RlError;
use crate::store::StoreError;

/// Seconds after which a client should try a draining server's address again.
const RETRY_DRAINING_S: u64 = 5;
/// Seconds after which a client should try a busy log again.
const RETRY_STORE_S: u64 = 1;
/// Seconds after which a client should try again when too many do the same.
const RETRY_BUSY_S: u64 = 5;

/// Everything a route can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request is at fault.
    #[error("{0}")]
    Invalid(Box<Violation>),
    /// The body is not JSON, or does not arrive.
    #[error("the body could not be read: {0}")]
    Body(String),
    /// The body is larger than the limit.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes allowed.
        limit: usize,
        /// Bytes announced, when they were.
        actual: Option<u64>,
    },
    /// The headers are larger than the limit.
    #[error("the headers are {actual} bytes, at most {limit} are read")]
    HeadersTooLarge {
        /// Bytes allowed.
        limit: usize,
        /// Bytes sent.
        actual: usize,
    },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {0} s")]
    Slow(u64),
    /// The body is declared as something that the route does not read.
    #[error("content-type must be {expected}, not {sent}")]
    MediaType {
        /// What the route reads.
        expected: &'static str,
        /// What was declared.
        sent: String,
    },
    /// What the path or a field names does not exist.
    #[error("{what} {name} does not exist")]
    NotFound {
        /// Such as `completion`.
        what: &'static str,
        /// Its id.
        name: String,
        /// The request field that names it; `None` for the path.
        field: Option<&'static str>,
        /// What to do.
        hint: &'static str,
    },
    /// The path exists, the method does not.
    #[error("{method} is not allowed here")]
    Method {
        /// The method used.
        method: String,
    },
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// From the log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// From the learner and its adapters.
    #[error(transparent)]
    Learning(#[from] RlError),
    /// This server has nothing that could do it.
    #[error("{0}")]
    Off(&'static str),
    /// Too many do the same at this time.
    #[error("{0}")]
    Busy(&'static str),
    /// A bug or a broken machine; the cause is for the operator.
    #[error("{0}")]
    Internal(String),
}

/// A request field outside its bounds.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Violation {
    /// Path of the field in the body, such as `sampler.threshold`.
    pub field: String,
    /// The bound or the values allowed.
    pub limit: Option<Value>,
    /// What was sent.
    pub actual: Option<Value>,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl ApiError {
    /// A field that is wrong in a way that has no bound.
    #[must_use]
    pub fn invalid(field: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid(Box::new(Violation {
            field: field.into(),
            limit: None,
            actual: None,
            message: message.into(),
            hint: Some(hint.into()),
        }))
    }

    /// An id in a body that names nothing.
    #[must_use]
    pub fn unknown_completion(field: &'static str, id: impl ToString) -> Self {
        Self::NotFound {
            what: "completion",
            name: id.to_string(),
            field: Some(field),
            hint: "it was deleted, or made with \"store\": false; use an id from a generate reply",
        }
    }

    /// The body a client gets; what only the operator can mend goes to the server's own log.
    #[must_use]
    pub fn report(&self) -> Problem {
        let problem = self.problem();
        if problem.status == 500 {
            tracing::error!(error = %self, "request failed");
        }
        problem
    }

    /// The body a client gets.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Invalid(violation) => Problem {
                field: Some(violation.field.clone()),
                limit: violation.limit.clone(),
                actual: violation.actual.clone(),
                hint: violation.hint.clone(),
                ..Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "Invalid request", self)
            },
            Self::Body(_) => Problem::new(StatusCode::BAD_REQUEST, "invalid_body", "Invalid body", self)
                .hint("send one JSON object in UTF-8"),
            Self::TooLarge { limit, actual } => Problem {
                limit: Some((*limit).into()),
                actual: actual.map(Value::from),
                ..Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "Body too large", self)
                    .hint("send less, or start the server with a larger --max-body-bytes")
            },
            Self::HeadersTooLarge { limit, actual } => Problem {
                limit: Some((*limit).into()),
                actual: Some((*actual).into()),
                ..Problem::new(
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "headers_too_large",
                    "Headers too large",
                    self,
                )
                .hint("send fewer or shorter headers and cookies")
            },
            Self::Slow(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "Body too slow", self)
                .hint("send the body at once; --body-timeout-s sets the time"),
            Self::MediaType { expected, .. } => {
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", "Unsupported media type", self)
                    .hint(format!("send the header content-type: {expected}"))
            }
            Self::NotFound { field, hint, .. } => Problem {
                field: field.map(str::to_owned),
                ..Problem::new(StatusCode::NOT_FOUND, "not_found", "Not found", self).hint(*hint)
            },
            Self::Method { .. } => {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed", self)
                    .hint("the allow header lists the methods; /docs lists the routes")
            }
            Self::Engine(error) => engine_problem(error),
            Self::Store(error) => store_problem(error),
            Self::Learning(error) => learning_problem(error),
            Self::Off(_) => Problem::new(StatusCode::CONFLICT, "learning_off", "Learning is off", self)
                .hint("serve a model that takes adapters; GET /info shows what is on"),
            Self::Busy(_) => Problem {
                retry_after_s: Some(RETRY_BUSY_S),
                ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy", self).hint("retry later")
            },
            Self::Internal(_) => internal(),
        }
    }
}

fn engine_problem(error: &EngineError) -> Problem {
    match error {
        EngineError::Invalid { field, message } => Problem {
            field: Some((*field).to_owned()),
            ..Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "Invalid request", message)
        },
        EngineError::Full { limit, retry_after_s } => Problem {
            limit: Some((*limit).into()),
            retry_after_s: Some(*retry_after_s),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", "Queue full", error)
                .hint("retry later, send a smaller n, or start the server with a larger --max-queue")
        },
        EngineError::Draining => Problem {
            retry_after_s: Some(RETRY_DRAINING_S),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "Shutting down", error)
                .hint("send it to another server, or retry when this one is back")
        },
        EngineError::Device(_) => internal(),
    }
}

fn store_problem(error: &StoreError) -> Problem {
    match error {
        StoreError::Invalid { field, .. } => Problem {
            field: Some((*field).to_owned()),
            ..Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "Invalid request", error)
        },
        StoreError::UnknownCompletion(id) => ApiError::unknown_completion("completion_id", id).problem(),
        StoreError::IdempotencyMismatch => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_mismatch", "Idempotency key reused", error)
                .hint("use a new Idempotency-Key for a new request")
        }
        StoreError::DifferentPrompts(..) => {
            Problem::new(StatusCode::CONFLICT, "different_prompts", "Different prompts", error)
        }
        StoreError::Conflict { .. } => Problem::new(StatusCode::CONFLICT, "conflict", "Changed meanwhile", error),
        StoreError::LeaseLost { .. } => Problem {
            retry_after_s: Some(RETRY_STORE_S),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "lease_lost", "Another server trains", error)
        },
        StoreError::Full { limit } => Problem {
            limit: Some((*limit).into()),
            retry_after_s: Some(RETRY_STORE_S),
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log_full", "Log busy", error).hint("retry later")
        },
        StoreError::Database(_) => internal(),
    }
}

fn learning_problem(error: &RlError) -> Problem {
    match error {
        RlError::Refused(_) => Problem::new(StatusCode::CONFLICT, "refused", "Not possible now", error),
        RlError::Invalid { field, message } => Problem {
            field: Some((*field).to_owned()),
            ..Problem::new(StatusCode::BAD_REQUEST, "invalid_request", "Invalid request", message)
        },
        RlError::Adapter(error) => adapter_problem(error),
        RlError::Store(error) => store_problem(error),
        RlError::Engine(error) => engine_problem(error),
        RlError::Model(_) | RlError::Tensor(_) => internal(),
    }
}

fn adapter_problem(error: &AdapterError) -> Problem {
    match error {
        AdapterError::Version { .. } | AdapterError::NotFound(_) => {
            Problem::new(StatusCode::NOT_FOUND, "not_found", "Not found", error)
                .hint("GET /adapters lists the versions")
        }
        AdapterError::Lifecycle(_) => Problem::new(StatusCode::CONFLICT, "lifecycle", "Not in this status", error)
            .hint("GET /adapters/{id} shows the status"),
        AdapterError::Damaged { .. } => Problem::new(StatusCode::CONFLICT, "damaged", "Adapter damaged", error)
            .hint("import it again; it then gets a new version"),
        AdapterError::TooLarge { actual, limit, .. } => Problem {
            limit: Some((*limit).into()),
            actual: Some((*actual).into()),
            ..Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "adapter_too_large", "Adapter too large", error)
        },
        AdapterError::Malformed { file, .. } => refused_adapter(file, error),
        AdapterError::WrongBase { file, .. } => refused_adapter(file, error),
        AdapterError::Unsupported { .. } => refused_adapter(CONFIG_FILE, error),
        AdapterError::Tensor { .. } => refused_adapter(MODEL_FILE, error),
        AdapterError::Io { .. } | AdapterError::Model(_) => internal(),
    }
}

fn refused_adapter(field: &str, error: &AdapterError) -> Problem {
    Problem {
        field: Some(field.to_owned()),
        ..Problem::new(StatusCode::BAD_REQUEST, "adapter_refused", "Adapter refused", error)
    }
}

fn internal() -> Problem {
    let detail = "the server failed; its log has the cause under this x-request-id";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", &detail)
}

/// Problem details (RFC 9457), the body of every error on native routes and of the SSE event `error`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// Stable name of the error, `urn:lacuna:problem:…`.
    #[serde(rename = "type")]
    #[schema(example = "urn:lacuna:problem:invalid_request")]
    pub kind: String,
    /// The same in words.
    #[schema(example = "Invalid request")]
    pub title: &'static str,
    /// HTTP status.
    #[schema(example = 400)]
    pub status: u16,
    /// What is wrong with this request.
    #[schema(example = "n: is 17, at most 16 is allowed")]
    pub detail: String,
    /// The field at fault, as a path such as `sampler.threshold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The bound, or the values allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Value>,
    /// What was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<Value>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Seconds after which to retry; also in `Retry-After`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, name: &str, title: &'static str, detail: &impl ToString) -> Self {
        Self {
            kind: format!("urn:lacuna:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: detail.to_string(),
            field: None,
            limit: None,
            actual: None,
            hint: None,
            retry_after_s: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after_s;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.report().into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::VersionId;
    use uuid::Uuid;

    #[test]
    fn every_error_of_the_layers_below_has_its_status() {
        let retry = |error: ApiError| (error.problem().status, error.problem().retry_after_s);
        assert_eq!(retry(EngineError::Invalid { field: "prompt", message: "long".into() }.into()), (400, None));
        assert_eq!(retry(EngineError::Full { limit: 8, retry_after_s: 3 }.into()), (503, Some(3)));
        assert_eq!(retry(EngineError::Draining.into()), (503, Some(RETRY_DRAINING_S)));
        assert_eq!(retry(EngineError::Device("x".into()).into()), (500, None));
        assert_eq!(retry(StoreError::Invalid { field: "value", problem: "is too large".into() }.into()), (400, None));
        assert_eq!(retry(StoreError::UnknownCompletion(Uuid::nil()).into()), (404, None));
        assert_eq!(retry(StoreError::IdempotencyMismatch.into()), (422, None));
        assert_eq!(retry(StoreError::DifferentPrompts(Uuid::nil(), Uuid::nil()).into()), (409, None));
        let conflict = StoreError::Conflict {
            object: "route a".into(),
            expected: "generation 1".into(),
            found: "generation 2".into(),
        };
        assert_eq!(retry(conflict.into()), (409, None));
        assert_eq!(retry(StoreError::LeaseLost { term: 3 }.into()), (503, Some(RETRY_STORE_S)));
        assert_eq!(retry(StoreError::Full { limit: 9 }.into()), (503, Some(RETRY_STORE_S)));
        assert_eq!(retry(StoreError::Database("x".into()).into()), (500, None));
        assert_eq!(retry(ApiError::Off("x")), (409, None));
        assert_eq!(retry(ApiError::Busy("x")), (503, Some(RETRY_BUSY_S)));
    }

    #[test]
    fn every_error_of_learning_has_its_status() {
        let status = |error: RlError| ApiError::from(error).problem().status;
        let adapter = |error: AdapterError| status(error.into());
        assert_eq!(status(RlError::Refused("x".into())), 409);
        assert_eq!(status(RlError::Invalid { field: "beta", message: "x".into() }), 400);
        assert_eq!(status(StoreError::LeaseLost { term: 1 }.into()), 503);
        assert_eq!(status(EngineError::Draining.into()), 503);
        assert_eq!(status(crate::models::ModelError::Input("secret".into()).into()), 500);
        assert_eq!(adapter("nope".parse::<VersionId>().unwrap_err()), 404);
        assert_eq!(adapter(AdapterError::NotFound(VersionId::base())), 404);
        assert_eq!(adapter(AdapterError::Lifecycle("x".into())), 409);
        assert_eq!(adapter(AdapterError::Damaged { folder: "x".into(), reason: "x".into() }), 409);
        let too_large = AdapterError::TooLarge { file: MODEL_FILE, what: "rank".into(), actual: 9, limit: 8 };
        assert_eq!(adapter(too_large), 413);
        assert_eq!(adapter(AdapterError::Malformed { file: MODEL_FILE, reason: "x".into() }), 400);
        let io = AdapterError::Io { what: "open /secret".into(), source: std::io::Error::other("x") };
        let problem = ApiError::from(RlError::from(io)).problem();
        assert_eq!((problem.status, problem.detail.contains("secret")), (500, false));
    }

    #[test]
    fn causes_for_the_operator_are_not_told() {
        for error in
            [ApiError::from(EngineError::Device("secret".into())), StoreError::Database("secret".into()).into()]
        {
            let body = serde_json::to_string(&error.problem()).unwrap();
            assert!(!body.contains("secret"), "{body}");
        }
    }

    #[test]
    fn retry_after_is_a_header_too() {
        let response = ApiError::from(EngineError::Full { limit: 8, retry_after_s: 3 }).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
