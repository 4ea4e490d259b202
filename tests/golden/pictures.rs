//! Pictures that come with a request, on MMaDA's folder: texts about them, and parts of them drawn anew.

use std::io::Cursor;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, RgbImage};
use lacuna::models::{ImageCodec, Model, vq};
use lacuna::text::Message;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::served::serve;
use super::{folder, ids, json as golden, model};
use crate::api::server::Server;

const GRID: (usize, usize) = (4, 4);
/// Where the golden sequence's codes begin and end, and its question begins.
const START: usize = 2;
const END: usize = 18;

/// MMaDA with its codec.
pub(super) fn painter() -> Model {
    let codec = vq::load(&folder("mmada").join("magvitv2"), &candle_core::Device::Cpu).unwrap();
    Model { codec: Some(codec), ..model("mmada") }
}

fn codec(model: &Model) -> &dyn ImageCodec {
    model.codec.as_deref().unwrap()
}

fn png(picture: impl Into<DynamicImage>) -> String {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    STANDARD.encode(bytes.into_inner())
}

/// A picture, and the codes that the model sees in it.
fn picture(model: &Model, grid: (usize, usize)) -> (RgbImage, Vec<u32>) {
    let codes: Vec<u32> = (0..grid.0 * grid.1).map(|cell| (cell * 3) as u32).collect();
    let picture = codec(model).decode(&codes, grid).unwrap();
    let seen = codec(model).encode(&picture, grid).unwrap();
    (picture, seen)
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A short text with these fields.
async fn text(server: &Server, more: Value) -> Value {
    let body = json!({"max_tokens": 16, "steps": 8, "block_length": 8, "stop_at_eos": false,
        "return": ["token_ids", "commit_steps"]});
    server.ok("/generate/text", &with(body, more)).await
}

async fn refused(server: &Server, route: &str, body: Value) -> (String, Value) {
    let response = server.post(route, &body).await;
    let status = response.status();
    let problem: Value = response.json().await.unwrap();
    assert_eq!(status, 400, "{problem}");
    (problem["field"].as_str().unwrap_or_default().to_owned(), problem)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_about_a_picture_is_that_after_the_official_layout_of_its_codes() {
    let model = painter();
    let (picture, seen) = picture(&model, GRID);
    let mut official = ids(&golden("mmada", "golden.json")["mmu"]["input_ids"][0]);
    official.splice(START..END, seen.iter().map(|code| code + 300));
    let said = [Message { role: "user".into(), content: "What?".into() }];
    let conversation = model.layout.conversation(&model.tokenizer, &said).unwrap();
    let conversation = [&official[..=END], &conversation].concat();
    let server = serve(model).await;
    let image = png(picture);
    for (asked, sequence) in [
        (json!({"prompt": "What?"}), &official),
        (json!({"messages": [{"role": "user", "content": "What?"}]}), &conversation),
        (json!({"prompt_token_ids": official[END + 1..]}), &official),
    ] {
        let reply = text(&server, with(asked.clone(), json!({"image": image}))).await;
        let by_ids = text(&server, json!({"prompt_token_ids": sequence})).await;
        for part in ["token_ids", "commit_steps"] {
            assert_eq!(reply["completions"][0][part], by_ids["completions"][0][part], "{asked}");
        }
        assert_eq!(reply["usage"]["prompt_tokens"], sequence.len(), "{asked}");
        let id = reply["completions"][0]["id"].as_str().unwrap();
        let record: Value = server.get(&format!("/completions/{id}")).await.json().await.unwrap();
        assert_eq!(ids(&record["prompt_token_ids"]), **sequence, "{asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_read_at_the_grid_that_was_asked_for() {
    let model = painter();
    let (picture, seen) = picture(&model, (2, 4));
    let server = serve(model).await;
    let more = json!({"prompt": "What?", "image": png(picture), "grid": [2, 4], "guidance_scale": 1,
        "negative_prompt": "No"});
    let reply = text(&server, more).await;
    let id = reply["completions"][0]["id"].as_str().unwrap();
    let record: Value = server.get(&format!("/completions/{id}")).await.json().await.unwrap();
    let codes: Vec<u32> = ids(&record["prompt_token_ids"])[START..START + 8].iter().map(|id| id - 300).collect();
    assert_eq!(codes, seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_that_cannot_be_looked_at_are_refused_by_their_field() {
    let small = png(RgbImage::new(8, 8));
    let server = serve(painter()).await;
    let wide = png(GrayImage::new(4097, 1));
    for (more, field) in [
        (json!({"prompt": "x", "image": "?"}), "image"),
        (json!({"prompt": "x", "image": "AAAA"}), "image"),
        (json!({"prompt": "x", "image": wide}), "image"),
        (json!({"template": "a[[2]]", "image": small}), "image"),
        (json!({"prompt": "x", "image": small, "grid": [0, 4]}), "grid"),
        (json!({"prompt": "x", "image": small, "grid": [64, 65]}), "grid"),
        (json!({"prompt": "x", "grid": [4, 4]}), "grid"),
        // What is wrong without the picture is found without reading it.
        (json!({"prompt": "x", "image": "?", "n": 17}), "n"),
    ] {
        assert_eq!(refused(&server, "/generate/text", more.clone()).await.0, field, "{more}");
    }
    let blind = serve(model("llada")).await;
    let (field, problem) = refused(&blind, "/generate/text", json!({"prompt": "x", "image": small})).await;
    assert!(field == "image" && problem["detail"].as_str().unwrap().contains("no pictures"), "{problem}");
    // MMaDA without a codec only writes.
    let writer = serve(model("mmada")).await;
    assert_eq!(refused(&writer, "/generate/text", json!({"prompt": "x", "image": small})).await.0, "image");
    assert_eq!(refused(&writer, "/generate/image", json!({"prompt": "x"})).await.0, "prompt");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_pictures_at_a_time_are_told_to_wait() {
    let none = async |state: &mut lacuna::api::AppState, _: &std::path::Path| {
        state.uploads = Arc::new(Semaphore::new(0));
    };
    let server = Server::of(painter(), Arc::default(), 64, none).await;
    let response = server.post("/generate/text", &json!({"prompt": "x", "image": png(RgbImage::new(8, 8))})).await;
    assert_eq!((response.status().as_u16(), response.headers().contains_key("retry-after")), (503, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mask_leaves_black_of_a_picture_stays() {
    let model = painter();
    let (picture, seen) = picture(&model, GRID);
    let side = picture.width();
    let server = serve(model).await;
    let mask = GrayImage::from_fn(side, side, |x, _| Luma([if x < side / 2 { 0 } else { 255 }]));
    let kept: Vec<Option<u32>> = seen.iter().enumerate().map(|(i, &code)| (i % 4 < 2).then_some(code)).collect();
    let body = json!({"prompt": "a", "steps": 4, "seed": 5, "return": ["codes", "commit_steps"]});
    let ask = async |more: Value| server.ok("/generate/image", &with(body.clone(), more)).await;
    let drawn = ask(json!({"image": png(picture.clone()), "mask": png(mask.clone())})).await;
    for (i, known) in kept.iter().enumerate() {
        let (code, step) = (&drawn["images"][0]["codes"][i], &drawn["images"][0]["commit_steps"][i]);
        assert_eq!(*step == -1, known.is_some(), "cell {i}");
        assert!(known.is_none_or(|known| *code == known), "cell {i}");
    }
    let by_codes = ask(json!({"initial_codes": kept})).await;
    assert_eq!(drawn["images"][0]["codes"], by_codes["images"][0]["codes"]);

    let (image, mask) = (png(picture), png(mask));
    let small = png(GrayImage::from_pixel(4, 4, Luma([255])));
    for (more, field) in [
        (json!({"image": image}), "mask"),
        (json!({"mask": mask}), "image"),
        (json!({"image": image, "mask": mask, "initial_codes": kept}), "initial_codes"),
        (json!({"image": image, "mask": small}), "mask"),
        (json!({"image": image, "mask": png(GrayImage::new(side, side))}), "mask"),
        (json!({"image": image, "mask": mask, "grid": [2, 4]}), "image"),
        (json!({"image": "?", "mask": mask}), "image"),
    ] {
        assert_eq!(refused(&server, "/generate/image", with(body.clone(), more.clone())).await.0, field, "{more}");
    }
}
