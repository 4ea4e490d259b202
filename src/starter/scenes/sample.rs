//! Made-up examples, and which of them training never sees.
//!
//! A composition is what a caption combines, whatever its wording: a pair of objects, a count of things, a pair and
//! its relation. About one in seven, chosen by a fixed hash, is held out: no caption of it is ever in the training split,
//! so success on the held-out split is not memory. Every word is seen in training.

use serde::{Deserialize, Serialize};

use super::layout::sizes;
use super::{Colour, Group, KINDS, Kind, Place, Relation, Scene, SceneSpec, Shape};
use crate::diffusion::rng::{Stream, mix64};

/// One composition in this many is held out.
const HELD_OUT_ONE_IN: u64 = 7;

/// Which compositions to draw from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What models are trained on.
    Train,
    /// What they are judged on.
    HeldOut,
}

impl Split {
    /// The split that a meaning belongs to, whatever its wording.
    #[must_use]
    pub fn of(spec: &SceneSpec) -> Self {
        let kind = spec.kind();
        let place = spec.place.map_or(0, |place| place as u64 + 1);
        let one = kind == Kind::Single;
        let mut keys: Vec<u64> = spec.groups.iter().map(|group| key(group, one)).collect();
        // "a left of b" and "b right of a" are one composition, and so are "a and b" and "b and a".
        let relation = match spec.relation {
            Some(Relation::Right | Relation::Below) => {
                keys.reverse();
                spec.relation.map_or(0, |relation| relation as u64)
            }
            Some(relation) => relation as u64 + 1,
            None => {
                keys.sort_unstable();
                0
            }
        };
        // Captions that leave everything open are too few to spare.
        let open = one && place == 0 && spec.groups.iter().all(|g| g.colour.is_none() && g.size.is_none());
        let hash = keys.into_iter().chain([kind as u64, relation, place]).fold(0, |hash, key| mix64(hash ^ key));
        if !open && hash % HELD_OUT_ONE_IN == 0 { Self::HeldOut } else { Self::Train }
    }
}

/// A group as a number. Sizes tell single objects apart, but make no new pair or count of others.
fn key(group: &Group, with_size: bool) -> u64 {
    let size = group.size.filter(|_| with_size).map_or(0, |size| size as u64 + 1);
    let colour = group.colour.map_or(0, |colour| colour as u64 + 1);
    ((size * 8 + colour) * 8 + group.shape as u64) * 8 + group.count as u64
}

/// A caption, what it means, and one picture of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The caption, in the grammar of [`super::caption`].
    pub caption: String,
    /// Its meaning.
    pub spec: SceneSpec,
    /// Its kind.
    pub kind: Kind,
    /// A scene with this meaning; what the caption leaves open is drawn at random.
    pub scene: Scene,
}

/// An example of one kind from one split.
pub fn sample(stream: &mut Stream, kind: Kind, split: Split) -> Example {
    // Ends with probability one: a draw is of the split at least one time in about seven, and nearly every draw fits.
    loop {
        let spec = invent(stream, kind);
        if Split::of(&spec) != split {
            continue;
        }
        if let Some(scene) = Scene::draw(&spec, stream) {
            return Example { caption: spec.caption_varied(stream), spec, kind, scene };
        }
    }
}

/// An example of any kind, all kinds equally often.
pub fn sample_any(stream: &mut Stream, split: Split) -> Example {
    let kind = KINDS[stream.below(KINDS.len())];
    sample(stream, kind, split)
}

/// How often training draws each of [`KINDS`]: what is hard to compose comes more often than what is soon learnt.
const TRAINING_WEIGHTS: [usize; KINDS.len()] = [2, 7, 5, 3, 5, 5];

/// An example of any kind for training, the harder kinds more often.
pub fn sample_mixed(stream: &mut Stream, split: Split) -> Example {
    let mut ticket = stream.below(TRAINING_WEIGHTS.iter().sum());
    let drawn = KINDS.into_iter().zip(TRAINING_WEIGHTS).find(|&(_, weight)| {
        let hit = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        hit
    });
    sample(stream, drawn.map_or(Kind::Two, |(kind, _)| kind), split)
}

/// How often captions say what they could leave open.
struct Shares {
    colour: f64,
    size: f64,
    place: f64,
}

const ALONE: Shares = Shares { colour: 0.75, size: 0.2, place: 0.25 };
const TOGETHER: Shares = Shares { colour: 0.85, size: 0.08, place: 0.0 };

