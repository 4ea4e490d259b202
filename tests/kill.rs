//! A server that is killed under load loses no rating that it acknowledged, and comes up again every time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::server::{Server, post};

const ROUNDS: usize = 6;
const CLIENTS: usize = 4;
/// Ratings acknowledged in a round before the kill; more are under way by then.
const ENOUGH: usize = 24;

/// Feedback id to the value that was acknowledged.
type Acknowledged = BTreeMap<String, f64>;

/// Generates and rates until the server is gone.
async fn client(
    url: String,
    round: usize,
    client: usize,
    count: Arc<AtomicUsize>,
    enough: Arc<Notify>,
) -> Acknowledged {
    let http = reqwest::Client::new();
    let mut acknowledged = Acknowledged::new();
    loop {
        let seed = round * 1000 + client * 100 + acknowledged.len();
        let request = json!({ "prompt": "2 + 3 =", "max_tokens": 8, "steps": 2, "n": 2, "seed": seed });
        let Ok((status, answer)) = post(&http, &format!("{url}/generate/text"), &request).await else {
            return acknowledged;
        };
        assert_eq!(status, 200, "{answer}");
        for (i, completion) in answer["completions"].as_array().unwrap().iter().enumerate() {
            let value = (seed * 2 + i) as f64;
            let rating = json!({ "completion_id": completion["id"], "metric": "score", "value": value });
            let Ok((status, answer)) = post(&http, &format!("{url}/feedback"), &rating).await else {
                return acknowledged;
            };
            assert_eq!(status, 201, "{answer}");
            // An id that arrived whole was acknowledged: from here on the row must survive everything.
            acknowledged.insert(answer["feedback_id"].as_str().unwrap().to_owned(), value);
            if count.fetch_add(1, Ordering::SeqCst) + 1 == ENOUGH {
                enough.notify_one();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_acknowledged_feedback() {
    let data = TempDir::new().unwrap();
    let mut acknowledged = Acknowledged::new();
    for round in 0..ROUNDS {
        let mut server = Server::start(data.path(), &["--log", "warn"]);
        let (count, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| tokio::spawn(client(server.url.clone(), round, id, Arc::clone(&count), Arc::clone(&enough))))
            .collect();
        enough.notified().await;
        server.kill();
        for client in clients {
            acknowledged.extend(client.await.unwrap());
        }
    }
    assert!(acknowledged.len() >= ROUNDS * ENOUGH);
    // Up once more, so that recovery has run, and down the polite way.
    let mut server = Server::start(data.path(), &["--log", "warn"]);
    server.signal("TERM");
    assert!(server.wait().success());
    let stored = ratings(&data).await;
    let lost: Vec<_> = acknowledged.iter().filter(|(id, value)| stored.get(*id) != Some(value)).collect();
    assert!(lost.is_empty(), "acknowledged but not stored: {lost:?}");
}

/// Every rating in the database, by its id.
async fn ratings(data: &TempDir) -> Acknowledged {
    let options = SqliteConnectOptions::new().filename(data.path().join("lacuna.db"));
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let rows = sqlx::query("select id, value_num from feedback").fetch_all(&pool).await.unwrap();
    let id = |row: &sqlx::sqlite::SqliteRow| uuid::Uuid::from_slice(row.get(0)).unwrap().to_string();
    rows.iter().map(|row| (id(row), row.get(1))).collect()
}
