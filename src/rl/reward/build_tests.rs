use super::super::fixture_tests::group;
use super::super::{SampleInput, Score};
use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    metrics: BTreeMap<String, Metric>,
    #[serde(default)]
    reward: Reward,
}

struct Seven;

impl Rule for Seven {
    fn score(&self, _: &str, _: &SampleInput) -> Score {
        Ok(Some(7.0))
    }
}

fn read(toml: &str) -> Result<Rewards, String> {
    let file: File = toml::from_str(toml).map_err(|error| error.to_string())?;
    let rules = Rules::from([("seven", Arc::new(Seven) as Arc<dyn Rule>)]);
    let env = |name: &str| (name == "JUDGE_SECRET").then(|| "word".to_owned());
    build(&file.metrics, &file.reward, &rules, &env).map_err(|error| error.to_string())
}

const FULL: &str = r#"
[metrics.thumbs]
type = "boolean"
true_value = 0.75
false_value = -0.25
[metrics.tone]
type = "choice"
choices = { kind = 1.0, rude = -1.0 }
[reward]
aggregate = "normalize_then_sum"
user_weight_cap = 0.5
min_scored_fraction = 0.8
[[reward.hook]]
name = "thumbs"
kind = "feedback"
metric = "thumbs"
weight = 0.5
[[reward.hook]]
name = "judge"
kind = "http"
url = "http://10.0.0.5:8000/score"
protocol = "openrlhf"
range = [0, 1]
timeout = "10s"
retries = 3
concurrency = 16
on_missing = "default(0.25)"
secret_env = "JUDGE_SECRET"
allow_private = ["10.0.0.5:8000"]
required = true
[[reward.hook]]
name = "valid"
kind = "builtin"
builtin = "json_schema"
schema = { type = "object" }
gate = true
gate_fail_reward = -1.0
[[reward.hook]]
name = "child"
kind = "command"
command = ["judge", "--fast"]
timeout = "250ms"
[[reward.hook]]
name = "own"
kind = "builtin"
builtin = "seven"
"#;

#[test]
fn the_whole_configuration_is_understood() {
    let rewards = read(FULL).unwrap();
    let parts = &rewards.policy().parts;
    assert_eq!(
        parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(),
        ["thumbs", "judge", "valid", "child", "own"]
    );
    assert!(parts[0].user && !parts[1].user);
    assert_eq!(parts[1].on_missing, super::super::combine::OnMissing::Default(0.25));
    assert_eq!(parts[2].gate, Some(Gate { least: 0.5, fail_reward: -1.0 }));
    assert!(read("").unwrap().is_empty());
}

#[test]
fn a_configuration_survives_being_written() {
    let file: File = toml::from_str(FULL).unwrap();
    let again: Reward = toml::from_str(&toml::to_string(&file.reward).unwrap()).unwrap();
    assert_eq!(again, file.reward);
}

#[test]
fn mistakes_are_refused_with_their_place() {
    let hook = |text: &str| format!("[[reward.hook]]\nname = \"h\"\n{text}");
    let http = |text: &str| hook(&format!("kind = \"http\"\n{text}"));
    let builtin = |text: &str| hook(&format!("kind = \"builtin\"\nbuiltin = {text}"));
    let url = "url = \"https://judge/\"\n";
    for (toml, told) in [
        (hook("kind = \"magic\""), "magic"),
        (
            format!("[reward]\nallow_user_only_reward = true\n{}", hook("kind = \"feedback\"\nmetric = \"stars\"")),
            "[metrics.stars]",
        ),
        (http("url = \"http://judge/\""), "must be https"),
        (http("url = \"judge\""), "https://"),
        (http("url = \"https://a:b@judge/\""), "secret_env"),
        (http(&format!("{url}timeout = \"181s\"")), "180s"),
        (http(&format!("{url}timeout = \"0s\"")), "timeout"),
        (http(&format!("{url}timeout = \"ten\"")), "250ms"),
        (http(&format!("{url}retries = 0")), "from 1 to 10"),
        (http(&format!("{url}retrys = 1")), "retrys"),
        (http(&format!("{url}secret_env = \"NOT_SET\"")), "NOT_SET"),
        (http(&format!("{url}protocol = \"v9\"")), "v9"),
        (http(&format!("{url}range = [1, 0]")), "range"),
        (http(&format!("{url}on_missing = \"zero\"")), "skip_sample"),
        (http(&format!("{url}weight = -1")), "weight"),
        (http(&format!("{url}weight = 0")), "no hook has a weight"),
        (http(&format!("{url}gate = true")), "no hook has a weight"),
        (http(&format!("{url}metric = \"thumbs\"")), "metric"),
        (builtin("\"magic\""), "seven"),
        (builtin("\"regex\""), "pattern"),
        (builtin("\"regex\"\npattern = \"(\""), "pattern"),
        (builtin("\"seven\"\npattern = \"a\""), "means nothing"),
        (builtin("\"length\"\nmin = 5\nmax = 4"), "more than max"),
        (builtin("\"number\"\ntolerance = -1"), "tolerance"),
        (builtin("\"repetition\"\nn = 0"), "from 1 to 16"),
        (builtin("\"json_schema\"\nschema = { \"$ref\" = \"x\" }"), "$ref"),
        (hook("kind = \"command\"\ncommand = []"), "no shell"),
        (format!("{}\n{}", builtin("\"json_valid\""), builtin("\"json_valid\"")), "two hooks"),
        (format!("[reward]\nuser_weight_cap = 2.0\n{}", builtin("\"json_valid\"")), "user_weight_cap"),
        ("[reward]\nagregate = 1".to_owned(), "agregate"),
        ("[metrics.x]\ntype = \"bool\"\ntrue_value = 0".to_owned(), "equal"),
        ("[metrics.x]\ntype = \"choice\"".to_owned(), "choices"),
        ("[metrics.\"a b\"]\ntype = \"bool\"".to_owned(), "letters"),
        (
            "[metrics.x]\ntype = \"bool\"\n[[reward.hook]]\nname = \"x\"\nkind = \"feedback\"\nmetric = \"x\""
                .to_owned(),
            "allow_user_only",
        ),
    ] {
        let error = read(&toml).err().unwrap_or_else(|| panic!("accepted:\n{toml}"));
        assert!(error.contains(told), "{toml}\nwas refused with: {error}");
    }
}

#[tokio::test]
async fn built_hooks_score() {
    let toml = "[[reward.hook]]\nname = \"own\"\nkind = \"builtin\"\nbuiltin = \"seven\"\n\
                [[reward.hook]]\nname = \"short\"\nkind = \"builtin\"\nbuiltin = \"length\"\nmax = 12\n";
    let scores = read(toml).unwrap().scores(vec![group(1, 2)]).await;
    assert_eq!(scores, vec![vec![vec![Ok(Some(7.0)); 2]], vec![vec![Ok(Some(1.0)); 2]]]);
}
