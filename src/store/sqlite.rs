//! The log in an embedded SQLite database: many readers, one [writer](super::writer).

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqlitePool;
use sqlx::{Row, Sqlite};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::adapters::{self, ChangeRegistry};
use super::audit;
use super::learning::{LaneTotal, Learning, NewRun, PoolCounts, RunRow, SampleUse, TrainingPool};
use super::lease::{self, ReleaseLease, RenewLease, TakeLease};
use super::open::{OpenError, open};
use super::operations::{AddFeedback, DeleteCompletion, DeleteFeedback, Record};
use super::pool;
use super::preferences::{AddPreference, NewPreference, PreferenceAck};
use super::registry::{AdapterRow, AuditCheck, AuditRow, Author, Change, LeaseRow, Outcomes, Registry, RouteRow};
use super::rows::{MAX_ROWS, at_most, named};
use super::runs::{self, FinishRun, RecordSamples, StartRun};
use super::subject::{SUBJECT_KEY_BYTES, SubjectKey};
use super::writer::{Limits, Queue, Writer};
use super::{CompletionRow, FeedbackAck, FeedbackRow, NewFeedback, Store, StoreCounts, StoreError};

/// Ratings that [`Store::feedback_of`] answers.
pub const MAX_RATINGS: u32 = 1000;

const EFFECTIVE: &str = "
SELECT id, completion_id, metric, kind, value_num, value_text, created_us
FROM feedback f
WHERE completion_id = ? AND kind <> 3 AND NOT EXISTS (SELECT 1 FROM feedback s WHERE s.supersedes = f.id)
ORDER BY seq DESC LIMIT ?";

const COUNTS: &str = "
SELECT (SELECT count(*) FROM completion) AS completions, (SELECT count(*) FROM feedback WHERE kind <> 3) AS feedback";

/// The log in `lacuna.db` under a data directory, which no other process can open meanwhile. A write is acknowledged
/// when it is on stable storage (write-ahead log, `synchronous=FULL`), so an end at any moment loses nothing
/// acknowledged. Needs a Tokio runtime with its timer.
pub struct SqliteStore {
    queue: Queue,
    readers: SqlitePool,
    subject_key: SubjectKey,
    /// `None` once closed.
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the log under `data_dir`; creates the directory (mode 0700), and the database, where they are missing.
    ///
    /// # Errors
    /// Another server uses the directory, a newer release wrote it, or it cannot be read and written.
    pub async fn open(data_dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(data_dir, Limits::default()).await
    }

    /// [`open`](Self::open) with other bounds.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(data_dir: &Path, limits: Limits) -> Result<Self, OpenError> {
        let opened = open(data_dir).await?;
        let subject_key = (subject_key(&opened.readers).await)
            .map_err(|error| OpenError::Database { dir: data_dir.to_owned(), problem: error.to_string() })?;
        let (writer, queue) = Writer::new(opened.writer, opened.lock, limits);
        Ok(Self { queue, readers: opened.readers, subject_key, writer: Mutex::new(Some(tokio::spawn(writer.run()))) })
    }

    /// The hasher of users' ids that belongs to this data directory.
    #[must_use]
    pub fn subject_key(&self) -> &SubjectKey {
        &self.subject_key
    }
}

async fn subject_key(readers: &SqlitePool) -> Result<SubjectKey, StoreError> {
    let row = sqlx::query::<Sqlite>("SELECT value FROM meta WHERE key = 'subject_key'").fetch_one(readers).await?;
    let key = <[u8; SUBJECT_KEY_BYTES]>::try_from(row.try_get::<&[u8], _>("value")?)
        .map_err(|_| StoreError::Database("meta.subject_key has a wrong length".into()))?;
    Ok(SubjectKey::new(key))
}

#[async_trait]
impl Store for SqliteStore {
    async fn record(&self, rows: Vec<CompletionRow>) -> Result<(), StoreError> {
        at_most("rows", rows.len(), MAX_ROWS)?;
        rows.iter().try_for_each(CompletionRow::validate)?;
        self.queue.write(Record(rows)).await
    }

    async fn completion(&self, id: Uuid) -> Result<Option<CompletionRow>, StoreError> {
        sqlx::query::<Sqlite>("SELECT * FROM completion WHERE id = ?")
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?
            .map(|row| CompletionRow::from_row(&row))
            .transpose()
    }

    async fn delete_completion(&self, id: Uuid) -> Result<bool, StoreError> {
        self.queue.write(DeleteCompletion(id)).await
    }

    async fn add_feedback(&self, feedback: NewFeedback) -> Result<FeedbackAck, StoreError> {
        feedback.validate()?;
        self.queue.write(AddFeedback(feedback)).await
    }

