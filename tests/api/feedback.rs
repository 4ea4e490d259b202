//! `POST /feedback`: stored once, of three kinds, only for what is in the log.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::server::Server;

async fn rate(server: &Server, key: Option<&str>, body: &Value) -> Response {
    let request = server.request(Method::POST, "/feedback").json(body);
    let request = if let Some(key) = key { request.header("idempotency-key", key) } else { request };
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ratings_of_every_kind_are_in_the_record() {
    let server = Server::start().await;
    let id = server.completion().await;
    for (metric, value) in [("thumbs", json!(true)), ("score", json!(0.5)), ("comment", json!("good"))] {
        let body = json!({"completion_id": id, "metric": metric, "value": value, "user": "ann"});
        let response = rate(&server, None, &body).await;
        assert_eq!(response.status(), 201);
        let reply: Value = response.json().await.unwrap();
        assert_eq!((&reply["completion_id"], &reply["adapter"]), (&json!(id), &json!("base@0")));
    }
    let record: Value = server.get(&format!("/completions/{id}")).await.json().await.unwrap();
    let mut ratings: Vec<(String, Value)> = record["feedback"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["metric"].as_str().unwrap().to_owned(), one["value"].clone()))
        .collect();
    ratings.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [("comment", json!("good")), ("score", json!(0.5)), ("thumbs", json!(true))];
    assert_eq!(ratings, expected.map(|(metric, value)| (metric.to_owned(), value)));
    assert!(!record.to_string().contains("ann"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_can_be_rated_the_moment_its_id_is_known() {
    let server = Server::start().await;
    for _ in 0..20 {
        let id = server.completion().await;
        let response = rate(&server, None, &json!({"completion_id": id, "metric": "thumbs", "value": false})).await;
        assert_eq!(response.status(), 201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stores_a_rating_once() {
    let server = Server::start().await;
    let id = server.completion().await;
    let body = json!({"completion_id": id, "metric": "thumbs", "value": true});
    let first = rate(&server, Some("k1"), &body).await;
    assert!(first.headers().get("idempotency-replayed").is_none());
    let first: Value = first.json().await.unwrap();
    let again = rate(&server, Some("k1"), &body).await;
    assert_eq!((again.status().as_u16(), again.headers()["idempotency-replayed"].to_str().unwrap()), (201, "true"));
    assert_eq!(first, again.json::<Value>().await.unwrap());
    let other = rate(&server, Some("k1"), &json!({"completion_id": id, "metric": "thumbs", "value": false})).await;
    assert_eq!(other.status(), 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_log_cannot_be_rated() {
    let server = Server::start().await;
    for id in ["0199b3a4-7c1e-7d10-8a00-000000000000", "nope"] {
        let response = rate(&server, None, &json!({"completion_id": id, "metric": "thumbs", "value": true})).await;
        assert_eq!(response.status(), 404);
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["field"], "completion_id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rating_can_be_taken_back() {
    let server = Server::start().await;
    let id = server.completion().await;
    let reply: Value = rate(&server, None, &json!({"completion_id": id, "metric": "thumbs", "value": true}))
        .await
        .json()
        .await
        .unwrap();
    let path = format!("/feedback/{}", reply["feedback_id"].as_str().unwrap());
    assert_eq!((server.delete(&path).await, server.delete(&path).await), (204, 404));
    let record: Value = server.get(&format!("/completions/{id}")).await.json().await.unwrap();
    assert_eq!(record["feedback"], json!([]));
}
