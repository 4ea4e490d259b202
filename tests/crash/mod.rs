//! Acknowledged is durable: a child process writes to the log as fast as it can and says what was acknowledged; the
//! parent kills it with SIGKILL at a random moment, reopens the log, and finds everything that was said. The rounds
//! share one data directory, so what survived the first kill must survive the last.
//!
//! This covers the end of a process at any instruction: torn transactions, recovery, the lock, retries after a crash.
//! It does not cover a loss of power, because the kernel keeps what was written without `fsync`; that the database
//! syncs when it commits is a unit test of the store.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lacuna::store::{CompletionRow, FeedbackAck, Kind, NewFeedback, OpenError, SqliteStore, Store, Value};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor, Row};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Tells the child where to write; without it the child's test does nothing.
const DIR: &str = "LACUNA_CRASH_DIR";
/// How many kills, for long runs.
const ROUNDS: &str = "LACUNA_CRASH_ROUNDS";
const DEFAULT_ROUNDS: u32 = 12;
/// Concurrent authors in the child; each can have one write stored but not acknowledged when it is killed.
const AUTHORS: u32 = 8;

/// How far the child said a completion went. Its rating is remembered from `Rated` on.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    Recorded,
    Rated(Uuid),
    /// Said before the rating is taken back, so it may be gone.
    Withdrawing(Uuid),
    Withdrew(Uuid),
    /// Said before the completion is deleted, so it may be gone.
    Deleting(Uuid),
    Deleted,
}

type Said = HashMap<Uuid, Stage>;

#[tokio::test]
async fn kill_at_any_moment_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = std::env::var(ROUNDS).map_or(DEFAULT_ROUNDS, |rounds| rounds.parse().unwrap());
    let mut said = Said::new();
    for round in 1..=rounds {
        // The first may die while it creates the database.
        let lines = if round == 1 { 0 } else { random(600) };
        run_and_kill(dir.path(), lines, &mut said).await;
        verify(dir.path(), &mut said, round).await;
    }
    let count = |wanted: fn(&Stage) -> bool| said.values().filter(|stage| wanted(stage)).count();
    let rated = count(|stage| matches!(stage, Stage::Rated(_)));
    let withdrew = count(|stage| matches!(stage, Stage::Withdrew(_)));
    let deleted = count(|stage| matches!(stage, Stage::Deleted));
    let tested = rated > 0 && withdrew > 0 && deleted > 0;
    assert!(tested, "{rated} rated, {withdrew} withdrew, {deleted} deleted");
}

/// Starts the child, kills it some time after it said so many lines, and notes all that it said.
async fn run_and_kill(dir: &Path, lines: u64, said: &mut Said) {
    let mut child = Killed(spawn(dir));
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    for _ in 0..lines {
        assert!(note(&mut output, said), "the child ended by itself");
    }
    if lines > 300 {
        let error = SqliteStore::open(dir).await.err().unwrap();
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    }
    // Waits for nothing: it spreads the kills over the phases of a commit.
    std::thread::sleep(Duration::from_micros(random(20_000)));
    child.0.kill().unwrap();
    // What it said before its end is still in the pipe.
    while note(&mut output, said) {}
}

/// Notes one line of the child. False at the end, and for a line that the kill cut off.
fn note(output: &mut BufReader<ChildStdout>, said: &mut Said) -> bool {
    loop {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let Some(line) = line.strip_suffix('\n') else {
            return false;
        };
        // Others are the test harness's.
        let Some(line) = line.strip_prefix("said ") else {
            continue;
        };
        let (stage, ids) = line.split_once(' ').unwrap();
        let (completion, rating) = ids.split_once(' ').unwrap();
        let (completion, rating) = (completion.parse().unwrap(), rating.parse().unwrap());
        let stage = match stage {
            "recorded" => Stage::Recorded,
            "rated" => Stage::Rated(rating),
            "withdrawing" => Stage::Withdrawing(rating),
            "withdrew" => Stage::Withdrew(rating),
            "deleting" => Stage::Deleting(rating),
            "deleted" => Stage::Deleted,
            other => panic!("{other}"),
        };
        said.insert(completion, stage);
        return true;
    }
}

