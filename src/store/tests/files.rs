//! The data directory, its database, and what a row keeps.

use sqlx::Row;

use super::*;

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
    let expected = StoreCounts { completions: 2, feedback: 1 };
    assert_eq!(store.counts().await.unwrap(), expected);
    store.ping().await.unwrap();
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
    let is_newer = matches!(error, OpenError::Newer { found: 99, known: 2, .. });
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
        let value = row.try_get::<i64, _>(0).map_or_else(|_| row.get::<String, _>(0), |number| number.to_string());
        assert_eq!(value, expected, "{pragma}");
    }
    let write = "DELETE FROM meta";
    assert!(opened.readers.execute(write).await.is_err());
}
