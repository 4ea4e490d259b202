//! `lacuna train`: learning without a server. `--from-log` makes one run of the trainer on a log; `--task` practises on
//! prompts whose results a program can judge, which is how settings are found and estimators compared.

pub mod course;
pub mod practice;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};
use serde_json::Value;

use super::demo::Task;
use super::settings::object;
use super::{ConfigFile, WithLog, host, learning, term};
use crate::config::Config;
use crate::rl::trainer;
use crate::store::{SqliteStore, Store as _};
use crate::telemetry;

/// Flags of `lacuna train`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["from_log", "task"])))]
pub struct TrainArgs {
    /// One run of the trainer on the log in --data-dir, as the server would make it
    #[arg(long)]
    pub from_log: bool,
    /// Practise on prompts that a program judges
    #[arg(long, value_enum)]
    pub task: Option<Task>,
    /// With --task: updates of the policy
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub updates: usize,
    /// With --task: prompts of an update
    #[arg(long, default_value_t = 24, value_name = "N")]
    pub prompts: usize,
    /// With --task: completions of each prompt
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=64))]
    pub completions: u32,
    /// With --task: how completions are sampled, as a JSON object of request fields [default: as the demo's crowd asks]
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub sampling: Option<Value>,
    /// With --task: settings at which it is judged besides the served ones, as a JSON object of request fields
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub judge_at: Vec<Value>,
    /// With --task: weights of what is wanted, what is right, and of partial credit [default: the demo's]
    #[arg(long, value_name = "W,W,W", value_parser = weights)]
    pub reward: Option<[f64; 3]>,
    /// With --task: share by which the learning rate has fallen at the last update
    #[arg(long, default_value_t = 0.9, value_name = "SHARE")]
    pub decay: f64,
    /// With --task: held-out prompts by which the first and the last policy are judged
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub eval_n: usize,
    /// With --task: judge it every so many updates, too; 0 for the last only
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub eval_every: usize,
    /// With --task: seed of prompts, sampling and training
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
    /// With --task: write the adapter into this folder, as PEFT reads it
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is run, and where the log is.
    #[command(flatten)]
    pub sections: WithLog,
}

/// Runs the command.
///
/// # Errors
/// When the configuration is wrong, the model or the log cannot be opened, or learning fails.
pub fn run(args: &TrainArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.sections, matches)?;
    telemetry::init_logs(&resolved.config.telemetry)?;
    let runtime = super::runtime()?;
    match args.task {
        Some(task) => {
            let mut config = resolved.config.clone();
            // What the demo learns a task with, and what the user says of it.
            task.configure(&mut config, args.seed);
            super::demo::overlay(&mut config.training, &resolved)?;
            config.validate()?;
            runtime.block_on(course::run(task, args, &config))?;
        }
        None => runtime.block_on(from_log(&resolved.config, args.json))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Three finite numbers, with commas between them.
fn weights(text: &str) -> Result<[f64; 3], String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let numbers = numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite()));
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| "three numbers, such as 1,1,0.3".to_owned())
}

/// One run on the log. A server that holds the lease of the same log is in the way, and says so.
async fn from_log(config: &Config, json: bool) -> anyhow::Result<()> {
    let store = std::sync::Arc::new(SqliteStore::open(&config.store.data_dir).await?);
    let engine = config.engine.clone();
    let host = tokio::task::spawn_blocking(move || host::start(&engine)).await??;
    let parts = learning::parts(config, &host, store.clone()).await?;
    let parts = parts.ok_or_else(|| anyhow::anyhow!("this model takes no adapters, so it cannot learn"))?;
    let last = trainer::once(parts).await;
    store.close().await;
    let last = last?;
    if json {
        term::line(serde_json::to_string_pretty(&last)?);
        return Ok(());
    }
    let of = |key: &str| last.metrics.get(key).filter(|value| !value.is_null()).map(Value::to_string);
    let candidate = of("candidate").map_or(String::new(), |id| format!(" · candidate {}", id.trim_matches('"')));
    let samples = of("samples").unwrap_or_default();
    term::line(format!("{} · {samples} completions learned from{candidate}", last.status));
    for check in last.metrics.pointer("/gate/checks").and_then(Value::as_array).into_iter().flatten() {
        let passed = if check["passed"] == true { "passed" } else { "failed" };
        term::line(format!("  {passed} {}: {} (limit {})", check["name"], check["value"], check["limit"]));
    }
    Ok(())
}
