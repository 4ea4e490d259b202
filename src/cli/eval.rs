//! `lacuna eval`: how well the model does on held-out prompts, by kind, with confidence intervals.
//!
//! Prompts run with the settings that a request gets when it does not say, unless a flag says otherwise.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgMatches, Args};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use super::generate::ImageChoice;
use super::{ConfigFile, Local, host, term};
use crate::api::defaults::Defaults;
use crate::engine::job::TextSampler;
use crate::starter::eval::{self, Drawn, Options, Report, SceneKind, WordKind};
use crate::starter::scenes;

pub mod sweep;

/// Images of each kind on a contact sheet.
const SHEET_PER_KIND: usize = 8;

/// Flags of `lacuna eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Held-out prompts of each kind
    #[arg(long, default_value_t = 200, value_name = "PER_KIND", value_parser = per_kind)]
    pub n: usize,
    /// Seed of the prompts and of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale of images [default: as served]
    #[arg(long, value_name = "W")]
    pub guidance: Option<f64>,
    /// Denoising steps of images [default: as served]
    #[arg(long, value_name = "N")]
    pub image_steps: Option<usize>,
    /// Temperature of images [default: as served]
    #[arg(long, value_name = "T")]
    pub image_temperature: Option<f64>,
    /// Temperature of an image's token draws [default: as served]
    #[arg(long, value_name = "T")]
    pub token_temperature: Option<f64>,
    /// How an image's cells commit [default: as served]
    #[arg(long, value_enum)]
    pub image_sampler: Option<ImageChoice>,
    /// Denoising steps of texts [default: as served]
    #[arg(long, value_name = "N")]
    pub text_steps: Option<usize>,
    /// Commit every token of a text that is at least this confident, instead of a fixed number per step
    #[arg(long, value_name = "P")]
    pub threshold: Option<f64>,
    /// Compare samplers, steps and guidance instead: what they cost and what they get right, one table
    #[arg(long, conflicts_with_all = ["sheet", "guidance", "image_steps", "image_sampler", "text_steps", "threshold"])]
    pub sweep: bool,
    /// With --sweep: draw what is right over positions evaluated per token, PNG
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub plot: Option<PathBuf>,
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

fn per_kind(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=100_000) => Ok(n),
        _ => Err("a number from 1 to 100000".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded or fails, or a setting does not fit it.
pub fn run(args: &EvalArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let resolved = args.file.resolve(&args.local, matches)?;
    let model = host::model(&resolved.config.engine)?;
    let grid = model.backbone.spec().image.as_ref().map_or((0, 0), |image| image.grid);
    let options = args.options(grid);
    let bar = progress_bar()?;
    let progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        if bar.is_hidden() {
            term::note(format_args!("{done} of {total} prompts"));
        }
    };
    if args.sweep {
        let report = sweep::run(&model, &options, progress)?;
        bar.finish_and_clear();
        if let Some(path) = &args.plot {
            report.plot().save(path).with_context(|| format!("--plot {}", path.display()))?;
        }
        term::line(if args.json { serde_json::to_string_pretty(&report)? } else { report.table() });
        return Ok(ExitCode::SUCCESS);
    }
    let mut kept: Vec<Drawn> = Vec::new();
    let mut of_kind = [0; scenes::KINDS.len()];
    let keep = |kind: scenes::Kind, drawn| {
        let Some(count) = scenes::KINDS.iter().position(|&k| k == kind).map(|at| &mut of_kind[at]) else { return };
        if args.sheet.is_some() && *count < SHEET_PER_KIND {
            *count += 1;
            kept.push(drawn);
        }
    };
    let report = eval::run(&model, &options, progress, keep)?;
    bar.finish_and_clear();
    if let Some(path) = &args.sheet {
        let images: Vec<_> = kept.into_iter().map(|drawn| (drawn.image, drawn.passed)).collect();
        let sheet = scenes::contact_sheet(&images, SHEET_PER_KIND);
        sheet.save(path).with_context(|| format!("--sheet {}", path.display()))?;
    }
    term::line(if args.json { serde_json::to_string_pretty(&report)? } else { table(&report) });
    Ok(ExitCode::SUCCESS)
}

impl EvalArgs {
    fn options(&self, grid: (usize, usize)) -> Options {
        let defaults = Defaults::default();
        let (mut text, mut image) = (defaults.text.params(), defaults.image.params(grid));
        image.guidance_scale = self.guidance.unwrap_or(image.guidance_scale);
        image.steps = self.image_steps.unwrap_or(image.steps);
        image.temperature = self.image_temperature.unwrap_or(image.temperature);
        image.sampler = self.image_sampler.map_or(image.sampler, ImageChoice::sampler);
        let drawn = defaults.image.token_temperature(image.sampler, image.temperature);
        image.token_temperature = self.token_temperature.or(drawn);
        text.steps = self.text_steps.unwrap_or(text.steps);
        if let Some(threshold) = self.threshold {
            text.sampler = TextSampler::Threshold { threshold };
        }
        Options { n: self.n, seed: self.seed, text, image }
    }
}

/// A bar on a terminal; hidden elsewhere, where lines take its place.
fn progress_bar() -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos} of {len} prompts, {eta} left")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(["task", "kind", "n", "share", "95 % interval", "also"]);
    let interval = |ci: [f64; 2]| format!("{:.3} – {:.3}", ci[0], ci[1]);
    for (name, &SceneKind { strict, ci95, soft, n }) in &report.scenes.kinds {
        let also = format!("partial credit {soft:.3}");
        table.add_row(["scenes".into(), (*name).into(), n.to_string(), format!("{strict:.3}"), interval(ci95), also]);
    }
    let all = format!("partial credit {:.3}", report.scenes.soft);
    table.add_row(["scenes", "all kinds", "", &format!("{:.3}", report.scenes.strict), "", &all]);
    for (task, kinds) in [("words", &report.words.kinds), ("unseen operands", &report.words.held_out_operands)] {
        for (name, &WordKind { accuracy, ci95, chain, n }) in kinds {
            let also = format!("right reasoning {chain:.3}");
            table.add_row([task.into(), (*name).into(), n.to_string(), format!("{accuracy:.3}"), interval(ci95), also]);
        }
    }
    table.add_row(["words", "all kinds", "", &format!("{:.3}", report.words.accuracy), "", ""]);
    table.to_string()
}
