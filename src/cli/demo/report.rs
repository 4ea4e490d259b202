//! What the demo showed: the JSON that scripts read, and the table that people do.

use std::time::Duration;

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::judge::Marks;
use super::task::Task;
use super::watch::quantile_ms;
use crate::rl::gate::Interval;

/// A share of the held-out prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct HeldOut {
    /// The share that people want.
    pub success: f64,
    /// Wilson's 95 % interval.
    pub ci95: [f64; 2],
    /// Prompts.
    pub n: usize,
}

/// A version that was served.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Version {
    /// `name@version`.
    pub version: String,
    /// Success at the served settings.
    pub held_out: HeldOut,
    /// Share that is what was asked for.
    pub correctness: f64,
    /// Seconds from the start of learning to its first request.
    pub at_s: f64,
    /// Completions that people had judged by then.
    pub judged: u64,
}

impl Version {
    /// Takes in more marks.
    pub fn set(&mut self, marks: &Marks) {
        let share = marks.success();
        self.held_out = HeldOut { success: share.share, ci95: share.ci95, n: share.n };
        self.correctness = marks.correctness().share;
    }
}

/// The base at the settings that suit it best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaseBest {
    /// Its success there.
    pub success: f64,
    /// Wilson's 95 % interval.
    pub ci95: [f64; 2],
    /// Prompts.
    pub n: usize,
    /// The settings.
    pub sampler: Value,
    /// The last version at the same settings.
    pub last_success: f64,
}

/// What the last version gained, in points of a hundred.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gain {
    /// Points.
    pub points: f64,
    /// Paired bootstrap interval.
    pub ci95: [f64; 2],
    /// Pairs.
    pub n: usize,
    /// `base_best` or `base_served`.
    pub against: &'static str,
}

impl Gain {
    /// In points.
    #[must_use]
    pub fn new(interval: Interval, against: &'static str) -> Self {
        let points = |x: f64| (x * 1e4).round() / 1e2;
        Self { points: points(interval.mean), ci95: interval.ci95.map(points), n: interval.n, against }
    }
}

/// Generate requests by how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Answered.
    pub ok: u64,
    /// Not answered.
    pub failed: u64,
    /// Whose completions came of several versions.
    pub mixed_version: u64,
}

/// Latency of one interactive request after another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Milliseconds; null when there was no request.
    pub p95: Option<f64>,
    /// Milliseconds.
    pub p50: Option<f64>,
    /// Requests a second.
    pub per_s: Option<f64>,
    /// Requests.
    pub n: usize,
}

impl Latency {
    /// Of requests that were sent one after another.
    #[must_use]
    pub fn of(latencies: &[Duration]) -> Self {
        let n = latencies.len();
        let per_s = (n > 0).then(|| n as f64 / latencies.iter().sum::<Duration>().as_secs_f64());
        Self { p95: quantile_ms(latencies, 0.95), p50: quantile_ms(latencies, 0.5), per_s, n }
    }
}

/// With nothing else going on, and while the trainer computes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latencies {
    /// After all learning.
    pub alone: Latency,
    /// While the trainer computes.
    pub training: Latency,
}

/// What the demo showed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The task.
    pub task: Task,
    /// Its seed.
    pub seed: u64,
    /// Minutes of learning; the waits in which versions were judged do not count.
    pub minutes: f64,
    /// Versions in the order in which they were served, the base first.
    pub versions: Vec<Version>,
    /// The base at its best; null without `--sweep`.
    pub base_best: Option<BaseBest>,
    /// What the last version gained.
    pub gain: Gain,
    /// The same against the base at the served settings.
    pub gain_served: Gain,
    /// What correctness changed by, against the base at the served settings.
    pub correctness_change: Gain,
    /// Runs of the trainer with what the gate said.
    pub runs: Vec<Value>,
    /// Samples by lane, used and dropped.
    pub lanes: Value,
    /// Requests.
    pub requests: Requests,
    /// Ratings given.
    pub ratings: u64,
    /// Preferences given.
    pub preferences: u64,
    /// Latencies of interactive requests.
    pub latency_ms: Latencies,
    /// Versions exchanged.
    pub swaps: usize,
    /// Most steps by which a request in flight was late when versions were exchanged; null when none was in flight.
    pub swap_pause_ticks_max: Option<u64>,
    /// Swaps at which one was in flight.
    pub swaps_watched: usize,
    /// Steps by which 99 of a hundred steps of the same requests are late at most when nothing is exchanged.
    pub step_pause_ticks_p99: Option<u64>,
}

impl Report {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        let header = ["version", self.task.success(), "95 % interval", "n", "as asked", "after", "judged"];
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
        for Version { version, held_out, correctness, at_s, judged } in &self.versions {
            let [low, high] = held_out.ci95;
            table.add_row([
                version.clone(),
                format!("{:.3}", held_out.success),
                format!("{low:.3} – {high:.3}"),
                held_out.n.to_string(),
                format!("{correctness:.3}"),
                format!("{at_s:.0} s"),
                judged.to_string(),
            ]);
        }
        let gain = |gain: &Gain| {
            let [low, high] = gain.ci95;
            format!("{:+.1} points ({low:+.1} to {high:+.1}, n {})", gain.points, gain.n)
        };
        let best = self.base_best.as_ref().map_or(String::new(), |best| {
            let (base, last) = (best.success, best.last_success);
            format!("base at its best  {base:.3} with {}; the last version there {last:.3}\n", best.sampler)
        });
        let Requests { ok, failed, mixed_version } = self.requests;
        let ms = |ms: Option<f64>| ms.map_or("–".to_owned(), |ms| format!("{ms:.0} ms"));
        let Latencies { alone, training } = self.latency_ms;
        let ticks = |ticks: Option<u64>| ticks.map_or("not seen".to_owned(), |ticks| format!("{ticks} ticks"));
        let (pause, ordinary) = (ticks(self.swap_pause_ticks_max), ticks(self.step_pause_ticks_p99));
        format!(
            "{table}\n{best}gain              {} over {}\nas asked          {}\nrequests          {ok} ok, {failed} \
             failed, {mixed_version} of mixed versions\npeople            {} ratings, {} preferences\nlatency p95       \
             {} alone, {} while training\nswaps             {}, longest pause {pause}; without a swap, 99 % of steps {ordinary}",
            gain(&self.gain),
            self.gain.against,
            gain(&self.correctness_change),
            self.ratings,
            self.preferences,
            ms(alone.p95),
            ms(training.p95),
            self.swaps,
        )
    }
}

/// The shares as a line of blocks, 0 to 1.
#[must_use]
pub fn sparkline(versions: &[Version]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |share: f64| BLOCKS[((share * 8.0) as usize).min(7)];
    versions.iter().map(|version| block(version.held_out.success)).collect()
}
