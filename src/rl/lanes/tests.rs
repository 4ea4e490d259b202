use serde_json::json;

use super::*;
use crate::store::{Kind, PoolFeedback, PoolPreference};

const DAY_US: i64 = 86_400_000_000;

fn row(id: u128, group: u128) -> CompletionRow {
    CompletionRow {
        id: Uuid::from_u128(id),
        group: Uuid::from_u128(group),
        index: 0,
        kind: Kind::Image,
        model: "starter".to_owned(),
        base_sha256: "base".to_owned(),
        adapter: "main@3".to_owned(),
        prompt: None,
        prompt_ids: vec![group as u32],
        tokens: vec![1],
        commit_steps: vec![0],
        logprobs: vec![],
        text: String::new(),
        grid: None,
        params: json!({}),
        seed: 0,
        finish_reason: "stop".to_owned(),
        steps: 1,
        positions_evaluated: 0,
        queue_ms: 0.0,
        denoise_ms: 0.0,
        subject_hash: None,
        metadata: json!({}),
        created_us: DAY_US,
    }
}

fn rating(id: u128, completion: u128, subject: Option<u8>) -> PoolFeedback {
    PoolFeedback {
        id: Uuid::from_u128(1000 + id),
        completion: Uuid::from_u128(completion),
        metric: "thumbs".to_owned(),
        value: Value::Bool(true),
        subject_hash: subject.map(|s| vec![s]),
        created_us: DAY_US,
    }
}

fn pair(preference: u128, chosen: u128, rejected: u128, tie: bool) -> PoolPreference {
    PoolPreference {
        preference: Uuid::from_u128(2000 + preference),
        chosen: Uuid::from_u128(chosen),
        rejected: Uuid::from_u128(rejected),
        tie,
        weight: 1.0,
        strength: None,
        subject_hash: None,
        created_us: DAY_US,
    }
}

fn config() -> LaneConfig {
    LaneConfig { hold_out_one_in: 0, ..LaneConfig::default() }
}

fn sorted(pool: TrainingPool, config: &LaneConfig) -> Lanes {
    let behind = BTreeMap::from([("main@3".to_owned(), 0), ("main@2".to_owned(), 1), ("base@0".to_owned(), 9)]);
    sort(pool, &Now { base_sha256: "base", behind: &behind, us: DAY_US + 60_000_000 }, config)
}

fn reasons(lanes: &Lanes) -> Vec<&'static str> {
    let mut reasons: Vec<_> = lanes.left.iter().map(|left| left.reason).collect();
    reasons.sort_unstable();
    reasons
}

#[test]
fn one_rated_completion_is_a_single_and_two_are_a_group() {
    let pool = TrainingPool {
        // The third of the group was never rated; of the other request, one of two was.
        completions: vec![row(1, 50), row(2, 50), row(3, 50), row(4, 60), row(5, 60)],
        feedback: vec![rating(1, 1, Some(1)), rating(2, 2, Some(2)), rating(3, 4, Some(1))],
        preferences: vec![],
    };
    let lanes = sorted(pool, &config());
    assert_eq!(lanes.groups.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    assert_eq!(lanes.singles.iter().map(|s| s.row.id).collect::<Vec<_>>(), [Uuid::from_u128(4)]);
    assert_eq!((reasons(&lanes), lanes.subjects), (vec![], 2));
}

#[test]
fn a_ranking_joins_completions_of_two_requests() {
    let pool = TrainingPool {
        completions: vec![row(1, 50), row(2, 60), row(3, 70)],
        feedback: vec![],
        preferences: vec![pair(1, 1, 2, false), pair(1, 1, 3, false), pair(1, 2, 3, true)],
    };
    let lanes = sorted(pool, &config());
    assert_eq!(lanes.groups.len(), 1);
    let shares: Vec<Value> = lanes.groups[0].iter().map(|one| one.ratings[0].value.clone()).collect();
    assert_eq!(shares, [Value::Number(1.0), Value::Number(0.25), Value::Number(0.25)]);
    assert!(lanes.groups[0].iter().all(|one| one.ratings[0].metric == PREFERENCE));
}

#[test]
fn everything_left_out_has_its_reason() {
    let mut rows: Vec<CompletionRow> = (1..=6).map(|id| row(id, 50 + id)).collect();
    rows[0].base_sha256 = "other".to_owned();
    rows[1].adapter = "base@0".to_owned();
    rows[2].adapter = "gone@1".to_owned();
    rows[3].created_us = -DAY_US;
    rows[4].tokens.clear();
    let mut feedback: Vec<PoolFeedback> = (1..=6).map(|id| rating(id, id, Some(1))).collect();
    feedback.push(PoolFeedback { value: Value::Text("nice".to_owned()), ..rating(7, 6, Some(1)) });
    let lanes = sorted(TrainingPool { completions: rows, feedback, preferences: vec![] }, &config());
    let expected = ["comment", "empty", "other_base", "stale_version", "stale_version", "too_old"];
    assert_eq!((reasons(&lanes), lanes.singles.len()), (expected.to_vec(), 1));
}

#[test]
fn one_subject_cannot_fill_a_run() {
    let pool = TrainingPool {
        completions: (1..=10).map(|id| row(id, 50)).collect(),
        feedback: (1..=10).map(|id| rating(id, id, (id > 1).then_some(1))).collect(),
        preferences: vec![],
    };
    let lanes = sorted(pool, &LaneConfig { per_subject_max: 4, ..config() });
    assert_eq!(lanes.groups[0].len(), 5, "four of the named subject and the anonymous one");
    assert_eq!(reasons(&lanes), ["subject_cap"; 5]);
}

#[test]
fn prompts_are_held_out_whole_and_about_as_often_as_asked() {
    let held = (0..4000).filter(|&prompt| held_out(&[1, prompt, 7], 8)).count();
    assert!((420..580).contains(&held), "{held} of 4000");
    assert!(!held_out(&[1], 0) && held_out(&[1], 1));
    let pool = TrainingPool {
        completions: vec![row(1, 50), row(2, 50)],
        feedback: vec![rating(1, 1, None), rating(2, 2, None)],
        preferences: vec![],
    };
    let lanes = sorted(pool, &LaneConfig { hold_out_one_in: 1, ..config() });
    assert_eq!((lanes.groups.len(), lanes.held_out[0].len()), (0, 2));
    assert_eq!(reasons(&lanes), ["held_out"; 2]);
}
