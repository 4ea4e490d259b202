//! The samplers again, written as naively as the papers' pseudocode, one sequence at a time and from first principles:
//! the same tokens at the same steps.

use lacuna::diffusion::denoise::complete;
use lacuna::diffusion::params::{ImageParams, ImageSampler, Schedule, TextParams, TextSampler};
use lacuna::diffusion::rng::{Purpose, Stream, gumbel, uniform};
use lacuna::diffusion::{Canvas, Denoiser};
use lacuna::models::{Backbone, Packed};

use super::exactness::{image_params, quiet, words};
use super::fake::{CODES, EOS, Hash, MASK, TEXT, Tensors};

/// Logits of every position of a sequence, with guidance.
fn logits(model: &dyn Backbone, c: &[u32], u: &[u32], w: f64, vocab: std::ops::Range<u32>) -> Vec<Vec<f32>> {
    let all = |ids: &[u32]| {
        let mut packed = Packed::default();
        packed.push(ids, 0..ids.len() as u32);
        let hidden = model.forward(&packed).unwrap();
        model.logits(&hidden, vocab.clone()).unwrap().to_vec2::<f32>().unwrap()
    };
    let (c, w) = (all(c), w as f32);
    if w == 0.0 {
        return c;
    }
    let mix = |(c, u): (Vec<f32>, Vec<f32>)| c.iter().zip(&u).map(|(c, u)| (1.0 + w) * c - w * u).collect();
    c.into_iter().zip(all(u)).map(mix).collect()
}

/// Index drawn from a row at a temperature, and its probability in the whole row.
fn sample(row: &[f32], banned: &[u32], temperature: f64, u: f64) -> (usize, f64) {
    let allowed = |i: usize| !banned.contains(&(i as u32));
    let p = |i: usize, t: f64| (f64::from(row[i]) / t).exp();
    let total = (0..row.len()).map(|i| p(i, 1.0)).sum::<f64>();
    let mut chosen = (0..row.len()).find(|&i| allowed(i)).unwrap();
    if temperature == 0.0 {
        for i in 0..row.len() {
            if allowed(i) && row[i] > row[chosen] {
                chosen = i;
            }
        }
    } else {
        let mut left = u * (0..row.len()).filter(|&i| allowed(i)).map(|i| p(i, temperature)).sum::<f64>();
        for i in (0..row.len()).filter(|&i| allowed(i)) {
            chosen = i;
            left -= p(i, temperature);
            if left < 0.0 {
                break;
            }
        }
    }
    (chosen, p(chosen, 1.0) / total)
}

/// Commits the `n` best of `scored` (confidence, position, id).
fn commit(x: &mut [u32], steps: &mut [i32], mut scored: Vec<(f64, usize, u32)>, n: usize, step: usize) {
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (_, position, id) in scored.into_iter().take(n) {
        x[position] = id;
        steps[position] = step as i32;
    }
}

/// LLaDA's `generate` (reference/models.md §2.1) with the counter-based draws.
fn llada(model: &dyn Backbone, prompt: &[u32], p: &TextParams, seed: u64) -> (Vec<u32>, Vec<i32>) {
    let start = prompt.len();
    let mut x = [prompt, &vec![MASK; p.max_tokens]].concat();
    let mut steps = vec![-1; x.len()];
    let blocks = p.max_tokens / p.block_length;
    let per_block = p.steps / blocks;
    for b in 0..blocks {
        let end = start + (b + 1) * p.block_length;
        for i in 0..per_block {
            let step = b * per_block + i;
            let u: Vec<u32> = (0..x.len()).map(|j| if j < start { MASK } else { x[j] }).collect();
            let rows = logits(model, &x, &u, p.guidance_scale, TEXT);
            let n = p.block_length / per_block + usize::from(i < p.block_length % per_block);
            let masked = (0..end).filter(|&j| x[j] == MASK);
            let scored = masked.map(|j| {
                let draw = uniform(seed, Purpose::Token, step as u32, j as u32);
                let (id, confidence) = sample(&rows[j], &[MASK, 258, 259], p.temperature, draw);
                let random = uniform(seed, Purpose::Select, step as u32, j as u32);
                (if p.sampler == TextSampler::Random { random } else { confidence }, j, id as u32)
            });
            let scored = scored.collect();
            commit(&mut x, &mut steps, scored, n, step);
        }
    }
    (x[start..].to_vec(), steps[start..].to_vec())
}

