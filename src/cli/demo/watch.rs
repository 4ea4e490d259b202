//! What learning does to those who are served meanwhile: the latency of interactive requests, and the pause of a
//! request in flight when a version is exchanged.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;

use super::client::{Client, Training};
use super::task::Task;

/// How often the trainer is asked what it does.
const POLL: Duration = Duration::from_millis(50);
/// Pause after a stream that could not be had.
const AGAIN: Duration = Duration::from_secs(2);

/// Asks what the trainer does, forever.
pub async fn poll(client: Client, out: watch::Sender<Training>, swaps: Arc<Mutex<Vec<Swap>>>) {
    let mut asked = Instant::now();
    loop {
        let begun = Instant::now();
        if let Ok(training) = client.training().await {
            let before = out.send_replace(training.clone());
            if !before.current.is_empty() && before.current != training.current {
                let swap = Swap { since: asked, until: Instant::now() };
                swaps.lock().unwrap_or_else(PoisonError::into_inner).push(swap);
            }
            asked = begun;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// When a version was exchanged: between these moments.
#[derive(Debug, Clone, Copy)]
pub struct Swap {
    since: Instant,
    until: Instant,
}

/// Pauses between two requests, in latencies of the last. Learning gives way to serving: one request after another would
/// leave it nothing.
const SPACING: u32 = 9;

/// Sends interactive requests one after another.
#[derive(Clone)]
pub struct Probe {
    /// Its way to the server.
    pub client: Client,
    /// What it asks for, at the served settings.
    pub task: Task,
    /// Seed of prompts and sampling.
    pub seed: u64,
}

impl Probe {
    async fn one(&self, index: u64) -> anyhow::Result<Duration> {
        let more = json!({ "seed": index, "store": false });
        let body = self.task.prompt(self.seed ^ 0x9806, index, false).request(&json!({}), more);
        Ok(self.client.generate(self.task.route(), &body).await?.1)
    }

    /// Latencies of `n` requests, with the same pauses as while it trains: after them a machine can be slower, with and
    /// without learning.
    ///
    /// # Errors
    /// When one fails.
    pub async fn some(&self, n: u64) -> anyhow::Result<Vec<Duration>> {
        let mut out = Vec::new();
        for index in 0..n {
            let latency = self.one(index).await?;
            out.push(latency);
            tokio::time::sleep(latency * SPACING).await;
        }
        Ok(out)
    }

    /// Latencies of the requests that began and ended while it trained, kept in `out`; runs forever.
    pub async fn while_training(self, mut training: watch::Receiver<Training>, out: Arc<Mutex<Vec<Duration>>>) {
        let mut index = 0;
        while training.wait_for(|now| now.state == "training").await.is_ok() {
            // What the crowd asked for before training began is not what is measured.
            while self.client.counts().under_way() > 0 {
                tokio::time::sleep(POLL).await;
            }
            while training.borrow().state == "training" {
                let asked = Instant::now();
                let latency = self.one(index).await;
                index += 1;
                match latency {
                    Ok(latency) if training.borrow().state == "training" => {
                        out.lock().unwrap_or_else(PoisonError::into_inner).push(latency);
                    }
                    Ok(_) | Err(_) => {}
                }
                tokio::time::sleep(asked.elapsed() * SPACING).await;
            }
        }
    }
}

/// Streams pictures while a candidate is at the gate, so that something is in flight when versions are exchanged. They
/// have the gate's own priority: beside anything higher the gate would wait. Keeps when each stream's steps arrived; runs
/// forever.
pub async fn stream(client: Client, mut training: watch::Receiver<Training>, out: Arc<Mutex<Vec<Vec<Instant>>>>) {
    let body = json!({ "prompt": "a circle", "seed": 1, "store": false, "stream": true, "preview_every": 0,
        "guidance_scale": 0, "priority": "rollout" });
    while training.wait_for(|now| now.state == "gating").await.is_ok() {
        match client.steps("/generate/image", &body).await {
            Ok(steps) => out.lock().unwrap_or_else(PoisonError::into_inner).push(steps),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// How late the steps of requests in flight were, in steps. A request makes a step each tick, so that a gap of one median
/// step is no pause at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pauses {
    /// The latest step around each swap that a stream was in flight at.
    pub at_swaps: Vec<u64>,
    /// Every other step of the streams, ascending: what is ordinary, since ticks are of many lengths.
    pub elsewhere: Vec<u64>,
}

impl Pauses {
    /// Reads them off the moments at which the steps of `streams` arrived.
    #[must_use]
    pub fn new(swaps: &[Swap], streams: &[Vec<Instant>]) -> Self {
        let mut out = Self::default();
        for steps in streams {
            let mut gaps: Vec<f64> = steps.windows(2).map(gap).collect();
            gaps.sort_by(f64::total_cmp);
            let Some(&median) = gaps.get(gaps.len() / 2) else { continue };
            let late = |pair: &[Instant]| ((gap(pair) / median.max(1e-4)).round() as u64).saturating_sub(1);
            let at = |swap: &Swap| steps.windows(2).filter(|pair| swap.meets(pair)).map(late).max();
            out.at_swaps.extend(swaps.iter().filter_map(at));
            out.elsewhere.extend(steps.windows(2).filter(|pair| !swaps.iter().any(|swap| swap.meets(pair))).map(late));
        }
        out.elsewhere.sort_unstable();
        out
    }

    /// What 99 of a hundred steps are not later than without a swap.
    #[must_use]
    pub fn ordinary_p99(&self) -> Option<u64> {
        self.elsewhere.get((self.elsewhere.len() * 99).div_ceil(100).saturating_sub(1)).copied()
    }
}

impl Swap {
    fn meets(&self, pair: &[Instant]) -> bool {
        pair[0] <= self.until && pair[1] >= self.since
    }
}

fn gap(pair: &[Instant]) -> f64 {
    pair[1].duration_since(pair[0]).as_secs_f64()
}

/// The quantile `q` of latencies, in milliseconds; `None` without any.
#[must_use]
pub fn quantile_ms(latencies: &[Duration], q: f64) -> Option<f64> {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    let at = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).map(|latency| latency.as_micros() as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_step_is_a_pause_only_around_a_swap() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let stream: Vec<Instant> = [0, 10, 20, 30, 70, 80, 90].map(at).to_vec();
        let swap = |since, until| Swap { since: at(since), until: at(until) };
        let pauses = |swaps: &[Swap]| Pauses::new(swaps, std::slice::from_ref(&stream));
        assert_eq!(pauses(&[swap(40, 50)]).at_swaps, [3]);
        assert_eq!(pauses(&[swap(40, 50)]).elsewhere, [0; 5]);
        assert_eq!(pauses(&[swap(11, 12), swap(82, 85)]).at_swaps, [0, 0]);
        assert_eq!(pauses(&[swap(11, 12), swap(82, 85)]).ordinary_p99(), Some(3));
        assert_eq!(pauses(&[swap(200, 210)]).at_swaps, Vec::<u64>::new());
        assert_eq!(Pauses::new(&[], &[Vec::new()]).ordinary_p99(), None);
    }

    #[test]
    fn quantiles_are_of_the_sorted() {
        let latencies: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantile_ms(&latencies, 0.95), Some(95.0));
        assert_eq!(quantile_ms(&latencies[..1], 0.95), Some(100.0));
        assert_eq!(quantile_ms(&[], 0.95), None);
    }
}
