//! Pictures as 64 codes: an exact codebook of everything a cell can show.
//!
//! Objects lie on whole cells ([`super::layout`]), so every cell is either empty or one of the few pieces of an
//! object. The codebook lists them all, which makes it a lossless vector quantiser: `encode(decode(codes)) == codes`.

use std::collections::HashMap;

use image::RgbImage;
use image::imageops::{self, FilterType};
use thiserror::Error;

use super::render::{self, Ink, PAPER};
use super::{CELL, Colour, GRID, SIDE, Shape, Size, TOKENS};

/// Number of codes.
pub const CODES: usize = 295;

const SIDE_OF_PATCH: usize = CELL as usize;
const ROW: usize = SIDE_OF_PATCH * 3;
const BYTES: usize = SIDE_OF_PATCH * ROW;

/// Why codes are not a picture.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// Too few or too many codes.
    #[error("codes: a picture is {TOKENS} codes, got {0}; send {TOKENS}")]
    Length(usize),
    /// A code that is not in the codebook.
    #[error("codes: position {position} holds {code}, the codebook has {len} codes; use 0 to {}", .len - 1)]
    Code {
        /// Where.
        position: usize,
        /// Which code.
        code: u16,
        /// The size of the codebook.
        len: usize,
    },
}

/// The codebook. Code 0 is empty paper; then by colour, shape, size and cell.
#[derive(Debug, Clone)]
pub struct Codec {
    /// Patches of `CELL × CELL` RGB pixels, one after another.
    patches: Vec<u8>,
    /// The codes of every whole object, at [`slot`].
    objects: Vec<Vec<u16>>,
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec {
    /// Draws the codebook; a few milliseconds.
    #[must_use]
    pub fn new() -> Self {
        let mut known: HashMap<Vec<u8>, u16> = HashMap::from([(PAPER.repeat(BYTES / 3), 0)]);
        let mut codec = Self { patches: PAPER.repeat(BYTES / 3), objects: Vec::new() };
        let inks: Vec<Vec<Ink>> = looks().map(|(shape, size)| render::object(shape, size)).collect();
        for colour in Colour::ALL {
            for ((_, size), ink) in looks().zip(&inks) {
                let n = size.cells();
                let cells = (0..n * n).map(|cell| cut(ink, colour, n, cell % n, cell / n));
                let codes = cells.map(|patch| {
                    let next = codec.len() as u16;
                    *known.entry(patch).or_insert_with_key(|patch| {
                        codec.patches.extend_from_slice(patch);
                        next
                    })
                });
                let codes = codes.collect();
                codec.objects.push(codes);
            }
        }
        codec
    }

    /// How many codes there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a codebook is never empty")]
    pub fn len(&self) -> usize {
        self.patches.len() / BYTES
    }

    /// The codes of one object, row by row of its cells.
    #[must_use]
    pub fn object(&self, shape: Shape, colour: Colour, size: Size) -> &[u16] {
        self.objects.get(slot(shape, colour, size)).map_or(&[], Vec::as_slice)
    }

    /// The picture of 64 codes, 256 × 256 pixels.
    ///
    /// # Errors
    /// [`CodecError`] if there are not 64, or one is not in the codebook.
    pub fn decode(&self, codes: &[u16]) -> Result<RgbImage, CodecError> {
        if codes.len() != TOKENS {
            return Err(CodecError::Length(codes.len()));
        }
        let mut image = RgbImage::new(SIDE, SIDE);
        for (position, &code) in codes.iter().enumerate() {
            let patch = self.patches.chunks_exact(BYTES).nth(usize::from(code)).ok_or(CodecError::Code {
                position,
                code,
                len: self.len(),
            })?;
            for (row, range) in patch.chunks_exact(ROW).zip(rows(position)) {
                image.as_flat_samples_mut().samples[range].copy_from_slice(row);
            }
        }
        Ok(image)
    }

    /// The nearest codes of any picture, resized to 256 × 256 pixels if it is not; exact for decoded ones.
    #[must_use]
    pub fn encode(&self, image: &RgbImage) -> Vec<u16> {
        let image = fitted(image);
        let mut cell = vec![0; BYTES];
        (0..TOKENS)
            .map(|position| {
                for (row, range) in cell.chunks_exact_mut(ROW).zip(rows(position)) {
                    row.copy_from_slice(&image.as_raw()[range]);
                }
                self.nearest(&cell)
            })
            .collect()
    }

    fn nearest(&self, cell: &[u8]) -> u16 {
        let mut best = (u32::MAX, 0);
        for (code, patch) in self.patches.chunks_exact(BYTES).enumerate() {
            let mut distance = 0;
            // Row by row, so that a hopeless patch is left early. At most 3072 · 255² < 2³².
            for (a, b) in cell.chunks_exact(ROW).zip(patch.chunks_exact(ROW)) {
                distance += a.iter().zip(b).map(|(&a, &b)| u32::from(a.abs_diff(b)).pow(2)).sum::<u32>();
                if distance >= best.0 {
                    break;
                }
            }
            if distance < best.0 {
                best = (distance, code as u16);
            }
        }
        best.1
    }
}

/// The picture at 256 × 256 pixels.
pub(super) fn fitted(image: &RgbImage) -> std::borrow::Cow<'_, RgbImage> {
    if image.dimensions() == (SIDE, SIDE) {
        std::borrow::Cow::Borrowed(image)
    } else {
        std::borrow::Cow::Owned(imageops::resize(image, SIDE, SIDE, FilterType::Triangle))
    }
}

