//! The hook against a server that misbehaves in every way that servers do.

use std::collections::VecDeque;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::super::fixture_tests::group;
use super::*;

/// What the server does with one connection.
#[derive(Clone)]
enum Act {
    /// Answers properly.
    Good,
    /// Answers with this status, header lines and body.
    Answer(u16, &'static str, String),
    /// Answers with this reward, as it stands, for every sample.
    Reward(&'static str),
    /// Reads the request and never answers.
    Hang,
    /// Never reads the request.
    Deaf,
    /// Sends a body byte by byte, without end.
    Drip,
    /// Closes in the middle of the body.
    Die,
    /// Sends a body without end, as fast as it can.
    Flood,
    /// Says that it will send this many bytes.
    Claim(u64),
    /// Sends this instead of HTTP.
    Raw(&'static [u8]),
}

/// Head, in lower case, and body of a request.
type Seen = (String, Vec<u8>);

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    /// Serves `acts` in order of connections, then answers properly.
    async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, mut acts) = (Arc::clone(&seen), VecDeque::from(acts));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (act, log) = (acts.pop_front().unwrap_or(Act::Good), Arc::clone(&log));
                connections.spawn(async move { play(stream, act, &log).await });
            }
        });
        Self { address, seen, _task: AbortOnDropHandle::new(task) }
    }

    fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// Errors are the client's leaving.
