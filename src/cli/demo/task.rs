//! What the simulated people want: prompts, how they ask, what they think of a result, and how the server learns of it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::diffusion::rng::{Stream, mix64};
use crate::rl::advantage::Baseline;
use crate::rl::gate::GateConfig;
use crate::rl::lanes::{Lane, LaneConfig, PREFERENCE};
use crate::rl::reward::combine::Aggregate;
use crate::rl::reward::config::{Hook, HookKind, Metric, MetricType, Optimize, Reward};
use crate::rl::trainer::{EstimatorKind, Promotion, TrainingConfig};
use crate::starter::scenes::{self, Codec, Colour, KINDS, Kind, SceneSpec};
use crate::starter::words::{self, Problem};

/// Completions that a person asks for at once.
pub const GROUP: u64 = 8;
/// One word problem in this many, by its arithmetic, is for judging and never shown to the crowd.
const WORDS_JUDGED_ONE_IN: u64 = 4;
/// What people who want right pictures ask for, in turn: what does not come out yet comes up again. They are judged on
/// all kinds alike.
const ASKED: [Kind; 8] = [
    Kind::CountPosition,
    Kind::Count,
    Kind::Two,
    Kind::CountPosition,
    Kind::Position,
    Kind::Count,
    Kind::CountPosition,
    Kind::Colour,
];
/// The colour that people like.
const LIKED: Colour = Colour::Blue;

/// What people want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Captions that leave the colour open; people like blue
    Taste,
    /// Captions of every kind; people like pictures that are right
    Scenes,
    /// Arithmetic that the model never trained on; people like right answers
    Words,
}

/// A prompt with what is needed to judge a result.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A caption and its meaning.
    Scene(String, SceneSpec),
    /// A problem.
    Words(Problem),
}

/// What somebody who looks closely thinks of a result.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Opinion {
    /// It is what people want.
    pub wanted: bool,
    /// It is what was asked for.
    pub correct: bool,
    /// How much of it is there.
    pub soft: f64,
}

impl Opinion {
    /// Whether people like it: what they want, and nothing else than what they asked for.
    #[must_use]
    pub fn liked(self) -> bool {
        self.wanted && self.correct
    }
}

