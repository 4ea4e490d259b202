//! Where objects lie: whole cells, no two objects closer than one free cell.
//!
//! Objects fill 1×1, 2×2 or 3×3 whole cells, so their centres lie on half-cell positions, a cell shows at most one
//! object, and there are few distinct cells in all: that is what makes the codec exact.

use serde::{Deserialize, Serialize};

use super::{Codec, Colour, GRID, Group, Relation, SceneSpec, Shape, Size, TOKENS};
use crate::diffusion::rng::Stream;

/// How far off to the side, in cells, an object may lie of the one it is related to.
const SIDEWAYS: f32 = 2.5;
/// How clearly, in cells, an object lies in a quarter that its caption names.
const PLACE_MARGIN: f32 = 1.0;
/// Attempts before a meaning counts as impossible to lay out.
const ATTEMPTS: usize = 64;

/// An object in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placed {
    /// What it is.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
    /// Its size.
    pub size: Size,
    /// Column of its leftmost cell.
    pub col: usize,
    /// Row of its topmost cell.
    pub row: usize,
}

impl Placed {
    /// Its centre in cells, from the upper left corner of the picture.
    #[must_use]
    pub fn centre(&self) -> (f32, f32) {
        let half = self.size.cells() as f32 / 2.0;
        (self.col as f32 + half, self.row as f32 + half)
    }

    /// Whether at least one free row or column of cells lies between the two.
    #[must_use]
    pub fn clear_of(&self, other: &Self) -> bool {
        let before = |a: usize, size: Size, b: usize| a + size.cells() < b;
        before(self.col, self.size, other.col)
            || before(other.col, other.size, self.col)
            || before(self.row, self.size, other.row)
            || before(other.row, other.size, self.row)
    }

    /// Whether this lies on the `relation` side of `other`: clear of it along that axis, and not far off sideways.
    #[must_use]
    pub fn related(&self, relation: Relation, other: &Self) -> bool {
        let (along, sideways) = relation.offsets(self.centre(), other.centre());
        let reach = (self.size.cells() + other.size.cells()) as f32 / 2.0;
        along >= reach + 1.0 && sideways <= SIDEWAYS
    }
}

/// What a picture shows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scene {
    /// Its objects, in the order of the caption.
    pub objects: Vec<Placed>,
}

impl Scene {
    /// A scene with this meaning, every open choice drawn from `stream`; `None` if none was found (too many or too
    /// large objects to keep apart).
    pub fn draw(spec: &SceneSpec, stream: &mut Stream) -> Option<Self> {
        (0..ATTEMPTS).find_map(|_| Self::attempt(spec, stream))
    }

    fn attempt(spec: &SceneSpec, stream: &mut Stream) -> Option<Self> {
        let mut objects: Vec<Placed> = Vec::with_capacity(spec.objects());
        let first_group = spec.groups.first().map_or(0, |group| group.count);
        for group in &spec.groups {
            // Objects named together look alike, but for an open colour, which is shared only half of the time.
            let size = open_size(spec, group, stream);
            let shared = (*stream.choose(&Colour::ALL)?, stream.chance(0.5));
            for _ in 0..group.count {
                let own = *stream.choose(&Colour::ALL)?;
                let colour = group.colour.unwrap_or(if shared.1 { shared.0 } else { own });
                let fits = |candidate: &Placed| {
                    objects.iter().enumerate().all(|(i, other)| {
                        let across = i < first_group && objects.len() >= first_group;
                        other.clear_of(candidate)
                            && spec.relation.is_none_or(|relation| !across || other.related(relation, candidate))
                    }) && spec.place.is_none_or(|place| place.holds(candidate.centre(), PLACE_MARGIN))
                };
                let places: Vec<Placed> = positions(size)
                    .map(|(col, row)| Placed { shape: group.shape, colour, size, col, row })
                    .filter(fits)
                    .collect();
                let chosen = *stream.choose(&places)?;
                objects.push(chosen);
            }
        }
        Some(Self { objects })
    }

    /// Its codes, row by row.
    #[must_use]
    pub fn codes(&self, codec: &Codec) -> [u16; TOKENS] {
        let mut codes = [0; TOKENS];
        for object in &self.objects {
            let n = object.size.cells();
            let patches = codec.object(object.shape, object.colour, object.size);
            for (i, &code) in patches.iter().enumerate() {
                let (col, row) = (object.col + i % n, object.row + i / n);
                if let Some(cell) = codes.get_mut(row * GRID + col) {
                    *cell = code;
                }
            }
        }
        codes
    }
}

/// Large objects only where there is room for all.
#[must_use]
pub(super) fn sizes(objects: usize) -> &'static [Size] {
    if objects > 2 { &Size::ALL[..2] } else { &Size::ALL }
}

fn open_size(spec: &SceneSpec, group: &Group, stream: &mut Stream) -> Size {
    let drawn = stream.choose(sizes(spec.objects())).copied();
    group.size.or(drawn).unwrap_or(Size::Small)
}

fn positions(size: Size) -> impl Iterator<Item = (usize, usize)> {
    let n = GRID - size.cells() + 1;
    (0..n * n).map(move |i| (i % n, i / n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starter::scenes::{KINDS, Split, parse, sample};

    #[test]
    fn scenes_satisfy_their_captions() {
        for (k, kind) in KINDS.into_iter().enumerate() {
            for i in 0..500 {
                let example = sample(&mut Stream::new(k as u64, i), kind, Split::Train);
                let objects = &example.scene.objects;
                assert_eq!(objects.len(), example.spec.objects());
                for (j, a) in objects.iter().enumerate() {
                    assert!(a.col + a.size.cells() <= GRID && a.row + a.size.cells() <= GRID);
                    assert!(objects[..j].iter().all(|b| a.clear_of(b)));
                }
                if let Some(relation) = example.spec.relation {
                    let (a, b) = objects.split_at(example.spec.groups[0].count);
                    assert!(a.iter().all(|a| b.iter().all(|b| a.related(relation, b))), "{}", example.caption);
                }
                if let Some(place) = example.spec.place {
                    assert!(objects.iter().all(|o| place.holds(o.centre(), PLACE_MARGIN)), "{}", example.caption);
                }
            }
        }
    }

    #[test]
    fn open_places_are_spread_evenly() {
        let spec = parse("a small red circle").unwrap();
        let mut seen = [0u32; TOKENS];
        let mut stream = Stream::new(3, 0);
        for _ in 0..6400 {
            let scene = Scene::draw(&spec, &mut stream).unwrap();
            seen[scene.objects[0].row * GRID + scene.objects[0].col] += 1;
        }
        // 100 each, standard deviation 10.
        assert!(seen.iter().all(|&n| (50..150).contains(&n)), "{seen:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let spec = parse("four large red circles above four large blue squares").unwrap();
        assert_eq!(Scene::draw(&spec, &mut Stream::new(0, 0)), None);
    }
}
