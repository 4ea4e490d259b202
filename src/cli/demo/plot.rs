//! The learning curve as a picture: success of every version over time with its interval, and correctness beside it.

use image::{Rgb, RgbImage};

use super::font;
use super::report::Report;

const WIDTH: i32 = 960;
const HEIGHT: i32 = 540;
/// The frame of the curves, in pixels: left, top, right, bottom.
const FRAME: [i32; 4] = [90, 60, WIDTH - 40, HEIGHT - 70];
/// Pixels of a dot of a letter.
const DOT: i32 = 2;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([40, 44, 52]);
const FAINT: Rgb<u8> = Rgb([225, 228, 232]);
const SUCCESS: Rgb<u8> = Rgb([31, 98, 204]);
const CORRECT: Rgb<u8> = Rgb([200, 130, 40]);

/// Draws the curves of `report`.
#[must_use]
pub fn draw(report: &Report) -> RgbImage {
    let mut sheet = Sheet(RgbImage::from_pixel(WIDTH as u32, HEIGHT as u32, PAPER));
    let most = report.versions.iter().map(|version| version.at_s / 60.0).fold(report.minutes, f64::max).max(0.1);
    axes(&mut sheet, most);
    let [left, top, ..] = FRAME;
    sheet.text(left, top - 40, &format!("{}: {}", report.task.name(), report.task.success()), SUCCESS);
    sheet.text(left + 560, top - 40, "as asked", CORRECT);
    let place = |at_s: f64, share: f64| (x(at_s / 60.0, most), y(share));
    let points = |of: fn(&super::report::Version) -> f64| -> Vec<(i32, i32)> {
        report.versions.iter().map(|version| place(version.at_s, of(version))).collect()
    };
    let (success, correct) = (points(|version| version.held_out.success), points(|version| version.correctness));
    sheet.path(&correct, CORRECT);
    sheet.path(&success, SUCCESS);
    for (version, &(at, height)) in report.versions.iter().zip(&success) {
        let [low, high] = version.held_out.ci95.map(y);
        sheet.line((at, low), (at, high), SUCCESS);
        for end in [low, high] {
            sheet.line((at - 4, end), (at + 4, end), SUCCESS);
        }
        sheet.disc((at, height), 4, SUCCESS);
    }
    for &at in &correct {
        sheet.disc(at, 3, CORRECT);
    }
    sheet.0
}

fn x(minutes: f64, most: f64) -> i32 {
    let [left, _, right, _] = FRAME;
    left + (f64::from(right - left) * minutes / most).round() as i32
}

fn y(share: f64) -> i32 {
    let [_, top, _, bottom] = FRAME;
    bottom - (f64::from(bottom - top) * share).round() as i32
}

fn axes(sheet: &mut Sheet, most: f64) {
    let [left, top, right, bottom] = FRAME;
    for tenths in (0..=10).step_by(2) {
        let at = y(f64::from(tenths) / 10.0);
        sheet.line((left, at), (right, at), FAINT);
        let label = format!("{}%", tenths * 10);
        sheet.text(left - 10 - Sheet::width(&label), at - 7, &label, INK);
    }
    let step =
        [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 240.0].into_iter().find(|step| most / step <= 8.0).unwrap_or(most);
    let mut minutes = 0.0;
    while minutes <= most + 1e-9 {
        let at = x(minutes, most);
        sheet.line((at, bottom), (at, bottom + 6), INK);
        let label = if step < 1.0 { format!("{minutes:.1}") } else { format!("{minutes:.0}") };
        sheet.text(at - Sheet::width(&label) / 2, bottom + 12, &label, INK);
        minutes += step;
    }
    sheet.line((left, top), (left, bottom), INK);
    sheet.line((left, bottom), (right, bottom), INK);
    sheet.text((left + right) / 2 - Sheet::width("minutes") / 2, bottom + 40, "minutes", INK);
}

struct Sheet(RgbImage);

impl Sheet {
    /// Outside is nowhere.
    fn dot(&mut self, x: i32, y: i32, colour: Rgb<u8>) {
        if (0..WIDTH).contains(&x) && (0..HEIGHT).contains(&y) {
            self.0.put_pixel(x as u32, y as u32, colour);
        }
    }

    fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb<u8>) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
        for step in 0..=steps {
            let at = |a: i32, b: i32| a + (f64::from(b - a) * f64::from(step) / f64::from(steps)).round() as i32;
            self.dot(at(from.0, to.0), at(from.1, to.1), colour);
        }
    }

    /// Two pixels thick.
    fn path(&mut self, points: &[(i32, i32)], colour: Rgb<u8>) {
        for pair in points.windows(2) {
            for lower in 0..2 {
                self.line((pair[0].0, pair[0].1 + lower), (pair[1].0, pair[1].1 + lower), colour);
            }
        }
    }

    fn disc(&mut self, centre: (i32, i32), radius: i32, colour: Rgb<u8>) {
        for dy in -radius..=radius {
            for dx in -radius..=radius {
                if dx * dx + dy * dy <= radius * radius {
                    self.dot(centre.0 + dx, centre.1 + dy, colour);
                }
            }
        }
    }

    /// Pixels that a text takes.
    fn width(text: &str) -> i32 {
        text.chars().count() as i32 * (font::WIDTH as i32 + 1) * DOT
    }

    fn text(&mut self, x: i32, y: i32, text: &str, colour: Rgb<u8>) {
        for (i, letter) in (0i32..).zip(text.chars()) {
            let left = x + i * (font::WIDTH as i32 + 1) * DOT;
            for (row, bits) in (0i32..).zip(font::rows(letter)) {
                for column in
                    (0..font::WIDTH as i32).filter(|column| bits >> (font::WIDTH as i32 - 1 - column) & 1 == 1)
                {
                    for dot in 0..DOT * DOT {
                        self.dot(left + column * DOT + dot % DOT, y + row * DOT + dot / DOT, colour);
                    }
                }
            }
        }
    }
}
