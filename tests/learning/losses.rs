//! The losses on likelihood bounds in the real trainer: KTO from ratings of single pictures, DPO from choices.

use super::*;

/// Single pictures rated by thumbs, and pairs that were chosen from.
async fn judged() -> TempDir {
    let data = TempDir::new().unwrap();
    let config = configured(data.path(), "min_gain = -1e6", "enabled = false");
    let mut server = Server::start(data.path(), &["--config", config.as_str(), "--log", "warn"]);
    let (http, url) = (reqwest::Client::new(), server.url.clone());
    for i in 0..24 {
        let id = &pictures(&http, &url, i, 1).await[0];
        rated(&http, &url, id, i % 2 == 0, &format!("single {i}")).await;
        let pair = pictures(&http, &url, i, 2).await;
        let choice = json!({"chosen": pair[0], "rejected": pair[1], "user": format!("chooser {i}")});
        let (status, reply) = post(&http, &format!("{url}/preferences"), &choice).await.unwrap();
        assert_eq!(status, 201, "{reply}");
    }
    server.signal("TERM");
    assert!(server.wait().success());
    data
}

/// One run of `loss` on `lane`; the other lane's samples are counted as left out.
async fn run(judged: &TempDir, loss: &str, lane: &str, other: &str) -> Value {
    let data = copied(judged.path());
    let training = format!(
        "loss = \"{loss}\"\nlanes = [\"{lane}\"]\nreference = \"base\"\nbatch = 16\nepochs = 6\nlr = 1e-3\n\
         promotion = \"auto\"\nmin_interval_s = 100000"
    );
    let config = configured(data.path(), "min_gain = -1e6", &training);
    let server = Server::start(data.path(), &["--config", config.as_str(), "--log", "warn"]);
    let http = reqwest::Client::new();
    let run = run_after(&http, &server.url, &Value::Null).await;
    assert_eq!((&run["status"], &run["metrics"]["loss"]), (&json!("promoted"), &json!(loss)), "{run}");
    let lanes = &run["metrics"]["lanes"];
    assert!(lanes[lane]["used"].as_u64() > Some(8), "{lanes}");
    assert_eq!(lanes[other]["used"], 0, "{lanes}");
    assert!(lanes[other]["dropped"]["lane_off"].as_u64() > Some(8), "{lanes}");
    let (_, record) = get(&http, &format!("{}/adapters/main@1", server.url)).await.unwrap();
    assert_eq!(record["manifest"]["algorithm"], loss, "{record}");
    run
}

fn margins(run: &Value) -> Vec<f64> {
    run["metrics"]["updates"].as_array().unwrap().iter().map(|update| update["margin"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn kto_and_dpo_come_to_favour_what_people_liked() {
    let judged = judged().await;
    for (loss, lane, other) in [("kto", "singles", "groups"), ("dpo", "groups", "singles")] {
        let run = run(&judged, loss, lane, other).await;
        let margins = margins(&run);
        // Nats that the policy has put between liked and disliked pictures, as its reference does not.
        // Batches are small and unlike each other, so thirds of the run are compared. Masks are keyed by ids, which are new
        // in every run of this test.
        let third = margins.len() / 3;
        assert!(third > 0, "{loss}: the run ended early: {margins:?}");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&margins[..third]), mean(&margins[margins.len() - third..]));
        assert!(last > first && last > 0.5, "{loss}: {margins:?}");
        assert!(margins.iter().all(|margin| margin.is_finite()), "{loss}: {margins:?}");
    }
}
