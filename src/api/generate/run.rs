//! A request on its way: submit, follow, log, answer. Dropping a [`Run`] cancels what the engine still does for it.

use std::time::Instant;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::common::{Log, Plan, Returns, Timing, Usage};
use super::picture::{self, Picture, PictureFormat};
use super::reply::{ImageCompletion, ImageReply, Reply, TextCompletion, TextReply, milliseconds, reason};
use super::stream;
use crate::api::error::ApiError;
use crate::api::metrics;
use crate::api::state::App;
use crate::engine::job::Task;
use crate::engine::{EngineError, Event, Finished, Ticket};
use crate::store::{CompletionRow, Kind};

/// The header with the version of the adapter that a reply was made with, as in its body.
const ADAPTER_VERSION: HeaderName = HeaderName::from_static("x-adapter-version");

/// Answers a checked request: as events, as a picture file, or as one JSON object.
pub(super) async fn respond(app: App, plan: Plan, bytes: Option<PictureFormat>) -> Result<Response, ApiError> {
    let n = plan.request.n;
    let mode = plan.stream;
    if bytes.is_some() && mode.is_none() && n != 1 {
        let hint = "send n = 1, or Accept: application/json for several";
        return Err(ApiError::invalid("n", format!("is {n}, but a picture file holds one image"), hint));
    }
    let run = Run::start(app, plan)?;
    let adapter = HeaderValue::from_str(&run.adapter);
    let mut response = match (mode, bytes) {
        (Some(mode), _) => stream::respond(run, mode),
        (None, Some(format)) => run.picture(format).await?,
        (None, None) => Json(run.reply().await?).into_response(),
    };
    if let Ok(adapter) = adapter {
        response.headers_mut().insert(ADAPTER_VERSION, adapter);
    }
    Ok(response)
}

/// What a reply took after the last step.
fn note_reply(app: &App, grid: Option<(usize, usize)>, done: Option<Instant>) {
    if let Some(done) = done {
        app.reserve.note(grid.is_some(), done.elapsed());
    }
}

/// A submitted request.
pub(super) struct Run {
    pub app: App,
    pub ticket: Ticket,
    adapter: String,
    subject: Option<Vec<u8>>,
    grid: Option<(usize, usize)>,
    log: Log,
    returns: Returns,
    format: PictureFormat,
    finished: Vec<Finished>,
    /// When the engine has said `Done`.
    done: Option<Instant>,
    attended: Attended,
}

/// Counts the client as gone unless the run came to its end.
struct Attended {
    over: bool,
}

impl Drop for Attended {
    fn drop(&mut self) {
        if !self.over {
            metrics::disconnected();
        }
    }
}

impl Run {
    fn start(app: App, plan: Plan) -> Result<Self, ApiError> {
        if app.shutdown.draining.is_cancelled() {
            return Err(EngineError::Draining.into());
        }
        let grid = match &plan.request.task {
            Task::Text(_) => None,
            Task::Image(params) => Some(params.grid),
        };
        let Plan { mut request, stream, log, returns, format } = plan;
        request.follow = stream.is_some();
        request.subject = log.user.as_deref().map(|user| app.subjects.hash_subject(user));
        let subject = request.subject.clone();
        request.deadline = request.deadline.map(|deadline| app.reserve.steps(grid.is_some(), deadline));
        let ticket = app.engine.submit(request)?;
        let adapter = ticket.assigned.adapter.id.to_string();
        let attended = Attended { over: false };
        Ok(Self {
            app,
            ticket,
            adapter,
            subject,
            grid,
            log,
            returns,
            format,
            finished: Vec::new(),
            done: None,
            attended,
        })
    }

