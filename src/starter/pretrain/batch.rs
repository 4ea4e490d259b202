//! Training sequences: generated examples in the starter's layout, with the positions to predict masked.

use std::f64::consts::FRAC_PI_2;

use crate::diffusion::rng::Stream;
use crate::models::{Layout, ModelError};
use crate::starter::scenes::{self, Codec, TOKENS};
use crate::starter::{StarterLayout, tokenizer, words};
use crate::text::Tokenizer;

/// Smallest share of a text's positions that is masked; its inverse bounds the weight 1/t.
const MIN_TEXT_RATIO: f64 = 0.1;
/// Mean of the cosine distribution of mask ratios, ∫ cos(πu/2) du.
const MEAN_IMAGE_RATIO: f64 = 1.0 / FRAC_PI_2;
/// Weight of the end-of-text positions after the first: they only say that the text is over.
const TAIL_WEIGHT: f64 = 0.1;

/// Weight of an image against a text. Nine cells in ten are blank and cost nothing, so the mean over cells is small.
const IMAGE_WEIGHT: f64 = 4.0;

/// What sequences are made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// Share of the sequences that are scenes; the others are word problems.
    pub scenes: f64,
    /// Share of captions that are dropped, so that guidance has an unconditional side.
    pub drop_caption: f64,
    /// Longest generated canvas of a word problem.
    pub canvas: usize,
}

impl Default for Mixture {
    fn default() -> Self {
        Self { scenes: 0.6, drop_caption: 0.1, canvas: 48 }
    }
}

/// One sequence with the positions to predict.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Input ids; masked positions carry the mask id.
    pub ids: Vec<u32>,
    /// Masked positions, ascending.
    pub masked: Vec<u32>,
    /// Token of each masked position.
    pub targets: Vec<u32>,
    /// Weight of each masked position in the loss.
    pub weights: Vec<f32>,
    /// Targets are image codes.
    pub image: bool,
}

/// The generators, and what is needed to lay their examples out.
pub struct Source {
    tokenizer: Tokenizer,
    codec: Codec,
    mixture: Mixture,
    seed: u64,
}

impl Source {
    /// A source of training sequences; the same seed gives the same sequences.
    ///
    /// # Errors
    /// When the built-in tokenizer cannot be read.
    pub fn new(mixture: Mixture, seed: u64) -> Result<Self, ModelError> {
        let tokenizer = tokenizer::load().map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(Self { tokenizer, codec: Codec::new(), mixture, seed })
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Sequence number `index` of `batch` in a run: a pure function of the seed and the index. `stratum` in `[0, 1)` spreads the mask
    /// ratios of a batch evenly, which halves the variance of its loss (arXiv 2107.00630, §H).
    ///
    /// # Errors
    /// When an example cannot be tokenised.
    pub fn sequence(&self, index: u64, stratum: f64) -> Result<Sequence, ModelError> {
        let mut stream = Stream::new(self.seed, index);
        if stream.chance(self.mixture.scenes) {
            self.scene(&mut stream, stratum)
        } else {
            self.problem(&mut stream, stratum)
        }
    }

    fn scene(&self, stream: &mut Stream, stratum: f64) -> Result<Sequence, ModelError> {
        let example = scenes::sample_mixed(stream, scenes::Split::Train);
        let caption =
            if stream.chance(self.mixture.drop_caption) { Vec::new() } else { self.encode(&example.caption)? };
        let (mut ids, suffix) = StarterLayout.image_frame(&caption);
        let start = ids.len();
        ids.extend(example.scene.codes(&self.codec).map(|code| tokenizer::VOCAB_SIZE as u32 + u32::from(code)));
        ids.extend(suffix);
        // MaskGIT's cosine-distributed mask ratio, and the plain mean of the masked positions.
        let ratio = (FRAC_PI_2 * stratum).cos();
        let weight = IMAGE_WEIGHT / (MEAN_IMAGE_RATIO * TOKENS as f64);
        Ok(mask(ids, start..start + TOKENS, ratio, true, stream, |_| weight))
    }

    fn problem(&self, stream: &mut Stream, stratum: f64) -> Result<Sequence, ModelError> {
        let problem = words::sample_mixed(stream, words::Split::Train);
        let answer = self.encode(&problem.answer_text)?;
        let mut ids = StarterLayout.text_prefix(&self.encode(&problem.question)?);
        let start = ids.len();
        let end = answer.len();
        ids.extend(answer);
        // Canvases of many lengths, filled up with end-of-text, so that the served length is free.
        let spare = self.mixture.canvas.saturating_sub(end + 1);
        let canvas = end + 1 + stream.below(spare + 1).min(stream.below(spare + 1));
        ids.resize(start + canvas, tokenizer::EOS);
        // LLaDA's objective: cross-entropy weighted by 1/t.
        let ratio = MIN_TEXT_RATIO + (1.0 - MIN_TEXT_RATIO) * stratum;
        let real = (end + 1) as f64 + TAIL_WEIGHT * (canvas - end - 1) as f64;
        Ok(mask(ids, start..start + canvas, ratio, false, stream, |i| {
            (if i <= end { 1.0 } else { TAIL_WEIGHT }) / (ratio * real)
        }))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.tokenizer.encode(text).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }
}

/// Masks exactly `ratio` of `region` (at least one position), uniformly.
fn mask(
    mut ids: Vec<u32>,
    region: std::ops::Range<usize>,
    ratio: f64,
    image: bool,
    stream: &mut Stream,
    weight: impl Fn(usize) -> f64,
) -> Sequence {
    let count = ((region.len() as f64 * ratio).round() as usize).clamp(1, region.len());
    let mut order: Vec<usize> = region.clone().collect();
    stream.shuffle(&mut order);
    let mut masked = order[..count].to_vec();
    masked.sort_unstable();
    let targets = masked.iter().map(|&at| std::mem::replace(&mut ids[at], tokenizer::MASK)).collect();
    let weights = masked.iter().map(|&at| weight(at - region.start) as f32).collect();
    Sequence { ids, masked: masked.iter().map(|&at| at as u32).collect(), targets, weights, image }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_repeat_and_mask_only_what_is_to_be_generated() -> Result<(), ModelError> {
        let source = Source::new(Mixture::default(), 3)?;
        let mut images = 0;
        for index in 0..400 {
            let sequence = source.sequence(index, (index % 16) as f64 / 16.0)?;
            assert_eq!(sequence, source.sequence(index, (index % 16) as f64 / 16.0)?);
            images += usize::from(sequence.image);
            let masks = sequence.ids.iter().filter(|&&id| id == tokenizer::MASK).count();
            assert_eq!(masks, sequence.masked.len());
            assert!(masks == sequence.targets.len() && masks == sequence.weights.len() && masks > 0);
            let codes = tokenizer::VOCAB_SIZE as u32;
            assert!(sequence.targets.iter().all(|&t| (t >= codes) == sequence.image));
            assert!(sequence.masked[0] > 0);
        }
        assert!((180..300).contains(&images), "{images}");
        Ok(())
    }
}
