use image::RgbImage;

use super::*;
use crate::diffusion::rng::Stream;
use crate::starter::scenes::render::PAPER;
use crate::starter::scenes::{
    CELL, Codec, Colour, Example, GRID, KINDS, Place, Split, TOKENS, parse, sample, sample_any,
};

fn examples(seed: u64, n: u64) -> impl Iterator<Item = (Stream, Example)> {
    (0..n).map(move |i| {
        let mut stream = Stream::new(seed, i);
        let example = sample_any(&mut stream, if i % 4 == 0 { Split::HeldOut } else { Split::Train });
        (stream, example)
    })
}

/// Pixels whose most different channel differs by more than the threshold of ink.
fn visible(a: &RgbImage, b: &RgbImage) -> usize {
    let differ = |(a, b): (&image::Rgb<u8>, &image::Rgb<u8>)| a.0.iter().zip(&b.0).any(|(a, b)| a.abs_diff(*b) > 20);
    a.pixels().zip(b.pixels()).filter(|&pair| differ(pair)).count()
}

/// How many corrupted pictures there were, and how many of them passed.
#[derive(Default)]
struct Tally {
    n: usize,
    passed: usize,
}

impl Tally {
    fn judge(&mut self, codec: &Codec, codes: &[u16], example: &Example) {
        let truth = codec.decode(&example.scene.codes(codec)).unwrap();
        let image = codec.decode(codes).unwrap();
        if visible(&truth, &image) > STRAY {
            self.n += 1;
            let verdict = verify(&image, &example.spec);
            self.passed += usize::from(verdict.strict);
            assert!(verdict.strict == (verdict.soft == 1.0) && verdict.strict == verdict.problems.is_empty());
        }
    }

    fn at_most(&self, share: f64) {
        assert!(self.n > 500 && self.passed as f64 <= share * self.n as f64, "{} of {} passed", self.passed, self.n);
    }
}

#[test]
fn the_truth_passes() {
    let codec = Codec::new();
    for (k, kind) in KINDS.into_iter().enumerate() {
        for i in 0..2000 {
            let split = if i % 4 == 0 { Split::HeldOut } else { Split::Train };
            let example = sample(&mut Stream::new(100 + k as u64, i), kind, split);
            let image = codec.decode(&example.scene.codes(&codec)).unwrap();
            let verdict = verify(&image, &example.spec);
            assert!(verdict.strict && verdict.soft == 1.0, "{}: {:?}", example.caption, verdict);
            let mut seen: Vec<_> =
                verdict.objects.iter().map(|s| (s.shape.unwrap(), s.colour.unwrap(), s.size)).collect();
            let mut placed: Vec<_> = example.scene.objects.iter().map(|o| (o.shape, o.colour, o.size)).collect();
            seen.sort();
            placed.sort();
            assert_eq!(seen, placed);
        }
    }
}

#[test]
fn centres_are_measured() {
    let codec = Codec::new();
    for (_, example) in examples(31, 300).filter(|(_, example)| example.scene.objects.len() == 1) {
        let seen = verify(&codec.decode(&example.scene.codes(&codec)).unwrap(), &example.spec).objects;
        let (a, b) = (seen[0].cell(), example.scene.objects[0].centre());
        assert!((a.0 - b.0).abs().max((a.1 - b.1).abs()) < 0.04, "{a:?} {b:?}");
    }
}

#[test]
fn a_random_patch_anywhere_fails() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(32, 3000) {
        let mut codes = example.scene.codes(&codec);
        codes[stream.below(TOKENS)] = stream.below(codec.len()) as u16;
        tally.judge(&codec, &codes, &example);
    }
    tally.at_most(0.01);
}

/// The positions of `codes` that show ink.
fn inked(codes: &[u16]) -> Vec<usize> {
    (0..codes.len()).filter(|&i| codes[i] != 0).collect()
}

#[test]
fn a_wrong_patch_in_an_object_fails() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(33, 3000) {
        let mut codes = example.scene.codes(&codec);
        let at = *stream.choose(&inked(&codes)).unwrap();
        codes[at] = stream.below(codec.len()) as u16;
        tally.judge(&codec, &codes, &example);
    }
    tally.at_most(0.01);
}

#[test]
fn a_missing_patch_fails() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(34, 2000) {
        let mut codes = example.scene.codes(&codec);
        let at = *stream.choose(&inked(&codes)).unwrap();
        codes[at] = 0;
        tally.judge(&codec, &codes, &example);
    }
    tally.at_most(0.0);
}

#[test]
fn a_stray_patch_fails() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(35, 2000) {
        let mut codes = example.scene.codes(&codec);
        let empty: Vec<usize> = (0..TOKENS).filter(|&i| codes[i] == 0).collect();
        codes[*stream.choose(&empty).unwrap()] = 1 + stream.below(codec.len() - 1) as u16;
        tally.judge(&codec, &codes, &example);
    }
    tally.at_most(0.0);
}