impl Task {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Taste => "taste",
            Self::Scenes => "scenes",
            Self::Words => "words",
        }
    }

    /// What success is, in words.
    #[must_use]
    pub fn success(self) -> &'static str {
        match self {
            Self::Taste => "share of blue pictures",
            Self::Scenes => "share of right pictures",
            Self::Words => "share of right answers",
        }
    }

    /// Whether it is about pictures.
    #[must_use]
    pub fn draws(self) -> bool {
        self != Self::Words
    }

    /// Prompt number `index`; the crowd's and the judge's (`held_out`) have nothing in common.
    #[must_use]
    pub fn prompt(self, seed: u64, index: u64, held_out: bool) -> Prompt {
        let mut stream = Stream::new(mix64(seed ^ (u64::from(held_out) << 32)), index);
        let split = if held_out { scenes::Split::HeldOut } else { scenes::Split::Train };
        match self {
            Self::Taste => loop {
                let example = scenes::sample(&mut stream, scenes::Kind::Single, split);
                if example.spec.groups.iter().all(|group| group.colour.is_none()) {
                    return Prompt::Scene(example.caption, example.spec);
                }
            },
            Self::Scenes => {
                // In turn: every share of the prompts is balanced.
                let kinds = if held_out { KINDS.as_slice() } else { ASKED.as_slice() };
                let kind = kinds[index as usize % kinds.len()];
                let example = scenes::sample(&mut stream, kind, split);
                Prompt::Scene(example.caption, example.spec)
            }
            Self::Words => loop {
                let problem = words::sample_mixed(&mut stream, words::Split::HeldOutOperands);
                if words_held_out(&problem) == held_out {
                    return Prompt::Words(problem);
                }
            },
        }
    }

    /// Where requests go.
    #[must_use]
    pub fn route(self) -> &'static str {
        if self.draws() { "/generate/image" } else { "/generate/text" }
    }

    /// What the crowd asks for besides the prompt. Pictures are guided, as they are served, with freer draws: what is
    /// learned then holds for what is served.
    #[must_use]
    pub fn asked(self) -> Value {
        match self {
            // Captions that say little come out blank when confidence decides what commits first, the more so in few
            // steps. At random they do not, and a quarter of the served steps is enough.
            Self::Taste => json!({
                "n": GROUP, "steps": 16, "guidance_scale": 1, "sampler": { "kind": "emerge" }, "temperature": 0.8,
            }),
            // As served, but in half the steps: at a higher temperature it would learn what a lower one gives for nothing.
            Self::Scenes => {
                json!({ "n": GROUP, "steps": 32, "guidance_scale": 1, "temperature": 2, "token_temperature": 0.6 })
            }
            Self::Words => json!({ "n": GROUP, "temperature": 1.0, "max_tokens": 24, "block_length": 8, "steps": 12 }),
        }
    }

    /// Settings at which the base is judged too, so that a gain is not one that a better setting gives for nothing.
    #[must_use]
    pub fn settings(self) -> Vec<Value> {
        if !self.draws() {
            return [16, 32].map(|steps| json!({ "temperature": 0, "steps": steps })).to_vec();
        }
        let mut out = Vec::new();
        for guidance in [0.5, 1.0, 1.5, 2.0] {
            for temperature in [0.4, 0.6, 0.8] {
                out.push(json!({ "guidance_scale": guidance, "token_temperature": temperature }));
            }
        }
        for temperature in [0.4, 0.6, 0.8] {
            out.push(json!({ "sampler": { "kind": "emerge" }, "guidance_scale": 1, "temperature": temperature }));
        }
        out
    }

    /// The opinion of every completion of a reply, with the completion's id.
    ///
    /// # Errors
    /// When the reply is not one of this task's route.
    pub fn look(self, codec: &Codec, prompt: &Prompt, reply: &Value) -> anyhow::Result<Vec<(String, Opinion)>> {
        let key = if self.draws() { "images" } else { "completions" };
        let completions = reply.get(key).and_then(Value::as_array).context("a reply without completions")?;
        completions
            .iter()
            .map(|one| {
                let id = one.get("id").and_then(Value::as_str).context("a completion without an id")?;
                let codes = one.get("codes").map_or(Ok(Vec::new()), |codes| serde_json::from_value(codes.clone()))?;
                let text = one.get("text").and_then(Value::as_str).unwrap_or_default();
                let opinion = self.opinion(codec, prompt, &codes, text)?;
                Ok((id.to_owned(), opinion))
            })
            .collect()
    }

    /// The opinion of the codes of a picture, or of a text.
    ///
    /// # Errors
    /// When the codes are no picture.
    pub fn opinion(self, codec: &Codec, prompt: &Prompt, codes: &[u16], text: &str) -> anyhow::Result<Opinion> {
        match prompt {
            Prompt::Scene(_, spec) => {
                let verdict = scenes::verify(&codec.decode(codes)?, spec);
                let seen = &verdict.objects;
                let liked = !seen.is_empty() && seen.iter().all(|seen| seen.colour == Some(LIKED));
                let wanted = if self == Self::Taste { liked } else { verdict.strict };
                Ok(Opinion { wanted, correct: verdict.strict, soft: f64::from(verdict.soft) })
            }
            Prompt::Words(problem) => {
                let right = words::verify(text, problem.answer).correct;
                Ok(Opinion { wanted: right, correct: right, soft: f64::from(u8::from(right)) })
            }
        }
    }

    /// What a person says of a completion: metrics and values.
    #[must_use]
    pub fn ratings(self, opinion: Opinion) -> Vec<(&'static str, Value)> {
        match self {
            Self::Taste => vec![("thumbs", opinion.wanted.into()), ("correct", opinion.correct.into())],
            Self::Scenes => vec![("thumbs", opinion.wanted.into()), ("soft", opinion.soft.into())],
            Self::Words => vec![("thumbs", opinion.wanted.into())],
        }
    }

    /// Weights of what is wanted, what is right, and of partial credit.
    #[must_use]
    pub fn weights(self) -> [f64; 3] {
        let of =
            |wanted: &str| self.metrics().iter().find(|(name, ..)| *name == wanted).map_or(0.0, |(.., weight)| *weight);
        [of("thumbs"), of("correct"), of("soft")]
    }

    /// Metrics with what each counts in the reward.
    fn metrics(self) -> Vec<(&'static str, MetricType, f64)> {
        let more = match self {
            Self::Taste => Some(("correct", MetricType::Bool, 1.0)),
            Self::Scenes => Some(("soft", MetricType::Number, 0.3)),
            Self::Words => None,
        };
        let always = [("thumbs", MetricType::Bool, 1.0), (PREFERENCE, MetricType::Number, 1.0)];
        always.into_iter().chain(more).collect()
    }

    /// Makes `config` that of a server that learns this task from people alone, and at once.
    pub fn configure(self, config: &mut Config, seed: u64) {
        let number = |kind| (kind == MetricType::Number).then_some([0.0, 1.0]);
        let declare = |(name, kind, _): (&str, MetricType, f64)| {
            let (range, choices) = (number(kind), BTreeMap::new());
            let metric = Metric { kind, optimize: Optimize::Max, range, true_value: 1.0, false_value: 0.0, choices };
            (name.to_owned(), metric)
        };
        config.metrics = self.metrics().into_iter().map(declare).collect();
        let metrics = self.metrics().into_iter();
        config.reward = Reward {
            aggregate: Aggregate::SumThenNormalize,
            allow_user_only_reward: true,
            hook: metrics.map(|(name, _, weight)| hook(name, HookKind::Feedback, "metric", weight)).collect(),
            ..Reward::default()
        };
        let guard = self.draws().then(|| hook("scene_strict", HookKind::Builtin, "builtin", 1.0));
        config.guard = guard.into_iter().collect();
        config.training = self.training(seed);
    }

    fn training(self, seed: u64) -> TrainingConfig {
        let per_completion = self.ratings(Opinion::default()).len() as u64;
        let draws = self.draws();
        TrainingConfig {
            adapter: self.name().to_owned(),
            // Versions soon after each other keep what is learned from close to the policy. What makes a picture right is
            // seen in many only.
            min_samples: per_completion * if self == Self::Scenes { 420 } else { 280 },
            min_interval_s: 0,
            lanes: vec![Lane::Groups],
            promotion: Promotion::Auto,
            batch: match self {
                Self::Taste => 64,
                Self::Scenes => 512,
                Self::Words => 96,
            },
            epochs: 1,
            inner: 4,
            lr: match self {
                Self::Taste => 8e-4,
                // Correctness moves slowly, and a higher rate undoes it after a dozen updates.
                Self::Scenes => 4e-4,
                Self::Words => 6e-4,
            },
            // A taste is learned in a few versions, and what comes after them would only move what is right.
            settle: match self {
                Self::Taste => 2,
                Self::Scenes => 12,
                Self::Words => 0,
            },
            // When most are liked already, a wrong thumb must not count as much as a group that people disagree on.
            baseline: if draws { Baseline::MeanOnly } else { Baseline::Standard },
            estimator: match self {
                Self::Taste => EstimatorKind::Trajectory,
                // Whether a picture comes out right hangs on a few of its codes, given all that was there before them.
                Self::Scenes => EstimatorKind::Decisions,
                Self::Words => EstimatorKind::MaskGrpo,
            },
            as_drawn: draws,
            beta: 0.01,
            // The crowd waits while it learns.
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            // What is watched here is the rise of the success rate; ratings of one moment take no version back.
            trial_ratings: 1_000_000,
            data: LaneConfig {
                per_subject_max: 4096,
                // Captions that leave the colour open are few; one in eight could be none.
                hold_out_one_in: if self == Self::Taste { 4 } else { 8 },
                ..LaneConfig::default()
            },
            // Only people can score, so the gate sees no more than how a candidate rates what was rated: a few dozen
            // noisy thumbs, on the few prompts that were held out so far. It refuses what is clearly worse; that a version
            // is better shows over several.
            gate: GateConfig {
                prompts: 8,
                // Pictures take their time, and everybody waits for the verdict.
                completions: if draws { 2 } else { 4 },
                min_gain: -0.05,
                max_guard_loss: 0.5,
                max_kl: 2.0,
                ..GateConfig::default()
            },
            seed,
            ..TrainingConfig::default()
        }
    }
}

