//! The shapes of the server-sent events of the generate routes, and the task that sends them.

use axum::response::Response;
use serde::Serialize;
use tracing::Instrument as _;
use utoipa::ToSchema;
use uuid::Uuid;

use super::common::StreamMode;
use super::picture::{self, PictureFormat};
use super::reply::base64;
use super::run::Run;
use crate::api::error::ApiError;
use crate::api::sse::{self, Sender};
use crate::engine::Event;
use crate::engine::job::Edit;

/// Data of the event `queued`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueuedEvent {
    /// Shared by the completions of this request.
    pub id: Uuid,
    /// Ids of the completions, in order of index. They can be rated after `done`.
    pub completions: Vec<Uuid>,
    /// Canvases ahead of this request.
    pub ahead: usize,
}

/// Data of the event `step`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StepEvent {
    /// Which completion.
    pub index: u32,
    /// Zero-based.
    pub step: u32,
    /// Steps planned.
    pub steps: u32,
    /// Newly committed positions; with `"stream_mode": "edits"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edits: Option<Vec<EditEvent>>,
    /// Text that is final since the last event; absent for images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed: Option<String>,
}

/// A position that got its token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EditEvent {
    /// Zero-based within the generated canvas, or the cell of the grid, row by row.
    pub position: usize,
    /// Token id or code.
    pub token: u32,
    /// Text of the token; absent for images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// In [0, 1].
    pub confidence: f32,
}

/// Data of the event `block`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BlockEvent {
    /// Which completion.
    pub index: u32,
    /// Zero-based.
    pub block: u32,
}

/// Data of the event `preview`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PreviewEvent {
    /// Which image.
    pub index: u32,
    /// Zero-based.
    pub step: u32,
    /// `png`.
    pub format: PictureFormat,
    /// The picture so far, in base64; masked cells are blank.
    pub b64: String,
}

/// Sends the run's events until it ends or the client is gone; a client that is gone cancels it.
pub(super) fn respond(run: Run, mode: StreamMode) -> Response {
    let (sender, response) = sse::channel();
    let task = async move {
        tokio::select! {
            () = sender.gone() => {}
            () = send(run, mode, &sender) => {}
        }
    };
    tokio::spawn(task.in_current_span());
    response
}

async fn send(mut run: Run, mode: StreamMode, sender: &Sender) {
    let outcome = loop {
        match run.next().await {
            Ok(Some(event)) => {
                if let Err(error) = forward(&run, event, mode, sender).await {
                    break Err(error);
                }
            }
            Ok(None) => break run.reply().await,
            Err(error) => break Err(error),
        }
    };
    match outcome {
        Ok(reply) => sender.send("done", &reply).await,
        Err(error) => sender.send("error", &error.report()).await,
    }
}

async fn forward(run: &Run, event: Event, mode: StreamMode, sender: &Sender) -> Result<(), ApiError> {
    match event {
        Event::Queued { ahead } => {
            let completions = run.ticket.completions.clone();
            sender.send("queued", &QueuedEvent { id: run.ticket.group, completions, ahead }).await;
        }
        Event::Step { index, step, steps, edits, committed } => {
            let text = run.grid().is_none();
            let edits = (mode == StreamMode::Edits).then(|| edits.into_iter().map(|edit| shown(edit, text)).collect());
            let committed = text.then_some(committed);
            sender.send("step", &StepEvent { index, step, steps, edits, committed }).await;
        }
        Event::Block { index, block } => sender.send("block", &BlockEvent { index, block }).await,
        Event::Preview { index, step, codes } => {
            let Some(grid) = run.grid() else {
                return Ok(());
            };
            let picture = picture::draw(&run.app, codes, grid, PictureFormat::Png).await?;
            let b64 = base64(&picture.bytes);
            sender.send("preview", &PreviewEvent { index, step, format: picture.format, b64 }).await;
        }
        Event::Finished(_) | Event::Done | Event::Failed(_) => {} // the run keeps these to itself
    }
    Ok(())
}

fn shown(edit: Edit, text: bool) -> EditEvent {
    let Edit { position, token, confidence, .. } = edit;
    EditEvent { position, token, confidence, text: text.then_some(edit.text) }
}
