//! A database of the release before.

use super::*;

/// Takes everything of version 2 away and leaves rows as version 1 wrote them.
async fn downgrade(dir: &Path) {
    let mut other = raw(dir).await;
    for sql in [
        "DROP TRIGGER feedback_unused",
        "DROP TABLE unused_feedback",
        "DROP TABLE unused_preference",
        "DROP TABLE preference_pair",
        "DROP TABLE preference",
        "DROP TABLE train_sample",
        "DROP TABLE train_run",
        "DROP TABLE lane_total",
        "DROP TABLE adapter",
        "DROP TABLE route",
        "DROP TABLE audit",
        "DROP TABLE lease",
        "DROP INDEX completion_prompt",
        "DROP INDEX completion_unhashed",
        "DROP INDEX completion_adapter",
        "DROP INDEX feedback_metric",
        "ALTER TABLE completion DROP COLUMN prompt_sha256",
        "DELETE FROM _sqlx_migrations WHERE version = 2",
    ] {
        other.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[tokio::test]
async fn what_version_1_wrote_can_be_ranked_and_learnt_from() {
    let (dir, store, ids) = open_with(3).await;
    let other = CompletionRow { kind: Kind::Image, ..completion() };
    store.record(vec![other.clone()]).await.unwrap();
    store.add_feedback(rating(ids[0], Value::Bool(false))).await.unwrap();
    let effective = store.add_feedback(rating(ids[0], Value::Bool(true))).await.unwrap().id;
    let withdrawn = store.add_feedback(rating(ids[1], Value::Bool(true))).await.unwrap().id;
    store.delete_feedback(withdrawn).await.unwrap();
    store.close().await;
    downgrade(dir.path()).await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    let pool = store.training_pool(100).await.unwrap();
    assert_eq!(pool.feedback.iter().map(|rating| rating.id).collect::<Vec<_>>(), [effective]);
    let fresh = completion();
    store.record(vec![fresh.clone()]).await.unwrap();
    store.add_preference(ranking(&[&[ids[0]], &[ids[1]], &[fresh.id]])).await.unwrap();
    let error = store.add_preference(ranking(&[&[ids[0]], &[other.id]])).await.unwrap_err();
    assert!(matches!(error, StoreError::DifferentPrompts(..)), "{error}");
}
