//! Concurrency without maths: the handle that the rest of the server talks to, the pure scheduler, the device thread.
//!
//! `job` is the vocabulary, `scheduler` decides who steps (no tensors), `runner` is the one thread that owns the device.

use std::sync::Arc;

use image::RgbImage;
use tokio::sync::mpsc;
use uuid::Uuid;

pub mod job;

pub use job::{Event, Finished, Request};

use crate::models::ModelSpec;

/// Why the engine refused or failed a request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The request cannot be served by this model or within its limits.
    #[error("{field}: {message}")]
    Invalid {
        /// The request field at fault.
        field: &'static str,
        /// Limit, actual value and what to do.
        message: String,
    },
    /// The queue is full.
    #[error("the queue is full: {limit} canvases are waiting; retry in {retry_after_s} s")]
    Full {
        /// Canvases that may wait.
        limit: usize,
        /// Honest estimate.
        retry_after_s: u64,
    },
    /// The server is shutting down.
    #[error("the server is draining and takes no new requests")]
    Draining,
    /// The device failed.
    #[error("the model failed: {0}")]
    Device(String),
}

/// Bounds on what is admitted; every one has a flag.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Canvases waiting for their first step (a request of `n` counts `n`).
    pub max_queue: usize,
    /// Rows of one packed forward.
    pub max_rows: usize,
    /// Canvases stepping at the same time.
    pub max_running: usize,
}

/// A submitted request. Dropping it cancels the request at the next step.
pub struct Ticket {
    /// Id shared by the `n` completions, UUIDv7.
    pub group: Uuid,
    /// Ids of the completions, in order of index.
    pub completions: Vec<Uuid>,
    /// Ends with `Done` or `Failed`.
    pub events: mpsc::Receiver<Event>,
}

/// What the engine is doing now; for `/info`, `/ready` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Canvases waiting for their first step.
    pub queued: usize,
    /// Canvases stepping.
    pub running: usize,
    /// The last forward succeeded and the thread is alive.
    pub healthy: bool,
    /// New requests are refused.
    pub draining: bool,
}

/// The door to the device thread. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    spec: Arc<ModelSpec>,
}

impl Engine {
    /// What is served.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// `name@version` of the adapter that new requests are pinned to; `base@0` without one.
    #[must_use]
    pub fn adapter(&self) -> String {
        "base@0".to_owned()
    }

    /// Checks, tokenises and queues a request. Never waits.
    ///
    /// # Errors
    /// `Invalid`, `Full` or `Draining`; nothing is queued then.
    pub fn submit(&self, request: Request) -> Result<Ticket, EngineError> {
        let _ = request;
        Err(EngineError::Draining)
    }

    /// The picture of a grid of codes; masked cells (`None`) are drawn as an even neutral cell.
    ///
    /// # Errors
    /// `Invalid` when the model has no image side or a code is outside the codebook.
    pub fn render(&self, codes: &[Option<u32>], grid: (usize, usize)) -> Result<RgbImage, EngineError> {
        let _ = (codes, grid);
        Err(EngineError::Draining)
    }

    /// Text of ids, special ids left out.
    #[must_use]
    pub fn detokenize(&self, ids: &[u32]) -> String {
        let _ = ids;
        String::new()
    }

    /// What it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::default()
    }

    /// Refuses new requests from now on and returns when the running ones are done.
    pub async fn drain(&self) {}
}
