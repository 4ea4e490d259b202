//! Clients that leave, and a server that is told to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::{Server, collect, eventually, metrics};

const STEPS: usize = 64;

fn long(stream: bool) -> Value {
    json!({"prompt": "a", "max_tokens": 64, "steps": STEPS, "block_length": 64, "stop_at_eos": false, "stream": stream})
}

async fn held(server: &Server) {
    let gauge = Arc::clone(&server.gauge);
    tokio::task::spawn_blocking(move || gauge.wait_until_held()).await.unwrap();
}

fn disconnects() -> u64 {
    let text = metrics().render();
    let line = text.lines().find_map(|line| line.strip_prefix("lacuna_client_disconnects_total "));
    line.map_or(0, |count| count.parse().unwrap())
}

/// A raw client that sends a request and closes its connection while the first forward runs.
async fn leave(server: &Server, stream: bool) {
    let before = (disconnects(), server.gauge.forwards.load(SeqCst));
    server.gauge.hold();
    let mut socket = TcpStream::connect(&server.address).await.unwrap();
    let body = long(stream).to_string();
    let head = format!(
        "POST /generate/text HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).await.unwrap();
    if stream {
        let mut first = [0; 64];
        assert!(socket.read(&mut first).await.unwrap() > 0, "the stream has begun");
    }
    held(server).await;
    drop(socket);
    eventually("the server sees that the client is gone", async || disconnects() > before.0).await;
    server.gauge.release();
    eventually("the engine is idle", async || {
        let status = server.app.engine.status();
        status.running + status.queued == 0
    })
    .await;
    let forwards = server.gauge.forwards.load(SeqCst) - before.1;
    assert!(forwards <= 2, "{forwards} of {STEPS} forwards were made for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_gone_stops_within_one_step() {
    let server = Server::start().await;
    leave(&server, false).await;
    leave(&server, true).await;
    let counts = server.app.store.counts().await.unwrap();
    assert_eq!(counts.completions, 0, "what nobody got is not in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_running_requests_finish_and_takes_no_new_ones() {
    let mut server = Server::start().await;
    server.gauge.hold();
    let running = tokio::spawn(server.request(Method::POST, "/generate/text").json(&long(false)).send());
    let streamed = tokio::spawn(server.request(Method::POST, "/generate/text").json(&long(true)).send());
    held(&server).await;
    let streamed = streamed.await.unwrap().unwrap();
    eventually("both run", async || {
        let status = server.app.engine.status();
        status.running + status.queued == 2
    })
    .await;
    server.stop();
    eventually("/ready says no", async || server.get("/ready").await.status() == 503).await;
    let reasons: Value = server.get("/ready").await.json().await.unwrap();
    assert_eq!(reasons["reasons"], json!(["the server is shutting down"]));
    let refused = server.post("/generate/text", &long(false)).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
    assert_eq!(server.get("/health").await.status(), 200);
    server.gauge.release();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    assert_eq!(collect(streamed).await.last().unwrap().0, "done");
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_drain_time_what_is_left_is_cut_off_with_an_error() {
    let mut server = Server::with(|state| state.shutdown.drain = Duration::ZERO).await;
    server.gauge.hold();
    let running = tokio::spawn(server.request(Method::POST, "/generate/text").json(&long(false)).send());
    let streamed = server.post("/generate/text", &long(true)).await;
    eventually("both run", async || {
        let status = server.app.engine.status();
        status.running + status.queued == 2
    })
    .await;
    server.stop();
    assert_eq!(running.await.unwrap().unwrap().status(), 503);
    let events = collect(streamed).await;
    let (name, problem) = events.last().unwrap();
    assert_eq!((name.as_str(), &problem["type"]), ("error", &json!("urn:lacuna:problem:draining")));
    let gauge = Arc::clone(&server.gauge);
    server.ended().await;
    gauge.release();
}
