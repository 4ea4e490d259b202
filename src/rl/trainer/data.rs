//! A run's data: the pool sorted into lanes, scored by the hooks, compared, and laid out in batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use uuid::Uuid;

use super::Parts;
use super::compare::Comparison;
use super::config::LossKind;
use crate::adapters::VersionId;
use crate::diffusion::rng::{Stream, mix64};
use crate::engine::job::{Finished, Priority, Task};
use crate::models::Model;
use crate::models::lora::Lora;
use crate::rl::RlError;
use crate::rl::advantage::Baselines;
use crate::rl::lanes::{Candidate, Item, Lane, Lanes, Left, held_out};
use crate::rl::logprob::Sample;
use crate::rl::reward::combine::Reward;
use crate::rl::reward::{GroupInput, Kind, Picture, SampleInput};
use crate::rl::rollout::{Asked, as_drawn, sample_of, sample_of_row};
use crate::rl::update::Judged;
use crate::store::{self, SampleKind, SampleUse};

/// Prompts that are completed at the same time, for learning or at the gate.
pub(super) const AT_ONCE: usize = 8;

/// Judged completions, and the book of every item.
#[derive(Default)]
pub(super) struct Data {
    /// Whole groups together; texts and images apart.
    pub(super) batches: Vec<Batch>,
    /// What happened to every item.
    pub(super) book: Vec<SampleUse>,
    /// Groups of held-out prompts with their advantages, for the gate.
    pub(super) held_out: Vec<Judged>,
    /// Used samples, and left-out ones by reason, by lane.
    pub(super) lanes: BTreeMap<Lane, (u64, BTreeMap<String, u64>)>,
    /// Mean reward of the samples used.
    pub(super) reward: f64,
    /// Distinct subjects of the judgements.
    pub(super) subjects: u64,
}

/// What data are made with.
pub(super) struct Maker<'a> {
    pub(super) parts: &'a Parts,
    pub(super) current: &'a VersionId,
    pub(super) seed: u64,
}

/// Completions of one prompt before they are compared.
struct Cluster {
    lane: Lane,
    members: Vec<Member>,
    input: GroupInput,
}

struct Member {
    judged: Judged,
    items: Vec<Item>,
    behind: u32,
    image: bool,
}

impl Cluster {
    fn image(&self) -> bool {
        self.members.first().is_some_and(|member| member.image)
    }
}

