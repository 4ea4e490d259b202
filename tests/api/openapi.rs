//! The OpenAPI document is the committed one.

use std::path::Path;

use serde_json::Value;

use super::server::Server;

/// After a wanted change: `UPDATE_OPENAPI=1 cargo test --release openapi`, or `lacuna openapi > openapi/openapi.json`.
#[test]
fn the_document_has_not_drifted() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let document = lacuna::api::openapi::document().unwrap();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let hint = "the API has changed; run `lacuna openapi > openapi/openapi.json` and look at the difference";
    assert!(committed == document, "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_served_and_every_reference_resolves() {
    let server = Server::start().await;
    let document: Value = server.get("/openapi.json").await.json().await.unwrap();
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                references.push(reference.clone());
            }
            map.values().for_each(|value| collect(value, references));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}
