//! `/adapters`: in, into service, out of it, and out of the server; what is refused, and that it leaves no trace.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;

use lacuna::adapters::Base;
use lacuna::adapters::peft::PeftFiles;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::learning::{Field, adapter, base, form};
use super::server::Server;

async fn get(server: &Server, path: &str) -> Value {
    let response = server.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.unwrap()
}

/// A candidate.
async fn candidate(server: &Server, name: &str, value: f32) -> (String, PeftFiles) {
    let files = adapter(&base(&server.app.engine), value);
    let response = server.import(name, &files).await;
    assert_eq!(response.status(), 201);
    let place = response.headers()["location"].to_str().unwrap().to_owned();
    let made: Value = response.json().await.unwrap();
    let version = made["version"].as_str().unwrap().to_owned();
    assert_eq!(place, format!("/adapters/{version}"));
    assert_eq!(
        (&made["status"], &made["loaded"], &made["gate_passed"]),
        (&json!("candidate"), &json!(true), &Value::Null)
    );
    (version, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_adapter_is_served_when_approved_and_taken_back() {
    let server = Server::learning().await;
    let (version, _) = candidate(&server, "taste", 1.0).await;
    let list = get(&server, "/adapters").await;
    assert_eq!((&list["adapters"][0]["version"], &list["adapters"][0]["rank"]), (&json!("taste@1"), &json!(2)));
    assert_eq!(list["routes"], json!({"generation": 0, "active": "base@0", "canary": null}));

    let (plain, before) = server.answer(None).await;
    let (pinned, with) = server.answer(Some(&version)).await;
    assert_eq!((plain.as_str(), pinned.as_str()), ("base@0", "taste@1"));
    assert_ne!(before["token_ids"], with["token_ids"]);

    let routes = server.ok("/adapters/taste@1/approve", &json!({"reason": "reads well"})).await;
    assert_eq!(routes, json!({"generation": 1, "active": "taste@1", "canary": null}));
    let (served, after) = server.answer(None).await;
    assert_eq!((served.as_str(), &after["token_ids"]), ("taste@1", &with["token_ids"]));
    assert_eq!(server.answer(Some("base@0")).await.1["token_ids"], before["token_ids"]);
    assert_eq!(get(&server, "/training").await["current"], "taste@1");

    server.ok("/feedback", &json!({"completion_id": after["id"], "metric": "fun", "value": 0.5})).await;
    let record = get(&server, "/adapters/taste%401?metric=fun").await;
    assert_eq!((&record["status"], &record["manifest"]["algorithm"]), (&json!("active"), &json!("import")));
    assert_eq!((&record["outcomes"]["metric"], &record["outcomes"]["mean"]), (&json!("fun"), &json!(0.5)));
    assert_eq!(get(&server, "/adapters/taste@1").await["outcomes"]["ratings"], 0, "thumbs by default");

    let back = server.request(Method::POST, "/adapters/rollback").send().await.unwrap();
    assert_eq!(back.status(), 200, "no body is needed");
    assert_eq!(back.json::<Value>().await.unwrap(), json!({"generation": 2, "active": "base@0", "canary": null}));
    assert_eq!(server.answer(None).await.1["token_ids"], before["token_ids"]);
    assert_eq!(get(&server, "/adapters/taste@1").await["status"], "rolled_back");
    for path in ["/adapters/rollback", "/adapters/taste@1/approve", "/adapters/taste@1/reject"] {
        assert_eq!(server.post(path, &json!({})).await.status(), 409, "{path}");
    }
    let audit = get(&server, "/adapters/audit").await;
    let rows = audit["rows"].as_array().unwrap();
    let seqs: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).rev().collect::<Vec<_>>());
    assert!(rows.iter().all(|row| row["actor"] == "operator" && row["sha256"].as_str().unwrap().len() == 64));
    assert!(rows.iter().any(|row| row.to_string().contains("reads well")));
    assert_eq!(get(&server, "/adapters/audit?limit=1").await["rows"], json!([rows[0]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_has_a_share_until_it_is_approved_for_everybody() {
    let server = Server::learning().await;
    let (first, _) = candidate(&server, "taste", 1.0).await;
    let (second, _) = candidate(&server, "taste", 1.5).await;
    assert_eq!((first.as_str(), second.as_str()), ("taste@1", "taste@2"));
    let routes = server.ok("/adapters/taste@1/approve", &json!({"share": 1})).await;
    assert_eq!(routes["canary"], json!({"version": "taste@1", "share": 1.0}));
    assert_eq!(server.answer(None).await.0, "taste@1", "a share of 1 is everybody");
    let other = server.post("/adapters/taste@2/approve", &json!({"share": 0.5})).await;
    assert_eq!(other.status(), 409, "one canary at a time");
    let routes = server.ok("/adapters/taste@1/approve", &json!({})).await;
    assert_eq!(routes, json!({"generation": 2, "active": "taste@1", "canary": null}));
    server.ok("/adapters/taste@2/approve", &json!({})).await;
    assert_eq!(get(&server, "/adapters/taste@1").await["status"], "retired");
    let routes = server.ok("/adapters/rollback", &json!({"to": "taste@1", "reason": "better before"})).await;
    assert_eq!(routes["active"], "taste@1");
    let (third, _) = candidate(&server, "taste", 0.1).await;
    let rejected = server.post(&format!("/adapters/{third}/reject"), &json!({"reason": "dull"})).await;
    assert_eq!(rejected.status(), 204);
    assert_eq!(server.post(&format!("/adapters/{third}/approve"), &json!({})).await.status(), 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_has_the_files_that_were_sent() {
    let server = Server::learning().await;
    let (version, files) = candidate(&server, "taste", 1.0).await;
    let response = server.get(&format!("/adapters/{version}/archive")).await;
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    assert_eq!(response.headers()["content-disposition"], "attachment; filename=\"taste@1.tar\"");
    let bytes = response.bytes().await.unwrap();
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(bytes.as_ref()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        found.insert(path, content);
    }
    let manifest: Value = serde_json::from_slice(&found.remove("taste@1/manifest.json").unwrap()).unwrap();
    assert_eq!(manifest["id"], "taste@1");
    let expected = [
        ("taste@1/adapter_config.json".to_owned(), files.config),
        ("taste@1/adapter_model.safetensors".to_owned(), files.model),
    ];
    assert!(found == BTreeMap::from(expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_adapter_of_this_base_is_refused_and_leaves_no_trace() {
    let server = Server::learning().await;
    let base = base(&server.app.engine);
    let good = adapter(&base, 1.0);
    let other = adapter(&Base { sha256: "ab".repeat(32), ..base.clone() }, 0.2);
    let (config, model) = ("adapter_config.json", "adapter_model.safetensors");
    let name: Field = ("name", b"taste");
    let refusals: [(&[Field], u16, &str); 10] = [
        (&[name, (config, &good.config), (model, &good.model[..good.model.len() - 1])], 400, model),
        (&[name, (config, &other.config), (model, &other.model)], 400, model),
        (&[name, (config, b"{"), (model, &good.model)], 400, config),
        (&[name, (config, &good.config)], 400, model),
        (&[(config, &good.config), (model, &good.model)], 400, "name"),
        (&[name, name, (config, &good.config), (model, &good.model)], 400, "name"),
        (&[name, ("more", b"x"), (config, &good.config), (model, &good.model)], 400, "more"),
        (&[("name", b"base"), (config, &good.config), (model, &good.model)], 400, "name"),
        (&[("name", b"../x"), (config, &good.config), (model, &good.model)], 400, "name"),
        (&[("name", &[b'x'; 65]), (config, &good.config), (model, &good.model)], 413, ""),
    ];
    for (at, (fields, status, field)) in refusals.into_iter().enumerate() {
        let response = server.upload(fields).await;
        assert_eq!(response.status(), status, "{at}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["field"].as_str().unwrap_or_default(), field, "{at}: {problem}");
        assert!(problem["detail"].as_str().unwrap().len() < 800, "{at}");
    }
    let cut = form(&[name, (config, &good.config)]);
    let request = server.request(Method::POST, "/adapters").header("content-type", "multipart/form-data; boundary=cut");
    assert_eq!(request.body(cut[..cut.len() - 20].to_vec()).send().await.unwrap().status(), 400);
    assert_eq!(server.post("/adapters", &json!({"name": "taste"})).await.status(), 415);
    assert_eq!(get(&server, "/adapters").await["adapters"], json!([]));
    assert_eq!(candidate(&server, "taste", 1.0).await.0, "taste@1", "no number was used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_bounded_in_size_and_number() {
    let server = Server::learning_with(|state| state.adapter_bytes = 1000).await;
    let files = adapter(&base(&server.app.engine), 0.2);
    let response = server.import("taste", &files).await;
    assert_eq!(response.status(), 413);
    let fields: [Field; 2] = [("name", b"taste"), ("adapter_model.safetensors", &[0; 1001])];
    let problem: Value = server.upload(&fields).await.json().await.unwrap();
    assert_eq!((&problem["status"], &problem["limit"]), (&json!(413), &json!(1000)));

    let server = Server::learning_with(|state| state.adapter_transfers = Arc::new(Semaphore::new(0))).await;
    let busy = server.import("taste", &files).await;
    assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (503, "5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_fields_are_checked() {
    let server = Server::learning().await;
    let long = format!("/adapters/{}@1", "a".repeat(5000));
    for path in ["/adapters/taste@1", "/adapters/taste@1/archive", "/adapters/nope", "/adapters/..%2Fx@1", &long] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 404, "{path}");
        assert!(response.text().await.unwrap().len() < 1000);
    }
    for (path, body, status) in [
        ("/adapters/taste@1/approve", json!({}), 404),
        ("/adapters/taste@1/reject", json!({}), 404),
        ("/adapters/taste@1/approve", json!({"share": 0}), 400),
        ("/adapters/taste@1/approve", json!({"share": 1.5}), 400),
        ("/adapters/taste@1/approve", json!({"reason": "x".repeat(501)}), 400),
        ("/adapters/taste@1/approve", json!({"why": "x"}), 400),
        ("/adapters/rollback", json!({"to": "nope"}), 404),
        ("/adapters/rollback", json!({}), 409),
    ] {
        assert_eq!(server.post(path, &body).await.status(), status, "{path} {body}");
    }
    assert_eq!(server.get("/adapters/audit?limit=1001").await.status(), 400);
    assert_eq!(server.get("/adapters/taste@1?metric=a%20b").await.status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_adapters_says_so() {
    let server = Server::start().await;
    for (method, path) in [
        (Method::GET, "/adapters"),
        (Method::GET, "/adapters/a@1"),
        (Method::GET, "/adapters/a@1/archive"),
        (Method::POST, "/adapters/a@1/approve"),
        (Method::POST, "/adapters/a@1/reject"),
        (Method::POST, "/adapters/rollback"),
        (Method::GET, "/adapters/audit"),
        (Method::POST, "/adapters"),
        (Method::GET, "/training"),
        (Method::POST, "/training/trigger"),
        (Method::POST, "/training/pause"),
        (Method::POST, "/training/resume"),
        (Method::POST, "/training/cancel"),
        (Method::GET, "/training/runs"),
        (Method::GET, "/training/runs/0199b3a4-7c1e-7d10-8a00-000000000000"),
    ] {
        let response = server.request(method.clone(), path).send().await.unwrap();
        assert_eq!(response.status(), 409, "{method} {path}");
        assert_eq!(response.json::<Value>().await.unwrap()["type"], "urn:lacuna:problem:learning_off");
    }
}
