//! Adapters, routes, and the trail of their changes.

use super::*;
use serde_json::json;

fn adapter(id: &str) -> NewAdapter {
    NewAdapter {
        id: id.into(),
        parent: Some("base@0".into()),
        base_sha256: "ab".repeat(32),
        run: Some(Uuid::now_v7()),
        status: "candidate".into(),
        sha256: "cd".repeat(32),
        bytes: 4096,
        rank: 8,
        manifest: json!({"alpha": 16}),
        gate: json!({}),
    }
}

fn author() -> Author {
    Author { actor: "ada".into(), detail: json!({"reason": "looks good"}), term: None }
}

fn fenced(term: u64) -> Author {
    Author { term: Some(term), ..author() }
}

fn status(id: &str, from: &str, to: &str) -> Change {
    Change::Status { id: id.into(), from: from.into(), to: to.into(), gate: None }
}

fn route(expected: u64, id: &str) -> Change {
    Change::Route { channel: "default".into(), expected, spec: json!([{"v": id, "w": 1.0}]) }
}

/// Channel, action and object of the trail, oldest first.
async fn trail(store: &SqliteStore) -> Vec<(String, String)> {
    let rows = store.audit(MAX_AUDIT).await.unwrap();
    rows.into_iter().rev().map(|row| (row.action, row.object)).collect()
}

#[tokio::test]
async fn versions_come_back_newest_first_and_are_never_replaced() {
    let (dir, store) = open().await;
    let (first, second) = (adapter("taste@1"), NewAdapter { parent: None, run: None, ..adapter("taste@2") });
    store.add_adapter(first.clone(), author()).await.unwrap();
    store.add_adapter(second.clone(), author()).await.unwrap();
    let error = store.add_adapter(NewAdapter { rank: 4, ..adapter("taste@1") }, author()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { object, .. } if object == "adapter taste@1"), "{error}");
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    let found: Vec<_> = store.adapters().await.unwrap().into_iter().map(|row| row.adapter).collect();
    assert_eq!(found, [second, first.clone()]);
    assert_eq!(store.adapter("taste@1").await.unwrap().unwrap().adapter, first);
    assert_eq!(store.adapter("taste@3").await.unwrap(), None);
    assert_eq!(store.audit(MAX_AUDIT).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_status_moves_on_only_from_the_one_that_was_read() {
    let (_dir, store) = open().await;
    store.add_adapter(adapter("taste@1"), author()).await.unwrap();
    let gate = json!({"held_out": {"pass": true, "value": 0.02}});
    let gated =
        Change::Status { id: "taste@1".into(), from: "candidate".into(), to: "gated".into(), gate: Some(gate.clone()) };
    store.change_registry(vec![gated], author()).await.unwrap();
    let error = store.set_adapter_status("taste@1", "candidate", "rejected", author()).await.unwrap_err();
    let told =
        matches!(&error, StoreError::Conflict { expected, found, .. } if expected == "candidate" && found == "gated");
    assert!(told, "{error}");
    store.set_adapter_status("taste@1", "gated", "active", author()).await.unwrap();
    let row = store.adapter("taste@1").await.unwrap().unwrap().adapter;
    assert_eq!((row.status.as_str(), row.gate), ("active", gate));
    let error = store.set_adapter_status("taste@9", "gated", "active", author()).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error}");

    let newest = &store.audit(1).await.unwrap()[0];
    assert_eq!((newest.seq, newest.actor.as_str(), newest.action.as_str()), (3, "ada", "adapter.status"));
    let detail = json!({"from": "gated", "to": "active", "gate": null, "why": {"reason": "looks good"}});
    assert_eq!(newest.detail, detail);
}

#[tokio::test]
async fn of_two_who_change_a_route_one_is_told_to_read_again() {
    let (dir, store) = open().await;
    assert_eq!(store.route("default").await.unwrap(), None);
    let error = store.set_route("default", 3, json!([]), author()).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { found, .. } if found == "generation 0"), "{error}");
    assert_eq!(store.set_route("default", 0, json!(["taste@1"]), author()).await.unwrap(), 1);
    assert!(store.set_route("default", 0, json!([]), author()).await.is_err());
    let (a, b) = tokio::join!(
        store.set_route("default", 1, json!(["taste@2"]), author()),
        store.set_route("default", 1, json!(["taste@3"]), author()),
    );
    assert_eq!(a.unwrap(), 2);
    let error = b.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { found, .. } if found == "generation 2"), "{error}");
    assert_eq!(store.set_route("shadow", 0, json!([]), author()).await.unwrap(), 1, "channels are apart");
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    let row = store.route("default").await.unwrap().unwrap();
    assert_eq!((row.generation, row.spec, row.actor.as_str()), (2, json!(["taste@2"]), "ada"));
}