    /// The next event worth telling, or `None` when every completion is finished.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        while self.done.is_none() {
            let event = tokio::select! {
                biased;
                () = self.app.shutdown.cut.cancelled() => Some(Event::Failed(EngineError::Draining)),
                event = self.ticket.next() => event,
            };
            match event {
                Some(Event::Finished(finished)) => self.finished.push(*finished),
                Some(Event::Done) => self.done = Some(Instant::now()),
                Some(Event::Failed(error)) => return Err(self.failed(error.into())),
                Some(event) => return Ok(Some(event)),
                None => {
                    return Err(self.failed(ApiError::Internal("the engine gave a request up".to_owned())));
                }
            }
        }
        Ok(None)
    }

    /// Rows and columns of the images; `None` for text.
    pub(super) fn grid(&self) -> Option<(usize, usize)> {
        self.grid
    }

    fn failed(&mut self, error: ApiError) -> ApiError {
        self.attended.over = true;
        error
    }

    /// Waits for every completion and logs them. Only then may an id leave the server: it can be rated at once.
    async fn settle(&mut self) -> Result<(), ApiError> {
        while self.next().await?.is_some() {}
        self.finished.sort_by_key(|finished| finished.index);
        if self.log.store {
            let recorded = self.app.store.record(self.rows()).await;
            recorded.map_err(|error| self.failed(error.into()))?;
        }
        Ok(())
    }

    /// The plain reply, and the data of `done`.
    pub(super) async fn reply(mut self) -> Result<Reply, ApiError> {
        self.settle().await?;
        let usage = Usage::of(&self.finished);
        let timing = Timing::of(&self.finished);
        let id = self.ticket.group;
        let model = self.app.engine.spec().name.clone();
        let finished = std::mem::take(&mut self.finished);
        let reply = if let Some(grid) = self.grid {
            let mut images = Vec::with_capacity(finished.len());
            for one in finished {
                let picture = self.draw(&one, grid, self.format).await.map_err(|error| self.failed(error))?;
                images.push(ImageCompletion::new(one, &picture, self.returns));
            }
            Reply::Image(ImageReply {
                id,
                model,
                adapter: self.adapter,
                images,
                usage,
                timing,
                params: self.log.params,
            })
        } else {
            let completions = finished.into_iter().map(|one| TextCompletion::new(one, self.returns)).collect();
            let params = self.log.params;
            Reply::Text(TextReply { id, model, adapter: self.adapter, completions, usage, timing, params })
        };
        self.attended.over = true;
        note_reply(&self.app, self.grid, self.done);
        Ok(reply)
    }

    /// The single image as a file.
    async fn picture(mut self, format: PictureFormat) -> Result<Response, ApiError> {
        self.settle().await?;
        self.attended.over = true;
        let (Some(one), Some(grid)) = (self.finished.first(), self.grid) else {
            return Err(ApiError::Internal("the engine finished without an image".to_owned()));
        };
        let picture = self.draw(one, grid, format).await?;
        note_reply(&self.app, self.grid, self.done);
        let (id, seed) = (one.id.to_string(), one.seed.to_string());
        let headers = [(HeaderName::from_static("x-completion-id"), id), (HeaderName::from_static("x-seed"), seed)];
        Ok((headers, file(picture, "no-store")).into_response())
    }

    async fn draw(&self, one: &Finished, grid: (usize, usize), format: PictureFormat) -> Result<Picture, ApiError> {
        let codes = one.tokens.iter().copied().map(Some).collect();
        picture::draw(&self.app, codes, grid, format).await
    }

    fn rows(&self) -> Vec<CompletionRow> {
        let spec = self.app.engine.spec();
        let created_us = jiff::Timestamp::now().as_microsecond();
        let row = |one: &Finished| CompletionRow {
            id: one.id,
            group: self.ticket.group,
            index: one.index,
            kind: if self.grid.is_some() { Kind::Image } else { Kind::Text },
            model: spec.name.clone(),
            base_sha256: spec.sha256.clone(),
            adapter: self.adapter.clone(),
            prompt: self.log.prompt.clone(),
            prompt_ids: one.prompt_ids.clone(),
            tokens: one.tokens.clone(),
            commit_steps: one.commit_steps.clone(),
            logprobs: one.logprobs.clone(),
            text: one.text.clone(),
            grid: self.grid.map(|(rows, columns)| (rows as u32, columns as u32)), // bounded by `max_image_cells`
            params: self.log.params.clone(),
            seed: one.seed,
            finish_reason: reason(one.finish_reason).to_owned(),
            steps: one.steps,
            positions_evaluated: one.positions_evaluated,
            queue_ms: milliseconds(one.queued),
            denoise_ms: milliseconds(one.denoising),
            subject_hash: self.subject.clone(),
            metadata: self.log.metadata.clone(),
            created_us,
        };
        self.finished.iter().map(row).collect()
    }
}

/// A picture as a response.
pub(in crate::api) fn file(picture: Picture, cache: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(picture.format.media_type())),
        (header::CACHE_CONTROL, HeaderValue::from_static(cache)),
    ];
    (headers, picture.bytes).into_response()
}
