//! What waits for the next training run.

use super::*;

async fn feedback(store: &SqliteStore) -> Vec<Uuid> {
    store.training_pool(100).await.unwrap().feedback.iter().map(|rating| rating.id).collect()
}

#[tokio::test]
async fn ratings_come_with_their_whole_groups() {
    let (_dir, store) = open().await;
    let group = Uuid::now_v7();
    let siblings: Vec<_> = [2, 0, 1].map(|index| CompletionRow { group, index, ..completion() }).into();
    let (alone, unrated) = (completion(), completion());
    store.record([siblings.clone(), vec![alone.clone(), unrated]].concat()).await.unwrap();
    let value = Value::Number(0.25);
    let late = store.add_feedback(rating(alone.id, value.clone())).await.unwrap();
    let ack = store.add_feedback(rating(siblings[0].id, Value::Text("nice".into()))).await.unwrap();

    let pool = store.training_pool(100).await.unwrap();
    let [two, zero, one] = <[CompletionRow; 3]>::try_from(siblings).unwrap();
    let rated = two.id;
    assert_eq!(pool.completions, [zero, one, two, alone.clone()]);
    let first = &pool.feedback[0];
    assert_eq!((first.id, first.completion, &first.value), (late.id, alone.id, &value));
    assert_eq!((first.metric.as_str(), first.subject_hash.as_deref()), ("thumbs", Some([1; 32].as_slice())));
    assert_eq!((pool.feedback[1].id, pool.feedback[1].completion), (ack.id, rated));

    // The oldest come first, with nothing of the others.
    let pool = store.training_pool(1).await.unwrap();
    assert_eq!((pool.completions, pool.feedback.len()), (vec![alone], 1));
    assert_eq!(store.training_pool(0).await.unwrap(), TrainingPool::default());
}

#[tokio::test]
async fn only_effective_ratings_wait() {
    let (_dir, store, ids) = open_with(3).await;
    let add = |id, value| store.add_feedback(rating(id, Value::Bool(value)));
    add(ids[0], true).await.unwrap();
    let changed = add(ids[0], false).await.unwrap().id;
    let withdrawn = add(ids[1], true).await.unwrap().id;
    add(ids[2], true).await.unwrap();
    assert!(store.delete_feedback(withdrawn).await.unwrap());
    assert!(store.delete_completion(ids[2]).await.unwrap());
    assert_eq!(feedback(&store).await, [changed]);
    let expected = PoolCounts { feedback: 1, preferences: 0, subjects: 1 };
    assert_eq!(store.pool_counts().await.unwrap(), expected);
}

#[tokio::test]
async fn what_a_run_has_consumed_waits_no_more_but_a_new_opinion_does() {
    let (dir, store, ids) = open_with(3).await;
    let mut acks = Vec::new();
    for id in &ids {
        acks.push(store.add_feedback(rating(*id, Value::Bool(true))).await.unwrap().id);
    }
    let ranked = store.add_preference(ranking(&[&[ids[0]], &[ids[1]]])).await.unwrap().id;
    let run = start(&store).await;
    let samples = vec![
        used(acks[0], SampleKind::Feedback),
        dropped(acks[1], SampleKind::Feedback, "stale"),
        used(ranked, SampleKind::Preference),
        used(ids[2], SampleKind::Completion),
    ];
    store.record_samples(run, samples).await.unwrap();
    assert_eq!(feedback(&store).await, [acks[2]]);
    let again = store.add_feedback(rating(ids[0], Value::Bool(false))).await.unwrap().id;
    store.close().await;

    let store = SqliteStore::open(dir.path()).await.unwrap();
    let pool = store.training_pool(100).await.unwrap();
    assert!(pool.preferences.is_empty());
    assert_eq!(feedback(&store).await, [acks[2], again]);
    let expected = PoolCounts { feedback: 2, preferences: 0, subjects: 1 };
    assert_eq!(store.pool_counts().await.unwrap(), expected);
}

/// A watermark would lose the ones that were acknowledged before the run read the pool's end and after.
#[tokio::test]
async fn consuming_later_items_leaves_earlier_ones() {
    let (_dir, store, ids) = open_with(4).await;
    let mut acks = Vec::new();
    for id in &ids {
        acks.push(store.add_feedback(rating(*id, Value::Bool(true))).await.unwrap().id);
    }
    let run = start(&store).await;
    let newest = vec![used(acks[3], SampleKind::Feedback), used(acks[1], SampleKind::Feedback)];
    store.record_samples(run, newest).await.unwrap();
    assert_eq!(feedback(&store).await, [acks[0], acks[2]]);
}

