//! Masks, schedules and advantages.

use lacuna::diffusion::params::Schedule;
use lacuna::diffusion::schedule::{emerge_probability, masked_after, quota};
use lacuna::rl::advantage::{Baseline, Dropped, group};
use lacuna::rl::logprob::View;
use lacuna::rl::masks::{Mask, MaskMode, Role, bernoulli, coupled, draw, fade_out, keep_probability, ratio};

use super::{bools, cases, close, golden, ids, list, number, numbers, sample, size};

#[test]
fn remasked_inputs_are_the_official_ones() {
    let mut compared = 0;
    for case in cases(&golden("remask.json")["cases"]) {
        let (prompt, length, r) = (size(&case["prompt_len"]), size(&case["length"]), number(&case["ratio"]));
        let fading = case["function"] == "remask_ar";
        if fading {
            close("keep", &keep_probability(length, r), &numbers(&case["keep_probability"]), 1e-6, 0.0);
        }
        for (b, row) in list(&case["ids"], ids).iter().enumerate() {
            let uniforms = numbers(&case["uniforms"][b]);
            let expected = bools(&case["masked"][b]);
            assert!(!expected[..prompt].contains(&true), "the official code never masks the prompt");
            let pure = match fading {
                true => fade_out(&keep_probability(length, r), &uniforms[prompt..]),
                false => bernoulli(r, &uniforms[prompt..]),
            };
            assert_eq!(pure, expected[prompt..], "{}", case["name"]);
            let mode = if fading { MaskMode::ArLike } else { MaskMode::Random };
            let masked = draw(mode, r, &vec![Role::Scored; length], |k| uniforms[prompt + k as usize]);
            if pure.contains(&true) {
                assert_eq!(masked, pure);
                let sample = sample(row, prompt..prompt + length, 0..100);
                let input = View { sample: &sample, mask: &Mask::new(masked) }.input(99);
                assert_eq!(input, ids(&case["noisy"][b]), "{}", case["name"]);
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn draws_on_the_threshold_fall_as_officially() {
    for case in cases(&golden("remask_edge_quirk.json")["cases"]) {
        let (prompt, length, r) = (size(&case["prompt_len"]), size(&case["length"]), number(&case["ratio"]));
        for b in 0..cases(&case["uniforms"]).len() {
            let (uniforms, expected) = (numbers(&case["uniforms"][b]), bools(&case["masked"][b]));
            let masked = match case["keep_probability"].is_null() {
                true => bernoulli(r, &uniforms[prompt..]),
                false => fade_out(&numbers(&case["keep_probability"]), &uniforms[prompt..]),
            };
            assert_eq!(masked, expected[prompt..], "{}", case["name"]);
        }
        // The only position of a completion is always masked here; officially it is kept with 1 − r, and with it alone
        // visible the loss is 0/0.
        if !case["keep_probability"].is_null() && length > 1 {
            close("keep", &keep_probability(length, r), &numbers(&case["keep_probability"]), 1e-6, 0.0);
        }
    }
}

#[test]
fn ratios_follow_the_official_schedule() {
    for case in cases(&golden("ratio_schedule.json")["cases"]) {
        let inner = size(&case["num_iterations"]) as u32;
        let ratios: Vec<f64> = (0..inner).map(|j| ratio(number(&case["min_mask_rate"]), inner, j)).collect();
        close("ratios", &ratios, &numbers(&case["ratios"]), 1e-6, 0.0);
    }
}

#[test]
fn diffu_grpo_inputs_are_d1s() {
    for case in cases(&golden("d1_forward_process.json")["cases"]) {
        let (prompt, length, p) = (size(&case["prompt_len"]), size(&case["length"]), number(&case["p_mask_prompt"]));
        for (b, row) in list(&case["ids"], ids).iter().enumerate() {
            let prefix = bernoulli(p, &numbers(&case["uniforms"][b])[..prompt]);
            let sample = sample(row, prompt..prompt + length, 0..100);
            let completion = draw(MaskMode::Full, 1.0, &sample.roles, |_| 0.0);
            let input = View { sample: &sample, mask: &Mask { prefix, ..Mask::new(completion) } }.input(99);
            assert_eq!(input, ids(&case["noisy"][b]));
        }
    }
}

#[test]
fn coupled_inputs_are_diffucoders() {
    for case in cases(&golden("coupled_grpo.json")["forward_process"]) {
        let (prompt, t) = (size(&case["prompt_len"]), number(&case["drawn_ratio"]));
        close("weights", &[1.0, 1.0 / t, 1.0 / (1.0 - t)], &numbers(&case["weights"]), 1e-6, 1e-6);
        for (b, row) in list(&case["ids"], ids).iter().enumerate() {
            let uniforms = numbers(&case["uniforms"][b]);
            let sample = sample(row, prompt..row.len(), 0..100);
            let masks = coupled(t, &sample.roles, |k| uniforms[prompt + k as usize]);
            assert_eq!(masks[0], bools(&case["mask"][b])[prompt..]);
            for (mask, name) in masks.into_iter().zip(["masked", "complement"]) {
                let input = View { sample: &sample, mask: &Mask::new(mask) }.input(99);
                assert_eq!(input, ids(&case[name][b]), "{name}");
            }
        }
    }
}

#[test]
fn advantages_are_the_official_ones() {
    let golden = golden("advantages.json");
    let kinds = [
        (Baseline::Standard, "maskgrpo"),
        (Baseline::MeanOnly, "d1_mean_only"),
        (Baseline::LeaveOneOut, "coupled_leave_one_out"),
    ];
    for case in cases(&golden["cases"]) {
        let groups = size(&case["group_size"]);
        let rewards = numbers(&case["rewards"]);
        let still = bools(&case["zero_variance"]);
        for (baseline, name) in kinds {
            let expected = numbers(&case[name]);
            let got: Vec<_> = rewards.chunks(groups).flat_map(|rewards| group(rewards, baseline)).collect();
            for (i, got) in got.into_iter().enumerate() {
                match got {
                    // Officially unbounded.
                    Ok(got) => close(name, &[got], &[expected[i].clamp(-5.0, 5.0)], 1e-5, 1e-5),
                    Err(Dropped::NoVariance) => assert!(still[i] && expected[i] == 0.0),
                    // Officially not a number (or a meaningless 0).
                    Err(dropped) => assert!(dropped == Dropped::Alone && groups == 1),
                }
            }
        }
    }
    for case in cases(&golden["several_rewards"]) {
        let total = numbers(&case["total"]);
        let got = total.chunks(size(&case["group_size"])).flat_map(|rewards| group(rewards, Baseline::Standard));
        let got: Vec<f64> = got.map(|a| a.unwrap_or(0.0)).collect();
        close("several rewards", &got, &numbers(&case["maskgrpo"]), 1e-5, 1e-5);
    }
}

#[test]
fn schedules_of_the_samplers_are_the_official_ones() {
    let golden_schedules = golden("schedules.json");
    let cosine: Vec<f64> =
        numbers(&golden_schedules["t"]).into_iter().map(|t| Schedule::Cosine.masked_share(t)).collect();
    close("cosine", &cosine, &numbers(&golden_schedules["cosine"]), 1e-6, 0.0);
    for case in cases(&golden_schedules["keep_masked_ratio"]) {
        let steps = size(&case["steps"]);
        let keep: Vec<f64> = (0..steps - 1).map(|s| 1.0 - emerge_probability(Schedule::Cosine, s, steps)).collect();
        close("emerge", &keep, &numbers(&case["ratio"]), 1e-6, 0.0);
    }
    for case in cases(&golden_schedules["maskgit_mask_len"]).iter().filter(|case| case["schedule"] == "cosine") {
        let (tokens, steps) = (size(&case["tokens"]), size(&case["steps"]));
        // All but the last, which decodes everything; with one more masked than there are the upper clamp is out of reach.
        for (step, expected) in numbers(&case["mask_len"]).into_iter().enumerate().take(steps - 1) {
            assert_eq!(masked_after(Schedule::Cosine, tokens, tokens + 1, step, steps) as f64, expected.max(1.0));
        }
    }
    for case in cases(&golden("transfer_counts.json")["cases"]) {
        let steps = size(&case["steps"]);
        for (masked, counts) in numbers(&case["masked"]).into_iter().zip(cases(&case["counts"])) {
            let got: Vec<f64> = (0..steps).map(|i| quota(masked as usize, steps, i) as f64).collect();
            assert_eq!(got, numbers(counts));
        }
    }
}
