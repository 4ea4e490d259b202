//! Adapters' versions and routes as SQL. A version is never changed but for its status and gate; every change of either
//! table is in the audit trail by the same transaction.

use async_trait::async_trait;
use serde_json::json;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Executor, Row, Sqlite};

use super::StoreError;
use super::audit::{Entry, append};
use super::lease::must_hold;
use super::operations::now_us;
use super::registry::{
    AdapterRow, Author, Change, MAX_ADAPTERS, MAX_CHANGES, MAX_DOCUMENT_BYTES, NewAdapter, Outcomes, RouteRow,
};
use super::rows::{at_most, invalid, json as document, named, parse, uuid};
use super::writer::Operation;

const ADD: &str = "
INSERT INTO adapter (id, parent, base_sha256, run_id, status, sha256, bytes, rank, manifest, gate, created_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING";

const SET_STATUS: &str = "UPDATE adapter SET status = ?3, gate = ifnull(?4, gate) WHERE id = ?1 AND status = ?2";

const SET_ROUTE: &str = "
INSERT INTO route (channel, generation, spec, actor, updated_us) SELECT ?1, 1, ?3, ?4, ?5
WHERE ?2 = 0 OR EXISTS (SELECT 1 FROM route WHERE channel = ?1)
ON CONFLICT (channel) DO UPDATE SET generation = generation + 1, spec = ?3, actor = ?4, updated_us = ?5
WHERE generation = ?2";

const STATUS: &str = "SELECT status FROM adapter WHERE id = ?";

const GENERATION: &str = "SELECT generation FROM route WHERE channel = ?";

const OUTCOMES: &str = "
SELECT
  (SELECT count(*) FROM completion WHERE adapter = ?1 AND created_us >= ?3) AS completions,
  count(*) AS subjects, ifnull(sum(n), 0) AS n, sum(total) AS total, sum(squares) AS squares,
  avg(total / n) AS subject_mean
FROM (
  SELECT count(*) AS n, sum(f.value_num) AS total, sum(f.value_num * f.value_num) AS squares
  FROM feedback f JOIN completion c ON c.id = f.completion_id
  WHERE f.metric = ?2 AND f.created_us >= ?3 AND f.kind IN (0, 1) AND c.adapter = ?1
    AND NOT EXISTS (SELECT 1 FROM feedback s WHERE s.supersedes = f.id)
  GROUP BY f.subject_hash
)";

/// Makes all of these changes or none.
pub(super) struct ChangeRegistry {
    pub(super) changes: Vec<Change>,
    pub(super) author: Author,
}

impl ChangeRegistry {
    /// Checks bounds, so that the database never has to refuse.
    pub(super) fn validate(&self) -> Result<(), StoreError> {
        at_most("changes", self.changes.len(), MAX_CHANGES)?;
        named("actor", &self.author.actor)?;
        document("detail", &self.author.detail, MAX_DOCUMENT_BYTES)?;
        self.changes.iter().try_for_each(Change::validate)
    }
}

#[async_trait]
impl Operation for ChangeRegistry {
    type Output = ();

    async fn apply(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        if let Some(term) = self.author.term {
            must_hold(connection, term).await?;
        }
        // The transaction is shared with other writes: what a conflict in the middle undoes is this write alone.
        connection.execute("SAVEPOINT change").await?;
        let result = self.apply_all(connection).await;
        if matches!(result, Err(StoreError::Conflict { .. })) {
            connection.execute("ROLLBACK TO change").await?;
        }
        connection.execute("RELEASE change").await?;
        result
    }
}

impl ChangeRegistry {
    async fn apply_all(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for change in &self.changes {
            let entry = change.apply(connection, &self.author).await?;
            append(connection, entry).await?;
        }
        Ok(())
    }
}

impl Change {
    fn validate(&self) -> Result<(), StoreError> {
        match self {
            Self::Add(adapter) => adapter.validate(),
            Self::Status { id, from, to, gate } => {
                named("id", id)?;
                named("from", from)?;
                named("to", to)?;
                gate.as_ref().map_or(Ok(()), |gate| document("gate", gate, MAX_DOCUMENT_BYTES))
            }
            Self::Route { channel, expected, spec } => {
                named("channel", channel)?;
                if *expected >= i64::MAX.cast_unsigned() {
                    return Err(invalid("expected", format!("is {expected}; no generation is so large")));
                }
                document("spec", spec, MAX_DOCUMENT_BYTES)
            }
        }
    }

    /// Makes the change; answers its line for the audit trail.
    async fn apply<'a>(
        &'a self,
        connection: &mut SqliteConnection,
        author: &'a Author,
    ) -> Result<Entry<'a>, StoreError> {
        let why = &author.detail;
        let (action, object, detail) = match self {
            Self::Add(adapter) => {
                adapter.insert(connection).await?;
                let NewAdapter { id, parent, status, sha256, .. } = adapter;
                let detail = json!({ "parent": parent, "status": status, "sha256": sha256, "why": why });
                ("adapter.add", id, detail)
            }
            Self::Status { id, from, to, gate } => {
                set_status(connection, id, from, to, gate.as_ref()).await?;
                ("adapter.status", id, json!({ "from": from, "to": to, "gate": gate, "why": why }))
            }
            Self::Route { channel, expected, spec } => {
                set_route(connection, channel, *expected, spec, &author.actor).await?;
                ("route.set", channel, json!({ "generation": expected + 1, "spec": spec, "why": why }))
            }
        };
        Ok(Entry { actor: &author.actor, action, object, detail })
    }
}

