//! The course of the demo: judge the base, let the crowd talk and the server learn, judge every new version, and in the
//! end judge the first and the last closely.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use super::client::{Client, Training};
use super::crowd::{Crowd, Mood};
use super::judge::{Judge, Marks};
use super::report::{BaseBest, Gain, HeldOut, Latencies, Latency, Report, Requests, Version, sparkline};
use super::task::{Opinion, Task};
use super::watch::{self, Pauses, Probe, Swap};
use super::{DemoArgs, Server};
use crate::cli::term;
use crate::starter::scenes::Codec;

/// Interactive requests by which latency without learning is measured.
const ALONE: u64 = 30;
/// How often the course is thought over.
const TICK: Duration = Duration::from_millis(100);
/// Time between an exchange of versions and the judge's requests: what is in flight then waits for the exchange alone.
const ASIDE: Duration = Duration::from_millis(500);
/// How long a run of the trainer that was told to stop may take.
const PATIENCE: Duration = Duration::from_secs(60);
const BASE: &str = "base@0";

/// A demo under way.
pub struct Session<'a> {
    args: &'a DemoArgs,
    client: Client,
    codec: Arc<Codec>,
    judge: Judge,
    bar: ProgressBar,
    versions: Vec<(Version, Marks)>,
    runs: Vec<Value>,
    begun: Instant,
    /// Time for which everybody waited while a version was judged.
    judging: Duration,
}

/// What the watchers keep.
#[derive(Default)]
struct Seen {
    swaps: Arc<Mutex<Vec<Swap>>>,
    latencies: Arc<Mutex<Vec<Duration>>>,
    streams: Arc<Mutex<Vec<Vec<Instant>>>>,
}

