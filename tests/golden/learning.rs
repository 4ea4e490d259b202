//! Learning on every golden model: one update of MaskGRPO on completions that the server made, its gradients against
//! finite differences, and the adapter that comes out sent back as PEFT's files and served.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use lacuna::adapters::{VersionId, peft};
use lacuna::diffusion::Canvas;
use lacuna::diffusion::denoise::complete;
use lacuna::diffusion::params::{ImageParams, ImageSampler, Schedule, TextParams};
use lacuna::diffusion::rng::Stream;
use lacuna::engine::job::{Priority, Prompt, Task};
use lacuna::engine::{Engine, Finished};
use lacuna::models::lora::{Lora, Pair, Target};
use lacuna::models::optim::OptimConfig;
use lacuna::models::{Backbone, Model};
use lacuna::rl::estimator::{Estimator, Step};
use lacuna::rl::logprob::{Estimate, Sample, logprob_estimate, logprobs};
use lacuna::rl::loss::{LossConfig, Segment, Terms, maskgrpo_loss};
use lacuna::rl::policy::{LoraConfig, Policy};
use lacuna::rl::rollout::{Asked, sample_of};
use lacuna::rl::update::{Judged, UpdateConfig, Workshop, update};
use serde_json::json;

use super::model;
use super::runs::Run;
use crate::api::learning::base;
use crate::api::server::Server;
use crate::properties::exactness::quiet;

const SEED: u64 = 7;
/// Completions of the prompt.
const N: u32 = 4;

/// What is asked of a model, and how it learns from it.
struct Lesson {
    model: Model,
    prompt: Vec<u32>,
    task: Task,
    estimator: Estimator,
    loss: LossConfig,
}

impl Lesson {
    fn text(name: &str) -> Self {
        let task = Task::Text(TextParams { temperature: 1.0, ..quiet() });
        let (estimator, loss) = (Estimator::TEXT, LossConfig::default());
        Self { model: model(name), prompt: vec![87, 104, 97, 116], task, estimator, loss }
    }

    fn image() -> Self {
        let task = Task::Image(ImageParams {
            steps: 4,
            guidance_scale: 0.0,
            schedule: Schedule::Cosine,
            temperature: 1.0,
            token_temperature: None,
            sampler: ImageSampler::Emerge,
            grid: (4, 4),
            initial_codes: vec![],
            preview_every: 0,
        });
        let (estimator, loss) = (Estimator::IMAGE, LossConfig::image());
        Self { model: super::pictures::painter(), prompt: vec![97, 98], task, estimator, loss }
    }

    async fn ask(&self, engine: &Engine, version: &VersionId) -> Vec<Finished> {
        let asked = Asked { prompt: Prompt::Ids(self.prompt.clone()), negative: None, task: self.task.clone() };
        asked.complete(engine, version, N, SEED, Priority::Rollout).await.unwrap()
    }

    /// The completions, of which every other one is liked.
    fn judged(&self, finished: &[Finished]) -> Vec<Judged> {
        let judged = |one: &Finished| Judged {
            sample: sample_of(&self.model, &self.task, one).unwrap(),
            advantage: if one.index.is_multiple_of(2) { 1.0 } else { -1.0 },
            weight: 1.0,
            behaviour: None,
        };
        finished.iter().map(judged).collect()
    }

    /// What `adapter` makes of the same seed, without an engine.
    fn alone(&self, adapter: &Arc<Lora>, seed: u64) -> Canvas {
        let run = Run {
            label: String::new(),
            prompt: self.prompt.clone(),
            task: self.task.clone(),
            output: vec![],
            order: vec![],
            forwards: None,
            rows: None,
        };
        let canvas = run.canvas(&self.model, seed).with_adapter(Some(Arc::clone(adapter)));
        let mut canvases = [canvas];
        complete(&*self.model.backbone, &mut canvases, 1000).unwrap();
        let [canvas] = canvases;
        canvas
    }
}

