//! `POST /preferences`: choices and rankings, stored once, only of completions of one prompt.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::server::Server;

async fn prefer(server: &Server, key: Option<&str>, body: &Value) -> Response {
    let request = server.request(Method::POST, "/preferences").json(body);
    let request = if let Some(key) = key { request.header("idempotency-key", key) } else { request };
    request.send().await.unwrap()
}

/// Stored completions of one prompt.
async fn completions(server: &Server, prompt: &str, n: usize) -> Vec<String> {
    let body = json!({"prompt": prompt, "max_tokens": 4, "steps": 2, "block_length": 4, "n": n});
    let made = server.ok("/generate/text", &body).await;
    made["completions"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

async fn pairs(server: &Server, body: Value) -> Value {
    let response = prefer(server, None, &body).await;
    let status = response.status();
    let reply: Value = response.json().await.unwrap();
    assert_eq!(status, 201, "{reply}");
    assert!(reply["preference_id"].is_string());
    reply["pairs"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn choices_ties_and_rankings_are_stored_and_wait_for_the_trainer() {
    let server = Server::start().await;
    let ids = completions(&server, "a", 4).await;
    let choice = json!({"chosen": ids[0], "rejected": ids[1], "strength": 0.5, "user": "ann"});
    assert_eq!(pairs(&server, choice).await, 1);
    assert_eq!(pairs(&server, json!({"chosen": ids[0], "rejected": ids[1], "tie": true, "user": "bob"})).await, 1);
    assert_eq!(pairs(&server, json!({"ranking": [ids[0], [ids[1], ids[2]], ids[3]]})).await, 6);
    let pool = server.app.store.training_pool(100).await.unwrap();
    assert_eq!(pool.preferences.len(), 8);
    assert_eq!(pool.preferences.iter().filter(|pair| pair.tie).count(), 2);
    let first = &pool.preferences[0];
    assert_eq!((first.chosen.to_string(), first.rejected.to_string()), (ids[0].clone(), ids[1].clone()));
    assert_eq!(first.strength, Some(0.5));
    assert_eq!(first.subject_hash.as_deref(), Some(server.app.subjects.hash_subject("ann").as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stores_a_preference_once() {
    let server = Server::start().await;
    let ids = completions(&server, "a", 2).await;
    let body = json!({"chosen": ids[0], "rejected": ids[1]});
    let first = prefer(&server, Some("k1"), &body).await;
    assert!(first.headers().get("idempotency-replayed").is_none());
    let first: Value = first.json().await.unwrap();
    let again = prefer(&server, Some("k1"), &body).await;
    assert_eq!((again.status().as_u16(), again.headers()["idempotency-replayed"].to_str().unwrap()), (201, "true"));
    assert_eq!(first, again.json::<Value>().await.unwrap());
    let other = prefer(&server, Some("k1"), &json!({"chosen": ids[1], "rejected": ids[0]})).await;
    assert_eq!(other.status(), 422);
    assert_eq!(server.app.store.pool_counts().await.unwrap().preferences, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_preference_is_refused() {
    let server = Server::start().await;
    let ids = completions(&server, "a", 2).await;
    let other = completions(&server, "b", 1).await;
    let unknown = "0199b3a4-7c1e-7d10-8a00-000000000000";
    let seventeen = vec![ids[0].clone(); 17];
    for (body, status, field) in [
        (json!({"chosen": ids[0], "rejected": unknown}), 404, json!("rejected")),
        (json!({"chosen": unknown, "rejected": ids[0]}), 404, json!("chosen")),
        (json!({"ranking": [ids[0], [unknown]]}), 404, json!("ranking")),
        (json!({"chosen": "nope", "rejected": ids[0]}), 404, json!("chosen")),
        (json!({"chosen": ids[0], "rejected": other[0]}), 409, Value::Null),
        (json!({"chosen": ids[0], "rejected": ids[0]}), 400, json!("rejected")),
        (json!({"ranking": [ids[0], ids[1], ids[0]]}), 400, json!("ranking")),
        (json!({"ranking": [ids[0]]}), 400, json!("ranking")),
        (json!({"ranking": [ids[0], [], ids[1]]}), 400, json!("ranking")),
        (json!({"ranking": seventeen}), 400, json!("ranking")),
        (json!({"ranking": [1]}), 400, json!("ranking[0]")),
        (json!({"chosen": ids[0], "rejected": ids[1], "strength": 1.01}), 400, json!("strength")),
        (json!({"chosen": ids[0], "rejected": ids[1], "user": "x".repeat(257)}), 400, json!("user")),
        (json!({"chosen": ids[0], "rejected": ids[1], "winner": 1}), 400, json!("winner")),
        (json!({}), 400, json!("ranking")),
    ] {
        let response = prefer(&server, None, &body).await;
        assert_eq!(response.status(), status, "{body}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
    assert_eq!(server.app.store.pool_counts().await.unwrap().preferences, 0);
}
