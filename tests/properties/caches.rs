//! Caches: a canvas gets the same tokens with what is kept, with some of it lost, and with no room for any; alone, in any
//! mix, and stopped and resumed at any step. Small models with the official layouts, of which the outputs are known too.

use lacuna::diffusion::cache::Caches;
use lacuna::diffusion::frame::{Slots, given};
use lacuna::diffusion::params::{Fidelity, TextParams, TextSampler};
use lacuna::diffusion::rng::Stream;
use lacuna::diffusion::{Canvas, Denoiser};
use lacuna::models::{Backbone, ModelSpec};

use super::exactness::{alone, check, mix, quiet, result, text_params, words};
use crate::golden;

const FIDELITIES: [Fidelity; 3] = [Fidelity::Exact, Fidelity::Prefix, Fidelity::Dual];

fn text(spec: &ModelSpec, prompt: &[u32], params: &TextParams, seed: u64) -> Canvas {
    Canvas::text(spec, given(prompt), None, params, seed).unwrap()
}

/// A text of any sampler at any fidelity; exact ones may be guided.
fn approximate(spec: &ModelSpec, s: &mut Stream) -> Canvas {
    let fidelity = FIDELITIES[s.below(3)];
    let mut params = TextParams { fidelity, ..text_params(s) };
    if fidelity != Fidelity::Exact {
        params.guidance_scale = 0.0;
        params.vicinity = [0, 1, 5, usize::MAX][s.below(4)];
    }
    let seed = s.below(3) as u64;
    text(spec, &words(s, 12), &params, seed)
}

/// A text of a model that goes by blocks, with holes in the prompt now and then.
fn by_blocks(spec: &ModelSpec, s: &mut Stream) -> Canvas {
    let mut params = text_params(s);
    if params.sampler.per_block() {
        params.block_length = spec.block.unwrap();
        params.steps = params.steps.min(params.block_length);
        params.max_tokens = 1 + s.below(20);
    }
    let seed = s.below(3) as u64;
    let slot = |id: u32, hole: bool| (!hole).then_some(id);
    let prompt: Slots = words(s, 14).into_iter().map(|id| slot(id, s.chance(0.05))).collect();
    Canvas::text(spec, prompt, None, &params, seed).unwrap()
}

fn any_mix(model: &dyn Backbone, cases: std::ops::Range<u64>, make: fn(&ModelSpec, &mut Stream) -> Canvas) {
    for case in cases {
        let mut s = Stream::new(0xCAC4E, case);
        let start = (0..1 + s.below(6)).map(|_| make(model.spec(), &mut s)).collect();
        mix(model, &mut s, start, &format!("case {case}")).iter().for_each(|canvas| check(canvas, model));
    }
}

#[test]
fn any_mix_of_fidelities_gives_the_tokens_of_each_alone() {
    any_mix(&*golden::model("llada").backbone, 0..120, approximate);
    any_mix(&*golden::model("llada_gqa_tied").backbone, 200..260, approximate);
}

/// Alone nothing is kept and every position is evaluated: the cache of finished blocks is exact, bit for bit.
#[test]
fn finished_blocks_are_kept_without_a_trace() {
    any_mix(&*golden::model("sdar").backbone, 0..150, by_blocks);
}

/// Positions that a canvas takes with what it keeps itself.
fn unshared(model: &dyn Backbone, mut canvas: Canvas) -> u64 {
    let mut denoiser = Denoiser::default();
    while canvas.finish().is_none() {
        denoiser.step(model, &mut [&mut canvas]).unwrap();
    }
    canvas.positions_evaluated()
}

