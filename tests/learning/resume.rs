//! A run that is killed in its middle leaves nothing half-made, goes on where it was, and ends as if nothing had been.

use super::*;

const LONG: &str = "batch = 8\nepochs = 2\nlr = 1e-4\nlanes = [\"groups\"]\nmin_interval_s = 0\npromotion = \"auto\"";

/// SHA-256 of the tensors of version 1, as the manifest has it.
async fn tensors(http: &reqwest::Client, url: &str) -> Value {
    let (status, record) = get(http, &format!("{url}/adapters/main@1")).await.unwrap();
    assert_eq!(status, 200, "{record}");
    let sha256 = record["manifest"]["files"]["adapter_model.safetensors"]["sha256"].clone();
    assert!(sha256.is_string(), "{record}");
    sha256
}

fn tensor_files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => tensor_files(&entry.path()),
        false => usize::from(entry.file_name().to_string_lossy().ends_with(".safetensors")),
    };
    entries.map(count).sum()
}

#[tokio::test]
async fn a_run_killed_in_its_middle_goes_on_and_ends_the_same() {
    // Ratings, and no run yet.
    let collected = TempDir::new().unwrap();
    let config = configured(collected.path(), "min_gain = -1e6", "enabled = false");
    let mut server = Server::start(collected.path(), &["--config", config.as_str(), "--log", "warn"]);
    let http = reqwest::Client::new();
    rate(&http, &server.url, 26, 0).await;
    server.signal("TERM");
    assert!(server.wait().success());

    let whole = copied(collected.path());
    let config = configured(whole.path(), "min_gain = -1e6", LONG);
    let server = Server::start(whole.path(), &["--config", config.as_str(), "--log", "warn"]);
    let uninterrupted = run_after(&http, &server.url, &Value::Null).await;
    assert_eq!(uninterrupted["status"], "promoted", "{uninterrupted}");
    let expected = tensors(&http, &server.url).await;
    drop(server);

    let cut = copied(collected.path());
    let config = configured(cut.path(), "min_gain = -1e6", LONG);
    let flags = ["--config", config.as_str(), "--log", "warn"];
    let mut server = Server::start(cut.path(), &flags);
    let progress = cut.path().join("training/progress.json");
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&progress).ok()?).ok();
    until("two batches are done", async || read().filter(|p| p["done"].as_u64() >= Some(2))).await;
    server.kill();
    let total = uninterrupted["metrics"]["updates"].as_array().unwrap().len() as u64;
    let done = read().unwrap()["done"].as_u64().unwrap();
    assert!(done < total, "the run was over before it could be killed: {done} of {total} batches");
    assert_eq!(tensor_files(&cut.path().join("adapters")), 0, "a half-made version");

    let server = Server::start(cut.path(), &flags);
    assert_eq!(served_by(&http, &server.url).await, "base@0");
    let (_, adapters) = get(&http, &format!("{}/adapters", server.url)).await.unwrap();
    assert_eq!(adapters["adapters"], json!([]), "{adapters}");
    // The dead process's lease runs out first; then its run is known to be over, and the next one goes on with it.
    let resumed = until("the resumed run ends", async || {
        let (_, status) = get(&http, &format!("{}/training", server.url)).await.unwrap();
        let last = status["last_run"].clone();
        (!last.is_null() && last["status"] != "abandoned").then_some(last)
    })
    .await;
    assert_eq!(resumed["status"], "promoted", "{resumed}");
    assert_eq!(resumed["metrics"]["updates"], uninterrupted["metrics"]["updates"]);
    assert_eq!(tensors(&http, &server.url).await, expected, "the same factors, bit for bit");
    let (_, runs) = get(&http, &format!("{}/training/runs", server.url)).await.unwrap();
    let statuses: Vec<&Value> = runs["runs"].as_array().unwrap().iter().map(|run| &run["status"]).collect();
    assert_eq!(statuses, ["promoted", "abandoned"]);
    assert!(!progress.exists(), "a checkpoint of a run that is over");
}

/// What a checkpoint keeps as JSON; a fast parser is off by one in the last place for this one.
#[test]
fn numbers_are_read_back_to_the_last_bit() {
    let drift = 5.529_687_393_454_469e-8_f64;
    let read: f64 = serde_json::from_str(&json!(drift).to_string()).unwrap();
    assert_eq!(read.to_bits(), drift.to_bits());
}
