//! A judge over HTTP: batches of whole groups, signed, retried, bounded in time, size and number, and left alone
//! while it is broken.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::body::Bytes;
use sha2::Sha256;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::breaker::Breaker;
use super::connect::{self, Answer, Target};
use super::wire::{self, MAX_ANSWER};
use super::{GroupInput, HookError, RewardHook, Score, address, all};
use crate::diffusion::rng::mix64;
use crate::telemetry::metrics as names;

/// Longest wait before a try; a judge that asks for more is not tried again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Groups with ids ([`wire::request_v1`]).
    V1,
    /// OpenRLHF's `/get_reward`.
    OpenRlhf,
}

/// What a hook over HTTP is made of.
#[derive(Clone)]
pub struct Settings {
    /// Name in the configuration.
    pub name: String,
    /// Where to post.
    pub target: Target,
    /// What is spoken.
    pub protocol: Protocol,
    /// Rewards that are believed.
    pub range: wire::Range,
    /// Longest that one try takes, connecting and reading included.
    pub timeout: Duration,
    /// Tries of one batch, at least 1.
    pub tries: u32,
    /// Wait before the second try; doubles with every further one.
    pub backoff: Duration,
    /// Calls at the same time.
    pub concurrency: usize,
    /// Samples of one call; a larger group travels alone and whole.
    pub max_batch: usize,
    /// Key of the signature; unsigned without.
    pub secret: Option<Vec<u8>>,
    /// `host:port` that may be private and spoken to without TLS.
    pub allow_private: Vec<String>,
    /// How long a broken judge is left alone.
    pub breaker_pause: Duration,
}

/// The hook.
pub struct Http(Arc<Shared>);

struct Shared {
    settings: Settings,
    breaker: Mutex<Breaker>,
    permits: Arc<Semaphore>,
}

/// Why a try failed and whether another may help.
struct Failure {
    error: HookError,
    again: bool,
    retry_after: Option<Duration>,
}

impl From<HookError> for Failure {
    fn from(error: HookError) -> Self {
        let again = matches!(error, HookError::Connection(_));
        Self { error, again, retry_after: None }
    }
}

impl Http {
    /// The hook of `settings`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let breaker = Mutex::new(Breaker::new(settings.breaker_pause));
        let permits = Arc::new(Semaphore::new(settings.concurrency.max(1)));
        Self(Arc::new(Shared { settings, breaker, permits }))
    }
}

#[async_trait]
impl RewardHook for Http {
    fn name(&self) -> &str {
        &self.0.settings.name
    }

    async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>> {
        let mut scores = all(groups, &Err(HookError::Died("its task ended".to_owned())));
        let Settings { target, allow_private, timeout, .. } = &self.0.settings;
        let address = match address::resolve(&target.host, target.port, allow_private, *timeout).await {
            Ok(address) => address,
            Err(error) => return all(groups, &Err(error)),
        };
        let run = Uuid::now_v7();
        // Dropped with this future, and with it every call that is under way.
        let mut calls = JoinSet::new();
        for (number, range) in batches(groups, self.0.settings.max_batch).into_iter().enumerate() {
            // Held by the call: only as many bodies exist at a time as there are calls.
            let Ok(permit) = Arc::clone(&self.0.permits).acquire_owned().await else { break };
            let (shared, batch) = (Arc::clone(&self.0), groups[range.clone()].to_vec());
            calls.spawn(async move {
                let _permit = permit;
                (range, shared.call(address, Call { run, number }, batch).await)
            });
        }
        while let Some(call) = calls.join_next().await {
            if let Ok((range, Some(of_batch))) = call {
                scores.splice(range, of_batch);
            }
        }
        scores
    }
}

/// Runs of whole groups with at most `most` samples each, or a single larger group.
pub(super) fn batches(groups: &[GroupInput], most: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut samples = 0;
    for (i, group) in groups.iter().enumerate() {
        samples += group.samples.len();
        match batches.last_mut() {
            Some(batch) if samples <= most => batch.end = i + 1,
            _ => {
                batches.push(i..i + 1);
                samples = group.samples.len();
            }
        }
    }
    batches
}

#[derive(Clone, Copy)]
struct Call {
    run: Uuid,
    number: usize,
}

