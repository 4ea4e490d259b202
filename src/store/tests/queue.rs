//! Batches, the queue, and the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::*;

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
    assert!(matches!(reused.unwrap_err(), StoreError::IdempotencyMismatch));
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
    let expected = StoreCounts { completions: 320, feedback: 320 };
    assert_eq!(store.counts().await.unwrap(), expected);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_loses_nothing_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { queue: 2, batch: 1, window: Duration::ZERO };
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
    let (ack, (), ()) = tokio::join!(store.add_feedback(rating(id, Value::Bool(true))), store.close(), release);
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
async fn ten_thousand_rows() {
    let (_dir, store) = open().await;
    let mut ids = Vec::new();
    for _ in 0..10_000 / 50 {
        let rows: Vec<_> = (0..50).map(|_| completion()).collect();
        ids.extend(rows.iter().map(|row| row.id));
        store.record(rows).await.unwrap();
    }
    for id in ids.iter().step_by(997) {
        store.add_feedback(rating(*id, Value::Bool(true))).await.unwrap();
        assert_eq!(store.completion(*id).await.unwrap().unwrap().id, *id);
        assert_eq!(values(&store, *id).await, [Value::Bool(true)]);
    }
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.completions, counts.feedback), (10_000, 11));
}
