//! The transformer shared by the model families: RMSNorm, rotary attention, SwiGLU. What they do differently is in
//! [`Variant`](super::shape::Variant).
//!
//! One struct serves and trains: built on plain tensors it serves, built on tracked variables it is differentiable.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Error, Tensor};

use super::kept::KeptSpans;
use super::lora::{Product, Runs};
use super::names::{Names, Part};
use super::nn::attention::{RopeTable, attention};
use super::nn::norm::rms_norm;
use super::nn::residual;
use super::nn::swiglu::swiglu;
use super::nn::timing::timed;
use super::nn::{Linear, Packing, Precision, Products};
pub use super::shape::{TransformerConfig, parameters};
use super::weights::{WeightSource, misfit};
use super::{ModelError, Packed};

pub mod by_layer;
mod route;

use route::{Plan, Route};

/// Name of the embedding table of the built-in model.
pub const EMBEDDING: &str = Names::Llada.embedding();
/// Name of the head of the built-in model.
pub const HEAD: &str = Names::Llada.head();

struct Block {
    attn_norm: Tensor,
    q: Linear,
    /// Keys, then values: one product.
    kv: Linear,
    qk_norm: Option<QkNorm>,
    attn_out: Linear,
    ff_norm: Tensor,
    /// Gate, then up: one product.
    gate_up: Linear,
    ff_out: Linear,
}

/// Norms of single heads before their rotation (Qwen3).
#[derive(Clone)]
struct QkNorm {
    /// Gains `(head_dim)`.
    q: Tensor,
    k: Tensor,
}

impl QkNorm {
    /// All heads of the queries `(rows, n_heads·head_dim)`.
    fn queries(&self, q: &Tensor, eps: f64) -> Result<Tensor, ModelError> {
        let heads = q.reshape(((), self.q.elem_count()))?;
        Ok(rms_norm(&heads, &self.q, eps)?.reshape(q.shape())?)
    }

    /// The keys among keys, then values `(rows, 2·n_kv_heads·head_dim)`.
    fn keys(&self, kv: &Tensor, eps: f64) -> Result<Tensor, ModelError> {
        let (rows, width) = kv.dims2()?;
        let heads = kv.narrow(1, 0, width / 2)?.reshape(((), self.k.elem_count()))?;
        let keys = rms_norm(&heads, &self.k, eps)?.reshape((rows, width / 2))?;
        Ok(Tensor::cat(&[&keys, &kv.narrow(1, width / 2, width / 2)?], 1)?)
    }
}

/// The transformer. Weights are shared tensors.
pub struct Transformer {
    config: TransformerConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: Tensor,
    head: Linear,
    rope: Arc<RopeTable>,
}

/// Weights as they are asked for, checked, joined and packed.
struct Parts<'a, S> {
    config: &'a TransformerConfig,
    products: Products,
    source: S,
}

impl<S: WeightSource> Parts<'_, S> {
    fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let found = self.source.tensor(name)?;
        if found.dims() == shape { Ok(found) } else { Err(misfit(name, found.dims(), shape)) }
    }

    fn weight(&mut self, layer: usize, part: Part) -> Result<Tensor, ModelError> {
        let name = format!("{}.weight", self.config.variant.names.module(layer, part));
        self.get(&name, &self.config.weight(part))
    }

    fn bias(&mut self, layer: usize, part: Part) -> Result<Tensor, ModelError> {
        let name = format!("{}.bias", self.config.variant.names.module(layer, part));
        self.get(&name, &self.config.weight(part)[..1])
    }

    /// One product of one or several projections.
    fn linear<const N: usize>(&mut self, layer: usize, parts: [Part; N]) -> Result<Linear, ModelError> {
        let bias = match parts.iter().all(|&part| self.config.biased(part)) {
            true => Some(join(&parts.iter().map(|&part| self.bias(layer, part)).collect::<Result<Vec<_>, _>>()?)?),
            false => None,
        };
        let named =
            |part| (format!("{}.weight", self.config.variant.names.module(layer, part)), self.config.weight(part));
        self.product(&parts.map(named), bias)
    }

    /// The product of the named matrices, one below the other.
    fn product(&mut self, matrices: &[(String, Vec<usize>)], bias: Option<Tensor>) -> Result<Linear, ModelError> {
        let Some(format) = self.products.format else {
            let weights = matrices.iter().map(|(name, shape)| self.get(name, shape));
            return Ok(Linear::new(&join(&weights.collect::<Result<Vec<_>, _>>()?)?, bias, self.products)?);
        };
        let outputs = matrices.iter().map(|(_, shape)| shape[0]).sum();
        let inputs = matrices.iter().map(|(_, shape)| shape[1]).max().unwrap_or(0);
        let mut packing = Packing::new(outputs, inputs, format);
        for (name, shape) in matrices {
            self.source.rows(name, shape, &mut |rows| Ok(packing.push(rows).map_err(Error::wrap)?))?;
        }
        Ok(Linear::packed(packing.finish().map_err(Error::wrap)?, bias, self.products.precision))
    }

    fn block(&mut self, layer: usize) -> Result<Block, ModelError> {
        Ok(Block {
            attn_norm: self.weight(layer, Part::AttnNorm)?,
            q: self.linear(layer, [Part::Q])?,
            kv: self.linear(layer, [Part::K, Part::V])?,
            qk_norm: match self.config.variant.qk_norm {
                true => Some(QkNorm { q: self.weight(layer, Part::QNorm)?, k: self.weight(layer, Part::KNorm)? }),
                false => None,
            },
            attn_out: self.linear(layer, [Part::O])?,
            ff_norm: self.weight(layer, Part::FfNorm)?,
            gate_up: self.linear(layer, [Part::Gate, Part::Up])?,
            ff_out: self.linear(layer, [Part::Down])?,
        })
    }
}

