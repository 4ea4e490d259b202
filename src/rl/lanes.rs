//! From what the log holds to what can be learned from: which completions form a group, which stand alone, and why
//! the others are left out. Pure; nothing is dropped without a reason that is counted.
//!
//! - **groups**: completions of one request (`n` > 1), or of one ranking, of which at least two are judged;
//! - **singles**: one judged completion. It is never made into a group;
//! - **regenerated**: fresh completions of logged prompts. They are made elsewhere (`trainer`), and only named here.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::reward::Rating;
use crate::diffusion::rng::mix64;
use crate::store::{CompletionRow, SampleKind, TrainingPool, Value};

/// The metric that rankings are turned into: a completion's share of won comparisons, a tie counting half.
pub const PREFERENCE: &str = "preference";

/// How a sample came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Judged completions of one prompt, compared with each other.
    Groups,
    /// Fresh completions of a logged prompt, scored by hooks.
    Regenerated,
    /// A judged completion alone, compared with a running mean.
    Singles,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::Groups, Self::Regenerated, Self::Singles];

    /// Its name in the log and in `/training`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Groups => "groups",
            Self::Regenerated => "regenerated",
            Self::Singles => "singles",
        }
    }
}

/// What may be learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LaneConfig {
    /// Versions that a completion's adapter may be behind the current one.
    pub max_versions_behind: u32,
    /// Age at which a completion is too old, seconds.
    pub max_age_s: u64,
    /// Judgements of one subject in one run.
    pub per_subject_max: usize,
    /// One prompt in this many is held out for the gate; 0 holds none out.
    pub hold_out_one_in: u64,
}

impl Default for LaneConfig {
    fn default() -> Self {
        Self { max_versions_behind: 4, max_age_s: 86_400, per_subject_max: 64, hold_out_one_in: 8 }
    }
}

/// What is served now, against which age is measured.
#[derive(Debug, Clone)]
pub struct Now<'a> {
    /// SHA-256 of the base.
    pub base_sha256: &'a str,
    /// How many versions each known adapter is behind the current one.
    pub behind: &'a BTreeMap<String, u32>,
    /// Microseconds since the epoch.
    pub us: i64,
}

/// A row of the pool's book: an item and what becomes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Id of the rating or the ranking.
    pub id: Uuid,
    /// Which of these.
    pub kind: SampleKind,
}

/// A completion with what was said of it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The completion.
    pub row: CompletionRow,
    /// Ratings and comparisons.
    pub ratings: Vec<Rating>,
    /// What they came from.
    pub items: Vec<Item>,
    /// Versions behind the current adapter.
    pub behind: u32,
}

/// An item that is not learned from.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    /// The item.
    pub item: Item,
    /// The lane it would have been in.
    pub lane: Lane,
    /// Why.
    pub reason: &'static str,
}

/// The pool, sorted.
#[derive(Debug, Clone, Default)]
pub struct Lanes {
    /// Groups of at least two.
    pub groups: Vec<Vec<Candidate>>,
    /// Completions alone.
    pub singles: Vec<Candidate>,
    /// Groups and singles whose prompts are held out, for the gate.
    pub held_out: Vec<Vec<Candidate>>,
    /// What is left out.
    pub left: Vec<Left>,
    /// Distinct subjects among the rest.
    pub subjects: u64,
}

/// Whether a prompt is held out, by the ids that the model saw.
#[must_use]
pub fn held_out(prompt_ids: &[u32], one_in: u64) -> bool {
    let hash = prompt_ids.iter().fold(0x4E1D, |hash, &id| mix64(hash ^ u64::from(id)));
    one_in > 0 && hash.is_multiple_of(one_in)
}

/// Sorts the pool.
#[must_use]
pub fn sort(pool: TrainingPool, now: &Now<'_>, config: &LaneConfig) -> Lanes {
    let mut lanes = Lanes::default();
    let judgements = Judgements::of(&pool, config, &mut lanes);
    let mut clusters: BTreeMap<Uuid, Vec<Candidate>> = BTreeMap::new();
    let links = links(&pool);
    for row in pool.completions {
        let Some((ratings, items)) = judgements.of.get(&row.id).cloned() else { continue };
        let behind = now.behind.get(&row.adapter).copied();
        let age_us = now.us.saturating_sub(row.created_us);
        let reason = if row.base_sha256 != now.base_sha256 {
            Some("other_base")
        } else if row.tokens.is_empty() {
            Some("empty")
        } else if age_us > i64::try_from(config.max_age_s.saturating_mul(1_000_000)).unwrap_or(i64::MAX) {
            Some("too_old")
        } else if behind.is_none_or(|behind| behind > config.max_versions_behind) {
            Some("stale_version")
        } else {
            None
        };
        let cluster = links.get(&row.id).copied().unwrap_or(row.group);
        match (reason, behind) {
            (None, Some(behind)) => {
                clusters.entry(cluster).or_default().push(Candidate { row, ratings, items, behind });
            }
            (reason, _) => {
                let reason = reason.unwrap_or("stale_version");
                lanes.left.extend(items.into_iter().map(|item| Left { item, lane: Lane::Groups, reason }));
            }
        }
    }
    for (_, mut cluster) in clusters {
        let held = cluster.first().is_some_and(|one| held_out(&one.row.prompt_ids, config.hold_out_one_in));
        if held {
            lanes.left_out(&cluster, "held_out");
            lanes.held_out.push(cluster);
        } else if cluster.len() > 1 {
            lanes.groups.push(cluster);
        } else if let Some(single) = cluster.pop() {
            lanes.singles.push(single);
        }
    }
    lanes
}

