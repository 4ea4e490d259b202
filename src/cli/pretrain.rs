//! `lacuna pretrain`: trains the starter model from nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};

use super::term;
use crate::models::nn::Precision;
use crate::starter;
use crate::starter::pretrain::{self, Mixture, Options, Progress};

/// Flags of `lacuna pretrain`.
#[derive(Debug, Clone, Args)]
pub struct PretrainArgs {
    /// Folder for checkpoints and the finished model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Updates in all
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,
    /// Sequences per update
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Seed of the data, the masks and the first weights
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Peak learning rate
    #[arg(long, default_value_t = 3e-3)]
    pub lr: f64,
    /// Updates of warm-up
    #[arg(long, default_value_t = 100)]
    pub warmup: u64,
    /// Share of the updates over which the rate falls to zero
    #[arg(long, default_value_t = 0.5)]
    pub decay: f64,
    /// Share of the sequences that are scenes; the others are word problems
    #[arg(long, default_value_t = Mixture::default().scenes)]
    pub scenes: f64,
    /// AdamW for all weights, instead of Muon for the hidden matrices
    #[arg(long)]
    pub adamw: bool,
    /// Products in f32, instead of bf16 where the CPU has it
    #[arg(long)]
    pub exact: bool,
    /// Updates between checkpoints
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: u64,
    /// Go on from the checkpoint in --out
    #[arg(long)]
    pub resume: bool,
}

/// Runs the command.
///
/// # Errors
/// When the options are wrong, training fails, or a checkpoint cannot be read or written.
pub fn run(args: &PretrainArgs, _matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let options = Options {
        out: args.out.clone(),
        steps: args.steps,
        batch: args.batch as usize,
        seed: args.seed,
        lr: args.lr,
        warmup: args.warmup,
        decay_share: args.decay,
        ema: 0.998,
        muon: !args.adamw,
        precision: if args.exact { Precision::Exact } else { Precision::Mixed },
        mixture: Mixture { scenes: args.scenes, ..Mixture::default() },
        checkpoint_every: args.checkpoint_every,
        resume: args.resume,
        config: starter::config(),
    };
    let mut smooth = None;
    pretrain::run(&options, |progress| {
        let losses = smoothed(&mut smooth, progress.losses);
        if progress.step % 10 == 0 || progress.samples.is_some() {
            report(progress, losses);
        }
        true
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The losses of one batch are noisy: a running mean over about twenty.
fn smoothed(mean: &mut Option<[f64; 2]>, losses: [f64; 2]) -> [f64; 2] {
    let old = mean.unwrap_or(losses);
    let new = [0.95 * old[0] + 0.05 * losses[0], 0.95 * old[1] + 0.05 * losses[1]];
    *mean.insert(new)
}

fn report(progress: &Progress, [text, image]: [f64; 2]) {
    let seconds = progress.elapsed.as_secs_f64();
    term::line(format_args!(
        "step {} of {}: loss text {text:.3} image {image:.3}, lr {:.2e}, norm {:.2}, {:.0} rows/s{}",
        progress.step,
        progress.steps,
        progress.lr,
        progress.grad_norm,
        progress.rows as f64 / seconds.max(1e-9),
        if progress.samples.is_some() { ", saved with samples.png" } else { "" }
    ));
    for answer in progress.samples.iter().flatten() {
        term::line(format_args!("    {} -> {}", answer.question, answer.text));
    }
}
