use proptest::prelude::*;

use super::*;

fn part(name: &str, weight: f64) -> Part {
    let name = name.to_owned();
    Part { name, weight, gate: None, on_missing: OnMissing::SkipSample, required: false, user: false }
}

fn policy(aggregate: Aggregate, parts: Vec<Part>) -> Policy {
    Policy { aggregate, user_weight_cap: 0.5, allow_user_only: false, min_scored_fraction: 0.8, parts }
}

fn ok(values: &[f64]) -> Vec<Score> {
    values.iter().map(|&v| Ok(Some(v))).collect()
}

fn one_group(policy: &Policy, scores: &[Vec<Score>]) -> Vec<Reward> {
    let scores: Vec<Vec<Vec<Score>>> = scores.iter().map(|of_hook| vec![of_hook.clone()]).collect();
    combine(policy, &scores).unwrap().groups.remove(0)
}

fn values(rewards: &[Reward]) -> Vec<Option<f64>> {
    rewards.iter().map(|reward| reward.reward).collect()
}

#[test]
fn scales_do_not_matter_when_normalised_first() {
    let both = policy(Aggregate::NormalizeThenSum, vec![part("judge", 1.0), part("thumbs", 1.0)]);
    let small = one_group(&both, &[ok(&[0.0, 1.0, 0.0, 1.0]), ok(&[1.0, 0.0, 0.0, 1.0])]);
    let large = one_group(&both, &[ok(&[0.0, 1000.0, 0.0, 1000.0]), ok(&[1.0, 0.0, 0.0, 1.0])]);
    for (a, b) in small.iter().zip(&large) {
        assert!((a.reward.unwrap() - b.reward.unwrap()).abs() < 1e-4);
    }
    let summed = policy(Aggregate::SumThenNormalize, vec![part("judge", 3.0), part("thumbs", 1.0)]);
    let rewards = one_group(&summed, &[ok(&[0.0, 1.0]), ok(&[2.0, 0.0])]);
    assert_eq!(values(&rewards), [Some(0.5), Some(0.75)]);
}

#[test]
fn equal_scores_give_nothing_to_learn_and_no_nan() {
    let rewards = one_group(&policy(Aggregate::NormalizeThenSum, vec![part("judge", 1.0)]), &[ok(&[0.3; 4])]);
    assert_eq!(values(&rewards), [Some(0.0); 4]);
}

#[test]
fn missing_scores_do_what_is_asked_and_are_counted() {
    let with = |on_missing| policy(Aggregate::SumThenNormalize, vec![Part { on_missing, ..part("judge", 1.0) }]);
    let scores = [vec![Ok(Some(1.0)), Err(HookError::Missing), Ok(Some(0.0)), Err(HookError::NotFinite)]];
    let rewards = one_group(&with(OnMissing::SkipSample), &scores);
    assert_eq!(values(&rewards), [Some(1.0), None, Some(0.0), None]);
    assert_eq!(rewards[1].skip, Some(Skip::Missing));
    assert_eq!(values(&one_group(&with(OnMissing::SkipGroup), &scores)), [None; 4]);
    assert_eq!(values(&one_group(&with(OnMissing::Default(-2.0)), &scores))[1], Some(-2.0));
    assert_eq!(one_group(&with(OnMissing::Neutral), &scores)[1].skip, Some(Skip::NotApplicable));

    let all: Vec<Vec<Vec<Score>>> = scores.iter().map(|of_hook| vec![of_hook.clone()]).collect();
    let counts = combine(&with(OnMissing::SkipSample), &all).unwrap().counts;
    assert_eq!((counts.samples, counts.rewarded, counts.skipped[&Skip::Missing]), (4, 2, 2));
    assert_eq!(counts.errors[&("judge".to_owned(), "missing")], 1);
    assert_eq!(counts.errors[&("judge".to_owned(), "not_finite")], 1);
    assert!(matches!(combine(&with(OnMissing::FailRun), &all), Err(RunError::Missing { .. })));
}

