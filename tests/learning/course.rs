//! A new version on trial: a share of the people gets it, always the same ones, and what they say decides.

use std::collections::BTreeMap;
use std::process::Command;

use super::*;

/// People who ask.
const PEOPLE: usize = 48;

/// One run has made a candidate; the server has ended.
async fn with_candidate() -> TempDir {
    let data = TempDir::new().unwrap();
    let config = configured(data.path(), "min_gain = -1e6", TRIAL);
    let mut server = Server::start(data.path(), &["--config", config.as_str(), "--log", "warn"]);
    let http = reqwest::Client::new();
    rate(&http, &server.url, 26, 0).await;
    let run = run_after(&http, &server.url, &Value::Null).await;
    assert_eq!((&run["status"], &run["metrics"]["candidate"]), (&json!("candidate"), &json!("main@1")), "{run}");
    server.signal("TERM");
    assert!(server.wait().success());
    data
}

/// A candidate waits for approval, is judged by a dozen ratings, and no second run comes between.
const TRIAL: &str = "batch = 32\nlanes = [\"groups\"]\ntrial_ratings = 12\nmin_interval_s = 100000";

struct Trial {
    server: Server,
    http: reqwest::Client,
    _data: TempDir,
}

impl Trial {
    /// The candidate approved for this share of the people.
    async fn of(trained: &TempDir, share: Value) -> Self {
        let data = copied(trained.path());
        // The trial's ratings start no run of their own.
        let config = configured(data.path(), "min_gain = -1e6", &format!("{TRIAL}\nmin_subjects = 100000"));
        let server = Server::start(data.path(), &["--config", config.as_str(), "--log", "warn"]);
        let trial = Self { server, http: reqwest::Client::new(), _data: data };
        // Once over HTTP, once by the command that does the same.
        if share.is_null() {
            let served = trial.command(&["promote", "main@1", "--reason", "a trial"]).unwrap();
            assert_eq!(served.trim(), "served: main@1");
        } else {
            let url = format!("{}/adapters/main@1/approve", trial.server.url);
            let body = json!({"share": share, "reason": "a trial"});
            let (status, routes) = post(&trial.http, &url, &body).await.unwrap();
            assert_eq!(status, 200, "{routes}");
        }
        trial
    }

    /// What `lacuna adapters` prints of the server, or complains of.
    fn command(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        let output = command.arg("adapters").args(args).args(["--url", &self.server.url]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The version that person `i` gets, and the completion.
    async fn ask(&self, i: usize, seed: usize) -> (String, Value) {
        let body = json!({"prompt": "what is 2 + 2 ?", "max_tokens": 8, "seed": seed, "user": format!("person {i}")});
        let (status, reply) = post(&self.http, &format!("{}/generate/text", self.server.url), &body).await.unwrap();
        assert_eq!(status, 200, "{reply}");
        (reply["adapter"].as_str().unwrap().to_owned(), reply["completions"][0]["id"].clone())
    }

    /// Everybody asks; those who get the new version say what they think of it.
    async fn judged(&self, good: bool) -> BTreeMap<usize, String> {
        let mut versions = BTreeMap::new();
        for i in 0..PEOPLE {
            let (version, id) = self.ask(i, i).await;
            if version == "main@1" {
                rated(&self.http, &self.server.url, &id, good, &format!("person {i}")).await;
            }
            versions.insert(i, version);
        }
        versions
    }

    async fn settled(&self, active: &str) -> Value {
        let url = format!("{}/adapters", self.server.url);
        until("the trial is over", async || {
            let (_, adapters) = get(&self.http, &url).await.unwrap();
            let over = adapters["routes"]["canary"].is_null() && adapters["routes"]["active"] == active;
            over.then(|| adapters["adapters"][0].clone())
        })
        .await
    }

    async fn audit(&self) -> String {
        let (_, audit) = get(&self.http, &format!("{}/adapters/audit", self.server.url)).await.unwrap();
        audit.to_string()
    }
}

#[tokio::test]
async fn a_canary_is_sticky_and_goes_on_or_back_by_its_ratings_and_a_drop_is_taken_back() {
    let trained = with_candidate().await;

    let liked = Trial::of(&trained, json!(0.5)).await;
    // Before anybody has rated, the share is stable: the same people get the same version, whatever they ask.
    let mut first = BTreeMap::new();
    for i in 0..PEOPLE {
        first.insert(i, liked.ask(i, 1000 + i).await.0);
    }
    let on_trial = first.values().filter(|version| *version == "main@1").count();
    assert!((12..=36).contains(&on_trial), "{on_trial} of {PEOPLE} at a share of one half");
    let base = first.values().filter(|version| *version == "base@0").count();
    assert_eq!(base + on_trial, PEOPLE);
    for i in 0..PEOPLE {
        assert_eq!(liked.ask(i, 2000 + i).await.0, first[&i], "person {i}");
    }
    liked.judged(true).await;
    let version = liked.settled("main@1").await;
    assert_eq!(version["status"], "active", "{version}");
    assert!(liked.audit().await.contains("the canary's ratings are no worse"));
    assert_eq!(liked.ask(0, 1).await.0, "main@1");

    let disliked = Trial::of(&trained, json!(0.5)).await;
    let versions = disliked.judged(false).await;
    // The same key and the same route: the same people as before.
    assert!(versions.iter().all(|(i, version)| *version == first[i] || version == "base@0"), "{versions:?}");
    let version = disliked.settled("base@0").await;
    assert_eq!(version["status"], "rolled_back", "{version}");
    assert!(disliked.audit().await.contains("people rate it lower than the version before"));

    // For everybody at once, then a drop: nobody has to ask for the way back.
    let everybody = Trial::of(&trained, Value::Null).await;
    assert_eq!(everybody.ask(0, 1).await.0, "main@1");
    everybody.judged(false).await;
    let version = everybody.settled("base@0").await;
    assert_eq!(version["status"], "rolled_back", "{version}");
    assert_eq!(everybody.ask(0, 1).await.0, "base@0");
    let list = everybody.command(&["list"]).unwrap();
    assert!(list.contains("main@1") && list.contains("rolled_back") && list.contains("served: base@0"), "{list}");
    let shown = everybody.command(&["show", "main@1"]).unwrap();
    assert!(shown.contains("maskgrpo") && shown.contains("mean 0.000"), "{shown}");
    let refused = everybody.command(&["rollback"]).unwrap_err();
    assert!(refused.contains("409") && refused.contains("nothing to roll back"), "{refused}");
    assert!(everybody.command(&["show", "main@9"]).unwrap_err().contains("404"));
}
