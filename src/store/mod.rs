//! The log: every completion and what people said of it. One [`Store`] trait; SQLite implements it.
//!
//! Learning and the registry of adapters are parts of it, with traits of their own: [`Learning`] and [`Registry`].
//!
//! Lives here: rows, durability, migrations. Does not: tensors, HTTP, the engine. Ids of prompts are data; raw user
//! ids are not: only their hash is ever stored.

mod adapters;
mod audit;
mod blob;
mod learning;
mod lease;
mod open;
mod operations;
mod pool;
mod preferences;
mod registry;
mod rows;
mod runs;
mod sqlite;
mod subject;
#[cfg(test)]
mod tests;
mod writer;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use learning::{
    ABANDONED, LaneTotal, Learning, MAX_LANE_TOTALS, MAX_POOL, MAX_POOL_BYTES, MAX_RATED, MAX_RUNS, MAX_SAMPLES,
    NewRun, PoolCounts, PoolFeedback, PoolPreference, RUNNING, RunRow, SampleKind, SampleUse, TrainingPool,
};
pub use open::OpenError;
pub use preferences::{MAX_RANKED, NewPreference, PreferenceAck};
pub use registry::{
    AdapterRow, AuditCheck, AuditRow, Author, Change, LeaseRow, MAX_ADAPTERS, MAX_AUDIT, MAX_CHANGES,
    MAX_DOCUMENT_BYTES, NewAdapter, Outcomes, Registry, RouteRow,
};
pub use rows::{
    MAX_COMMENT_BYTES, MAX_ELEMENTS, MAX_HASH_BYTES, MAX_JSON_BYTES, MAX_NAME_BYTES, MAX_NUMBER, MAX_ROWS,
    MAX_TEXT_BYTES,
};
pub use sqlite::{MAX_RATINGS, SqliteStore};
pub use subject::{SUBJECT_KEY_BYTES, SubjectKey};
pub use writer::Limits;

/// Why the log could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A row holds what the log does not keep: a number that is not finite, or more than the bound.
    #[error("{field} {problem}")]
    Invalid {
        /// Which field of the row.
        field: &'static str,
        /// What is wrong with it: the bound and the actual size, never the content.
        problem: String,
    },
    /// The feedback names a completion that is not in the log.
    #[error("completion {0} is not in the log")]
    UnknownCompletion(Uuid),
    /// The idempotency key was used with another body.
    #[error("idempotency key was already used with another body; use a new key for a new request")]
    IdempotencyMismatch,
    /// Completions of different prompts were ranked.
    #[error("completions {0} and {1} answer different prompts; rank completions of one prompt")]
    DifferentPrompts(Uuid, Uuid),
    /// What was to be changed has been changed by another since it was read, or is not there.
    #[error("{object} is not as expected: expected {expected}, found {found}; read it again and decide anew")]
    Conflict {
        /// What was to be changed.
        object: String,
        /// The state it had to have.
        expected: String,
        /// The state it has.
        found: String,
    },
    /// The trainer's lease ran out or another has taken it.
    #[error("the trainer's lease is not held with term {term} any more; take it again before training")]
    LeaseLost {
        /// The term that was presented.
        term: u64,
    },
    /// The writer's queue is full.
    #[error("the log's write queue is full ({limit} writes waiting); retry later")]
    Full {
        /// Writes that may wait.
        limit: usize,
    },
    /// The database failed.
    #[error("the log's database failed: {0}")]
    Database(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // Names statements, columns and constraints. Values are bound, so no prompt can be in it.
        Self::Database(error.to_string())
    }
}

/// Text or image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Text tokens.
    Text,
    /// Image codes.
    Image,
}

/// One completion, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRow {
    /// UUIDv7.
    pub id: Uuid,
    /// Shared by the completions of one request.
    pub group: Uuid,
    /// Which of the `n`.
    pub index: u32,
    /// Text or image.
    pub kind: Kind,
    /// Served model name.
    pub model: String,
    /// SHA-256 of the base weights.
    pub base_sha256: String,
    /// `name@version`.
    pub adapter: String,
    /// The prompt as sent (text, template or messages rendered to text); `None` when raw ids were sent.
    pub prompt: Option<String>,
    /// Ids the model saw before and around the generated positions.
    pub prompt_ids: Vec<u32>,
    /// Generated ids, or image codes row by row.
    pub tokens: Vec<u32>,
    /// Step at which each token was committed; −1 when it was given.
    pub commit_steps: Vec<i32>,
    /// Log-probability of each token when it was committed.
    pub logprobs: Vec<f32>,
    /// Decoded text; empty for images.
    pub text: String,
    /// Token grid of an image, (rows, columns).
    pub grid: Option<(u32, u32)>,
    /// Sampler settings as JSON.
    pub params: serde_json::Value,
    /// Seed of this completion.
    pub seed: u64,
    /// `stop`, `length`, `deadline`.
    pub finish_reason: String,
    /// Forwards.
    pub steps: u32,
    /// Rows evaluated.
    pub positions_evaluated: u64,
    /// Waiting time, milliseconds.
    pub queue_ms: f64,
    /// Denoising time, milliseconds.
    pub denoise_ms: f64,
    /// Keyed hash of the end user's id.
    pub subject_hash: Option<Vec<u8>>,
    /// Client's own key-value pairs.
    pub metadata: serde_json::Value,
    /// Creation time, microseconds since the epoch.
    pub created_us: i64,
}

