//! Request bodies and paths: read within bounds, parsed strictly, refused with the path of the field at fault.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use serde::de::DeserializeOwned;
use tokio_stream::StreamExt as _;

use super::error::ApiError;
use super::state::App;
use crate::adapters::{AdapterError, VersionId};
use crate::rl::RlError;

/// The media type of almost every body.
const JSON: &str = "application/json";

/// A JSON body of type `T`, with the bytes it came from (for idempotency).
pub(crate) struct Json<T> {
    /// The parsed body.
    pub value: T,
    /// The body as sent.
    pub bytes: Bytes,
}

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        is_json(&parts.headers)?;
        let limit = app.limits.max_body_bytes;
        if let Some(actual) = announced(&parts.headers).filter(|actual| *actual > limit as u64) {
            return Err(ApiError::TooLarge { limit, actual: Some(actual) });
        }
        let seconds = app.limits.body_timeout_s;
        let bytes = tokio::time::timeout(Duration::from_secs(seconds), collect(body, limit))
            .await
            .map_err(|_| ApiError::Slow(seconds))??;
        Ok(Self { value: parse(&bytes)?, bytes })
    }
}

/// A JSON body, or the default of `T` when there is none.
pub(crate) struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let none = !request.headers().contains_key(CONTENT_TYPE) && request.body().is_end_stream();
        if none { Ok(Self(T::default())) } else { Json::from_request(request, app).await.map(|body| Self(body.value)) }
    }
}

/// A query string of type `T`.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        query(&parts.uri).map(Self)
    }
}

/// A version of an adapter in the path, as `name@version`.
pub(crate) struct Version(pub VersionId);

impl FromRequestParts<App> for Version {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &App) -> Result<Self, ApiError> {
        let Path(id) = Path::<String>::from_request_parts(parts, state).await?;
        id.parse().map(Self).map_err(|error: AdapterError| RlError::from(error).into())
    }
}

/// A path of type `T`; one that does not parse names nothing.
pub(crate) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = parts.uri.path().to_owned();
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        found.map(|path| Self(path.0)).map_err(|_| ApiError::NotFound {
            what: "resource",
            name: path,
            field: None,
            hint: "ids are UUIDs, as in the replies",
        })
    }
}

fn is_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let sent = headers.get(CONTENT_TYPE).map_or("none", |value| value.to_str().unwrap_or("unreadable"));
    let essence = sent.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(JSON) {
        return Ok(());
    }
    Err(ApiError::MediaType { expected: JSON, sent: essence.to_owned() })
}

/// The announced length: a body can be refused before a byte of it is read.
pub(super) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
}

async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| ApiError::Body(error.to_string()))?;
        if bytes.len() + chunk.len() > limit {
            return Err(ApiError::TooLarge { limit, actual: None });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// Parses JSON; an error names the path of the field, an unknown field included.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() { field_error(&path, &inner.to_string()) } else { ApiError::Body(inner.to_string()) }
    })?;
    deserializer.end().map_err(|error| ApiError::Body(error.to_string()))?;
    Ok(value)
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let query = axum::extract::Query::<T>::try_from_uri(uri);
    query.map(|query| query.0).map_err(|error| {
        let message = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        let (path, message) = message.split_once(": ").unwrap_or(("query", &message));
        field_error(path, message)
    })
}

fn field_error(path: &str, message: &str) -> ApiError {
    let message = message.split(" at line ").next().unwrap_or(message);
    let path = if path == "." { "" } else { path };
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
    let field = match unknown {
        Some(name) if path.rsplit('.').next() != Some(name) && path.is_empty() => name.to_owned(),
        Some(name) if path.rsplit('.').next() != Some(name) => format!("{path}.{name}"),
        _ if path.is_empty() => "body".to_owned(),
        _ => path.to_owned(),
    };
    let hint = if unknown.is_some() { "remove it, or see /docs for the fields" } else { "see /docs for its type" };
    ApiError::invalid(field, message, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only parsed")]
        inner: Option<Inner>,
        #[expect(dead_code, reason = "only parsed")]
        list: Option<Vec<u32>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only parsed")]
        number: u32,
    }

    fn field(body: &str) -> String {
        parse::<Outer>(body.as_bytes()).unwrap_err().problem().field.unwrap_or_default()
    }

    #[test]
    fn errors_name_the_path_of_the_field() {
        assert_eq!(field(r#"{"oops": 1}"#), "oops");
        assert_eq!(field(r#"{"inner": {"number": 1, "oops": 1}}"#), "inner.oops");
        assert_eq!(field(r#"{"inner": {"number": "x"}}"#), "inner.number");
        assert_eq!(field(r#"{"inner": {}}"#), "inner");
        assert_eq!(field(r#"{"list": [1, -2]}"#), "list[1]");
        assert_eq!(field("[]"), "body");
    }

    #[test]
    fn what_is_no_json_is_a_body_error() {
        for body in ["", "{", "{} {}", "\u{0}"] {
            let problem = parse::<Outer>(body.as_bytes()).unwrap_err().problem();
            assert_eq!((problem.status, problem.kind.as_str()), (400, "urn:lacuna:problem:invalid_body"), "{body}");
        }
    }

    #[test]
    fn content_type_is_required_and_may_have_parameters() {
        let headers = |value: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
        assert!(is_json(&headers("application/json; charset=utf-8")).is_ok());
        assert_eq!(is_json(&headers("text/plain")).unwrap_err().problem().status, 415);
        assert_eq!(is_json(&HeaderMap::new()).unwrap_err().problem().status, 415);
    }

    #[tokio::test]
    async fn bodies_are_cut_at_the_limit() {
        assert_eq!(collect(Body::from(vec![0; 10]), 10).await.unwrap().len(), 10);
        let error = collect(Body::from(vec![0; 11]), 10).await.unwrap_err().problem();
        assert_eq!((error.status, error.limit), (413, Some(10.into())));
    }

    #[test]
    fn a_query_is_strict_too() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Q {
            step: Option<u32>,
        }
        assert_eq!(query::<Q>(&"/x?step=3".parse().unwrap()).unwrap().step, Some(3));
        let problem = |uri: &str| query::<Q>(&uri.parse().unwrap()).unwrap_err().problem();
        assert_eq!(problem("/x?step=a").field.unwrap(), "step");
        assert_eq!(problem("/x?oops=1").field.unwrap(), "oops");
    }
}
