//! `lacuna eval`: how well the model does on held-out prompts, by kind, with confidence intervals.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};

use super::{ConfigFile, Local};

/// Flags of `lacuna eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Held-out prompts of each kind
    #[arg(long, default_value_t = 200, value_name = "PER_KIND")]
    pub n: usize,
    /// Seed of the prompts and of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale of images [default: as served]
    #[arg(long, value_name = "W")]
    pub guidance: Option<f64>,
    /// Write a contact sheet of the images, PNG
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is run.
    #[command(flatten)]
    pub local: Local,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded or fails.
pub fn run(args: &EvalArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.local, matches)?;
    anyhow::bail!("cannot evaluate {}: this build has no evaluation", resolved.config.engine.model)
}
