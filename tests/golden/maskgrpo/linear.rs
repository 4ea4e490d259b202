//! From masks to weights: a linear model through whole inner loops.

use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use lacuna::models::{Backbone, ModelError, ModelSpec, Packed};
use lacuna::rl::estimator::Step;
use lacuna::rl::logprob::{Sample, logprob_estimate, logprobs};
use lacuna::rl::loss::{Clip, Loss, LossConfig, Segment, Terms, maskgrpo_loss};
use lacuna::rl::masks::{Mask, MaskMode, draw, ratio};
use serde_json::Value;

use super::{bools, cases, close, flat, golden, ids, list, number, numbers, sample, size, spec};

/// logits = x W with x = embedding + half the mean embedding of the sequence + position.
struct Linear {
    spec: ModelSpec,
    embedding: Vec<Vec<f64>>,
    position: Vec<Vec<f64>>,
    weights: Var,
}

impl Linear {
    fn new(golden: &Value, weights: &str) -> Self {
        let values: Vec<f32> = flat(&golden[weights]).into_iter().map(|w| w as f32).collect();
        let (dim, vocab) = (size(&golden["dim"]), size(&golden["vocab"]));
        Self {
            spec: spec(vocab, size(&golden["mask_id"]) as u32),
            embedding: list(&golden["embedding"], numbers),
            position: list(&golden["position"], numbers),
            weights: Var::from_vec(values, (dim, vocab), &Device::Cpu).unwrap(),
        }
    }
}

impl Backbone for Linear {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        let dim = self.position[0].len();
        let mut hidden: Vec<f32> = Vec::new();
        for &row in &packed.needed {
            let row = row as usize;
            let span = packed.spans.iter().find(|s| (s.start..s.start + s.len).contains(&row)).unwrap();
            let ids = &packed.ids[span.start..span.start + span.len];
            hidden.extend((0..dim).map(|d| {
                let mean = ids.iter().map(|&id| self.embedding[id as usize][d]).sum::<f64>() / ids.len() as f64;
                let own = self.embedding[packed.ids[row] as usize][d];
                (own + 0.5 * mean + self.position[row - span.start][d]) as f32
            }));
        }
        Ok(Tensor::from_vec(hidden, (packed.needed.len(), dim), &Device::Cpu)?)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        Ok(hidden.matmul(&self.weights.narrow(1, vocab.start as usize, vocab.len())?)?)
    }
}

struct World {
    golden: Value,
    samples: Vec<Sample>,
}

impl World {
    fn new() -> Self {
        let golden = golden("end_to_end_linear.json");
        let (prompt, length) = (size(&golden["prompt_len"]), size(&golden["length"]));
        let vocab = size(&golden["vocab"]) as u32;
        let rows = list(&golden["ids"], ids);
        let samples = rows.iter().map(|row| sample(row, prompt..prompt + length, 0..vocab)).collect();
        Self { golden, samples }
    }

    /// Inner step `j`, its masks from the given draws.
    fn step(&self, j: usize) -> Step<'_> {
        let (prompt, inner) = (size(&self.golden["prompt_len"]), size(&self.golden["num_iterations"]) as u32);
        let r = ratio(number(&self.golden["min_mask_rate"]), inner, j as u32);
        let of = |(b, sample): (usize, &Sample)| {
            let uniforms = numbers(&self.golden["uniforms"][j][b]);
            let mask = draw(MaskMode::ArLike, r, &sample.roles, |k| uniforms[prompt + k as usize]);
            assert_eq!(mask, bools(&self.golden["mask"][j][b]));
            vec![Mask::new(mask)]
        };
        Step::new(&self.samples, self.samples.iter().enumerate().map(of).collect())
    }

    fn fixed(&self, step: &Step<'_>, weights: &str) -> Vec<f64> {
        step.gather(&logprobs(&Linear::new(&self.golden, weights), None, &step.views(), 20).unwrap())
    }

    /// Loss at inner step `j` and its gradient by the weights of `model`.
    fn loss(&self, model: &Linear, j: usize, config: &LossConfig) -> (Loss, Tensor) {
        let step = self.step(j);
        let (old, reference) = (self.fixed(&step, "W_old"), self.fixed(&step, "W_ref"));
        let advantages = numbers(&self.golden["advantages"]);
        let ranges = step.segments().iter().cloned().zip(advantages);
        let segments: Vec<Segment> =
            ranges.map(|(range, advantage)| Segment { range, advantage, weight: 1.0, dropped: false }).collect();
        let estimate = logprob_estimate(model, None, &step.views()).unwrap();
        let new = step.gather(&estimate.split().unwrap());
        let terms = Terms { new: &new, old: &old, reference: Some(&reference), segments: &segments };
        let loss = maskgrpo_loss(&terms, config, None).unwrap();
        let objective = estimate.objective(loss.value, &step.scatter(&loss.gradient)).unwrap();
        let gradient = objective.backward().unwrap().get(&model.weights).unwrap().clone();
        (loss, gradient)
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn config(run: &Value) -> LossConfig {
    let epsilon = number(&run["epsilon"]);
    let clip = if run["mean_method"] == "gmpo" { Clip::OneSided } else { Clip::Ppo };
    LossConfig { clip, eps_low: epsilon, eps_high: epsilon, beta: number(&run["beta"]), ..LossConfig::default() }
}

#[test]
fn gradients_of_weights_are_the_official_ones() {
    let world = World::new();
    let model = Linear::new(&world.golden, "W");
    for (j, name) in (0..3).flat_map(|j| [(j, "W_old"), (j, "W_ref"), (j, "W")]) {
        let step = world.step(j);
        let expected = match name {
            "W_old" => "old_logps",
            "W_ref" => "ref_logps",
            _ => "new_logps",
        };
        let at = step.views();
        let of =
            |b: usize| at[b].mask.positions().map(|k| number(&world.golden[expected][j][b][k])).collect::<Vec<_>>();
        let expected: Vec<f64> = (0..at.len()).flat_map(of).collect();
        close(name, &world.fixed(&step, name), &expected, 1e-5, 1e-5);
    }
    let mut compared = 0;
    for run in cases(&world.golden["runs"]).iter().filter(|run| run["weights"] == "current") {
        let (loss, gradient) = world.loss(&model, size(&run["j"]), &config(run));
        close("loss", &[loss.value], &[number(&run["loss"])], 1e-5, 1e-5);
        if !run["kl"].is_null() {
            close("kl", &[loss.stats.kl()], &[number(&run["kl"])], 1e-5, 1e-5);
        }
        close("grad_W", &values(&gradient), &flat(&run["grad_W"]), 2e-6, 1e-5);
        compared += 1;
    }
    assert_eq!(compared, 12);
}

#[test]
fn an_inner_loop_ends_at_the_official_weights() {
    let world = World::new();
    for run in cases(&world.golden["inner_loop_sgd"]).iter().filter(|run| run["weights"] == "current") {
        let model = Linear::new(&world.golden, run["start"].as_str().unwrap());
        for (j, expected) in numbers(&run["losses"]).into_iter().enumerate() {
            let (loss, gradient) = world.loss(&model, j, &config(run));
            close("losses", &[loss.value], &[expected], 3e-5, 0.0);
            let step = (gradient * number(&run["learning_rate"])).unwrap();
            model.weights.set(&(model.weights.as_tensor() - step).unwrap()).unwrap();
        }
        close("final_W", &values(&model.weights), &flat(&run["final_W"]), 3e-5, 0.0);
    }
}