#[test]
fn a_required_hook_that_scores_too_few_ends_the_run() {
    let required = policy(Aggregate::default(), vec![Part { required: true, ..part("judge", 1.0) }]);
    let scores = |good: usize, n: usize| {
        vec![vec![(0..n).map(|i| if i < good { Ok(Some(i as f64)) } else { Err(HookError::Missing) }).collect()]]
    };
    assert!(combine(&required, &scores(8, 10)).is_ok());
    let error = combine(&required, &scores(7, 10)).unwrap_err();
    assert_eq!(error.to_string(), "hook judge scored 7 of 10 samples; at least 0.8 are required");
}

#[test]
fn failing_a_gate_never_pays() {
    let gate = Part { gate: Some(Gate { least: 0.5, fail_reward: -1.0 }), ..part("valid", 0.0) };
    let gated = policy(Aggregate::NormalizeThenSum, vec![gate, part("judge", 1.0)]);
    let rewards = one_group(&gated, &[ok(&[1.0, 1.0, 1.0, 0.0]), ok(&[0.0, 5.0, 5.0, 1e6])]);
    assert!(rewards[3].gated && !rewards[0].gated);
    assert!(rewards[3].reward.unwrap() <= rewards[0].reward.unwrap());
    assert!(rewards[0].reward.unwrap() < -1.0, "the gated sample's score must not enter the others' statistics");
    // A failed gate is known whatever became of the other hooks.
    let broken = [ok(&[1.0, 1.0, 0.0]), vec![Ok(Some(0.0)), Ok(Some(1.0)), Err(HookError::Missing)]];
    let rewards = one_group(&gated, &broken);
    assert_eq!((rewards[2].skip, rewards[2].reward), (None, Some(-1.0)));
}

#[test]
fn feedback_has_its_share_and_no_more() {
    let user = |weight| Part { user: true, ..part("thumbs", weight) };
    let both = policy(Aggregate::SumThenNormalize, vec![user(9.0), part("judge", 1.0)]);
    assert_eq!(values(&one_group(&both, &[ok(&[1.0, 0.0]), ok(&[0.0, 0.0])])), [Some(0.5), Some(0.0)]);
    let light = policy(Aggregate::SumThenNormalize, vec![user(1.0), part("judge", 3.0)]);
    assert_eq!(values(&one_group(&light, &[ok(&[1.0, 0.0]), ok(&[0.0, 0.0])])), [Some(0.25), Some(0.0)]);
    // The judge applies to no sample of this group: feedback would decide alone.
    let alone = [ok(&[1.0, 0.0]), vec![Ok(None), Ok(None)]];
    assert_eq!(one_group(&both, &alone)[0].skip, Some(Skip::UserOnly));
    let allowed = Policy { allow_user_only: true, ..both };
    assert_eq!(values(&one_group(&allowed, &alone)), [Some(1.0), Some(0.0)]);
}

#[test]
fn a_single_has_no_group_reward_but_a_raw_one() {
    let rewards = one_group(&policy(Aggregate::default(), vec![part("judge", 1.0)]), &[ok(&[0.7])]);
    assert_eq!((rewards[0].reward, rewards[0].raw, rewards[0].skip), (None, Some(0.7), Some(Skip::SmallGroup)));
}