#[test]
fn two_patches_exchanged_fail() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(36, 3000) {
        let mut codes = example.scene.codes(&codec);
        if let Some(object) = example.scene.objects.iter().find(|object| object.size.cells() > 1) {
            let n = object.size.cells();
            let cell = |i: usize| (object.row + i / n) * GRID + object.col + i % n;
            let (a, b) = (stream.below(n * n), stream.below(n * n));
            codes.swap(cell(a), cell(b));
            tally.judge(&codec, &codes, &example);
        }
    }
    tally.at_most(0.0);
}

#[test]
fn half_an_object_in_another_colour_fails() {
    let codec = Codec::new();
    let mut tally = Tally::default();
    for (mut stream, example) in examples(37, 3000) {
        let mut codes = example.scene.codes(&codec);
        if let Some(object) = example.scene.objects.iter().find(|object| object.size.cells() > 1) {
            let n = object.size.cells();
            let colour = Colour::ALL[(object.colour as usize + 1 + stream.below(5)) % 6];
            let other = codec.object(object.shape, colour, object.size);
            // One cell, or a whole side.
            let cells = if stream.chance(0.5) { stream.below(n * n)..n * n } else { 0..1 + stream.below(n * n - 1) };
            for i in cells {
                codes[(object.row + i / n) * GRID + object.col + i % n] = other[i];
            }
            // From the first cell on, all of it is recoloured: another object, right only if the colour is open.
            let open = example.spec.groups.iter().any(|group| group.colour.is_none());
            if !open {
                tally.judge(&codec, &codes, &example);
            }
        }
    }
    tally.at_most(0.0);
}

#[test]
fn another_caption_fails() {
    let codec = Codec::new();
    for (_, example) in examples(38, 1000) {
        let image = codec.decode(&example.scene.codes(&codec)).unwrap();
        for g in 0..example.spec.groups.len() {
            let mut wrong = example.spec.clone();
            wrong.groups[g].count = example.spec.groups[g].count % 4 + 1;
            assert!(!verify(&image, &wrong).strict);
            let mut wrong = example.spec.clone();
            wrong.groups[g].colour = wrong.groups[g].colour.map(|c| Colour::ALL[(c as usize + 1) % 6]);
            let verdict = verify(&image, &wrong);
            assert!(wrong == example.spec || (!verdict.strict && verdict.soft > 0.3), "{}", wrong.caption());
        }
        if example.spec.relation.is_some() {
            let mut wrong = example.spec.clone();
            wrong.groups.reverse();
            let verdict = verify(&image, &wrong);
            assert!(!verdict.strict && verdict.soft < 0.9, "{}", wrong.caption());
        }
    }
}

#[test]
fn specks_of_three_pixels_fail() {
    let codec = Codec::new();
    for (_, example) in examples(39, 200) {
        let mut image = codec.decode(&example.scene.codes(&codec)).unwrap();
        let free = (0..TOKENS).find(|&i| example.scene.codes(&codec)[i] == 0).unwrap();
        let (x, y) = ((free % GRID) as u32 * CELL + 16, (free / GRID) as u32 * CELL + 16);
        for (i, strict) in [(0, true), (1, true), (2, false)] {
            image.put_pixel(x + i, y, image::Rgb([120, 120, 120]));
            assert_eq!(verify(&image, &example.spec).strict, strict, "{i}");
        }
    }
}

#[test]
fn soft_counts_what_is_right() {
    let codec = Codec::new();
    let spec = parse("a red circle left of a blue square").unwrap();
    let soft = |caption: &str| {
        let scene = crate::starter::scenes::Scene::draw(&parse(caption).unwrap(), &mut Stream::new(1, 1)).unwrap();
        verify(&codec.decode(&scene.codes(&codec)).unwrap(), &spec).soft
    };
    let blank = verify(&RgbImage::from_pixel(256, 256, image::Rgb(PAPER)), &spec);
    assert!(!blank.strict && blank.soft == 0.0);
    let order = [
        soft("a green cross"),
        soft("a red circle"),
        soft("a red circle right of a green square"),
        soft("a red circle right of a blue square"),
        soft("a red circle left of a blue square"),
    ];
    assert!(order.is_sorted_by(|a, b| a < b) && order[4] == 1.0, "{order:?}");
}

#[test]
fn places_are_judged() {
    let codec = Codec::new();
    for place in Place::ALL {
        for other in Place::ALL {
            let spec = |place: Place| parse(&format!("a small red circle {}", place.phrase())).unwrap();
            let scene = crate::starter::scenes::Scene::draw(&spec(place), &mut Stream::new(2, 2)).unwrap();
            let image = codec.decode(&scene.codes(&codec)).unwrap();
            let strict = verify(&image, &spec(other)).strict;
            // A small object in the middle lies half a cell off, which generous reading also takes for a quarter.
            assert!(strict == (place == other) || place == Place::Middle, "{place:?} {other:?}");
        }
    }
}