/// Requests that begin alike, one after another and together: later ones evaluate only what is new, to the same tokens.
#[test]
fn beginnings_are_shared_without_a_trace() {
    let model = golden::model("sdar");
    let (backbone, spec) = (&*model.backbone, model.backbone.spec());
    let mut saved = 0;
    for case in 0..60 {
        let mut s = Stream::new(0xBE61, case);
        let params = TextParams {
            max_tokens: 1 + s.below(12),
            block_length: spec.block.unwrap(),
            steps: 1 + s.below(spec.block.unwrap()),
            sampler: TextSampler::Sequential,
            stop_at_eos: false,
            ..quiet()
        };
        let beginning = words(&mut s, 30);
        let mut denoiser = Denoiser::new(Caches::new([3_000, 40_000, 1 << 30][s.below(3)]));
        for turn in 0..6 {
            let prompt = |s: &mut Stream| [&beginning[..s.below(beginning.len() + 1)], &words(s, 6)].concat();
            let start: Vec<Canvas> =
                (0..1 + s.below(3)).map(|seed| text(spec, &prompt(&mut s), &params, seed as u64)).collect();
            let expected: Vec<_> = start.iter().map(|canvas| alone(backbone, canvas)).collect();
            let mut canvases = start;
            while canvases.iter().any(|canvas| canvas.finish().is_none()) {
                let mut batch: Vec<&mut Canvas> = canvases.iter_mut().filter(|c| c.finish().is_none()).collect();
                denoiser.step(backbone, &mut batch).unwrap();
            }
            for (canvas, expected) in canvases.iter().zip(&expected) {
                assert_eq!(result(canvas), result(expected), "case {case}, turn {turn}");
                let fresh = unshared(backbone, text(spec, expected.prompt_ids(), &params, expected.seed()));
                saved += fresh.saturating_sub(canvas.positions_evaluated());
            }
        }
    }
    assert!(saved > 1000, "{saved} positions");
}

#[test]
fn the_approximations_differ_and_cost_less() {
    let model = golden::model("llada");
    let (mut differ, mut rows) = (0, [0; 3]);
    for case in 0..12 {
        let prompt = words(&mut Stream::new(0xA99, case), 20);
        let run = |fidelity| {
            let params = TextParams { max_tokens: 24, steps: 24, block_length: 8, stop_at_eos: false, ..quiet() };
            alone(&*model.backbone, &text(model.backbone.spec(), &prompt, &TextParams { fidelity, ..params }, 0))
        };
        let runs = FIDELITIES.map(run);
        differ += usize::from(runs[0].tokens() != runs[1].tokens());
        differ += usize::from(runs[1].tokens() != runs[2].tokens());
        for (rows, run) in rows.iter_mut().zip(&runs) {
            *rows += run.positions_evaluated();
        }
    }
    assert!(differ > 6, "{differ} of 24 pairs");
    assert!(rows[2] * 2 < rows[0] && rows[2] < rows[1] && rows[1] < rows[0], "{rows:?}");
}

/// With all positions in it the approximation is none, and the further it reaches, the more rows it takes.
#[test]
fn a_vicinity_goes_from_the_approximation_to_the_exact_text() {
    let model = golden::model("llada");
    for case in 0..12 {
        let prompt = words(&mut Stream::new(0x71C, case), 20);
        let run = |fidelity, vicinity| {
            let params = TextParams { max_tokens: 24, steps: 24, block_length: 8, stop_at_eos: false, ..quiet() };
            let params = TextParams { fidelity, vicinity, ..params };
            alone(&*model.backbone, &text(model.backbone.spec(), &prompt, &params, 0))
        };
        let exact = run(Fidelity::Exact, 0);
        for fidelity in [Fidelity::Prefix, Fidelity::Dual] {
            let runs = [0, 3, 8, 44, usize::MAX].map(|vicinity| run(fidelity, vicinity));
            let rows = runs.each_ref().map(Canvas::positions_evaluated);
            assert!(rows.is_sorted() && rows[0] < rows[1], "{fidelity:?}: {rows:?}");
            assert_eq!(result(&runs[3]), result(&exact), "case {case}: {fidelity:?}");
            assert_eq!(result(&runs[4]), result(&exact), "case {case}: {fidelity:?}");
        }
    }
}

