//! `POST /generate/text`, plain and streamed, and what the log has of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::server::{Event, Server};
use crate::properties::fake::EOS;

fn body(more: Value) -> Value {
    let mut body = json!({"prompt": "abc", "max_tokens": 16, "steps": 8, "block_length": 8, "temperature": 1, "seed": 7,
        "stop_at_eos": false});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn named<'a>(events: &'a [Event], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|(event, _)| event == name).map(|(_, data)| data).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_has_everything_that_was_asked_for() {
    let server = Server::start().await;
    let reply =
        server.ok("/generate/text", &body(json!({"n": 2, "return": ["token_ids", "commit_steps", "logprobs"]}))).await;
    assert_eq!((&reply["model"], &reply["adapter"]), (&json!("fake"), &json!("base@0")));
    assert_eq!((&reply["params"]["steps"], &reply["params"]["n"]), (&json!(8), &json!(2)));
    let completions = reply["completions"].as_array().unwrap();
    assert_eq!(completions.len(), 2);
    for one in completions {
        for list in ["token_ids", "commit_steps", "logprobs"] {
            assert_eq!(one[list].as_array().unwrap().len(), 16, "{list}");
        }
        assert_eq!(one["steps"], 8);
        let positions = one["positions_evaluated"].as_u64().unwrap();
        assert!(positions > 0);
        assert_eq!(one["ppt"].as_f64().unwrap(), positions as f64 / 16.0);
    }
    assert_eq!(completions[0]["seed"], 7);
    assert_ne!(completions[0]["token_ids"], completions[1]["token_ids"]);
    assert_eq!(reply["usage"]["completion_tokens"], 32);
    assert!(reply["timing"]["denoise_ms"].as_f64().unwrap() >= 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_reply_is_small() {
    let server = Server::start().await;
    let reply = server.ok("/generate/text", &body(json!({}))).await;
    let mut keys: Vec<&String> = reply["completions"][0].as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["finish_reason", "id", "positions_evaluated", "ppt", "seed", "steps", "text"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_text_and_no_seed_another() {
    let server = Server::start().await;
    let text = async |more: Value| {
        let reply = server.ok("/generate/text", &body(more)).await;
        (reply["completions"][0]["text"].clone(), reply["completions"][0]["seed"].clone())
    };
    assert_eq!(text(json!({})).await, text(json!({})).await);
    let (first, second) = (text(json!({"seed": null})).await, text(json!({"seed": null})).await);
    assert_ne!(first.1, second.1);
    assert_eq!(text(json!({"seed": first.1})).await.0, first.0, "an echoed seed repeats the text");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_give_a_prompt_works() {
    let server = Server::start().await;
    let small = json!({"max_tokens": 4, "steps": 2, "block_length": 4});
    for prompt in [
        json!({"prompt": "abc"}),
        json!({"messages": [{"role": "user", "content": "abc"}]}),
        json!({"prompt_token_ids": [97, 98, 99]}),
    ] {
        let mut body = prompt.clone();
        body.as_object_mut().unwrap().extend(small.as_object().unwrap().clone());
        assert!(server.ok("/generate/text", &body).await["completions"][0]["text"].is_string(), "{prompt}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_a_layout_of_its_own_reads_a_conversation_line_by_line() {
    let server = Server::start().await;
    let said = json!({"prompt": null, "messages": [
        {"role": "system", "content": "ab"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]});
    let (said, plain) = (body(said), body(json!({"prompt": "ab\nc\nd"})));
    let (said, plain) = (server.ok("/generate/text", &said).await, server.ok("/generate/text", &plain).await);
    assert_eq!(said["completions"][0]["text"], plain["completions"][0]["text"]);
    assert_eq!(said["usage"], plain["usage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_keeps_its_text_and_fills_its_holes() {
    let server = Server::start().await;
    let parts = json!({"template": "ab[[3]]cd[[2]]", "steps": 5, "seed": 3, "return": ["token_ids", "commit_steps"]});
    let reply = server.ok("/generate/text", &parts).await;
    let one = &reply["completions"][0];
    let ids: Vec<u64> = one["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let given: Vec<bool> = one["commit_steps"].as_array().unwrap().iter().map(|step| step == -1).collect();
    assert_eq!(given, [true, true, false, false, false, true, true, false, false][..given.len()]);
    assert_eq!((&ids[..2], &ids[5..7]), (&[97, 98][..], &[99, 100][..]));
    assert_eq!(reply["usage"]["completion_tokens"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_plain_reply() {
    let server = Server::start().await;
    let events = server.events("/generate/text", &body(json!({"n": 2, "stream": true}))).await;
    assert_eq!(events.first().unwrap().0, "queued");
    assert_eq!(events.last().unwrap().0, "done");
    let (queued, done) = (&events[0].1, &events.last().unwrap().1);
    assert_eq!(queued["id"], done["id"]);
    assert!(queued["ahead"].is_u64());
    let plain = server.ok("/generate/text", &body(json!({"n": 2}))).await;
    for index in 0..2 {
        let completion = &done["completions"][index];
        assert_eq!(queued["completions"][index], completion["id"]);
        assert_eq!(completion["text"], plain["completions"][index]["text"]);
        let steps = named(&events, "step").into_iter().filter(|step| step["index"] == index);
        let committed: String = steps.clone().map(|step| step["committed"].as_str().unwrap()).collect();
        assert_eq!(committed, completion["text"].as_str().unwrap(), "committed text only ever grows");
        assert!(steps.clone().all(|step| step.get("edits").is_none() && step["steps"] == 8));
    }
    assert_eq!(done["params"], plain["params"]);
    assert_eq!(named(&events, "block").len(), 4, "two blocks of each");
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_are_the_canvas_position_by_position() {
    let server = Server::start().await;
    let more = json!({"stream": true, "stream_mode": "edits", "return": ["token_ids", "commit_steps"]});
    let events = server.events("/generate/text", &body(more)).await;
    let done = &events.last().unwrap().1["completions"][0];
    let mut canvas = vec![(Value::Null, Value::Null); 16];
    for step in named(&events, "step") {
        for edit in step["edits"].as_array().unwrap() {
            let confidence = edit["confidence"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&confidence) && edit["text"].is_string());
            canvas[edit["position"].as_u64().unwrap() as usize] = (edit["token"].clone(), step["step"].clone());
        }
    }
    for (position, (token, step)) in canvas.iter().enumerate() {
        assert_eq!((token, step), (&done["token_ids"][position], &done["commit_steps"][position]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_tell_proxies_to_pass_them_on() {
    let server = Server::start().await;
    let response = server.post("/generate/text", &body(json!({"stream": true}))).await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!((header("cache-control").as_str(), header("x-accel-buffering").as_str()), ("no-store", "no"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_what_the_reply_had() {
    let server = Server::start().await;
    let more = json!({"return": ["token_ids"], "user": "ann", "metadata": {"page": "home"}});
    let reply = server.ok("/generate/text", &body(more)).await;
    let one = &reply["completions"][0];
    let record: Value =
        server.get(&format!("/completions/{}", one["id"].as_str().unwrap())).await.json().await.unwrap();
    assert_eq!((&record["group"], &record["text"], &record["seed"]), (&reply["id"], &one["text"], &one["seed"]));
    assert_eq!((&record["prompt"], &record["kind"]), (&json!("abc"), &json!("text")));
    assert_eq!((&record["tokens"], &record["params"]), (&one["token_ids"], &reply["params"]));
    assert_eq!(record["metadata"]["page"], "home");
    assert_eq!(record["feedback"], json!([]));
    assert!(!record.to_string().contains("ann"), "the user's id is nowhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_stored_is_not() {
    let server = Server::start().await;
    let reply = server.ok("/generate/text", &body(json!({"store": false}))).await;
    let id = reply["completions"][0]["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/completions/{id}")).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_completion_is_gone() {
    let server = Server::start().await;
    let path = format!("/completions/{}", server.completion().await);
    assert_eq!(server.get(&format!("{path}/image")).await.status(), 404, "a text has no picture");
    assert_eq!(server.delete(&path).await, 204);
    assert_eq!(server.delete(&path).await, 404);
    assert_eq!(server.get(&path).await.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_stopping_at_eos_the_whole_canvas_comes_back() {
    let server = Server::start().await;
    let reply = server.ok("/generate/text", &body(json!({"return": ["token_ids"], "n": 8}))).await;
    let canvases: Vec<&Vec<Value>> =
        reply["completions"].as_array().unwrap().iter().map(|one| one["token_ids"].as_array().unwrap()).collect();
    assert!(
        canvases.iter().all(|ids| ids.len() == 16 && ids.iter().all(|id| id.as_u64().unwrap() <= u64::from(EOS + 3)))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approximation_is_asked_for_by_name_echoed_and_cheaper() {
    let server = Server::of(crate::golden::model("llada"), Arc::default(), 64, async |_, _| ()).await;
    let ask = |fidelity: &str, vicinity: usize| {
        json!({"prompt_token_ids": [97, 98, 99], "max_tokens": 16, "steps": 16, "block_length": 8, "seed": 1,
            "stop_at_eos": false, "fidelity": fidelity, "vicinity": vicinity})
    };
    // A block's first step has all 19 positions, the seven others the suffix or the block, and their neighbours.
    for (fidelity, vicinity, rows) in [
        ("exact", 0, 16 * 19),
        ("prefix", 0, 19 + 7 * 16 + 19 + 7 * 8),
        ("prefix", 2, 19 + 7 * 18 + 19 + 7 * 10),
        ("dual", 0, 2 * (19 + 7 * 8)),
        ("dual", 2, 19 + 7 * 12 + 19 + 7 * 10),
        ("dual", 11, 16 * 19),
    ] {
        let reply = server.ok("/generate/text", &ask(fidelity, vicinity)).await;
        assert_eq!((&reply["params"]["fidelity"], &reply["params"]["vicinity"]), (&json!(fidelity), &json!(vicinity)));
        assert_eq!(reply["completions"][0]["positions_evaluated"], rows, "{fidelity}");
        assert_eq!(reply["completions"][0]["steps"], 16);
    }
    let mut guided = ask("dual", 0);
    guided["guidance_scale"] = json!(1);
    let response = server.post("/generate/text", &guided).await;
    assert_eq!(response.status(), 400);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["field"], "fidelity");
    assert!(problem["detail"].as_str().unwrap().contains("only exact is possible here"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_goes_by_blocks_has_its_own_defaults() {
    let server = Server::of(crate::golden::model("sdar"), Arc::default(), 64, async |_, _| ()).await;
    let ask = json!({"prompt_token_ids": [97, 98], "max_tokens": 10, "stop_at_eos": false, "return": ["token_ids"]});
    let reply = server.ok("/generate/text", &ask).await;
    let params = &reply["params"];
    assert_eq!((&params["block_length"], &params["steps"]), (&json!(4), &json!(4)));
    assert_eq!(params["sampler"], json!({"kind": "low_confidence_dynamic", "threshold": 0.85}));
    // The official run with these settings (tests/golden/sdar).
    let official = json!([258, 189, 189, 258, 251, 189, 32, 32, 105, 32]);
    assert_eq!(reply["completions"][0]["token_ids"], official);
}