impl Maker<'_> {
    /// Scores and compares what the lanes hold, and regenerates what the configuration asks for.
    pub(super) async fn make(&self, lanes: Lanes, baselines: &mut Baselines) -> Result<Data, RlError> {
        let mut data = Data { subjects: lanes.subjects, ..Data::default() };
        for left in &lanes.left {
            data.leave(left, None);
        }
        let mut clusters = Vec::new();
        let singles = lanes.singles.into_iter().map(|single| vec![single]);
        for (lane, cluster) in
            lanes.groups.into_iter().map(|g| (Lane::Groups, g)).chain(singles.map(|s| (Lane::Singles, s)))
        {
            if self.parts.config.lanes.contains(&lane) {
                clusters.extend(self.cluster(lane, cluster, &mut data).await?);
            } else {
                data.leave_all(lane, &cluster, "lane_off");
            }
        }
        if self.parts.config.lanes.contains(&Lane::Regenerated) {
            clusters.extend(self.regenerate(&mut data).await?);
        }
        let mut held_out = Vec::new();
        for cluster in lanes.held_out {
            let lane = if cluster.len() > 1 { Lane::Groups } else { Lane::Singles };
            // Only verdicts can be compared with a candidate's likelihoods one by one.
            if lane == Lane::Groups || self.parts.config.loss == LossKind::Kto {
                held_out.extend(self.cluster(lane, cluster, &mut Data::default()).await?);
            }
        }
        let inputs = clusters.iter().chain(&held_out).map(|cluster| cluster.input.clone()).collect();
        let combined = self.parts.rewards.score(inputs).await.map_err(|e| RlError::Refused(e.to_string()))?;
        let singles = clusters.iter().zip(&combined.groups).filter(|(cluster, _)| cluster.lane == Lane::Singles);
        let singles = singles.flat_map(|(cluster, rewards)| rewards.iter().map(|reward| (cluster.image(), reward)));
        let (loss, baseline) = (self.parts.config.loss, self.parts.config.baseline);
        let mut comparison = Comparison::new(loss, baseline, baselines, singles);
        let mut rewards = combined.groups.iter();
        let (mut groups, mut sum, mut used) = (Vec::new(), 0.0, 0);
        for cluster in clusters {
            let (image, of_cluster) = (cluster.image(), rewards.next().map_or(&[][..], Vec::as_slice));
            let judged = data.judge(cluster, of_cluster, &mut comparison);
            sum += judged.iter().map(|(_, reward)| reward).sum::<f64>();
            used += judged.len();
            let members: Vec<Judged> = judged.into_iter().map(|(judged, _)| judged).collect();
            if !members.is_empty() {
                groups.push((image, members));
            }
        }
        for cluster in held_out {
            let of_cluster = rewards.next().map_or(&[][..], Vec::as_slice);
            let judged = Data::default().judge(cluster, of_cluster, &mut comparison);
            data.held_out.extend(judged.into_iter().map(|(judged, _)| judged));
        }
        data.reward = sum / used.max(1) as f64;
        data.batches = batches(groups, self.parts.config.batch, self.seed);
        Ok(data)
    }

    /// A cluster of logged completions; those that cannot be samples are left out.
    async fn cluster(&self, lane: Lane, cluster: Vec<Candidate>, data: &mut Data) -> Result<Option<Cluster>, RlError> {
        let Some(first) = cluster.first() else { return Ok(None) };
        let mut input = group_input(first.row.group, &first.row.prompt, first.row.kind);
        let mut members = Vec::with_capacity(cluster.len());
        for candidate in cluster {
            let sample = Asked::of(&candidate.row).and_then(|asked| {
                let sample = sample_of_row(self.parts.engine.model(), &asked, &candidate.row)?;
                self.scored(&asked, sample)
            });
            let Ok(sample) = sample else {
                data.leave_all(lane, &[candidate], "unreadable");
                continue;
            };
            let behaviour = match self.behaviour(&candidate.row.adapter).await {
                Ok(behaviour) => behaviour,
                Err(_) => {
                    data.leave_all(lane, &[candidate], "version_gone");
                    continue;
                }
            };
            input.samples.push(self.sample_input(&candidate));
            let image = candidate.row.kind == store::Kind::Image;
            let judged = Judged { sample, advantage: 0.0, weight: 1.0, behaviour };
            members.push(Member { judged, items: candidate.items, behind: candidate.behind, image });
        }
        Ok((!members.is_empty()).then_some(Cluster { lane, members, input }))
    }

    /// A sample with the distribution that it is scored in.
    fn scored(&self, asked: &Asked, sample: Sample) -> Result<Sample, RlError> {
        if self.parts.config.as_drawn { as_drawn(self.parts.engine.model(), asked, sample) } else { Ok(sample) }
    }

    /// The adapter that sampled a completion, unless it is the current one.
    async fn behaviour(&self, adapter: &str) -> Result<Option<Arc<Lora>>, RlError> {
        let id: VersionId = adapter.parse()?;
        if id == *self.current {
            return Ok(None);
        }
        let adapter = self.parts.publisher.version(&id).await?;
        match &adapter.lora {
            Some(lora) => Ok(Some(Arc::clone(lora))),
            // The base is an adapter that changes nothing.
            None => {
                let config = self.parts.engine.model().backbone.adaptable();
                let config = config.ok_or_else(|| RlError::Refused("this model takes no adapters".to_owned()))?;
                Ok(Some(Arc::new(Lora::new(config, 1.0, BTreeMap::new())?)))
            }
        }
    }

    fn sample_input(&self, candidate: &Candidate) -> SampleInput {
        let row = &candidate.row;
        SampleInput {
            id: row.id,
            text: row.text.clone(),
            picture: row
                .grid
                .map(|(r, c)| picture(self.parts.engine.model(), row.tokens.clone(), (r as usize, c as usize))),
            finish_reason: row.finish_reason.clone(),
            adapter: Some(row.adapter.clone()),
            ratings: candidate.ratings.clone(),
            metadata: row.metadata.clone(),
        }
    }

    /// Fresh completions of logged prompts by the current version, at rollout priority.
    async fn regenerate(&self, data: &mut Data) -> Result<Vec<Cluster>, RlError> {
        let [prompts, n] = self.parts.config.regenerate;
        let rows = self.parts.store.prompts_with_feedback(prompts.saturating_mul(2), self.seed).await?;
        let one_in = self.parts.config.data.hold_out_one_in;
        let mut readable = Vec::new();
        for (at, row) in (0u64..).zip(rows).filter(|(_, row)| !held_out(&row.prompt_ids, one_in)) {
            match Asked::of(&row) {
                Ok(asked) => readable.push((mix64(self.seed ^ at), row, asked)),
                Err(_) => data.count(Lane::Regenerated, Some("unreadable"), u64::from(n)),
            }
        }
        // Side by side, so that they share forwards; in order, so that a run can be repeated.
        let completions = readable.into_iter().take(prompts as usize).map(|(seed, row, asked)| async move {
            let finished = asked.complete(&self.parts.engine, self.current, n, seed, Priority::Rollout).await;
            (row, asked, finished)
        });
        let completed: Vec<_> = futures_util::stream::iter(completions).buffered(AT_ONCE).collect().await;
        let mut clusters = Vec::new();
        for (row, asked, finished) in completed {
            match finished {
                Ok(finished) => clusters.push(self.fresh(&row, &asked, finished)?),
                Err(error) => {
                    tracing::warn!(%error, "a prompt could not be completed again");
                    data.count(Lane::Regenerated, Some("not_completed"), u64::from(n));
                }
            }
        }
        Ok(clusters)
    }

    fn fresh(&self, row: &store::CompletionRow, asked: &Asked, finished: Vec<Finished>) -> Result<Cluster, RlError> {
        let model = self.parts.engine.model();
        let mut input = group_input(Uuid::now_v7(), &row.prompt, row.kind);
        let mut members = Vec::with_capacity(finished.len());
        for one in finished {
            input.samples.push(fresh_input(model, &asked.task, &one, self.current, &row.metadata));
            let sample = self.scored(asked, sample_of(model, &asked.task, &one)?)?;
            let items = vec![Item { id: one.id, kind: SampleKind::Completion }];
            let judged = Judged { sample, advantage: 0.0, weight: 1.0, behaviour: None };
            members.push(Member { judged, items, behind: 0, image: row.kind == store::Kind::Image });
        }
        Ok(Cluster { lane: Lane::Regenerated, members, input })
    }
}

