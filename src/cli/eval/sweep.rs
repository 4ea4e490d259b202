//! Speed against accuracy: the held-out prompts once per setting, each setting compared with the first one of its task
//! prompt by prompt. Cost is counted, not timed, so the result is the same on every machine.

use comfy_table::{CellAlignment, Table, presets};
use image::{Rgb, RgbImage, imageops};
use serde::Serialize;

use crate::cli::plot::Sheet;
use crate::engine::job::{Fidelity, ImageParams, ImageSampler, TextParams, TextSampler};
use crate::models::Model;
use crate::rl::gate::{Interval, bootstrap};
use crate::starter::eval::{EvalError, Marks, Options, Share, scenes_marks, words_marks};
use crate::starter::{scenes, words};

/// Steps of the fixed plans, the first one token per step at the served lengths.
const TEXT_STEPS: [usize; 4] = [32, 16, 8, 4];
const THRESHOLDS: [f64; 6] = [0.99, 0.95, 0.9, 0.8, 0.7, 0.5];
const FACTORS: [f64; 4] = [0.25, 0.5, 1.0, 2.0];
const ENTROPIES: [f64; 4] = [0.05, 0.2, 0.5, 1.0];
const THRESHOLD_WITH_CACHE: f64 = 0.9;
const IMAGE_STEPS: [usize; 4] = [64, 32, 16, 8];
const GUIDANCE: [f64; 3] = [1.0, 0.0, 2.0];
/// One colour for each family of settings.
const COLOURS: [Rgb<u8>; 11] = [
    Rgb([31, 98, 204]),
    Rgb([200, 130, 40]),
    Rgb([40, 150, 90]),
    Rgb([160, 60, 160]),
    Rgb([90, 100, 110]),
    Rgb([190, 50, 60]),
    Rgb([20, 140, 160]),
    Rgb([120, 90, 40]),
    Rgb([230, 110, 170]),
    Rgb([150, 150, 30]),
    Rgb([100, 190, 230]),
];

/// A way to sample: its family, which the plot joins by a line, and the setting within it.
struct Setting {
    task: &'static str,
    family: String,
    value: String,
    options: Options,
}

/// What a setting costs and gets right.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// `words` or `scenes`.
    pub task: &'static str,
    /// Sampler, or guidance of images.
    pub family: String,
    /// Steps, threshold or factor.
    pub value: String,
    /// Right answers, or pictures with everything right.
    pub accuracy: Share,
    /// By how much it is better than the first setting of its task, prompt by prompt.
    pub change: Interval,
    /// Forwards of a completion, on average.
    pub nfe: f64,
    /// Tokens of the result per forward.
    pub tpf: f64,
    /// Positions evaluated per token of the result.
    pub ppt: f64,
    /// Forwards of the first setting of its task over its own.
    pub fewer: f64,
}

/// All settings, in the order in which they ran.
#[derive(Debug, Clone, Serialize)]
pub struct Sweep {
    /// Prompts of each kind.
    pub n: usize,
    /// The settings.
    pub points: Vec<Point>,
}

/// Runs all settings on the prompts of `options`; `progress` hears how many of all completions are done.
///
/// # Errors
/// When a setting does not fit the model or the model fails.
pub fn run(model: &Model, options: &Options, mut progress: impl FnMut(usize, usize)) -> Result<Sweep, EvalError> {
    let settings: Vec<Setting> = texts(options).into_iter().chain(images(options)).collect();
    let kinds = |setting: &Setting| if setting.task == "words" { words::Kind::ALL.len() } else { scenes::KINDS.len() };
    let total = settings.iter().map(kinds).sum::<usize>() * options.n;
    let mut done = 0;
    let mut tick = |more: usize| {
        done += more;
        progress(done, total);
    };
    let (mut points, mut base): (Vec<Point>, Option<(&str, Marks)>) = (Vec::new(), None);
    for setting in settings {
        let marks = match setting.task {
            "words" => words_marks(model, &setting.options, &mut tick)?,
            _ => scenes_marks(model, &setting.options, &mut tick)?,
        };
        if base.as_ref().is_none_or(|(task, _)| *task != setting.task) {
            base = Some((setting.task, marks.clone()));
        }
        let reference = base.as_ref().map_or(&marks, |(_, marks)| marks);
        points.push(Point::new(setting, &marks, reference));
    }
    Ok(Sweep { n: options.n, points })
}

