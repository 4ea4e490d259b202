//! What goes into the engine and what comes out: validated parameters, events, results. No channels, no policy.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::adapters::VersionId;

pub use crate::diffusion::params::{
    Ends, Fidelity, FinishReason, ImageParams, ImageSampler, Schedule, TextParams, TextSampler,
};
pub use crate::text::Message;

/// Who goes first when the device is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// Throughput matters, latency does not.
    Batch,
    /// Samples for training; runs in what is left over.
    Rollout,
}

/// What to fill.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text, tokenised with the model's tokenizer.
    Text(String),
    /// Raw ids. For text they are the whole prefix (no layout is added); for images the text before any layout.
    Ids(Vec<u32>),
    /// A conversation that the model answers, laid out by its chat template.
    Messages(Vec<Message>),
    /// A picture and what is asked about it.
    About {
        /// Codes of the picture, row by row.
        codes: Vec<u32>,
        /// Text, ids or a conversation.
        prompt: Box<Prompt>,
    },
    /// Text with holes: literal pieces and holes of so many tokens each. The canvas is all of it.
    Template(Vec<TemplatePart>),
}

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// Given text.
    Text(String),
    /// So many masked tokens.
    Hole(usize),
}

/// Text or image.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Complete a text.
    Text(TextParams),
    /// Draw an image.
    Image(ImageParams),
}

/// One request: `n` completions of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to fill.
    pub prompt: Prompt,
    /// What to steer away from with guidance; `None` is the model's unconditional layout.
    pub negative_prompt: Option<Prompt>,
    /// Text or image, with parameters.
    pub task: Task,
    /// Number of completions.
    pub n: u32,
    /// Seed of the first completion; the others derive from it.
    pub seed: u64,
    /// Scheduling class.
    pub priority: Priority,
    /// When it is over, the rest is committed at once ("anytime").
    pub deadline: Option<Duration>,
    /// The adapter version to serve it with; `None` is what the routes assign.
    pub adapter: Option<VersionId>,
    /// Keyed hash of the end user's id: a user stays with one version while a canary runs.
    pub subject: Option<Vec<u8>>,
    /// Somebody watches it: `Queued`, `Step`, `Block` and `Preview` are sent. Otherwise nothing wakes the client before
    /// its completions are finished; on a CPU it would take the time from the forwards.
    pub follow: bool,
}

/// A position that got its token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edit {
    /// Zero-based within the generated canvas (text) or the grid (image).
    pub position: usize,
    /// Token id for text; code for images.
    pub token: u32,
    /// Text of the token alone; empty for images.
    pub text: String,
    /// Confidence in `[0, 1]` at which it committed.
    pub confidence: f32,
}

/// A finished completion, text or image.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Which of the `n`.
    pub index: u32,
    /// Its id, UUIDv7.
    pub id: Uuid,
    /// Its seed.
    pub seed: u64,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Ids of the prompt as the model saw it, layout included.
    pub prompt_ids: Vec<u32>,
    /// Text: generated ids (up to and without EOS unless `stop_at_eos` was off). Image: codes, row by row.
    pub tokens: Vec<u32>,
    /// Step at which each of `tokens` was committed; −1 when it was given.
    pub commit_steps: Vec<i32>,
    /// Log-probability of each of `tokens` when it was committed; 0 when it was given.
    pub logprobs: Vec<f32>,
    /// The text; empty for images.
    pub text: String,
    /// Forwards this completion took part in.
    pub steps: u32,
    /// Rows evaluated for it, guidance included.
    pub positions_evaluated: u64,
    /// Waiting time before its first step.
    pub queued: Duration,
    /// Time from its first step to its last.
    pub denoising: Duration,
}

impl Finished {
    /// How many of `tokens` were committed rather than given.
    #[must_use]
    pub fn committed(&self) -> usize {
        self.commit_steps.iter().filter(|step| **step >= 0).count()
    }

    /// PPT: positions evaluated per token of the result. What was committed after the end of a text counts as cost alone.
    #[must_use]
    pub fn ppt(&self) -> f64 {
        self.positions_evaluated as f64 / self.committed().max(1) as f64
    }
}

/// What a client hears of its request, in order. `Queued`, `Step`, `Block` and `Preview` are only sent to one that
/// follows it, and may be dropped for a slow one; `Finished`, `Done` and `Failed` never are.
#[derive(Debug, Clone)]
pub enum Event {
    /// Accepted; so many canvases are ahead.
    Queued {
        /// Canvases waiting or running before this one.
        ahead: usize,
    },
    /// A step of one completion.
    Step {
        /// Which of the `n`.
        index: u32,
        /// Zero-based step.
        step: u32,
        /// Steps planned in all.
        steps: u32,
        /// Newly committed positions.
        edits: Vec<Edit>,
        /// Append-only: text that is final since the last event (empty for images).
        committed: String,
    },
    /// A block of text is complete.
    Block {
        /// Which of the `n`.
        index: u32,
        /// Zero-based block.
        block: u32,
    },
    /// An image as far as it is known; masked cells are blank.
    Preview {
        /// Which of the `n`.
        index: u32,
        /// Zero-based step.
        step: u32,
        /// Codes; `None` where masked.
        codes: Vec<Option<u32>>,
    },
    /// One completion is ready.
    Finished(Box<Finished>),
    /// All are; nothing follows.
    Done,
    /// The request failed; nothing follows.
    Failed(super::EngineError),
}