impl NewAdapter {
    fn validate(&self) -> Result<(), StoreError> {
        named("id", &self.id)?;
        self.parent.as_deref().map_or(Ok(()), |parent| named("parent", parent))?;
        named("base_sha256", &self.base_sha256)?;
        named("status", &self.status)?;
        named("sha256", &self.sha256)?;
        if i64::try_from(self.bytes).is_err() {
            return Err(invalid("bytes", "exceeds 2^63 - 1".into()));
        }
        document("manifest", &self.manifest, MAX_DOCUMENT_BYTES)?;
        document("gate", &self.gate, MAX_DOCUMENT_BYTES)
    }

    async fn insert(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let added = sqlx::query::<Sqlite>(ADD)
            .bind(self.id.as_str())
            .bind(self.parent.as_deref())
            .bind(self.base_sha256.as_str())
            .bind(self.run.as_ref().map(|run| run.as_bytes().as_slice()))
            .bind(self.status.as_str())
            .bind(self.sha256.as_str())
            .bind(self.bytes.cast_signed())
            .bind(self.rank)
            .bind(self.manifest.to_string())
            .bind(self.gate.to_string())
            .bind(now_us())
            .execute(connection)
            .await?;
        if added.rows_affected() == 0 {
            return Err(conflict(format!("adapter {}", self.id), "no version of that name", "one"));
        }
        Ok(())
    }
}

async fn set_status(
    connection: &mut SqliteConnection,
    id: &str,
    from: &str,
    to: &str,
    gate: Option<&serde_json::Value>,
) -> Result<(), StoreError> {
    let set = sqlx::query::<Sqlite>(SET_STATUS)
        .bind(id)
        .bind(from)
        .bind(to)
        .bind(gate.map(ToString::to_string))
        .execute(&mut *connection)
        .await?;
    if set.rows_affected() > 0 {
        return Ok(());
    }
    let row = sqlx::query::<Sqlite>(STATUS).bind(id).fetch_optional(connection).await?;
    let found = row.map_or(Ok("no such version".to_owned()), |row| row.try_get("status"))?;
    Err(conflict(format!("adapter {id}"), from, found))
}

async fn set_route(
    connection: &mut SqliteConnection,
    channel: &str,
    expected: u64,
    spec: &serde_json::Value,
    actor: &str,
) -> Result<(), StoreError> {
    let set = sqlx::query::<Sqlite>(SET_ROUTE)
        .bind(channel)
        .bind(expected.cast_signed())
        .bind(spec.to_string())
        .bind(actor)
        .bind(now_us())
        .execute(&mut *connection)
        .await?;
    if set.rows_affected() > 0 {
        return Ok(());
    }
    let row = sqlx::query::<Sqlite>(GENERATION).bind(channel).fetch_optional(connection).await?;
    let found: i64 = row.map_or(Ok(0), |row| row.try_get("generation"))?;
    Err(conflict(format!("route {channel}"), format!("generation {expected}"), format!("generation {found}")))
}