/// The hooks' view of a completion that is not in the log.
pub(super) fn fresh_input(
    model: &Model,
    task: &Task,
    one: &Finished,
    adapter: &VersionId,
    metadata: &serde_json::Value,
) -> SampleInput {
    let grid = match task {
        Task::Image(params) => Some(params.grid),
        Task::Text(_) => None,
    };
    SampleInput {
        id: one.id,
        text: one.text.clone(),
        picture: grid.map(|grid| picture(model, one.tokens.clone(), grid)),
        finish_reason: format!("{:?}", one.finish_reason).to_lowercase(),
        adapter: Some(adapter.to_string()),
        ratings: Vec::new(),
        metadata: metadata.clone(),
    }
}

pub(super) fn group_input(group_id: Uuid, prompt: &Option<String>, kind: store::Kind) -> GroupInput {
    let kind = if kind == store::Kind::Image { Kind::Image } else { Kind::Text };
    GroupInput { group_id, prompt: prompt.clone().unwrap_or_default(), kind, samples: Vec::new() }
}

fn picture(model: &Model, codes: Vec<u32>, grid: (usize, usize)) -> Picture {
    let codec = model.codec.clone();
    Picture::lazy(move || codec.as_ref()?.decode(&codes, grid).ok())
}

impl Data {
    /// A cluster's members with what they count, each with its reward, in the loss's order; those that count nothing
    /// are left out.
    fn judge(&mut self, cluster: Cluster, rewards: &[Reward], comparison: &mut Comparison<'_>) -> Vec<(Judged, f64)> {
        // Without hooks there are no rewards at all.
        let mut rewards = rewards.to_vec();
        rewards.resize(cluster.members.len(), Reward::default());
        let compared = comparison.of(cluster.lane, cluster.image(), &rewards);
        let raw = |at: usize| rewards.get(at).and_then(|reward| reward.raw);
        for (at, (member, fate)) in cluster.members.iter().zip(&compared.fates).enumerate() {
            let reason = fate.err();
            for item in &member.items {
                self.note(item, cluster.lane, raw(at), member.behind, reason);
            }
            self.count(cluster.lane, reason, 1);
        }
        let mut members: Vec<Option<Member>> = cluster.members.into_iter().map(Some).collect();
        let take = |at: usize| {
            let member = members.get_mut(at)?.take()?;
            let advantage = compared.fates[at].ok()?;
            Some((Judged { advantage, ..member.judged }, raw(at).unwrap_or(0.0)))
        };
        compared.order.iter().copied().filter_map(take).collect()
    }

