//! The log as its users see it.

mod files;
mod leases;
mod pool;
mod preferences;
mod queue;
mod ratings;
mod registry;
mod runs;
mod upgrade;

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

fn completion() -> CompletionRow {
    CompletionRow {
        id: Uuid::now_v7(),
        group: Uuid::now_v7(),
        index: 3,
        kind: Kind::Text,
        model: "starter".into(),
        base_sha256: "ab".repeat(32),
        adapter: "base@0".into(),
        prompt: Some("a \"quoted\"\0 prompt, ünïcode".into()),
        prompt_ids: vec![0, 1, u32::MAX],
        tokens: vec![7, 8, 9],
        commit_steps: vec![-1, 0, 5],
        logprobs: vec![0.0, -1.5, -0.25],
        text: "out".into(),
        grid: None,
        params: serde_json::json!({"steps": 8, "temperature": 0.7}),
        seed: u64::MAX - 1,
        finish_reason: "stop".into(),
        steps: 8,
        positions_evaluated: 123,
        queue_ms: 0.5,
        denoise_ms: 12.25,
        subject_hash: Some(vec![1; 32]),
        metadata: serde_json::json!({"k": ["v", null]}),
        created_us: 1_764_000_000_000_000,
    }
}

fn rating(completion: Uuid, value: Value) -> NewFeedback {
    NewFeedback {
        completion,
        metric: "thumbs".into(),
        value,
        subject_hash: Some(vec![1; 32]),
        idempotency_key: None,
        body_sha256: vec![0; 32],
    }
}

fn keyed(completion: Uuid, key: &str, body: u8) -> NewFeedback {
    NewFeedback {
        idempotency_key: Some(key.into()),
        body_sha256: vec![body; 32],
        ..rating(completion, Value::Bool(true))
    }
}

fn ranking(ranking: &[&[Uuid]]) -> NewPreference {
    NewPreference {
        ranking: ranking.iter().map(|ties| ties.to_vec()).collect(),
        strength: None,
        subject_hash: Some(vec![1; 32]),
        idempotency_key: None,
        body_sha256: vec![0; 32],
    }
}

/// A store with `n` completions of one prompt, each of a group of its own.
async fn open_with(n: usize) -> (TempDir, SqliteStore, Vec<Uuid>) {
    let (dir, store) = open().await;
    let rows: Vec<_> = (0..n).map(|_| completion()).collect();
    let ids = rows.iter().map(|row| row.id).collect();
    store.record(rows).await.unwrap();
    (dir, store, ids)
}

const MINUTE: Duration = Duration::from_secs(60);

/// A run that has started under a lease of its own.
async fn start(store: &SqliteStore) -> Uuid {
    let term = store.take_lease("trainer", MINUTE).await.unwrap().unwrap();
    let run = new_run(term);
    let id = run.id;
    store.start_run(run).await.unwrap();
    id
}

fn new_run(term: u64) -> NewRun {
    NewRun {
        id: Uuid::now_v7(),
        term,
        trigger: "samples".into(),
        parent: "base@0".into(),
        config: serde_json::json!({"lr": 1e-4}),
    }
}

fn used(item: Uuid, kind: SampleKind) -> SampleUse {
    SampleUse { item, kind, lane: "groups".into(), reward: Some(0.5), weight: 1.0, age_versions: 1, drop_reason: None }
}

fn dropped(item: Uuid, kind: SampleKind, reason: &str) -> SampleUse {
    SampleUse { reward: None, weight: 0.0, drop_reason: Some(reason.into()), ..used(item, kind) }
}

async fn open() -> (TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    (dir, store)
}

/// A store with one completion in it.
async fn open_with_one() -> (TempDir, SqliteStore, Uuid) {
    let (dir, store) = open().await;
    let row = completion();
    let id = row.id;
    store.record(vec![row]).await.unwrap();
    (dir, store, id)
}

async fn raw(dir: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(dir.join("lacuna.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// Another program holds the write lock of the database until the connection is dropped or commits.
async fn block_writer(dir: &Path) -> SqliteConnection {
    let mut other = raw(dir).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

async fn values(store: &SqliteStore, id: Uuid) -> Vec<Value> {
    let rows = store.feedback_of(id).await.unwrap();
    rows.into_iter().map(|row| row.value).collect()
}
