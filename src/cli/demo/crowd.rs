//! The simulated people: they ask, look, and say what they think, some wrongly and some not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::Client;
use super::task::{Opinion, Task};
use crate::cli::term;
use crate::diffusion::rng::{Stream, mix64};
use crate::starter::scenes::Codec;

/// Share of ratings that say the opposite of what the person thinks.
const WRONG: f64 = 0.05;
/// Share of results that nobody says anything of.
const SILENT: f64 = 0.1;
/// One person in this many compares instead of rating.
const COMPARES_ONE_IN: usize = 6;
/// People who have a request running at the same time.
const AT_A_TIME: usize = 4;
/// A look at the pictures, or a pause after something failed.
const THINK: Duration = Duration::from_millis(20);

/// What the crowd may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// Ask.
    Asks,
    /// Wait: the trainer computes, or a version is judged.
    Waits,
    /// It is over.
    Leaves,
}

/// Everybody.
#[derive(Clone)]
pub struct Crowd {
    /// Their way to the server.
    pub client: Client,
    /// What they want.
    pub task: Task,
    /// How many they are.
    pub people: usize,
    /// Seed of prompts, sampling and noise.
    pub seed: u64,
    /// Reads what comes.
    pub codec: Arc<Codec>,
}

impl Crowd {
    /// Runs until the mood is to leave.
    pub async fn run(self, mood: watch::Receiver<Mood>) {
        let next = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (crowd, mut mood, next) = (self.clone(), mood.clone(), Arc::clone(&next));
            tasks.spawn(async move {
                loop {
                    let Ok(now) = mood.wait_for(|mood| *mood != Mood::Waits).await.map(|mood| *mood) else { return };
                    if now == Mood::Leaves {
                        return;
                    }
                    if let Err(error) = crowd.turn(next.fetch_add(1, Ordering::Relaxed)).await {
                        term::note(format_args!("a person was let down: {error:#}"));
                    }
                    tokio::time::sleep(THINK).await;
                }
            });
        }
        tasks.join_all().await;
    }

    /// One person asks once, looks, and rates.
    async fn turn(&self, index: u64) -> anyhow::Result<()> {
        let mut stream = Stream::new(mix64(self.seed ^ 0xC20D), index);
        let person = stream.below(self.people.max(1));
        let user = format!("person-{person}");
        let prompt = self.task.prompt(self.seed, index, false);
        // JSON numbers beyond 2^53 are not exact everywhere.
        let more = json!({ "seed": stream.next_u64() >> 11, "user": user });
        let (reply, _) = self.client.generate(self.task.route(), &prompt.request(&self.task.asked(), more)).await?;
        let opinions = self.task.look(&self.codec, &prompt, &reply)?;
        let ids: Vec<&str> = opinions.iter().map(|(id, _)| id.as_str()).collect();
        self.client.check_version(&reply, &ids).await?;
        let mut said = Vec::with_capacity(opinions.len());
        for (id, opinion) in &opinions {
            if !stream.chance(SILENT) {
                said.push((id.as_str(), noisy(*opinion, &mut stream)));
            }
        }
        if person.is_multiple_of(COMPARES_ONE_IN) && self.compare(&said, &user).await? {
            return Ok(());
        }
        for (id, opinion) in said {
            for (metric, value) in self.task.ratings(opinion) {
                self.client.rate(id, metric, value, &user).await?;
            }
        }
        Ok(())
    }

    /// Those that are liked before the others; `false` if there is nothing to compare.
    async fn compare(&self, said: &[(&str, Opinion)], user: &str) -> anyhow::Result<bool> {
        let those = |liked: bool| -> Vec<&str> {
            said.iter().filter(|(_, opinion)| opinion.wanted == liked).map(|(id, _)| *id).collect()
        };
        let (liked, others) = (those(true), those(false));
        if liked.is_empty() || others.is_empty() {
            return Ok(false);
        }
        self.client.prefer(&liked, &others, user).await?;
        Ok(true)
    }
}

/// What a person says, now and then the opposite.
fn noisy(opinion: Opinion, stream: &mut Stream) -> Opinion {
    let mut flip = |value: bool| value != stream.chance(WRONG);
    Opinion { wanted: flip(opinion.liked()), correct: flip(opinion.correct), soft: opinion.soft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_wrong() {
        let mut stream = Stream::new(1, 1);
        let mut liked = |correct: bool| {
            let opinion = Opinion { wanted: true, correct, ..Opinion::default() };
            (0..4000).filter(|_| noisy(opinion, &mut stream).wanted).count() as f64 / 4000.0
        };
        let (right, wrong) = (liked(true), liked(false));
        assert!((1.0 - right - WRONG).abs() < 0.015 && (wrong - WRONG).abs() < 0.015, "{right} {wrong}");
    }
}
