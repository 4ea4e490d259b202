//! Reads of what training has not consumed yet. See `unused_feedback` in the schema for how it is known.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Row, Sqlite};
use tokio_stream::StreamExt;
use uuid::Uuid;

use super::learning::{MAX_POOL, MAX_POOL_BYTES, MAX_RATED, PoolCounts, PoolFeedback, PoolPreference, TrainingPool};
use super::rows::uuid;
use super::{CompletionRow, StoreError, Value};

const FEEDBACK: &str = "
SELECT f.id, f.completion_id, f.metric, f.kind, f.value_num, f.value_text, f.subject_hash, f.created_us
FROM (SELECT seq FROM unused_feedback ORDER BY seq LIMIT ?1) u CROSS JOIN feedback f ON f.seq = u.seq
ORDER BY f.seq";

const PREFERENCES: &str = "
SELECT p.id, r.chosen_id, r.rejected_id, r.tie, r.weight, p.strength, p.subject_hash, p.created_us
FROM (SELECT seq FROM unused_preference ORDER BY seq LIMIT ?1) u
CROSS JOIN preference p ON p.seq = u.seq CROSS JOIN preference_pair r ON r.preference_seq = p.seq
ORDER BY p.seq, r.chosen_id, r.rejected_id";

/// Groups of what the two above name, whole. Ids of groups are time-ordered.
const COMPLETIONS: &str = "
SELECT c.* FROM (
  SELECT DISTINCT g.group_id AS id FROM (
    SELECT f.completion_id AS id
    FROM (SELECT seq FROM unused_feedback ORDER BY seq LIMIT ?1) u CROSS JOIN feedback f ON f.seq = u.seq
    UNION
    SELECT r.chosen_id
    FROM (SELECT seq FROM unused_preference ORDER BY seq LIMIT ?1) u
    CROSS JOIN preference_pair r ON r.preference_seq = u.seq
    UNION
    SELECT r.rejected_id
    FROM (SELECT seq FROM unused_preference ORDER BY seq LIMIT ?1) u
    CROSS JOIN preference_pair r ON r.preference_seq = u.seq
  ) item CROSS JOIN completion g ON g.id = item.id
) wanted CROSS JOIN completion c ON c.group_id = wanted.id
ORDER BY c.group_id, c.sample_index";

const COUNTS: &str = "
SELECT
  (SELECT count(*) FROM unused_feedback) AS feedback,
  (SELECT count(*) FROM unused_preference) AS preferences,
  (SELECT count(*) FROM (
    SELECT subject_hash FROM unused_feedback WHERE subject_hash IS NOT NULL
    UNION
    SELECT subject_hash FROM unused_preference WHERE subject_hash IS NOT NULL
  )) AS subjects";

/// Prompts of the completions that were rated or ranked last, with the newest completion of each.
const PROMPTS: &str = "
SELECT c.prompt_sha256 AS prompt, max(c.seq) AS seq FROM (
  SELECT id FROM (
    SELECT f.completion_id AS id FROM feedback f
    WHERE f.kind <> 3 AND NOT EXISTS (SELECT 1 FROM feedback s WHERE s.supersedes = f.id)
    ORDER BY f.seq DESC LIMIT ?1
  )
  UNION
  SELECT id FROM (SELECT chosen_id AS id FROM preference_pair ORDER BY preference_seq DESC LIMIT ?1)
  UNION
  SELECT id FROM (SELECT rejected_id AS id FROM preference_pair ORDER BY preference_seq DESC LIMIT ?1)
) rated CROSS JOIN completion c ON c.id = rated.id
GROUP BY c.prompt_sha256";

/// See [`Learning::training_pool`](super::Learning::training_pool).
pub(super) async fn training_pool(readers: &SqlitePool, limit: u32) -> Result<TrainingPool, StoreError> {
    // A transaction reads one snapshot: every rating finds its completion.
    let mut snapshot = readers.begin().await?;
    let pool = read_pool(&mut snapshot, limit.min(MAX_POOL), MAX_POOL_BYTES).await?;
    snapshot.commit().await?;
    Ok(pool)
}