impl Lanes {
    /// Notes that the items of these completions are not learned from.
    pub fn left_out(&mut self, cluster: &[Candidate], reason: &'static str) {
        let lane = if cluster.len() > 1 { Lane::Groups } else { Lane::Singles };
        let items = cluster.iter().flat_map(|one| one.items.iter().cloned());
        self.left.extend(items.map(|item| Left { item, lane, reason }));
    }
}

/// Per completion, what was said of it and by which items.
struct Judgements {
    of: HashMap<Uuid, (Vec<Rating>, Vec<Item>)>,
}

impl Judgements {
    fn of(pool: &TrainingPool, config: &LaneConfig, lanes: &mut Lanes) -> Self {
        let mut of: HashMap<Uuid, (Vec<Rating>, Vec<Item>)> = HashMap::new();
        let mut per_subject: HashMap<Vec<u8>, usize> = HashMap::new();
        // Without a name nobody can be capped; what they may weigh is the reward policy's.
        let mut admit = |subject: Option<&Vec<u8>>| {
            let Some(subject) = subject else { return true };
            let count = per_subject.entry(subject.clone()).or_default();
            *count += 1;
            *count <= config.per_subject_max
        };
        for rating in &pool.feedback {
            let item = Item { id: rating.id, kind: SampleKind::Feedback };
            if matches!(rating.value, Value::Text(_)) {
                lanes.left.push(Left { item, lane: Lane::Groups, reason: "comment" });
            } else if !admit(rating.subject_hash.as_ref()) {
                lanes.left.push(Left { item, lane: Lane::Groups, reason: "subject_cap" });
            } else {
                let (ratings, items) = of.entry(rating.completion).or_default();
                let subject = rating.subject_hash.as_deref().map(hex);
                ratings.push(Rating { metric: rating.metric.clone(), value: rating.value.clone(), subject });
                items.push(item);
            }
        }
        Self::rankings(pool, &mut of, lanes, &mut admit);
        lanes.subjects = per_subject.len() as u64;
        Self { of }
    }

    fn rankings(
        pool: &TrainingPool,
        of: &mut HashMap<Uuid, (Vec<Rating>, Vec<Item>)>,
        lanes: &mut Lanes,
        admit: &mut impl FnMut(Option<&Vec<u8>>) -> bool,
    ) {
        let mut rankings: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
        for (at, pair) in pool.preferences.iter().enumerate() {
            rankings.entry(pair.preference).or_default().push(at);
        }
        for (id, pairs) in rankings {
            let item = Item { id, kind: SampleKind::Preference };
            let subject = pairs.first().and_then(|&at| pool.preferences[at].subject_hash.as_ref());
            if !admit(subject) {
                lanes.left.push(Left { item, lane: Lane::Groups, reason: "subject_cap" });
                continue;
            }
            let mut won: BTreeMap<Uuid, (f64, f64)> = BTreeMap::new();
            for pair in pairs.iter().map(|&at| &pool.preferences[at]) {
                let win = if pair.tie { 0.5 } else { 1.0 };
                for (completion, share) in [(pair.chosen, win), (pair.rejected, 1.0 - win)] {
                    let (sum, n) = won.entry(completion).or_default();
                    *sum += share;
                    *n += 1.0;
                }
            }
            for (completion, (sum, n)) in won {
                let (ratings, items) = of.entry(completion).or_default();
                let value = Value::Number(sum / n);
                ratings.push(Rating { metric: PREFERENCE.to_owned(), value, subject: subject.map(|s| hex(s)) });
                items.push(item.clone());
            }
        }
    }
}

/// Completions of different requests that a ranking compares, by the cluster they then form.
fn links(pool: &TrainingPool) -> HashMap<Uuid, Uuid> {
    let groups: HashMap<Uuid, Uuid> = pool.completions.iter().map(|row| (row.id, row.group)).collect();
    let mut roots: HashMap<Uuid, Uuid> = HashMap::new();
    fn root(roots: &HashMap<Uuid, Uuid>, mut group: Uuid) -> Uuid {
        while let Some(&next) = roots.get(&group) {
            group = next;
        }
        group
    }
    for pair in &pool.preferences {
        if let (Some(&a), Some(&b)) = (groups.get(&pair.chosen), groups.get(&pair.rejected)) {
            let (a, b) = (root(&roots, a), root(&roots, b));
            if a != b {
                roots.insert(a.max(b), a.min(b));
            }
        }
    }
    groups.into_iter().map(|(completion, group)| (completion, root(&roots, group))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