/// Rows below rows; a single tensor without a copy.
fn join(tensors: &[Tensor]) -> Result<Tensor, ModelError> {
    match tensors {
        [only] => Ok(only.clone()),
        several => Ok(Tensor::cat(several, 0)?),
    }
}

impl Transformer {
    /// Builds it from named tensors (see [`TransformerConfig::tensors`]). Given a [`Precision`] alone it shares them and
    /// is differentiable in them.
    ///
    /// # Errors
    /// When a tensor is missing or mis-shaped.
    pub fn new(
        config: TransformerConfig,
        products: impl Into<Products>,
        mut tensor: impl FnMut(&str) -> Option<Tensor>,
    ) -> Result<Self, ModelError> {
        let missing = |name: &str| ModelError::Weights(format!("tensor {name} is missing"));
        Self::load(config, products.into(), |name: &str| tensor(name).ok_or_else(|| missing(name)))
    }

    /// Builds it from weights that are read when they are asked for, in the order of the forward pass. What is packed is
    /// read some rows at a time, so that no second copy of a weight comes about; only a head that is the embedding is
    /// packed beside it.
    ///
    /// # Errors
    /// When a weight cannot be read or is mis-shaped.
    pub fn load(config: TransformerConfig, products: Products, source: impl WeightSource) -> Result<Self, ModelError> {
        config.validate()?;
        let mut parts = Parts { config: &config, products, source };
        let names = config.variant.names;
        let table = [config.embedding_size, config.d_model];
        let embedding = parts.get(names.embedding(), &table)?;
        if !embedding.device().is_cpu() {
            parts.products.format = None;
        }
        let blocks = (0..config.n_layers).map(|layer| parts.block(layer)).collect::<Result<_, _>>()?;
        let final_norm = parts.get(names.final_norm(), &[config.d_model])?;
        let head = match config.weight_tying {
            true => Linear::new(&embedding, None, products)?,
            false => parts.product(&[(names.head().to_owned(), table.to_vec())], None)?,
        };
        let rope = Arc::new(RopeTable::new(config.max_sequence_length, config.head_dim(), config.rope_theta));
        Ok(Self { blocks, final_norm, embedding, head, rope, config })
    }

