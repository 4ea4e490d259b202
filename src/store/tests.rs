//! The log as its users see it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor, Row};
use tempfile::TempDir;
use tokio::task::JoinSet;
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

#[tokio::test]
async fn a_completion_comes_back_whole_and_survives_reopening() {
    let (dir, store) = open().await;
    let text = completion();
    let image = CompletionRow {
        kind: Kind::Image,
        prompt: None,
        prompt_ids: vec![],
        commit_steps: vec![],
        logprobs: vec![],
        grid: Some((16, 24)),
        subject_hash: None,
        ..completion()
    };
    let rows = vec![text.clone(), image.clone()];
    store.record(rows).await.unwrap();
    assert_eq!(store.completion(text.id).await.unwrap(), Some(text.clone()));
    let ack = (store.add_feedback(rating(text.id, Value::Bool(true))).await).unwrap();
    let hash = store.subject_key().hash_subject("ada");
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(store.completion(text.id).await.unwrap(), Some(text.clone()));
    assert_eq!(store.completion(image.id).await.unwrap(), Some(image));
    assert_eq!(store.completion(Uuid::now_v7()).await.unwrap(), None);
    assert_eq!(store.feedback_of(text.id).await.unwrap()[0].id, ack.id);
    assert_eq!(store.subject_key().hash_subject("ada"), hash);
    let expected = StoreCounts {
        completions: 2,
        feedback: 1,
    };
    assert_eq!(store.counts().await.unwrap(), expected);
    store.ping().await.unwrap();
}

#[tokio::test]
async fn every_kind_of_value_comes_back() {
    let (_dir, store, id) = open_with_one().await;
    let given = [
        Value::Bool(false),
        Value::Bool(true),
        Value::Number(-0.125),
        Value::Number(1.0),
        Value::Text(String::new()),
        Value::Text("true".into()),
    ];
    for (index, value) in given.iter().enumerate() {
        let feedback = NewFeedback {
            metric: format!("m{index}"),
            ..rating(id, value.clone())
        };
        let ack = store.add_feedback(feedback).await.unwrap();
        assert_eq!((ack.adapter.as_str(), ack.replayed), ("base@0", false));
    }
    let newest_first: Vec<Value> = given.into_iter().rev().collect();
    assert_eq!(values(&store, id).await, newest_first);
}

#[tokio::test]
async fn the_newest_rating_per_metric_and_subject_counts() {
    let (_dir, store, id) = open_with_one().await;
    let add = |subject: Option<Vec<u8>>, value: bool| {
        store.add_feedback(NewFeedback {
            subject_hash: subject,
            ..rating(id, Value::Bool(value))
        })
    };
    add(Some(vec![1]), true).await.unwrap();
    add(Some(vec![1]), false).await.unwrap();
    add(Some(vec![2]), true).await.unwrap();
    add(None, false).await.unwrap();
    add(None, true).await.unwrap();
    let (yes, no) = (Value::Bool(true), Value::Bool(false));
    assert_eq!(values(&store, id).await, [yes.clone(), yes, no]);
    assert_eq!(store.counts().await.unwrap().feedback, 5);
}

#[tokio::test]
async fn a_rating_taken_back_is_gone_and_so_is_the_one_it_replaced() {
    let (_dir, store, id) = open_with_one().await;
    let add = |value| store.add_feedback(rating(id, Value::Bool(value)));
    let old = add(true).await.unwrap().id;
    let new = add(false).await.unwrap().id;

    // The one that was replaced does not count; taking it back changes nothing.
    assert!(store.delete_feedback(old).await.unwrap());
    assert_eq!(values(&store, id).await, [Value::Bool(false)]);

    assert!(store.delete_feedback(new).await.unwrap());
    assert!(values(&store, id).await.is_empty());
    assert!(
        !store.delete_feedback(new).await.unwrap(),
        "taken back twice"
    );
    assert!(!store.delete_feedback(Uuid::now_v7()).await.unwrap());

    add(true).await.unwrap();
    assert_eq!(values(&store, id).await, [Value::Bool(true)]);
}

