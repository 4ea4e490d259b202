//! `lacuna generate text|image`: one completion in this process, the canvas filling in on the terminal.
//!
//! `draw` turns canvases and pictures into terminal lines; here is only the wiring.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{ArgMatches, Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::draw::{Cell, Screen};
use super::settings::{object, overlaid};
use super::{ConfigFile, Local, host, term};
use crate::api::defaults::{ImageDefaults, TextDefaults};
use crate::engine::job::{
    Event, Finished, ImageParams, ImageSampler, Priority, Prompt, Request, Task, TextParams, TextSampler,
};
use crate::engine::{Engine, Ticket};
use crate::telemetry;

pub mod draw;

/// Flags of `lacuna generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Text or image.
    #[command(subcommand)]
    pub what: What,
}

/// What to generate.
#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// Complete a text
    Text(TextArgs),
    /// Draw an image into a file
    Image(ImageArgs),
}

/// Which positions of a text commit.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TextChoice {
    /// The most confident, a fixed number per step.
    LowConfidence,
    /// Random ones, a fixed number per step.
    Random,
    /// All that are at least --threshold confident.
    Threshold,
}

/// Flags of `lacuna generate text`.
#[derive(Debug, Clone, Args)]
pub struct TextArgs {
    /// What to complete
    pub prompt: String,
    /// Length of the canvas [default: as served, 64]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub max_tokens: Option<u32>,
    /// Denoising steps [default: half of --max-tokens]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub steps: Option<u32>,
    /// Length of a block [default: 32, or the canvas if that is shorter]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub block_length: Option<u32>,
    /// 0 takes the most likely token
    #[arg(long, default_value_t = TextDefaults::default().temperature, value_parser = not_negative)]
    pub temperature: f64,
    /// Which positions commit
    #[arg(long, value_enum, default_value = "low-confidence")]
    pub sampler: TextChoice,
    /// Confidence that commits with --sampler threshold
    #[arg(long, default_value_t = TextDefaults::default().threshold, value_parser = not_negative)]
    pub threshold: f64,
    /// w in (1+w)·conditional − w·unconditional
    #[arg(long, default_value_t = TextDefaults::default().guidance_scale, value_name = "W", value_parser = not_negative)]
    pub guidance_scale: f64,
    /// More settings as a JSON object: any other field of the request, such as '{"sampler": {"kind": "factor", "factor": 1}}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub sampling: Option<Value>,
    /// Same seed, same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is run.
    #[command(flatten)]
    pub local: Local,
}

/// Which positions of an image commit.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImageChoice {
    /// By confidence, with annealed noise.
    Maskgit,
    /// At random, as the process that the model was trained on reversed.
    Emerge,
}

impl ImageChoice {
    /// The engine's name for it.
    #[must_use]
    pub fn sampler(self) -> ImageSampler {
        match self {
            Self::Maskgit => ImageSampler::Maskgit,
            Self::Emerge => ImageSampler::Emerge,
        }
    }
}

