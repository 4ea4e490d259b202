//! The book of training runs as SQL: which run learnt from what.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::StoreError;
use super::learning::{LaneTotal, MAX_LANE_TOTALS, MAX_RUNS, MAX_SAMPLES, NewRun, RUNNING, RunRow, SampleUse};
use super::lease::must_hold;
use super::operations::now_us;
use super::rows::{MAX_COMMENT_BYTES, MAX_JSON_BYTES, at_most, bytes_of, finite, invalid, json, named, parse, uuid};
use super::writer::Operation;

const START: &str = "
INSERT INTO train_run (id, term, cause, parent, status, config, started_us) VALUES (?, ?, ?, ?, 'running', ?, ?)";

const SAMPLE: &str = "
INSERT INTO train_sample (run_seq, item_id, kind, lane, reward, weight, age_versions, drop_reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_seq, item_id) DO NOTHING";

const FINISH: &str = "
UPDATE train_run SET status = ?2, metrics = ?3, error = ?4, ended_us = ?5 WHERE id = ?1 AND status = 'running'";

const RUNS: &str = "
SELECT * FROM train_run WHERE ?1 IS NULL OR seq < (SELECT seq FROM train_run WHERE id = ?1) ORDER BY seq DESC LIMIT ?2";

const TOTALS: &str = "SELECT lane, reason, samples FROM lane_total ORDER BY lane, reason LIMIT ?";

/// Starts a run.
pub(super) struct StartRun(pub(super) NewRun);

impl NewRun {
    /// Checks bounds, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        named("trigger", &self.trigger)?;
        named("parent", &self.parent)?;
        json("config", &self.config, MAX_JSON_BYTES)
    }
}

#[async_trait]
impl Operation for StartRun {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let run = &self.0;
        must_hold(connection, run.term).await?;
        sqlx::query::<Sqlite>(START)
            .bind(run.id.as_bytes().as_slice())
            .bind(run.term.cast_signed())
            .bind(run.trigger.as_str())
            .bind(run.parent.as_str())
            .bind(run.config.to_string())
            .bind(now_us())
            .execute(connection)
            .await?;
        Ok(())
    }
}

/// Writes down what a run did with items.
pub(super) struct RecordSamples {
    pub(super) run: Uuid,
    pub(super) samples: Vec<SampleUse>,
}

impl RecordSamples {
    /// Checks bounds and finiteness, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        at_most("samples", self.samples.len(), MAX_SAMPLES)?;
        for sample in &self.samples {
            named("lane", &sample.lane)?;
            sample.drop_reason.as_deref().map_or(Ok(()), |reason| named("drop_reason", reason))?;
            sample.reward.map_or(Ok(()), |reward| finite("reward", reward))?;
            finite("weight", sample.weight)?;
        }
        Ok(())
    }
}

#[async_trait]
impl Operation for RecordSamples {
    type Output = u64;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<u64, StoreError> {
        let (run, status) = status_of(connection, self.run).await?;
        if status != RUNNING {
            return Err(not_running(self.run, &status));
        }
        let mut new = 0;
        for sample in &self.samples {
            let done = sqlx::query::<Sqlite>(SAMPLE)
                .bind(run)
                .bind(sample.item.as_bytes().as_slice())
                .bind(sample.kind as i64)
                .bind(sample.lane.as_str())
                .bind(sample.reward)
                .bind(sample.weight)
                .bind(sample.age_versions)
                .bind(sample.drop_reason.as_deref())
                .execute(&mut *connection)
                .await?;
            new += done.rows_affected();
        }
        Ok(new)
    }
}

/// Ends a run.
pub(super) struct FinishRun {
    pub(super) run: Uuid,
    pub(super) status: String,
    pub(super) metrics: serde_json::Value,
    pub(super) error: Option<String>,
}

impl FinishRun {
    /// Checks bounds, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        named("status", &self.status)?;
        if self.status == RUNNING {
            return Err(invalid("status", format!("is {RUNNING}; expected how the run ended")));
        }
        at_most("error", bytes_of(&self.error), MAX_COMMENT_BYTES)?;
        json("metrics", &self.metrics, MAX_JSON_BYTES)
    }
}

#[async_trait]
impl Operation for FinishRun {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let done = sqlx::query::<Sqlite>(FINISH)
            .bind(self.run.as_bytes().as_slice())
            .bind(self.status.as_str())
            .bind(self.metrics.to_string())
            .bind(self.error.as_deref())
            .bind(now_us())
            .execute(&mut *connection)
            .await?;
        if done.rows_affected() == 0 {
            let (_, status) = status_of(connection, self.run).await?;
            return Err(not_running(self.run, &status));
        }
        Ok(())
    }
}

/// Row number and status of a run.
async fn status_of(connection: &mut SqliteConnection, run: Uuid) -> Result<(i64, String), StoreError> {
    let row = sqlx::query::<Sqlite>("SELECT seq, status FROM train_run WHERE id = ?")
        .bind(run.as_bytes().as_slice())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| not_running(run, "missing"))?;
    Ok((row.try_get("seq")?, row.try_get("status")?))
}

fn not_running(run: Uuid, found: &str) -> StoreError {
    StoreError::Conflict { object: format!("run {run}"), expected: RUNNING.into(), found: found.into() }
}

/// See [`Learning::runs`](super::Learning::runs).
pub(super) async fn runs(readers: &SqlitePool, limit: u32, before: Option<Uuid>) -> Result<Vec<RunRow>, StoreError> {
    sqlx::query::<Sqlite>(RUNS)
        .bind(before.as_ref().map(|id| id.as_bytes().as_slice()))
        .bind(limit.min(MAX_RUNS))
        .fetch_all(readers)
        .await?
        .iter()
        .map(run_row)
        .collect()
}

/// See [`Learning::run`](super::Learning::run).
pub(super) async fn run(readers: &SqlitePool, id: Uuid) -> Result<Option<RunRow>, StoreError> {
    let row = sqlx::query::<Sqlite>("SELECT * FROM train_run WHERE id = ?").bind(id.as_bytes().as_slice());
    row.fetch_optional(readers).await?.as_ref().map(run_row).transpose()
}

fn run_row(row: &SqliteRow) -> Result<RunRow, StoreError> {
    Ok(RunRow {
        run: NewRun {
            id: uuid(row, "id")?,
            term: row.try_get::<i64, _>("term")?.cast_unsigned(),
            trigger: row.try_get("cause")?,
            parent: row.try_get("parent")?,
            config: parse("config", row.try_get("config")?)?,
        },
        status: row.try_get("status")?,
        metrics: parse("metrics", row.try_get("metrics")?)?,
        error: row.try_get("error")?,
        started_us: row.try_get("started_us")?,
        ended_us: row.try_get("ended_us")?,
    })
}

/// See [`Learning::lane_totals`](super::Learning::lane_totals).
pub(super) async fn lane_totals(readers: &SqlitePool) -> Result<Vec<LaneTotal>, StoreError> {
    let total = |row: &SqliteRow| {
        Ok(LaneTotal {
            lane: row.try_get("lane")?,
            drop_reason: Some(row.try_get::<String, _>("reason")?).filter(|reason| !reason.is_empty()),
            samples: row.try_get::<i64, _>("samples")?.cast_unsigned(),
        })
    };
    sqlx::query::<Sqlite>(TOTALS).bind(MAX_LANE_TOTALS).fetch_all(readers).await?.iter().map(total).collect()
}