#[tokio::test]
async fn changes_are_made_together_or_not_at_all() {
    let (_dir, store) = open().await;
    store.add_adapter(adapter("taste@1"), author()).await.unwrap();
    let promote = |expected| vec![status("taste@1", "candidate", "active"), route(expected, "taste@1")];
    let id = completion();
    // The failing change shares a transaction with a write that must stand.
    let (failed, recorded) = tokio::join!(store.change_registry(promote(5), author()), store.record(vec![id.clone()]));
    assert!(matches!(failed.unwrap_err(), StoreError::Conflict { .. }));
    recorded.unwrap();
    assert!(store.completion(id.id).await.unwrap().is_some());
    assert_eq!(store.adapter("taste@1").await.unwrap().unwrap().adapter.status, "candidate");
    assert_eq!(trail(&store).await.len(), 1);

    store.change_registry(promote(0), author()).await.unwrap();
    let expected = [("adapter.add", "taste@1"), ("adapter.status", "taste@1"), ("route.set", "default")]
        .map(|(action, object)| (action.to_owned(), object.to_owned()));
    assert_eq!(trail(&store).await, expected);
    assert_eq!(store.verify_audit().await.unwrap().rows, 3);
}

#[tokio::test]
async fn a_late_publish_of_a_lost_lease_is_refused() {
    let (_dir, store) = open().await;
    let old = store.take_lease("a", MINUTE).await.unwrap().unwrap();
    store.add_adapter(adapter("taste@1"), fenced(old)).await.unwrap();
    store.release_lease(old).await.unwrap();
    let expired = store.add_adapter(adapter("taste@2"), fenced(old)).await.unwrap_err();
    assert!(matches!(expired, StoreError::LeaseLost { term: 1 }), "{expired}");
    let new = store.take_lease("b", MINUTE).await.unwrap().unwrap();
    for changes in [vec![Change::Add(adapter("taste@2"))], vec![route(0, "taste@1")]] {
        let late = store.change_registry(changes.clone(), fenced(old)).await.unwrap_err();
        assert!(matches!(late, StoreError::LeaseLost { term: 1 }), "{late}");
        store.change_registry(changes, fenced(new)).await.unwrap();
    }
    // A person needs no lease.
    store.set_route("default", 1, json!([]), author()).await.unwrap();
    assert_eq!(trail(&store).await.len(), 4);
}

#[tokio::test]
async fn the_trail_shows_what_was_altered_inserted_or_removed() {
    let (dir, store) = open().await;
    assert_eq!(store.verify_audit().await.unwrap(), AuditCheck { rows: 0, head: vec![0; 32], broken_at: None });
    for generation in 0..5 {
        store.set_route("default", generation, json!([generation]), author()).await.unwrap();
    }
    let sound = store.verify_audit().await.unwrap();
    assert_eq!((sound.rows, sound.broken_at, sound.head), (5, None, store.audit(1).await.unwrap()[0].sha256.clone()));
    store.close().await;

    let mut other = raw(dir.path()).await;
    for change in ["UPDATE audit SET actor = 'eve' WHERE seq = 2", "DELETE FROM audit WHERE seq = 5"] {
        assert!(other.execute(change).await.is_err(), "{change}");
    }
    other.execute("DROP TRIGGER audit_no_update; DROP TRIGGER audit_no_delete").await.unwrap();
    let (before, after) = ("SAVEPOINT s", "ROLLBACK TO s");
    for (broken_at, rows, tamper) in [
        (2, 1, "UPDATE audit SET actor = 'eve' WHERE seq = 2"),
        (3, 2, "UPDATE audit SET detail = json_set(detail, '$.generation', 9) WHERE seq = 3"),
        (1, 0, "UPDATE audit SET at_us = at_us + 1 WHERE seq = 1"),
        (5, 4, "UPDATE audit SET sha256 = zeroblob(32) WHERE seq = 5"),
        (4, 2, "DELETE FROM audit WHERE seq = 3"),
        (2, 0, "DELETE FROM audit WHERE seq = 1"),
        (
            6,
            5,
            "INSERT INTO audit SELECT 6, at_us, actor, action, object, detail, sha256, sha256 FROM audit WHERE seq = 5",
        ),
    ] {
        other.execute(before).await.unwrap();
        other.execute(tamper).await.unwrap();
        let check = audit::verify(&mut other).await.unwrap();
        assert_eq!((check.broken_at, check.rows), (Some(broken_at), rows), "{tamper}");
        other.execute(after).await.unwrap();
    }
    assert_eq!(audit::verify(&mut other).await.unwrap().rows, 5);
}

