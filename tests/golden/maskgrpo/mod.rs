//! The official MaskGRPO, d1, DiffuCoder, ELBO-KTO and ESPO code's outputs on tiny random inputs (torch 2.3.1, CPU,
//! f32): masks, log-probabilities, losses, gradients and advantages. Uniform draws are inputs, never drawn again.

use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use lacuna::models::{Backbone, ModelError, ModelSpec, Packed};
use lacuna::rl::logprob::{Drawn, Sample};
use lacuna::rl::masks::Role;
use serde_json::Value;

mod estimates;
mod linear;
mod losses;
mod pure;

fn golden(file: &str) -> Value {
    super::json("maskgrpo", file)
}

fn cases(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    cases(value).iter().map(of).collect()
}

/// `null` is not a number.
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

fn size(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value, number)
}

fn ids(value: &Value) -> Vec<u32> {
    list(value, |id| id.as_u64().unwrap() as u32)
}

fn bools(value: &Value) -> Vec<bool> {
    list(value, |bit| bit.as_u64() == Some(1))
}

/// Every number of nested arrays, in order.
fn flat(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(items) => items.iter().flat_map(flat).collect(),
        None => vec![number(value)],
    }
}

/// |a − b| within `absolute` + `relative` · |b|, element by element; not-a-number equals itself.
fn close(name: &str, got: &[f64], expected: &[f64], absolute: f64, relative: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let fine =
            (got.is_nan() && expected.is_nan()) || (got - expected).abs() <= absolute + relative * expected.abs();
        assert!(fine, "{name}, element {i}: {got}, expected {expected}");
    }
}

fn spec(vocab: usize, mask_id: u32) -> ModelSpec {
    ModelSpec {
        name: "stub".into(),
        vocab_size: vocab,
        text_ids: 0..vocab as u32,
        image: None,
        mask_id,
        eos_ids: vec![],
        banned_ids: vec![],
        max_positions: 4096,
        block: None,
        shifted: false,
        d_model: vocab,
        n_layers: 0,
        parameters: 0,
        sha256: String::new(),
    }
}

/// All positions scored, in a frame given by where the completion lies in `row`.
fn sample(row: &[u32], completion: Range<usize>, vocab: Range<u32>) -> Sample {
    Sample {
        id: 0,
        prefix: row[..completion.start].to_vec(),
        suffix: row[completion.end..].to_vec(),
        roles: vec![Role::Scored; completion.len()],
        completion: row[completion].to_vec(),
        vocab,
        commit_steps: Vec::new(),
        logprobs: Vec::new(),
        drawn: Drawn::default(),
    }
}

/// Which block of logits belongs to a sequence, by its number in the batch and its ids.
type Find = Box<dyn Fn(usize, &[u32]) -> usize + Send + Sync>;

/// A "model" that looks the logits of whole sequences up.
struct Stub {
    spec: ModelSpec,
    /// `(blocks · positions, vocab)`, a variable: gradients of logits can be compared.
    logits: Var,
    positions: usize,
    find: Find,
}

impl Stub {
    /// `blocks` is `[blocks][positions][vocab]`.
    fn new(blocks: &[&Value], mask_id: u32, find: Find) -> Self {
        let positions = cases(blocks[0]).len();
        let vocab = cases(&blocks[0][0]).len();
        let values: Vec<f32> = blocks.iter().flat_map(|block| flat(block)).map(|x| x as f32).collect();
        let logits = Var::from_vec(values, (blocks.len() * positions, vocab), &Device::Cpu).unwrap();
        Self { spec: spec(vocab, mask_id), logits, positions, find }
    }

    /// Of a `table` of `{ids, logits}`; a sequence that is not in it was built wrongly.
    fn table(table: &Value, mask_id: u32) -> Self {
        let rows = list(table, |entry| ids(&entry["ids"]));
        let blocks: Vec<&Value> = cases(table).iter().map(|entry| &entry["logits"]).collect();
        let find = move |_, ids: &[u32]| {
            rows.iter().position(|row| row == ids).unwrap_or_else(|| panic!("{ids:?} is no input of the official code"))
        };
        Self::new(&blocks, mask_id, Box::new(find))
    }
}

impl Backbone for Stub {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        let mut rows = Vec::new();
        for (i, span) in packed.spans.iter().enumerate() {
            let range = span.start..span.start + span.len;
            let block = (self.find)(i, &packed.ids[range.clone()]) * self.positions;
            let needed = packed.needed.iter().map(|&row| row as usize).filter(|row| range.contains(row));
            rows.extend(needed.map(|row| (block + row - span.start) as u32));
        }
        Ok(self.logits.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        Ok(hidden.narrow(1, vocab.start as usize, vocab.len())?)
    }
}
