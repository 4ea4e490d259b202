use serde_json::{Value, json};

use super::*;
use crate::api::generate::common::tests::served;
use crate::engine::job::ImageSampler;

fn plan(body: Value) -> Result<Plan, ApiError> {
    let request: ImageRequest = serde_json::from_value(body).unwrap();
    let defaults =
        ImageDefaults { steps: 16, guidance_scale: 2.0, temperature: 1.0, token_temperature: 0.5, previews: 8 };
    request.plan(&served(), &ApiLimits::default(), &defaults)
}

fn params(body: Value) -> ImageParams {
    match plan(body).unwrap().request.task {
        Task::Image(params) => params,
        Task::Text(_) => panic!("a text"),
    }
}

fn refused(field: &str, value: Value) -> (String, Option<Value>) {
    let mut body = json!({"prompt": "x"});
    body[field] = value;
    let problem = plan(body).unwrap_err().problem();
    assert!(problem.hint.is_some(), "{field} has no hint");
    assert_eq!(problem.status, 400);
    (problem.field.unwrap(), problem.limit)
}

#[test]
fn absent_fields_get_the_defaults() {
    let params = params(json!({"prompt": "x"}));
    assert_eq!((params.steps, params.guidance_scale, params.temperature), (16, 2.0, 1.0));
    assert_eq!((params.schedule, params.sampler, params.grid), (Schedule::Cosine, ImageSampler::Maskgit, (8, 8)));
    assert_eq!(params.preview_every, 0, "a plain reply has no previews");
}

#[test]
fn every_bound_is_enforced() {
    for (field, over, limit) in [
        ("n", json!(17), json!(16)),
        ("steps", json!(1025), json!(1024)),
        ("steps", json!(0), json!(1)),
        ("guidance_scale", json!(51), json!(50.0)),
        ("temperature", json!(11), json!(10.0)),
        ("token_temperature", json!(11), json!(10.0)),
        ("grid", json!([65, 64]), json!(4096)),
        ("grid", json!([0, 8]), json!(1)),
        ("preview_every", json!(1025), json!(1024)),
        ("deadline_ms", json!(600_001), json!(600_000)),
        ("initial_codes", json!([1, 2]), json!(64)),
        ("schedule", json!("quadratic"), json!(["cosine", "linear", "pow2", "sigmoid"])),
    ] {
        assert_eq!(refused(field, over), (field.to_owned(), Some(limit)));
    }
    assert_eq!(refused("sampler", json!({"kind": "halton"})).1, Some(json!(["maskgit", "maskgit_compat", "emerge"])));
    assert_eq!(plan(json!({"prompt": "x".repeat(8193)})).unwrap_err().problem().limit, Some(8192.into()));
}

#[test]
fn known_codes_are_one_per_cell_and_in_the_codebook() {
    let mut codes = vec![json!(null); 64];
    codes[3] = json!(15);
    assert_eq!(params(json!({"prompt": "x", "initial_codes": codes})).initial_codes[3], Some(15));
    codes[3] = json!(16);
    assert_eq!(refused("initial_codes", json!(codes)), ("initial_codes[3]".to_owned(), Some(15.into())));
}

#[test]
fn streams_spread_their_previews() {
    let every = |body: Value| params(body).preview_every;
    assert_eq!(every(json!({"prompt": "x", "stream": true})), 2);
    assert_eq!(every(json!({"prompt": "x", "stream": true, "steps": 4})), 1);
    assert_eq!(every(json!({"prompt": "x", "stream": true, "preview_every": 0})), 0);
}

#[test]
fn a_model_without_images_says_so() {
    let request: ImageRequest = serde_json::from_value(json!({"prompt": "x"})).unwrap();
    let served = Served { image: None, ..served() };
    let error = request.plan(&served, &ApiLimits::default(), &ImageDefaults::default()).unwrap_err();
    assert_eq!(error.problem().detail, "prompt: this model draws no images");
}

#[test]
fn token_draws_are_sharp_by_default_and_greedy_at_temperature_0() {
    let drawn = |body: Value| params(body).token_temperature;
    assert_eq!(drawn(json!({"prompt": "x"})), Some(0.5));
    assert_eq!(drawn(json!({"prompt": "x", "token_temperature": 1.5})), Some(1.5));
    assert_eq!(drawn(json!({"prompt": "x", "temperature": 0})), None);
    assert_eq!(drawn(json!({"prompt": "x", "sampler": {"kind": "emerge"}})), None);
}
