//! Rows to SQL and back, and the bounds of what a row may hold. Knows columns; knows nothing of files or queues.

use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::blob::{decode, encode};
use super::{CompletionRow, FeedbackRow, Kind, NewFeedback, StoreError, Value};

/// Completions in one call of `record`.
pub const MAX_ROWS: usize = 64;
/// Elements of `prompt_ids`, `tokens`, `commit_steps` and `logprobs`, each; 4 MiB as a blob.
pub const MAX_ELEMENTS: usize = 1 << 20;
/// Bytes of a completion's `prompt` and `text`, each.
pub const MAX_TEXT_BYTES: usize = 8 << 20;
/// Bytes of a completion's `params` and `metadata`, each, as JSON.
pub const MAX_JSON_BYTES: usize = 1 << 20;
/// Bytes of names: model, adapter, metric, idempotency key, finish reason, hash of the weights.
pub const MAX_NAME_BYTES: usize = 512;
/// Bytes of a textual rating.
pub const MAX_COMMENT_BYTES: usize = 64 << 10;
/// Bytes of hashes.
pub const MAX_HASH_BYTES: usize = 64;
/// Ratings must be smaller than this in absolute value; the schema checks the same, and so refuses infinities.
pub const MAX_NUMBER: f64 = 1e308;

/// What `feedback.kind` holds, besides 3: a tombstone.
const BOOL: i64 = 0;
const NUMBER: i64 = 1;
const TEXT: i64 = 2;

const INSERT_COMPLETION: &str = "
INSERT INTO completion (
  id, adapter, created_us, group_id, sample_index, kind, model, base_sha256, seed, finish_reason, steps,
  positions_evaluated, queue_ms, denoise_ms, grid_rows, grid_columns, subject_hash, params, metadata, prompt, text,
  prompt_ids, tokens, commit_steps, logprobs, prompt_sha256
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

impl CompletionRow {
    /// Checks bounds and finiteness, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        at_most("model", self.model.len(), MAX_NAME_BYTES)?;
        at_most("base_sha256", self.base_sha256.len(), MAX_NAME_BYTES)?;
        at_most("adapter", self.adapter.len(), MAX_NAME_BYTES)?;
        at_most("finish_reason", self.finish_reason.len(), MAX_NAME_BYTES)?;
        at_most("subject_hash", bytes_of(&self.subject_hash), MAX_HASH_BYTES)?;
        at_most("prompt", bytes_of(&self.prompt), MAX_TEXT_BYTES)?;
        at_most("text", self.text.len(), MAX_TEXT_BYTES)?;
        at_most("prompt_ids", self.prompt_ids.len(), MAX_ELEMENTS)?;
        at_most("tokens", self.tokens.len(), MAX_ELEMENTS)?;
        parallel("commit_steps", self.commit_steps.len(), self.tokens.len())?;
        parallel("logprobs", self.logprobs.len(), self.tokens.len())?;
        if let Some(at) = self.logprobs.iter().position(|value| !value.is_finite()) {
            return Err(invalid("logprobs", format!("element {at} is not finite")));
        }
        let params = self.params.to_string().len();
        at_most("params", params, MAX_JSON_BYTES)?;
        let metadata = self.metadata.to_string().len();
        at_most("metadata", metadata, MAX_JSON_BYTES)?;
        finite("queue_ms", self.queue_ms)?;
        finite("denoise_ms", self.denoise_ms)?;
        if i64::try_from(self.positions_evaluated).is_err() {
            return Err(invalid("positions_evaluated", "exceeds 2^63 - 1".into()));
        }
        Ok(())
    }

    pub(super) async fn insert(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let prompt_ids = encode(&self.prompt_ids);
        sqlx::query::<Sqlite>(INSERT_COMPLETION)
            .bind(self.id.as_bytes().as_slice())
            .bind(self.adapter.as_str())
            .bind(self.created_us)
            .bind(self.group.as_bytes().as_slice())
            .bind(i64::from(self.index))
            .bind(i64::from(self.kind == Kind::Image))
            .bind(self.model.as_str())
            .bind(self.base_sha256.as_str())
            .bind(self.seed.cast_signed())
            .bind(self.finish_reason.as_str())
            .bind(i64::from(self.steps))
            .bind(self.positions_evaluated.cast_signed())
            .bind(self.queue_ms)
            .bind(self.denoise_ms)
            .bind(self.grid.map(|(rows, _)| i64::from(rows)))
            .bind(self.grid.map(|(_, columns)| i64::from(columns)))
            .bind(self.subject_hash.as_deref())
            .bind(self.params.to_string())
            .bind(self.metadata.to_string())
            .bind(self.prompt.as_deref())
            .bind(self.text.as_str())
            .bind(prompt_ids.as_slice())
            .bind(encode(&self.tokens))
            .bind(encode(&self.commit_steps))
            .bind(encode(&self.logprobs))
            .bind(prompt_sha256(self.kind == Kind::Image, &prompt_ids))
            .execute(connection)
            .await?;
        Ok(())
    }

    pub(super) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let grid: (Option<u32>, Option<u32>) = (row.try_get("grid_rows")?, row.try_get("grid_columns")?);
        Ok(Self {
            id: uuid(row, "id")?,
            group: uuid(row, "group_id")?,
            index: row.try_get("sample_index")?,
            kind: match row.try_get::<i64, _>("kind")? {
                0 => Kind::Text,
                _ => Kind::Image,
            },
            model: row.try_get("model")?,
            base_sha256: row.try_get("base_sha256")?,
            adapter: row.try_get("adapter")?,
            prompt: row.try_get("prompt")?,
            prompt_ids: decode("prompt_ids", row.try_get("prompt_ids")?)?,
            tokens: decode("tokens", row.try_get("tokens")?)?,
            commit_steps: decode("commit_steps", row.try_get("commit_steps")?)?,
            logprobs: decode("logprobs", row.try_get("logprobs")?)?,
            text: row.try_get("text")?,
            grid: grid.0.zip(grid.1),
            params: parse("params", row.try_get("params")?)?,
            seed: row.try_get::<i64, _>("seed")?.cast_unsigned(),
            finish_reason: row.try_get("finish_reason")?,
            steps: row.try_get("steps")?,
            positions_evaluated: row.try_get::<i64, _>("positions_evaluated")?.cast_unsigned(),
            queue_ms: row.try_get("queue_ms")?,
            denoise_ms: row.try_get("denoise_ms")?,
            subject_hash: row.try_get("subject_hash")?,
            metadata: parse("metadata", row.try_get("metadata")?)?,
            created_us: row.try_get("created_us")?,
        })
    }
}

