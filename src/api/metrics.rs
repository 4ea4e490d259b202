//! What the HTTP layer counts. Names, help and buckets are in `telemetry::metrics`.
//!
//! Labels are route templates, statuses and kinds of value: never an id, a user or a client's own word.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, histogram};

use crate::store::Value;
use crate::telemetry::metrics::{DISCONNECTS, FEEDBACK, PREFERENCES, REQUEST_DURATION, REQUESTS};

/// Counts and times every request.
pub(super) async fn track(matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = matched.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    histogram!(REQUEST_DURATION, "route" => route.clone()).record(start.elapsed().as_secs_f64());
    counter!(REQUESTS, "route" => route, "status" => status).increment(1);
    response
}

/// Counts a stored rating.
pub(super) fn rated(value: &Value) {
    let kind = match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::Text(_) => "text",
    };
    counter!(FEEDBACK, "kind" => kind).increment(1);
}

/// Counts a stored preference.
pub(super) fn preferred() {
    counter!(PREFERENCES).increment(1);
}

/// Counts a client that left.
pub(super) fn disconnected() {
    counter!(DISCONNECTS).increment(1);
}
