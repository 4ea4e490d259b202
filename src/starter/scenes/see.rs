//! What a picture shows, from its pixels alone: objects by colour, shape, size and place, and what belongs to none.
//!
//! Ink is what differs from the paper; connected ink is an object; its colour is the one hue all its pixels share, its
//! shape the one outline its silhouette fills. Anything less (two hues, a missing quarter, a speck) is reported as such.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::codec::fitted;
use super::render::PAPER;
use super::{CELL, Colour, Place, SIDE, Shape, Size};

/// How far a pixel is from the paper, in its most different channel, to be ink.
const INK: u8 = 20;
/// How far to count for the colour vote: fainter pixels are all alike.
const STRONG: u8 = 56;
/// Smaller ink is a speck, not an object; the smallest object has about 300 pixels.
const SPECK: usize = 60;
/// Pixels of another hue, or on the wrong side of the outline, that an object may have.
const SLACK: usize = 2;
/// How far, in 8-bit steps, a pixel may lie off the plane of its hue.
const OFF_HUE: f32 = 12.0;
/// Pixels this close to an outline may fall on either side of it.
const OUTLINE: f64 = 1.25;

/// An object seen in a picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Its shape; `None` if its silhouette is none of the four.
    pub shape: Option<Shape>,
    /// Its colour; `None` if it has several.
    pub colour: Option<Colour>,
    /// Its size.
    pub size: Size,
    /// Centre of its box, in pixels.
    pub centre: (f32, f32),
    /// Its pixels.
    pub area: usize,
}

impl Seen {
    /// Its centre in cells.
    #[must_use]
    pub fn cell(&self) -> (f32, f32) {
        (self.centre.0 / CELL as f32, self.centre.1 / CELL as f32)
    }

    /// Whether it lies in `place`, read generously: half a cell off the midlines is enough for a quarter.
    #[must_use]
    pub fn lies(&self, place: Place) -> bool {
        place.holds(self.cell(), 0.45)
    }
}

/// Everything seen in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Sight {
    /// Objects, from the upper left, well formed or not.
    pub objects: Vec<Seen>,
    /// Inked pixels that belong to no object.
    pub stray: usize,
}

/// Looks at a picture (at 256 × 256 pixels, resized if it is not).
#[must_use]
pub fn see(image: &RgbImage) -> Sight {
    let image = fitted(image);
    let pixels = image.as_raw().as_chunks::<3>().0;
    let mut ink: Vec<u8> = pixels.iter().map(strength).collect();
    let hues = Colour::ALL.map(Hue::new);
    let mut sight = Sight { objects: Vec::new(), stray: 0 };
    for start in 0..ink.len() {
        if ink[start] >= INK {
            let blob = flood(&mut ink, start);
            if blob.len() < SPECK {
                sight.stray += blob.len();
            } else {
                sight.objects.push(recognise(pixels, &blob, &hues));
            }
        }
    }
    sight
}

fn strength(pixel: &[u8; 3]) -> u8 {
    pixel.iter().zip(&PAPER).map(|(&a, &b)| a.abs_diff(b)).max().unwrap_or(0)
}

/// Takes the ink connected to `start` (eight neighbours) out of `ink`; indices of its pixels.
fn flood(ink: &mut [u8], start: usize) -> Vec<usize> {
    let side = SIDE as usize;
    let mut blob = vec![start];
    ink[start] = 0;
    let mut next = 0;
    while let Some(&at) = blob.get(next) {
        next += 1;
        let (x, y) = (at % side, at / side);
        for ny in y.saturating_sub(1)..(y + 2).min(side) {
            for nx in x.saturating_sub(1)..(x + 2).min(side) {
                let neighbour = ny * side + nx;
                if ink[neighbour] >= INK {
                    ink[neighbour] = 0;
                    blob.push(neighbour);
                }
            }
        }
    }
    blob
}

/// All shades of one colour and their blends with paper lie in the plane through black, the colour and the paper, on
/// the colour's side: one test for rims, shading and soft edges alike.
struct Hue {
    colour: Colour,
    /// Unit normal of the plane.
    normal: [f32; 3],
    /// A pixel's share of the colour is its product with this vector.
    share: [f32; 3],
    /// And its share of paper the product with this one.
    paper: [f32; 3],
}