fn kept<T: Clone>(of: &Mutex<Vec<T>>) -> Vec<T> {
    of.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl<'a> Session<'a> {
    /// A demo on `server`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(args: &'a DemoArgs, server: &Server) -> anyhow::Result<Self> {
        let (client, codec) = (Client::new(&server.url())?, Arc::new(Codec::new()));
        let judge = Judge { client: client.clone(), task: args.task, seed: args.seed, codec: Arc::clone(&codec) };
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(200));
        let (versions, runs) = (Vec::new(), Vec::new());
        Ok(Self { args, client, codec, judge, bar, versions, runs, begun: Instant::now(), judging: Duration::ZERO })
    }

    /// Runs it.
    ///
    /// # Errors
    /// When the server does not answer, or its model takes no adapters.
    pub async fn run(mut self) -> anyhow::Result<Report> {
        let probe = Probe { client: self.client.clone(), task: self.args.task, seed: self.args.seed };
        self.judge_version(BASE, 0.0).await?;
        let seen = Seen::default();
        (self.begun, self.judging) = (Instant::now(), Duration::ZERO);
        let training = self.learn(probe.clone(), &seen).await?;
        let minutes = self.learned().as_secs_f64() / 60.0;
        self.bar.set_message("latency with nothing else going on");
        // Afterwards, with an adapter, as most were served while it trained: one costs a little time itself.
        let alone = probe.some(ALONE).await?;
        let judged = self.conclude().await?;
        self.bar.finish_and_clear();
        Ok(self.report(minutes, &alone, &seen, &training, judged))
    }

    /// The crowd talks and the server learns, until the time is over.
    async fn learn(&mut self, probe: Probe, seen: &Seen) -> anyhow::Result<Training> {
        let (out, training) = channel::channel(self.client.training().await?);
        let (mood, moods) = channel::channel(Mood::Asks);
        let crowd = Crowd {
            client: self.client.clone(),
            task: self.args.task,
            people: self.args.people.into(),
            seed: self.args.seed,
            codec: Arc::clone(&self.codec),
        };
        let mut watchers = JoinSet::new();
        watchers.spawn(watch::poll(self.client.clone(), out, Arc::clone(&seen.swaps)));
        watchers.spawn(probe.while_training(training.clone(), Arc::clone(&seen.latencies)));
        watchers.spawn(watch::stream(self.client.clone(), training.clone(), Arc::clone(&seen.streams)));
        let crowd = tokio::spawn(crowd.run(moods));
        let outcome = self.follow(&training, &mood).await;
        mood.send_replace(Mood::Leaves);
        self.client.pause().await?;
        crowd.await?;
        let patience = Instant::now() + PATIENCE;
        while training.borrow().busy() && Instant::now() < patience {
            tokio::time::sleep(TICK).await;
        }
        watchers.shutdown().await;
        outcome?;
        // A candidate that was at the gate when the time was over may have passed it.
        let last = self.client.training().await?;
        self.note_run(&last);
        if self.versions.last().is_none_or(|(version, _)| version.version != last.current) {
            self.judge_version(&last.current, self.learned().as_secs_f64()).await?;
        }
        Ok(last)
    }

    async fn follow(
        &mut self,
        training: &channel::Receiver<Training>,
        mood: &channel::Sender<Mood>,
    ) -> anyhow::Result<()> {
        let time = Duration::from_secs_f64(self.args.minutes * 60.0);
        while self.learned() < time {
            let now = training.borrow().clone();
            self.note_run(&now);
            let fresh = self.versions.last().is_none_or(|(version, _)| version.version != now.current);
            let next = if now.busy() || fresh { Mood::Waits } else { Mood::Asks };
            mood.send_if_modified(|mood| std::mem::replace(mood, next) != next);
            if fresh {
                let (begun, learned) = (Instant::now(), self.learned());
                tokio::time::sleep(ASIDE).await;
                self.judge_version(&now.current, learned.as_secs_f64()).await?;
                self.judging += begun.elapsed();
                continue;
            }
            let (rated, preferred) = self.client.counts().judgements();
            self.bar.set_message(format!(
                "{} · {} waiting · {rated} ratings, {preferred} preferences · {}",
                now.state,
                now.waiting,
                self.curve()
            ));
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// Keeps what a run came to, once.
    fn note_run(&mut self, training: &Training) {
        let Some(run) = &training.last_run else { return };
        let known = self.runs.last().is_some_and(|last| last.get("id") == run.get("id"));
        if known || run.get("status").is_some_and(|status| status == "running") {
            return;
        }
        let of = |key: &str| run.pointer(&format!("/metrics/{key}")).cloned().unwrap_or_default();
        let checks = run.pointer("/metrics/gate/checks").cloned().unwrap_or_default();
        let status = run.get("status").cloned().unwrap_or_default();
        let kept = json!({
            "id": run.get("id"), "status": status, "candidate": of("candidate"), "samples": of("samples"),
            "reward": of("reward"), "lanes": of("lanes"), "gate": checks, "updates": of("updates"), "error": run.get("error"),
        });
        let failed: Vec<&Value> = checks.as_array().into_iter().flatten().filter(|c| c["passed"] == false).collect();
        if status != "promoted" {
            let why = failed.iter().map(|c| format!("{} {:.3} (limit {})", c["name"], c["value"], c["limit"]));
            let why = why.collect::<Vec<_>>().join(", ");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (candidate, status, error) = (text(&of("candidate")), text(&status), text(&run["error"]));
            self.say(format!("{candidate:<12} {status}: {why}{error}"));
        }
        self.runs.push(kept);
    }

    /// How long it has been learning: nothing is learned while a version is judged.
    fn learned(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.judging)
    }

    async fn judge_version(&mut self, version: &str, at_s: f64) -> anyhow::Result<()> {
        self.bar.set_message(format!("judging {version}"));
        let mut marks = Marks::default();
        self.judge.complete(version, &json!({}), self.args.eval_n(), &mut marks).await?;
        let (rated, preferred) = self.client.counts().judgements();
        let per = self.args.task.ratings(Opinion::default()).len().max(1) as u64;
        let held_out = HeldOut { success: 0.0, ci95: [0.0; 2], n: 0 };
        let judged = rated / per + preferred;
        let mut entry = Version { version: version.to_owned(), held_out, correctness: 0.0, at_s, judged };
        entry.set(&marks);
        let HeldOut { success, ci95: [low, high], n } = entry.held_out;
        let correct = entry.correctness;
        self.versions.push((entry, marks));
        self.say(format!(
            "{version:<12} {at_s:>5.0} s  {}: {success:.3} ({low:.3} – {high:.3}, n {n})  as asked {correct:.3}  {}",
            self.args.task.success(),
            self.curve()
        ));
        Ok(())
    }

    /// The base and the last version on all prompts; with the sweep also at the base's best settings.
    async fn conclude(&mut self) -> anyhow::Result<Option<(Value, Marks, Marks)>> {
        let n = self.args.final_n;
        for at in [0, self.versions.len() - 1] {
            let (entry, marks) = &mut self.versions[at];
            self.bar.set_message(format!("judging {} closely", entry.version));
            self.judge.complete(&entry.version, &json!({}), n, marks).await?;
            entry.set(marks);
        }
        if !self.args.sweep.unwrap_or(self.args.task != Task::Taste) {
            return Ok(None);
        }
        self.bar.set_message("the base at other settings");
        let say = |settings: &Value, share: crate::starter::eval::Share| {
            say(&self.bar, format!("base with {settings}: {:.3} (n {})", share.share, share.n));
        };
        let (settings, base) = self.judge.best(BASE, n, say).await?;
        let served = self.versions[0].1.success().share;
        let last = &self.versions[self.versions.len() - 1];
        // The served settings are settings too.
        if served >= base.success().share {
            return Ok(Some((json!({}), self.versions[0].1.clone(), last.1.clone())));
        }
        let mut marks = Marks::default();
        self.judge.complete(&last.0.version, &settings, n, &mut marks).await?;
        Ok(Some((settings, base, marks)))
    }

    fn report(
        self,
        minutes: f64,
        alone: &[Duration],
        seen: &Seen,
        training: &Training,
        best: Option<(Value, Marks, Marks)>,
    ) -> Report {
        let wanted: fn(&Opinion) -> bool = |opinion| opinion.wanted;
        let (seed, counts) = (self.args.seed, self.client.counts());
        let (base, last) = (&self.versions[0].1, &self.versions[self.versions.len() - 1].1);
        let gain_served = Gain::new(last.gain(base, wanted, seed), "base_served");
        let correctness_change = Gain::new(last.gain(base, |opinion| opinion.correct, seed), "base_served");
        let gain = best.as_ref().map_or_else(
            || gain_served.clone(),
            |(_, base, last)| Gain::new(last.gain(base, wanted, seed), "base_best"),
        );
        let base_best = best.map(|(sampler, base, last)| {
            let share = base.success();
            let last_success = last.success().share;
            BaseBest { success: share.share, ci95: share.ci95, n: share.n, sampler, last_success }
        });
        let (ok, failed, mixed_version) = counts.requests();
        let (ratings, preferences) = counts.judgements();
        let swaps = kept(&seen.swaps);
        let pauses = Pauses::new(&swaps, &kept(&seen.streams));
        Report {
            task: self.args.task,
            seed,
            minutes,
            versions: self.versions.into_iter().map(|(version, _)| version).collect(),
            base_best,
            gain,
            gain_served,
            correctness_change,
            runs: self.runs,
            lanes: training.lanes.clone(),
            requests: Requests { ok, failed, mixed_version },
            ratings,
            preferences,
            latency_ms: Latencies { alone: Latency::of(alone), training: Latency::of(&kept(&seen.latencies)) },
            swaps: swaps.len(),
            swap_pause_ticks_max: pauses.at_swaps.iter().max().copied(),
            swaps_watched: pauses.at_swaps.len(),
            step_pause_ticks_p99: pauses.ordinary_p99(),
        }
    }

    fn curve(&self) -> String {
        let versions: Vec<Version> = self.versions.iter().map(|(version, _)| version.clone()).collect();
        sparkline(&versions)
    }

    fn say(&self, line: String) {
        say(&self.bar, line);
    }
}

/// Above the live line on a terminal, a line elsewhere.
fn say(bar: &ProgressBar, line: String) {
    bar.suspend(|| term::note(line));
}