impl NewFeedback {
    /// Checks bounds and finiteness, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        at_most("metric", self.metric.len(), MAX_NAME_BYTES)?;
        let key = bytes_of(&self.idempotency_key);
        at_most("idempotency_key", key, MAX_NAME_BYTES)?;
        at_most("subject_hash", bytes_of(&self.subject_hash), MAX_HASH_BYTES)?;
        at_most("body_sha256", self.body_sha256.len(), MAX_HASH_BYTES)?;
        match &self.value {
            Value::Bool(_) => Ok(()),
            Value::Number(number) => finite("value", *number),
            Value::Text(text) => at_most("value", text.len(), MAX_COMMENT_BYTES),
        }
    }
}

impl Value {
    /// `(kind, value_num, value_text)` of a row of `feedback`.
    pub(super) fn columns(&self) -> (i64, Option<f64>, Option<&str>) {
        match self {
            Self::Bool(flag) => (BOOL, Some(f64::from(u8::from(*flag))), None),
            Self::Number(number) => (NUMBER, Some(*number), None),
            Self::Text(text) => (TEXT, None, Some(text)),
        }
    }

    pub(super) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(match row.try_get::<i64, _>("kind")? {
            BOOL => Self::Bool(row.try_get::<f64, _>("value_num")? != 0.0),
            NUMBER => Self::Number(row.try_get("value_num")?),
            _ => Self::Text(row.try_get("value_text")?),
        })
    }
}

impl FeedbackRow {
    pub(super) fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: uuid(row, "id")?,
            completion: uuid(row, "completion_id")?,
            metric: row.try_get("metric")?,
            value: Value::from_row(row)?,
            created_us: row.try_get("created_us")?,
        })
    }
}

/// SHA-256 of a prompt: of its kind and its ids as they are stored.
pub(super) fn prompt_sha256(image: bool, prompt_ids: &[u8]) -> Vec<u8> {
    Sha256::new().chain_update([u8::from(image)]).chain_update(prompt_ids).finalize().to_vec()
}

/// Reads a 16-byte column.
pub(super) fn uuid(row: &SqliteRow, column: &'static str) -> Result<Uuid, StoreError> {
    Uuid::from_slice(row.try_get(column)?).map_err(|error| StoreError::Database(format!("column {column}: {error}")))
}

pub(super) fn at_most(field: &'static str, actual: usize, limit: usize) -> Result<(), StoreError> {
    if actual <= limit {
        return Ok(());
    }
    let problem = format!("has length {actual}; the log keeps at most {limit}");
    Err(invalid(field, problem))
}

/// A name must say something.
pub(super) fn named(field: &'static str, name: &str) -> Result<(), StoreError> {
    if name.is_empty() {
        return Err(invalid(field, format!("is empty; expected 1 to {MAX_NAME_BYTES} bytes")));
    }
    at_most(field, name.len(), MAX_NAME_BYTES)
}

/// A document of at most `limit` bytes.
pub(super) fn json(field: &'static str, value: &serde_json::Value, limit: usize) -> Result<(), StoreError> {
    at_most(field, value.to_string().len(), limit)
}

/// An array that goes along `tokens`, or was not kept.
fn parallel(field: &'static str, actual: usize, tokens: usize) -> Result<(), StoreError> {
    if actual == 0 || actual == tokens {
        return Ok(());
    }
    let problem = format!("has {actual} elements; expected {tokens}, one per token, or none");
    Err(invalid(field, problem))
}

pub(super) fn finite(field: &'static str, value: f64) -> Result<(), StoreError> {
    // False for NaN too.
    if value.abs() < MAX_NUMBER {
        return Ok(());
    }
    let problem = format!("is {value}; expected a finite number smaller than {MAX_NUMBER:e}");
    Err(invalid(field, problem))
}

pub(super) fn parse(column: &str, text: &str) -> Result<serde_json::Value, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Database(format!("column {column}: {error}")))
}

pub(super) fn bytes_of(value: &Option<impl AsRef<[u8]>>) -> usize {
    value.as_ref().map_or(0, |value| value.as_ref().len())
}

pub(super) fn invalid(field: &'static str, problem: String) -> StoreError {
    StoreError::Invalid { field, problem }
}
