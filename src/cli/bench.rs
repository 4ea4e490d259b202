//! `lacuna bench`: throughput and latency of a server over HTTP, and what its ticks are spent on.
//!
//! `load` sends the requests, `report` counts and prints. Without `--url` the server is one of its own, in this process
//! on a free port: the requests still travel over HTTP, so both give the same numbers.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgMatches, Args, ValueEnum};
use serde::Serialize;

use super::host::Host;
use super::serve::Server;
use super::{ConfigFile, Local, term};
use crate::config::{self, Config};
use crate::telemetry;

pub mod learning;
pub mod load;
pub mod report;
pub mod ticks;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Word problems.
    Text,
    /// Scenes.
    Image,
    /// One of each in turn.
    Mixed,
}

/// Flags of `lacuna bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Server to measure [default: one of its own, in this process]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// What to ask for, comma separated
    #[arg(long, value_enum, value_delimiter = ',', default_value = "text,image,mixed")]
    pub kind: Vec<Kind>,
    /// Clients that send one request after another, comma separated: one run each (closed loop)
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: Vec<u32>,
    /// Requests per second, whether or not answers come, comma separated: one run each (open loop, Poisson arrivals;
    /// latency counts from the planned arrival)
    #[arg(long, value_delimiter = ',', value_parser = rate, conflicts_with = "concurrency")]
    pub rate: Vec<f64>,
    /// Seconds that a run sends requests for
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Requests of a run, instead of --seconds
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub requests: Option<u64>,
    /// Seed of the prompts, the sampling and the arrivals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Run everything a second time while it learns, and compare
    #[arg(long, conflicts_with = "url")]
    pub learning: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// The server in this process; not used with --url.
    #[command(flatten)]
    pub local: Local,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "a rate is a number of requests per second".to_owned())?;
    if rate > 0.0 && rate <= 10_000.0 { Ok(rate) } else { Err("a rate is above 0 and at most 10000".to_owned()) }
}

/// Runs the command.
///
/// # Errors
/// When the server cannot be started or reached, or no request of a run succeeds.
pub fn run(args: &BenchArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.local, matches)?;
    telemetry::init_logs(&resolved.config.telemetry)?;
    let runtime = super::runtime()?;
    let report = runtime.block_on(async {
        match &args.url {
            Some(url) => measure(args, url, None).await,
            None => measure_own(args, resolved.config).await,
        }
    })?;
    term::line(if args.json { serde_json::to_string_pretty(&report)? } else { report.table() });
    Ok(ExitCode::SUCCESS)
}

/// Measures a server of its own, on a free port, with a log that is thrown away.
async fn measure_own(args: &BenchArgs, mut config: Config) -> anyhow::Result<report::Report> {
    let folder = std::env::temp_dir().join(format!("lacuna-bench-{}", std::process::id()));
    config.server = config::Server { port: 0, ..config::Server::default() };
    config.store.data_dir.clone_from(&folder);
    let server = Server::start(&config).await?;
    let report = measure(args, &server.url(), Some((&server.host, &config))).await;
    let stopped = server.stop().await;
    std::fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))?;
    stopped.and(report)
}

async fn measure(args: &BenchArgs, url: &str, own: Option<(&Host, &Config)>) -> anyhow::Result<report::Report> {
    let client = load::Client::new(url)?;
    let mut report = report::Report::new(&client.info().await?);
    let amount = match args.requests {
        Some(requests) => load::Amount::Requests(requests),
        None => load::Amount::Time(Duration::from_secs(args.seconds)),
    };
    let arrivals: Vec<load::Arrivals> = if args.rate.is_empty() {
        args.concurrency.iter().map(|&clients| load::Arrivals::Closed { clients }).collect()
    } else {
        args.rate.iter().map(|&per_second| load::Arrivals::Open { per_second }).collect()
    };
    for &kind in &args.kind {
        for &arrivals in &arrivals {
            let plan = load::Plan { kind, arrivals, amount, seed: args.seed };
            term::note(format_args!("measuring {plan} ..."));
            let (mut measured, mut bare) = (load::Measured::default(), ticks::Bare::default());
            // A run beside learning is compared with a run like itself, and a server elsewhere with nothing.
            let in_turns = own.is_some() && !args.learning;
            let turns = if in_turns { plan.turns().collect() } else { vec![plan] };
            for turn in turns {
                let _ = own.map(|(host, _)| host.engine.take_shapes());
                measured = measured.and(client.run(&turn).await?);
                if let Some((host, _)) = own {
                    bare.add(&host.model, &host.engine.take_shapes())?;
                }
            }
            let mut run = report::Run::new(&plan, &measured, bare)?;
            if let Some((host, config)) = own.filter(|_| args.learning) {
                term::note(format_args!("measuring {plan} while it learns ..."));
                run.learning = Some(learning::beside(&client, &plan, measured, host, config).await?);
            }
            report.runs.push(run);
        }
    }
    Ok(report)
}
