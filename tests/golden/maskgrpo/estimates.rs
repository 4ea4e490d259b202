//! Log-probabilities and bounds of masked inputs, and gradients back to the logits.

use std::collections::BTreeSet;

use lacuna::rl::elbo;
use lacuna::rl::estimator::{Step, coupled_masks};
use lacuna::rl::logprob::{Sample, View, logprob_estimate, logprobs};
use lacuna::rl::masks::{Mask, MaskMode, draw, ratio, smallest};
use lacuna::rl::preference::{Judged, KtoConfig, kto_loss, reference_point};
use serde_json::Value;

use super::{Stub, bools, cases, close, flat, golden, ids, list, number, numbers, sample, size};

/// Compares masked inputs and log-probabilities of every mask; `shipped` keep curves are not drawn again.
fn assert_logps(case: &Value, samples: &[Sample], first: usize, mode: MaskMode) {
    let mask_id = size(&case["mask_id"]) as u32;
    let model = Stub::table(&case["table"], mask_id);
    let inner = cases(&case["mask"]).len();
    let mut masks: Vec<Vec<Mask>> = vec![Vec::new(); samples.len()];
    for j in 0..inner {
        for (b, sample) in samples.iter().enumerate() {
            let mask = Mask::new(bools(&case["mask"][j][b]));
            let uniforms = numbers(&case["uniforms"][j][b]);
            let r = ratio(number(&case["min_mask_rate"]), inner as u32, j as u32);
            let own = draw(mode, r, &sample.roles, |k| uniforms[first + k as usize]);
            assert!(own == mask.completion || case["curve"] == "shipped", "{} {j} {b}", case["name"]);
            let view = View { sample, mask: &mask };
            assert_eq!(view.input(mask_id), ids(&case["masked_inputs"][j][b]));
            let expected: Vec<f64> = mask.positions().map(|k| number(&case["logps"][j][b][k])).collect();
            let alone = logprobs(&model, None, &[view], 1).unwrap();
            let alone: Vec<f64> = alone[0].iter().map(|lp| f64::from(*lp)).collect();
            close("alone", &alone, &expected, 1e-5, 1e-5);
            masks[b].push(mask);
        }
    }
    // All masks in one batch.
    let step = Step::new(samples, masks);
    let together = logprob_estimate(&model, None, &step.views()).unwrap().split().unwrap();
    for (view, got) in step.views().iter().zip(&together) {
        let alone = logprobs(&model, None, &[*view], 1).unwrap();
        assert_eq!(&alone[0], got);
    }
}

#[test]
fn log_probabilities_of_texts_are_the_official_ones() {
    for case in cases(&golden("logps_text.json")["cases"]) {
        let (prompt, length, vocab) = (size(&case["prompt_len"]), size(&case["length"]), size(&case["vocab"]) as u32);
        let rows = list(&case["ids"], ids);
        let samples: Vec<Sample> = rows.iter().map(|row| sample(row, prompt..prompt + length, 0..vocab)).collect();
        let mode = if case["remask"] == "arlike" { MaskMode::ArLike } else { MaskMode::Random };
        assert_logps(case, &samples, prompt, mode);
    }
}

#[test]
fn log_probabilities_of_images_are_the_official_ones() {
    for case in cases(&golden("logps_image.json")["cases"]) {
        let (first, length) = (size(&case["text_len"]) + 1, size(&case["length"]));
        let shift = size(&case["shift"]) as u32;
        let codes = shift..shift + size(&case["codebook_size"]) as u32;
        let rows = list(&case["ids"], ids);
        let samples: Vec<Sample> = rows.iter().map(|row| sample(row, first..first + length, codes.clone())).collect();
        assert_logps(case, &samples, first, MaskMode::Random);
    }
}

