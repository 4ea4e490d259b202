//! Exactness on the built-in model itself: real kernels, real prompts, text and images with and without guidance.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use lacuna::api::defaults::Defaults;
use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::{Denoiser, complete};
use lacuna::diffusion::frame::given;
use lacuna::diffusion::params::{Ends, Fidelity, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use lacuna::diffusion::rng::Stream;
use lacuna::models::Model;
use lacuna::models::lora::{Lora, Pair, Target};
use lacuna::starter::eval::{Marks, Options, words_marks};
use lacuna::starter::{model, scenes, words};

use super::exactness::{mix, quiet, result};

/// An unguided one may be of any of these fidelities.
pub(crate) fn text(model: &Model, s: &mut Stream, fidelities: &[Fidelity]) -> Canvas {
    let problem = words::sample_mixed(s, words::Split::Train);
    let blocks = 1 + s.below(2);
    let max_tokens = 8 * blocks * (1 + s.below(2));
    let samplers =
        [TextSampler::LowConfidence, TextSampler::Random, TextSampler::Threshold { threshold: 0.5 + 0.4 * s.unit() }];
    let guidance_scale = if s.chance(0.3) { 1.0 } else { 0.0 };
    let params = TextParams {
        max_tokens,
        steps: max_tokens / (1 + s.below(2)),
        block_length: max_tokens / blocks,
        temperature: if s.chance(0.5) { 1.0 } else { 0.0 },
        top_p: 1.0,
        top_k: 0,
        sampler: samplers[s.below(samplers.len())],
        ends: Ends::default(),
        guidance_scale,
        stop_at_eos: s.chance(0.7),
        fidelity: if guidance_scale > 0.0 { Fidelity::Exact } else { fidelities[s.below(fidelities.len())] },
        vicinity: 0,
        stop: vec![],
    };
    let prefix = given(&model.layout.text_prefix(&model.tokenizer.encode(&problem.question).unwrap()));
    Canvas::text(model.backbone.spec(), prefix, None, &params, s.below(100) as u64).unwrap()
}

pub(crate) fn image(model: &Model, s: &mut Stream) -> Canvas {
    let example = scenes::sample_any(s, scenes::Split::Train);
    let params = ImageParams {
        steps: 2 + s.below(8),
        guidance_scale: if s.chance(0.6) { 2.0 } else { 0.0 },
        schedule: Schedule::Cosine,
        temperature: if s.chance(0.5) { 1.0 } else { 0.0 },
        token_temperature: None,
        sampler: if s.chance(0.5) { ImageSampler::Maskgit } else { ImageSampler::Emerge },
        grid: (8, 8),
        initial_codes: vec![],
        preview_every: 0,
    };
    let frame = model.layout.image_frame(&model.tokenizer.encode(&example.caption).unwrap());
    let empty = model.layout.image_frame(&[]);
    Canvas::image(model.backbone.spec(), frame, empty, &params, s.below(100) as u64).unwrap()
}

/// An adapter that changes what is drawn.
fn adapter(model: &Model, rank: usize, targets: &[Target]) -> Arc<Lora> {
    let config = model.backbone.adaptable().unwrap();
    let mut pairs = BTreeMap::new();
    for (layer, &target) in (0..config.n_layers).flat_map(|layer| targets.iter().map(move |target| (layer, target))) {
        let (out, width) = target.shape(config);
        let a = Tensor::randn(0f32, 0.1, (rank, width), &Device::Cpu).unwrap();
        let b = Tensor::randn(0f32, 0.1, (out, rank), &Device::Cpu).unwrap();
        pairs.insert((layer, target), Pair { a, b });
    }
    Arc::new(Lora::new(config, 1.0, pairs).unwrap())
}

#[test]
fn any_mix_on_the_built_in_model_gives_the_tokens_of_each_alone() {
    let model = model::load(&Device::Cpu).unwrap();
    let backbone = &*model.backbone;
    let adapters = [None, Some(adapter(&model, 16, &Target::ALL)), Some(adapter(&model, 1, &[Target::V, Target::Up]))];
    let fidelities = [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual];
    let (mut compared, mut changed) = (0, 0);
    for case in 0..60 {
        let mut s = Stream::new(0x57A7, case);
        let start: Vec<Canvas> = (0..2 + s.below(6))
            .map(|_| {
                let canvas = if s.chance(0.5) { text(&model, &mut s, &fidelities) } else { image(&model, &mut s) };
                canvas.with_adapter(adapters[s.below(3)].clone())
            })
            .collect();
        let finished = mix(backbone, &mut s, start.clone(), &format!("case {case}"));
        compared += finished.len();
        changed += usize::from(start.iter().zip(&finished).any(|(canvas, finished)| {
            let mut base = canvas.clone().with_adapter(None);
            complete(backbone, std::slice::from_mut(&mut base), 1024).unwrap();
            result(&base) != result(finished)
        }));
    }
    assert!(compared > 200 && changed > 20, "{compared} canvases compared, adapters mattered in {changed} mixes");
}

/// A deadline costs quality by how early it comes: shares of right answers to the same prompts when everything is committed
/// after so many steps.
#[test]
fn quality_grows_with_the_time_to_a_deadline() {
    let model = model::load(&Device::Cpu).unwrap();
    let backbone = &*model.backbone;
    let params = TextParams { max_tokens: 32, steps: 16, ..quiet() };
    let problems: Vec<_> = (0..120)
        .map(|i| words::sample(&mut Stream::new(0xDEAD, i), words::Kind::TwoStep, words::Split::HeldOut))
        .collect();
    let right_after = |steps: usize| {
        let start = problems.iter().zip(0..).map(|(problem, seed)| {
            let prefix = given(&model.layout.text_prefix(&model.tokenizer.encode(&problem.question).unwrap()));
            Canvas::text(backbone.spec(), prefix, None, &params, seed).unwrap()
        });
        let (mut canvases, mut denoiser): (Vec<Canvas>, _) = (start.collect(), Denoiser::default());
        for step in 0..=steps {
            let mut batch: Vec<&mut Canvas> = canvases.iter_mut().filter(|c| c.finish().is_none()).collect();
            if step == steps {
                batch.iter_mut().for_each(|canvas| canvas.rush());
            }
            if !batch.is_empty() {
                denoiser.step(backbone, &mut batch).unwrap();
            }
        }
        assert!(canvases.iter().all(|canvas| canvas.finish().is_some()));
        let answers = canvases.iter().map(|canvas| model.tokenizer.decode(&canvas.tokens()));
        answers.zip(&problems).filter(|(text, problem)| words::verify(text, problem.answer).correct).count()
    };
    let right = [0, 2, 4, 8, 16].map(right_after);
    // A prompt or two may go either way; the course may not.
    assert!(right.windows(2).all(|pair| pair[1] + 3 >= pair[0]), "{right:?}");
    assert!(right[4] > right[0] + 8 && right[4] > 108, "{right:?}");
}

/// Committing what the model is sure of takes far fewer forwards than the served plan and loses no answers.
#[test]
fn a_threshold_saves_forwards_and_no_answers() {
    let model = model::load(&Device::Cpu).unwrap();
    let defaults = Defaults::default();
    let served = Options { n: 20, seed: 3, text: defaults.text.params(), image: defaults.image.params((8, 8)) };
    let sampler = TextSampler::Threshold { threshold: defaults.text.threshold };
    let text = TextParams { sampler, steps: served.text.max_tokens, ..served.text.clone() };
    let sure = Options { text, ..served.clone() };
    let marks = |options| words_marks(&model, options, &mut |_| {}).unwrap();
    let (served, sure) = (marks(&served), marks(&sure));
    let right = |marks: &Marks| marks.right.iter().filter(|right| **right).count();
    assert!(right(&sure) + 1 >= right(&served), "{} right answers, {} as served", right(&sure), right(&served));
    assert!(2 * served.forwards >= 5 * sure.forwards, "{} forwards, {} as served", sure.forwards, served.forwards);
}