/// Where the rows of pixels of a cell lie in the bytes of a picture.
fn rows(position: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let corner = (position / GRID) * SIDE_OF_PATCH * GRID * ROW + (position % GRID) * ROW;
    (0..SIDE_OF_PATCH).map(move |y| corner + y * GRID * ROW..corner + y * GRID * ROW + ROW)
}

/// What objects of one colour there are, in the order of the codebook.
fn looks() -> impl Iterator<Item = (Shape, Size)> {
    Shape::ALL.into_iter().flat_map(|shape| Size::ALL.map(|size| (shape, size)))
}

fn slot(shape: Shape, colour: Colour, size: Size) -> usize {
    (colour as usize * Shape::ALL.len() + shape as usize) * Size::ALL.len() + size as usize
}

/// One cell of an object of `n × n` cells, as bytes.
fn cut(ink: &[Ink], colour: Colour, n: usize, col: usize, row: usize) -> Vec<u8> {
    ink.chunks_exact(n * SIDE_OF_PATCH)
        .skip(row * SIDE_OF_PATCH)
        .take(SIDE_OF_PATCH)
        .flat_map(|line| &line[col * SIDE_OF_PATCH..(col + 1) * SIDE_OF_PATCH])
        .flat_map(|ink| ink.paint(colour))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::Stream;
    use crate::starter::scenes::{Split, sample_any};

    /// FNV-1a, to pin the codebook: codes are stored, and weights learned, against exactly these patches.
    fn fnv(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn the_codebook_is_what_the_weights_were_trained_on() {
        let codec = Codec::new();
        assert_eq!((codec.len(), fnv(&codec.patches)), (CODES, 8_820_720_233_130_320_701));
    }

    #[test]
    fn every_scene_survives_coding() {
        let codec = Codec::new();
        for i in 0..200 {
            let scene = sample_any(&mut Stream::new(4, i), Split::Train).scene;
            let codes = scene.codes(&codec);
            assert_eq!(codec.encode(&codec.decode(&codes).unwrap()), codes);
        }
    }

    #[test]
    fn every_code_survives_coding() {
        let codec = Codec::new();
        let mut stream = Stream::new(8, 0);
        for _ in 0..20 {
            let codes: Vec<u16> = (0..TOKENS).map(|_| stream.below(codec.len()) as u16).collect();
            assert_eq!(codec.encode(&codec.decode(&codes).unwrap()), codes);
        }
    }

    #[test]
    fn bad_codes_are_refused() {
        let codec = Codec::new();
        assert_eq!(codec.decode(&[0; 63]), Err(CodecError::Length(63)));
        let mut codes = [0; TOKENS];
        codes[5] = codec.len() as u16;
        let error = codec.decode(&codes).unwrap_err();
        assert_eq!(error, CodecError::Code { position: 5, code: codes[5], len: codec.len() });
        assert!(error.to_string().contains("use 0 to 294"), "{error}");
    }

    #[test]
    fn other_sizes_and_noise_are_read_too() {
        let codec = Codec::new();
        let codes = sample_any(&mut Stream::new(6, 1), Split::Train).scene.codes(&codec);
        let image = codec.decode(&codes).unwrap();
        let large = imageops::resize(&image, 512, 512, FilterType::Triangle);
        assert_eq!(codec.encode(&large), codes);
        let mut noisy = image;
        let mut stream = Stream::new(6, 2);
        noisy.iter_mut().for_each(|byte| *byte = byte.saturating_add(stream.below(9) as u8));
        assert_eq!(codec.encode(&noisy), codes);
    }
}