impl Prompt {
    /// The text that is sent.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Scene(caption, _) => caption,
            Self::Words(problem) => &problem.question,
        }
    }

    /// A request with `settings` and `more`, the latter winning.
    #[must_use]
    pub fn request(&self, settings: &Value, more: Value) -> Value {
        let mut body = Map::from_iter([("prompt".to_owned(), self.text().into())]);
        if matches!(self, Self::Scene(..)) {
            body.insert("return".to_owned(), json!(["codes"]));
        }
        for part in [settings.clone(), more] {
            if let Value::Object(part) = part {
                body.extend(part);
            }
        }
        Value::Object(body)
    }
}

/// By the arithmetic, not the story: the judged lines of arithmetic are in no problem of the crowd.
fn words_held_out(problem: &Problem) -> bool {
    let hash = problem.answer_text.bytes().fold(0, |hash, byte| mix64(hash ^ u64::from(byte)));
    hash.is_multiple_of(WORDS_JUDGED_ONE_IN)
}

fn hook(name: &str, kind: HookKind, option: &str, weight: f64) -> Hook {
    Hook { weight, ..Hook::named(name, kind, option) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TASKS: [Task; 3] = [Task::Taste, Task::Scenes, Task::Words];

    #[test]
    fn the_judge_asks_what_the_crowd_never_asked() {
        for task in TASKS {
            let texts = |held_out| -> HashSet<String> {
                (0..300).map(|i| task.prompt(1, i, held_out).text().to_owned()).collect()
            };
            assert!(texts(false).is_disjoint(&texts(true)), "{task:?}");
        }
    }

    #[test]
    fn people_like_what_they_like() {
        let codec = Codec::new();
        let spec = scenes::parse("a circle").unwrap();
        let of = |colour: Colour| {
            let exact = scenes::parse(&format!("a {} circle", colour.word())).unwrap();
            let scene = scenes::Scene::draw(&exact, &mut Stream::new(1, 1)).unwrap();
            let reply = json!({ "images": [{ "id": "x", "codes": scene.codes(&codec).to_vec() }] });
            Task::Taste.look(&codec, &Prompt::Scene("a circle".to_owned(), spec.clone()), &reply).unwrap()[0].1
        };
        assert!(of(LIKED).wanted && of(LIKED).correct);
        assert!(!of(Colour::Red).wanted && of(Colour::Red).correct);
    }

    #[test]
    fn the_configurations_are_valid() {
        for task in TASKS {
            let mut config = Config::default();
            task.configure(&mut config, 1);
            config.validate().unwrap();
            config.reward.validate(&config.metrics).unwrap();
        }
    }
}
