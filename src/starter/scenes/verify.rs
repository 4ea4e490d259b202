//! Whether a picture is what its caption means, from its pixels alone.
//!
//! Strict means everything: exactly the objects asked for, whole, of one colour each, where they should be, and not a
//! speck besides. (A verifier that overlooks specks teaches a model to make them.) Soft is partial credit: how much
//! of what was asked for is there.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::see::{Seen, see};
use super::{Group, SceneSpec};

/// Stray pixels that strict overlooks.
const STRAY: usize = 2;
/// The least distance along the named axis between objects in a relation, in cells.
const ALONG: f32 = 0.9;
/// How much farther off sideways than along the named axis a relation may be, in cells.
const SIDEWAYS: f32 = 1.0;
/// More objects than this are no longer told apart one by one.
const MOST: usize = 12;
/// The share of the soft score that the relation or place makes up, where there is one.
const ARRANGEMENT: f32 = 0.25;

/// A judgement, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Everything is right.
    pub strict: bool,
    /// How much is right, 0 to 1; 1 exactly when strict.
    pub soft: f32,
    /// The objects seen, well formed or not.
    pub objects: Vec<Seen>,
    /// What is wrong, for people.
    pub problems: Vec<String>,
}

/// Judges a picture (at 256 × 256 pixels, resized if it is not) against a meaning.
#[must_use]
pub fn verify(image: &RgbImage, spec: &SceneSpec) -> Verdict {
    let sight = see(image);
    let mut problems = Vec::new();
    if sight.stray > STRAY {
        problems.push(format!("{} stray pixels belong to no object", sight.stray));
    }
    for seen in &sight.objects {
        let (x, y) = seen.centre;
        if seen.shape.is_none() {
            problems.push(format!("the object at ({x:.0}, {y:.0}) has no known shape"));
        }
        if seen.colour.is_none() {
            problems.push(format!("the object at ({x:.0}, {y:.0}) has several colours"));
        }
    }
    if sight.objects.len() != spec.objects() {
        problems.push(format!("{} objects, not {}", sight.objects.len(), spec.objects()));
    }
    let wanted: Vec<(usize, Group)> =
        spec.groups.iter().enumerate().flat_map(|(g, &group)| std::iter::repeat_n((g, group), group.count)).collect();
    let best = assignments(&sight.objects, &wanted, spec.groups.first().map_or(0, |group| group.count))
        .into_iter()
        .map(|assigned| Score::new(spec, &wanted, &sight.objects, &assigned))
        .max_by(|a, b| a.soft.total_cmp(&b.soft))
        .unwrap_or_default();
    problems.extend(best.problems);
    let strict = problems.is_empty();
    let clean = if sight.stray > STRAY { 0.8 } else { 1.0 };
    Verdict {
        strict,
        soft: if strict { 1.0 } else { (best.soft * clean).clamp(0.0, 0.95) },
        objects: sight.objects,
        problems,
    }
}

/// How well one object is what one slot asks for, 0 to 1.
fn fitness(group: &Group, seen: &Seen) -> f32 {
    let shape = if seen.shape == Some(group.shape) { 0.5 } else { 0.0 };
    let colour = match (group.colour, seen.colour) {
        (Some(wanted), Some(colour)) if wanted != colour => 0.0,
        (_, None) => 0.1,
        _ => 0.35,
    };
    let size = if group.size.is_none_or(|size| size == seen.size) { 0.15 } else { 0.0 };
    shape + colour + size
}

/// Ways to give every wanted object (by index) one of those seen. With the right number of them, every way that
/// differs between groups; otherwise the greedy one.
fn assignments(seen: &[Seen], wanted: &[(usize, Group)], first: usize) -> Vec<Vec<Option<usize>>> {
    if seen.len() == wanted.len() && seen.len() <= MOST.min(8) {
        let n = seen.len();
        return (0u32..1 << n)
            .filter(|mask| mask.count_ones() as usize == first)
            .map(|mask| {
                let (inside, outside): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| mask >> i & 1 == 1);
                inside.into_iter().chain(outside).map(Some).collect()
            })
            .collect();
    }
    let mut pairs: Vec<(f32, usize, usize)> = (0..wanted.len())
        .flat_map(|w| (0..seen.len().min(MOST)).map(move |s| (w, s)))
        .map(|(w, s)| (fitness(&wanted[w].1, &seen[s]), w, s))
        .collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut assigned = vec![None; wanted.len()];
    for (_, w, s) in pairs {
        if assigned[w].is_none() && !assigned.contains(&Some(s)) {
            assigned[w] = Some(s);
        }
    }
    vec![assigned]
}

/// What one assignment is worth.
#[derive(Default)]
struct Score {
    soft: f32,
    problems: Vec<String>,
}

impl Score {
    fn new(spec: &SceneSpec, wanted: &[(usize, Group)], seen: &[Seen], assigned: &[Option<usize>]) -> Self {
        let mut problems = Vec::new();
        let mut fit = 0.0;
        for ((_, group), seen) in wanted.iter().zip(assigned).filter_map(|(w, s)| s.map(|s| (w, &seen[s]))) {
            let worth = fitness(group, seen);
            fit += worth;
            if worth < 0.999 && seen.shape.is_some() && seen.colour.is_some() {
                problems.push(format!(
                    "the object at ({:.0}, {:.0}) is not {}",
                    seen.centre.0,
                    seen.centre.1,
                    SceneSpec { groups: vec![Group { count: 1, ..*group }], relation: None, place: None }.caption()
                ));
            }
        }
        let mut soft = fit / wanted.len().max(seen.len()).max(1) as f32;
        if let Some(held) = arrangement(spec, wanted, seen, assigned) {
            if held < 1.0 {
                problems.push("the objects are not where they should be".to_owned());
            }
            soft *= 1.0 - ARRANGEMENT + ARRANGEMENT * held;
        }
        Self { soft, problems }
    }
}

/// The share of the relation or the place that holds; `None` if the caption has neither.
fn arrangement(spec: &SceneSpec, wanted: &[(usize, Group)], seen: &[Seen], assigned: &[Option<usize>]) -> Option<f32> {
    let members = |which: usize| -> Vec<(f32, f32)> {
        let of_group = wanted.iter().zip(assigned).filter(|((group, _), _)| *group == which);
        of_group.filter_map(|(_, s)| s.map(|s| seen[s].cell())).collect()
    };
    if let Some(place) = spec.place {
        let held = assigned.iter().flatten().filter(|&&s| seen[s].lies(place)).count();
        return Some(held as f32 / wanted.len().max(1) as f32);
    }
    let relation = spec.relation?;
    let (first, second) = (members(0), members(1));
    let missing = spec.objects() - first.len() - second.len();
    if first.is_empty() || second.is_empty() {
        return Some(0.0);
    }
    // Every pair must lie clearly apart on the named axis; the middles of the groups must not lie more to the side.
    let pairs = first.iter().flat_map(|&a| second.iter().map(move |&b| relation.offsets(a, b)));
    let apart = pairs.clone().filter(|(along, _)| *along >= ALONG).count();
    let (along, sideways) = relation.offsets(middle(&first), middle(&second));
    let held = (apart as f32 + f32::from(sideways <= along + SIDEWAYS)) / (pairs.count() + 1) as f32;
    Some(if missing > 0 { held * 0.5 } else { held })
}

fn middle(points: &[(f32, f32)]) -> (f32, f32) {
    let n = points.len().max(1) as f32;
    let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (sum.0 / n, sum.1 / n)
}

#[cfg(test)]
mod tests;
