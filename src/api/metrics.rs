//! Metrics of the HTTP layer: their names, help and buckets, and the recorder behind `/metrics`.
//!
//! Labels are route templates, statuses and kinds of value: never an id, a user or a client's own word.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, describe_counter, describe_histogram, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::store::Value;

/// Requests by route and status.
pub const REQUESTS: &str = "lacuna_requests_total";
/// Seconds until a response's head was ready, by route.
pub const DURATION: &str = "lacuna_request_duration_seconds";
/// Ratings by kind of value.
pub const FEEDBACK: &str = "lacuna_feedback_total";
/// Generate requests whose client left before the end.
pub const DISCONNECTS: &str = "lacuna_client_disconnects_total";

/// Upper bounds in seconds for every metric whose name ends in `_seconds`.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A recorder with this server's buckets, not installed.
///
/// # Errors
/// When the buckets are empty, which they are not.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?;
    Ok(builder.build_recorder())
}

/// Installs the process-wide recorder; once per process.
///
/// # Errors
/// When one is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    Ok(handle)
}

fn describe() {
    describe_counter!(REQUESTS, "HTTP requests by route and status.");
    describe_histogram!(DURATION, "Seconds until a response's head was ready; for streams, until they began.");
    describe_counter!(FEEDBACK, "Ratings stored, by kind of value.");
    describe_counter!(DISCONNECTS, "Generate requests whose client left before the end.");
}

/// Counts and times every request.
pub(super) async fn track(matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = matched.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let start = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    histogram!(DURATION, "route" => route.clone()).record(start.elapsed().as_secs_f64());
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

/// Counts a client that left.
pub(super) fn disconnected() {
    counter!(DISCONNECTS).increment(1);
}
