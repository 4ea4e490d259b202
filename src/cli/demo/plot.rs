//! The learning curve as a picture: success of every version over time with its interval, and correctness beside it.

use image::{Rgb, RgbImage};

use super::report::Report;
use crate::cli::plot::Sheet;

const SUCCESS: Rgb<u8> = Rgb([31, 98, 204]);
const CORRECT: Rgb<u8> = Rgb([200, 130, 40]);

/// Draws the curves of `report`.
#[must_use]
pub fn draw(report: &Report) -> RgbImage {
    let most = report.versions.iter().map(|version| version.at_s / 60.0).fold(report.minutes, f64::max).max(0.1);
    let mut sheet = Sheet::new(most, "minutes");
    sheet.heading((0, 0), &format!("{}: {}", report.task.name(), report.task.success()), SUCCESS);
    sheet.heading((0, 560), "as asked", CORRECT);
    let points = |of: fn(&super::report::Version) -> f64| -> Vec<(f64, f64)> {
        report.versions.iter().map(|version| (version.at_s / 60.0, of(version))).collect()
    };
    let (success, correct) = (points(|version| version.held_out.success), points(|version| version.correctness));
    sheet.path(&correct, CORRECT);
    sheet.path(&success, SUCCESS);
    for (version, &point) in report.versions.iter().zip(&success) {
        sheet.interval(point.0, version.held_out.ci95, SUCCESS);
        sheet.mark(point, 4, SUCCESS);
    }
    for &point in &correct {
        sheet.mark(point, 3, CORRECT);
    }
    sheet.picture()
}