#[test]
fn on_missing_is_read_and_written() {
    for text in ["skip_sample", "skip_group", "neutral", "fail_run", "default(-0.5)"] {
        assert_eq!(String::from(OnMissing::try_from(text.to_owned()).unwrap()), text);
    }
    for bad in ["", "skip", "default", "default()", "default(NaN)", "default(inf)", "default(1"] {
        assert!(OnMissing::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

fn any_score() -> impl Strategy<Value = Score> {
    prop_oneof![
        6 => (-1e6f64..1e6).prop_map(|v| Ok(Some(v))),
        1 => Just(Ok(None)),
        1 => Just(Err(HookError::Missing)),
    ]
}

fn any_part() -> impl Strategy<Value = Part> {
    let on_missing = prop_oneof![
        Just(OnMissing::SkipSample),
        Just(OnMissing::SkipGroup),
        Just(OnMissing::Neutral),
        (-10.0..10.0f64).prop_map(OnMissing::Default)
    ];
    let gate = prop_oneof![3 => Just(None), 1 => Just(Some(Gate { least: 0.0, fail_reward: -1.0 }))];
    (0.0..5.0f64, gate, on_missing, any::<bool>()).prop_map(|(weight, gate, on_missing, user)| Part {
        name: "hook".to_owned(),
        weight,
        gate,
        on_missing,
        required: false,
        user,
    })
}

fn any_case() -> impl Strategy<Value = (Policy, Vec<Vec<Vec<Score>>>)> {
    let aggregate = prop_oneof![Just(Aggregate::NormalizeThenSum), Just(Aggregate::SumThenNormalize)];
    let sizes = (1usize..4, prop::collection::vec(0usize..5, 0..4));
    (aggregate, sizes, any::<bool>(), 0.0..1.0f64).prop_flat_map(
        |(aggregate, (hooks, groups), allow_user_only, cap)| {
            let of_hook: Vec<_> = groups.iter().map(|&n| prop::collection::vec(any_score(), n)).collect();
            let scores = prop::collection::vec(of_hook, hooks);
            (prop::collection::vec(any_part(), hooks), scores).prop_map(move |(parts, scores)| {
                let policy =
                    Policy { aggregate, user_weight_cap: cap, allow_user_only, min_scored_fraction: 0.8, parts };
                (policy, scores)
            })
        },
    )
}

proptest! {
    #[test]
    fn every_sample_has_a_finite_reward_or_a_reason((policy, scores) in any_case()) {
        let combined = combine(&policy, &scores).unwrap();
        let counts = &combined.counts;
        prop_assert_eq!(counts.rewarded + counts.skipped.values().sum::<usize>(), counts.samples);
        prop_assert_eq!(counts.samples, combined.groups.iter().map(Vec::len).sum::<usize>());
        for group in &combined.groups {
            let rewarded = group.iter().filter(|reward| reward.reward.is_some()).count();
            prop_assert!(rewarded != 1, "a group of one reward");
            for reward in group {
                prop_assert_eq!(reward.reward.is_some(), reward.skip.is_none());
                prop_assert!(reward.reward.is_none_or(f64::is_finite) && reward.raw.is_none_or(f64::is_finite));
                if reward.gated && reward.reward.is_some() {
                    prop_assert!(group.iter().all(|other| other.gated || other.reward.is_none_or(|r| r >= reward.reward.unwrap())));
                }
            }
        }
    }

    #[test]
    fn order_of_samples_does_not_matter((policy, scores) in any_case()) {
        let backwards: Vec<Vec<Vec<Score>>> =
            scores.iter().map(|hook| hook.iter().map(|group| group.iter().rev().cloned().collect()).collect()).collect();
        let (a, b) = (combine(&policy, &scores).unwrap(), combine(&policy, &backwards).unwrap());
        for (a, b) in a.groups.iter().zip(&b.groups) {
            for (a, b) in a.iter().zip(b.iter().rev()) {
                prop_assert_eq!(a.skip, b.skip);
                let close = |x: Option<f64>, y: Option<f64>| (x.unwrap_or(0.0) - y.unwrap_or(0.0)).abs() <= 1e-6 * (1.0 + x.unwrap_or(0.0).abs());
                prop_assert!(close(a.reward, b.reward) && close(a.raw, b.raw));
            }
        }
    }

    #[test]
    fn people_move_a_reward_by_their_share_at_most(
        cap in 0.0..1.0f64,
        weights in (0.1..100.0f64, 0.1..100.0f64),
        judge in prop::collection::vec(0.0..1.0f64, 2..6),
    ) {
        let parts = vec![Part { user: true, ..part("thumbs", weights.0) }, part("judge", weights.1)];
        let policy = Policy { user_weight_cap: cap, ..policy(Aggregate::SumThenNormalize, parts) };
        let with = |thumbs: f64| one_group(&policy, &[ok(&vec![thumbs; judge.len()]), ok(&judge)]);
        for (low, high) in with(0.0).iter().zip(with(1.0)) {
            prop_assert!(high.reward.unwrap() - low.reward.unwrap() <= cap + 1e-9);
        }
    }
}
