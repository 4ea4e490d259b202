//! The hook against child processes that misbehave; each is a short shell script, given to `sh` as a program's
//! argument.

use super::super::fixture_tests::group;
use super::*;

/// Answers every line with a reward of one half for each sample that it names.
const GOOD: &str = r#"while read -r line; do
    printf '{"results":['
    sep=''
    for id in $(printf '%s' "$line" | grep -o '"sample_id":"[^"]*"'); do
        printf '%s{%s,"reward":0.5}' "$sep" "$id"
        sep=','
    done
    printf ']}\n'
done"#;

fn hook(script: &str, timeout: Duration, restarts: u32) -> Command {
    Command::new(Settings {
        name: "child".to_owned(),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("GIVEN".to_owned(), "0.25".to_owned())],
        range: Some([0.0, 1.0]),
        timeout,
        restarts,
        max_batch: 2,
    })
}

fn reasons(scores: &[Vec<Score>]) -> Vec<&'static str> {
    scores.iter().flatten().map(|score| score.as_ref().map_or_else(HookError::reason, |_| "ok")).collect()
}

const PATIENT: Duration = Duration::from_secs(60);
const HASTY: Duration = Duration::from_millis(200);

async fn outcome(script: &str, timeout: Duration, restarts: u32) -> Vec<&'static str> {
    let scores = hook(script, timeout, restarts).score(&[group(1, 2), group(2, 1)]).await;
    assert_eq!(scores.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    reasons(&scores)
}

#[tokio::test]
async fn a_good_child_answers_every_batch_in_one_life() {
    let one_life = format!("read -r once < /dev/null; {GOOD}");
    let hook = hook(&one_life, PATIENT, 0);
    for _ in 0..2 {
        let scores = hook.score(&[group(1, 2), group(2, 1)]).await;
        assert_eq!(scores, vec![vec![Ok(Some(0.5)), Ok(Some(0.5))], vec![Ok(Some(0.5))]]);
    }
}

#[tokio::test]
async fn a_child_that_dies_is_started_again_but_not_for_ever() {
    let once =
        GOOD.replace("while read -r line; do", "read -r line;").replace("\ndone", "").replace("    done", "done");
    assert!(once.ends_with("printf ']}\\n'"));
    assert_eq!(outcome(&once, PATIENT, 3).await, ["ok"; 3]);
    assert_eq!(outcome("exit 3", PATIENT, 3).await, ["died"; 3]);
    assert_eq!(outcome("read -r line; printf '{\"results\"'", PATIENT, 1).await, ["died"; 3]);
}

#[tokio::test]
async fn a_program_that_is_not_there_has_died() {
    let mut hook = hook("", PATIENT, 1);
    hook.settings.command = vec!["/no/such/program".to_owned()];
    assert_eq!(reasons(&hook.score(&[group(1, 1)]).await), ["died"]);
}

#[tokio::test]
async fn a_child_that_is_late_is_killed() {
    assert_eq!(outcome("while :; do read -r line; done", HASTY, 3).await, ["timeout"; 3]);
    assert_eq!(outcome("exec sleep 1000", HASTY, 3).await, ["timeout"; 3], "it does not even read");
    assert_eq!(outcome("exec sleep 1000", HASTY, 0).await, ["timeout", "timeout", "died"]);
}

#[tokio::test]
async fn lies_and_floods_are_errors() {
    assert_eq!(outcome("while read -r line; do echo nonsense; done", PATIENT, 0).await, ["protocol"; 3]);
    assert_eq!(outcome(&GOOD.replace("0.5", "NaN"), PATIENT, 0).await, ["not_finite"; 3]);
    assert_eq!(outcome(&GOOD.replace("0.5", "7"), PATIENT, 0).await, ["out_of_range"; 3]);
    assert_eq!(outcome("read -r line; exec tr '\\0' 'x' < /dev/zero", PATIENT, 1).await, ["too_large"; 3]);
}

#[tokio::test]
async fn it_sees_only_the_variables_it_is_given() {
    let tell = GOOD.replace("0.5", "%s").replace("\"$id\"", "\"$id\" \"${CARGO_MANIFEST_DIR:+9}${GIVEN}\"");
    let scores = hook(&tell, PATIENT, 0).score(&[group(1, 1)]).await;
    assert_eq!(scores, vec![vec![Ok(Some(0.25))]]);
}
