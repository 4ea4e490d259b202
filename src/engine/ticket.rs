//! A submitted request, seen from the client's side: events come out of the channel and get their text here.

use std::collections::{HashMap, VecDeque};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::EngineError;
use super::job::{Edit, Event, Finished};
use super::serving::Assigned;
use super::transcript::{Style, Transcript};

/// What the device thread sends: events without text.
pub(super) enum Frame {
    /// Passed on; the edits of a step get their text.
    Event(Event),
    /// A finished completion, and how many of its tokens are text.
    Finished(Box<Finished>, usize),
}

/// A submitted request. Dropping it cancels the request at the next step.
pub struct Ticket {
    /// Id shared by the `n` completions, UUIDv7.
    pub group: Uuid,
    /// The adapter version that all of them are made with.
    pub assigned: Assigned,
    /// Ids of the completions, in order of index.
    pub completions: Vec<Uuid>,
    /// What happens to it.
    pub events: Events,
}

/// The events of a request. Text is decoded here, when they are asked for.
pub struct Events {
    frames: mpsc::Receiver<Frame>,
    style: Style,
    /// The client wants to hear of it before it is finished.
    follow: bool,
    transcripts: HashMap<u32, Transcript>,
    /// Events that are ready, when one frame made several.
    ready: VecDeque<Event>,
    over: bool,
}

impl Ticket {
    /// As [`Events::recv`].
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Events {
    pub(super) fn new(frames: mpsc::Receiver<Frame>, style: Style, follow: bool) -> Self {
        Self { frames, style, follow, transcripts: HashMap::new(), ready: VecDeque::new(), over: false }
    }

    /// The next event; `None` after `Done` or `Failed`. May be dropped and called again (cancel safe).
    ///
    /// The `committed` texts of a completion's steps, joined, are its final text once `Finished` has come: a last step
    /// brings what is left.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            match self.frames.recv().await {
                Some(Frame::Event(event)) => self.event(event),
                Some(Frame::Finished(finished, text)) => self.finished(*finished, text),
                // The thread is gone without a word: it can only have died.
                None => self.event(Event::Failed(EngineError::Device("the engine has stopped".to_owned()))),
            }
        }
    }

    fn transcript(&mut self, index: u32) -> &mut Transcript {
        self.transcripts.entry(index).or_insert_with(|| Transcript::new(self.style.clone()))
    }

    fn event(&mut self, event: Event) {
        let event = match event {
            Event::Step { index, step, steps, mut edits, .. } => {
                let committed = self.transcript(index).push(edits.iter().map(|e| (e.position, e.token)));
                self.describe(&mut edits);
                Event::Step { index, step, steps, edits, committed }
            }
            event => event,
        };
        self.over = matches!(event, Event::Done | Event::Failed(_));
        self.ready.push_back(event);
    }

    fn describe(&self, edits: &mut [Edit]) {
        if self.style.is_text {
            edits.iter_mut().for_each(|e| e.text = self.style.tokenizer.decode(&[e.token]));
        }
    }

    fn finished(&mut self, mut finished: Finished, text: usize) {
        let ids = finished.tokens.get(..text).unwrap_or(&finished.tokens);
        let (text, rest) = self.transcript(finished.index).finish(ids);
        finished.text = text;
        if self.follow && !rest.is_empty() {
            let steps = finished.steps;
            let step = finished.commit_steps.iter().copied().max().unwrap_or(0).max(0) as u32;
            let last = Event::Step { index: finished.index, step, steps, edits: Vec::new(), committed: rest };
            self.ready.push_back(last);
        }
        self.transcripts.remove(&finished.index);
        self.ready.push_back(Event::Finished(Box::new(finished)));
    }
}
