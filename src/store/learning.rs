//! What training asks of the log: what nobody has learnt from yet, and the book of which run learnt from what.
//!
//! Lives here: types and the [`Learning`] trait. Does not: SQL (see `pool` and `runs`), losses, lanes' rules.

use async_trait::async_trait;
use uuid::Uuid;

use super::{CompletionRow, StoreError, Value};

/// Ratings, and rankings, that [`Learning::training_pool`] answers, each; also prompts of
/// [`Learning::prompts_with_feedback`].
pub const MAX_POOL: u32 = 10_000;
/// Bytes of completions' payloads that [`Learning::training_pool`] answers: the group that exceeds it waits for the
/// next call, together with its ratings.
pub const MAX_POOL_BYTES: usize = 256 << 20;
/// Completions whose prompts [`Learning::prompts_with_feedback`] draws from: those rated last.
pub const MAX_RATED: u32 = 20_000;
/// Samples in one call of [`Learning::record_samples`].
pub const MAX_SAMPLES: usize = 4096;
/// Runs that [`Learning::runs`] answers.
pub const MAX_RUNS: u32 = 1000;
/// Rows that [`Learning::lane_totals`] answers.
pub const MAX_LANE_TOTALS: u32 = 1000;

/// What is on the way to the next training run, read at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainingPool {
    /// Every completion that `feedback` or `preferences` names, with all completions of its group. Group by group,
    /// oldest first, in order of `index`.
    pub completions: Vec<CompletionRow>,
    /// Effective ratings that no run has consumed, oldest first.
    pub feedback: Vec<PoolFeedback>,
    /// Pairs of rankings that no run has consumed, oldest first.
    pub preferences: Vec<PoolPreference>,
}

/// An effective rating.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolFeedback {
    /// Id of the rating; the item of its [`SampleUse`].
    pub id: Uuid,
    /// What is rated.
    pub completion: Uuid,
    /// Name of the metric.
    pub metric: String,
    /// The rating; comments too.
    pub value: Value,
    /// Keyed hash of the rater's id.
    pub subject_hash: Option<Vec<u8>>,
    /// Creation time, microseconds since the epoch.
    pub created_us: i64,
}

/// Two completions of a ranking.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolPreference {
    /// Id of the ranking, shared by its pairs; the item of its [`SampleUse`].
    pub preference: Uuid,
    /// The better one.
    pub chosen: Uuid,
    /// The worse one.
    pub rejected: Uuid,
    /// Neither is better.
    pub tie: bool,
    /// `1/(k-1)` in a ranking of `k`: each completion then weighs 1, however long the ranking.
    pub weight: f64,
    /// How sure the subject was, 0 to 1.
    pub strength: Option<f64>,
    /// Keyed hash of the subject's id.
    pub subject_hash: Option<Vec<u8>>,
    /// Creation time, microseconds since the epoch.
    pub created_us: i64,
}

/// How much waits for the next run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolCounts {
    /// Effective ratings that no run has consumed.
    pub feedback: u64,
    /// Rankings that no run has consumed.
    pub preferences: u64,
    /// Distinct subjects of both; those without one are not counted.
    pub subjects: u64,
}

/// A run about to start.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    /// UUIDv7.
    pub id: Uuid,
    /// Term of the trainer's lease, which must be held.
    pub term: u64,
    /// What started it, such as `samples` or `manual`.
    pub trigger: String,
    /// Adapter that it starts from.
    pub parent: String,
    /// Hyperparameters as JSON.
    pub config: serde_json::Value,
}

/// A run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// As it was started.
    pub run: NewRun,
    /// [`RUNNING`], [`ABANDONED`] when another trainer took over meanwhile, or what [`Learning::finish_run`] said.
    pub status: String,
    /// What was measured, as JSON; `{}` until the end.
    pub metrics: serde_json::Value,
    /// Why it failed.
    pub error: Option<String>,
    /// Start, microseconds since the epoch.
    pub started_us: i64,
    /// End, microseconds since the epoch.
    pub ended_us: Option<i64>,
}

