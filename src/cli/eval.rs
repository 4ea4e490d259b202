//! `lacuna eval`: how well the model does on held-out prompts, by kind, with confidence intervals.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Args};
use comfy_table::{CellAlignment, Table, presets};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};

use super::generate::{image_defaults, text_defaults};
use super::{ConfigFile, Local, host, term};
use crate::starter::eval::{self, Options, Report, WordKind};
use crate::starter::scenes::contact_sheet;
use crate::telemetry;

/// Images of each kind on the contact sheet, one kind a row.
const SHEET_COLUMNS: usize = 8;

/// Flags of `lacuna eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Held-out prompts of each kind
    #[arg(long, default_value_t = 200, value_name = "PER_KIND", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub n: u32,
    /// Seed of the prompts and of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Guidance scale of images [default: as served]
    #[arg(long, value_name = "W")]
    pub guidance: Option<f64>,
    /// Write a contact sheet of the first images of each kind, PNG; green frames passed
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
/// When the model cannot be loaded or fails, or the sheet cannot be written.
pub fn run(args: &EvalArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config = args.file.resolve(&args.local, matches)?.config;
    telemetry::init_logs(&config.telemetry)?;
    let host = host::start(&config.engine)?;
    let grid = host.engine.spec().image.as_ref().map_or((1, 1), |image| image.grid);
    let mut image = image_defaults(grid);
    image.guidance_scale = args.guidance.unwrap_or(image.guidance_scale);
    let options = Options { n: args.n as usize, seed: args.seed, text: text_defaults(), image };
    let bar = progress_bar()?;
    let mut sheet: Vec<(RgbImage, bool)> = Vec::new();
    let mut kept = std::collections::HashMap::new();
    let report = eval::run(
        &host.model,
        &options,
        |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
        |kind, drawn| {
            let count = kept.entry(kind.name()).or_insert(0);
            if args.sheet.is_some() && *count < SHEET_COLUMNS {
                *count += 1;
                sheet.push((drawn.image, drawn.passed));
            }
        },
    )?;
    bar.finish_and_clear();
    if let Some(path) = &args.sheet {
        let write = contact_sheet(&sheet, SHEET_COLUMNS).save_with_format(path, image::ImageFormat::Png);
        write.with_context(|| format!("--sheet {} cannot be written", path.display()))?;
    }
    term::line(if args.json { serde_json::to_string_pretty(&report)? } else { table(&report) });
    Ok(ExitCode::SUCCESS)
}

/// On standard error, and only where a person looks.
fn progress_bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} prompts, {eta} left")?;
    Ok(ProgressBar::new(0).with_style(style))
}

fn table(report: &Report) -> String {
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let interval = |[low, high]: [f64; 2]| format!("{:.1} – {:.1}", low * 100.0, high * 100.0);
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["task", "kind", "right %", "95 % interval", "partial or chain %", "n"]);
    for (name, kind) in &report.scenes.kinds {
        let n = kind.n.to_string();
        table.add_row(["scenes", name, &percent(kind.strict), &interval(kind.ci95), &percent(kind.soft), &n]);
    }
    table.add_row(["scenes", "all kinds", &percent(report.scenes.strict), "", &percent(report.scenes.soft), ""]);
    let mut words = |task: &str, name: &str, kind: &WordKind| {
        let n = kind.n.to_string();
        table.add_row([task, name, &percent(kind.accuracy), &interval(kind.ci95), &percent(kind.chain), &n]);
    };
    report.words.kinds.iter().for_each(|(name, kind)| words("words", name, kind));
    report.words.held_out_operands.iter().for_each(|(name, kind)| words("words, new operands", name, kind));
    table.add_row(["words", "all kinds", &percent(report.words.accuracy), "", "", &report.words.n.to_string()]);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