/// What a canvas says that its next step takes is what the batch has, and no step takes more than it may.
#[test]
fn rows_are_announced_as_they_are_evaluated() {
    for (name, make) in [("llada", approximate as fn(&ModelSpec, &mut Stream) -> Canvas), ("sdar", by_blocks)] {
        let model = golden::model(name);
        for case in 0..40 {
            let mut s = Stream::new(0x407, case);
            let mut canvas = make(model.backbone.spec(), &mut s);
            let limit = [0, 1 << 30][s.below(2)];
            let mut denoiser = Denoiser::new(Caches::new(limit));
            denoiser.savings.memoise_unconditional = false;
            while canvas.finish().is_none() {
                let (announced, before) = (canvas.rows(), canvas.positions_evaluated());
                assert!(announced <= canvas.most_rows());
                let tick = denoiser.step(&*model.backbone, &mut [&mut canvas]).unwrap();
                assert_eq!(tick.batch.rows(), announced, "{name} {case}");
                assert_eq!(canvas.positions_evaluated() - before, announced as u64);
            }
        }
    }
}

#[test]
fn identical_canvases_share_what_is_kept() {
    let model = golden::model("llada");
    let params = TextParams { max_tokens: 16, steps: 16, block_length: 8, fidelity: Fidelity::Dual, ..quiet() };
    let start: Vec<Canvas> = (0..4).map(|_| text(model.backbone.spec(), &[97; 9], &params, 0)).collect();
    let expected = result(&alone(&*model.backbone, &start[0]));
    let mut denoiser = Denoiser::default();
    let mut canvases = start;
    let step = |canvases: &mut [Canvas], denoiser: &mut Denoiser| {
        let mut batch: Vec<&mut Canvas> = canvases.iter_mut().collect();
        denoiser.step(&*model.backbone, &mut batch).unwrap().batch.rows()
    };
    assert_eq!(step(&mut canvases, &mut denoiser), 25);
    // Two layers of keys and values of 64 numbers for each of 25 positions.
    assert_eq!(denoiser.caches.bytes(), 25 * 2 * 2 * 64 * 4);
    assert_eq!(step(&mut canvases, &mut denoiser), 4 * 8);
    while canvases.iter().any(|canvas| canvas.finish().is_none()) {
        step(&mut canvases, &mut denoiser);
    }
    assert!(canvases.iter().all(|canvas| result(canvas) == expected));
    // Nobody needs it any more.
    drop(canvases);
    denoiser.step(&*model.backbone, &mut []).unwrap();
    assert_eq!(denoiser.caches.bytes(), 0);
}

#[test]
fn what_a_cache_makes_no_sense_for_is_refused_by_name() {
    let refusal = |name: &str, params: &TextParams, prompt: Slots| {
        let model = golden::model(name);
        let error = Canvas::text(model.backbone.spec(), prompt, None, params, 0).unwrap_err();
        assert_eq!(error.field, "fidelity");
        error.to_string()
    };
    for fidelity in [Fidelity::Prefix, Fidelity::Dual] {
        let params = TextParams { fidelity, ..quiet() };
        assert!(refusal("dream", &params, given(&[97])).contains("left neighbour"));
        let blocks = TextParams { block_length: 4, steps: 4, sampler: TextSampler::Sequential, ..params.clone() };
        assert!(refusal("sdar", &blocks, given(&[97])).contains("without any loss"));
        assert!(refusal("llada", &params, vec![Some(97), None, Some(98)]).contains("masked positions"));
        let guided = TextParams { guidance_scale: 1.0, ..params.clone() };
        assert!(refusal("llada", &guided, given(&[97])).contains("second sequence"));
        let model = golden::model("llada");
        let template = Canvas::template(model.backbone.spec(), vec![Some(97), None], &params, 0).unwrap_err();
        assert_eq!(template.field, "fidelity");
        assert!(Canvas::text(model.backbone.spec(), given(&[97]), None, &params, 0).is_ok());
    }
    let exact = TextParams { vicinity: 8, ..quiet() };
    let error = Canvas::text(golden::model("llada").backbone.spec(), given(&[97]), None, &exact, 0).unwrap_err();
    assert_eq!(error.field, "vicinity");
    assert!(error.to_string().contains("8 says how far an approximation computes anew"), "{error}");
}