impl Hue {
    fn new(colour: Colour) -> Self {
        let (c, p) = (colour.rgb().map(f32::from), PAPER.map(f32::from));
        let normal = [c[1] * p[2] - c[2] * p[1], c[2] * p[0] - c[0] * p[2], c[0] * p[1] - c[1] * p[0]];
        let length = dot(normal, normal).sqrt();
        // Dual basis of (c, p) within their plane.
        let (cc, cp, pp) = (dot(c, c), dot(c, p), dot(p, p));
        let det = cc * pp - cp * cp;
        let combine = |a: f32, b: f32| [0, 1, 2].map(|i| (a * c[i] + b * p[i]) / det);
        Self { colour, normal: normal.map(|n| n / length), share: combine(pp, -cp), paper: combine(-cp, cc) }
    }

    /// How far a pixel is from being of this hue, in 8-bit steps.
    fn off(&self, pixel: [f32; 3]) -> f32 {
        if dot(pixel, self.share) < 0.0 { f32::MAX } else { dot(pixel, self.normal).abs() }
    }
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn recognise(pixels: &[[u8; 3]], blob: &[usize], hues: &[Hue; 6]) -> Seen {
    let mut votes = [0usize; 6];
    for &i in blob {
        if strength(&pixels[i]) >= STRONG {
            let pixel = pixels[i].map(f32::from);
            let off = [0, 1, 2, 3, 4, 5].map(|hue: usize| hues[hue].off(pixel));
            let nearest = (0..6).min_by(|&a, &b| off[a].total_cmp(&off[b]));
            votes[nearest.unwrap_or(0)] += 1;
        }
    }
    let hue = &hues[(0..6).max_by_key(|&i| votes[i]).unwrap_or(0)];
    let off = blob.iter().filter(|&&i| hue.off(pixels[i].map(f32::from)) > OFF_HUE).count();
    let silhouette = Silhouette::new(pixels, blob, hue);
    let across = silhouette.width.max(silhouette.height);
    Seen {
        shape: Shape::ALL.into_iter().find(|&shape| silhouette.fills(shape)),
        colour: (off <= SLACK).then_some(hue.colour),
        size: match across {
            0..42 => Size::Small,
            42..72 => Size::Medium,
            _ => Size::Large,
        },
        centre: silhouette.centre,
        area: blob.len(),
    }
}

/// Which pixels of a box an object covers at least by half.
struct Silhouette {
    width: usize,
    height: usize,
    centre: (f32, f32),
    solid: Vec<bool>,
}

impl Silhouette {
    fn new(pixels: &[[u8; 3]], blob: &[usize], hue: &Hue) -> Self {
        let side = SIDE as usize;
        let covered = |&i: &usize| dot(pixels[i].map(f32::from), hue.paper) <= 0.5;
        let solid: Vec<usize> = blob.iter().copied().filter(covered).collect();
        let (mut left, mut right, mut top, mut bottom) = (side, 0, side, 0);
        for (x, y) in solid.iter().map(|i| (i % side, i / side)) {
            (left, right) = (left.min(x), right.max(x + 1));
            (top, bottom) = (top.min(y), bottom.max(y + 1));
        }
        let (width, height) = (right.saturating_sub(left), bottom.saturating_sub(top));
        let mut inside = vec![false; width * height];
        for i in solid {
            inside[(i / side - top) * width + i % side - left] = true;
        }
        let centre = ((left + right) as f32 / 2.0, (top + bottom) as f32 / 2.0);
        Self { width, height, centre, solid: inside }
    }

    /// Whether the outline of `shape`, scaled to the box, divides covered pixels from others.
    fn fills(&self, shape: Shape) -> bool {
        let (wide, high) = shape.extent();
        let (by_width, by_height) = (self.width as f64 / 2.0 / wide, self.height as f64 / 2.0 / high);
        if (by_width - by_height).abs() > 1.5 || self.solid.is_empty() {
            return false;
        }
        let radius = (by_width + by_height) / 2.0;
        let at = |pixel: usize, length: usize| (pixel as f64 + 0.5 - length as f64 / 2.0) / radius;
        let mut wrong = 0;
        for (i, &solid) in self.solid.iter().enumerate() {
            let distance = shape.distance(at(i % self.width, self.width), at(i / self.width, self.height)) * radius;
            if (distance < -OUTLINE && !solid) || (distance > OUTLINE && solid) {
                wrong += 1;
                if wrong > SLACK {
                    return false;
                }
            }
        }
        true
    }
}
