//! The audit trail as SQL: rows appended only, each hashed together with the hash of the one before (a chain, as in
//! Haber and Stornetta, "How to time-stamp a digital document", 1991).

use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row, Sqlite};

use super::StoreError;
use super::operations::now_us;
use super::registry::{AuditCheck, AuditRow, MAX_AUDIT};
use super::rows::parse;

/// Hash before the first row.
const GENESIS: [u8; 32] = [0; 32];

const LAST: &str = "SELECT seq, sha256 FROM audit ORDER BY seq DESC LIMIT 1";

const APPEND: &str = "
INSERT INTO audit (seq, at_us, actor, action, object, detail, prev_sha256, sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)";

const NEWEST: &str = "SELECT * FROM audit ORDER BY seq DESC LIMIT ?";

const AFTER: &str = "SELECT * FROM audit WHERE seq > ? ORDER BY seq LIMIT ?";

/// A line to be appended.
pub(super) struct Entry<'a> {
    pub(super) actor: &'a str,
    pub(super) action: &'a str,
    pub(super) object: &'a str,
    pub(super) detail: serde_json::Value,
}

/// Appends a line. Runs inside a write's transaction, so nothing comes between it and its predecessor.
pub(super) async fn append(connection: &mut SqliteConnection, entry: Entry<'_>) -> Result<(), StoreError> {
    let last = sqlx::query::<Sqlite>(LAST).fetch_optional(&mut *connection).await?;
    let (seq, prev) = match &last {
        Some(row) => (row.try_get::<i64, _>("seq")? + 1, row.try_get::<Vec<u8>, _>("sha256")?),
        None => (1, GENESIS.to_vec()),
    };
    let (at, detail) = (now_us(), entry.detail.to_string());
    let sha256 = hash(&prev, seq, at, [entry.actor, entry.action, entry.object, &detail]);
    sqlx::query::<Sqlite>(APPEND)
        .bind(seq)
        .bind(at)
        .bind(entry.actor)
        .bind(entry.action)
        .bind(entry.object)
        .bind(detail)
        .bind(prev)
        .bind(sha256.as_slice())
        .execute(connection)
        .await?;
    Ok(())
}

/// Every field with its length before it, so that no two rows read the same.
fn hash(prev: &[u8], seq: i64, at: i64, texts: [&str; 4]) -> [u8; 32] {
    let mut digest = Sha256::new().chain_update(prev).chain_update(seq.to_le_bytes()).chain_update(at.to_le_bytes());
    for text in texts {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize().into()
}

/// See [`Registry::audit`](super::Registry::audit).
pub(super) async fn newest(readers: &SqlitePool, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
    sqlx::query::<Sqlite>(NEWEST).bind(limit.min(MAX_AUDIT)).fetch_all(readers).await?.iter().map(audit_row).collect()
}

fn audit_row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    Ok(AuditRow {
        seq: row.try_get::<i64, _>("seq")?.cast_unsigned(),
        at_us: row.try_get("at_us")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        object: row.try_get("object")?,
        detail: parse("detail", row.try_get("detail")?)?,
        sha256: row.try_get("sha256")?,
    })
}

/// See [`Registry::verify_audit`](super::Registry::verify_audit). Rows are never changed, so pages of different moments
/// belong together.
pub(super) async fn verify(connection: &mut SqliteConnection) -> Result<AuditCheck, StoreError> {
    let (mut seq, mut head) = (0_i64, GENESIS.to_vec());
    loop {
        let page = sqlx::query::<Sqlite>(AFTER).bind(seq).bind(MAX_AUDIT).fetch_all(&mut *connection).await?;
        if page.is_empty() {
            return Ok(AuditCheck { rows: seq.cast_unsigned(), head, broken_at: None });
        }
        for row in &page {
            let next: i64 = row.try_get("seq")?;
            match follows(row, seq, &head)? {
                Some(sha256) => (seq, head) = (next, sha256),
                None => {
                    let (rows, broken_at) = (seq.cast_unsigned(), Some(next.cast_unsigned()));
                    return Ok(AuditCheck { rows, head, broken_at });
                }
            }
        }
    }
}

/// The hash of a row that follows the one at `seq` with hash `head`.
fn follows(row: &SqliteRow, seq: i64, head: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let (next, at): (i64, i64) = (row.try_get("seq")?, row.try_get("at_us")?);
    let texts =
        [row.try_get("actor")?, row.try_get("action")?, row.try_get("object")?, row.try_get::<&str, _>("detail")?];
    let (prev, sha256): (&[u8], Vec<u8>) = (row.try_get("prev_sha256")?, row.try_get("sha256")?);
    let sound = next == seq + 1 && prev == head && hash(head, next, at, texts).as_slice() == sha256;
    Ok(sound.then_some(sha256))
}
