//! The whole loop on the real binary: people ask and rate over HTTP, a version comes out, passes or fails the gate, is
//! served, survives a kill, and is taken back.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

mod course;
mod losses;
mod resume;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, get, post};

/// Few and small: what is tested is the way, not the gain. `training` are further lines of that table.
fn configured(folder: &Path, gate: &str, training: &str) -> String {
    let text = format!(
        r#"
        [reward]
        allow_user_only_reward = true
        aggregate = "sum_then_normalize"
        [[reward.hook]]
        name = "thumbs"
        kind = "feedback"
        metric = "thumbs"
        on_missing = "neutral"
        [[reward.hook]]
        name = "preference"
        kind = "feedback"
        metric = "preference"
        on_missing = "neutral"

        [training]
        min_samples = 48
        max_samples = 64
        lora = {{ rank = 2, alpha = 4.0 }}
        data = {{ hold_out_one_in = 4, max_versions_behind = 4, max_age_s = 3600, per_subject_max = 1000 }}
        gate = {{ prompts = 2, completions = 1, max_guard_loss = 2.0, max_kl = 1e6, min_diversity = 0.0, {gate} }}
        {training}
        "#
    );
    let path = folder.join("lacuna.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn config(folder: &Path, promotion: &str, min_gain: f64) -> String {
    let training = format!("promotion = \"{promotion}\"\nmin_interval_s = 0\nbatch = 16\nlanes = [\"groups\"]");
    configured(folder, &format!("min_gain = {min_gain:?}"), &training)
}

/// A copy of the data of a server that has ended.
fn copied(from: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&target).unwrap();
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), &target).unwrap();
            }
        }
    }
    let to = TempDir::new().unwrap();
    copy(from, to.path());
    to
}

/// Waits until `done` gives something; only a hang takes four minutes.
async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(done) = done().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(240), wait).await.unwrap_or_else(|_| panic!("in four minutes: {what}"))
}

async fn rated(http: &reqwest::Client, url: &str, id: &Value, value: bool, user: &str) {
    let rating = json!({"completion_id": id, "metric": "thumbs", "value": value, "user": user});
    let (status, reply) = post(http, &format!("{url}/feedback"), &rating).await.unwrap();
    assert_eq!(status, 201, "{reply}");
}

/// `n` pictures of the prompt of number `i`.
async fn pictures(http: &reqwest::Client, url: &str, i: usize, n: usize) -> Vec<Value> {
    let colour = ["red", "green", "blue", "yellow", "orange", "purple"][i % 6];
    let shape = ["circle", "square", "triangle", "cross"][i / 6 % 4];
    let body = json!({"prompt": format!("a {colour} {shape}"), "n": n, "steps": 2, "guidance_scale": 0,
        "sampler": {"kind": "emerge"}, "temperature": 1, "seed": i});
    let (status, reply) = post(http, &format!("{url}/generate/image"), &body).await.unwrap();
    assert_eq!(status, 200, "{reply}");
    reply["images"].as_array().unwrap().iter().map(|image| image["id"].clone()).collect()
}

/// Asks for `prompts` pairs of pictures and rates the first of each up and the second down.
async fn rate(http: &reqwest::Client, url: &str, prompts: usize, offset: usize) {
    for i in offset..offset + prompts {
        for (at, id) in pictures(http, url, i, 2).await.iter().enumerate() {
            rated(http, url, id, at == 0, &format!("p{i}")).await;
        }
    }
}

/// The last run, once there is one after `before`.
async fn run_after(http: &reqwest::Client, url: &str, before: &Value) -> Value {
    until("a run ends", async || {
        let (_, status) = get(http, &format!("{url}/training")).await.unwrap();
        let last = &status["last_run"];
        (!last.is_null() && last["id"] != *before).then(|| last.clone())
    })
    .await
}

/// Pictures completed, whoever asked.
async fn drawn(http: &reqwest::Client, url: &str) -> u64 {
    let metrics = http.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    let count =
        |line: &str| Some(line.strip_prefix("lacuna_completions_total{kind=\"image\"}")?.trim().parse().unwrap());
    metrics.lines().find_map(count).unwrap()
}