/// Ways to write, the reference first.
fn texts(options: &Options) -> Vec<Setting> {
    let setting = |family: &str, value: String, text: TextParams| Setting {
        task: "words",
        family: family.to_owned(),
        value,
        options: Options { text, ..options.clone() },
    };
    let with = |sampler, steps| TextParams { sampler, steps, ..options.text.clone() };
    // Adaptive samplers take as many steps as they need, one token each at most.
    let most = options.text.max_tokens;
    let fixed =
        TEXT_STEPS.map(|n| setting("low_confidence", format!("{n} steps"), with(TextSampler::LowConfidence, n)));
    let thresholds = THRESHOLDS
        .map(|threshold| setting("threshold", threshold.to_string(), with(TextSampler::Threshold { threshold }, most)));
    let factors =
        FACTORS.map(|factor| setting("factor", factor.to_string(), with(TextSampler::Factor { factor }, most)));
    // SDAR's sampler counts its steps per block.
    let bounds = ENTROPIES.map(|threshold| {
        let sampler = TextSampler::EntropyBounded { threshold };
        setting("entropy_bounded", threshold.to_string(), with(sampler, options.text.block_length))
    });
    let caches = [
        ("prefix", Fidelity::Prefix, 0),
        ("dual", Fidelity::Dual, 0),
        ("vicinity", Fidelity::Dual, options.text.block_length),
    ];
    let caches = caches.into_iter().flat_map(|(name, fidelity, vicinity)| {
        let kept = |sampler| TextParams { fidelity, vicinity, ..with(sampler, most) };
        let threshold = THRESHOLD_WITH_CACHE;
        let near = if vicinity > 0 { format!("{vicinity}, ") } else { String::new() };
        [
            setting(name, format!("{near}{most} steps"), kept(TextSampler::LowConfidence)),
            setting(name, format!("{near}threshold {threshold}"), kept(TextSampler::Threshold { threshold })),
        ]
    });
    fixed.into_iter().chain(thresholds).chain(factors).chain(bounds).chain(caches).collect()
}

/// Ways to draw, the served one first.
fn images(options: &Options) -> Vec<Setting> {
    let setting = |family: &str, image: ImageParams| Setting {
        task: "scenes",
        family: family.to_owned(),
        value: format!("{} steps", image.steps),
        options: Options { image, ..options.clone() },
    };
    let served = || options.image.clone();
    let guided = GUIDANCE.into_iter().flat_map(|guidance_scale| {
        let family = format!("guidance {guidance_scale}");
        IMAGE_STEPS.map(|steps| setting(&family, ImageParams { steps, guidance_scale, ..served() }))
    });
    let emerge =
        IMAGE_STEPS.map(|steps| setting("emerge", ImageParams { steps, sampler: ImageSampler::Emerge, ..served() }));
    guided.chain(emerge).collect()
}

impl Point {
    fn new(setting: Setting, marks: &Marks, reference: &Marks) -> Self {
        let (n, forwards) = (marks.right.len().max(1) as f64, marks.forwards.max(1) as f64);
        let worth = |right: &bool| f64::from(u8::from(*right));
        let differences: Vec<f64> =
            marks.right.iter().zip(&reference.right).map(|(ours, theirs)| worth(ours) - worth(theirs)).collect();
        Self {
            task: setting.task,
            family: setting.family,
            value: setting.value,
            accuracy: marks.share(),
            change: bootstrap(&differences, setting.options.seed),
            nfe: forwards / n,
            tpf: marks.tokens as f64 / forwards,
            ppt: marks.positions as f64 / marks.tokens.max(1) as f64,
            fewer: reference.forwards as f64 / forwards,
        }
    }
}