async fn play(mut stream: TcpStream, act: Act, log: &Mutex<Vec<Seen>>) -> std::io::Result<()> {
    if matches!(act, Act::Deaf) {
        return std::future::pending().await;
    }
    let mut bytes = Vec::new();
    let (head, body) = loop {
        stream.read_buf(&mut bytes).await?;
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length: usize = head.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        if bytes.len() >= end + 4 + length {
            break (head, bytes[end + 4..].to_vec());
        }
    };
    log.lock().unwrap().push((head.clone(), body.clone()));
    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let answer = |body: &str| format!("{ok}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    match act {
        Act::Good => stream.write_all(answer(&good(&head, &body, "0.5")).as_bytes()).await,
        Act::Reward(reward) => stream.write_all(answer(&good(&head, &body, reward)).as_bytes()).await,
        Act::Answer(status, headers, body) => {
            let text = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await
        }
        Act::Hang | Act::Deaf => std::future::pending().await,
        Act::Drip => {
            stream.write_all(format!("{ok}\r\n").as_bytes()).await?;
            loop {
                stream.write_all(b" ").await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Act::Die => stream.write_all(format!("{ok}content-length: 1000\r\n\r\n{{\"results\":[").as_bytes()).await,
        Act::Flood => {
            stream.write_all(format!("{ok}\r\n").as_bytes()).await?;
            loop {
                stream.write_all(&[b' '; 1 << 16]).await?;
            }
        }
        Act::Claim(length) => {
            stream.write_all(format!("{ok}content-length: {length}\r\n\r\n").as_bytes()).await?;
            std::future::pending().await
        }
        Act::Raw(bytes) => stream.write_all(bytes).await,
    }
}

/// A proper answer with `reward` for every sample, in the protocol of the path.
fn good(head: &str, body: &[u8], reward: &str) -> String {
    let asked: Value = serde_json::from_slice(body).unwrap();
    if head.starts_with("post /get_reward") {
        let n = asked["query"].as_array().unwrap().len();
        return format!("{{\"rewards\":[{}]}}", vec![reward; n].join(","));
    }
    let groups = asked["groups"].as_array().unwrap().iter();
    let samples = groups.flat_map(|group| group["samples"].as_array().unwrap());
    let result = |sample: &Value| format!("{{\"sample_id\":{},\"reward\":{reward}}}", sample["sample_id"]);
    format!("{{\"results\":[{}]}}", samples.map(result).collect::<Vec<_>>().join(","))
}

fn settings(address: SocketAddr) -> Settings {
    Settings {
        name: "judge".to_owned(),
        target: Target::parse(&format!("http://{address}/score")).unwrap(),
        protocol: Protocol::V1,
        range: Some([0.0, 1.0]),
        timeout: Duration::from_secs(20),
        tries: 3,
        backoff: Duration::from_millis(1),
        concurrency: 4,
        max_batch: 64,
        secret: None,
        allow_private: vec![address.to_string()],
        breaker_pause: Duration::from_secs(3600),
    }
}

/// The distinct outcomes of scoring two groups of two, and the number of requests that the server read.
async fn outcome(acts: Vec<Act>, change: impl FnOnce(&mut Settings)) -> (Vec<&'static str>, usize) {
    let server = Server::start(acts).await;
    let mut settings = settings(server.address);
    change(&mut settings);
    let scores = Http::new(settings).score(&[group(1, 2), group(2, 2)]).await;
    assert_eq!(scores.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let mut reasons: Vec<_> =
        scores.iter().flatten().map(|score| score.as_ref().map_or_else(HookError::reason, |_| "ok")).collect();
    reasons.dedup();
    (reasons, server.requests().len())
}

fn hasty(settings: &mut Settings) {
    settings.timeout = Duration::from_millis(100);
}

#[tokio::test]
async fn a_good_judge_is_asked_once_and_signed() {
    let server = Server::start(Vec::new()).await;
    let mut settings = settings(server.address);
    settings.secret = Some(b"secret".to_vec());
    let scores = Http::new(settings).score(&[group(1, 2), group(2, 1)]).await;
    assert_eq!(scores, vec![vec![Ok(Some(0.5)), Ok(Some(0.5))], vec![Ok(Some(0.5))]]);
    let requests = server.requests();
    let (head, body) = &requests[0];
    assert_eq!(requests.len(), 1);
    assert!(head.starts_with("post /score http/1.1"), "{head}");
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap();
    assert_eq!((header("x-hook-id"), header("x-hook-attempt")), ("judge", "1"));
    let asked: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(header("idempotency-key"), format!("{}/judge/0", asked["run_id"].as_str().unwrap()));
    let signed = header("x-signature");
    let seconds: u64 = signed.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
    assert_eq!(signed, signature(b"secret", seconds, body));
}

#[test]
fn the_signature_is_hmac_sha256() {
    // From Python's hmac module.
    let expected = "t=1764000000,v1=b691197929ebc73b102d12f9a4689644cb2d1a38c9f2d1883b9f478077313f85";
    assert_eq!(signature(b"secret", 1_764_000_000, b"{}"), expected);
}

#[tokio::test]
async fn a_judge_that_takes_for_ever_is_left() {
    for act in [Act::Hang, Act::Deaf, Act::Drip, Act::Claim(100)] {
        let (reasons, requests) = outcome(vec![act], hasty).await;
        assert_eq!(reasons, ["timeout"]);
        assert!(requests <= 1, "a timeout is not tried again");
    }
}

#[tokio::test]
async fn a_judge_that_dies_is_tried_again() {
    assert_eq!(outcome(vec![Act::Die, Act::Raw(b"")], |_| ()).await, (vec!["ok"], 3));
    assert_eq!(outcome(vec![Act::Die; 3], |_| ()).await, (vec!["connection"], 3));
    assert_eq!(outcome(vec![Act::Raw(b"SSH-2.0-x\r\n\r\n"); 3], |_| ()).await, (vec!["connection"], 3));
}

#[tokio::test]
async fn nobody_listening_is_a_connection_error() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let scores = Http::new(settings(address)).score(&[group(1, 1)]).await;
    assert_eq!(scores[0][0].as_ref().unwrap_err().reason(), "connection");
}

#[tokio::test]
async fn lies_are_told_apart() {
    for (act, reason) in [
        (Act::Reward("NaN"), "not_finite"),
        (Act::Reward("-Infinity"), "not_finite"),
        (Act::Reward("1e999"), "not_finite"),
        (Act::Reward("1.5"), "out_of_range"),
        (Act::Reward("\"good\""), "protocol"),
        (Act::Reward("0.5,\"error\":{\"code\":1}"), "reported"),
        (Act::Answer(200, "", "{}".to_owned()), "protocol"),
        (Act::Answer(200, "", "<html>".to_owned()), "protocol"),
        (Act::Answer(200, "", json!({ "results": [] }).to_string()), "missing"),
        (
            Act::Answer(200, "", json!({ "results": [{ "sample_id": Uuid::nil(), "reward": 1 }] }).to_string()),
            "unknown_id",
        ),
    ] {
        assert_eq!(outcome(vec![act], |_| ()).await, (vec![reason], 1));
    }
    let twice: Vec<Value> =
        [1000, 1000, 1001, 2000].iter().map(|&id| json!({ "sample_id": Uuid::from_u128(id), "reward": 0.5 })).collect();
    let act = Act::Answer(200, "", json!({ "results": twice }).to_string());
    assert_eq!(outcome(vec![act], |_| ()).await.0, ["duplicate_id", "ok", "missing"]);
}

#[tokio::test]
async fn huge_answers_are_cut() {
    for act in [Act::Flood, Act::Claim(1 << 40)] {
        assert_eq!(outcome(vec![act], |_| ()).await, (vec!["too_large"], 1));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Server::start(Vec::new()).await;
    let location: &'static str = Box::leak(format!("location: http://{}/\r\n", elsewhere.address).into_boxed_str());
    for status in [301, 302, 307, 308] {
        let act = Act::Answer(status, location, String::new());
        assert_eq!(outcome(vec![act], |_| ()).await, (vec!["http_status"], 1));
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn statuses_that_may_pass_are_tried_again_and_others_are_not() {
    for status in [408, 429, 500, 502, 503] {
        let act = Act::Answer(status, "retry-after: 0\r\n", String::new());
        assert_eq!(outcome(vec![act.clone(), act], |_| ()).await, (vec!["ok"], 3), "{status}");
    }
    for status in [400, 401, 403, 404, 413, 422, 204] {
        assert_eq!(
            outcome(vec![Act::Answer(status, "", String::new())], |_| ()).await,
            (vec!["http_status"], 1),
            "{status}"
        );
    }
    let busy = Act::Answer(503, "", String::new());
    assert_eq!(outcome(vec![busy; 3], |_| ()).await, (vec!["http_status"], 3));
    let later = Act::Answer(429, "retry-after: 3600\r\n", String::new());
    assert_eq!(outcome(vec![later], |_| ()).await, (vec!["http_status"], 1), "nobody waits for an hour");
}

#[tokio::test]
async fn a_failing_batch_costs_only_itself() {
    let one_at_a_time = |settings: &mut Settings| (settings.max_batch, settings.concurrency) = (2, 1);
    let acts = vec![Act::Answer(400, "", String::new())];
    assert_eq!(outcome(acts, one_at_a_time).await, (vec!["http_status", "ok"], 2));
}

#[tokio::test]
async fn a_broken_judge_is_left_alone() {
    let server = Server::start(vec![Act::Answer(400, "", String::new()); 100]).await;
    let mut settings = settings(server.address);
    (settings.max_batch, settings.concurrency) = (1, 1);
    let groups: Vec<_> = (0..30).map(|g| group(g, 1)).collect();
    let hook = Http::new(settings);
    let scores = hook.score(&groups).await;
    let reasons: Vec<_> = scores.iter().flatten().map(|score| score.as_ref().unwrap_err().reason()).collect();
    assert_eq!(reasons.iter().filter(|reason| **reason == "http_status").count(), 20);
    assert_eq!(reasons.iter().filter(|reason| **reason == "breaker_open").count(), 10);
    assert_eq!(hook.score(&groups[..1]).await[0][0], Err(HookError::BreakerOpen));
    assert_eq!(server.requests().len(), 20);
}

#[tokio::test]
async fn openrlhf_servers_are_understood() {
    let speak = |settings: &mut Settings| {
        settings.protocol = Protocol::OpenRlhf;
        settings.target.path = "/get_reward".to_owned();
    };
    assert_eq!(outcome(vec![Act::Good], speak).await, (vec!["ok"], 1));
    assert_eq!(outcome(vec![Act::Reward("NaN")], speak).await, (vec!["not_finite"], 1));
    let short = Act::Answer(200, "", json!({ "rewards": [1.0] }).to_string());
    assert_eq!(outcome(vec![short], speak).await, (vec!["protocol"], 1));
}

#[tokio::test]
async fn private_addresses_are_refused_unless_listed() {
    let server = Server::start(Vec::new()).await;
    let mut settings = settings(server.address);
    settings.allow_private.clear();
    let scores = Http::new(settings).score(&[group(1, 1)]).await;
    assert_eq!(scores[0][0].as_ref().unwrap_err().reason(), "address_refused");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn dropping_the_score_ends_the_calls() {
    let server = Server::start(vec![Act::Hang]).await;
    let hook = Http::new(settings(server.address));
    let groups = [group(1, 1)];
    {
        let mut scoring = std::pin::pin!(hook.score(&groups));
        while server.requests().is_empty() {
            tokio::select! {
                _ = &mut scoring => panic!("the server hangs"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    // The permit of the dropped call is free again, so its task has ended.
    let permits = hook.0.permits.acquire_many(4).await.unwrap();
    assert_eq!(permits.num_permits(), 4);
}

#[test]
fn batches_are_whole_groups() {
    let groups = [group(1, 2), group(2, 2), group(3, 9), group(4, 1), group(5, 0)];
    assert_eq!(batches(&groups, 4), vec![0..2, 2..3, 3..5]);
    assert_eq!(batches(&groups, 1), vec![0..1, 1..2, 2..3, 3..5]);
    assert_eq!(batches(&[], 4), Vec::<Range<usize>>::new());
}

#[test]
fn pauses_grow_vary_and_end() {
    let backoff = Duration::from_secs(1);
    for attempt in 1..40 {
        let most = backoff.saturating_mul(1 << (attempt - 1).min(10)).min(MAX_PAUSE);
        let wait = pause(backoff, attempt, 7, None).unwrap();
        assert!(wait >= most / 2 && wait <= most, "{attempt}: {wait:?}");
    }
    assert_ne!(pause(backoff, 1, 7, None), pause(backoff, 1, 8, None));
    assert_eq!(pause(backoff, 1, 7, Some(Duration::from_secs(20))), Some(Duration::from_secs(20)));
    assert!(pause(backoff, 5, 7, Some(Duration::ZERO)).unwrap() >= Duration::from_secs(8));
    assert_eq!(pause(backoff, 1, 7, Some(Duration::from_secs(31))), None);
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    assert_eq!(wait_of("7", 0), Some(Duration::from_secs(7)));
    assert_eq!(wait_of("Wed, 21 Oct 2015 07:28:00 GMT", 1_445_412_470), Some(Duration::from_secs(10)));
    assert_eq!(wait_of("Wed, 21 Oct 2015 07:28:00 GMT", 2_000_000_000), Some(Duration::ZERO));
    assert_eq!(wait_of("soon", 0), None);
}
