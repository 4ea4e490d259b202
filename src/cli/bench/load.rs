//! Sends the requests of a run and keeps what came back. Closed loop: so many clients, each waiting for its answer.
//! Open loop: requests leave at planned times whether or not answers come, and latency counts from the plan, so a
//! server that stalls cannot hide it by slowing its clients down.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Kind;
use super::ticks::Totals;
use crate::diffusion::rng::Stream;
use crate::starter::{scenes, words};

/// Requests of an open loop that may be unanswered; a server further behind has lost, and this process stays bounded.
const MAX_OUTSTANDING: usize = 4096;
/// Parts of a run that takes turns with something else.
const TURNS: u32 = 4;
/// Longest that an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How requests arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// So many clients, one request at a time each.
    Closed {
        /// Clients.
        clients: u32,
    },
    /// A Poisson process.
    Open {
        /// Mean rate.
        per_second: f64,
    },
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// No request starts after this time.
    Time(Duration),
    /// So many requests.
    Requests(u64),
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// What is asked for.
    pub kind: Kind,
    /// How requests arrive.
    pub arrivals: Arrivals,
    /// When it ends.
    pub amount: Amount,
    /// Seed of prompts, sampling and arrivals.
    pub seed: u64,
}

impl Plan {
    /// The same in turns with something that it is compared with, so that both see a machine's speed drift. A number of
    /// requests, or an open loop, whose queue would be another, stays whole.
    pub fn turns(self) -> impl Iterator<Item = Self> {
        let turns = match (self.arrivals, self.amount) {
            (Arrivals::Closed { .. }, Amount::Time(time)) => Some(Amount::Time(time / TURNS)),
            _ => None,
        };
        let (n, amount) = turns.map_or((1, self.amount), |amount| (TURNS, amount));
        // Every turn has prompts of its own.
        (0..u64::from(n)).map(move |turn| Self { amount, seed: self.seed.wrapping_add(turn << 32), ..self })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.arrivals {
            Arrivals::Closed { clients } => write!(f, "{:?} × {clients}", self.kind),
            Arrivals::Open { per_second } => write!(f, "{:?} at {per_second}/s", self.kind),
        }
    }
}

/// What one answered request was worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Start (open loop: planned start) to end.
    pub latency: Duration,
    /// Text tokens.
    pub text_tokens: u64,
    /// Image codes.
    pub image_codes: u64,
    /// Images.
    pub images: u64,
    /// Rows evaluated.
    pub positions: u64,
    /// Forwards.
    pub steps: u64,
}

impl Answer {
    /// Reads an answer of `/generate/text` or `/generate/image`.
    #[must_use]
    pub fn read(body: &Value) -> Self {
        let mut answer = Self::default();
        let list = |key: &str| body.get(key).and_then(Value::as_array).into_iter().flatten();
        let number = |of: &Value, key: &str| of.get(key).and_then(Value::as_u64).unwrap_or(0);
        let length = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).map_or(0, |ids| ids.len() as u64);
        for completion in list("completions") {
            answer.text_tokens += length(completion, "token_ids");
            answer.positions += number(completion, "positions_evaluated");
            answer.steps += number(completion, "steps");
        }
        for image in list("images") {
            answer.images += 1;
            answer.image_codes += length(image, "codes");
            answer.positions += number(image, "positions_evaluated");
            answer.steps += number(image, "steps");
        }
        answer
    }
}

/// What a run gave.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// First start to last answer.
    pub elapsed: Duration,
    /// Answers with status 200.
    pub answers: Vec<Answer>,
    /// What went wrong with the others.
    pub failures: Vec<String>,
    /// The server's counters before and after; several of runs that are taken as one.
    pub stretches: Vec<[Totals; 2]>,
}

impl Measured {
    /// Both runs as one.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.elapsed += other.elapsed;
        self.answers.extend(other.answers);
        self.failures.extend(other.failures);
        self.stretches.extend(other.stretches);
        self
    }
}

/// A server under measurement.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
}