fn share(schedule: Schedule, r: f64) -> f64 {
    match schedule {
        Schedule::Cosine => (std::f64::consts::FRAC_PI_2 * r).cos(),
        Schedule::Linear => 1.0 - r,
        Schedule::Pow2 => 1.0 - r * r,
        Schedule::Sigmoid => {
            let sigmoid = |x: f64| x.exp() / (1.0 + x.exp());
            (sigmoid(3.0) - sigmoid(-3.0 + 6.0 * r)) / (sigmoid(3.0) - sigmoid(-3.0))
        }
    }
}

/// MaskGIT (§2.4, with and without the cumulative annealing) and emerge (maskgrpo.md §2.2).
fn draw_image(model: &dyn Backbone, frames: [&[u32]; 2], p: &ImageParams, seed: u64) -> (Vec<u32>, Vec<i32>) {
    let cells = p.grid.0 * p.grid.1;
    let first = frames[0].len();
    let known = |i: usize| p.initial_codes.get(i).copied().flatten().map_or(MASK, |c| c + CODES.start);
    let mut x: Vec<u32> = (0..cells).map(known).collect();
    let mut steps = vec![-1; cells];
    let default = if p.sampler != ImageSampler::Emerge && p.temperature > 0.0 { 1.0 } else { p.temperature };
    let heat = p.token_temperature.unwrap_or(default);
    let mut running = p.temperature;
    for step in 0..p.steps {
        running *= 1.0 - (step + 1) as f64 / p.steps as f64;
        let whole = |frame: &[u32]| [frame, &x, &[EOS]].concat();
        let (c, u) = (whole(frames[0]), whole(frames[1]));
        let shift = frames[1].len();
        let at = |ids: &[u32]| logits(model, ids, ids, 0.0, CODES);
        let (c, u) = (at(&c), at(&u));
        let masked: Vec<usize> = (0..cells).filter(|&i| x[i] == MASK).collect();
        let r = (step + 1) as f64 / p.steps as f64;
        let last = step + 1 == p.steps;
        // MMaDA multiplies what it has, MaskGIT what it was given.
        let compat = p.sampler == ImageSampler::MaskgitCompat;
        let heat_of_order = if compat { running } else { p.temperature * (1.0 - r) };
        let w = p.guidance_scale as f32;
        let scored: Vec<(f64, usize, u32)> = masked
            .iter()
            .map(|&i| {
                let row: Vec<f32> = match w {
                    0.0 => c[first + i].clone(),
                    w => c[first + i].iter().zip(&u[shift + i]).map(|(c, u)| (1.0 + w) * c - w * u).collect(),
                };
                let (code, p_code) = sample(&row, &[], heat, uniform(seed, Purpose::Token, step as u32, i as u32));
                let noise = heat_of_order * gumbel(seed, Purpose::Select, step as u32, i as u32);
                (p_code.ln() + noise, i, CODES.start + code as u32)
            })
            .collect();
        let (scored, n) = match p.sampler {
            ImageSampler::Maskgit | ImageSampler::MaskgitCompat => {
                // In f32 as in the reference: 15 cells at 1 − 0.8 leave 2, not 3.
                let r = r as f32;
                let kept = match p.schedule {
                    Schedule::Cosine => (r * std::f32::consts::PI * 0.5).cos(),
                    Schedule::Linear => 1.0 - r,
                    Schedule::Pow2 => 1.0 - r * r,
                    Schedule::Sigmoid => share(p.schedule, f64::from(r)) as f32,
                };
                let floor = (cells as f32 * kept).floor() as usize;
                let keep = if last { 0 } else { floor.min(masked.len().saturating_sub(1)).max(1) };
                (scored, masked.len() - keep.min(masked.len()))
            }
            ImageSampler::Emerge => {
                let stay =
                    if last { 0.0 } else { share(p.schedule, r) / share(p.schedule, step as f64 / p.steps as f64) };
                let leaves = |i: usize| uniform(seed, Purpose::Select, step as u32, i as u32) < 1.0 - stay;
                (scored.into_iter().filter(|s| leaves(s.1)).collect(), cells)
            }
        };
        commit(&mut x, &mut steps, scored, n, step);
    }
    (x.iter().map(|id| id - CODES.start).collect(), steps)
}

