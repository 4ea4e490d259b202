//! The bidirectional transformer shared by the model families: RMSNorm, rotary attention, SwiGLU, no causal mask.
//!
//! One struct serves and trains: built on plain tensors it serves, built on tracked variables it is differentiable.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::lora::{Product, Runs};
use super::nn::attention::{AttentionPlan, AttentionSpan, RopeTable, attention};
use super::nn::norm::rms_norm;
use super::nn::swiglu::swiglu;
use super::nn::timing::timed;
use super::nn::{Linear, Precision};
use super::{ModelError, Packed};

pub mod by_layer;

/// Shape of a transformer; field names as in the checkpoints' `config.json` (LLaDA).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TransformerConfig {
    /// Hidden size.
    pub d_model: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads; `d_model / n_heads` is the head width.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Inner width of the feed-forward layer.
    pub mlp_hidden_size: usize,
    /// Rows of the embedding table.
    pub embedding_size: usize,
    /// Longest sequence.
    pub max_sequence_length: usize,
    /// ε of every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// The head is the embedding table.
    pub weight_tying: bool,
}

impl TransformerConfig {
    /// Width of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.d_model / self.n_heads.max(1)
    }

    /// Refuses shapes that cannot work.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> Result<(), ModelError> {
        let refuse = |field, actual: usize, hint: &str| {
            Err(ModelError::Config { field, actual: actual.to_string(), hint: hint.to_owned() })
        };
        if self.n_heads == 0 || !self.d_model.is_multiple_of(self.n_heads) || !self.head_dim().is_multiple_of(2) {
            return refuse("n_heads", self.n_heads, "it must divide d_model into heads of even width");
        }
        if self.n_kv_heads == 0 || !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return refuse("n_kv_heads", self.n_kv_heads, "it must divide n_heads");
        }
        if self.n_layers == 0 || self.embedding_size == 0 || self.mlp_hidden_size == 0 {
            return refuse("n_layers", self.n_layers, "layers, embedding rows and MLP width must be at least 1");
        }
        Ok(())
    }

    /// Name and shape of every tensor, LLaDA's names, in the order of the forward pass.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, ff, kv) = (self.d_model, self.mlp_hidden_size, self.n_kv_heads * self.head_dim());
        let mut out = vec![(EMBEDDING.to_owned(), vec![self.embedding_size, d])];
        for i in 0..self.n_layers {
            out.extend([
                (block(i, "attn_norm"), vec![d]),
                (block(i, "q_proj"), vec![d, d]),
                (block(i, "k_proj"), vec![kv, d]),
                (block(i, "v_proj"), vec![kv, d]),
                (block(i, "attn_out"), vec![d, d]),
                (block(i, "ff_norm"), vec![d]),
                (block(i, "ff_proj"), vec![ff, d]),
                (block(i, "up_proj"), vec![ff, d]),
                (block(i, "ff_out"), vec![d, ff]),
            ]);
        }
        out.push((FINAL_NORM.to_owned(), vec![d]));
        if !self.weight_tying {
            out.push((HEAD.to_owned(), vec![self.embedding_size, d]));
        }
        out
    }
}

/// Name of the embedding table.
pub const EMBEDDING: &str = "model.transformer.wte.weight";
/// Name of the head.
pub const HEAD: &str = "model.transformer.ff_out.weight";
const FINAL_NORM: &str = "model.transformer.ln_f.weight";

fn block(i: usize, part: &str) -> String {
    format!("model.transformer.blocks.{i}.{part}.weight")
}

struct Block {
    attn_norm: Tensor,
    q: Linear,
    /// Keys, then values: one product.
    kv: Linear,
    attn_out: Linear,
    ff_norm: Tensor,
    /// Gate, then up: one product.
    gate_up: Linear,
    ff_out: Linear,
}

/// The transformer. Weights are shared tensors.
pub struct Transformer {
    config: TransformerConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: Tensor,
    head: Tensor,
    precision: Precision,
    rope: Arc<RopeTable>,
}