#[tokio::test]
async fn the_pool_is_what_an_anti_join_finds() {
    let (dir, store, ids) = open_with(8).await;
    let run = start(&store).await;
    let subjects: Vec<_> = (0..3_u8).map(|subject| (subject > 0).then(|| vec![subject])).collect();
    let mut acks = Vec::new();
    // A fixed walk over adding, replacing, withdrawing, consuming and deleting.
    for step in 0..200_usize {
        let id = ids[step * 5 % ids.len()];
        let subject_hash = subjects[step % 3].clone();
        let new = NewFeedback { subject_hash, ..rating(id, Value::Bool(step % 2 == 0)) };
        if let Ok(ack) = store.add_feedback(new).await {
            acks.push(ack.id);
        }
        let some = acks[step * 7 % acks.len()];
        match step % 5 {
            0 => drop(store.delete_feedback(some).await.unwrap()),
            2 => drop(store.record_samples(run, vec![used(some, SampleKind::Feedback)]).await.unwrap()),
            4 if step % 60 == 4 => drop(store.delete_completion(id).await.unwrap()),
            _ => {}
        }
    }
    let found = feedback(&store).await;
    store.close().await;
    let anti_join = "SELECT id FROM feedback f WHERE kind <> 3 \
                     AND NOT EXISTS (SELECT 1 FROM feedback s WHERE s.supersedes = f.id) \
                     AND NOT EXISTS (SELECT 1 FROM train_sample t WHERE t.item_id = f.id) ORDER BY seq";
    let rows = raw(dir.path()).await.fetch_all(anti_join).await.unwrap();
    let expected: Vec<Uuid> =
        rows.iter().map(|row| Uuid::from_slice(sqlx::Row::get::<&[u8], _>(row, 0)).unwrap()).collect();
    assert!(!expected.is_empty());
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_ratings_and_runs_consume_each_item_once() {
    let (_dir, store, ids) = open_with(32).await;
    let run = start(&store).await;
    let store = std::sync::Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for id in ids {
        let store = store.clone();
        tasks.spawn(async move {
            for subject in 0..8 {
                let new = NewFeedback { subject_hash: Some(vec![subject]), ..rating(id, Value::Bool(true)) };
                store.add_feedback(new).await.unwrap();
            }
        });
    }
    let mut consumed = std::collections::HashSet::new();
    while consumed.len() < 256 {
        let pool = store.training_pool(50).await.unwrap();
        for rating in &pool.feedback {
            assert!(pool.completions.iter().any(|row| row.id == rating.completion), "a rating without its completion");
            assert!(consumed.insert(rating.id), "consumed twice");
        }
        let samples = pool.feedback.iter().map(|rating| used(rating.id, SampleKind::Feedback)).collect();
        store.record_samples(run, samples).await.unwrap();
        tokio::task::yield_now().await;
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.pool_counts().await.unwrap(), PoolCounts::default());
    assert_eq!(store.lane_totals().await.unwrap()[0].samples, 256);
}

#[tokio::test]
async fn subjects_are_counted_once_over_ratings_and_rankings() {
    let (_dir, store, ids) = open_with(2).await;
    for subject in [Some(vec![1]), Some(vec![2]), None] {
        for id in &ids {
            let new = NewFeedback { subject_hash: subject.clone(), ..rating(*id, Value::Bool(true)) };
            store.add_feedback(new).await.unwrap();
        }
        let new = NewPreference { subject_hash: subject, ..ranking(&[&[ids[0]], &[ids[1]]]) };
        store.add_preference(new).await.unwrap();
    }
    let ack = NewPreference { subject_hash: Some(vec![3]), ..ranking(&[&[ids[0], ids[1]]]) };
    store.add_preference(ack).await.unwrap();
    let expected = PoolCounts { feedback: 6, preferences: 4, subjects: 3 };
    assert_eq!(store.pool_counts().await.unwrap(), expected);
}

#[tokio::test]
async fn what_is_too_much_waits_in_whole_groups() {
    let (dir, store) = open().await;
    let mut groups = Vec::new();
    for _ in 0..3 {
        let group = Uuid::now_v7();
        let rows: Vec<_> = (0..4).map(|index| CompletionRow { group, index, ..completion() }).collect();
        store.add_feedback(rating(rows[3].id, Value::Bool(true))).await.unwrap_err();
        store.record(rows.clone()).await.unwrap();
        store.add_feedback(rating(rows[3].id, Value::Bool(true))).await.unwrap();
        store.add_preference(ranking(&[&[rows[0].id], &[rows[1].id]])).await.unwrap();
        groups.push(rows);
    }
    store.close().await;
    let mut connection = raw(dir.path()).await;
    let row_bytes = 12 * 4 + groups[0][0].text.len() + groups[0][0].prompt.as_ref().unwrap().len();
    for (max_bytes, expected) in [(0, 1), (row_bytes * 4, 1), (row_bytes * 8 - 1, 1), (row_bytes * 8, 2), (1 << 20, 3)]
    {
        let pool = crate::store::pool::read_pool(&mut connection, 100, max_bytes).await.unwrap();
        assert_eq!(pool.completions, groups[..expected].concat(), "{max_bytes} bytes");
        assert_eq!((pool.feedback.len(), pool.preferences.len()), (expected, expected), "{max_bytes} bytes");
    }
}

#[tokio::test]
async fn prompts_are_distinct_rated_and_drawn_by_seed() {
    let (_dir, store) = open().await;
    let mut newest = Vec::new();
    for prompt in 0..20 {
        let rows: Vec<_> = (0..2).map(|_| CompletionRow { prompt_ids: vec![prompt], ..completion() }).collect();
        store.record(rows.clone()).await.unwrap();
        for row in &rows {
            let ack = store.add_feedback(rating(row.id, Value::Bool(true))).await.unwrap();
            // Withdrawn ratings ask for nothing.
            if prompt == 7 {
                store.delete_feedback(ack.id).await.unwrap();
            }
        }
        newest.push(rows[1].clone());
    }
    let ranked: Vec<_> = (0..2).map(|_| CompletionRow { prompt_ids: vec![99], ..completion() }).collect();
    store.record(ranked.clone()).await.unwrap();
    store.add_preference(ranking(&[&[ranked[0].id], &[ranked[1].id]])).await.unwrap();
    newest.remove(7);
    newest.push(ranked[1].clone());

    let mut all = store.prompts_with_feedback(MAX_POOL, 1).await.unwrap();
    let five = store.prompts_with_feedback(5, 1).await.unwrap();
    assert_eq!(five, all[..5]);
    assert_ne!(five, store.prompts_with_feedback(5, 2).await.unwrap());
    all.sort_by_key(|row| row.prompt_ids[0]);
    assert_eq!(all, newest);
}
