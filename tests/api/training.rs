//! `/training`: the trainer's state, its switches, its runs.

use serde_json::{Value, json};

use super::server::{Server, eventually};

async fn json(server: &Server, path: &str) -> Value {
    let response = server.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.unwrap()
}

async fn state(server: &Server, state: &str) {
    eventually(state, async || json(server, "/training").await["state"] == state).await;
}

async fn switch(server: &Server, path: &str) {
    assert_eq!(server.post(path, &Value::Null).await.status(), 202, "{path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_says_what_is_waited_for() {
    let server = Server::learning().await;
    state(&server, "collecting").await;
    let (_, one) = server.answer(None).await;
    server
        .ok("/feedback", &json!({"completion_id": one["id"], "metric": "thumbs", "value": true, "user": "ann"}))
        .await;
    eventually("the rating waits", async || json(&server, "/training").await["waiting"] == 1).await;
    let mut status = json(&server, "/training").await;
    assert!(status["reason"].take().as_str().unwrap().contains("255 more"));
    let lane = json!({"used": 0, "dropped": {}});
    let expected = json!({
        "state": "collecting", "reason": null, "waiting": 1, "min_samples": 256, "subjects": 1,
        "lanes": {"groups": lane, "regenerated": lane, "singles": lane},
        "current": "base@0", "routes": {"generation": 0, "active": "base@0", "canary": null},
        "run": null, "last_run": null,
    });
    assert_eq!(status, expected);
    let info = json(&server, "/info").await;
    assert_eq!(info["learning"], json!({"on": true, "promotion": "approve", "adapters": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_triggered_run_without_data_ends_with_nothing_to_learn() {
    let server = Server::learning().await;
    let mut ids = Vec::new();
    for n in 1..=2 {
        switch(&server, "/training/trigger").await;
        eventually("a run has ended", async || {
            let runs = json(&server, "/training/runs").await;
            runs["runs"].as_array().unwrap().iter().filter(|run| run["status"] == "nothing_to_learn").count() == n
        })
        .await;
        ids.push(json(&server, "/training/runs?limit=1").await["runs"][0]["id"].as_str().unwrap().to_owned());
    }
    let status = json(&server, "/training").await;
    assert_eq!(status["last_run"]["id"], ids[1]);
    let run = json(&server, &format!("/training/runs/{}", ids[0])).await;
    assert_eq!((&run["trigger"], &run["parent"], &run["error"]), (&json!("manual"), &json!("base@0"), &Value::Null));
    assert!(run["config"]["min_samples"].is_u64() && run["started_at"].is_string() && run["ended_at"].is_string());
    let before = json(&server, &format!("/training/runs?before={}", ids[1])).await;
    assert_eq!((before["runs"].as_array().unwrap().len(), &before["runs"][0]["id"]), (1, &json!(ids[0])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_lasts_until_it_is_resumed() {
    let server = Server::learning().await;
    switch(&server, "/training/pause").await;
    state(&server, "paused").await;
    switch(&server, "/training/trigger").await;
    switch(&server, "/training/cancel").await;
    state(&server, "paused").await;
    assert_eq!(json(&server, "/training/runs").await["runs"], json!([]), "a paused trainer starts no run");
    switch(&server, "/training/resume").await;
    eventually("the run goes on", async || json(&server, "/training").await["last_run"].is_object()).await;
    state(&server, "collecting").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_bounded() {
    let server = Server::learning().await;
    for path in ["/training/runs?limit=0", "/training/runs?limit=101", "/training/runs?before=x", "/training/runs?x=1"]
    {
        assert_eq!(server.get(path).await.status(), 400, "{path}");
    }
    for path in ["/training/runs/x", "/training/runs/0199b3a4-7c1e-7d10-8a00-000000000000"] {
        assert_eq!(server.get(path).await.status(), 404, "{path}");
    }
}