/// Flags of `lacuna generate image`.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// What to draw
    pub prompt: String,
    /// File to write: .png, .jpg or .webp
    #[arg(long, short, default_value = "lacuna.png", value_name = "FILE")]
    pub out: PathBuf,
    /// Denoising steps
    #[arg(long, default_value_t = ImageDefaults::default().steps as u32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub steps: u32,
    /// w in (1+w)·conditional − w·unconditional
    #[arg(long, default_value_t = ImageDefaults::default().guidance_scale, value_name = "W", value_parser = not_negative)]
    pub guidance_scale: f64,
    /// Noise of the order in which positions commit; 0 for none
    #[arg(long, default_value_t = ImageDefaults::default().temperature, value_parser = not_negative)]
    pub temperature: f64,
    /// Which positions commit
    #[arg(long, value_enum, default_value = "maskgit")]
    pub sampler: ImageChoice,
    /// More settings as a JSON object: any other field of the request, such as '{"sampler": {"kind": "factor", "factor": 1}}'
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub sampling: Option<Value>,
    /// Same seed, same image
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Configuration file.
    #[command(flatten)]
    pub file: ConfigFile,
    /// What is run.
    #[command(flatten)]
    pub local: Local,
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.0..=1000.0).contains(&value) => Ok(value),
        _ => Err("a number from 0 to 1000 is wanted".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded, refuses the request or fails, or the file cannot be written.
pub fn run(args: GenerateArgs, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((_, matches)) = matches.subcommand() else { bail!("text or image?") };
    let (file, local) = match &args.what {
        What::Text(text) => (&text.file, &text.local),
        What::Image(image) => (&image.file, &image.local),
    };
    let config = file.resolve(local, matches)?.config;
    telemetry::init_logs(&config.telemetry)?;
    let hosted = host::start(&config.engine)?;
    super::runtime()?.block_on(async {
        match &args.what {
            What::Text(text) => write(&hosted.engine, text).await,
            What::Image(image) => paint(&hosted.engine, image).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn request(prompt: &str, seed: u64, task: Task) -> Request {
    Request {
        prompt: Prompt::Text(prompt.to_owned()),
        negative_prompt: None,
        task,
        n: 1,
        seed,
        priority: Priority::Interactive,
        deadline: None,
        adapter: None,
        subject: None,
        follow: term::is_live(),
    }
}

/// `params` with what `--sampling` says.
fn with<T: Serialize + DeserializeOwned>(params: T, sampling: Option<&Value>) -> anyhow::Result<T> {
    match sampling {
        Some(sampling) => overlaid(&params, sampling).context("--sampling"),
        None => Ok(params),
    }
}

impl TextArgs {
    fn params(&self) -> anyhow::Result<TextParams> {
        let defaults = TextDefaults::default();
        let max_tokens = self.max_tokens.map_or(defaults.max_tokens, |tokens| tokens as usize);
        let defaults = TextDefaults { max_tokens, ..defaults }.params();
        let params = TextParams {
            steps: self.steps.map_or(defaults.steps, |steps| steps as usize),
            block_length: self.block_length.map_or(defaults.block_length, |length| length as usize).min(max_tokens),
            temperature: self.temperature,
            sampler: match self.sampler {
                TextChoice::LowConfidence => TextSampler::LowConfidence,
                TextChoice::Random => TextSampler::Random,
                TextChoice::Threshold => TextSampler::Threshold { threshold: self.threshold },
            },
            guidance_scale: self.guidance_scale,
            ..defaults
        };
        with(params, self.sampling.as_ref())
    }
}

async fn write(engine: &Engine, args: &TextArgs) -> anyhow::Result<()> {
    let params = args.params()?;
    let mut cells = vec![Cell::Masked; params.max_tokens];
    let mut screen = Screen::new(term::is_live());
    let ticket = engine.submit(request(&args.prompt, args.seed, Task::Text(params)))?;
    let finished = watch(ticket, |event| {
        if let Event::Step { step, steps, edits, .. } = event {
            for edit in edits {
                if let Some(cell) = cells.get_mut(edit.position) {
                    *cell = Cell::Token { text: edit.text, confidence: edit.confidence };
                }
            }
            screen.show(draw::canvas(&cells, term::width()), &format!("step {} of {steps}", step + 1));
        }
        Ok(())
    })
    .await?;
    screen.clear();
    term::line(&finished.text);
    summary(&finished);
    Ok(())
}

async fn paint(engine: &Engine, args: &ImageArgs) -> anyhow::Result<()> {
    let format = image::ImageFormat::from_path(&args.out)
        .ok()
        .filter(image::ImageFormat::writing_enabled)
        .with_context(|| format!("--out {}: name a .png, .jpg or .webp file", args.out.display()))?;
    let grid = engine.spec().image.as_ref().context("this model draws no images; try `lacuna generate text`")?.grid;
    let params = ImageParams {
        steps: args.steps as usize,
        guidance_scale: args.guidance_scale,
        temperature: args.temperature,
        token_temperature: ImageDefaults::default().token_temperature(args.sampler.sampler(), args.temperature),
        sampler: args.sampler.sampler(),
        preview_every: usize::from(term::is_live()),
        ..ImageDefaults::default().params(grid)
    };
    let params = with(params, args.sampling.as_ref())?;
    let (steps, grid) = (params.steps, params.grid);
    let mut screen = Screen::new(term::is_live());
    let ticket = engine.submit(request(&args.prompt, args.seed, Task::Image(params)))?;
    let finished = watch(ticket, |event| {
        if let Event::Preview { step, codes, .. } = event {
            let picture = engine.render(&codes, grid)?;
            screen.show(draw::picture(&picture, term::width()), &format!("step {} of {steps}", step + 1));
        }
        Ok(())
    })
    .await?;
    let codes: Vec<Option<u32>> = finished.tokens.iter().copied().map(Some).collect();
    let picture = engine.render(&codes, grid)?;
    screen.clear();
    if term::is_live() {
        for line in draw::picture(&picture, term::width()) {
            term::line(line);
        }
    }
    save(&picture, &args.out, format)?;
    term::line(args.out.display());
    summary(&finished);
    Ok(())
}

fn save(picture: &image::RgbImage, path: &Path, format: image::ImageFormat) -> anyhow::Result<()> {
    picture.save_with_format(path, format).with_context(|| format!("{} cannot be written", path.display()))
}

/// Hands events to `each` until the completion is ready.
async fn watch(mut ticket: Ticket, mut each: impl FnMut(Event) -> anyhow::Result<()>) -> anyhow::Result<Box<Finished>> {
    let mut finished = None;
    while let Some(event) = ticket.next().await {
        match event {
            Event::Finished(result) => finished = Some(result),
            Event::Done => break,
            Event::Failed(error) => return Err(error.into()),
            other => each(other)?,
        }
    }
    finished.context("the engine stopped before the completion was ready")
}

fn summary(finished: &Finished) {
    let committed = finished.commit_steps.iter().filter(|&&step| step >= 0).count();
    term::note(format_args!(
        "{committed} tokens in {} steps, {:.2} s; seed {}",
        finished.steps,
        finished.denoising.as_secs_f64(),
        finished.seed
    ));
}
