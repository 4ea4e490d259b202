//! `lacuna demo`: a server and a crowd of simulated people in one process. They talk HTTP only; the server learns what
//! they want while it serves them, and the share of held-out prompts that come out as wanted is watched version by
//! version.

pub mod client;
pub mod crowd;
pub mod judge;
pub mod plot;
pub mod report;
pub mod session;
pub mod task;
pub mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Args};

pub use task::Task;

use super::serve::Server;
use super::{ConfigFile, Local, term};
use crate::config::{self, Config, Resolved};
use crate::rl::trainer::TrainingConfig;
use crate::telemetry;

/// Flags of `lacuna demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// What the simulated people want
    #[arg(long, value_enum, default_value_t = Task::Taste)]
    pub task: Task,
    /// How long it learns; the time in which everybody waits while a version is judged does not count
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    pub minutes: f64,
    /// Seed of people, prompts, sampling and training
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Write the learning curve, PNG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Held-out prompts by which each new version is judged [default: 60 pictures or 120 texts]
    #[arg(long, value_name = "N", value_parser = prompts)]
    pub eval_n: Option<usize>,
    /// Held-out prompts by which the base and the last version are judged in the end
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = prompts)]
    pub final_n: usize,
    /// People
    #[arg(long, default_value_t = 40, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub people: u16,
    /// Also judge the base at other sampler settings and compare at its best [default: true, for taste false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub sweep: Option<bool>,
    /// Keep the server's data in this folder [default: thrown away]
    #[arg(long, value_name = "DIR")]
    pub keep_data: Option<PathBuf>,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is run.
    #[command(flatten)]
    pub local: Local,
}

impl DemoArgs {
    fn eval_n(&self) -> usize {
        self.eval_n.unwrap_or(if self.task.draws() { 60 } else { 120 })
    }
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "a number of minutes".to_owned())?;
    if minutes > 0.0 && minutes <= 1440.0 { Ok(minutes) } else { Err("above 0 and at most 1440".to_owned()) }
}

fn prompts(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=100_000) => Ok(n),
        _ => Err("a number from 1 to 100000".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// When the server cannot be started, or does not answer.
pub fn run(args: &DemoArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.local, matches)?;
    let mut config = resolved.config.clone();
    args.task.configure(&mut config, args.seed);
    overlay(&mut config.training, &resolved)?;
    config.validate()?;
    // The curve is what people came to see.
    if std::env::var_os("RUST_LOG").is_none() {
        config.telemetry.log.get_or_insert_with(|| "warn".to_owned());
    }
    telemetry::init_logs(&config.telemetry)?;
    let report = super::runtime()?.block_on(demo(args, config))?;
    if let Some(path) = &args.plot {
        plot::draw(&report).save(path).with_context(|| format!("--plot {}", path.display()))?;
    }
    term::line(if args.json { serde_json::to_string_pretty(&report)? } else { report.table() });
    Ok(ExitCode::SUCCESS)
}

/// What the file says of training wins over the demo's own choice.
pub(super) fn overlay(training: &mut TrainingConfig, resolved: &Resolved) -> anyhow::Result<()> {
    let (mut ours, file) = (serde_json::to_value(&*training)?, serde_json::to_value(&resolved.config.training)?);
    for key in resolved.origins.keys().filter_map(|key| key.strip_prefix("training.")) {
        if let (Some(ours), Some(value)) = (ours.get_mut(key), file.get(key)) {
            *ours = value.clone();
        }
    }
    *training = serde_json::from_value(ours)?;
    Ok(())
}

/// Runs it against a server of its own, on a free port.
async fn demo(args: &DemoArgs, mut config: Config) -> anyhow::Result<report::Report> {
    let passing = std::env::temp_dir().join(format!("lacuna-demo-{}", std::process::id()));
    config.server = config::Server { port: 0, ..config::Server::default() };
    config.store.data_dir = args.keep_data.clone().unwrap_or_else(|| passing.clone());
    let server = Server::start(&config).await?;
    let shown = session::Session::new(args, &server)?.run().await;
    let stopped = server.stop().await;
    if args.keep_data.is_none() {
        std::fs::remove_dir_all(&passing).with_context(|| format!("{} cannot be removed", passing.display()))?;
    }
    stopped.and(shown)
}