/// At most `max_bytes` of completions, but one group in any case; what names others is left for the next call.
pub(super) async fn read_pool(
    connection: &mut SqliteConnection,
    limit: u32,
    max_bytes: usize,
) -> Result<TrainingPool, StoreError> {
    let query = |sql: &'static str| sqlx::query::<Sqlite>(sql).bind(limit);
    let mut feedback: Vec<PoolFeedback> =
        query(FEEDBACK).fetch_all(&mut *connection).await?.iter().map(rating).collect::<Result<_, _>>()?;
    let mut preferences: Vec<PoolPreference> =
        query(PREFERENCES).fetch_all(&mut *connection).await?.iter().map(pair).collect::<Result<_, _>>()?;
    let mut completions: Vec<CompletionRow> = Vec::new();
    let (mut bytes, mut whole) = (0, true);
    let mut rows = query(COMPLETIONS).fetch(&mut *connection);
    while let Some(row) = rows.next().await {
        let row = CompletionRow::from_row(&row?)?;
        bytes += payload(&row);
        if bytes > max_bytes && completions.first().is_some_and(|first| first.group != row.group) {
            completions.retain(|completion| completion.group != row.group);
            whole = false;
            break;
        }
        completions.push(row);
    }
    if !whole {
        let there: HashSet<Uuid> = completions.iter().map(|completion| completion.id).collect();
        feedback.retain(|rating| there.contains(&rating.completion));
        preferences.retain(|pair| there.contains(&pair.chosen) && there.contains(&pair.rejected));
    }
    Ok(TrainingPool { completions, feedback, preferences })
}

/// Bytes that a completion takes, about.
fn payload(row: &CompletionRow) -> usize {
    let elements = row.prompt_ids.len() + row.tokens.len() + row.commit_steps.len() + row.logprobs.len();
    4 * elements + row.text.len() + row.prompt.as_ref().map_or(0, String::len)
}

fn rating(row: &SqliteRow) -> Result<PoolFeedback, StoreError> {
    Ok(PoolFeedback {
        id: uuid(row, "id")?,
        completion: uuid(row, "completion_id")?,
        metric: row.try_get("metric")?,
        value: Value::from_row(row)?,
        subject_hash: row.try_get("subject_hash")?,
        created_us: row.try_get("created_us")?,
    })
}

fn pair(row: &SqliteRow) -> Result<PoolPreference, StoreError> {
    Ok(PoolPreference {
        preference: uuid(row, "id")?,
        chosen: uuid(row, "chosen_id")?,
        rejected: uuid(row, "rejected_id")?,
        tie: row.try_get("tie")?,
        weight: row.try_get("weight")?,
        strength: row.try_get("strength")?,
        subject_hash: row.try_get("subject_hash")?,
        created_us: row.try_get("created_us")?,
    })
}

/// See [`Learning::pool_counts`](super::Learning::pool_counts).
pub(super) async fn pool_counts(readers: &SqlitePool) -> Result<PoolCounts, StoreError> {
    let row = sqlx::query::<Sqlite>(COUNTS).fetch_one(readers).await?;
    let count = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    Ok(PoolCounts { feedback: count("feedback")?, preferences: count("preferences")?, subjects: count("subjects")? })
}

/// See [`Learning::prompts_with_feedback`](super::Learning::prompts_with_feedback).
pub(super) async fn prompts(readers: &SqlitePool, limit: u32, seed: u64) -> Result<Vec<CompletionRow>, StoreError> {
    let mut snapshot = readers.begin().await?;
    let mut drawn = Vec::new();
    for row in sqlx::query::<Sqlite>(PROMPTS).bind(MAX_RATED).fetch_all(&mut *snapshot).await? {
        let prompt: &[u8] = row.try_get("prompt")?;
        // A hash with the seed is a random order that a prompt's neighbours do not change.
        let key: [u8; 32] = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(prompt).finalize().into();
        drawn.push((key, row.try_get::<i64, _>("seq")?));
    }
    drawn.sort_unstable();
    drawn.truncate(limit.min(MAX_POOL) as usize);
    let mut completions = Vec::with_capacity(drawn.len());
    for (_, seq) in drawn {
        let row = sqlx::query::<Sqlite>("SELECT * FROM completion WHERE seq = ?").bind(seq);
        completions.push(CompletionRow::from_row(&row.fetch_one(&mut *snapshot).await?)?);
    }
    snapshot.commit().await?;
    Ok(completions)
}
