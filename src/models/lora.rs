//! Low-rank adapters (LoRA, arXiv 2106.09685): W x becomes W x + s · B A x on the seven projections of a block.
//!
//! Lives here: the tensors, their names and shapes, and which rows of a packed batch they apply to. Does not: files,
//! versions, who is served by which adapter (`adapters`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Result, Tensor};

use super::ModelError;
use super::names::Part;
use super::nn::frozen;
use super::nn::low_rank::{self, LowRank};
use super::shape::TransformerConfig;

/// A projection that can be adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Target {
    /// Every projection, in the order of the forward pass.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module that is adapted.
    #[must_use]
    pub fn part(self) -> Part {
        [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down][self as usize]
    }

    /// Path of the module in checkpoints of `config`'s family: what PEFT calls it, and the name of its weight without
    /// `.weight`.
    #[must_use]
    pub fn module(self, config: &TransformerConfig, layer: usize) -> String {
        config.variant.names.module(layer, self.part())
    }

    /// `(out, in)` of its weight.
    #[must_use]
    pub fn shape(self, config: &TransformerConfig) -> (usize, usize) {
        let (d, ff, q, kv) = (config.d_model, config.mlp_hidden_size, config.q_width(), config.kv_width());
        match self {
            Self::Q => (q, d),
            Self::O => (d, q),
            Self::K | Self::V => (kv, d),
            Self::Gate | Self::Up => (ff, d),
            Self::Down => (d, ff),
        }
    }
}

/// The two factors of one projection's update.
#[derive(Debug, Clone)]
pub struct Pair {
    /// A `(r, in)`.
    pub a: Tensor,
    /// B `(out, r)`.
    pub b: Tensor,
}

/// The update of one matrix product: of one projection, or of several that are computed as one.
#[derive(Debug, Clone)]
pub(super) struct Delta {
    /// `(in, R)`.
    a: Tensor,
    /// `(R, out)`, block-diagonal when several projections share the product.
    b: Tensor,
    /// The same, to be added in place; none of what is trained, which changes, or is elsewhere.
    parts: Option<Arc<[LowRank]>>,
}

impl Delta {
    /// s · (x Aᵀ) Bᵀ, computed as the factors are, f32, and given as `x` is; the scale is in B.
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        let (dtype, x) = (x.dtype(), x.to_dtype(self.a.dtype())?);
        // As in `Linear`: one row would take another kernel.
        let update = if x.dim(0)? == 1 {
            Tensor::cat(&[&x, &x], 0)?.matmul(&self.a)?.matmul(&self.b)?.narrow(0, 0, 1)?
        } else {
            x.matmul(&self.a)?.matmul(&self.b)?
        };
        update.to_dtype(dtype)
    }
}

/// The products of a block, as the transformer computes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    Q,
    Kv,
    O,
    GateUp,
    Down,
}

impl Product {
    fn targets(self) -> &'static [Target] {
        match self {
            Self::Q => &[Target::Q],
            Self::Kv => &[Target::K, Target::V],
            Self::O => &[Target::O],
            Self::GateUp => &[Target::Gate, Target::Up],
            Self::Down => &[Target::Down],
        }
    }
}

const PRODUCTS: [Product; 5] = [Product::Q, Product::Kv, Product::O, Product::GateUp, Product::Down];

/// An adapter's tensors, ready to run. Built on plain tensors it serves, built on tracked variables it is trained.
#[derive(Debug)]
pub struct Lora {
    /// Distinct for every adapter of this process; two spans with equal ids are adapted alike.
    id: u64,
    scale: f64,
    pairs: BTreeMap<(usize, Target), Pair>,
    /// Per layer and product.
    deltas: Vec<[Option<Delta>; 5]>,
}

impl PartialEq for Lora {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Lora {}

impl Lora {
    /// An adapter of `config` made of factors by layer and projection, applied with `scale` (α/r).
    ///
    /// # Errors
    /// When a factor has the wrong shape or layer; names it.
    pub fn new(
        config: &TransformerConfig,
        scale: f64,
        pairs: BTreeMap<(usize, Target), Pair>,
    ) -> std::result::Result<Self, ModelError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        for ((layer, target), pair) in &pairs {
            check(config, *layer, *target, pair)?;
        }
        let layers = 0..config.n_layers;
        let deltas = layers
            .map(|layer| {
                let mut products = [const { None }; 5];
                for (slot, product) in products.iter_mut().zip(PRODUCTS) {
                    *slot = delta(config, scale, &pairs, layer, product)?;
                }
                Ok(products)
            })
            .collect::<Result<_>>()?;
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), scale, pairs, deltas })
    }

    /// Distinct for every adapter of this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// α/r.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The factors by layer and projection.
    #[must_use]
    pub fn pairs(&self) -> &BTreeMap<(usize, Target), Pair> {
        &self.pairs
    }

    pub(super) fn delta(&self, layer: usize, product: Product) -> Option<&Delta> {
        self.deltas.get(layer)?.get(product as usize)?.as_ref()
    }
}

