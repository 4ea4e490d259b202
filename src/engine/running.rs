//! A request and its canvases while the device thread has them, and what is said to the client.

use std::time::Instant;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::EngineError;
use super::job::{Edit, Event, FinishReason, Finished, Priority};
use super::shared::Shared;
use super::stats;
use super::ticket::Frame;
use super::transcript::Style;
use crate::diffusion::Canvas;
use crate::diffusion::canvas::Commit;

/// A request.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) events: mpsc::Sender<Frame>,
    /// Room for what must not be lost: one `Finished` per completion, and `Done` or `Failed`.
    pub(super) reserved: Vec<mpsc::OwnedPermit<Frame>>,
    /// Completions that have not ended.
    pub(super) unfinished: usize,
    pub(super) submitted: Instant,
    /// The client wants to hear of it before it is finished.
    pub(super) follow: bool,
    pub(super) preview_every: usize,
    pub(super) style: Style,
}

impl Job {
    /// Sends what may be lost, to a client that follows: a slow one misses it.
    pub(super) fn offer(&self, event: Event) {
        if self.follow {
            // Full or closed: the first is what this is for, the second is noticed at the next tick.
            let _ = self.events.try_send(Frame::Event(event));
        }
    }

    /// Sends what must not be lost, in the room that was reserved for it.
    fn must_send(&mut self, frame: Frame) {
        if let Some(permit) = self.reserved.pop() {
            permit.send(frame);
        }
    }

    /// One completion has ended.
    pub(super) fn finished(&mut self, running: Running, reason: FinishReason) {
        let canvas = &running.canvas;
        let begun = running.begun.unwrap_or(self.submitted);
        let tokens = canvas.tokens();
        let text = if canvas.is_image() { 0 } else { canvas.text_length().min(tokens.len()) };
        let finished = Finished {
            index: running.index,
            id: running.uuid,
            seed: canvas.seed(),
            finish_reason: reason,
            prompt_ids: canvas.prompt_ids().to_vec(),
            tokens,
            commit_steps: canvas.commit_steps().to_vec(),
            logprobs: canvas.logprobs().to_vec(),
            text: String::new(),
            steps: canvas.forwards(),
            positions_evaluated: canvas.positions_evaluated(),
            queued: begun.saturating_duration_since(self.submitted),
            denoising: begun.elapsed(),
        };
        stats::finished(canvas.is_image(), &finished);
        self.must_send(Frame::Finished(Box::new(finished), text));
        self.unfinished -= 1;
        if self.unfinished == 0 {
            self.must_send(Frame::Event(Event::Done));
        }
    }

    /// The request has failed.
    pub(super) fn failed(mut self, error: EngineError) {
        self.must_send(Frame::Event(Event::Failed(error)));
    }
}

/// One completion.
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) job: u64,
    pub(super) index: u32,
    pub(super) uuid: Uuid,
    pub(super) canvas: Canvas,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Instant>,
    /// When its first step began.
    pub(super) begun: Option<Instant>,
    /// Commits that the client has not heard of; a slow one gets several steps in one event.
    pub(super) edits: Vec<Edit>,
    /// Tokens at the start of the text that hold no stop string.
    pub(super) searched: usize,
}

impl Running {
    /// Its first step begins, unless it has.
    pub(super) fn begin(&mut self, now: Instant, shared: &Shared) {
        if self.begun.is_none() {
            self.begun = Some(now);
            shared.begin();
        }
    }

    /// Reports `commits`, and those before that the client has not heard of, if it takes them.
    pub(super) fn send_step(&mut self, job: &Job, step: u32, commits: &[Commit]) {
        if !job.follow {
            return;
        }
        self.edits.extend(commits.iter().map(|c| Edit {
            position: c.position,
            token: c.token,
            text: String::new(),
            confidence: c.confidence,
        }));
        if let Ok(permit) = job.events.try_reserve() {
            let edits = std::mem::take(&mut self.edits);
            let steps = self.canvas.steps();
            permit.send(Frame::Event(Event::Step { index: self.index, step, steps, edits, committed: String::new() }));
        }
    }

    /// Ends the canvas at the first stop string in its final text; true if there is one.
    pub(super) fn find_stop(&mut self, job: &Job) -> bool {
        if !job.style.has_stop() {
            return false;
        }
        let ids = self.canvas.final_text();
        if ids.len() <= self.searched {
            return false;
        }
        let stop = job.style.stop_after(ids, self.searched);
        self.searched = ids.len();
        if let Some(tokens) = stop {
            self.canvas.cut(tokens);
        }
        stop.is_some()
    }
}