impl Client {
    /// A client of the server at `base`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        Ok(Self { http, base: base.trim_end_matches('/').into() })
    }

    async fn get(&self, path: &str) -> anyhow::Result<Response> {
        let url = format!("{}{path}", self.base);
        let answer = self.http.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
        Ok(answer.error_for_status()?)
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn info(&self) -> anyhow::Result<Value> {
        Ok(self.get("/info").await?.json().await?)
    }

    async fn totals(&self) -> anyhow::Result<Totals> {
        Ok(Totals::read(&self.get("/metrics").await?.text().await?))
    }

    /// Warms up with one request of each kind, then runs the plan.
    ///
    /// # Errors
    /// When the server's metrics cannot be read; failed requests are counted, not errors.
    pub async fn run(&self, plan: &Plan) -> anyhow::Result<Measured> {
        for warm in 0..2 {
            // An outcome of a warm-up says nothing; a broken server fails the run itself.
            let _ = self.send(plan, u64::MAX - warm).await;
        }
        let before = self.totals().await?;
        let start = Instant::now();
        let outcomes = match plan.arrivals {
            Arrivals::Closed { clients } => self.closed(plan, clients, start).await,
            Arrivals::Open { per_second } => self.open(plan, per_second, start).await,
        };
        let mut measured = Measured { elapsed: start.elapsed(), ..Measured::default() };
        measured.stretches.push([before, self.totals().await?]);
        for outcome in outcomes {
            match outcome {
                Ok(answer) => measured.answers.push(answer),
                Err(failure) => measured.failures.push(failure),
            }
        }
        Ok(measured)
    }

    async fn closed(&self, plan: &Plan, clients: u32, start: Instant) -> Vec<Result<Answer, String>> {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (client, plan, next) = (self.clone(), *plan, Arc::clone(&next));
            tasks.spawn(async move {
                let mut outcomes = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let over = match plan.amount {
                        Amount::Time(time) => start.elapsed() >= time,
                        Amount::Requests(requests) => index >= requests,
                    };
                    if over {
                        return outcomes;
                    }
                    outcomes.push(client.timed(&plan, index, Instant::now()).await);
                }
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    async fn open(&self, plan: &Plan, per_second: f64, start: Instant) -> Vec<Result<Answer, String>> {
        let mut gaps = Stream::new(plan.seed, u64::MAX);
        let (mut outcomes, mut tasks, mut due) = (Vec::new(), JoinSet::new(), 0.0);
        for index in 0.. {
            due -= (1.0 - gaps.unit()).ln() / per_second;
            let over = match plan.amount {
                Amount::Time(time) => due >= time.as_secs_f64(),
                Amount::Requests(requests) => index >= requests,
            };
            if over {
                break;
            }
            let planned = start + Duration::from_secs_f64(due);
            sleep_until(planned).await;
            while let Some(done) = tasks.try_join_next() {
                outcomes.extend(done.ok());
            }
            if tasks.len() >= MAX_OUTSTANDING {
                outcomes.push(Err(format!("not sent: {MAX_OUTSTANDING} requests were unanswered")));
                continue;
            }
            let (client, plan) = (self.clone(), *plan);
            tasks.spawn(async move { client.timed(&plan, index, planned).await });
        }
        outcomes.extend(tasks.join_all().await);
        outcomes
    }

    async fn timed(&self, plan: &Plan, index: u64, start: Instant) -> Result<Answer, String> {
        let body = self.send(plan, index).await.map_err(|e| format!("{e:#}"))?;
        Ok(Answer { latency: start.elapsed(), ..Answer::read(&body) })
    }

    async fn send(&self, plan: &Plan, index: u64) -> anyhow::Result<Value> {
        let (path, body) = request(plan.kind, plan.seed, index);
        let answer = self.http.post(format!("{}{path}", self.base)).json(&body).send().await?;
        let status = answer.status();
        anyhow::ensure!(status.is_success(), "{status}: {}", answer.text().await.unwrap_or_default());
        Ok(answer.json().await?)
    }
}

/// Path and body of request `index`: the same for the same seed, on every machine. Prompts are of the starter model's
/// tasks, settings the server's defaults, and nothing is kept: what is measured is generation.
fn request(kind: Kind, seed: u64, index: u64) -> (&'static str, Value) {
    let text = match kind {
        Kind::Text => true,
        Kind::Image => false,
        Kind::Mixed => index.is_multiple_of(2),
    };
    let mut draws = Stream::new(seed, index);
    // JSON numbers beyond 2^53 are not exact everywhere.
    let sampling_seed = draws.next_u64() >> 11;
    if text {
        let prompt = words::sample_mixed(&mut draws, words::Split::HeldOut).question;
        let body = json!({ "prompt": prompt, "seed": sampling_seed, "return": ["token_ids"], "store": false });
        ("/generate/text", body)
    } else {
        let prompt = scenes::sample_any(&mut draws, scenes::Split::HeldOut).caption;
        let body = json!({ "prompt": prompt, "seed": sampling_seed, "return": ["codes"], "store": false });
        ("/generate/image", body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_kinds_are_read() {
        let text = json!({ "completions": [
            { "token_ids": [1, 2, 3], "steps": 4, "positions_evaluated": 40 },
            { "token_ids": [1], "steps": 2, "positions_evaluated": 20 },
        ]});
        let read = Answer::read(&text);
        assert_eq!((read.text_tokens, read.steps, read.positions, read.images), (4, 6, 60, 0));
        let image = json!({ "images": [{ "codes": [0, 0], "steps": 8, "positions_evaluated": 9, "b64": "" }] });
        let read = Answer::read(&image);
        assert_eq!((read.image_codes, read.images, read.steps, read.positions), (2, 1, 8, 9));
    }

    #[test]
    fn turns_are_a_run_together() {
        let plan = |arrivals, amount| Plan { kind: Kind::Text, arrivals, amount, seed: 1 };
        let (closed, open) = (Arrivals::Closed { clients: 2 }, Arrivals::Open { per_second: 3.0 });
        let (time, requests) = (Amount::Time(Duration::from_secs(20)), Amount::Requests(8));
        let turns: Vec<Plan> = plan(closed, time).turns().collect();
        assert!(turns.iter().all(|turn| turn.amount == Amount::Time(Duration::from_secs(5))) && turns.len() == 4);
        assert_eq!(turns[0].seed, 1);
        assert_ne!(request(Kind::Text, turns[0].seed, 0), request(Kind::Text, turns[1].seed, 0));
        for whole in [plan(closed, requests), plan(open, time), plan(open, requests)] {
            assert_eq!(whole.turns().collect::<Vec<_>>(), [whole]);
        }
    }

    #[test]
    fn mixed_takes_turns_and_prompts_repeat() {
        assert_eq!(request(Kind::Mixed, 1, 0).0, "/generate/text");
        assert_eq!(request(Kind::Mixed, 1, 1).0, "/generate/image");
        assert_eq!(request(Kind::Text, 3, 5), request(Kind::Text, 3, 5));
        assert_ne!(request(Kind::Text, 3, 5), request(Kind::Text, 3, 6));
    }
}