async fn served_by(http: &reqwest::Client, url: &str) -> String {
    let body = json!({"prompt": "what is 2 + 2 ?", "max_tokens": 8});
    let (status, reply) = post(http, &format!("{url}/generate/text"), &body).await.unwrap();
    assert_eq!(status, 200, "{reply}");
    reply["adapter"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ratings_become_a_version_that_is_served_survives_a_kill_and_is_taken_back() {
    let data = TempDir::new().unwrap();
    let config = config(data.path(), "auto", -1e6);
    let flags = ["--config", config.as_str(), "--log", "warn"];
    let mut server = Server::start(data.path(), &flags);
    let (http, url) = (reqwest::Client::new(), server.url.clone());
    assert_eq!(served_by(&http, &url).await, "base@0");
    rate(&http, &url, 26, 0).await;
    let run = run_after(&http, &url, &Value::Null).await;
    assert_eq!((&run["status"], &run["metrics"]["candidate"]), (&json!("promoted"), &json!("main@1")), "{run}");
    let steps = run["metrics"]["updates"].as_array().unwrap().iter().map(|u| u["steps"].as_u64().unwrap()).sum::<u64>();
    assert!(steps > 0, "{run}");
    let (_, training) = get(&http, &format!("{url}/training")).await.unwrap();
    assert!(training["lanes"]["groups"]["used"].as_u64().unwrap() > 10, "{training}");
    assert!(training["lanes"]["groups"]["dropped"]["held_out"].as_u64().unwrap() > 0, "{training}");
    assert_eq!(served_by(&http, &url).await, "main@1");

    server.kill();
    let mut server = Server::start(data.path(), &flags);
    let url = server.url.clone();
    assert_eq!(served_by(&http, &url).await, "main@1");
    let (status, routes) =
        post(&http, &format!("{url}/adapters/rollback"), &json!({"reason": "a test"})).await.unwrap();
    assert_eq!((status, &routes["active"]), (200, &json!("base@0")), "{routes}");
    assert_eq!(served_by(&http, &url).await, "base@0");
    let (_, audit) = get(&http, &format!("{url}/adapters/audit")).await.unwrap();
    assert!(audit.to_string().contains("a test"), "{audit}");
    server.signal("TERM");
    assert!(server.wait().success());
}

#[tokio::test]
async fn a_candidate_that_gains_nothing_is_refused_and_never_served() {
    let data = TempDir::new().unwrap();
    let config = config(data.path(), "auto", 1e6);
    let server = Server::start(data.path(), &["--config", config.as_str(), "--log", "warn"]);
    let (http, url) = (reqwest::Client::new(), server.url.clone());
    rate(&http, &url, 26, 0).await;
    let run = run_after(&http, &url, &Value::Null).await;
    assert_eq!(run["status"], "rejected", "{run}");
    let failed = run["metrics"]["gate"]["checks"].as_array().unwrap().iter().filter(|c| c["passed"] == false);
    assert!(failed.count() > 0, "{run}");
    assert_eq!(served_by(&http, &url).await, "base@0");
    // Both versions drew for the first gate, and only the candidate for a second one with the same prompts.
    let first = drawn(&http, &url).await - 2 * 26;
    rate(&http, &url, 26, 0).await;
    let run = run_after(&http, &url, &run["id"]).await;
    assert_eq!(run["status"], "rejected", "{run}");
    assert_eq!((drawn(&http, &url).await - 4 * 26 - first) * 2, first, "{run}");
    assert_eq!(served_by(&http, &url).await, "base@0");
    let (_, adapters) = get(&http, &format!("{url}/adapters")).await.unwrap();
    assert!(adapters.to_string().contains("rejected"), "{adapters}");
}

#[tokio::test]
async fn a_log_can_be_learned_from_without_a_server() {
    let data = TempDir::new().unwrap();
    let config = config(data.path(), "approve", -1e6);
    let flags = ["--config", config.as_str(), "--log", "warn"];
    // It only collects: this many judgements will not come.
    let collecting = [&flags[..], &["--set", "training.min_samples=100000"]].concat();
    let mut server = Server::start(data.path(), &collecting);
    let (http, url) = (reqwest::Client::new(), server.url.clone());
    rate(&http, &url, 12, 0).await;
    let train = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(["train", "--from-log", "--json", "--data-dir"]).arg(data.path()).args(flags);
        command.output().unwrap()
    };
    let refused = train();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("in use by another server"), "{message}");
    server.signal("TERM");
    assert!(server.wait().success());
    let made = train();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let run: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&run["status"], &run["metrics"]["candidate"]), (&json!("candidate"), &json!("main@1")), "{run}");
    // The next server finds the candidate, and serves it when told to.
    let server = Server::start(data.path(), &collecting);
    let url = server.url.clone();
    let (_, adapters) = get(&http, &format!("{url}/adapters")).await.unwrap();
    assert!(adapters.to_string().contains("main@1"), "{adapters}");
    assert_eq!(served_by(&http, &url).await, "base@0");
}