impl Shared {
    /// One batch, tried until it is answered, cannot be, or the tries are used up; `None` if making it panicked.
    async fn call(&self, address: SocketAddr, call: Call, groups: Vec<GroupInput>) -> Option<Vec<Vec<Score>>> {
        let (name, protocol) = (self.settings.name.clone(), self.settings.protocol);
        let made = tokio::task::spawn_blocking(move || {
            let request = match protocol {
                Protocol::V1 => wire::request_v1(call.run, &name, &groups),
                Protocol::OpenRlhf => wire::request_openrlhf(&groups),
            };
            (Bytes::from(request.to_string()), groups)
        });
        let (body, groups) = made.await.ok()?;
        let mut attempt = 1;
        loop {
            if !self.breaker(|breaker| breaker.admit(Instant::now())) {
                return Some(all(&groups, &Err(HookError::BreakerOpen)));
            }
            let outcome = self.attempt(address, call, attempt, &body, &groups).await;
            self.breaker(|breaker| breaker.record(outcome.is_ok(), Instant::now()));
            let failure = match outcome {
                Ok(scores) => return Some(scores),
                Err(failure) => failure,
            };
            tracing::warn!(hook = self.settings.name, attempt, reason = failure.error.reason(), "a reward hook failed");
            let wait = pause(self.settings.backoff, attempt, call.run.as_u128() as u64, failure.retry_after);
            match wait.filter(|_| failure.again && attempt < self.settings.tries) {
                None => return Some(all(&groups, &Err(failure.error))),
                Some(wait) => tokio::time::sleep(wait).await,
            }
            attempt += 1;
        }
    }

    fn breaker<T>(&self, act: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let done = act(&mut breaker);
        let open = if breaker.is_open() { 1.0 } else { 0.0 };
        metrics::gauge!(names::REWARD_BREAKER, "hook" => self.settings.name.clone()).set(open);
        done
    }

    async fn attempt(
        &self,
        address: SocketAddr,
        call: Call,
        attempt: u32,
        body: &Bytes,
        groups: &[GroupInput],
    ) -> Result<Vec<Vec<Score>>, Failure> {
        let settings = &self.settings;
        let mut headers = vec![
            ("x-hook-id", settings.name.clone()),
            ("x-hook-attempt", attempt.to_string()),
            ("idempotency-key", format!("{}/{}/{}", call.run, settings.name, call.number)),
        ];
        if let Some(secret) = &settings.secret {
            headers.push(("x-signature", signature(secret, now(), body)));
        }
        let posted = connect::post(&settings.target, address, &headers, body.clone(), MAX_ANSWER);
        let Answer { status, retry_after, body } = tokio::time::timeout(settings.timeout, posted)
            .await
            .map_err(|_| HookError::Timeout(settings.timeout))??;
        if status != 200 {
            let again = matches!(status, 408 | 429 | 500..=599);
            let retry_after = retry_after.and_then(|text| wait_of(&text, now()));
            return Err(Failure { error: HookError::Status(status), again, retry_after });
        }
        let read = match settings.protocol {
            Protocol::V1 => wire::answer_v1,
            Protocol::OpenRlhf => wire::answer_openrlhf,
        };
        Ok(read(&body, groups, settings.range)?)
    }
}

/// `t=<seconds>,v1=<hex HMAC-SHA256 of "<seconds>.<body>">`: the receiver can refuse what is old or altered.
#[must_use]
pub fn signature(secret: &[u8], seconds: u64, body: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = format!("t={seconds},v1=");
    // HMAC takes keys of any length.
    if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) {
        mac.update(format!("{seconds}.").as_bytes());
        mac.update(body);
        for byte in mac.finalize().into_bytes() {
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

/// The wait that `Retry-After` asks for: seconds, or a date. `now` is in seconds since the epoch.
fn wait_of(text: &str, now: u64) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    Some(Duration::from_secs(u64::try_from(date.as_second()).unwrap_or_default().saturating_sub(now)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The wait before the next try: at least what was asked for, else exponential with between half and all of it, so
/// that callers that failed together do not come back together. `None` when more than [`MAX_PAUSE`] was asked for.
fn pause(backoff: Duration, attempt: u32, seed: u64, asked: Option<Duration>) -> Option<Duration> {
    let whole = backoff.saturating_mul(1 << (attempt - 1).min(16)).min(MAX_PAUSE);
    let part = (mix64(seed ^ u64::from(attempt)) >> 11) as f64 / (1u64 << 53) as f64;
    let wait = whole.mul_f64(0.5 + part / 2.0);
    match asked {
        Some(asked) if asked > MAX_PAUSE => None,
        Some(asked) => Some(wait.max(asked)),
        None => Some(wait),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
