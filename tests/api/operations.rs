//! Health, readiness, limits, metrics, request ids.

use reqwest::Method;
use serde_json::{Value, json};

use super::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_server_is_alive_and_ready() {
    let server = Server::start().await;
    assert_eq!(server.get("/health").await.json::<Value>().await.unwrap(), json!({"status": "ok"}));
    let ready = server.get("/ready").await;
    assert_eq!(ready.status(), 200);
    assert_eq!(ready.json::<Value>().await.unwrap(), json!({"ready": true, "reasons": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_forward_makes_it_unready_until_one_succeeds() {
    let server = Server::start().await;
    let body = json!({"prompt": "a", "max_tokens": 4, "steps": 1, "block_length": 4});
    server.gauge.fail(1);
    assert_eq!(server.post("/generate/text", &body).await.status(), 500);
    assert_eq!(server.get("/ready").await.status(), 503);
    assert_eq!(server.post("/generate/text", &body).await.status(), 200);
    assert_eq!(server.get("/ready").await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn info_says_what_is_served() {
    let server = Server::start().await;
    server.completion().await;
    let mut info: Value = server.get("/info").await.json().await.unwrap();
    assert_eq!(info["version"].take(), env!("CARGO_PKG_VERSION"));
    insta::assert_json_snapshot!(info);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_metrics() {
    let server = Server::start().await;
    let id = server.completion().await;
    server.ok("/feedback", &json!({"completion_id": id, "metric": "thumbs", "value": true})).await;
    server.get("/nope").await;
    let response = server.get("/metrics").await;
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text().await.unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    names.sort_unstable();
    for name in
        ["lacuna_requests_total counter", "lacuna_request_duration_seconds histogram", "lacuna_feedback_total counter"]
    {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(text.contains(r#"lacuna_requests_total{route="/generate/text",status="200"}"#), "{text}");
    assert!(text.contains(r#"lacuna_requests_total{route="other",status="404"}"#));
    assert!(!text.contains(&id), "ids are not labels");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_has_a_request_id() {
    let server = Server::start().await;
    let id = async |sent: Option<&str>| {
        let request = server.request(Method::GET, "/health");
        let request = if let Some(sent) = sent { request.header("x-request-id", sent) } else { request };
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(id(Some("mine-1")).await, "mine-1");
    assert_ne!(id(Some("no spaces")).await, "no spaces");
    assert_eq!(id(Some(&"x".repeat(129))).await.len(), 36);
    assert_ne!(id(None).await, id(None).await);
}
