//! What people say of a completion.

use super::*;

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
        let feedback = NewFeedback { metric: format!("m{index}"), ..rating(id, value.clone()) };
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
        store.add_feedback(NewFeedback { subject_hash: subject, ..rating(id, Value::Bool(value)) })
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
    assert!(!store.delete_feedback(new).await.unwrap(), "taken back twice");
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
    let expected = StoreCounts { completions: 1, feedback: 1 };
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

    type Spoil = fn(&mut CompletionRow);
    let spoil: [(&str, Spoil); 8] = [
        ("logprobs", |row| row.logprobs[1] = f32::NEG_INFINITY),
        ("logprobs", |row| row.logprobs.truncate(2)),
        ("commit_steps", |row| row.commit_steps.push(0)),
        ("queue_ms", |row| row.queue_ms = f64::NAN),
        ("model", |row| row.model = "m".repeat(MAX_NAME_BYTES + 1)),
        ("text", |row| row.text = "t".repeat(MAX_TEXT_BYTES + 1)),
        ("prompt_ids", |row| row.prompt_ids = vec![0; MAX_ELEMENTS + 1]),
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
