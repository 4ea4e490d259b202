//! The trainer's lease as SQL: one holder at a time, and a term that fences the writes of those before it.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Row, Sqlite};

use super::StoreError;
use super::operations::now_us;
use super::registry::LeaseRow;
use super::writer::Operation;

/// Takes the lease when it is free, prolongs it for its holder. No row when another holds it.
const TAKE: &str = "
INSERT INTO lease (name, holder, term, expires_us) VALUES ('trainer', ?1, 1, ?3)
ON CONFLICT (name) DO UPDATE SET
  holder = ?1,
  term = CASE WHEN holder = ?1 AND expires_us > ?2 THEN term ELSE term + 1 END,
  expires_us = ?3
WHERE holder = ?1 OR expires_us <= ?2
RETURNING term";

const ABANDON: &str = "
UPDATE train_run SET status = 'abandoned', ended_us = ?2 WHERE status = 'running' AND term < ?1";

const RENEW: &str = "UPDATE lease SET expires_us = ?3 WHERE name = 'trainer' AND term = ?1 AND expires_us > ?2";

const RELEASE: &str = "UPDATE lease SET expires_us = 0 WHERE name = 'trainer' AND term = ?1";

const HOLDS: &str = "SELECT 1 FROM lease WHERE name = 'trainer' AND term = ?1 AND expires_us > ?2";

const LEASE: &str = "SELECT holder, term, expires_us FROM lease WHERE name = 'trainer'";

/// Takes or prolongs the lease.
pub(super) struct TakeLease {
    pub(super) holder: String,
    pub(super) ttl: Duration,
}

#[async_trait]
impl Operation for TakeLease {
    type Output = Option<u64>;

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<Option<u64>, StoreError> {
        let now = now_us();
        let taken = sqlx::query::<Sqlite>(TAKE)
            .bind(self.holder.as_str())
            .bind(now)
            .bind(after(now, self.ttl))
            .fetch_optional(&mut *connection)
            .await?;
        let Some(taken) = taken else { return Ok(None) };
        let term: i64 = taken.try_get("term")?;
        sqlx::query::<Sqlite>(ABANDON).bind(term).bind(now).execute(connection).await?;
        Ok(Some(term.cast_unsigned()))
    }
}

/// Prolongs the lease of a term.
pub(super) struct RenewLease {
    pub(super) term: u64,
    pub(super) ttl: Duration,
}

#[async_trait]
impl Operation for RenewLease {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let now = now_us();
        let renewed = sqlx::query::<Sqlite>(RENEW)
            .bind(self.term.cast_signed())
            .bind(now)
            .bind(after(now, self.ttl))
            .execute(connection)
            .await?;
        if renewed.rows_affected() == 0 {
            return Err(StoreError::LeaseLost { term: self.term });
        }
        Ok(())
    }
}

/// Ends the lease of a term.
pub(super) struct ReleaseLease(pub(super) u64);

#[async_trait]
impl Operation for ReleaseLease {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        sqlx::query::<Sqlite>(RELEASE).bind(self.0.cast_signed()).execute(connection).await?;
        Ok(())
    }
}

/// Fails unless the lease is held with `term`. Inside a write's transaction nobody can take it in between.
pub(super) async fn must_hold(connection: &mut SqliteConnection, term: u64) -> Result<(), StoreError> {
    let holds = sqlx::query::<Sqlite>(HOLDS).bind(term.cast_signed()).bind(now_us());
    match holds.fetch_optional(connection).await? {
        Some(_) => Ok(()),
        None => Err(StoreError::LeaseLost { term }),
    }
}

/// See [`Registry::lease`](super::Registry::lease).
pub(super) async fn lease(readers: &SqlitePool) -> Result<Option<LeaseRow>, StoreError> {
    let Some(row) = sqlx::query::<Sqlite>(LEASE).fetch_optional(readers).await? else { return Ok(None) };
    Ok(Some(LeaseRow {
        holder: row.try_get("holder")?,
        term: row.try_get::<i64, _>("term")?.cast_unsigned(),
        expires_us: row.try_get("expires_us")?,
    }))
}

fn after(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX))
}