impl Transformer {
    /// Builds it from named tensors (see [`TransformerConfig::tensors`]).
    ///
    /// # Errors
    /// When a tensor is missing or mis-shaped.
    pub fn new(
        config: TransformerConfig,
        precision: Precision,
        mut tensor: impl FnMut(&str) -> Option<Tensor>,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let mut named = std::collections::HashMap::new();
        for (name, shape) in config.tensors() {
            let found = tensor(&name).ok_or_else(|| ModelError::Weights(format!("tensor {name} is missing")))?;
            if found.dims() != shape {
                let actual = found.dims();
                return Err(ModelError::Weights(format!("tensor {name} has shape {actual:?}, expected {shape:?}")));
            }
            named.insert(name, found);
        }
        let get = |name: &str| {
            named.get(name).cloned().ok_or_else(|| ModelError::Weights(format!("tensor {name} is missing")))
        };
        let linear = |i: usize, parts: &[&str]| -> Result<Linear, ModelError> {
            let weights = parts.iter().map(|part| get(&block(i, part))).collect::<Result<Vec<_>, _>>()?;
            let weight = if weights.len() == 1 { weights[0].clone() } else { Tensor::cat(&weights, 0)? };
            Ok(Linear::new(weight, None, precision))
        };
        let blocks = (0..config.n_layers)
            .map(|i| {
                Ok(Block {
                    attn_norm: get(&block(i, "attn_norm"))?,
                    q: linear(i, &["q_proj"])?,
                    kv: linear(i, &["k_proj", "v_proj"])?,
                    attn_out: linear(i, &["attn_out"])?,
                    ff_norm: get(&block(i, "ff_norm"))?,
                    gate_up: linear(i, &["ff_proj", "up_proj"])?,
                    ff_out: linear(i, &["ff_out"])?,
                })
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        let embedding = get(EMBEDDING)?;
        let head = if config.weight_tying { embedding.clone() } else { get(HEAD)? };
        let rope = Arc::new(RopeTable::new(config.max_sequence_length, config.head_dim(), config.rope_theta));
        Ok(Self { blocks, final_norm: get(FINAL_NORM)?, embedding, head, precision, rope, config })
    }

    /// The same transformer, its tensors shared, with products computed in another way.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Self {
        let blocks = self.blocks.iter().map(|block| Block {
            attn_norm: block.attn_norm.clone(),
            q: block.q.with_precision(precision),
            kv: block.kv.with_precision(precision),
            attn_out: block.attn_out.with_precision(precision),
            ff_norm: block.ff_norm.clone(),
            gate_up: block.gate_up.with_precision(precision),
            ff_out: block.ff_out.with_precision(precision),
        });
        Self {
            blocks: blocks.collect(),
            config: self.config.clone(),
            embedding: self.embedding.clone(),
            final_norm: self.final_norm.clone(),
            head: self.head.clone(),
            precision,
            rope: Arc::clone(&self.rope),
        }
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// The device its weights are on.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Final, normalised hidden states of `packed.needed` `(needed, d_model)`.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device fails.
    pub fn hidden(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        let (mut x, route) = self.enter(packed)?;
        for layer in 0..self.blocks.len() {
            x = self.layer(layer, &x, &route)?;
        }
        Ok(rms_norm(&x, &self.final_norm, self.config.rms_norm_eps)?)
    }

    /// The embeddings of all rows, and where the rows go.
    fn enter(&self, packed: &Packed) -> Result<(Tensor, Route), ModelError> {
        self.check(packed)?;
        let device = self.device();
        let ids = Tensor::from_slice(&packed.ids, packed.rows(), device)?;
        let x = timed(|t| &mut t.elementwise, || self.embedding.index_select(&ids, 0))?;
        let needed = Tensor::from_slice(&packed.needed, packed.needed.len(), device)?;
        Ok((x, Route { full: self.plan(packed, false), pruned: self.plan(packed, true), needed }))
    }

    fn layer(&self, layer: usize, x: &Tensor, route: &Route) -> Result<Tensor, ModelError> {
        // The last layer's keys and values are wanted of every row, everything after them only of the needed.
        let last = layer + 1 == self.blocks.len();
        let rest = if last { &route.pruned } else { &route.full };
        let pass = Pass { layer, all: &route.full.runs, rest, needed: last.then_some(&route.needed) };
        self.blocks[layer].forward(x, &pass, self.config.rms_norm_eps)
    }

    /// Logits in f32 of `hidden` `(n, d_model)` for the ids `vocab`: `(n, vocab.len())`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        let head = self.head.narrow(0, vocab.start as usize, vocab.len())?;
        Ok(Linear::new(head, None, self.precision).forward(hidden)?.to_dtype(DType::F32)?)
    }

    fn plan(&self, packed: &Packed, pruned: bool) -> Plan {
        let (mut positions, mut runs) = (Vec::new(), Runs::default());
        let spans = packed.spans.iter().zip(&packed.adapters).map(|(span, adapter)| {
            let from = positions.len();
            if pruned {
                let (start, end) = (span.start as u32, (span.start + span.len) as u32);
                let first = packed.needed.partition_point(|&row| row < start);
                let last = packed.needed.partition_point(|&row| row < end);
                positions.extend(packed.needed[first..last].iter().map(|row| row - start));
            } else {
                positions.extend(0..span.len as u32);
            }
            runs.push(positions.len() - from, adapter.as_ref());
            AttentionSpan { queries: from..positions.len(), keys: span.start..span.start + span.len }
        });
        let spans = spans.collect();
        let attention = AttentionPlan {
            spans,
            positions,
            n_heads: self.config.n_heads,
            n_kv_heads: self.config.n_kv_heads,
            head_dim: self.config.head_dim(),
            rope: Arc::clone(&self.rope),
        };
        Plan { attention: Arc::new(attention), runs }
    }

    fn check(&self, packed: &Packed) -> Result<(), ModelError> {
        let (rows, limit) = (packed.rows(), self.config.max_sequence_length);
        if let Some(span) = packed.spans.iter().find(|span| span.len > limit || span.len == 0) {
            let len = span.len;
            return Err(ModelError::Input(format!("a sequence of {len} positions; the model takes 1 to {limit}")));
        }
        if let Some(id) = packed.ids.iter().find(|&&id| id as usize >= self.config.embedding_size) {
            let size = self.config.embedding_size;
            return Err(ModelError::Input(format!("token id {id} is outside the vocabulary of {size}")));
        }
        if packed.adapters.len() != packed.spans.len() {
            let (adapters, spans) = (packed.adapters.len(), packed.spans.len());
            return Err(ModelError::Input(format!("{adapters} adapters for {spans} sequences; one each is needed")));
        }
        let ascending = packed.needed.windows(2).all(|w| w[0] < w[1]);
        if !ascending || packed.needed.last().is_none_or(|&last| last as usize >= rows) {
            return Err(ModelError::Input(format!("needed rows must ascend within the {rows} rows and not be empty")));
        }
        Ok(())
    }
}

/// Which rows attend to which, and which are adapted how.
#[derive(Debug)]
struct Plan {
    attention: Arc<AttentionPlan>,
    runs: Runs,
}

/// The rows' way through the layers.
#[derive(Debug)]
struct Route {
    /// All rows: every layer but the last.
    full: Plan,
    /// The needed rows only.
    pruned: Plan,
    /// Which these are.
    needed: Tensor,
}

/// A block's share of a forward pass.
struct Pass<'a> {
    layer: usize,
    /// Adapters of all rows.
    all: &'a Runs,
    /// Attention and adapters of the rows that go on.
    rest: &'a Plan,
    /// The rows that go on; `None` is all.
    needed: Option<&'a Tensor>,
}