#[tokio::test]
async fn deleting_a_completion_deletes_its_ratings() {
    let (dir, store, id) = open_with_one().await;
    let other = completion();
    store.record(vec![other.clone()]).await.unwrap();
    store.add_feedback(keyed(id, "k", 1)).await.unwrap();
    store.add_feedback(keyed(other.id, "o", 1)).await.unwrap();
    let taken = store.add_feedback(rating(id, Value::Text("secret words".into())));
    let taken = taken.await.unwrap();
    assert!(store.delete_feedback(taken.id).await.unwrap());

    assert!(store.delete_completion(id).await.unwrap());
    assert!(!store.delete_completion(id).await.unwrap());
    assert_eq!(store.completion(id).await.unwrap(), None);
    assert!(store.feedback_of(id).await.unwrap().is_empty());
    assert!(!store.delete_feedback(taken.id).await.unwrap());
    let expected = StoreCounts {
        completions: 1,
        feedback: 1,
    };
    assert_eq!(store.counts().await.unwrap(), expected);
    let error = store.add_feedback(keyed(id, "k", 1)).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownCompletion(of) if of == id));

    store.close().await;
    let file = std::fs::read(dir.path().join("lacuna.db")).unwrap();
    let needle = b"secret words";
    let found = file.windows(needle.len()).any(|window| window == needle);
    assert!(!found, "the text is still in the file");
}

#[tokio::test]
async fn a_key_answers_the_same_request_again_and_refuses_another() {
    let (_dir, store, id) = open_with_one().await;
    let first = store.add_feedback(keyed(id, "k", 1)).await.unwrap();
    assert!(!first.replayed);
    let again = store.add_feedback(keyed(id, "k", 1)).await.unwrap();
    assert_eq!((again.id, again.replayed), (first.id, true));
    assert_eq!(again.adapter, first.adapter);

    let error = store.add_feedback(keyed(id, "k", 2)).await.unwrap_err();
    assert!(matches!(error, StoreError::IdempotencyMismatch), "{error}");
    let other = store.add_feedback(keyed(id, "l", 1)).await.unwrap();
    assert!(other.id != first.id && !other.replayed);

    // Still the first answer after the rating was taken back: a retry must not rate again.
    assert!(store.delete_feedback(first.id).await.unwrap());
    let late = store.add_feedback(keyed(id, "k", 1)).await.unwrap();
    assert_eq!((late.id, late.replayed), (first.id, true));
    assert_eq!(store.counts().await.unwrap().feedback, 2);
}

