//! The grammar of captions: lower-case words, no punctuation, one meaning each.
//!
//! ```text
//! caption  = ["draw" | "a picture of"] group [place | "and" group | relation group]
//! group    = ("a" | "an" | "one") [size] [colour] shape | ("two" | "three" | "four") [size] [colour] shapes
//! place    = "in the" ("upper left" | "upper right" | "lower left" | "lower right" | "middle")
//! relation = ["to the"] ("left of" | "right of") | "above" | "over" | "below" | "under"
//! ```

use super::{Colour, Group, Place, Relation, SceneSpec, Shape, Size};
use crate::diffusion::rng::Stream;

const NUMBERS: [&str; 4] = ["one", "two", "three", "four"];
const OPENINGS: [&str; 2] = ["draw", "a picture of"];
/// How often a caption begins with one of the openings.
const OPENING_SHARE: f64 = 0.12;
/// How often a relation is written in its second way.
const VARIANT_SHARE: f64 = 0.3;

impl SceneSpec {
    /// The plainest caption with this meaning.
    #[must_use]
    pub fn caption(&self) -> String {
        self.write("", 0)
    }

    /// A caption with this meaning, its wording drawn from `stream`.
    pub fn caption_varied(&self, stream: &mut Stream) -> String {
        let opening = if stream.chance(OPENING_SHARE) { OPENINGS[stream.below(OPENINGS.len())] } else { "" };
        self.write(opening, usize::from(stream.chance(VARIANT_SHARE)))
    }

    fn write(&self, opening: &str, variant: usize) -> String {
        let mut words: Vec<&str> = Vec::new();
        if !opening.is_empty() {
            words.push(opening);
        }
        for (i, group) in self.groups.iter().enumerate() {
            if i > 0 {
                words.push(self.relation.map_or("and", |relation| relation.phrases()[variant]));
            }
            group.write(&mut words);
        }
        words.extend(self.place.map(Place::phrase));
        words.join(" ")
    }
}

impl Group {
    fn write(&self, words: &mut Vec<&str>) {
        let vowel = self.size.is_none() && self.colour == Some(Colour::Orange);
        words.push(match self.count {
            0 | 1 if vowel => "an",
            0 | 1 => "a",
            n => NUMBERS[(n - 1).min(NUMBERS.len() - 1)],
        });
        words.extend(self.size.map(Size::word));
        words.extend(self.colour.map(Colour::word));
        words.push(if self.count > 1 { self.shape.plural() } else { self.shape.word() });
    }

    fn read(words: &mut &[&str]) -> Option<Self> {
        let count = match take(words)? {
            "a" | "an" => 1,
            number => NUMBERS.iter().position(|&n| n == number)? + 1,
        };
        let size = take_one(words, &Size::ALL, |size| size.word());
        let colour = take_one(words, &Colour::ALL, |colour| colour.word());
        let shape = take_one(words, &Shape::ALL, |s| if count > 1 { s.plural() } else { s.word() })?;
        Some(Self { count, size, colour, shape })
    }
}

/// The meaning of a caption; `None` if it is not of the grammar.
#[must_use]
pub fn parse(caption: &str) -> Option<SceneSpec> {
    let all: Vec<&str> = caption.split_whitespace().collect();
    let mut words = all.as_slice();
    for opening in OPENINGS {
        if take_phrase(&mut words, opening) {
            break;
        }
    }
    let mut spec = SceneSpec { groups: vec![Group::read(&mut words)?], relation: None, place: None };
    if words.is_empty() {
        return Some(spec);
    }
    spec.place = Place::ALL.into_iter().find(|place| take_phrase(&mut words, place.phrase()));
    if spec.place.is_none() {
        spec.relation = Relation::ALL
            .into_iter()
            .find(|relation| relation.phrases().iter().any(|phrase| take_phrase(&mut words, phrase)));
        if spec.relation.is_none() && !take_phrase(&mut words, "and") {
            return None;
        }
        spec.groups.push(Group::read(&mut words)?);
    }
    words.is_empty().then_some(spec)
}

/// Every word that captions are made of, sorted.
#[must_use]
pub fn words() -> Vec<&'static str> {
    let mut words = vec!["a", "an", "and"];
    words.extend(NUMBERS.iter().skip(1));
    words.extend(OPENINGS.iter().flat_map(|phrase| phrase.split(' ')));
    words.extend(Size::ALL.iter().map(|size| size.word()));
    words.extend(Colour::ALL.iter().map(|colour| colour.word()));
    words.extend(Shape::ALL.iter().flat_map(|shape| [shape.word(), shape.plural()]));
    words.extend(Place::ALL.iter().flat_map(|place| place.phrase().split(' ')));
    words.extend(Relation::ALL.iter().flat_map(|r| r.phrases()).flat_map(|phrase| phrase.split(' ')));
    words.sort_unstable();
    words.dedup();
    words
}

fn take<'a>(words: &mut &[&'a str]) -> Option<&'a str> {
    let (&first, rest) = words.split_first()?;
    *words = rest;
    Some(first)
}

/// Takes the next word if it names one of `choices`.
fn take_one<T: Copy>(words: &mut &[&str], choices: &[T], name: impl Fn(T) -> &'static str) -> Option<T> {
    let first = *words.first()?;
    let found = choices.iter().copied().find(|&choice| name(choice) == first)?;
    *words = &words[1..];
    Some(found)
}

/// Takes `phrase` if the words begin with all of it.
fn take_phrase(words: &mut &[&str], phrase: &str) -> bool {
    let n = phrase.split(' ').count();
    let found = words.len() >= n && phrase.split(' ').eq(words[..n].iter().copied());
    if found {
        *words = &words[n..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starter::scenes::{Split, sample_any};

    #[test]
    fn captions_read_back() {
        let known = words();
        for i in 0..20_000 {
            let mut stream = Stream::new(1, i);
            let example = sample_any(&mut stream, if i % 2 == 0 { Split::Train } else { Split::HeldOut });
            assert_eq!(parse(&example.caption).as_ref(), Some(&example.spec), "{}", example.caption);
            assert_eq!(parse(&example.spec.caption()), Some(example.spec));
            assert!(example.caption.split(' ').all(|word| known.binary_search(&word).is_ok()), "{}", example.caption);
        }
    }

    #[test]
    fn the_grammar_is_closed() {
        for bad in [
            "",
            "a",
            "red circle",
            "a circles",
            "two circle",
            "a red blue circle",
            "a circle and",
            "five circles",
            "a circle left a square",
            "a circle in the upper",
            "a circle in the middle and a square",
            "a red circle,",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn phrases_mean_what_they_say() {
        let spec = parse("a picture of two small red circles to the left of an orange square").unwrap();
        assert_eq!(spec.relation, Some(Relation::Left));
        assert_eq!(
            spec.groups[0],
            Group { count: 2, size: Some(Size::Small), colour: Some(Colour::Red), shape: Shape::Circle }
        );
        assert_eq!(spec.groups[1].colour, Some(Colour::Orange));
        assert_eq!(spec.caption(), "two small red circles left of an orange square");
        assert_eq!(parse("one cross in the lower right").unwrap().place, Some(Place::LowerRight));
    }
}