/// Status of a run that has not ended.
pub const RUNNING: &str = "running";
/// Status of a run whose trainer lost the lease before its end.
pub const ABANDONED: &str = "abandoned";

/// What a sample is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleKind {
    /// A rating.
    Feedback = 0,
    /// A ranking, all its pairs.
    Preference = 1,
    /// A completion, such as one made anew for a logged prompt.
    Completion = 2,
}

/// What a run did with an item.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleUse {
    /// Id of the rating, the ranking or the completion.
    pub item: Uuid,
    /// Which of these.
    pub kind: SampleKind,
    /// Name of the lane.
    pub lane: String,
    /// Reward it was given; none when it was dropped before.
    pub reward: Option<f64>,
    /// Its weight in the loss.
    pub weight: f64,
    /// How many versions behind the parent its completion's adapter was.
    pub age_versions: u32,
    /// Why it was not used; `None` when it was.
    pub drop_reason: Option<String>,
}

/// Samples of a lane with one fate, over all runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneTotal {
    /// Name of the lane.
    pub lane: String,
    /// Why they were dropped; `None` for those that were used.
    pub drop_reason: Option<String>,
    /// How many.
    pub samples: u64,
}

/// The log as a trainer sees it.
#[async_trait]
pub trait Learning: Send + Sync {
    /// The oldest `limit` (at most [`MAX_POOL`]) effective ratings, and as many rankings, that no run has consumed,
    /// with their completions. An item is consumed by its first [`SampleUse`], used or dropped; a later rating of the
    /// same completion, metric and subject is a new item, and so is a later ranking of the same completions by the same
    /// subject. Nothing depends on the order in which items were committed.
    ///
    /// # Errors
    /// `Database`.
    async fn training_pool(&self, limit: u32) -> Result<TrainingPool, StoreError>;

    /// How much waits; cheap enough to ask every second.
    ///
    /// # Errors
    /// `Database`.
    async fn pool_counts(&self) -> Result<PoolCounts, StoreError>;

    /// The newest rated completion of each of at most `limit` (at most [`MAX_POOL`]) distinct prompts whose completions have
    /// an effective rating or a ranking, consumed or not. Which prompts and in which order depends on `seed` and on the
    /// prompts alone.
    ///
    /// # Errors
    /// `Database`.
    async fn prompts_with_feedback(&self, limit: u32, seed: u64) -> Result<Vec<CompletionRow>, StoreError>;

    /// Writes down that a run starts.
    ///
    /// # Errors
    /// `LeaseLost` when its term is not held any more, `Invalid`, `Full` or `Database`.
    async fn start_run(&self, run: NewRun) -> Result<(), StoreError>;

    /// Writes down what a run did with at most [`MAX_SAMPLES`] items, all or none. Items that this run has already are
    /// left as they are, so that a call may be repeated. Answers how many were new.
    ///
    /// # Errors
    /// `Conflict` when the run is not running, `Invalid`, `Full` or `Database`.
    async fn record_samples(&self, run: Uuid, samples: Vec<SampleUse>) -> Result<u64, StoreError>;

    /// Ends a run with a status other than [`RUNNING`].
    ///
    /// # Errors
    /// `Conflict` when it is not running, `Invalid`, `Full` or `Database`.
    async fn finish_run(
        &self,
        run: Uuid,
        status: &str,
        metrics: serde_json::Value,
        error: Option<String>,
    ) -> Result<(), StoreError>;

    /// At most `limit` (at most [`MAX_RUNS`]) runs, newest first; only those started before the run `before`.
    ///
    /// # Errors
    /// `Database`.
    async fn runs(&self, limit: u32, before: Option<Uuid>) -> Result<Vec<RunRow>, StoreError>;

    /// One run.
    ///
    /// # Errors
    /// `Database`.
    async fn run(&self, id: Uuid) -> Result<Option<RunRow>, StoreError>;

    /// Samples used and dropped over all runs, by lane and reason: exact, at most [`MAX_LANE_TOTALS`] rows.
    ///
    /// # Errors
    /// `Database`.
    async fn lane_totals(&self) -> Result<Vec<LaneTotal>, StoreError>;
}