    fn note(&mut self, item: &Item, lane: Lane, reward: Option<f64>, behind: u32, reason: Option<&str>) {
        // A ranking names several completions; it is one item, and used if any of them is.
        if let Some(known) =
            self.book.iter_mut().find(|known| known.item == item.id && item.kind == SampleKind::Preference)
        {
            if reason.is_none() {
                known.drop_reason = None;
            }
            return;
        }
        self.book.push(SampleUse {
            item: item.id,
            kind: item.kind,
            lane: lane.as_str().to_owned(),
            reward,
            weight: 1.0,
            age_versions: behind,
            drop_reason: reason.map(str::to_owned),
        });
    }

    fn leave(&mut self, left: &Left, reward: Option<f64>) {
        self.note(&left.item, left.lane, reward, 0, Some(left.reason));
        self.count(left.lane, Some(left.reason), 1);
    }

    fn leave_all(&mut self, lane: Lane, cluster: &[Candidate], reason: &'static str) {
        for item in cluster.iter().flat_map(|candidate| &candidate.items) {
            self.leave(&Left { item: item.clone(), lane, reason }, None);
        }
    }

    fn count(&mut self, lane: Lane, reason: Option<&str>, n: u64) {
        let (used, dropped) = self.lanes.entry(lane).or_default();
        match reason {
            None => *used += n,
            Some(reason) => *dropped.entry(reason.to_owned()).or_default() += n,
        }
    }

    /// Completions that are learned from.
    pub(super) fn used(&self) -> usize {
        self.batches.iter().map(|batch| batch.judged.len()).sum()
    }
}

/// Completions of one optimiser step.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    /// Images rather than texts.
    pub(super) image: bool,
    /// Whole groups.
    pub(super) judged: Vec<Judged>,
}

/// Whole groups in shuffled batches of about `size`, texts and images apart.
fn batches(groups: Vec<(bool, Vec<Judged>)>, size: usize, seed: u64) -> Vec<Batch> {
    let mut stream = Stream::new(seed, 0xBA7C);
    let mut out = Vec::new();
    for image in [false, true] {
        let mut groups: Vec<&Vec<Judged>> = groups.iter().filter(|(kind, _)| *kind == image).map(|(_, g)| g).collect();
        stream.shuffle(&mut groups);
        let (mut full, mut rest) = (Vec::new(), Vec::new());
        for group in groups {
            rest.extend(group.iter().cloned());
            if rest.len() >= size {
                full.push(std::mem::take(&mut rest));
            }
        }
        // A small rest would be a noisy step of full size: it joins the batch before.
        match full.last_mut() {
            Some(last) if rest.len() < size / 2 => last.append(&mut rest),
            _ if rest.is_empty() => {}
            _ => full.push(rest),
        }
        out.extend(full.into_iter().map(|judged| Batch { image, judged }));
    }
    out
}