impl Sweep {
    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        let header =
            ["task", "sampler", "setting", "right", "95 % interval", "change, points", "NFE", "TPF", "PPT", "fewer"];
        table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(header);
        for point in &self.points {
            let ([low, high], [worse, better]) = (point.accuracy.ci95, point.change.ci95.map(|x| x * 100.0));
            table.add_row([
                point.task.to_owned(),
                point.family.clone(),
                point.value.clone(),
                format!("{:.3}", point.accuracy.share),
                format!("{low:.3} – {high:.3}"),
                format!("{:+.1} ({worse:+.1} to {better:+.1})", point.change.mean * 100.0),
                format!("{:.1}", point.nfe),
                format!("{:.2}", point.tpf),
                format!("{:.1}", point.ppt),
                format!("{:.2}×", point.fewer),
            ]);
        }
        for column in table.column_iter_mut().skip(6) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string()
    }

    /// What is right over the positions that a token takes, one below the other for each task, one line for each family: the
    /// upper left is the better.
    #[must_use]
    pub fn plot(&self) -> RgbImage {
        let mut colours = COLOURS.into_iter().cycle();
        let tasks = distinct(self.points.iter().map(|point| point.task));
        let sheets: Vec<RgbImage> = tasks.into_iter().map(|task| self.sheet(task, &mut colours)).collect();
        let width = sheets.iter().map(RgbImage::width).max().unwrap_or_default();
        let mut picture = RgbImage::new(width, sheets.iter().map(RgbImage::height).sum());
        let mut top = 0;
        for sheet in sheets {
            imageops::replace(&mut picture, &sheet, 0, top);
            top += i64::from(sheet.height());
        }
        picture
    }

    fn sheet(&self, task: &str, colours: &mut impl Iterator<Item = Rgb<u8>>) -> RgbImage {
        let of_task = || self.points.iter().filter(|point| point.task == task);
        let most = of_task().map(|point| point.ppt).fold(1.0, f64::max);
        let mut sheet = Sheet::new(most * 1.05, &format!("{task}: positions a token"));
        let mut across = 0;
        for (family, colour) in distinct(of_task().map(|point| point.family.as_str())).into_iter().zip(colours) {
            sheet.heading((1, across), family, colour);
            across += Sheet::width(family) + 18;
            let mut line: Vec<&Point> = of_task().filter(|point| point.family == family).collect();
            line.sort_by(|a, b| a.ppt.total_cmp(&b.ppt));
            let places: Vec<(f64, f64)> = line.iter().map(|point| (point.ppt, point.accuracy.share)).collect();
            sheet.path(&places, colour);
            for (point, place) in line.iter().zip(places) {
                sheet.interval(place.0, point.accuracy.ci95, colour);
                sheet.mark(place, 4, colour);
            }
        }
        sheet.picture()
    }
}

/// Each once, in the order in which they come first.
fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut out = Vec::new();
    all.for_each(|one| {
        if !out.contains(&one) {
            out.push(one);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::defaults::Defaults;

    fn point(task: &'static str, family: &str, right: usize, forwards: u64) -> Point {
        let marks = |right, forwards| Marks {
            right: (0..10).map(|i| i < right).collect(),
            forwards,
            positions: forwards * 50,
            tokens: 100,
        };
        let defaults = Defaults::default();
        let options = Options { n: 10, seed: 0, text: defaults.text.params(), image: defaults.image.params((8, 8)) };
        let setting = Setting { task, family: family.to_owned(), value: "0.9".to_owned(), options };
        Point::new(setting, &marks(right, forwards), &marks(9, 320))
    }

    #[test]
    fn costs_and_changes_are_counted_against_the_first() {
        let point = point("words", "threshold", 8, 100);
        assert_eq!((point.nfe, point.tpf, point.ppt, point.fewer), (10.0, 1.0, 50.0, 3.2));
        assert!((point.change.mean + 0.1).abs() < 1e-9 && point.change.ci95[0] < 0.0, "{:?}", point.change);
        assert_eq!((point.accuracy.share, point.accuracy.n), (0.8, 10));
    }

    #[test]
    fn settings_fit_the_served_lengths() {
        let defaults = Defaults::default();
        let options = Options { n: 1, seed: 0, text: defaults.text.params(), image: defaults.image.params((8, 8)) };
        let settings = texts(&options);
        assert_eq!(settings[0].options.text.steps, options.text.max_tokens, "one token per step is the reference");
        let blocks = options.text.max_tokens / options.text.block_length;
        assert!(settings.iter().all(|setting| setting.options.text.steps.is_multiple_of(blocks)));
        let served = &images(&options)[0].options.image;
        assert_eq!(served, &options.image, "the served image is the reference");
        let families: BTreeSet<String> =
            settings.into_iter().chain(images(&options)).map(|setting| setting.family).collect();
        assert!(families.len() <= COLOURS.len(), "a colour for each of {families:?}");
    }

    #[test]
    fn every_family_is_drawn_and_listed() {
        let points = vec![point("words", "threshold", 8, 100), point("scenes", "guidance 1", 7, 200)];
        let sweep = Sweep { n: 10, points };
        let picture = sweep.plot();
        for colour in &COLOURS[..2] {
            assert!(picture.pixels().filter(|pixel| *pixel == colour).count() > 100, "{colour:?} is missing");
        }
        let table = sweep.table();
        assert!(table.contains("threshold") && table.contains("guidance 1") && table.contains("3.20×"), "{table}");
    }
}