#[tokio::test]
async fn bad_writes_fail_alone_in_a_shared_batch() {
    let (_dir, store, id) = open_with_one().await;
    let fresh = completion();
    let twin = CompletionRow { id, ..completion() };
    let sibling = completion();
    let (unknown, spoken) = (Uuid::now_v7(), fresh.id);
    // On one thread the writer first runs when all are queued: they are one batch.
    let (recorded, rated, retried, reused, stray, clash, deleted) = tokio::join!(
        store.record(vec![fresh.clone()]),
        store.add_feedback(keyed(spoken, "same batch", 1)),
        store.add_feedback(keyed(spoken, "same batch", 1)),
        store.add_feedback(keyed(spoken, "same batch", 2)),
        store.add_feedback(rating(unknown, Value::Bool(true))),
        // The second row exists: neither may be stored, the rest must be.
        store.record(vec![sibling.clone(), twin]),
        store.delete_completion(unknown),
    );
    recorded.unwrap();
    let (rated, retried) = (rated.unwrap(), retried.unwrap());
    assert_eq!((rated.id, true), (retried.id, retried.replayed));
    assert!(matches!(
        reused.unwrap_err(),
        StoreError::IdempotencyMismatch
    ));
    assert!(matches!(
        stray.unwrap_err(),
        StoreError::UnknownCompletion(of) if of == unknown
    ));
    let clash = clash.unwrap_err();
    assert!(matches!(clash, StoreError::Database(_)), "{clash}");
    assert!(!clash.to_string().contains("quoted"), "{clash}");
    assert!(!deleted.unwrap());
    assert_eq!(store.completion(sibling.id).await.unwrap(), None);
    assert_eq!(store.completion(fresh.id).await.unwrap(), Some(fresh));
    assert_eq!(values(&store, spoken).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_all_get_in() {
    let (_dir, store) = open().await;
    let store = Arc::new(store);
    let mut tasks = JoinSet::new();
    for writer in 0..32_u8 {
        let store = store.clone();
        tasks.spawn(async move {
            for round in 0..10 {
                let row = completion();
                let id = row.id;
                store.record(vec![row]).await.unwrap();
                let key = format!("{writer}/{round}");
                let ack = store.add_feedback(keyed(id, &key, writer)).await.unwrap();
                assert_eq!(store.feedback_of(id).await.unwrap()[0].id, ack.id);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let expected = StoreCounts {
        completions: 320,
        feedback: 320,
    };
    assert_eq!(store.counts().await.unwrap(), expected);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_loses_nothing_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        queue: 2,
        batch: 1,
        window: Duration::ZERO,
    };
    let store = SqliteStore::open_with(dir.path(), limits).await.unwrap();
    let row = completion();
    let id = row.id;
    store.record(vec![row]).await.unwrap();
    let store = Arc::new(store);

    let mut blocker = block_writer(dir.path()).await;
    let mut tasks = JoinSet::new();
    for _ in 0..10 {
        let store = store.clone();
        tasks.spawn(async move { store.add_feedback(rating(id, Value::Bool(true))).await });
    }
    // One write can be with the writer and two can wait; the other seven answer while the writer is stuck.
    for _ in 0..7 {
        let error = tasks.join_next().await.unwrap().unwrap().unwrap_err();
        assert!(matches!(error, StoreError::Full { limit: 2 }), "{error}");
    }
    blocker.execute("COMMIT").await.unwrap();
    let mut accepted = 0;
    while let Some(result) = tasks.join_next().await {
        accepted += u64::from(result.unwrap().is_ok());
    }
    assert!(accepted >= 2, "{accepted}");
    assert_eq!(store.counts().await.unwrap().feedback, accepted);
}

#[tokio::test]
async fn closing_writes_what_waits_and_refuses_what_follows() {
    let (dir, store, id) = open_with_one().await;
    let mut blocker = block_writer(dir.path()).await;
    let release = async {
        tokio::task::yield_now().await;
        blocker.execute("COMMIT").await.unwrap();
    };
    let (ack, (), ()) = tokio::join!(
        store.add_feedback(rating(id, Value::Bool(true))),
        store.close(),
        release
    );
    let ack = ack.unwrap();
    store.close().await;
    assert!(store.ping().await.is_err());
    let late = store.add_feedback(rating(id, Value::Bool(true))).await;
    assert!(matches!(late.unwrap_err(), StoreError::Database(_)));

    drop(blocker);
    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(store.feedback_of(id).await.unwrap()[0].id, ack.id);
}

#[tokio::test]
async fn what_is_not_finite_or_too_large_is_refused() {
    let (_dir, store, id) = open_with_one().await;
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX] {
        let feedback = rating(id, Value::Number(number));
        let error = store.add_feedback(feedback).await.unwrap_err();
        let refused = matches!(error, StoreError::Invalid { field: "value", .. });
        assert!(refused, "{number}: {error}");
    }
    let long = Value::Text("x".repeat(MAX_COMMENT_BYTES + 1));
    let error = store.add_feedback(rating(id, long)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("65537") && text.contains("65536"), "{text}");
    let at_bound = Value::Text("x".repeat(MAX_COMMENT_BYTES));
    store.add_feedback(rating(id, at_bound)).await.unwrap();

    let spoil: [(&str, fn(&mut CompletionRow)); 8] = [
        ("logprobs", |row| row.logprobs[1] = f32::NEG_INFINITY),
        ("logprobs", |row| row.logprobs.truncate(2)),
        ("commit_steps", |row| row.commit_steps.push(0)),
        ("queue_ms", |row| row.queue_ms = f64::NAN),
        ("model", |row| row.model = "m".repeat(MAX_NAME_BYTES + 1)),
        ("text", |row| row.text = "t".repeat(MAX_TEXT_BYTES + 1)),
        ("prompt_ids", |row| {
            row.prompt_ids = vec![0; MAX_ELEMENTS + 1]
        }),
        ("metadata", |row| {
            row.metadata = serde_json::json!("m".repeat(MAX_JSON_BYTES));
        }),
    ];
    for (field, spoil) in spoil {
        let mut row = completion();
        spoil(&mut row);
        let error = store.record(vec![completion(), row]).await.unwrap_err();
        let named = matches!(&error, StoreError::Invalid { field: name, .. } if *name == field);
        assert!(named, "{field}: {error}");
    }
    let rows = vec![completion(); MAX_ROWS + 1];
    assert!(store.record(rows).await.is_err());
    assert_eq!(store.counts().await.unwrap().completions, 1);
}

#[tokio::test]
async fn two_stores_cannot_share_a_directory() {
    let (dir, store) = open().await;
    let error = SqliteStore::open(dir.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    store.close().await;
    SqliteStore::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_alone() {
    let (dir, store, id) = open_with_one().await;
    store.close().await;
    let mut other = raw(dir.path()).await;
    let future = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                  VALUES (99, 'future', 1, x'00', 0)";
    other.execute(future).await.unwrap();
    let error = SqliteStore::open(dir.path()).await.err().unwrap();
    let is_newer = matches!(
        error,
        OpenError::Newer {
            found: 99,
            known: 1,
            ..
        }
    );
    assert!(is_newer, "{error}");
    let count = "SELECT count(*) FROM completion";
    let row = other.fetch_one(count).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 1);

    let back = "DELETE FROM _sqlx_migrations WHERE version = 99";
    other.execute(back).await.unwrap();
    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert!(store.completion(id).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_no_directory_or_no_database_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = SqliteStore::open(&file).await.err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");

    std::fs::write(dir.path().join("lacuna.db"), "not a database".repeat(512)).unwrap();
    let error = SqliteStore::open(dir.path()).await.err().unwrap();
    assert!(matches!(error, OpenError::Database { .. }), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;

    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/data");
    let store = SqliteStore::open(&dir).await.unwrap();
    store.record(vec![completion()]).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for name in ["lacuna.db", "lacuna.db-wal", "lacuna.db-shm", "lacuna.lock"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn the_database_commits_to_stable_storage() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = open::open(dir.path()).await.unwrap();
    for (pragma, expected) in [
        ("PRAGMA synchronous", "2"),
        ("PRAGMA journal_mode", "wal"),
        ("PRAGMA foreign_keys", "1"),
        ("PRAGMA secure_delete", "1"),
        ("PRAGMA auto_vacuum", "2"),
    ] {
        let row = opened.writer.fetch_one(pragma).await.unwrap();
        let value = row
            .try_get::<i64, _>(0)
            .map_or_else(|_| row.get::<String, _>(0), |number| number.to_string());
        assert_eq!(value, expected, "{pragma}");
    }
    let write = "DELETE FROM meta";
    assert!(opened.readers.execute(write).await.is_err());
}

#[tokio::test]
async fn ten_thousand_rows() {
    let (_dir, store) = open().await;
    let mut ids = Vec::new();
    for _ in 0..10_000 / 50 {
        let rows: Vec<_> = (0..50).map(|_| completion()).collect();
        ids.extend(rows.iter().map(|row| row.id));
        store.record(rows).await.unwrap();
    }
    for id in ids.iter().step_by(997) {
        store
            .add_feedback(rating(*id, Value::Bool(true)))
            .await
            .unwrap();
        assert_eq!(store.completion(*id).await.unwrap().unwrap().id, *id);
        assert_eq!(values(&store, *id).await, [Value::Bool(true)]);
    }
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.completions, counts.feedback), (10_000, 11));
}
