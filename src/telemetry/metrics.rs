//! Every metric: its name, kind, unit and help text. Code that measures uses these constants and nothing else, so this
//! file is the whole list; a snapshot test shows every change to it.
//!
//! Names follow Prometheus: one prefix, base units, `_total` for counters; labels have few values, none from clients.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution, with these upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name, as scraped.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Unit.
    pub unit: Unit,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// Durations of requests and their waiting, seconds.
const REQUEST_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
/// Durations of a tick and its parts, seconds.
const TICK_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// Rows or canvases of a tick, or rows per token.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $const:ident = $name:literal, $kind:expr, $unit:ident, [$($label:literal),*];)+) => {
        $($(#[doc = $help])+ pub const $const: &str = $name;)+
        /// Every metric there is.
        pub const ALL: &[Metric] = &[$(Metric {
            name: $name, kind: $kind, unit: Unit::$unit, labels: &[$($label),*], help: concat!($($help),+).trim_ascii(),
        }),+];
    };
}

metrics! {
    /// HTTP requests answered, by route template and status code.
    REQUESTS = "lacuna_requests_total", Kind::Counter, Count, ["route", "status"];
    /// Seconds until a response's head was ready; for streams, until they began.
    REQUEST_DURATION = "lacuna_request_duration_seconds", Kind::Histogram(REQUEST_SECONDS), Seconds, ["route"];
    /// Ratings stored, by kind of value.
    FEEDBACK = "lacuna_feedback_total", Kind::Counter, Count, ["kind"];
    /// Choices and rankings stored.
    PREFERENCES = "lacuna_preferences_total", Kind::Counter, Count, [];
    /// Training runs ended, by how they ended.
    TRAINING_RUNS = "lacuna_training_runs_total", Kind::Counter, Count, ["status"];
    /// Samples of training runs, by lane and fate: `used`, or why they were dropped.
    TRAINING_SAMPLES = "lacuna_training_samples_total", Kind::Counter, Count, ["lane", "fate"];
    /// Calls of reward hooks: one per run and hook, and per held-out prompt of a gate.
    REWARD_CALLS = "lacuna_reward_calls_total", Kind::Counter, Count, ["hook"];
    /// Scores that a reward hook could not give, by why.
    REWARD_FAILURES = "lacuna_reward_failures_total", Kind::Counter, Count, ["hook", "reason"];
    /// Seconds that a call of a reward hook took, retries included.
    REWARD_DURATION = "lacuna_reward_duration_seconds", Kind::Histogram(REQUEST_SECONDS), Seconds, ["hook"];
    /// 1 while a reward hook over HTTP is left alone because too many of its calls failed, else 0.
    REWARD_BREAKER = "lacuna_reward_breaker_open", Kind::Gauge, Count, ["hook"];
    /// Changes of which adapter versions are served.
    ADAPTER_SWAPS = "lacuna_adapter_swaps_total", Kind::Counter, Count, [];
    /// Generate requests whose client left before the end.
    DISCONNECTS = "lacuna_client_disconnects_total", Kind::Counter, Count, [];
    /// Canvases waiting for their first step.
    QUEUE_DEPTH = "lacuna_queue_depth", Kind::Gauge, Count, [];
    /// Canvases denoising.
    RUNNING = "lacuna_running_canvases", Kind::Gauge, Count, [];
    /// Seconds a canvas waited for its first step.
    QUEUE_WAIT = "lacuna_queue_seconds", Kind::Histogram(REQUEST_SECONDS), Seconds, [];
    /// Seconds from a canvas's first step to its last.
    DENOISE = "lacuna_denoise_seconds", Kind::Histogram(REQUEST_SECONDS), Seconds, ["kind"];
    /// Length of a tick: one packed forward and what surrounds it.
    TICK = "lacuna_tick_seconds", Kind::Histogram(TICK_SECONDS), Seconds, [];
    /// A tick's time by what it was spent on.
    TICK_PART = "lacuna_tick_part_seconds", Kind::Histogram(TICK_SECONDS), Seconds, ["part"];
    /// Rows of a tick's packed forward.
    TICK_ROWS = "lacuna_tick_rows", Kind::Histogram(SIZES), Count, [];
    /// Canvases that stepped in a tick.
    TICK_CANVASES = "lacuna_tick_canvases", Kind::Histogram(SIZES), Count, [];
    /// Steps of canvases: forwards that they took part in.
    STEPS = "lacuna_steps_total", Kind::Counter, Count, [];
    /// Tokens and codes committed.
    COMMITTED = "lacuna_tokens_committed_total", Kind::Counter, Count, [];
    /// PPT of a completion: rows evaluated per token of its result, guidance included.
    PPT = "lacuna_positions_per_token", Kind::Histogram(SIZES), Count, ["kind"];
    /// Rows evaluated.
    POSITIONS = "lacuna_positions_total", Kind::Counter, Count, [];
    /// Positions whose keys and values came from a cache instead of being evaluated.
    POSITIONS_CACHED = "lacuna_positions_cached_total", Kind::Counter, Count, [];
    /// Bytes of keys and values kept, for running canvases and for later ones that begin alike.
    CACHE_BYTES = "lacuna_cache_bytes", Kind::Gauge, Bytes, [];
    /// Memory that the process holds, as the system counts it; absent where it does not tell.
    RESIDENT = "lacuna_resident_memory_bytes", Kind::Gauge, Bytes, [];
    /// Completions ended, by kind.
    COMPLETIONS = "lacuna_completions_total", Kind::Counter, Count, ["kind"];
    /// Requests that the engine dropped because their client had left.
    CANCELLED = "lacuna_cancelled_total", Kind::Counter, Count, [];
    /// Forwards that failed.
    FORWARD_FAILURES = "lacuna_forward_failures_total", Kind::Counter, Count, [];
}

/// Tells the recorder what each metric is.
pub fn describe() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.unit, metric.help),
            Kind::Gauge => describe_gauge!(metric.name, metric.unit, metric.help),
            Kind::Histogram(_) => describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
}
