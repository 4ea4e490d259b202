//! SIGTERM: what runs gets its time, what is new is refused, a second signal does not wait.

use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::server::{Server, get};

/// A request of `n` canvases with `steps` steps each, started once this returns; the task ends with the names of its
/// events, or with the transport's error.
async fn running(server: &Server, n: u32, steps: u32) -> JoinHandle<reqwest::Result<Vec<String>>> {
    let url = format!("{}/generate/text", server.url);
    let body = json!({ "prompt": "Tom has 3 apples.", "n": n, "max_tokens": steps, "steps": steps, "block_length": steps,
        "stop_at_eos": false, "stream": true });
    let begun = Arc::new(Notify::new());
    let tell = Arc::clone(&begun);
    let task = tokio::spawn(async move {
        let mut answer = reqwest::Client::new().post(url).json(&body).send().await?;
        assert_eq!(answer.status(), 200);
        let mut text = String::new();
        while let Some(chunk) = answer.chunk().await? {
            text.push_str(&String::from_utf8_lossy(&chunk));
            if text.contains("event: step") {
                tell.notify_one();
            }
        }
        Ok(text.lines().filter_map(|line| line.strip_prefix("event: ").map(str::to_owned)).collect())
    });
    begun.notified().await;
    task
}

/// Waits until `/ready` no longer says yes.
async fn draining(server: &Server) {
    let http = reqwest::Client::new();
    loop {
        match get(&http, &format!("{}/ready", server.url)).await {
            Ok((200, _)) => tokio::task::yield_now().await,
            Ok((status, body)) => {
                assert_eq!((status, &body["ready"]), (503, &Value::Bool(false)));
                return;
            }
            Err(_) => return, // it has drained already and closed its listener
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_running_requests_finish_and_refuses_new_ones() {
    let data = TempDir::new().unwrap();
    let mut server = Server::start(data.path(), &["--shutdown-timeout", "300"]);
    let task = running(&server, 8, 128).await;
    server.signal("TERM");
    draining(&server).await;
    let request = json!({ "prompt": "too late" });
    match reqwest::Client::new().post(format!("{}/generate/text", server.url)).json(&request).send().await {
        Ok(answer) => {
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key("retry-after"));
        }
        Err(error) => assert!(error.is_connect() || error.is_request(), "{error:?}"),
    }
    let events = task.await.unwrap().unwrap();
    assert_eq!(events.last().map(String::as_str), Some("done"), "{events:?}");
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_time_ends_what_still_runs_with_an_error() {
    let data = TempDir::new().unwrap();
    let mut server = Server::start(data.path(), &["--shutdown-timeout", "0"]);
    let task = running(&server, 16, 512).await;
    server.signal("TERM");
    let events = task.await.unwrap().unwrap();
    assert_eq!(events.last().map(String::as_str), Some("error"), "{events:?}");
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_does_not_wait() {
    let data = TempDir::new().unwrap();
    let mut server = Server::start(data.path(), &["--shutdown-timeout", "300"]);
    let task = running(&server, 16, 512).await;
    server.signal("TERM");
    draining(&server).await;
    server.signal("TERM");
    server.wait();
    let ended = task.await.unwrap();
    assert!(!ended.is_ok_and(|events| events.last().is_some_and(|event| event == "done")));
}