fn invent(stream: &mut Stream, kind: Kind) -> SceneSpec {
    let mut relation = None;
    let mut place = None;
    let groups = match kind {
        Kind::Single => {
            place = stream.chance(ALONE.place).then(|| Place::ALL[stream.below(Place::ALL.len())]);
            vec![group(stream, 1, 1, &ALONE)]
        }
        Kind::Count => {
            let count = 2 + stream.below(3);
            vec![group(stream, count, count, &TOGETHER)]
        }
        Kind::Two => {
            let (a, mut b) = (group(stream, 1, 2, &TOGETHER), group(stream, 1, 2, &TOGETHER));
            b.shape = other(stream, a.shape, &Shape::ALL);
            vec![a, b]
        }
        Kind::Colour => {
            let (mut a, mut b) = (group(stream, 1, 2, &TOGETHER), group(stream, 1, 2, &TOGETHER));
            b.shape = a.shape;
            tell_apart(stream, &mut a, &mut b);
            vec![a, b]
        }
        Kind::Position | Kind::CountPosition => {
            relation = stream.choose(&Relation::ALL).copied();
            let count = if kind == Kind::Position { 1 } else { 2 + stream.below(2) };
            let mut a = group(stream, count, count + 1, &TOGETHER);
            let mut b = group(stream, 1, count + 1, &TOGETHER);
            if a.shape == b.shape {
                tell_apart(stream, &mut a, &mut b);
            }
            if stream.chance(0.5) { vec![a, b] } else { vec![b, a] }
        }
    };
    SceneSpec { groups, relation, place }
}

/// A group of `count` in a picture of `objects`.
fn group(stream: &mut Stream, count: usize, objects: usize, shares: &Shares) -> Group {
    let shape = Shape::ALL[stream.below(Shape::ALL.len())];
    let colour = stream.chance(shares.colour).then(|| Colour::ALL[stream.below(Colour::ALL.len())]);
    let size = stream.chance(shares.size).then(|| sizes(objects)).and_then(|sizes| stream.choose(sizes).copied());
    Group { count, size, colour, shape }
}

/// Gives both groups colours, and different ones.
fn tell_apart(stream: &mut Stream, a: &mut Group, b: &mut Group) {
    let first = a.colour.unwrap_or(Colour::ALL[stream.below(Colour::ALL.len())]);
    a.colour = Some(first);
    b.colour = Some(other(stream, first, &Colour::ALL));
}

/// One of `all` that is not `taken`.
fn other<T: Copy + PartialEq>(stream: &mut Stream, taken: T, all: &[T]) -> T {
    let rest: Vec<T> = all.iter().copied().filter(|&item| item != taken).collect();
    stream.choose(&rest).copied().unwrap_or(taken)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap, HashSet};

    use super::*;
    use crate::starter::scenes::caption::words;

    #[test]
    fn splits_share_no_caption() {
        let mut captions: HashMap<Split, HashSet<String>> = HashMap::new();
        for split in [Split::Train, Split::HeldOut] {
            for i in 0..40_000 {
                let example = sample_any(&mut Stream::new(5, i), split);
                assert_eq!(Split::of(&example.spec), split);
                captions.entry(split).or_default().insert(example.caption);
            }
        }
        assert!(captions[&Split::Train].is_disjoint(&captions[&Split::HeldOut]));
        let seen: BTreeSet<&str> = captions[&Split::Train].iter().flat_map(|caption| caption.split(' ')).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), words(), "every word is seen in training");
    }

    #[test]
    fn the_split_does_not_depend_on_the_wording() {
        let of = |caption: &str| Split::of(&crate::starter::scenes::parse(caption).unwrap());
        for a in Colour::ALL.map(Colour::word) {
            for b in Colour::ALL.map(Colour::word) {
                let pair = |first, middle, second| of(&format!("a {first} {middle} a {second}"));
                let (x, y) = (format!("{a} circle"), format!("{b} square"));
                assert_eq!(pair(&x, "and", &y), pair(&y, "and", &x));
                assert_eq!(pair(&x, "left of", &y), pair(&y, "to the right of", &x));
                assert_eq!(pair(&x, "below", &y), pair(&y, "over", &x));
                assert_eq!(pair(&x, "and", &y), of(&format!("draw a large {x} and a {y}")));
            }
        }
    }

    #[test]
    fn about_one_in_seven_is_held_out_of_every_kind() {
        for kind in KINDS {
            let mut stream = Stream::new(9, kind as u64);
            let n = 4000;
            let held = (0..n).filter(|_| Split::of(&invent(&mut stream, kind)) == Split::HeldOut).count();
            let share = held as f64 / f64::from(n);
            assert!((0.06..0.25).contains(&share), "{}: {share}", kind.name());
        }
    }

    #[test]
    fn kinds_are_what_they_are_asked_to_be() {
        for kind in KINDS {
            for i in 0..300 {
                let example = sample(&mut Stream::new(2, i), kind, Split::HeldOut);
                assert_eq!((example.kind, example.spec.kind()), (kind, kind), "{}", example.caption);
            }
        }
    }
}