    async fn feedback_of(&self, completion: Uuid) -> Result<Vec<FeedbackRow>, StoreError> {
        sqlx::query::<Sqlite>(EFFECTIVE)
            .bind(completion.as_bytes().as_slice())
            .bind(MAX_RATINGS)
            .fetch_all(&self.readers)
            .await?
            .iter()
            .map(FeedbackRow::from_row)
            .collect()
    }

    async fn delete_feedback(&self, id: Uuid) -> Result<bool, StoreError> {
        self.queue.write(DeleteFeedback(id)).await
    }

    async fn add_preference(&self, preference: NewPreference) -> Result<PreferenceAck, StoreError> {
        preference.validate()?;
        self.queue.write(AddPreference(preference)).await
    }

    async fn counts(&self) -> Result<StoreCounts, StoreError> {
        let row = sqlx::query::<Sqlite>(COUNTS).fetch_one(&self.readers).await?;
        Ok(StoreCounts {
            completions: row.try_get::<i64, _>("completions")?.cast_unsigned(),
            feedback: row.try_get::<i64, _>("feedback")?.cast_unsigned(),
        })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.queue.check()?;
        sqlx::query::<Sqlite>("SELECT 1 FROM meta").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        let mut writer = self.writer.lock().await;
        self.queue.close();
        // Readers first: the last connection to close folds the write-ahead log into the database, and only the writer
        // may write.
        self.readers.close().await;
        if let Some(task) = writer.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the log's writer ended badly");
        }
    }
}

#[async_trait]
impl Learning for SqliteStore {
    async fn training_pool(&self, limit: u32) -> Result<TrainingPool, StoreError> {
        pool::training_pool(&self.readers, limit).await
    }

    async fn pool_counts(&self) -> Result<PoolCounts, StoreError> {
        pool::pool_counts(&self.readers).await
    }

    async fn prompts_with_feedback(&self, limit: u32, seed: u64) -> Result<Vec<CompletionRow>, StoreError> {
        pool::prompts(&self.readers, limit, seed).await
    }

    async fn start_run(&self, run: NewRun) -> Result<(), StoreError> {
        run.validate()?;
        self.queue.write(StartRun(run)).await
    }

    async fn record_samples(&self, run: Uuid, samples: Vec<SampleUse>) -> Result<u64, StoreError> {
        let record = RecordSamples { run, samples };
        record.validate()?;
        self.queue.write(record).await
    }

    async fn finish_run(
        &self,
        run: Uuid,
        status: &str,
        metrics: serde_json::Value,
        error: Option<String>,
    ) -> Result<(), StoreError> {
        let finish = FinishRun { run, status: status.to_owned(), metrics, error };
        finish.validate()?;
        self.queue.write(finish).await
    }

    async fn runs(&self, limit: u32, before: Option<Uuid>) -> Result<Vec<RunRow>, StoreError> {
        runs::runs(&self.readers, limit, before).await
    }

    async fn run(&self, id: Uuid) -> Result<Option<RunRow>, StoreError> {
        runs::run(&self.readers, id).await
    }

    async fn lane_totals(&self) -> Result<Vec<LaneTotal>, StoreError> {
        runs::lane_totals(&self.readers).await
    }
}

#[async_trait]
impl Registry for SqliteStore {
    async fn change_registry(&self, changes: Vec<Change>, author: Author) -> Result<(), StoreError> {
        let change = ChangeRegistry { changes, author };
        change.validate()?;
        self.queue.write(change).await
    }

    async fn adapters(&self) -> Result<Vec<AdapterRow>, StoreError> {
        adapters::adapters(&self.readers).await
    }

    async fn adapter(&self, id: &str) -> Result<Option<AdapterRow>, StoreError> {
        adapters::adapter(&self.readers, id).await
    }

    async fn route(&self, channel: &str) -> Result<Option<RouteRow>, StoreError> {
        adapters::route(&self.readers, channel).await
    }

    async fn adapter_outcomes(&self, id: &str, metric: &str, since_us: i64) -> Result<Outcomes, StoreError> {
        adapters::outcomes(&self.readers, id, metric, since_us).await
    }

    async fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        audit::newest(&self.readers, limit).await
    }

    async fn verify_audit(&self) -> Result<AuditCheck, StoreError> {
        audit::verify(&mut *self.readers.acquire().await?).await
    }

    async fn take_lease(&self, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
        named("holder", holder)?;
        self.queue.write(TakeLease { holder: holder.to_owned(), ttl }).await
    }

    async fn renew_lease(&self, term: u64, ttl: Duration) -> Result<(), StoreError> {
        self.queue.write(RenewLease { term, ttl }).await
    }

    async fn release_lease(&self, term: u64) -> Result<(), StoreError> {
        self.queue.write(ReleaseLease(term)).await
    }

    async fn lease(&self) -> Result<Option<LeaseRow>, StoreError> {
        lease::lease(&self.readers).await
    }
}
