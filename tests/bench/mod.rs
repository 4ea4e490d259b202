//! The plain PyTorch loop that `tests/bench/run` measures the server against gives the server's tokens, so that what is
//! compared is the same work. Needs a Python with PyTorch: `PEFT_PYTHON` (tests/run makes one) or the system's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lacuna::starter::{self, model};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Server, get, post};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// What `loop.py` has to know of the built-in model.
fn facts() -> Value {
    serde_json::from_slice(&fs::read(folder().join("bench/starter.json")).unwrap()).unwrap()
}

#[test]
fn the_built_in_model_is_as_the_loop_has_it() {
    let (facts, config) = (facts(), serde_json::to_value(starter::config()).unwrap());
    for (field, value) in config.as_object().unwrap().iter().filter(|(field, _)| *field != "variant") {
        assert_eq!(&facts[field], value, "{field}");
    }
    let model = model::load(&candle_core::Device::Cpu).unwrap();
    let spec = model.backbone.spec();
    let image = spec.image.as_ref().unwrap();
    let (before, after) = model.layout.image_frame(&[]);
    let mut banned = spec.banned_ids.clone();
    banned.push(spec.mask_id);
    banned.sort_unstable();
    banned.dedup();
    for (field, value) in [
        ("mask_token_id", json!(spec.mask_id)),
        ("eos_token_id", json!(spec.eos_ids[0])),
        ("text_ids", json!([spec.text_ids.start, spec.text_ids.end])),
        ("codes", json!([image.codes.start, image.codes.end])),
        ("cells", json!(image.grid.0 * image.grid.1)),
        ("banned_ids", json!(banned)),
        ("empty", json!(before)),
        ("after", json!(after)),
    ] {
        assert_eq!(facts[field], value, "{field}");
    }
}

fn python() -> Option<PathBuf> {
    let named = std::env::var_os("PEFT_PYTHON").map(PathBuf::from);
    let has_torch = |python: &PathBuf| {
        Command::new(python).args(["-c", "import torch"]).output().is_ok_and(|output| output.status.success())
    };
    named.into_iter().chain([PathBuf::from("/usr/bin/python3")]).find(has_torch)
}

/// The loop's tokens for `prompts` on the model in `model`.
fn looped(python: &Path, model: &Path, prompts: &[Value]) -> Vec<Value> {
    let scratch = TempDir::new().unwrap();
    let file = scratch.path().join("prompts.json");
    fs::write(&file, Value::from(prompts).to_string()).unwrap();
    let output = Command::new(python)
        .args(["-W", "ignore", "-B"])
        .arg(folder().join("bench/loop.py"))
        .args([model, &file])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out: Value = serde_json::from_slice(&output.stdout).unwrap();
    out["completions"].as_array().unwrap().iter().map(|completion| completion["tokens"].clone()).collect()
}

/// The server's answer, and the prompt as the model saw it.
async fn served(server: &Server, path: &str, body: &Value) -> (Value, Value) {
    let http = Client::new();
    let (status, answer) = post(&http, &format!("{}{path}", server.url), body).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let made = answer.pointer("/completions/0").or_else(|| answer.pointer("/images/0")).unwrap().clone();
    let url = format!("{}/completions/{}", server.url, made["id"].as_str().unwrap());
    let (_, record) = get(&http, &url).await.unwrap();
    (made, record["prompt_token_ids"].clone())
}

#[tokio::test]
async fn the_loop_gives_the_servers_tokens_on_a_tiny_model() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with PyTorch; install python3-torch, or set PEFT_PYTHON");
        return;
    };
    let (data, model) = (TempDir::new().unwrap(), folder().join("golden/llada"));
    let server = Server::start(data.path(), &["--model", model.to_str().unwrap()]);
    let (mut prompts, mut expected) = (Vec::new(), Vec::new());
    for (i, (max_tokens, steps, block_length)) in
        [(16, 16, 16), (32, 8, 8), (32, 32, 32), (24, 6, 12)].iter().enumerate()
    {
        let ids: Vec<usize> = (0..5 + 9 * i).map(|at| 1 + (at * 37 + i * 11) % 250).collect();
        let sizes = json!({"max_tokens": max_tokens, "steps": steps, "block_length": block_length});
        let with = |fields: Value| {
            let mut body = sizes.clone();
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            body
        };
        prompts.push(with(json!({"ids": ids})));
        let how = json!({"prompt_token_ids": ids, "temperature": 0, "stop_at_eos": false, "return": ["token_ids"]});
        let (made, seen) = served(&server, "/generate/text", &with(how)).await;
        assert_eq!(seen, json!(ids));
        expected.push(made["token_ids"].clone());
    }
    assert_eq!(looped(&python, &model, &prompts), expected);
}

#[tokio::test]
async fn the_loop_gives_the_servers_pictures_and_answers() {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with PyTorch; install python3-torch, or set PEFT_PYTHON");
        return;
    };
    let (data, model) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::copy(folder().join("bench/starter.json"), model.path().join("config.json")).unwrap();
    fs::copy(folder().join("../src/starter/model.safetensors"), model.path().join("model.safetensors")).unwrap();
    let server = Server::start(data.path(), &[]);
    let (facts, mut prompts, mut expected) = (facts(), Vec::new(), Vec::new());
    for caption in ["a red circle", "two green squares"] {
        // Frames of different lengths: the loop pads the shorter one.
        for (steps, guidance) in [(4, 1.0), (6, 0.0)] {
            let body = json!({"prompt": caption, "steps": steps, "guidance_scale": guidance, "temperature": 0,
                "sampler": {"kind": "maskgit"}, "schedule": "cosine", "return": ["codes"]});
            let (made, before) = served(&server, "/generate/image", &body).await;
            prompts.push(json!({"before": before, "after": facts["after"], "empty": facts["empty"],
                "cells": facts["cells"], "steps": steps, "guidance_scale": guidance}));
            expected.push(made["codes"].clone());
        }
    }
    let sizes = (16, 8, 8);
    let body = json!({"prompt": "what is 7 * 8 ?", "max_tokens": sizes.0, "steps": sizes.1, "block_length": sizes.2,
        "temperature": 0, "stop_at_eos": false, "return": ["token_ids"]});
    let (made, ids) = served(&server, "/generate/text", &body).await;
    prompts.push(json!({"ids": ids, "max_tokens": sizes.0, "steps": sizes.1, "block_length": sizes.2}));
    expected.push(made["token_ids"].clone());
    assert_eq!(looped(&python, model.path(), &prompts), expected);
}