fn texts(model: &dyn Backbone, cases: std::ops::Range<u64>) {
    for case in cases {
        let mut s = Stream::new(0x11ADA, case);
        let block_length = [1, 3, 4, 8][s.below(4)];
        let blocks = 1 + s.below(3);
        let params = TextParams {
            max_tokens: block_length * blocks,
            block_length,
            steps: blocks * (1 + s.below(10)),
            temperature: [0.0, 0.8][s.below(2)],
            guidance_scale: [0.0, 1.5][s.below(2)],
            sampler: [TextSampler::LowConfidence, TextSampler::Random][s.below(2)],
            stop_at_eos: false,
            ..quiet()
        };
        let prompt = words(&mut s, 8);
        let slots = prompt.iter().copied().map(Some).collect();
        let mut canvas = Canvas::text(model.spec(), slots, None, &params, case).unwrap();
        complete(model, std::slice::from_mut(&mut canvas), 1000).unwrap();
        let (tokens, steps) = llada(model, &prompt, &params, case);
        assert_eq!((canvas.tokens(), canvas.commit_steps()), (tokens, steps.as_slice()), "{case}: {params:?}");
    }
}

fn images(model: &dyn Backbone, cases: std::ops::Range<u64>) {
    for case in cases {
        let mut s = Stream::new(0x1A6E, case);
        let params = image_params(&mut s);
        let (prompt, empty) = ([vec![259], words(&mut s, 6), vec![258]].concat(), vec![259, 258]);
        let mut canvas =
            Canvas::image(model.spec(), (prompt.clone(), vec![EOS]), (empty.clone(), vec![EOS]), &params, case)
                .unwrap();
        complete(model, std::slice::from_mut(&mut canvas), 1000).unwrap();
        let (codes, steps) = draw_image(model, [&prompt, &empty], &params, case);
        assert_eq!((canvas.tokens(), canvas.commit_steps()), (codes, steps.as_slice()), "{case}: {params:?}");
    }
}

#[test]
fn texts_are_those_of_the_pseudocode() {
    texts(&Hash::new(), 0..200);
    texts(&Tensors::new(), 200..260);
}

#[test]
fn images_are_those_of_the_pseudocode() {
    images(&Hash::new(), 0..200);
    images(&Tensors::new(), 200..260);
}

/// A grid large enough for its counts to be near their expectation.
fn emerge(steps: usize, guidance_scale: f64) -> ImageParams {
    ImageParams {
        steps,
        guidance_scale,
        schedule: Schedule::Cosine,
        temperature: 1.0,
        token_temperature: None,
        sampler: ImageSampler::Emerge,
        grid: (12, 12),
        initial_codes: Vec::new(),
        preview_every: 0,
    }
}

fn emerging(model: &dyn Backbone, params: &ImageParams, negative: Vec<u32>, seed: u64) -> Canvas {
    Canvas::image(model.spec(), (vec![259, 97, 258], vec![EOS]), (negative, vec![EOS]), params, seed).unwrap()
}

