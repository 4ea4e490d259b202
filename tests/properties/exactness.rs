//! A canvas gets the same tokens alone, in any mix, joining at any tick, stopped and resumed between any two steps,
//! with and without the savings, at any temperature.

use lacuna::diffusion::cache::Caches;
use lacuna::diffusion::denoise::complete;
use lacuna::diffusion::frame::Slots;
use lacuna::diffusion::params::{Ends, Fidelity, ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use lacuna::diffusion::rng::Stream;
use lacuna::diffusion::{Canvas, Denoiser, Savings};
use lacuna::models::Backbone;
use proptest::prelude::*;

use super::fake::{CODES, Hash, Tensors};

const TEMPERATURES: [f64; 4] = [0.0, 0.0, 1.0, 0.7];
const SCALES: [f64; 3] = [0.0, 0.0, 1.5];

/// Nothing is saved.
pub(super) const WASTEFUL: Savings = Savings {
    share_first_step: false,
    memoise_unconditional: false,
    keep_finished_blocks: false,
    share_beginnings: false,
};

const SAMPLERS: [TextSampler; 14] = [
    TextSampler::LowConfidence,
    TextSampler::LowConfidence,
    TextSampler::Random,
    TextSampler::Threshold { threshold: 0.05 },
    TextSampler::Factor { factor: 1.9 },
    TextSampler::Origin { eps: 1e-3 },
    TextSampler::MaskgitPlus { eps: 1e-3, alg_temp: 0.0 },
    TextSampler::TopkMargin { eps: 1e-3, alg_temp: 0.5 },
    TextSampler::Entropy { eps: 0.1, alg_temp: 0.0 },
    TextSampler::Entropy { eps: 1e-3, alg_temp: 1.0 },
    TextSampler::LowConfidenceDynamic { threshold: 0.05 },
    TextSampler::LowConfidenceStatic,
    TextSampler::Sequential,
    TextSampler::EntropyBounded { threshold: 6.0 },
];

pub(super) fn text_params(s: &mut Stream) -> TextParams {
    let block_length = [2, 4, 8][s.below(3)];
    let blocks = 1 + s.below(3);
    let sampler = SAMPLERS[s.below(SAMPLERS.len())];
    let steps = 1 + s.below(6);
    TextParams {
        max_tokens: block_length * blocks,
        steps: if sampler.per_block() { steps.min(block_length) } else { blocks * steps },
        block_length,
        temperature: TEMPERATURES[s.below(4)],
        top_p: [1.0, 1.0, 0.9][s.below(3)],
        top_k: [0, 0, 5][s.below(3)],
        sampler,
        ends: Ends { logits_eos_inf: s.chance(0.2), confidence_eos_eot_inf: false },
        guidance_scale: SCALES[s.below(3)],
        stop_at_eos: s.chance(0.5),
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: Vec::new(),
    }
}

pub(super) fn image_params(s: &mut Stream) -> ImageParams {
    let grid = [(2, 2), (4, 4), (3, 5)][s.below(3)];
    let known = |s: &mut Stream| s.chance(0.3).then(|| s.below(CODES.len()) as u32);
    let mut initial_codes = Vec::new();
    if s.chance(0.3) {
        initial_codes = (0..grid.0 * grid.1).map(|_| known(s)).collect();
        initial_codes[0] = None;
    }
    ImageParams {
        steps: 1 + s.below(10),
        guidance_scale: SCALES[s.below(3)],
        schedule: [Schedule::Cosine, Schedule::Linear, Schedule::Pow2, Schedule::Sigmoid][s.below(4)],
        temperature: TEMPERATURES[s.below(4)],
        token_temperature: [None, None, Some(0.5)][s.below(3)],
        sampler: [ImageSampler::Maskgit, ImageSampler::MaskgitCompat, ImageSampler::Emerge][s.below(3)],
        grid,
        initial_codes,
        preview_every: 0,
    }
}

pub(super) fn words(s: &mut Stream, most: usize) -> Vec<u32> {
    (0..s.below(most)).map(|_| 97 + s.below(6) as u32).collect()
}

fn canvas(model: &dyn Backbone, s: &mut Stream) -> Canvas {
    let spec = model.spec();
    // Few seeds, so that some canvases of a mix are identical.
    let seed = s.below(3) as u64;
    let slot = |s: &mut Stream, holes: f64| (!s.chance(holes)).then(|| 97 + s.below(6) as u32);
    match s.below(4) {
        0 => {
            let slots: Slots = (0..4 + s.below(12)).map(|_| slot(s, 0.5)).chain([None]).collect();
            let mut params = text_params(s);
            if !params.sampler.per_block() {
                params.steps = 12 + s.below(4);
            }
            Canvas::template(spec, slots, &params, seed).unwrap()
        }
        1 | 2 => {
            let negative = s.chance(0.3).then(|| words(s, 6));
            let holes = if negative.is_some() { 0.0 } else { 0.1 };
            let prefix: Slots = (0..s.below(8)).map(|_| slot(s, holes)).collect();
            Canvas::text(spec, prefix, negative.as_deref(), &text_params(s), seed).unwrap()
        }
        _ => {
            let frame = ([vec![259], words(s, 6), vec![258]].concat(), vec![256]);
            let empty = ([vec![259], words(s, 2), vec![258]].concat(), vec![256]);
            Canvas::image(spec, frame, empty, &image_params(s), seed).unwrap()
        }
    }
}

/// Everything that must not depend on the company: tokens, steps, the bits of the log-probabilities, forwards.
pub(super) type Outcome = (Vec<u32>, Vec<i32>, Vec<u32>, u32, String);

pub(super) fn result(c: &Canvas) -> Outcome {
    let bits = c.logprobs().iter().map(|l| l.to_bits()).collect();
    (c.tokens(), c.commit_steps().to_vec(), bits, c.forwards(), format!("{:?}", c.finish()))
}

/// The canvas when nobody is with it and nothing is saved.
pub(super) fn alone(model: &dyn Backbone, canvas: &Canvas) -> Canvas {
    let mut denoiser = Denoiser::default();
    denoiser.savings = WASTEFUL;
    let mut canvas = canvas.clone();
    while canvas.finish().is_none() {
        let outcome = denoiser.step(model, &mut [&mut canvas]).unwrap().outcomes.remove(0).unwrap();
        assert_eq!(outcome.finish, canvas.finish());
    }
    canvas
}

/// Runs a random mix with random joins, preemptions and logits caps; compares every canvas with itself alone.
fn mixed(model: &dyn Backbone, case: u64) {
    let mut s = Stream::new(0xE8AC7, case);
    let start: Vec<Canvas> = (0..1 + s.below(7)).map(|_| canvas(model, &mut s)).collect();
    mix(model, &mut s, start, &format!("case {case}")).iter().for_each(|canvas| check(canvas, model));
}

/// The same for given canvases; returns them finished.
pub(super) fn mix(model: &dyn Backbone, s: &mut Stream, start: Vec<Canvas>, case: &str) -> Vec<Canvas> {
    let expected: Vec<Outcome> = start.iter().map(|c| result(&alone(model, c))).collect();
    let joins: Vec<usize> = start.iter().map(|_| s.below(6)).collect();
    let mut denoiser = Denoiser::default();
    denoiser.savings = Savings {
        share_first_step: s.chance(0.7),
        memoise_unconditional: s.chance(0.7),
        keep_finished_blocks: s.chance(0.7),
        share_beginnings: s.chance(0.7),
    };
    let limit = [0, 20_000, 300_000, 1 << 30][s.below(4)];
    denoiser.caches = Caches::new(limit);
    denoiser.logits_cap = [1, 2_000, 20_000, 64 << 20][s.below(4)];
    let mut canvases = start;
    for tick in 0.. {
        if canvases.iter().all(|c| c.finish().is_some()) {
            break;
        }
        let mut batch: Vec<&mut Canvas> = Vec::new();
        for (canvas, &join) in canvases.iter_mut().zip(&joins) {
            if tick >= join && canvas.finish().is_none() && s.chance(0.7) {
                batch.push(canvas);
            }
        }
        s.shuffle(&mut batch);
        denoiser.step(model, &mut batch).unwrap();
        assert!(denoiser.caches.bytes() <= limit);
    }
    for (i, (canvas, expected)) in canvases.iter().zip(&expected).enumerate() {
        assert_eq!(&result(canvas), expected, "{case}, canvas {i}");
    }
    canvases
}

/// What holds for every finished canvas of a model that is never quite sure.
pub(super) fn check(canvas: &Canvas, model: &dyn Backbone) {
    let banned = &model.spec().banned_ids;
    let mask = model.spec().mask_id;
    let codes = model.spec().image.as_ref().map_or(0, |image| image.codes.len());
    let steps = canvas.steps() as i32;
    for ((token, &step), logprob) in canvas.tokens().iter().zip(canvas.commit_steps()).zip(canvas.logprobs()) {
        assert!(step < steps && (step >= 0) == (*logprob < 0.0), "step {step} of {steps}, {logprob}");
        assert!(canvas.is_image() || step < 0 || (!banned.contains(token) && *token != mask));
        assert!(!canvas.is_image() || (*token as usize) < codes);
    }
}

#[test]
fn any_mix_gives_the_tokens_of_each_alone_on_hashes() {
    let model = Hash::new();
    (0..600).for_each(|case| mixed(&model, case));
}

#[test]
fn any_mix_gives_the_tokens_of_each_alone_on_tensors() {
    let model = Tensors::new();
    (1000..1250).for_each(|case| mixed(&model, case));
}

#[test]
fn the_logits_never_take_more_than_their_cap() {
    let model = Hash::new();
    let mut denoiser = Denoiser::default();
    denoiser.logits_cap = 10 * 260 * 4;
    for case in 0..40 {
        let mut s = Stream::new(5, case);
        let mut canvases: Vec<Canvas> = (0..6).map(|_| canvas(&model, &mut s)).collect();
        let mut batch: Vec<&mut Canvas> = canvases.iter_mut().collect();
        denoiser.step(&model, &mut batch).unwrap();
    }
    assert!(model.gauge.most_logits.load(std::sync::atomic::Ordering::SeqCst) <= 10 * 260);
}

#[test]
fn complete_runs_everything_to_its_end() {
    let model = Hash::new();
    let mut s = Stream::new(6, 0);
    let mut canvases: Vec<Canvas> = (0..12).map(|_| canvas(&model, &mut s)).collect();
    let expected: Vec<Outcome> = canvases.iter().map(|c| result(&alone(&model, c))).collect();
    complete(&model, &mut canvases, 60).unwrap();
    assert_eq!(canvases.iter().map(result).collect::<Vec<_>>(), expected);
}

#[test]
fn a_rushed_canvas_commits_everything_at_its_next_step() {
    let model = Hash::new();
    for case in 0..100 {
        let mut s = Stream::new(7, case);
        let mut canvas = canvas(&model, &mut s);
        let mut denoiser = Denoiser::default();
        for _ in 0..s.below(3) {
            if canvas.finish().is_none() {
                denoiser.step(&model, &mut [&mut canvas]).unwrap();
            }
        }
        if canvas.finish().is_some() {
            continue;
        }
        canvas.rush();
        let tick = denoiser.step(&model, &mut [&mut canvas]).unwrap();
        assert!(tick.outcomes[0].as_ref().unwrap().finish.is_some());
        assert!(canvas.partial().iter().all(Option::is_some));
        check(&canvas, &model);
    }
}

/// The first step of n completions is one forward, and an unconditional first step is evaluated once per shape.
#[test]
fn savings_save() {
    let rows = |savings: Savings| {
        let model = Hash::new();
        let mut denoiser = Denoiser::default();
        denoiser.savings = savings;
        for round in 0..2u64 {
            let mut canvases: Vec<Canvas> = (0..4)
                .map(|i| {
                    let mut s = Stream::new(8, 0);
                    let params = ImageParams {
                        guidance_scale: 2.0,
                        initial_codes: Vec::new(),
                        grid: (4, 4),
                        ..image_params(&mut s)
                    };
                    let params = ImageParams { sampler: ImageSampler::Maskgit, steps: 4, ..params };
                    let frame = (vec![259, 100 + round as u32, 258], vec![256]);
                    Canvas::image(model.spec(), frame, (vec![259, 258], vec![256]), &params, i).unwrap()
                })
                .collect();
            let mut batch: Vec<&mut Canvas> = canvases.iter_mut().collect();
            let tick = denoiser.step(&model, &mut batch).unwrap();
            assert_eq!(canvases.iter().map(Canvas::positions_evaluated).sum::<u64>(), tick.batch.rows() as u64);
        }
        model.gauge.rows.load(std::sync::atomic::Ordering::SeqCst)
    };
    let (own, empty) = (3 + 16 + 1, 2 + 16 + 1);
    let plain = WASTEFUL;
    assert_eq!(rows(plain), 2 * 4 * (own + empty));
    assert_eq!(rows(Savings { share_first_step: true, ..plain }), 2 * (own + empty));
    assert_eq!(rows(Savings::default()), 2 * own + empty);
}

#[test]
fn only_positions_that_may_commit_reach_the_head() {
    let model = Hash::new();
    let params =
        TextParams { max_tokens: 32, steps: 8, block_length: 8, sampler: TextSampler::LowConfidence, ..quiet() };
    let mut canvas = Canvas::text(model.spec(), vec![Some(97); 5], None, &params, 0).unwrap();
    Denoiser::default().step(&model, &mut [&mut canvas]).unwrap();
    assert_eq!(model.gauge.head_rows.load(std::sync::atomic::Ordering::SeqCst), 8);
}

/// A greedy text of one block of eight.
pub(crate) fn quiet() -> TextParams {
    TextParams {
        max_tokens: 8,
        steps: 8,
        block_length: 8,
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        sampler: TextSampler::LowConfidence,
        ends: Ends::default(),
        guidance_scale: 0.0,
        stop_at_eos: true,
        fidelity: Fidelity::Exact,
        vicinity: 0,
        stop: Vec::new(),
    }
}

#[test]
fn eos_ends_a_text_only_when_everything_before_it_is_known() {
    let mut model = Hash::new();
    model.eos_bias = 5.0;
    let mut early = 0;
    for seed in 0..200 {
        let params = TextParams { max_tokens: 16, steps: 16, block_length: 16, temperature: 1.0, ..quiet() };
        let mut canvas = Canvas::text(model.spec(), vec![Some(97 + seed as u32 % 9); 3], None, &params, seed).unwrap();
        complete(&model, std::slice::from_mut(&mut canvas), 1000).unwrap();
        let full = TextParams { stop_at_eos: false, ..params };
        let mut whole = Canvas::text(model.spec(), vec![Some(97 + seed as u32 % 9); 3], None, &full, seed).unwrap();
        complete(&model, std::slice::from_mut(&mut whole), 1000).unwrap();
        assert_eq!(whole.tokens().len(), 16);
        let end = whole.tokens().iter().position(|&t| t == 256).unwrap_or(16);
        assert_eq!(canvas.tokens(), whole.tokens()[..end]);
        assert_eq!((canvas.text_length(), whole.text_length()), (end, end));
        early += usize::from(canvas.forwards() < 16);
    }
    assert!(early > 50, "{early}");
}

#[test]
fn nothing_but_finite_logits_is_drawn_from_and_others_go_on() {
    let model = Hash::new();
    let absurd = TextParams { guidance_scale: 1e39, ..quiet() };
    let make = |params: &TextParams| Canvas::text(model.spec(), vec![Some(97)], None, params, 0).unwrap();
    let (mut bad, mut good) = (make(&absurd), make(&quiet()));
    let tick = Denoiser::default().step(&model, &mut [&mut bad, &mut good]).unwrap();
    assert!(tick.outcomes[0].is_err() && tick.outcomes[1].is_ok());
    assert_eq!(bad.partial(), vec![None; 8]);
}

#[test]
fn canvases_that_do_not_fit_are_refused_with_numbers() {
    let model = Hash::new();
    let text = |prefix: Slots, params: TextParams| Canvas::text(model.spec(), prefix, None, &params, 0).unwrap_err();
    let long = TextParams { max_tokens: 300, block_length: 300, ..quiet() };
    assert!(text(vec![Some(1)], long).to_string().contains("301 positions, the model takes 200"));
    assert!(text(vec![Some(280)], quiet()).to_string().contains("id 280 is outside the vocabulary of 280"));
    assert_eq!(text(vec![], TextParams { temperature: f64::NAN, ..quiet() }).field, "temperature");
    assert_eq!(text(vec![], TextParams { top_p: 0.0, ..quiet() }).field, "top_p");
    assert_eq!(text(vec![], TextParams { steps: 0, ..quiet() }).field, "steps");
    let full = Canvas::template(model.spec(), vec![Some(1); 4], &quiet(), 0).unwrap_err();
    assert_eq!(full.field, "prompt");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Positions and steps are the counter: shifting the seed changes tokens, nothing else does.
    #[test]
    fn seeds_matter_at_temperature_one_and_not_at_zero(seed in 1u64..1000, hot in any::<bool>()) {
        let model = Hash::new();
        let params = TextParams { temperature: if hot { 1.0 } else { 0.0 }, ..quiet() };
        let run = |seed| {
            let mut canvas = Canvas::text(model.spec(), vec![Some(97)], None, &params, seed).unwrap();
            complete(&model, std::slice::from_mut(&mut canvas), 1000).unwrap();
            canvas.tokens()
        };
        prop_assert_eq!(run(seed), run(seed));
        prop_assert_eq!(run(seed) == run(0), !hot);
    }
}
