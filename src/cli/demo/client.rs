//! The only way by which the simulated people reach the server: HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest that an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Requests by how they ended.
#[derive(Debug, Default)]
pub struct Counts {
    begun: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
    mixed: AtomicU64,
    rated: AtomicU64,
    preferred: AtomicU64,
}

impl Counts {
    /// Answered generate requests, failed ones, and those whose completions came of several versions.
    #[must_use]
    pub fn requests(&self) -> (u64, u64, u64) {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (read(&self.ok), read(&self.failed), read(&self.mixed))
    }

    /// Generate requests without an answer yet.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        let (ok, failed, _) = self.requests();
        self.begun.load(Ordering::Relaxed).saturating_sub(ok + failed)
    }

    /// Ratings and preferences.
    #[must_use]
    pub fn judgements(&self) -> (u64, u64) {
        (self.rated.load(Ordering::Relaxed), self.preferred.load(Ordering::Relaxed))
    }
}

/// What the trainer is doing: the part of `GET /training` that matters here.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Training {
    /// `collecting`, `training`, `gating`, ….
    pub state: String,
    /// The version in service.
    pub current: String,
    /// Judgements that wait.
    pub waiting: u64,
    /// The last run, if there was one.
    pub last_run: Option<Value>,
    /// Samples by lane.
    pub lanes: Value,
}

impl Training {
    /// It computes.
    #[must_use]
    pub fn busy(&self) -> bool {
        matches!(self.state.as_str(), "training" | "gating")
    }
}

/// A client of the demo's server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
    counts: Arc<Counts>,
}

impl Client {
    /// A client of the server at `base`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        Ok(Self { http, base: base.into(), counts: Arc::default() })
    }

    /// How requests ended so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<reqwest::Response> {
        let url = format!("{}{path}", self.base);
        self.http.post(&url).json(body).send().await.with_context(|| format!("{path} does not answer"))
    }

    async fn sent(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.post(path, body).await?;
        let status = answer.status();
        ensure!(status.is_success(), "{path}: {status}: {}", answer.text().await.unwrap_or_default());
        Ok(answer.json().await?)
    }

    fn begin(&self) {
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, ok: bool) {
        let count = if ok { &self.counts.ok } else { &self.counts.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A generate request: its reply and how long it took.
    ///
    /// # Errors
    /// When it fails, which is counted.
    pub async fn generate(&self, path: &str, body: &Value) -> anyhow::Result<(Value, Duration)> {
        let start = Instant::now();
        self.begin();
        let reply = self.sent(path, body).await;
        self.count(reply.is_ok());
        Ok((reply?, start.elapsed()))
    }

    /// A streamed generate request: when each step's event arrived.
    ///
    /// # Errors
    /// When it fails, which is counted.
    pub async fn steps(&self, path: &str, body: &Value) -> anyhow::Result<Vec<Instant>> {
        self.begin();
        let steps = self.stream(path, body).await;
        self.count(steps.is_ok());
        steps
    }

    async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<Vec<Instant>> {
        let mut answer = self.post(path, body).await?.error_for_status()?;
        let (mut steps, mut ended) = (Vec::new(), false);
        while let Some(chunk) = answer.chunk().await? {
            let text = String::from_utf8_lossy(&chunk);
            steps.extend(text.lines().filter(|line| *line == "event: step").map(|_| Instant::now()));
            ended |= text.lines().any(|line| line == "event: done");
        }
        ensure!(ended, "{path}: the stream broke off");
        Ok(steps)
    }

    /// Rates a completion.
    ///
    /// # Errors
    /// When it is not taken.
    pub async fn rate(&self, completion: &str, metric: &str, value: Value, user: &str) -> anyhow::Result<()> {
        let body = json!({ "completion_id": completion, "metric": metric, "value": value, "user": user });
        self.sent("/feedback", &body).await?;
        self.counts.rated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Says that `chosen` are all better than `rejected`.
    ///
    /// # Errors
    /// When it is not taken.
    pub async fn prefer(&self, chosen: &[&str], rejected: &[&str], user: &str) -> anyhow::Result<()> {
        self.sent("/preferences", &json!({ "ranking": [chosen, rejected], "user": user })).await?;
        self.counts.preferred.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Looks up which versions the log has for the completions of a reply; more than the reply's one is a mixture.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn check_version(&self, reply: &Value, ids: &[&str]) -> anyhow::Result<()> {
        let mut mixed = false;
        for id in ids {
            let record = self.get(&format!("/completions/{id}")).await?;
            mixed |= record.get("adapter") != reply.get("adapter");
        }
        self.counts.mixed.fetch_add(u64::from(mixed), Ordering::Relaxed);
        Ok(())
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// What the trainer is doing.
    ///
    /// # Errors
    /// When the server does not answer, or its model takes no adapters.
    pub async fn training(&self) -> anyhow::Result<Training> {
        Ok(serde_json::from_value(self.get("/training").await?)?)
    }

    /// Ends learning; a run in progress is given up.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.sent("/training/pause", &json!({})).await?;
        Ok(())
    }
}