#[test]
fn coupled_estimates_and_gradients_are_diffucoders() {
    for case in cases(&golden("coupled_grpo.json")["cases"]) {
        let (rows, batch) = (list(&case["index"], ids), size(&case["batch"]));
        let weights = numbers(&case["weights"]);
        let vocab = size(&case["vocab"]) as u32;
        let samples: Vec<Sample> = rows.iter().map(|row| sample(row, 0..row.len(), 0..vocab)).collect();
        let (mut masks, mut order) = (Vec::new(), Vec::new());
        for i in 0..samples.len() {
            let (iteration, b) = (i / batch, i % batch);
            let mask = bools(&case["mask"][i]);
            let complement = mask.iter().map(|m| !m).collect();
            let w: [f64; 3] = weights[3 * iteration..3 * iteration + 3].try_into().unwrap();
            let inputs = coupled_masks(mask, complement, w);
            // Inputs that mask nothing are not evaluated.
            let evaluated = (0..3).filter(|&pass| inputs[pass].count() > 0);
            order.extend(evaluated.map(|pass| (3 * iteration + pass) * batch + b));
            masks.push(inputs);
        }
        let blocks: Vec<&Value> = cases(&case["logits"]).iter().collect();
        let model = Stub::new(&blocks, vocab - 1, Box::new(move |i, _| order[i]));
        let step = Step::new(&samples, masks);
        let estimate = logprob_estimate(&model, None, &step.views()).unwrap();
        let result = step.gather(&estimate.split().unwrap());
        close("result", &result, &flat(&case["result"]), 1e-5, 1e-5);
        let gradient = step.scatter(&flat(&case["cotangent"]));
        let gradients = estimate.objective(0.0, &gradient).unwrap().backward().unwrap();
        let got = gradients.get(&model.logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got: Vec<f64> = got.into_iter().map(f64::from).collect();
        close("grad_logits", &got, &flat(&case["grad_logits"]), 2e-6, 1e-5);
    }
}

#[test]
fn coupled_bounds_are_espos() {
    for case in cases(&golden("espo.json")["coupled_elbo"]) {
        let (prompt, length, vocab) = (size(&case["prompt_len"]), size(&case["length"]), size(&case["vocab"]) as u32);
        let rows = list(&case["ids"], ids);
        let samples: Vec<Sample> = rows.iter().map(|row| sample(row, prompt..prompt + length, 0..vocab)).collect();
        let all = length as f64 / (length as f64 + 1.0);
        let mut masks = Vec::new();
        for b in 0..samples.len() {
            let mask = bools(&case["mask"][b]);
            let p = mask.iter().filter(|m| **m).count() as f64 / (length as f64 + 1.0);
            close("p_mask", &[p], &[number(&case["p_mask"][b])], 1e-6, 0.0);
            let complement: Vec<bool> = mask.iter().map(|m| !m).collect();
            let inputs = [(mask, 0.5 / p), (complement, 0.5 / (all - p))];
            let inputs = inputs.into_iter().map(|(mask, weight)| Mask { weight, ..Mask::new(mask) });
            masks.push(inputs.filter(|mask| mask.count() > 0).collect());
        }
        let step = Step::new(&samples, masks);
        let model = Stub::table(&case["table"], size(&case["mask_id"]) as u32);
        let values = step.gather(&logprobs(&model, None, &step.views(), 99).unwrap());
        close("elbo", &elbo::sums(&values, step.segments()), &numbers(&case["elbo"]), 1e-5, 1e-5);
    }
}

#[test]
fn kto_losses_and_gradients_are_the_official_ones() {
    let mut modes = BTreeSet::new();
    for case in cases(&golden("elbo_kto.json")["cases"]) {
        let (prompt, draws, vocab) = (size(&case["prompt_len"]), size(&case["draws"]), size(&case["vocab"]) as u32);
        let rows = list(&case["ids"], ids);
        let lengths = list(&case["completion_len"], size);
        let samples: Vec<Sample> =
            rows.iter().zip(&lengths).map(|(row, len)| sample(row, prompt..prompt + len, 0..vocab)).collect();
        let (batch, mut order, mut masks) = (samples.len(), Vec::new(), Vec::new());
        for (b, &len) in lengths.iter().enumerate() {
            let mut inputs = Vec::new();
            for draw in (0..draws).filter(|_| len > 0) {
                let mask = smallest(size(&case["l_values"][b][draw]), &numbers(&case["uniforms"][draw][b]));
                assert_eq!(mask, bools(&case["mask"][draw][b])[prompt..prompt + len]);
                let mask = Mask::new(mask);
                let weight = len as f64 / (mask.count() * draws) as f64;
                inputs.push(Mask { weight, ..mask });
                order.push(draw * batch + b);
            }
            masks.push(inputs);
        }
        let blocks: Vec<&Value> = cases(&case["logits"]).iter().flat_map(cases).collect();
        let model = Stub::new(&blocks, size(&case["mask_id"]) as u32, Box::new(move |i, _| order[i]));
        let step = Step::new(&samples, masks);
        let estimate = logprob_estimate(&model, None, &step.views()).unwrap();
        let bounds = elbo::sums(&step.gather(&estimate.split().unwrap()), step.segments());
        close("b_theta", &bounds, &numbers(&case["b_theta"]), 1e-5, 1e-5);
        let verdicts = bounds.iter().zip(numbers(&case["b_ref"])).zip(bools(&case["labels"]));
        let judged: Vec<Judged> =
            verdicts.map(|((&bound, reference), good)| Judged { bound, reference, good, weight: 1.0 }).collect();
        let mean = case["z0_mode"] == "global_mean";
        modes.insert(mean);
        let point = if mean { reference_point(&judged) } else { 0.0 };
        close("z0", &[point], &[number(&case["z0"])], 1e-5, 1e-5);
        let [beta, desired, undesired] = ["beta", "lambda_desired", "lambda_undesired"].map(|name| number(&case[name]));
        let loss = kto_loss(&judged, point, &KtoConfig { beta, desired, undesired }, None).unwrap();
        close("loss", &[loss.value], &[number(&case["loss"])], 1e-5, 1e-5);
        close("grad_r_hat", &loss.gradient, &numbers(&case["grad_r_hat"]), 2e-6, 1e-5);
        let gradient = step.scatter(&elbo::spread(&loss.gradient, step.segments()));
        let gradients = estimate.objective(loss.value, &gradient).unwrap().backward().unwrap();
        let got = gradients.get(&model.logits).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got: Vec<f64> = got.into_iter().map(f64::from).collect();
        close("grad_logits", &got, &flat(&case["grad_logits"]), 2e-6, 1e-5);
    }
    assert_eq!(modes.len(), 2);
}
