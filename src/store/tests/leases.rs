//! One trainer at a time.

use super::*;

#[tokio::test]
async fn a_lease_has_one_holder_and_its_term_grows_when_it_changes_hands() {
    let (dir, store) = open().await;
    assert_eq!(store.lease().await.unwrap(), None);
    assert_eq!(store.take_lease("a", MINUTE).await.unwrap(), Some(1));
    assert_eq!(store.take_lease("b", MINUTE).await.unwrap(), None);
    assert_eq!(store.take_lease("a", MINUTE * 2).await.unwrap(), Some(1), "its holder prolongs it");
    store.renew_lease(1, MINUTE).await.unwrap();
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    assert_eq!(store.take_lease("b", MINUTE).await.unwrap(), None);
    store.release_lease(1).await.unwrap();
    assert_eq!(store.take_lease("b", MINUTE).await.unwrap(), Some(2));
    store.release_lease(1).await.unwrap();
    let held = store.lease().await.unwrap().unwrap();
    assert_eq!((held.holder.as_str(), held.term), ("b", 2));
    let error = store.renew_lease(1, MINUTE).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { term: 1 }), "{error}");
    assert!(matches!(store.take_lease("", MINUTE).await.unwrap_err(), StoreError::Invalid { field: "holder", .. }));
}

#[tokio::test]
async fn a_lease_that_ran_out_is_anyones_and_its_holder_gets_a_new_term() {
    let (_dir, store) = open().await;
    assert_eq!(store.take_lease("a", Duration::ZERO).await.unwrap(), Some(1));
    assert!(matches!(store.renew_lease(1, MINUTE).await.unwrap_err(), StoreError::LeaseLost { .. }));
    assert_eq!(store.take_lease("a", Duration::ZERO).await.unwrap(), Some(2));
    assert_eq!(store.take_lease("b", Duration::MAX).await.unwrap(), Some(3));
    assert_eq!(store.take_lease("a", MINUTE).await.unwrap(), None);
}

#[tokio::test]
async fn a_trainer_that_lost_the_lease_can_neither_start_record_nor_finish() {
    let (_dir, store) = open().await;
    let run = start(&store).await;
    store.release_lease(1).await.unwrap();
    let error = store.start_run(new_run(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseLost { term: 1 }), "{error}");
    assert_eq!(store.take_lease("other", MINUTE).await.unwrap(), Some(2));

    let row = store.run(run).await.unwrap().unwrap();
    assert!(row.status == ABANDONED && row.ended_us.is_some());
    let sample = used(Uuid::now_v7(), SampleKind::Completion);
    let error = store.record_samples(run, vec![sample]).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { found, .. } if found == ABANDONED), "{error}");
    let error = store.finish_run(run, "published", serde_json::json!({}), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
    assert!(store.lane_totals().await.unwrap().is_empty());
}

#[tokio::test]
async fn of_many_who_reach_for_it_one_gets_it() {
    let (_dir, store) = open().await;
    let names: Vec<String> = (0..8).map(|name| format!("trainer {name}")).collect();
    let mut takers = tokio::task::JoinSet::new();
    let store = std::sync::Arc::new(store);
    for name in names {
        let store = store.clone();
        takers.spawn(async move { store.take_lease(&name, MINUTE).await.unwrap() });
    }
    let terms: Vec<u64> = takers.join_all().await.into_iter().flatten().collect();
    assert_eq!(terms, [1]);
}
