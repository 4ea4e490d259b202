//! What an object looks like: shapes as signed distances, soft colours, a darker rim, light from the upper left.
//!
//! Only additions, multiplications, divisions and square roots of `f64`, all exact in IEEE 754, and one rounding to
//! eight bits at the end: every platform draws the same bytes.

use super::{CELL, Colour, Shape, Size};

/// The ground of every picture.
pub const PAPER: [u8; 3] = [250, 246, 238];

/// Corner radius of triangles.
const TRIANGLE_CORNER: f64 = 0.12;
/// Half the width of a triangle's base before its corners are rounded.
const TRIANGLE_BASE: f64 = 0.86;
/// Half the height of a triangle before its corners are rounded.
const TRIANGLE_RISE: f64 = 0.75;
/// Half the side of squares: a little less than a circle's radius, so that both look equally large.
const SQUARE_HALF: f64 = 0.9;
const SQUARE_CORNER: f64 = 0.2;
/// Half the width of a cross's arms.
const CROSS_ARM: f64 = 0.36;
const CROSS_CORNER: f64 = 0.14;

impl Colour {
    /// Its full tone.
    #[must_use]
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 60, 66],
            Self::Green => [64, 166, 104],
            Self::Blue => [62, 118, 212],
            Self::Yellow => [246, 202, 44],
            Self::Orange => [242, 134, 40],
            Self::Purple => [146, 86, 188],
        }
    }
}

impl Size {
    /// The unit of shapes, in pixels: half the object's box without its margins.
    #[must_use]
    pub fn radius(self) -> f64 {
        match self {
            Self::Small => 13.0,
            Self::Medium => 28.0,
            Self::Large => 43.0,
        }
    }
}

impl Shape {
    /// Signed distance from the outline, negative inside, in units of [`Size::radius`]; `y` points down and the shape
    /// is centred on the origin.
    #[must_use]
    pub fn distance(self, x: f64, y: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Circle => length(x, y) - 1.0,
            Self::Square => rounded_box(x, y.abs(), SQUARE_HALF, SQUARE_HALF, SQUARE_CORNER),
            Self::Cross => {
                let upright = rounded_box(x, y.abs(), CROSS_ARM, 1.0, CROSS_CORNER);
                let lying = rounded_box(x, y.abs(), 1.0, CROSS_ARM, CROSS_CORNER);
                if upright < lying { upright } else { lying }
            }
            Self::Triangle => triangle(x, y),
        }
    }

    /// Half the width and half the height of its box, in units of [`Size::radius`].
    #[must_use]
    pub fn extent(self) -> (f64, f64) {
        match self {
            Self::Circle | Self::Cross => (1.0, 1.0),
            Self::Square => (SQUARE_HALF, SQUARE_HALF),
            Self::Triangle => (TRIANGLE_BASE + TRIANGLE_CORNER, TRIANGLE_RISE + TRIANGLE_CORNER),
        }
    }
}

fn length(x: f64, y: f64) -> f64 {
    (x * x + y * y).sqrt()
}

fn rounded_box(x: f64, y: f64, half_width: f64, half_height: f64, corner: f64) -> f64 {
    let (dx, dy) = (x - half_width + corner, y - half_height + corner);
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0) - corner
}

fn triangle(x: f64, y: f64) -> f64 {
    // The slanted edge runs from the apex (0, -rise) to the foot (base, rise); x is already mirrored.
    let (ex, ey) = (TRIANGLE_BASE, 2.0 * TRIANGLE_RISE);
    let (px, py) = (x, y + TRIANGLE_RISE);
    let along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
    let slant = length(px - along * ex, py - along * ey);
    let base = length((x - TRIANGLE_BASE).max(0.0), y - TRIANGLE_RISE);
    let inside = px * ey < py * ex && y < TRIANGLE_RISE;
    let outline = slant.min(base);
    (if inside { -outline } else { outline }) - TRIANGLE_CORNER
}

/// What one pixel of an object is made of, whatever the colour.
#[derive(Debug, Clone, Copy)]
pub struct Ink {
    /// How much of the pixel the object covers.
    cover: f64,
    /// Shade: what is left of the tone in the rim and away from the light.
    shade: f64,
    /// Light: how much paper shines through.
    glow: f64,
}

/// One object, as square pixels of `size.cells() * CELL` a side, row by row.
#[must_use]
pub fn object(shape: Shape, size: Size) -> Vec<Ink> {
    let side = size.cells() * CELL as usize;
    let radius = size.radius();
    let middle = side as f64 / 2.0;
    let at = |pixel: usize| (pixel as f64 + 0.5 - middle) / radius;
    (0..side * side).map(|i| Ink::new(shape, radius, at(i % side), at(i / side))).collect()
}

impl Ink {
    fn new(shape: Shape, radius: f64, x: f64, y: f64) -> Self {
        let distance = shape.distance(x, y) * radius;
        let rim = (1.0 + distance / (1.5 + 0.035 * radius)).clamp(0.0, 1.0);
        let light = (0.5 - (x + y) / 2.6).clamp(0.0, 1.0);
        Self {
            cover: (0.5 - distance).clamp(0.0, 1.0),
            shade: (1.0 - 0.15 * rim) * (1.0 - 0.08 * (1.0 - light)),
            glow: 0.2 * light * light * (1.0 - rim),
        }
    }

    /// The pixel, on paper. Shades and blends stay in the plane of the tone, the paper and black ([`super::see`]).
    #[must_use]
    pub fn paint(self, colour: Colour) -> [u8; 3] {
        let mut out = PAPER;
        for (channel, full) in out.iter_mut().zip(colour.rgb()) {
            let paper = f64::from(*channel);
            let ink = f64::from(full) * self.shade * (1.0 - self.glow) + paper * self.glow;
            *channel = (paper + (ink - paper) * self.cover + 0.5) as u8;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_stay_inside_their_boxes_with_a_margin() {
        for shape in Shape::ALL {
            for size in Size::ALL {
                let side = size.cells() * CELL as usize;
                let pixels = object(shape, size);
                let inked = |i: usize| pixels[i].paint(Colour::Red) != PAPER;
                let on_margin = |i: usize| [i % side, i / side].iter().any(|&p| p < 3 || p >= side - 3);
                assert!((0..side * side).all(|i| !(inked(i) && on_margin(i))), "{shape:?} {size:?}");
                assert!(inked(side * side / 2 + side / 2));
            }
        }
    }

    #[test]
    fn distances_measure() {
        for (shape, inside) in [(Shape::Circle, 1.0), (Shape::Square, SQUARE_HALF), (Shape::Cross, CROSS_ARM)] {
            assert!((shape.distance(0.0, 0.0) + inside).abs() < 1e-9, "{shape:?}");
        }
        for shape in Shape::ALL {
            let (w, h) = shape.extent();
            assert!((shape.distance(0.0, h + 0.5) - 0.5).abs() < 1e-9, "{shape:?}");
            assert!(shape.distance(w + 0.5, 0.0) >= 0.5 - 1e-9, "{shape:?}");
            assert_eq!(shape.distance(0.3, 0.2), shape.distance(-0.3, 0.2));
        }
    }
}