impl Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, eps: f64) -> Result<Tensor, ModelError> {
        let runs = &pass.rest.runs;
        let product = |linear: &Linear, runs: &Runs, x: &Tensor, product: Product| -> Result<Tensor, ModelError> {
            let y = linear.forward(x)?;
            Ok(timed(|t| &mut t.matmul, || runs.adapt(y, x, pass.layer, product))?)
        };
        let normed = rms_norm(x, &self.attn_norm, eps)?;
        let kv = product(&self.kv, pass.all, &normed, Product::Kv)?;
        let (x, queries) = match pass.needed {
            Some(needed) => {
                let pick = |x: &Tensor| timed(|t| &mut t.elementwise, || x.index_select(needed, 0));
                (pick(x)?, pick(&normed)?)
            }
            None => (x.clone(), normed),
        };
        let mixed = attention(&product(&self.q, runs, &queries, Product::Q)?, &kv, &pass.rest.attention)?;
        let x = add(&x, &product(&self.attn_out, runs, &mixed, Product::O)?)?;
        let inner = product(&self.gate_up, runs, &rms_norm(&x, &self.ff_norm, eps)?, Product::GateUp)?;
        add(&x, &product(&self.ff_out, runs, &swiglu(&inner)?, Product::Down)?)
    }
}

fn add(a: &Tensor, b: &Tensor) -> Result<Tensor, ModelError> {
    Ok(timed(|t| &mut t.elementwise, || a + b)?)
}

/// The number of values in the tensors of `config`.
#[must_use]
pub fn parameters(config: &TransformerConfig) -> usize {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}
