//! Runs with noise: the official draws are given, and what follows from them must be what the official code made of them.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use lacuna::diffusion::guidance::combine;
use lacuna::diffusion::params::Schedule;
use lacuna::diffusion::schedule::{compat_noise, dream_quota, dream_share, masked_after};
use lacuna::models::{Backbone, Model};
use serde_json::Value;

use super::logits::logits;
use super::{folder, ids, json, model};

fn noise(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder(name).join("noise.safetensors"), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The likeliest id of each position, the mask apart.
fn best(model: &dyn Backbone, sequence: &[u32]) -> Vec<u32> {
    let mask = model.spec().mask_id as usize;
    let best = |row: &Vec<f32>| {
        (0..row.len()).filter(|&id| id != mask).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
    };
    logits(model, &[sequence.to_vec()])[0].iter().map(best).collect()
}

/// Dream: how many positions or which ones commit at each step, and at temperature 0 their tokens.
#[test]
fn dream_commits_what_the_draws_say() {
    let model = model("dream");
    let golden = json("dream", "golden.json");
    let noise = noise("dream");
    let mask = model.backbone.spec().mask_id;
    let cases = golden["generate_replay"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let steps = case["params"]["steps"].as_u64().unwrap() as usize;
        let mut x = ids(&case["prompt"][0]);
        x.resize(x.len() + case["max_new_tokens"].as_u64().unwrap() as usize, mask);
        for (i, after) in case["history"].as_array().unwrap().iter().enumerate() {
            let after = ids(&after[0]);
            let masked: Vec<usize> = (0..x.len()).filter(|&p| x[p] == mask).collect();
            let left: Vec<usize> = masked.iter().copied().filter(|&p| after[p] != mask).collect();
            if case["params"]["alg"] == "origin" {
                let u = noise.get(&format!("{name}.u.{i}")).map(numbers);
                assert!(u.is_some() || masked.is_empty() || i + 1 == steps, "{name}, step {i}");
                let u = u.unwrap_or_else(|| vec![0.0; masked.len()]);
                let drawn = masked.iter().zip(&u).filter(|&(_, &u)| u < dream_share(steps, 1e-3, i));
                assert_eq!(drawn.map(|(&p, _)| p).collect::<Vec<_>>(), left, "{name}, step {i}");
            } else {
                assert_eq!(left.len(), dream_quota(masked.len(), steps, 1e-3, i), "{name}, step {i}");
            }
            if case["params"]["temperature"] == 0.0 {
                let best = best(&*model.backbone, &x);
                assert!(left.iter().all(|&p| best[p] == after[p]), "{name}, step {i}");
            }
            x = after;
        }
        assert_eq!(x, ids(&case["output"][0]), "{name}");
    }
}

/// The codes that MMaDA's rules make of the codes and the uniform numbers that were drawn for image `row`.
fn image(model: &Model, case: &Value, row: usize, noise: &HashMap<String, Tensor>) -> Vec<u32> {
    const CELLS: usize = 16;
    let spec = model.backbone.spec();
    let golden = json("mmada", "golden.json");
    let mut text = model.tokenizer.encode(golden["prompt"]["texts"][row].as_str().unwrap()).unwrap();
    text.truncate(14);
    let frames = [model.layout.image_frame(&text), model.layout.image_frame(&[])];
    let steps = case["params"]["timesteps"].as_u64().unwrap() as usize;
    let w = case["params"]["guidance_scale"].as_f64().unwrap() as f32;
    let mut x = vec![spec.mask_id; CELLS];
    for step in 0..steps {
        let rows = frames.each_ref().map(|(before, after)| {
            let whole = [before, &x, after].into_iter().flatten().copied().collect::<Vec<u32>>();
            let rows = logits(&*model.backbone, &[whole]).remove(0);
            rows[before.len()..before.len() + CELLS].iter().map(|r| r[300..364].to_vec()).collect::<Vec<_>>()
        });
        let drawn = ids(&case["drawn_ids_per_step"][step][row]);
        let u = numbers(&noise[&format!("{}.{step}", case["name"].as_str().unwrap())].get(row).unwrap());
        let scale = compat_noise(case["temperature"].as_f64().unwrap(), step, steps);
        let masked: Vec<usize> = (0..CELLS).filter(|&i| x[i] == spec.mask_id).collect();
        let score = |i: usize| {
            let row = combine(&rows[0][i], &rows[1][i], w);
            let total: f64 = row.iter().map(|l| f64::from(*l).exp()).sum();
            let p = f64::from(row[drawn[i] as usize]).exp() / total;
            let gumbel = -(-f64::from(u[i]).max(1e-20).ln()).max(1e-20).ln();
            p.max(1e-20).ln() + scale * gumbel
        };
        let mut order: Vec<(f64, usize)> = masked.iter().map(|&i| (score(i), i)).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let kept = masked_after(Schedule::Cosine, CELLS, masked.len(), step, steps);
        order[..masked.len() - kept].iter().for_each(|&(_, i)| x[i] = 300 + drawn[i]);
    }
    x.iter().map(|id| id - 300).collect()
}

#[test]
fn mmada_commits_what_the_draws_say() {
    let model = model("mmada");
    let golden = json("mmada", "golden.json");
    let cases = golden["t2i_replay"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        for row in 0..2 {
            let codes = image(&model, case, row, &noise("mmada"));
            assert_eq!(codes, ids(&case["codes"][row]), "{}, row {row}", case["name"]);
        }
    }
}