#[test]
fn p12_emerge_commits_for_good_leaves_no_mask_and_thins_out_as_the_cosine() {
    const STEPS: usize = 6;
    let (model, params, seeds) = (Hash::new(), emerge(STEPS, 0.0), 120u64);
    let mut masked = [0usize; STEPS];
    for seed in 0..seeds {
        let mut canvas = emerging(&model, &params, vec![259, 258], seed);
        let mut before = canvas.partial();
        while canvas.finish().is_none() {
            let outcomes = Denoiser::default().step(&model, &mut [&mut canvas]).unwrap().outcomes;
            assert!(outcomes.iter().all(Result::is_ok));
            let after = canvas.partial();
            assert!(before.iter().zip(&after).all(|(b, a)| b.is_none() || b == a), "{seed}: a code changed");
            before = after;
        }
        assert!(before.iter().all(Option::is_some), "{seed}: a mask remains");
        for (step, masked) in masked.iter_mut().enumerate() {
            *masked += canvas.commit_steps().iter().filter(|&&at| at > step as i32).count();
        }
    }
    for (step, masked) in masked.into_iter().enumerate() {
        let angle = std::f64::consts::FRAC_PI_2 * (step + 1) as f64 / STEPS as f64;
        let (mean, expected) = (masked as f64 / seeds as f64, 144.0 * angle.cos());
        // Each count is a sum of 144 independent choices: four standard errors of the mean are 4 · 6 / √120.
        assert!((mean - expected).abs() < 2.2, "after step {step}: {mean} masked, {expected:.1} expected");
    }
}

#[test]
fn p12_emerge_in_one_step_is_one_multinomial_draw_and_no_guidance_is_the_conditional() {
    let model = Hash::new();
    for seed in 0..8 {
        let mut canvas = emerging(&model, &emerge(1, 0.0), vec![259, 258], seed);
        complete(&model, std::slice::from_mut(&mut canvas), 1000).unwrap();
        assert!(canvas.commit_steps().iter().all(|&step| step == 0) && canvas.forwards() == 1);
        let input = [&[259, 97, 258][..], &[MASK; 144], &[EOS]].concat();
        let rows = logits(&model, &input, &input, 0.0, CODES);
        let drawn = (0..144).map(|i| sample(&rows[3 + i], &[], 1.0, uniform(seed, Purpose::Token, 0, i as u32)).0);
        assert_eq!(canvas.tokens(), drawn.map(|code| code as u32).collect::<Vec<_>>(), "{seed}");
        // w = 0: what guidance would steer away from has no part, whatever it is.
        let run = |w: f64, negative: Vec<u32>| {
            let mut canvas = emerging(&model, &emerge(5, w), negative, seed);
            complete(&model, std::slice::from_mut(&mut canvas), 1000).unwrap();
            canvas.tokens()
        };
        assert_eq!(run(0.0, vec![259, 258]), run(0.0, vec![259, 98, 99, 258]));
        assert_ne!(run(1.5, vec![259, 258]), run(0.0, vec![259, 258]));
    }
}

#[test]
fn p13_a_block_commits_evenly_and_the_remainder_first() {
    let model = Hash::new();
    let counts = |masked: usize, steps: usize| {
        let params = TextParams { max_tokens: masked, block_length: masked, steps, stop_at_eos: false, ..quiet() };
        let mut canvas = Canvas::text(model.spec(), vec![Some(97), Some(98)], None, &params, 1).unwrap();
        complete(&model, std::slice::from_mut(&mut canvas), 1000).unwrap();
        let at = |step: usize| canvas.commit_steps().iter().filter(|&&s| s == step as i32).count();
        (0..steps).map(at).collect::<Vec<_>>()
    };
    assert_eq!(counts(10, 4), [3, 3, 2, 2]);
    for (masked, steps) in [(1, 1), (7, 3), (8, 12), (16, 5), (31, 8)] {
        let counts = counts(masked, steps);
        assert_eq!(counts.iter().sum::<usize>(), masked);
        assert!(counts.is_sorted_by(|a, b| a >= b) && counts[0] - counts[steps - 1] <= 1, "{counts:?}");
    }
}