fn samples(batch: &[Judged]) -> Vec<Sample> {
    batch.iter().map(|judged| judged.sample.clone()).collect()
}

/// Σ A · log p over the positions that the update scored.
fn favour(lesson: &Lesson, model: &dyn Backbone, batch: &[Judged], adapter: Option<&Arc<Lora>>) -> f64 {
    let samples = samples(batch);
    let step = Step::draw(&lesson.estimator, &samples, SEED, 1, 0).unwrap();
    let logprobs = step.gather(&logprobs(model, adapter, &step.views(), 1000).unwrap());
    let of = |(judged, range): (&Judged, &std::ops::Range<usize>)| {
        judged.advantage * logprobs[range.clone()].iter().sum::<f64>()
    };
    batch.iter().zip(step.segments()).map(of).sum()
}

/// One update from nothing; what was liked is more likely after it.
fn taught(lesson: &Lesson, batch: &[Judged]) -> Arc<Lora> {
    let workshop = Workshop {
        model: lesson.model.backbone.for_learning().unwrap(),
        pool: rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(),
        pace: Arc::new(|| true),
    };
    let config = UpdateConfig {
        estimator: lesson.estimator,
        loss: lesson.loss,
        bounds: None,
        draws: 1,
        inner: 1,
        micro_rows: 40,
        checkpointing: true,
        max_drift: 10.0,
        behaviour_cap: 2.0,
        max_staleness: 1.0,
        seed: SEED,
    };
    let (shape, lora) = (workshop.model.adaptable().unwrap(), LoraConfig { rank: 2, alpha: 4.0 });
    let mut policy = Policy::fresh(shape, &lora, OptimConfig::default(), SEED, &Device::Cpu).unwrap();
    let before = favour(lesson, &*workshop.model, batch, None);
    let report = update(&workshop, &mut policy, None, batch, &config, 1e-2).unwrap();
    assert_eq!((report.steps, report.skipped, report.stale), (1, 0, 0), "{report:?}");
    assert!(report.loss.is_finite() && report.grad_norm > 0.0 && report.tokens > 0, "{report:?}");
    let taught = policy.snapshot().unwrap();
    assert_eq!(taught.pairs().len(), 7 * shape.n_layers);
    for (place, pair) in taught.pairs() {
        assert!(size(&pair.b) > 0.0, "{place:?} did not move");
    }
    let after = favour(lesson, &*workshop.model, batch, Some(&taught));
    assert!(after > before, "{before} to {after}");
    taught
}

/// Euclidean norm.
fn size(tensor: &Tensor) -> f64 {
    f64::from(tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

type Variables = BTreeMap<(usize, Target), [Var; 2]>;

/// Factors away from zero, so that every one has a gradient.
fn variables(model: &dyn Backbone) -> Variables {
    let (config, mut stream) = (model.adaptable().unwrap(), Stream::new(SEED, 1));
    let mut variable = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|_| (stream.unit() * 0.4 - 0.2) as f32).collect();
        Var::from_tensor(&Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()).unwrap()
    };
    let places = (0..config.n_layers).flat_map(|layer| Target::ALL.map(|target| (layer, target)));
    let of = |place: (usize, Target)| {
        let (out, width) = place.1.shape(config);
        (place, [variable(2, width), variable(out, 2)])
    };
    places.map(of).collect()
}

fn adapter(model: &dyn Backbone, variables: &Variables) -> Arc<Lora> {
    let pair = |[a, b]: &[Var; 2]| Pair { a: a.as_tensor().clone(), b: b.as_tensor().clone() };
    let pairs = variables.iter().map(|(&place, factors)| (place, pair(factors))).collect();
    Arc::new(Lora::new(model.adaptable().unwrap(), 1.0, pairs).unwrap())
}

