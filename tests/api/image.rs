//! `POST /generate/image`, plain, streamed and as bytes; the picture decoded again from the log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::DynamicImage;
use reqwest::Method;
use serde_json::{Value, json};

use super::server::Server;
use crate::properties::fake::CODES;

fn body(more: Value) -> Value {
    let mut body = json!({"prompt": "abc", "steps": 4, "seed": 7});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn picture(item: &Value) -> DynamicImage {
    image::load_from_memory(&STANDARD.decode(item["b64"].as_str().unwrap()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_has_pictures_and_what_was_asked_for() {
    let server = Server::start().await;
    let reply =
        server.ok("/generate/image", &body(json!({"n": 2, "return": ["codes", "commit_steps", "logprobs"]}))).await;
    let images = reply["images"].as_array().unwrap();
    assert_eq!(images.len(), 2);
    for one in images {
        let picture = picture(one);
        assert_eq!((picture.width(), picture.height()), (8, 8));
        assert_eq!((&one["width"], &one["height"], &one["format"]), (&json!(8), &json!(8), &json!("png")));
        for list in ["codes", "commit_steps", "logprobs"] {
            assert_eq!(one[list].as_array().unwrap().len(), 16, "{list}");
        }
        assert!(one["codes"].as_array().unwrap().iter().all(|code| code.as_u64().unwrap() < CODES.len() as u64));
    }
    assert_eq!(reply["usage"]["completion_tokens"], 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_is_what_it_says() {
    let server = Server::start().await;
    for (format, magic) in [("png", &b"\x89PNG"[..]), ("jpeg", &[0xFF, 0xD8]), ("webp", b"RIFF")] {
        let reply = server.ok("/generate/image", &body(json!({"format": format}))).await;
        let bytes = STANDARD.decode(reply["images"][0]["b64"].as_str().unwrap()).unwrap();
        assert!(bytes.starts_with(magic), "{format}");
        assert_eq!(reply["images"][0]["format"], format);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_image_png_returns_the_bytes() {
    let server = Server::start().await;
    let send = async |more: Value| {
        let request = server.request(Method::POST, "/generate/image").header("accept", "image/png");
        request.json(&body(more)).send().await.unwrap()
    };
    let response = send(json!({})).await;
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["x-seed"], "7");
    let id = response.headers()["x-completion-id"].to_str().unwrap().to_owned();
    let bytes = response.bytes().await.unwrap();
    let stored = server.get(&format!("/completions/{id}/image")).await.bytes().await.unwrap();
    assert_eq!(bytes, stored, "the log decodes to the same file");
    let several: Value = send(json!({"n": 2})).await.json().await.unwrap();
    assert_eq!((&several["status"], &several["field"]), (&json!(400), &json!("n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_replays_an_image_step_by_step() {
    let server = Server::start().await;
    let reply = server.ok("/generate/image", &body(json!({"return": ["codes", "commit_steps"]}))).await;
    let one = &reply["images"][0];
    let path = format!("/completions/{}/image", one["id"].as_str().unwrap());
    let shown = async |query: &str| {
        let response = server.get(&format!("{path}{query}")).await;
        assert_eq!(response.status(), 200);
        image::load_from_memory(&response.bytes().await.unwrap()).unwrap().to_rgb8()
    };
    assert_eq!(shown("").await, picture(one).to_rgb8());
    let first = shown("?step=0").await;
    for (cell, step) in one["commit_steps"].as_array().unwrap().iter().enumerate() {
        let pixel = first.get_pixel(cell as u32 % 4 * 2, cell as u32 / 4 * 2).0[0];
        let known = step.as_i64().unwrap() <= 0;
        assert_eq!(u64::from(pixel) == one["codes"][cell].as_u64().unwrap(), known, "cell {cell}");
    }
    assert!(shown("?format=webp&step=9").await == shown("").await);
    assert_eq!(server.get(&format!("{path}?step=x")).await.status(), 400);
    assert_eq!(server.get(&format!("{path}?oops=1")).await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_codes_stay() {
    let server = Server::start().await;
    let mut codes = vec![Value::Null; 16];
    codes[5] = json!(9);
    let reply =
        server.ok("/generate/image", &body(json!({"initial_codes": codes, "return": ["codes", "commit_steps"]}))).await;
    let one = &reply["images"][0];
    assert_eq!((&one["codes"][5], &one["commit_steps"][5]), (&json!(9), &json!(-1)));
    assert_eq!(reply["usage"]["completion_tokens"], 15);
    assert!(reply["params"].get("initial_codes").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_shows_the_picture_filling_in() {
    let server = Server::start().await;
    let more = json!({"stream": true, "stream_mode": "edits", "preview_every": 1, "return": ["codes"]});
    let events = server.events("/generate/image", &body(more)).await;
    let named = |name: &str| events.iter().filter(|(event, _)| event == name).map(|(_, data)| data).collect::<Vec<_>>();
    let previews = named("preview");
    assert!(!previews.is_empty());
    for preview in &previews {
        assert_eq!((picture(preview).width(), &preview["format"]), (8, &json!("png")));
        assert!(preview["step"].is_u64() && preview["index"] == 0);
    }
    let edits: Vec<&Value> = named("step").into_iter().flat_map(|step| step["edits"].as_array().unwrap()).collect();
    assert_eq!(edits.len(), 16, "every cell commits once");
    let done = &events.last().unwrap().1["images"][0];
    for edit in edits {
        assert!(edit.get("text").is_none());
        assert_eq!(edit["token"], done["codes"][edit["position"].as_u64().unwrap() as usize]);
    }
    assert!(named("step").iter().all(|step| step.get("committed").is_none()));
}
