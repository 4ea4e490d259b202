//! Canvases and pictures as terminal lines, redrawn in place.

use image::RgbImage;
use image::imageops::{FilterType, resize};

use super::term;

/// One position of a text canvas.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Not known yet.
    Masked,
    /// Committed.
    Token {
        /// Its text.
        text: String,
        /// Confidence in `[0, 1]`.
        confidence: f32,
    },
}

/// A region of the terminal that is drawn over and over; nothing when nobody looks.
#[derive(Debug)]
pub struct Screen {
    live: bool,
    lines: usize,
}

impl Screen {
    /// A region below what was printed so far.
    #[must_use]
    pub fn new(live: bool) -> Self {
        Self { live, lines: 0 }
    }

    /// Draws `lines` and a status line over what was drawn before.
    pub fn show(&mut self, lines: Vec<String>, status: &str) {
        if self.live {
            self.clear();
            self.lines = lines.len() + 1;
            term::line(format_args!("{}\n\x1b[2m{status}\x1b[0m", lines.join("\n")));
        }
    }

    /// Removes what was drawn.
    pub fn clear(&mut self) {
        if self.live && self.lines > 0 {
            term::part(format_args!("\x1b[{}A\x1b[J", self.lines));
            self.lines = 0;
        }
    }
}

/// A text canvas as lines of at most `width` columns; masked cells are shaded, the colour of a token is its confidence.
#[must_use]
pub fn canvas(cells: &[Cell], width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut column = 0;
    for cell in cells {
        let (text, colour) = match cell {
            Cell::Masked => ("░", "38;5;240".to_owned()),
            Cell::Token { text, confidence } => (text.as_str(), format!("38;5;{}", colour(*confidence))),
        };
        for (i, piece) in text.split('\n').enumerate() {
            // Columns are counted as characters; a wide one makes a line longer than meant, nothing worse.
            let shown: String = piece.chars().filter(|c| !c.is_control()).collect();
            let length = shown.chars().count();
            if i > 0 || column + length > width {
                lines.push(String::new());
                column = 0;
            }
            if let Some(line) = lines.last_mut().filter(|_| !shown.is_empty()) {
                line.push_str(&format!("\x1b[{colour}m{shown}\x1b[0m"));
                column += length;
            }
        }
    }
    lines
}

/// Red over yellow to green in the 256-colour cube.
fn colour(confidence: f32) -> u8 {
    const RAMP: [u8; 6] = [203, 209, 215, 221, 149, 78];
    RAMP[((confidence.clamp(0.0, 1.0) * 6.0) as usize).min(5)]
}

/// A picture in half blocks, two pixels a character, at most 48 columns wide.
#[must_use]
pub fn picture(image: &RgbImage, width: usize) -> Vec<String> {
    let columns = width.clamp(8, 48) as u32;
    let rows = (columns * image.height() / image.width().max(1)).clamp(2, 128) & !1;
    let small = resize(image, columns, rows, FilterType::Triangle);
    (0..rows / 2)
        .map(|row| {
            let cell = |x| {
                let ([r, g, b], [r2, g2, b2]) = (small.get_pixel(x, 2 * row).0, small.get_pixel(x, 2 * row + 1).0);
                format!("\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m▀")
            };
            (0..columns).map(cell).collect::<String>() + "\x1b[0m"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, confidence: f32) -> Cell {
        Cell::Token { text: text.to_owned(), confidence }
    }

    #[test]
    fn a_canvas_wraps_breaks_and_colours() {
        let cells = [token("ab", 1.0), Cell::Masked, token("c\nd", 0.0), token("\x1b[2J", 0.5)];
        let lines = canvas(&cells, 3);
        assert_eq!(
            lines,
            [
                "\x1b[38;5;78mab\x1b[0m\x1b[38;5;240m░\x1b[0m",
                "\x1b[38;5;203mc\x1b[0m",
                "\x1b[38;5;203md\x1b[0m",
                "\x1b[38;5;221m[2J\x1b[0m"
            ]
        );
    }

    #[test]
    fn a_picture_has_two_pixels_a_character() {
        let image = RgbImage::from_fn(16, 16, |_, y| image::Rgb(if y < 8 { [255, 0, 0] } else { [0, 0, 255] }));
        let lines = picture(&image, 16);
        assert_eq!(lines.len(), 8);
        assert!(lines[0].starts_with("\x1b[38;2;255;0;0;48;2;255;0;0m▀"));
        assert!(lines[7].starts_with("\x1b[38;2;0;0;255;48;2;0;0;255m▀"));
    }
}
