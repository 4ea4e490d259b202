//! Which completion is better.

use super::*;

async fn pairs(store: &SqliteStore) -> Vec<PoolPreference> {
    store.training_pool(100).await.unwrap().preferences
}

#[tokio::test]
async fn chosen_and_rejected_is_a_pair_of_weight_one() {
    let (dir, store, ids) = open_with(2).await;
    let given = NewPreference { strength: Some(0.75), ..ranking(&[&[ids[1]], &[ids[0]]]) };
    let ack = store.add_preference(given).await.unwrap();
    assert_eq!((ack.pairs, ack.replayed), (1, false));
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    let found = pairs(&store).await;
    let expected = PoolPreference {
        preference: ack.id,
        chosen: ids[1],
        rejected: ids[0],
        tie: false,
        weight: 1.0,
        strength: Some(0.75),
        subject_hash: Some(vec![1; 32]),
        created_us: found[0].created_us,
    };
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn a_ranking_is_every_two_with_ties_and_each_completion_weighs_one() {
    let (_dir, store, ids) = open_with(4).await;
    let ack = store.add_preference(ranking(&[&[ids[2]], &[ids[0], ids[3]], &[ids[1]]])).await.unwrap();
    assert_eq!(ack.pairs, 6);
    let mut found: Vec<_> = pairs(&store).await.iter().map(|pair| (pair.chosen, pair.rejected, pair.tie)).collect();
    let mut expected = vec![
        (ids[2], ids[0], false),
        (ids[2], ids[3], false),
        (ids[2], ids[1], false),
        (ids[0], ids[3], true),
        (ids[0], ids[1], false),
        (ids[3], ids[1], false),
    ];
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
    for id in ids {
        let of_it = |pair: &&PoolPreference| pair.chosen == id || pair.rejected == id;
        let total: f64 = pairs(&store).await.iter().filter(of_it).map(|pair| pair.weight).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
    }
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused_and_stores_nothing() {
    let (_dir, store, ids) = open_with(17).await;
    let other = CompletionRow { prompt_ids: vec![9], ..completion() };
    let image = CompletionRow { kind: Kind::Image, ..completion() };
    store.record(vec![other.clone(), image.clone()]).await.unwrap();
    for stranger in [other.id, image.id] {
        let error = store.add_preference(ranking(&[&[ids[0]], &[stranger]])).await.unwrap_err();
        let named = matches!(error, StoreError::DifferentPrompts(a, b) if a == ids[0] && b == stranger);
        assert!(named, "{error}");
    }
    let unknown = Uuid::now_v7();
    let error = store.add_preference(ranking(&[&[ids[0]], &[unknown]])).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownCompletion(id) if id == unknown), "{error}");

    let all: Vec<&[Uuid]> = ids.chunks(1).collect();
    for bad in [
        ranking(&[]),
        ranking(&[&[ids[0]]]),
        ranking(&[&[ids[0]], &[], &[ids[1]]]),
        ranking(&[&[ids[0]], &[ids[1], ids[0]]]),
        ranking(&all),
    ] {
        let error = store.add_preference(bad).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { field: "ranking", .. }), "{error}");
    }
    for strength in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        let bad = NewPreference { strength: Some(strength), ..ranking(&[&[ids[0]], &[ids[1]]]) };
        let error = store.add_preference(bad).await.unwrap_err();
        assert!(matches!(error, StoreError::Invalid { field: "strength", .. }), "{error}");
    }
    assert_eq!(store.pool_counts().await.unwrap(), PoolCounts::default());
    let ack = store.add_preference(ranking(&all[..MAX_RANKED])).await.unwrap();
    assert_eq!(ack.pairs, 120);
}

#[tokio::test]
async fn a_key_answers_the_same_ranking_again_and_refuses_another() {
    let (_dir, store, ids) = open_with(3).await;
    let keyed = |body: u8| NewPreference {
        idempotency_key: Some("k".into()),
        body_sha256: vec![body; 32],
        ..ranking(&[&[ids[0]], &[ids[1]], &[ids[2]]])
    };
    let first = store.add_preference(keyed(1)).await.unwrap();
    let again = store.add_preference(keyed(1)).await.unwrap();
    assert_eq!(again, PreferenceAck { replayed: true, ..first.clone() });
    let error = store.add_preference(keyed(2)).await.unwrap_err();
    assert!(matches!(error, StoreError::IdempotencyMismatch), "{error}");
    assert_eq!(pairs(&store).await.len(), 3);

    // The answer stays what it was when a deletion has taken pairs away.
    store.delete_completion(ids[2]).await.unwrap();
    let late = store.add_preference(keyed(1)).await.unwrap();
    assert_eq!((late.id, late.pairs), (first.id, 3));
}

#[tokio::test]
async fn deleting_a_completion_deletes_its_pairs_and_empty_rankings() {
    let (dir, store, ids) = open_with(3).await;
    store.add_preference(ranking(&[&[ids[0]], &[ids[1]], &[ids[2]]])).await.unwrap();
    store.add_preference(ranking(&[&[ids[1]], &[ids[0]]])).await.unwrap();
    assert_eq!(store.pool_counts().await.unwrap().preferences, 2);

    assert!(store.delete_completion(ids[0]).await.unwrap());
    let left: Vec<_> = pairs(&store).await.iter().map(|pair| (pair.chosen, pair.rejected)).collect();
    assert_eq!(left, [(ids[1], ids[2])]);
    assert_eq!(store.pool_counts().await.unwrap().preferences, 1);

    assert!(store.delete_completion(ids[2]).await.unwrap());
    assert_eq!(store.pool_counts().await.unwrap(), PoolCounts::default());
    store.close().await;
    let mut other = raw(dir.path()).await;
    for table in ["preference", "preference_pair", "unused_preference"] {
        let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let row = sqlx::query(count).fetch_one(&mut other).await.unwrap();
        assert_eq!(sqlx::Row::get::<i64, _>(&row, 0), 0, "{table}");
    }
}

#[tokio::test]
async fn the_newest_ranking_of_the_same_completions_by_the_same_subject_counts() {
    let (_dir, store, ids) = open_with(2).await;
    let add = |subject: Option<Vec<u8>>, best: usize| {
        store.add_preference(NewPreference { subject_hash: subject, ..ranking(&[&[ids[best]], &[ids[1 - best]]]) })
    };
    add(Some(vec![1]), 0).await.unwrap();
    let changed = add(Some(vec![1]), 1).await.unwrap();
    let other = add(Some(vec![2]), 0).await.unwrap();
    add(None, 0).await.unwrap();
    let nobody = add(None, 1).await.unwrap();
    let found: Vec<_> = pairs(&store).await.iter().map(|pair| (pair.preference, pair.chosen)).collect();
    assert_eq!(found, [(changed.id, ids[1]), (other.id, ids[0]), (nobody.id, ids[1])]);
}
