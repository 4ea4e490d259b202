//! Pictures of shares: a sheet to draw on with a frame, axes and letters, and no font file or drawing library. What is
//! plotted is the commands' business.

use image::{Rgb, RgbImage};

pub mod font;

const WIDTH: i32 = 960;
const HEIGHT: i32 = 540;
/// The frame of the curves, in pixels: left, top, right, bottom.
const FRAME: [i32; 4] = [90, 60, WIDTH - 40, HEIGHT - 70];
/// Pixels of a dot of a letter.
const DOT: i32 = 2;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([40, 44, 52]);
const FAINT: Rgb<u8> = Rgb([225, 228, 232]);

/// A plot of shares from 0 to 1 over something that starts at 0.
pub struct Sheet {
    picture: RgbImage,
    /// Right end of the horizontal axis.
    most: f64,
}

impl Sheet {
    /// An empty plot over 0 to `most` of `unit`.
    #[must_use]
    pub fn new(most: f64, unit: &str) -> Self {
        let mut sheet = Self { picture: RgbImage::from_pixel(WIDTH as u32, HEIGHT as u32, PAPER), most };
        sheet.axes(unit);
        sheet
    }

    /// What was drawn.
    #[must_use]
    pub fn picture(self) -> RgbImage {
        self.picture
    }

    /// A heading in line 0 or 1, so many pixels from the left of the frame.
    pub fn heading(&mut self, (line, from_left): (i32, i32), text: &str, colour: Rgb<u8>) {
        self.text(FRAME[0] + from_left, FRAME[1] - 45 + 22 * line, text, colour);
    }

    /// A line through `points`, two pixels thick; shares are clamped to the frame by whoever has them.
    pub fn path(&mut self, points: &[(f64, f64)], colour: Rgb<u8>) {
        for pair in points.windows(2) {
            let (from, to) = (self.place(pair[0]), self.place(pair[1]));
            for lower in 0..2 {
                self.line((from.0, from.1 + lower), (to.0, to.1 + lower), colour);
            }
        }
    }

    /// A disc.
    pub fn mark(&mut self, point: (f64, f64), radius: i32, colour: Rgb<u8>) {
        let centre = self.place(point);
        for dy in -radius..=radius {
            for dx in -radius..=radius {
                if dx * dx + dy * dy <= radius * radius {
                    self.dot(centre.0 + dx, centre.1 + dy, colour);
                }
            }
        }
    }

    /// An upright interval at `x`.
    pub fn interval(&mut self, x: f64, ends: [f64; 2], colour: Rgb<u8>) {
        let [low, high] = ends.map(|share| self.place((x, share)));
        self.line(low, high, colour);
        for (at, end) in [low, high] {
            self.line((at - 4, end), (at + 4, end), colour);
        }
    }

    fn place(&self, (x, share): (f64, f64)) -> (i32, i32) {
        let [left, top, right, bottom] = FRAME;
        let across = left + (f64::from(right - left) * x / self.most).round() as i32;
        (across, bottom - (f64::from(bottom - top) * share).round() as i32)
    }

    fn axes(&mut self, unit: &str) {
        let [left, top, right, bottom] = FRAME;
        for tenths in (0..=10).step_by(2) {
            let (_, at) = self.place((0.0, f64::from(tenths) / 10.0));
            self.line((left, at), (right, at), FAINT);
            let label = format!("{}%", tenths * 10);
            self.text(left - 10 - Self::width(&label), at - 7, &label, INK);
        }
        let steps = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 240.0];
        let step = steps.into_iter().find(|step| self.most / step <= 8.0).unwrap_or(self.most);
        let mut x = 0.0;
        while x <= self.most + 1e-9 {
            let (at, _) = self.place((x, 0.0));
            self.line((at, bottom), (at, bottom + 6), INK);
            let label = if step < 1.0 { format!("{x:.1}") } else { format!("{x:.0}") };
            self.text(at - Self::width(&label) / 2, bottom + 12, &label, INK);
            x += step;
        }
        self.line((left, top), (left, bottom), INK);
        self.line((left, bottom), (right, bottom), INK);
        self.text((left + right) / 2 - Self::width(unit) / 2, bottom + 40, unit, INK);
    }

    /// Outside is nowhere.
    fn dot(&mut self, x: i32, y: i32, colour: Rgb<u8>) {
        if (0..WIDTH).contains(&x) && (0..HEIGHT).contains(&y) {
            self.picture.put_pixel(x as u32, y as u32, colour);
        }
    }

    fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb<u8>) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
        for step in 0..=steps {
            let at = |a: i32, b: i32| a + (f64::from(b - a) * f64::from(step) / f64::from(steps)).round() as i32;
            self.dot(at(from.0, to.0), at(from.1, to.1), colour);
        }
    }

    /// Pixels that a text takes.
    #[must_use]
    pub fn width(text: &str) -> i32 {
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
