//! Server-sent events over a small bounded channel: a slow client slows its own sender, and one that is gone is seen.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Events on their way to a client.
const BUFFERED: usize = 16;
/// A comment keeps idle connections open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The sending end of a stream of events.
pub(super) struct Sender(mpsc::Sender<Result<Event, Infallible>>);

/// A stream of events and the response that carries it.
pub(super) fn channel() -> (Sender, Response) {
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let body = Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    (Sender(sender), response)
}

impl Sender {
    /// Sends an event; waits when the client is slow, does nothing when it is gone.
    pub(super) async fn send(&self, name: &str, data: &impl Serialize) {
        match Event::default().event(name).json_data(data) {
            Ok(event) => {
                let _gone = self.0.send(Ok(event)).await;
            }
            Err(error) => tracing::error!(%error, name, "event is not JSON"),
        }
    }

    /// Waits until the client is gone.
    pub(super) async fn gone(&self) {
        self.0.closed().await;
    }
}