    /// The same transformer, its tensors shared, with products computed in another way.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Self {
        let blocks = self.blocks.iter().map(|block| Block {
            attn_norm: block.attn_norm.clone(),
            q: block.q.with_precision(precision),
            kv: block.kv.with_precision(precision),
            qk_norm: block.qk_norm.clone(),
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
            head: self.head.with_precision(precision),
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

    /// Final, normalised hidden states that predict `packed.needed` `(needed, d_model)`.
    ///
    /// # Errors
    /// When the batch does not fit the model or the device fails.
    pub fn hidden(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        Ok(self.hidden_keeping(packed)?.0)
    }

    /// [`hidden`](Self::hidden), and the keys and values that the spans wish to have kept, one entry per span (or none at
    /// all when nobody wishes any).
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn hidden_keeping(&self, packed: &Packed) -> Result<(Tensor, KeptSpans), ModelError> {
        let (mut x, route) = self.enter(packed)?;
        let wished = packed.places.iter().any(|place| place.keep > 0);
        let mut layers = Vec::new();
        for layer in 0..self.blocks.len() {
            let (next, kv) = self.layer_with_kv(layer, &x, &route)?;
            x = next;
            if wished {
                layers.push(kv);
            }
        }
        let kept = if wished { timed(|t| &mut t.elementwise, || packed.kept(&layers))? } else { Vec::new() };
        Ok((rms_norm(&x, &self.final_norm, self.config.rms_norm_eps)?, kept))
    }

    /// The embeddings of all rows, and where the rows go.
    fn enter(&self, packed: &Packed) -> Result<(Tensor, Route), ModelError> {
        self.check(packed)?;
        let device = self.device();
        let ids = Tensor::from_slice(&packed.ids, packed.rows(), device)?;
        let x = timed(|t| &mut t.elementwise, || self.embedding.index_select(&ids, 0))?;
        Ok((x, self.route(packed)?))
    }

    fn layer(&self, layer: usize, x: &Tensor, route: &Route) -> Result<Tensor, ModelError> {
        Ok(self.layer_with_kv(layer, x, route)?.0)
    }

    /// The layer's output, and the keys and values that its rows saw.
    fn layer_with_kv(&self, layer: usize, x: &Tensor, route: &Route) -> Result<(Tensor, Tensor), ModelError> {
        // The last layer's keys and values are wanted of every row, everything after them only of the needed.
        let last = layer + 1 == self.blocks.len();
        let rest = if last { &route.pruned } else { &route.full };
        let (needed, joined) = (last.then_some(&route.needed), route.joined.as_ref());
        let pass = Pass { layer, all: &route.full.runs, rest, needed, joined };
        self.blocks[layer].forward(x, &pass, self.config.rms_norm_eps)
    }

    /// Logits in f32 of `hidden` `(n, d_model)` for the ids `vocab`: `(n, vocab.len())`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        let head = self.head.narrow(vocab.start as usize..vocab.end as usize)?;
        let logits = head.forward(hidden)?.to_dtype(DType::F32)?;
        match self.config.variant.scale_logits {
            true => Ok((logits / (self.config.d_model as f64).sqrt())?),
            false => Ok(logits),
        }
    }
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
    /// The spans, when some see more than their own rows.
    joined: Option<&'a Packed>,
}

impl Block {
    /// The block's output, and the keys and values that its rows saw.
    fn forward(&self, x: &Tensor, pass: &Pass<'_>, eps: f64) -> Result<(Tensor, Tensor), ModelError> {
        let runs = &pass.rest.runs;
        let product = |linear: &Linear, runs: &Runs, x: &Tensor, product: Product| -> Result<Tensor, ModelError> {
            let y = linear.forward(x)?;
            Ok(timed(|t| &mut t.matmul, || runs.adapt(y, x, pass.layer, product))?)
        };
        let normed = rms_norm(x, &self.attn_norm, eps)?;
        let mut kv = product(&self.kv, pass.all, &normed, Product::Kv)?;
        let (x, queries) = match pass.needed {
            Some(needed) => {
                let pick = |x: &Tensor| timed(|t| &mut t.elementwise, || x.index_select(needed, 0));
                (pick(x)?, pick(&normed)?)
            }
            None => (x.clone(), normed),
        };
        let mut q = product(&self.q, runs, &queries, Product::Q)?;
        if let Some(norm) = &self.qk_norm {
            (q, kv) = (norm.queries(&q, eps)?, norm.keys(&kv, eps)?);
        }
        if let Some(spans) = pass.joined {
            kv = timed(|t| &mut t.elementwise, || spans.join(&kv, pass.layer))?;
        }
        let mixed = attention(&q, &kv, &pass.rest.attention)?;
        let x = add(&x, product(&self.attn_out, runs, &mixed, Product::O)?)?;
        let inner = product(&self.gate_up, runs, &rms_norm(&x, &self.ff_norm, eps)?, Product::GateUp)?;
        Ok((add(&x, product(&self.ff_out, runs, &swiglu(&inner)?, Product::Down)?)?, kv))
    }
}

fn add(x: &Tensor, y: Tensor) -> Result<Tensor, ModelError> {
    Ok(timed(|t| &mut t.elementwise, || residual::add(x, y))?)
}

#[cfg(test)]
#[path = "transformer_tests.rs"]
mod tests;
