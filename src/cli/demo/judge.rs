//! How good a version is: held-out prompts over HTTP, pinned to the version, the same prompts and seeds for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::Client;
use super::task::{Opinion, Task};
use crate::diffusion::rng::mix64;
use crate::rl::gate::{Interval, bootstrap};
use crate::starter::eval::Share;
use crate::starter::scenes::Codec;

/// Requests that are under way at the same time.
const AT_A_TIME: usize = 24;
/// How often a refused request is tried again: a full queue is no verdict on a version.
const TRIES: u32 = 3;
/// Prompts by which settings are compared before the best is confirmed.
const SWEEP: usize = 60;

/// Completes held-out prompts and judges them.
#[derive(Clone)]
pub struct Judge {
    /// Its way to the server.
    pub client: Client,
    /// What people want.
    pub task: Task,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Reads pictures.
    pub codec: Arc<Codec>,
}

/// What a version, at some settings, made of the held-out prompts, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marks {
    /// One opinion per prompt.
    pub opinions: Vec<Opinion>,
}

impl Marks {
    /// The share that people want.
    #[must_use]
    pub fn success(&self) -> Share {
        self.share(|opinion| opinion.wanted)
    }

    /// The share that is what was asked for.
    #[must_use]
    pub fn correctness(&self) -> Share {
        self.share(|opinion| opinion.correct)
    }

    fn share(&self, of: fn(&Opinion) -> bool) -> Share {
        Share::of(self.opinions.iter().filter(|opinion| of(opinion)).count(), self.opinions.len())
    }

    /// What `self` gains over `base` on the prompts that both have, with a paired interval.
    #[must_use]
    pub fn gain(&self, base: &Self, of: fn(&Opinion) -> bool, seed: u64) -> Interval {
        let number = |opinion: &Opinion| f64::from(u8::from(of(opinion)));
        let pairs = self.opinions.iter().zip(&base.opinions);
        bootstrap(&pairs.map(|(new, old)| number(new) - number(old)).collect::<Vec<_>>(), seed)
    }
}

impl Judge {
    /// Judges `version` at `settings` (an empty object: as served) until `marks` has `n`; what it has is kept.
    ///
    /// # Errors
    /// When a request fails again and again.
    pub async fn complete(&self, version: &str, settings: &Value, n: usize, marks: &mut Marks) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU64::new(marks.opinions.len() as u64));
        let mut tasks = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (judge, next) = (self.clone(), Arc::clone(&next));
            let (version, settings) = (version.to_owned(), settings.clone());
            tasks.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= n as u64 {
                        return anyhow::Ok(done);
                    }
                    done.push((index, judge.one(&version, &settings, index).await?));
                }
            });
        }
        let mut all = Vec::new();
        while let Some(done) = tasks.join_next().await {
            all.extend(done??);
        }
        all.sort_by_key(|(index, _)| *index);
        marks.opinions.extend(all.into_iter().map(|(_, opinion)| opinion));
        Ok(())
    }

    async fn one(&self, version: &str, settings: &Value, index: u64) -> anyhow::Result<Opinion> {
        let prompt = self.task.prompt(self.seed, index, true);
        let seed = mix64(mix64(self.seed ^ 0x10D6E) ^ index) >> 11;
        let more = json!({ "adapter": version, "seed": seed, "n": 1, "priority": "batch", "store": false });
        let body = prompt.request(settings, more);
        let mut tries = 0;
        let reply = loop {
            tries += 1;
            match self.client.generate(self.task.route(), &body).await {
                Ok((reply, _)) => break reply,
                Err(error) if tries >= TRIES => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        let opinions = self.task.look(&self.codec, &prompt, &reply)?;
        opinions.first().map(|(_, opinion)| *opinion).context("a reply without a completion")
    }

    /// The settings at which `version` does best: all of them on some prompts, the best on `n`.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub async fn best(
        &self,
        version: &str,
        n: usize,
        mut heard: impl FnMut(&Value, Share),
    ) -> anyhow::Result<(Value, Marks)> {
        let mut best: Option<(f64, Value, Marks)> = None;
        for settings in self.task.settings() {
            let mut marks = Marks::default();
            self.complete(version, &settings, SWEEP.min(n), &mut marks).await?;
            let share = marks.success();
            heard(&settings, share);
            if best.as_ref().is_none_or(|(success, ..)| share.share > *success) {
                best = Some((share.share, settings, marks));
            }
        }
        let (_, settings, mut marks) = best.context("no settings to try")?;
        self.complete(version, &settings, n, &mut marks).await?;
        Ok((settings, marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(wanted: &[bool]) -> Marks {
        Marks { opinions: wanted.iter().map(|&wanted| Opinion { wanted, ..Opinion::default() }).collect() }
    }

    #[test]
    fn gains_are_paired() {
        let (base, new) = (marks(&[true, false, false, false]), marks(&[true, true, true, false, true]));
        let gain = new.gain(&base, |opinion| opinion.wanted, 1);
        assert_eq!((gain.mean, gain.n), (0.5, 4), "the prompt that only one has does not count");
        assert!((base.success().share - 0.25).abs() < 1e-12);
        let same = base.gain(&base, |opinion| opinion.wanted, 1);
        assert_eq!((same.mean, same.ci95), (0.0, [0.0, 0.0]));
    }
}
