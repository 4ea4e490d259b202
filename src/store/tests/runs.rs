//! Which run learnt from what.

use super::*;

#[tokio::test]
async fn a_run_comes_back_and_survives_reopening() {
    let (dir, store) = open().await;
    let term = store.take_lease("trainer", MINUTE).await.unwrap().unwrap();
    let run = new_run(term);
    store.start_run(run.clone()).await.unwrap();
    let running = store.run(run.id).await.unwrap().unwrap();
    assert_eq!((&running.run, running.status.as_str(), running.ended_us), (&run, RUNNING, None));
    assert_eq!((running.metrics, running.error), (serde_json::json!({}), None));

    let metrics = serde_json::json!({"kl": 0.01});
    store.finish_run(run.id, "rejected", metrics.clone(), Some("gate: held out".into())).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(dir.path()).await.unwrap();
    let ended = store.run(run.id).await.unwrap().unwrap();
    assert_eq!((ended.run, ended.status.as_str(), ended.metrics), (run.clone(), "rejected", metrics));
    assert_eq!(ended.error.as_deref(), Some("gate: held out"));
    assert!(ended.ended_us.unwrap() >= ended.started_us);
    assert_eq!(store.run(Uuid::now_v7()).await.unwrap(), None);

    let error = store.finish_run(run.id, "published", serde_json::json!({}), None).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { found, .. } if found == "rejected"), "{error}");
    let error = store.record_samples(run.id, vec![]).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");
}

#[tokio::test]
async fn runs_are_read_page_by_page_newest_first() {
    let (_dir, store) = open().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, start(&store).await);
    }
    let page = |limit, before| {
        let store = &store;
        async move { store.runs(limit, before).await.unwrap().iter().map(|row| row.run.id).collect::<Vec<_>>() }
    };
    assert_eq!(page(2, None).await, ids[..2]);
    assert_eq!(page(2, Some(ids[1])).await, ids[2..4]);
    assert_eq!(page(u32::MAX, Some(ids[3])).await, ids[4..]);
    assert!(page(2, Some(Uuid::now_v7())).await.is_empty());
}

#[tokio::test]
async fn totals_count_each_sample_of_each_run_once() {
    let (_dir, store, ids) = open_with(4).await;
    let mut items = Vec::new();
    for id in &ids {
        items.push(store.add_feedback(rating(*id, Value::Bool(true))).await.unwrap().id);
    }
    let run = start(&store).await;
    let feedback = SampleKind::Feedback;
    let samples = vec![used(items[0], feedback), used(items[1], feedback), dropped(items[2], feedback, "stale")];
    assert_eq!(store.record_samples(run, samples.clone()).await.unwrap(), 3);
    // A repeated call changes nothing but for what is new.
    let more =
        [samples, vec![SampleUse { lane: "singles".into(), ..dropped(items[3], feedback, "no_reward") }]].concat();
    assert_eq!(store.record_samples(run, more).await.unwrap(), 1);
    let second = start(&store).await;
    assert_eq!(store.record_samples(second, vec![used(ids[0], SampleKind::Completion)]).await.unwrap(), 1);
    // What was learnt from a deleted completion was learnt.
    assert!(store.delete_completion(ids[0]).await.unwrap());

    let total = |lane: &str, reason: Option<&str>, samples| LaneTotal {
        lane: lane.into(),
        drop_reason: reason.map(Into::into),
        samples,
    };
    let expected =
        [total("groups", None, 3), total("groups", Some("stale"), 1), total("singles", Some("no_reward"), 1)];
    assert_eq!(store.lane_totals().await.unwrap(), expected);
}

#[tokio::test]
async fn what_is_not_finite_too_much_or_nameless_is_refused() {
    let (_dir, store) = open().await;
    let run = start(&store).await;
    let sample = || used(Uuid::now_v7(), SampleKind::Completion);
    for (field, bad) in [
        ("reward", SampleUse { reward: Some(f64::NAN), ..sample() }),
        ("weight", SampleUse { weight: f64::INFINITY, ..sample() }),
        ("lane", SampleUse { lane: String::new(), ..sample() }),
        ("drop_reason", SampleUse { drop_reason: Some(String::new()), ..sample() }),
        ("drop_reason", SampleUse { drop_reason: Some("r".repeat(MAX_NAME_BYTES + 1)), ..sample() }),
    ] {
        let error = store.record_samples(run, vec![sample(), bad]).await.unwrap_err();
        assert!(matches!(&error, StoreError::Invalid { field: name, .. } if *name == field), "{field}: {error}");
    }
    let error = store.record_samples(run, vec![sample(); MAX_SAMPLES + 1]).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "samples", .. }), "{error}");
    let error = store.finish_run(run, RUNNING, serde_json::json!({}), None).await.unwrap_err();
    assert!(matches!(error, StoreError::Invalid { field: "status", .. }), "{error}");
    assert!(store.lane_totals().await.unwrap().is_empty());
}