#[tokio::test]
async fn outcomes_are_of_one_version_one_metric_and_effective_ratings() {
    let (_dir, store) = open().await;
    let of = |adapter: &str| CompletionRow { adapter: adapter.into(), ..completion() };
    let (mine, also_mine, other) = (of("taste@1"), of("taste@1"), of("taste@2"));
    store.record(vec![mine.clone(), also_mine.clone(), other.clone()]).await.unwrap();
    let none = store.adapter_outcomes("taste@1", "thumbs", 0).await.unwrap();
    assert_eq!(none, Outcomes { completions: 2, ..Outcomes::default() });

    let add = |id, subject: u8, metric: &str, value| {
        let new = NewFeedback { metric: metric.into(), subject_hash: Some(vec![subject]), ..rating(id, value) };
        store.add_feedback(new)
    };
    add(mine.id, 1, "thumbs", Value::Bool(false)).await.unwrap();
    add(mine.id, 1, "thumbs", Value::Bool(true)).await.unwrap();
    add(also_mine.id, 1, "thumbs", Value::Bool(true)).await.unwrap();
    add(mine.id, 2, "thumbs", Value::Number(0.25)).await.unwrap();
    add(mine.id, 3, "thumbs", Value::Text("no number".into())).await.unwrap();
    add(mine.id, 4, "length", Value::Number(9.0)).await.unwrap();
    add(other.id, 5, "thumbs", Value::Bool(false)).await.unwrap();
    let gone = add(mine.id, 6, "thumbs", Value::Number(-100.0)).await.unwrap();
    store.delete_feedback(gone.id).await.unwrap();

    let found = store.adapter_outcomes("taste@1", "thumbs", 0).await.unwrap();
    assert_eq!((found.completions, found.ratings, found.subjects), (2, 3, 2));
    let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
    assert!(close(found.mean, 0.75) && close(found.variance, 0.1875) && close(found.subject_mean, 0.625), "{found:?}");
    let later = store.adapter_outcomes("taste@1", "thumbs", i64::MAX).await.unwrap();
    assert_eq!(later, Outcomes::default());

    // Sums beyond the numbers are no mean rather than an infinite one.
    for subject in [7, 8] {
        add(mine.id, subject, "huge", Value::Number(9.9e307)).await.unwrap();
    }
    let huge = store.adapter_outcomes("taste@1", "huge", 0).await.unwrap();
    assert_eq!((huge.ratings, huge.mean, huge.variance), (2, None, None));
}

#[tokio::test]
async fn what_is_too_large_or_nameless_is_refused() {
    let (_dir, store) = open().await;
    let large = json!("x".repeat(MAX_DOCUMENT_BYTES));
    for (field, change) in [
        ("id", Change::Add(adapter(""))),
        ("id", Change::Add(adapter(&"n".repeat(MAX_NAME_BYTES + 1)))),
        ("manifest", Change::Add(NewAdapter { manifest: large.clone(), ..adapter("a@1") })),
        ("bytes", Change::Add(NewAdapter { bytes: u64::MAX, ..adapter("a@1") })),
        ("to", status("a@1", "candidate", "")),
        ("spec", Change::Route { channel: "default".into(), expected: 0, spec: large.clone() }),
        ("expected", route(u64::MAX, "a@1")),
    ] {
        let error = store.change_registry(vec![change], author()).await.unwrap_err();
        assert!(matches!(&error, StoreError::Invalid { field: name, .. } if *name == field), "{field}: {error}");
    }
    let nobody = Author { actor: String::new(), ..author() };
    assert!(store.add_adapter(adapter("a@1"), nobody).await.is_err());
    let wordy = Author { detail: large, ..author() };
    assert!(store.add_adapter(adapter("a@1"), wordy).await.is_err());
    let many = vec![route(0, "a@1"); MAX_CHANGES + 1];
    assert!(store.change_registry(many, author()).await.is_err());
    assert!(trail(&store).await.is_empty());
}
