//! What happens to every request and response, whatever the route: an id, bounds on headers, safe headers back.

use std::any::Any;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tracing::Span;
use uuid::Uuid;

use super::error::ApiError;
use super::limits::fixed;

/// Ties a response to the log.
pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives every request an id (the client's own when it is short and plain) and returns it.
pub(super) async fn request_id(mut request: Request, next: Next) -> Response {
    let id = match request.headers().get(&REQUEST_ID) {
        Some(id) if is_plain(id) => id.clone(),
        _ => fresh_id(),
    };
    request.headers_mut().insert(REQUEST_ID.clone(), id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(REQUEST_ID.clone(), id);
    response
}

fn fresh_id() -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let id: &str = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

fn is_plain(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    (1..=fixed::REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(plain)
}

/// Refuses requests whose headers are larger than the limit.
pub(super) async fn bound_headers(request: Request, next: Next) -> Response {
    let actual = header_bytes(request.headers());
    if actual > fixed::HEADER_BYTES {
        return ApiError::HeadersTooLarge { limit: fixed::HEADER_BYTES, actual }.into_response();
    }
    next.run(request).await
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Headers that keep a browser from guessing and from leaking the address.
pub(super) async fn safe_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// The span of a request: id, method and path; no query, header or body.
pub(super) fn span(request: &Request) -> Span {
    let id = request.headers().get(&REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default();
    tracing::info_span!("request", id, method = %request.method(), path = request.uri().path())
}

/// A panic in a handler costs its own request only.
pub(super) fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let cause = cause.downcast_ref::<&str>().copied().or_else(|| cause.downcast_ref::<String>().map(String::as_str));
    ApiError::Internal(format!("a handler panicked: {}", cause.unwrap_or("no message"))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_of_clients_are_kept() {
        assert!(is_plain(&HeaderValue::from_static("req-1_a.B")));
        assert!(!is_plain(&HeaderValue::from_static("")));
        assert!(!is_plain(&HeaderValue::from_static("a b")));
        assert!(!is_plain(&HeaderValue::from_str(&"a".repeat(fixed::REQUEST_ID_BYTES + 1)).unwrap()));
    }

    #[test]
    fn a_panic_is_a_problem_without_its_message() {
        let response = panicked(Box::new("secret"));
        assert_eq!(response.status(), 500);
    }
}