/// Every factor's gradient of the loss is its slope, in the arithmetic that is served.
fn assert_gradients(lesson: &Lesson, batch: &[Judged]) {
    let (model, samples) = (&*lesson.model.backbone, samples(batch));
    let variables = variables(model);
    let step = Step::draw(&lesson.estimator, &samples, SEED, 1, 0).unwrap();
    let reference = step.gather(&logprobs(model, None, &step.views(), 1000).unwrap());
    let at = || logprob_estimate(model, Some(&adapter(model, &variables)), &step.views()).unwrap();
    // Ratios away from 1, and within the clip.
    let old: Vec<f64> = step.gather(&at().split().unwrap()).iter().map(|logprob| logprob + 0.05).collect();
    let segment = |(range, judged): (&std::ops::Range<usize>, &Judged)| Segment {
        range: range.clone(),
        advantage: judged.advantage,
        weight: judged.weight,
        dropped: false,
    };
    let segments: Vec<Segment> = step.segments().iter().zip(batch).map(segment).collect();
    let loss = |estimate: &Estimate| {
        let new = step.gather(&estimate.split().unwrap());
        let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
        maskgrpo_loss(&terms, &LossConfig { beta: 0.1, ..lesson.loss }, None).unwrap()
    };
    let estimate = at();
    let whole = loss(&estimate);
    let objective = estimate.objective(whole.value, &step.scatter(&whole.gradient)).unwrap();
    let gradients = objective.backward().unwrap();
    for (place, factors) in &variables {
        for (factor, side) in factors.iter().zip(["A", "B"]) {
            let gradient = gradients.get(factor).unwrap_or_else(|| panic!("{place:?} {side} has no gradient"));
            // Along the gradient the slope is its norm: one number tests every entry.
            let norm = size(gradient);
            assert!(norm > 1e-4, "{place:?} {side}: {norm}");
            let (direction, original) = ((gradient / norm).unwrap(), factor.as_tensor().copy().unwrap());
            // Far enough that rounding does not show, near enough that the curve does not.
            let by = (2e-3 / norm).clamp(2e-3, 3e-2);
            let moved = |by: f64| {
                factor.set(&(&original + (&direction * by).unwrap()).unwrap()).unwrap();
                loss(&at()).value
            };
            let slope = (moved(by) - moved(-by)) / (2.0 * by);
            factor.set(&original).unwrap();
            assert!((slope - norm).abs() < 0.03 * norm + 1e-4, "{place:?} {side}: {slope}, by backward {norm}");
        }
    }
}

async fn learns(lesson: Lesson) {
    let server = Server::learning_of(lesson.model.clone(), |_| {}).await;
    let (engine, base) = (&server.app.engine, base(&server.app.engine));
    let before = lesson.ask(engine, &VersionId::base()).await;
    let batch = lesson.judged(&before);
    assert_gradients(&lesson, &batch);
    let taught = taught(&lesson, &batch);

    let files = peft::write(&taught, &base).unwrap();
    assert_eq!(server.import("taught", &files).await.status(), 201);
    server.ok("/adapters/taught@1/approve", &json!({})).await;
    let reply = server.ok("/generate/text", &json!({"prompt_token_ids": lesson.prompt, "max_tokens": 4})).await;
    assert_eq!(reply["adapter"], "taught@1");

    let version: VersionId = "taught@1".parse().unwrap();
    let served = engine.serving().get(&version).unwrap().lora.clone().unwrap();
    assert!(peft::write(&served, &base).unwrap() == files, "what was read is what was written");
    for (after, before) in lesson.ask(engine, &version).await.iter().zip(&before) {
        let alone = lesson.alone(&taught, after.seed);
        assert_eq!((&after.tokens, &after.logprobs[..]), (&alone.tokens(), alone.logprobs()));
        assert_ne!(after.logprobs, before.logprobs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn llada_learns() {
    learns(Lesson::text("llada")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn llada_with_few_key_heads_and_a_tied_head_learns() {
    learns(Lesson::text("llada_gqa_tied")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dream_learns() {
    learns(Lesson::text("dream")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sdar_learns() {
    learns(Lesson::text("sdar")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mmada_learns_from_texts() {
    learns(Lesson::text("mmada")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mmada_learns_from_images() {
    learns(Lesson::image()).await;
}
