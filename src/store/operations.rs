//! The writes of the log as SQL. Each runs inside the writer's transaction.

use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::rows::uuid;
use super::writer::Operation;
use super::{CompletionRow, FeedbackAck, NewFeedback, StoreError};

/// Finds the request that used an idempotency key.
const FIRST_ANSWER: &str = "
SELECT f.id AS id, f.body_sha256 AS body_sha256, c.adapter AS adapter
FROM feedback f JOIN completion c ON c.id = f.completion_id
WHERE f.idem_key = ?";

/// Adds a rating to a completion that exists, superseding the rater's last one. No row when there is no completion.
const ADD_FEEDBACK: &str = "
INSERT INTO feedback (
  id, completion_id, metric, kind, value_num, value_text, subject_hash, supersedes, idem_key, body_sha256, created_us
)
SELECT ?1, c.id, ?3, ?4, ?5, ?6, ?7, (
    SELECT last.id FROM feedback last
    WHERE last.completion_id = ?2 AND last.metric = ?3 AND last.subject_hash IS ?7 AND last.kind <> 3
    ORDER BY last.seq DESC LIMIT 1
  ), ?8, ?9, ?10
FROM completion c WHERE c.id = ?2
RETURNING (SELECT adapter FROM completion WHERE id = ?2) AS adapter";

/// Adds a tombstone over a rating that has none.
const DELETE_FEEDBACK: &str = "
INSERT INTO feedback (id, completion_id, metric, kind, subject_hash, supersedes, body_sha256, created_us)
SELECT ?1, completion_id, metric, 3, subject_hash, id, x'', ?3
FROM feedback
WHERE id = ?2 AND kind <> 3 AND NOT EXISTS (SELECT 1 FROM feedback t WHERE t.supersedes = ?2 AND t.kind = 3)";

/// Ratings go with it: `ON DELETE CASCADE`.
const DELETE_COMPLETION: &str = "DELETE FROM completion WHERE id = ?";

/// Appends completions.
pub(super) struct Record(pub(super) Vec<CompletionRow>);

#[async_trait]
impl Operation for Record {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for row in &self.0 {
            row.insert(connection).await?;
        }
        Ok(())
    }
}

/// Stores a rating.
pub(super) struct AddFeedback(pub(super) NewFeedback);

#[async_trait]
impl Operation for AddFeedback {
    type Output = FeedbackAck;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<FeedbackAck, StoreError> {
        let feedback = &self.0;
        if let Some(key) = &feedback.idempotency_key {
            let first = sqlx::query::<Sqlite>(FIRST_ANSWER).bind(key.as_str()).fetch_optional(&mut *connection).await?;
            if let Some(first) = first {
                if first.try_get::<&[u8], _>("body_sha256")? != feedback.body_sha256 {
                    return Err(StoreError::IdempotencyMismatch);
                }
                return Ok(FeedbackAck { id: uuid(&first, "id")?, adapter: first.try_get("adapter")?, replayed: true });
            }
        }
        let id = Uuid::now_v7();
        let (kind, number, text) = feedback.value.columns();
        let stored = sqlx::query::<Sqlite>(ADD_FEEDBACK)
            .bind(id.as_bytes().as_slice())
            .bind(feedback.completion.as_bytes().as_slice())
            .bind(feedback.metric.as_str())
            .bind(kind)
            .bind(number)
            .bind(text)
            .bind(feedback.subject_hash.as_deref())
            .bind(feedback.idempotency_key.as_deref())
            .bind(feedback.body_sha256.as_slice())
            .bind(now_us())
            .fetch_optional(connection)
            .await?
            .ok_or(StoreError::UnknownCompletion(feedback.completion))?;
        Ok(FeedbackAck { id, adapter: stored.try_get("adapter")?, replayed: false })
    }
}

/// Takes a rating back.
pub(super) struct DeleteFeedback(pub(super) Uuid);

#[async_trait]
impl Operation for DeleteFeedback {
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let done = sqlx::query::<Sqlite>(DELETE_FEEDBACK)
            .bind(Uuid::now_v7().as_bytes().as_slice())
            .bind(self.0.as_bytes().as_slice())
            .bind(now_us())
            .execute(connection)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Removes a completion with its ratings.
pub(super) struct DeleteCompletion(pub(super) Uuid);

#[async_trait]
impl Operation for DeleteCompletion {
    type Output = bool;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let done =
            sqlx::query::<Sqlite>(DELETE_COMPLETION).bind(self.0.as_bytes().as_slice()).execute(connection).await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Microseconds since the epoch; a clock before 1970 reads as 0.
pub(super) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