/// The value of a rating.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// Thumbs.
    Bool(bool),
    /// A finite score.
    Number(f64),
    /// A comment or correction.
    Text(String),
}

/// A rating to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewFeedback {
    /// What is rated.
    pub completion: Uuid,
    /// Name of the metric, such as `thumbs`.
    pub metric: String,
    /// The rating.
    pub value: Value,
    /// Keyed hash of the rater's id.
    pub subject_hash: Option<Vec<u8>>,
    /// Client's idempotency key.
    pub idempotency_key: Option<String>,
    /// SHA-256 of the request body, to tell a retry from a reuse of the key.
    pub body_sha256: Vec<u8>,
}

/// What is answered to a rating; it is on stable storage by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedbackAck {
    /// UUIDv7.
    pub id: Uuid,
    /// Adapter that made the rated completion.
    pub adapter: String,
    /// The same request had been stored before; this is its first answer.
    pub replayed: bool,
}

/// A stored rating.
#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackRow {
    /// UUIDv7.
    pub id: Uuid,
    /// What is rated.
    pub completion: Uuid,
    /// Name of the metric.
    pub metric: String,
    /// The rating.
    pub value: Value,
    /// Creation time, microseconds since the epoch.
    pub created_us: i64,
}

/// Counts for `/info` and start-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StoreCounts {
    /// Completions in the log.
    pub completions: u64,
    /// Ratings in the log, replaced ones too.
    pub feedback: u64,
}

/// The log. Implementations are shared between tasks; every method may wait for the disk.
#[async_trait]
pub trait Store: Learning + Registry + Send + Sync {
    /// Appends completions, all or none. They are on stable storage and can be rated as soon as this returns.
    ///
    /// # Errors
    /// `Invalid`, `Full` or `Database` (also for an id that is in the log already).
    async fn record(&self, rows: Vec<CompletionRow>) -> Result<(), StoreError>;

    /// One completion, or `None` when it is not in the log.
    ///
    /// # Errors
    /// `Database`.
    async fn completion(&self, id: Uuid) -> Result<Option<CompletionRow>, StoreError>;

    /// Removes a completion, its ratings and the pairs of rankings that it is in, text and all. False when it was not in the log.
    ///
    /// # Errors
    /// `Full` or `Database`.
    async fn delete_completion(&self, id: Uuid) -> Result<bool, StoreError>;

    /// Stores a rating and returns once it is on stable storage. The caller may stop waiting; a rating that was queued
    /// is stored all the same.
    ///
    /// # Errors
    /// `Invalid`, `UnknownCompletion`, `IdempotencyMismatch`, `Full` or `Database`.
    async fn add_feedback(&self, feedback: NewFeedback) -> Result<FeedbackAck, StoreError>;

    /// Effective ratings of a completion: the newest per metric and subject, unless it was taken back; raters without a
    /// subject count as one. Newest first, at most [`MAX_RATINGS`].
    ///
    /// # Errors
    /// `Database`.
    async fn feedback_of(&self, completion: Uuid) -> Result<Vec<FeedbackRow>, StoreError>;

    /// Takes a rating back; the one it had replaced does not return. False when it was not in the log, or was taken back
    /// before. The row stays as history until its completion is deleted.
    ///
    /// # Errors
    /// `Full` or `Database`.
    async fn delete_feedback(&self, id: Uuid) -> Result<bool, StoreError>;

    /// Stores a ranking of completions of one prompt and returns once it is on stable storage, as
    /// [`add_feedback`](Self::add_feedback) does. The pairs of a completion that is deleted go with it.
    ///
    /// # Errors
    /// `Invalid`, `UnknownCompletion`, `DifferentPrompts`, `IdempotencyMismatch`, `Full` or `Database`.
    async fn add_preference(&self, preference: NewPreference) -> Result<PreferenceAck, StoreError>;

    /// How much is in it.
    ///
    /// # Errors
    /// `Database`.
    async fn counts(&self) -> Result<StoreCounts, StoreError>;

    /// A round trip to the database; for `/ready`.
    ///
    /// # Errors
    /// `Database`.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Refuses new writes, writes what is pending and closes the database.
    async fn close(&self);
}