fn check(config: &TransformerConfig, layer: usize, target: Target, pair: &Pair) -> std::result::Result<(), ModelError> {
    let name = target.module(config, layer);
    if layer >= config.n_layers {
        return Err(ModelError::Weights(format!("{name}: the base has {} layers", config.n_layers)));
    }
    let (out, width) = target.shape(config);
    let (a, b) = (pair.a.dims(), pair.b.dims());
    match (a, b) {
        ([r, i], [o, s]) if r == s && *r > 0 && *i == width && *o == out => Ok(()),
        _ => Err(ModelError::Weights(format!(
            "{name}: lora_A has shape {a:?} and lora_B {b:?}, expected [r, {width}] and [{out}, r]"
        ))),
    }
}

/// Joins the factors of the projections that one product computes.
fn delta(
    config: &TransformerConfig,
    scale: f64,
    pairs: &BTreeMap<(usize, Target), Pair>,
    layer: usize,
    product: Product,
) -> Result<Option<Delta>> {
    let targets = product.targets();
    let found: Vec<Option<&Pair>> = targets.iter().map(|&target| pairs.get(&(layer, target))).collect();
    let total: usize = found.iter().flatten().map(|pair| pair.a.dims()[0]).sum();
    if total == 0 {
        return Ok(None);
    }
    // A product of width 1 takes a matrix–vector kernel, whose last bits depend on the number of rows.
    let padded = total.max(2);
    let (mut a, mut b, mut before) = (Vec::new(), Vec::new(), 0);
    for (pair, target) in found.iter().zip(targets) {
        let (out, _) = target.shape(config);
        match pair {
            Some(pair) => {
                let rank = pair.a.dim(0)?;
                a.push(pair.a.clone());
                b.push(pair.b.pad_with_zeros(1, before, padded - before - rank)?);
                before += rank;
            }
            None => {
                let like = found.iter().flatten().next().map(|pair| pair.b.device().clone());
                b.push(Tensor::zeros((out, padded), DType::F32, &like.unwrap_or(candle_core::Device::Cpu))?);
            }
        }
    }
    let (a, b) = (Tensor::cat(&a, 0)?.pad_with_zeros(0, 0, padded - total)?, Tensor::cat(&b, 0)?);
    let (a, b) = (a.t()?.contiguous()?, (b * scale)?.t()?.contiguous()?);
    let parts = (a.device().is_cpu() && !a.track_op() && !b.track_op()).then(|| parts(config, scale, targets, &found));
    Ok(Some(Delta { a, b, parts: parts.transpose()?.map(Arc::from) }))
}

/// The updates of the outputs of one product.
fn parts(config: &TransformerConfig, scale: f64, targets: &[Target], pairs: &[Option<&Pair>]) -> Result<Vec<LowRank>> {
    let mut first = 0;
    let mut out = Vec::new();
    for (pair, target) in pairs.iter().zip(targets) {
        if let Some(pair) = pair {
            out.push(LowRank::new(&pair.a, &pair.b, scale, first)?);
        }
        first += target.shape(config).0;
    }
    Ok(out)
}

/// Runs of rows with one adapter, covering all rows in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs(Vec<(Range<usize>, Option<Arc<Lora>>)>);

impl Runs {
    /// Appends `rows` rows with `adapter`.
    pub(super) fn push(&mut self, rows: usize, adapter: Option<&Arc<Lora>>) {
        let start = self.0.last().map_or(0, |(range, _)| range.end);
        match self.0.last_mut() {
            Some((range, last)) if last.as_ref() == adapter => range.end += rows,
            _ => self.0.push((start..start + rows, adapter.cloned())),
        }
    }

    /// Which rows get which updates in place; `None` when some adapter can only be composed.
    fn updates(&self, layer: usize, product: Product) -> Option<Vec<low_rank::Updates>> {
        let adapted = self.0.iter().filter_map(|(rows, lora)| Some((rows, lora.as_ref()?.delta(layer, product)?)));
        adapted.map(|(rows, delta)| Some((rows.clone(), Arc::clone(delta.parts.as_ref()?)))).collect()
    }

    /// `y` `(rows, out)` of `x` `(rows, in)` plus what the adapters add to it. Rows without one are left bit for bit.
    pub(super) fn adapt(&self, y: Tensor, x: &Tensor, layer: usize, product: Product) -> Result<Tensor> {
        let delta = |lora: &Option<Arc<Lora>>| lora.as_ref().and_then(|lora| lora.delta(layer, product).cloned());
        if frozen(&y)
            && frozen(x)
            && let Some(updates) = self.updates(layer, product)
        {
            if !updates.is_empty() {
                low_rank::add(&y, x, updates)?;
            }
            return Ok(y);
        }
        match self.0.as_slice() {
            [(_, lora)] => match delta(lora) {
                Some(delta) => y + delta.of(x)?,
                None => Ok(y),
            },
            runs if runs.iter().all(|(_, lora)| delta(lora).is_none()) => Ok(y),
            runs => {
                let parts = runs.iter().filter(|(rows, _)| !rows.is_empty()).map(|(rows, lora)| {
                    let y = y.narrow(0, rows.start, rows.len())?;
                    match delta(lora) {
                        Some(delta) => y + delta.of(&x.narrow(0, rows.start, rows.len())?)?,
                        None => Ok(y),
                    }
                });
                Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
            }
        }
    }
}
