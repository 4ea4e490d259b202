//! Logs and metrics: set up once by the binary, used from everywhere through `tracing` and `metrics`.
//!
//! [`metrics`] lists every metric. Prompts, completions, keys and user ids are never logged.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, Telemetry};

pub mod metrics;

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter does not parse.
    #[error("telemetry.log = {filter:?} is not a log filter ({source}); write for example info or warn,lacuna=debug")]
    Filter {
        /// The text given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Logs were set up before.
    #[error("logs are set up already: {0}")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
    /// The metrics recorder refused.
    #[error("metrics cannot be recorded: {0}")]
    Recorder(String),
}

/// Sends log lines to standard error, so that standard output stays for results.
///
/// # Errors
/// When the filter does not parse, or logs were set up before.
pub fn init_logs(config: &Telemetry) -> Result<(), TelemetryError> {
    let text = config.log.clone().or_else(|| std::env::var("RUST_LOG").ok()).unwrap_or_default();
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(&text)
        .map_err(|source| TelemetryError::Filter { filter: text, source })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init()?,
        LogFormat::Pretty => {
            lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).finish().try_init()?;
        }
    }
    Ok(())
}

/// Installs the process's metrics recorder; the handle renders what `/metrics` answers.
///
/// # Errors
/// When a recorder was installed before.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).map_err(|e| TelemetryError::Recorder(e.to_string()))?;
    metrics::describe();
    Ok(handle)
}

/// Measures what changes without anybody noticing; to be called before metrics are read.
pub fn note_memory() {
    if let Some(bytes) = resident_bytes() {
        ::metrics::gauge!(metrics::RESIDENT).set(bytes);
    }
}

/// Memory that this process holds; only Linux tells.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

/// A recorder with every histogram's buckets, not installed.
///
/// # Errors
/// When a list of buckets is empty, which none is.
pub fn recorder() -> Result<PrometheusRecorder, TelemetryError> {
    Ok(builder().map_err(|e| TelemetryError::Recorder(e.to_string()))?.build_recorder())
}

/// Buckets have to be named: a histogram without them would be rendered as a summary, which cannot be aggregated.
fn builder() -> Result<PrometheusBuilder, BuildError> {
    metrics::ALL.iter().try_fold(PrometheusBuilder::new(), |builder, metric| match metric.kind {
        metrics::Kind::Histogram(buckets) => {
            builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
        }
        _ => Ok(builder),
    })
}