fn conflict(object: String, expected: impl Into<String>, found: impl Into<String>) -> StoreError {
    StoreError::Conflict { object, expected: expected.into(), found: found.into() }
}

/// See [`Registry::adapters`](super::Registry::adapters).
pub(super) async fn adapters(readers: &SqlitePool) -> Result<Vec<AdapterRow>, StoreError> {
    let rows = sqlx::query::<Sqlite>("SELECT * FROM adapter ORDER BY seq DESC LIMIT ?").bind(MAX_ADAPTERS);
    rows.fetch_all(readers).await?.iter().map(adapter_row).collect()
}

/// See [`Registry::adapter`](super::Registry::adapter).
pub(super) async fn adapter(readers: &SqlitePool, id: &str) -> Result<Option<AdapterRow>, StoreError> {
    let row = sqlx::query::<Sqlite>("SELECT * FROM adapter WHERE id = ?").bind(id);
    row.fetch_optional(readers).await?.as_ref().map(adapter_row).transpose()
}

fn adapter_row(row: &SqliteRow) -> Result<AdapterRow, StoreError> {
    let run: Option<&[u8]> = row.try_get("run_id")?;
    let adapter = NewAdapter {
        id: row.try_get("id")?,
        parent: row.try_get("parent")?,
        base_sha256: row.try_get("base_sha256")?,
        run: run.map(|_| uuid(row, "run_id")).transpose()?,
        status: row.try_get("status")?,
        sha256: row.try_get("sha256")?,
        bytes: row.try_get::<i64, _>("bytes")?.cast_unsigned(),
        rank: row.try_get("rank")?,
        manifest: parse("manifest", row.try_get("manifest")?)?,
        gate: parse("gate", row.try_get("gate")?)?,
    };
    Ok(AdapterRow { adapter, created_us: row.try_get("created_us")? })
}

/// See [`Registry::route`](super::Registry::route).
pub(super) async fn route(readers: &SqlitePool, channel: &str) -> Result<Option<RouteRow>, StoreError> {
    let row = sqlx::query::<Sqlite>("SELECT * FROM route WHERE channel = ?").bind(channel);
    let Some(row) = row.fetch_optional(readers).await? else { return Ok(None) };
    Ok(Some(RouteRow {
        channel: row.try_get("channel")?,
        generation: row.try_get::<i64, _>("generation")?.cast_unsigned(),
        spec: parse("spec", row.try_get("spec")?)?,
        actor: row.try_get("actor")?,
        updated_us: row.try_get("updated_us")?,
    }))
}

/// See [`Registry::adapter_outcomes`](super::Registry::adapter_outcomes).
pub(super) async fn outcomes(
    readers: &SqlitePool,
    id: &str,
    metric: &str,
    since_us: i64,
) -> Result<Outcomes, StoreError> {
    let row = sqlx::query::<Sqlite>(OUTCOMES).bind(id).bind(metric).bind(since_us).fetch_one(readers).await?;
    let count = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    let (total, squares): (Option<f64>, Option<f64>) = (row.try_get("total")?, row.try_get("squares")?);
    let ratings = count("n")?;
    let n = ratings as f64;
    // Sums of huge ratings may overflow; there is no mean then.
    let finite = |value: &f64| value.is_finite();
    let mean = total.map(|total| total / n).filter(finite);
    let variance = mean.zip(squares).filter(|_| ratings > 1).map(|(mean, squares)| {
        // Rounding may leave less than nothing.
        ((squares - n * mean * mean) / (n - 1.0)).max(0.0)
    });
    Ok(Outcomes {
        completions: count("completions")?,
        ratings,
        subjects: count("subjects")?,
        mean,
        variance: variance.filter(finite),
        subject_mean: row.try_get::<Option<f64>, _>("subject_mean")?.filter(finite),
    })
}
