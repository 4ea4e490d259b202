//! Every greedy run again, over HTTP: through the real router, the log and an engine that batches as it goes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lacuna::engine::Counters;
use lacuna::engine::job::{Fidelity, Task};
use lacuna::models::Model;
use serde_json::{Value, json};

use super::runs::{FOLDERS, Run, runs, understanding};
use super::samplers::{dream, fast_dllm, images, unmasked};
use super::{ids, json as golden, model};
use crate::api::server::Server;

pub(super) async fn serve(model: Model) -> Server {
    Server::of(model, Arc::default(), 64, async |_, _| {}).await
}

/// The run as a client asks for it: parameters have the names that they have inside.
fn body(run: &Run) -> Value {
    let (mut body, token_ids) = match &run.task {
        Task::Text(params) => (serde_json::to_value(params).unwrap(), "token_ids"),
        Task::Image(params) => (serde_json::to_value(params).unwrap(), "codes"),
    };
    // Options that are off are not sent: a sampler refuses those that it does not know.
    let ends = body.as_object_mut().unwrap().remove("ends").unwrap_or_else(|| json!({}));
    for (option, _) in ends.as_object().unwrap().iter().filter(|(_, on)| **on == true) {
        body["sampler"][option] = true.into();
    }
    body["prompt_token_ids"] = json!(run.prompt);
    body["return"] = json!([token_ids, "commit_steps"]);
    body
}

/// Answers how many steps it took.
async fn ask(server: &Server, run: &Run) -> u64 {
    let (route, list, tokens) = match &run.task {
        Task::Text(_) => ("/generate/text", "completions", "token_ids"),
        Task::Image(_) => ("/generate/image", "images", "codes"),
    };
    let reply = server.ok(route, &body(run)).await;
    let one = &reply[list][0];
    let commit_steps: Vec<i32> = serde_json::from_value(one["commit_steps"].clone()).unwrap();
    let steps = one["steps"].as_u64().unwrap_or_default();
    run.assert_official(&ids(&one[tokens]), &commit_steps, steps as u32);
    steps
}

/// The counters once they have so many steps: a reply may be there before its last tick is counted.
async fn counters(server: &Server, steps: u64) -> Counters {
    let counted = async {
        while server.app.engine.counters().steps < steps {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.ok();
    server.app.engine.counters()
}

/// Asks for them one after another, then for all at once.
async fn check(model: Model, runs: &[Run]) {
    let server = serve(model).await;
    let mut steps = 0;
    for run in runs {
        steps += ask(&server, run).await;
    }
    let alone = counters(&server, steps).await;
    assert_eq!((alone.ticks, alone.steps), (steps, steps), "one canvas a tick");
    join_all(runs.iter().map(|run| ask(&server, run))).await;
    let mixed = counters(&server, 2 * steps).await;
    assert_eq!(mixed.steps, 2 * steps);
    assert!(mixed.ticks < 2 * alone.ticks, "no two of them ever shared a tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn lladas_runs_are_the_official_ones() {
    for name in FOLDERS {
        check(model(name), &runs(name)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_of_fast_dllm_are_the_official_ones_with_its_caches_and_without() {
    for name in FOLDERS {
        let all = [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual].into_iter();
        let runs: Vec<Run> = all.flat_map(|fidelity| fast_dllm(name, fidelity)).collect();
        check(unmasked(name), &runs).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sdars_runs_are_the_official_ones() {
    let model = model("sdar");
    let runs = super::sdar::runs(&model);
    check(model, &runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dreams_runs_are_the_official_ones() {
    check(model("dream"), &dream()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mmadas_images_and_texts_about_images_are_the_official_ones() {
    let model = super::pictures::painter();
    let mut runs = images(&model);
    runs.extend(understanding());
    check(model, &runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_are_laid_out_as_transformers_does() {
    let small = |field: &str, prompt: &Value| {
        json!({field: prompt, "max_tokens": 4, "steps": 2, "block_length": 4, "stop_at_eos": false,
            "return": ["token_ids", "commit_steps"]})
    };
    let mut compared = 0;
    for name in ["llada", "llada_gqa_tied", "dream"] {
        let server = serve(model(name)).await;
        for case in golden(name, "golden.json")["tokenizer"].as_array().unwrap() {
            if case["messages"].is_null() {
                continue;
            }
            compared += 1;
            let said = server.ok("/generate/text", &small("messages", &case["messages"])).await;
            let id = said["completions"][0]["id"].as_str().unwrap();
            let record: Value = server.get(&format!("/completions/{id}")).await.json().await.unwrap();
            assert_eq!(record["prompt_token_ids"], case["ids"], "{name}");
            assert_eq!(said["usage"]["prompt_tokens"], ids(&case["ids"]).len(), "{name}");
            let asked = server.ok("/generate/text", &small("prompt_token_ids", &case["ids"])).await;
            for part in ["token_ids", "commit_steps"] {
                assert_eq!(said["completions"][0][part], asked["completions"][0][part], "{name}");
            }
        }
    }
    assert!(compared > 2, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_template_takes_no_conversation() {
    let server = serve(model("sdar")).await;
    let response = server.post("/generate/text", &json!({"messages": [{"role": "user", "content": "Hi"}]})).await;
    assert_eq!(response.status(), 400);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["field"], "messages");
    assert!(problem["detail"].as_str().unwrap().contains("no chat template"), "{problem}");
}
