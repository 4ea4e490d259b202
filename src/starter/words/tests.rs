use super::*;
use std::collections::{BTreeMap, HashSet};

/// Every problem of each kind and split: 3 × 3 × `n`.
fn problems(n: u64) -> impl Iterator<Item = (Split, Problem)> {
    Split::ALL.into_iter().flat_map(move |split| {
        Kind::ALL.into_iter().flat_map(move |kind| {
            (0..n).map(move |i| (split, sample(&mut Stream::new(kind as u64 * 10 + split as u64, i), kind, split)))
        })
    })
}

#[test]
fn reference_answers_verify_and_stay_in_bounds() {
    for (_, p) in problems(4_000) {
        let verdict = verify(&p.answer_text, p.answer);
        assert!(verdict.correct && verdict.chain_ok, "{p:?}");
        assert!(!verify(&p.answer_text, p.answer + 1).correct);
        assert_eq!(p.line.equations().len(), p.answer_text.matches('=').count());
        for e in p.line.equations() {
            assert!([e.a, e.b, e.result].iter().all(|n| (0..=99).contains(n)), "{p:?}");
            assert_eq!(e.op.apply(e.a, e.b), Some(e.result));
        }
        assert!(p.line.operands().iter().all(|n| *n <= 20), "{p:?}");
    }
}

#[test]
fn questions_tell_the_numbers_in_order_and_fill_every_slot() {
    for (_, p) in problems(4_000) {
        let numbers: Vec<i64> = p.question.split(' ').filter_map(|w| w.parse().ok()).collect();
        assert_eq!(numbers, p.line.operands(), "{}", p.question);
        assert!(!p.question.contains(['{', '}']), "{}", p.question);
        assert!(p.question.split(' ').all(|w| !w.is_empty()), "{:?}", p.question);
    }
}

#[test]
fn splits_share_no_text_and_no_held_out_equation() {
    let mut texts: BTreeMap<&str, HashSet<String>> = BTreeMap::new();
    let mut equations: BTreeMap<&str, HashSet<(Op, i64, i64)>> = BTreeMap::new();
    let mut chains: Vec<Problem> = Vec::new();
    for (split, p) in problems(12_000) {
        for e in p.line.equations() {
            let seen = equations.entry(split.name()).or_default();
            seen.insert((e.op, e.a, e.b));
            if e.op != Op::Sub {
                seen.insert((e.op, e.b, e.a));
            }
        }
        texts.entry(split.name()).or_default().insert(p.question.clone());
        if split == Split::HeldOutOperands {
            chains.push(p);
        }
    }
    let [train, held_out, operands] = Split::ALL.map(|s| &texts[s.name()]);
    assert!(train.is_disjoint(held_out) && train.is_disjoint(operands) && held_out.is_disjoint(operands));
    assert!(train.len() > 20_000 && held_out.len() > 10_000, "{} {}", train.len(), held_out.len());
    let trained = &equations["train"];
    for p in &chains {
        assert!(p.line.equations().iter().any(|e| !trained.contains(&(e.op, e.a, e.b))), "{p:?}");
    }
}

#[test]
fn about_a_tenth_is_held_out_of_every_operation() {
    for op in Op::ALL {
        let (low, high) = if op == Op::Mul { (2, 9) } else { (0, 20) };
        let pairs = (low..=high).flat_map(|a| (low..=high).map(move |b| (a, b)));
        let lines: Vec<Line> = pairs.filter_map(|(a, b)| Line::new(a, &[(op, b)])).collect();
        let held_out = lines.iter().filter(|line| Split::of("", line) == Split::HeldOutOperands).count();
        let share = held_out as f64 / lines.len() as f64;
        assert!((0.04..0.16).contains(&share), "{op:?}: {share}");
    }
    let line = Line::new(2, &[(Op::Add, 2)]).unwrap();
    let held_out = (0..10_000).filter(|i| Split::of(&format!("text {i}"), &line) == Split::HeldOut).count();
    assert!((850..1150).contains(&held_out), "{held_out}");
}

#[test]
fn every_shape_and_template_is_drawn() {
    let mut shapes: BTreeMap<(Kind, String), usize> = BTreeMap::new();
    for (_, p) in problems(2_000) {
        *shapes.entry((p.kind, p.line.shape())).or_default() += 1;
    }
    assert_eq!(shapes.keys().filter(|(kind, _)| *kind == Kind::OneStep).count(), 3);
    assert_eq!(shapes.keys().filter(|(kind, _)| *kind == Kind::TwoStep).count(), 6);
    assert_eq!(shapes.keys().filter(|(kind, _)| *kind == Kind::Drill).count(), 9);
    assert!(shapes.values().all(|n| *n > 300), "{shapes:?}");
    let words: HashSet<String> = problems(2_000)
        .flat_map(|(_, p)| {
            format!("{} {}", p.question, p.answer_text).split(' ').map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|word| word.parse::<i64>().is_err())
        .collect();
    assert_eq!(words, lexicon().into_iter().map(str::to_owned).collect());
}

#[test]
fn samples_repeat() {
    let draw = |i| sample_mixed(&mut Stream::new(3, i), Split::Train);
    assert!((0..100).all(|i| draw(i) == draw(i)));
    let drills = (0..5_000).filter(|&i| draw(i).kind == Kind::Drill).count();
    assert!((1_850..2_150).contains(&drills), "{drills}");
}

#[test]
fn the_verifier_is_strict() {
    let verdict = |text| {
        let v = verify(text, 5);
        (v.correct, v.chain_ok)
    };
    assert_eq!(verdict("3 + 4 = 7 ; 7 - 2 = 5 #### 5"), (true, true));
    assert_eq!(verdict("3+4=7;7-2=5####5\n"), (true, true));
    assert_eq!(verdict("3 + 4 = 8 ; 7 - 2 = 5 #### 5"), (true, false));
    assert_eq!(verdict("3 + 4 = 7 ; 7 - 2 = 6 #### 5"), (true, false));
    assert_eq!(verdict("3 + 4 = 7 #### 5"), (true, false), "the chain ends elsewhere");
    assert_eq!(verdict("#### 5"), (true, false), "no chain");
    assert_eq!(verdict("3 + 4 = 7 #### 7"), (false, true), "a true chain to the wrong number");
    assert_eq!(verdict("5 #### 4 #### 5"), (true, false));
    for wrong in
        ["", "5", "####", "#### 5 7", "#### five", "#### -5", "#### +5", "5 ####", "#### 55", "#### 5 .", "### 5"]
    {
        assert_eq!(verdict(wrong), (false, false), "{wrong:?}");
    }
    assert_eq!(verdict("99999999999999999999 + 1 = 2 #### 5"), (true, false));
    assert_eq!(verdict("9223372036854775807 + 1 = 5 #### 5"), (true, false));
    assert_eq!(parse_answer("x #### 12"), Some(12));
}