/// Kills and reaps the child however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// This program again, running only the child's test.
fn spawn(dir: &Path) -> Child {
    let (_, module) = module_path!().split_once("::").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::child"), "--ignored"])
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All that was said is true of the log, no rating counts twice, and nothing else is in it but what was under way.
async fn verify(dir: &Path, said: &mut Said, rounds: u32) {
    let store = SqliteStore::open(dir).await.unwrap();
    let mut live = 0;
    for (id, stage) in said.iter_mut() {
        let kept = store.completion(*id).await.unwrap().is_some();
        let ratings = store.feedback_of(*id).await.unwrap();
        let ratings: Vec<Uuid> = ratings.iter().map(|row| row.id).collect();
        let (may_be_gone, may_be_unrated, rating) = match *stage {
            // Its rating may have been stored before it could be said.
            Stage::Recorded => (false, true, ratings.first().copied()),
            Stage::Rated(rating) => (false, false, Some(rating)),
            Stage::Withdrawing(rating) => (false, true, Some(rating)),
            Stage::Withdrew(_) => (false, true, None),
            Stage::Deleting(rating) => (true, false, Some(rating)),
            Stage::Deleted => (true, true, None),
        };
        assert!(kept || may_be_gone, "{id} lost: {stage:?}");
        assert!(!kept || *stage != Stage::Deleted, "{id} is back");
        assert!(kept || ratings.is_empty(), "ratings of nothing");
        let unrated = ratings.is_empty() && (may_be_unrated || !kept);
        let rated = ratings.len() == 1 && ratings.first() == rating.as_ref();
        assert!(unrated || rated, "{id} {stage:?} has ratings {ratings:?}");
        live += u64::from(kept);
        // A client that got no answer, or lost it, asks again: it is told of its one rating.
        if kept {
            let ack = rate(&store, *id).await;
            match *stage {
                Stage::Recorded => {
                    assert_eq!(ack.replayed, !ratings.is_empty());
                    *stage = Stage::Rated(ack.id);
                }
                Stage::Rated(first) | Stage::Withdrawing(first) | Stage::Withdrew(first) | Stage::Deleting(first) => {
                    assert!(ack.replayed && ack.id == first)
                }
                Stage::Deleted => panic!("{id} is back"),
            }
        }
    }
    let stored = store.counts().await.unwrap().completions;
    let under_way = stored.checked_sub(live).expect("fewer than were read");
    assert!(under_way <= u64::from(AUTHORS * rounds), "{under_way} never said");
    store.close().await;

    let options = SqliteConnectOptions::new().filename(dir.join("lacuna.db"));
    let mut raw = SqliteConnection::connect_with(&options).await.unwrap();
    let verdict = raw.fetch_one("PRAGMA integrity_check").await.unwrap();
    assert_eq!(verdict.get::<String, _>(0), "ok");
    let strays = raw.fetch_all("PRAGMA foreign_key_check").await.unwrap();
    assert!(strays.is_empty());
}

/// Rates a completion; for the same completion it is the same request.
async fn rate(store: &SqliteStore, completion: Uuid) -> FeedbackAck {
    let feedback = NewFeedback {
        completion,
        metric: "thumbs".into(),
        value: Value::Bool(true),
        subject_hash: None,
        idempotency_key: Some(completion.to_string()),
        body_sha256: completion.as_bytes().repeat(2),
    };
    store.add_feedback(feedback).await.unwrap()
}

#[test]
#[ignore = "the crash test runs it as its child, and kills it"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // The harness leaves its own line open.
        std::io::stdout().write_all(b"\n").unwrap();
        let store = Arc::new(SqliteStore::open(dir.as_ref()).await.unwrap());
        let mut authors = JoinSet::new();
        for _ in 0..AUTHORS {
            authors.spawn(write_for_ever(store.clone()));
        }
        authors.join_all().await;
    });
}

async fn write_for_ever(store: Arc<SqliteStore>) {
    for round in 0_u64.. {
        let row = completion();
        let id = row.id;
        store.record(vec![row]).await.unwrap();
        say("recorded", id, Uuid::nil());
        let rating = rate(&store, id).await.id;
        say("rated", id, rating);
        if round % 4 == 1 {
            say("withdrawing", id, rating);
            assert!(store.delete_feedback(rating).await.unwrap());
            say("withdrew", id, rating);
        }
        if round % 4 == 3 {
            say("deleting", id, rating);
            assert!(store.delete_completion(id).await.unwrap());
            say("deleted", id, rating);
        }
    }
}

/// One write, so that lines of different authors do not mix.
fn say(stage: &str, completion: Uuid, rating: Uuid) {
    let line = format!("said {stage} {completion} {rating}\n");
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes()).unwrap();
    stdout.flush().unwrap();
}

fn completion() -> CompletionRow {
    CompletionRow {
        id: Uuid::now_v7(),
        group: Uuid::now_v7(),
        index: 0,
        kind: Kind::Text,
        model: "starter".into(),
        base_sha256: String::new(),
        adapter: "base@0".into(),
        prompt: None,
        // Several pages, so that a transaction can be torn.
        prompt_ids: vec![1; 3000],
        tokens: vec![2; 128],
        commit_steps: vec![0; 128],
        logprobs: vec![-1.0; 128],
        text: String::new(),
        grid: None,
        params: serde_json::json!({}),
        seed: 0,
        finish_reason: "length".into(),
        steps: 8,
        positions_evaluated: 0,
        queue_ms: 0.0,
        denoise_ms: 0.0,
        subject_hash: None,
        metadata: serde_json::json!({}),
        created_us: 0,
    }
}

/// A number below `bound`, other every time.
fn random(bound: u64) -> u64 {
    let (_, tail) = Uuid::now_v7().as_u64_pair();
    // The last 32 bits of a version 7 id are random.
    (tail & u64::from(u32::MAX)) % bound
}
