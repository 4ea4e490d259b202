//! Initial weights: a pure function of the shape and the seed.

use std::f64::consts::TAU;

use candle_core::{Device, Tensor};

use crate::diffusion::rng::Stream;
use crate::models::ModelError;
use crate::models::transformer::{EMBEDDING, HEAD, TransformerConfig};
use crate::starter::tokenizer::number_token;
use crate::text::Tokenizer;

/// Standard deviation of embedding and head rows.
const ROW_STD: f64 = 0.02;
/// Periods of the features that number tokens start from: they make 17 + 5 = 22 a rotation, not a table to memorise.
const PERIODS: [f64; 7] = [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0];

/// Every tensor of `config`, by name, in the order of the forward pass.
pub(super) fn weights(
    config: &TransformerConfig,
    tokenizer: &Tokenizer,
    seed: u64,
) -> Result<Vec<(String, Tensor)>, ModelError> {
    let residual = 1.0 / (2.0 * config.n_layers as f64).sqrt();
    let mut out = Vec::new();
    for (index, (name, shape)) in config.tensors().into_iter().enumerate() {
        let mut stream = Stream::new(seed ^ 0x1217, index as u64);
        let count: usize = shape.iter().product();
        let table = name == EMBEDDING || name == HEAD;
        let mut values = match shape.as_slice() {
            [_] => vec![1.0; count],
            _ if table => normal(&mut stream, count, ROW_STD),
            [_, fan_in] => {
                // What is added to the residual stream starts small, by the number of additions.
                let std = 0.5 / (*fan_in as f64).sqrt();
                let added = name.contains("attn_out") || name.contains(".ff_out");
                normal(&mut stream, count, if added { std * residual } else { std })
            }
            _ => return Err(ModelError::Weights(format!("{name}: tensors of rank {} are not made here", shape.len()))),
        };
        if table {
            number_rows(&mut values, config.d_model, tokenizer, seed);
        }
        out.push((name, Tensor::from_vec(values, shape, &Device::Cpu)?));
    }
    Ok(out)
}

/// Gives the rows of 0..=99 cos/sin features of the number through one fixed random projection.
fn number_rows(table: &mut [f32], d: usize, tokenizer: &Tokenizer, seed: u64) {
    let n_features = 2 * PERIODS.len() + 1;
    let projection = normal(&mut Stream::new(seed ^ 0xF0, 0), n_features * d, 1.0);
    for n in 0..100u32 {
        let Some(id) = number_token(tokenizer, n) else { continue };
        let x = f64::from(n);
        let features = PERIODS.iter().flat_map(|p| [(TAU * x / p).cos(), (TAU * x / p).sin()]).chain([x / 50.0 - 1.0]);
        let features: Vec<f64> = features.collect();
        let row = &mut table[id as usize * d..(id as usize + 1) * d];
        let scale = ROW_STD / (PERIODS.len() as f64 + 0.5).sqrt();
        for (j, value) in row.iter_mut().enumerate() {
            let dot: f64 = features.iter().enumerate().map(|(i, f)| f * f64::from(projection[i * d + j])).sum();
            *value = (dot * scale) as f32;
        }
    }
}

/// Box–Muller.
fn normal(stream: &mut Stream, count: usize, std: f64) -> Vec<f32> {
    let mut draw = || (-2.0 * (1.0 - stream.unit()).ln()).sqrt() * (TAU * stream.unit()).cos();
    (0..count).map(|_| (draw() * std) as f32).collect()
}
