//! The playground in real Chromium against the real server: what a person rates there is in the database.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;
use uuid::Uuid;

use crate::server::Server;

#[tokio::test]
async fn the_playground_generates_and_its_ratings_are_stored() {
    if std::env::var_os("LACUNA_SKIP_BROWSER").is_some() {
        return;
    }
    let data = TempDir::new().unwrap();
    let mut server = Server::start(data.path(), &["--log", "warn"]);
    let report = drive(&server);
    server.signal("TERM");
    assert!(server.wait().success());

    let options = SqliteConnectOptions::new().filename(data.path().join("lacuna.db"));
    let pool = SqlitePool::connect_with(options).await.unwrap();
    let rated = report["rated"].as_array().unwrap();
    assert!(rated.len() >= 2, "both kinds are rated: {report}");
    for rating in rated {
        let value = f64::from(u8::from(rating["value"].as_bool().unwrap()));
        let id = rating["completion_id"].as_str().unwrap();
        let stored = values(&pool, id, rating["metric"].as_str().unwrap()).await;
        assert!(stored.contains(&value), "{rating} is not among {stored:?}");
    }
    let preferred = report["preferred"].as_array().unwrap();
    assert!(preferred.len() >= 2, "a choice and a tie: {report}");
    for preference in preferred {
        let tie = preference.get("ranking").is_some();
        let side = |name: &str, at: usize| {
            let id = if tie { &preference["ranking"][0][at] } else { &preference[name] };
            id.as_str().unwrap().parse::<Uuid>().unwrap()
        };
        let pair = [side("chosen", 0), side("rejected", 1)];
        assert_eq!(pairs(&pool, pair, tie).await, 1, "{preference} is stored once");
    }
    let wanted: Vec<f64> = report["changed"]["values"].as_array().into_iter().flatten().map(number).collect();
    assert_eq!(values(&pool, report["changed"]["completion_id"].as_str().unwrap(), "thumbs").await, wanted);
}

fn number(value: &Value) -> f64 {
    f64::from(u8::from(value.as_bool().unwrap()))
}

/// Stored pairs of these two; of a tie in either order.
async fn pairs(pool: &SqlitePool, [chosen, rejected]: [Uuid; 2], tie: bool) -> i64 {
    let count = "SELECT count(*) FROM preference_pair WHERE tie = ?3 \
                 AND ((chosen_id = ?1 AND rejected_id = ?2) OR (?3 AND chosen_id = ?2 AND rejected_id = ?1))";
    let (chosen, rejected) = (chosen.as_bytes().as_slice(), rejected.as_bytes().as_slice());
    sqlx::query_scalar(count).bind(chosen).bind(rejected).bind(tie).fetch_one(pool).await.unwrap()
}

/// Runs the browser's side; its last line is what it rated.
fn drive(server: &Server) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e");
    assert!(folder.join("node_modules").is_dir(), "run tests/run, or `npm ci` in {}", folder.display());
    let output = Command::new("node").arg("playground.mjs").current_dir(folder).env("BASE_URL", &server.url).output();
    let output = output.expect("node is needed; tests/run installs it");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(said.lines().last().unwrap()).unwrap()
}

/// The stored ratings of a completion, oldest first.
async fn values(pool: &SqlitePool, completion: &str, metric: &str) -> Vec<f64> {
    let query = "select value_num from feedback where completion_id = ? and metric = ? and kind = 0 order by seq";
    let id = Uuid::parse_str(completion).unwrap();
    sqlx::query_scalar(query).bind(&id.as_bytes()[..]).bind(metric).fetch_all(pool).await.unwrap()
}
