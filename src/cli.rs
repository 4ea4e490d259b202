//! The command line: which commands there are. Each lives in its own file; none has logic of its own beyond wiring.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use serde::Serialize;

use crate::config::{ConfigError, Engine, Resolved, Store, Telemetry};

pub mod adapters;
pub mod bench;
pub mod demo;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod health;
pub mod host;
pub mod learning;
pub mod openapi;
pub mod plot;
pub mod pretrain;
pub mod serve;
mod settings;
pub mod term;
pub mod train;

/// Serves masked diffusion models, text and image, and learns from what its users say.
#[derive(Debug, Parser)]
#[command(name = "lacuna", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "`lacuna` alone, or with flags only, is `lacuna serve`.

Every flag of the configuration is also a variable (--max-rows: LACUNA_MAX_ROWS) and a key of the TOML file that \
--config names. Flags win over variables, variables over the file, the file over the defaults; \
`lacuna serve --print-config` shows the result.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model over HTTP, with a playground, until SIGTERM or ctrl-c
    Serve(Box<serve::ServeArgs>),
    /// Complete one prompt here, without a server, and watch the canvas fill in
    Generate(generate::GenerateArgs),
    /// Measure throughput and latency of a server
    Bench(bench::BenchArgs),
    /// Measure how well the model does on held-out prompts
    Eval(eval::EvalArgs),
    /// Watch it learn from simulated people, who talk HTTP only
    Demo(Box<demo::DemoArgs>),
    /// List, show, promote and take back the adapter versions of a running server
    Adapters(adapters::AdaptersArgs),
    /// Learn without a server: from a log, or by practice
    Train(Box<train::TrainArgs>),
    /// Train the starter model from nothing
    Pretrain(pretrain::PretrainArgs),
    /// Print the OpenAPI document
    Openapi,
    /// Check this machine, the model and the store
    Doctor(doctor::DoctorArgs),
    /// Ask a running server whether it is ready; exit 0 if it is (a probe for containers)
    Health(health::HealthArgs),
}

/// Options of the commands that compute in their own process.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Local {
    /// What is run.
    #[command(flatten)]
    pub engine: Engine,
    /// Log lines.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Options of the commands that also open a log.
#[derive(Debug, Clone, Args, Serialize)]
pub struct WithLog {
    /// What is run.
    #[command(flatten)]
    pub engine: Engine,
    /// The log.
    #[command(flatten)]
    pub store: Store,
    /// Log lines.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// The TOML file; what it says is overridden by variables and flags.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// TOML file with the tables server, engine, limits, store and telemetry
    #[arg(long = "config", env = "LACUNA_CONFIG", value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Set any key of the file, such as `training.lr=5e-4` or `reward.aggregate=\"sum_then_normalize\"`; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigFile {
    /// The effective configuration of a command that parsed `sections`.
    ///
    /// # Errors
    /// As [`Resolved::new`].
    pub fn resolve(&self, sections: &impl Serialize, matches: &ArgMatches) -> Result<Resolved, ConfigError> {
        Resolved::new(sections, matches, self.path.as_deref(), &self.set)
    }
}

/// Runs the command that `argv` (with the program's name first) asks for.
#[must_use]
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = Cli::command().get_matches_from(with_default_command(argv.into_iter().collect()));
    let outcome = Cli::from_arg_matches(&matches).map_err(anyhow::Error::from).and_then(|cli| {
        let Some((_, matches)) = matches.subcommand() else { anyhow::bail!("no command") };
        dispatch(cli.command, matches)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            term::note(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(&args, matches),
        Command::Generate(args) => generate::run(args, matches),
        Command::Bench(args) => bench::run(&args, matches),
        Command::Eval(args) => eval::run(&args, matches),
        Command::Demo(args) => demo::run(&args, matches),
        Command::Adapters(args) => adapters::run(&args),
        Command::Train(args) => train::run(&args, matches),
        Command::Pretrain(args) => pretrain::run(&args, matches),
        Command::Openapi => openapi::run(),
        Command::Doctor(args) => doctor::run(&args, matches),
        Command::Health(args) => health::run(&args),
    }
}

/// `lacuna` and `lacuna --port 0` mean `lacuna serve …`; only help and version are the program's own flags.
fn with_default_command(mut argv: Vec<OsString>) -> Vec<OsString> {
    let own = ["-h", "--help", "-V", "--version"];
    let serve = match argv.get(1).and_then(|arg| arg.to_str()) {
        None => argv.len() <= 1,
        Some(first) => first.starts_with('-') && !own.contains(&first),
    };
    if serve {
        argv.insert(1.min(argv.len()), "serve".into());
    }
    argv
}

/// A runtime for a command. Two workers are enough: the device thread does the work, these move bytes.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_command() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (given, meant) in [
            ("lacuna", "lacuna serve"),
            ("lacuna --port 0", "lacuna serve --port 0"),
            ("lacuna --help", "lacuna --help"),
            ("lacuna -V", "lacuna -V"),
            ("lacuna doctor", "lacuna doctor"),
        ] {
            assert_eq!(with_default_command(words(given)), words(meant));
        }
    }
}
