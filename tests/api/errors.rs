//! What a client is told when something is wrong: the exact bodies, and the bounds that are not a field's.

use futures_util::stream;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::server::Server;

async fn problem(response: Response) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("x-request-id"));
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["status"], status);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_errors() {
    let server = Server::start().await;
    let mut problems = Vec::new();
    for (method, path, body) in [
        (Method::POST, "/generate/text", r#"{"prompt": "x", "n": 17}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "temperatur": 1}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "sampler": {"kind": "random", "epsilon": 1}}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "sampler": {"kind": "greedy"}}"#),
        (Method::POST, "/generate/text", r#"{"prompt": 1}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "template": "[[1]]"}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "adapter": "mine@3"}"#),
        (Method::POST, "/generate/text", r#"{"prompt": "x", "stop": 1}"#),
        (Method::POST, "/generate/text", "{}"),
        (Method::POST, "/generate/text", "{"),
        (Method::POST, "/generate/image", r#"{"prompt": "x", "grid": [1]}"#),
        (Method::POST, "/generate/image", r#"{"prompt": "x", "format": "gif"}"#),
        (Method::POST, "/feedback", r#"{"completion_id": "x", "metric": "thumbs", "value": null}"#),
        (Method::GET, "/completions/0199b3a4-7c1e-7d10-8a00-000000000000", ""),
        (Method::GET, "/completions/nope", ""),
        (Method::GET, "/nope", ""),
        (Method::GET, "/static/nope.js", ""),
        (Method::PUT, "/generate/text", ""),
    ] {
        let request = server.request(method.clone(), path).header("content-type", "application/json").body(body);
        let answer = problem(request.send().await.unwrap()).await;
        problems.push(json!({"request": format!("{method} {path} {body}"), "problem": answer}));
    }
    insta::assert_json_snapshot!(problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_announced_or_not() {
    let server = Server::with(|state| state.limits.max_body_bytes = 1000).await;
    let post = || server.request(Method::POST, "/generate/text").header("content-type", "application/json");
    let announced = problem(post().body("x".repeat(1001)).send().await.unwrap()).await;
    assert_eq!(
        (&announced["status"], &announced["limit"], &announced["actual"]),
        (&json!(413), &json!(1000), &json!(1001))
    );
    let chunks = stream::iter((0..11).map(|_| Ok::<_, std::io::Error>("x".repeat(100))));
    let chunked = problem(post().body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap()).await;
    assert_eq!((&chunked["status"], &chunked["limit"]), (&json!(413), &json!(1000)));
    assert_eq!(server.get("/health").await.status(), 200, "the server goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_is_given_up() {
    let server = Server::with(|state| state.limits.body_timeout_s = 0).await;
    let never = stream::pending::<Result<String, std::io::Error>>();
    let request = server.request(Method::POST, "/feedback").header("content-type", "application/json");
    let answer = problem(request.body(reqwest::Body::wrap_stream(never)).send().await.unwrap()).await;
    assert_eq!(answer["status"], 408);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_bounded() {
    let server = Server::start().await;
    let response = server.request(Method::GET, "/health").header("x-long", "x".repeat(33_000)).send().await.unwrap();
    assert_eq!(problem(response).await["limit"], 32_768);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_json_is_read() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/generate/text").header("content-type", "text/plain").body("{}");
    assert_eq!(problem(request.send().await.unwrap()).await["status"], 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let server = Server::with_queue(2, |_| {}).await;
    let body = json!({"prompt": "a", "max_tokens": 4, "steps": 4, "block_length": 4, "n": 2});
    server.gauge.hold();
    let first = tokio::spawn(server.request(Method::POST, "/generate/text").json(&body).send());
    let gauge = std::sync::Arc::clone(&server.gauge);
    tokio::task::spawn_blocking(move || gauge.wait_until_held()).await.unwrap();
    // The first two may have left the queue: fill it, then one more must be refused.
    let second = tokio::spawn(server.request(Method::POST, "/generate/text").json(&body).send());
    super::server::eventually("the queue is full", async || server.app.engine.status().queued == 2).await;
    let refused = server.post("/generate/text", &body).await;
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds >= 1);
    let answer = problem(refused).await;
    assert_eq!((&answer["status"], &answer["limit"]), (&json!(503), &json!(2)));
    server.gauge.release();
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_forward_is_a_500_without_its_cause_and_an_error_event() {
    let server = Server::start().await;
    let body = json!({"prompt": "a", "max_tokens": 4, "steps": 4, "block_length": 4});
    server.gauge.fail(1);
    let answer = problem(server.post("/generate/text", &body).await).await;
    assert_eq!(answer["status"], 500);
    assert!(!answer.to_string().contains("on purpose"));
    server.gauge.fail(1);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = server.events("/generate/text", &streamed).await;
    let (name, last) = events.last().unwrap();
    assert_eq!((name.as_str(), &last["status"]), ("error", &json!(500)));
    assert_eq!(server.post("/generate/text", &body).await.status(), 200, "the next request is served");
}
