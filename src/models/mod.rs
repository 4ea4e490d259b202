//! Weights to logits: the [`Backbone`] every model family implements, and what a loaded [`Model`] consists of.
//!
//! Lives here: tensors, layers, weights, family layouts, image codecs. Does not: sampling, batching policy, HTTP.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;

use crate::text::{Message, TextError, Tokenizer};
use kept::{KeptSpans, Place};
use lora::Lora;
use nn::{Format, Precision, Products};
use transformer::{Transformer, TransformerConfig};

pub mod backbone;
pub mod checkpoint;
pub mod fields;
pub mod kept;
pub mod lora;
pub mod names;
pub mod nn;
pub mod optim;
pub mod shape;
pub mod shards;
pub mod transformer;
pub mod vq;
pub mod weights;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The device or a kernel refused an operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A configuration field has a value that this build does not support.
    #[error("config.json: {field} = {actual} is not supported: {hint}")]
    Config {
        /// Name of the field, as in the file.
        field: String,
        /// The value found.
        actual: String,
        /// What would be supported.
        hint: String,
    },
    /// A configuration lacks a field.
    #[error("config.json: {field} is missing: {hint}")]
    ConfigMissing {
        /// Name of the field.
        field: String,
        /// What it must be.
        hint: String,
    },
    /// A file of a checkpoint is missing or unreadable.
    #[error("{0}")]
    File(String),
    /// The weights do not match the configuration.
    #[error("weights: {0}")]
    Weights(String),
    /// The tokenizer could not be read.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A batch, a code or an image is malformed; a bug of the caller, reported rather than trusted.
    #[error("invalid input: {0}")]
    Input(String),
}

/// Where a model's weights go, and how they are kept there.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// How the weights of products are kept on a CPU; embeddings and norms are f32. On a GPU all are as in the file.
    pub format: Format,
}

impl Placement {
    /// How served products are computed.
    pub(crate) fn products(&self) -> Products {
        Products { precision: Precision::Exact, format: Some(self.format) }
    }
}

impl From<&Device> for Placement {
    fn from(device: &Device) -> Self {
        Self { device: device.clone(), format: Format::default() }
    }
}

impl From<&Self> for Placement {
    fn from(placement: &Self) -> Self {
        placement.clone()
    }
}

/// The rows of one sequence, or of a part of one, inside a [`Packed`] batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// Many sequences of different lengths, one after another, without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Token ids `(rows)`; masked positions carry the mask id.
    pub ids: Vec<u32>,
    /// The sequences: contiguous, in order, covering all rows. Attention never crosses a span.
    pub spans: Vec<Span>,
    /// Rows whose prediction is wanted, strictly ascending. The last layer runs only for these.
    pub needed: Vec<u32>,
    /// The adapter of each span; spans with the same one should lie together.
    pub adapters: Vec<Option<Arc<Lora>>>,
    /// Where each span is in its sequence, and what else it sees.
    pub places: Vec<Place>,
}

impl Packed {
    /// Appends a sequence of the base model; `needed` are positions within it (ascending). Returns its span.
    pub fn push(&mut self, ids: &[u32], needed: impl IntoIterator<Item = u32>) -> Span {
        self.push_adapted(ids, needed, None)
    }

    /// [`push`](Self::push) with an adapter.
    pub fn push_adapted(
        &mut self,
        ids: &[u32],
        needed: impl IntoIterator<Item = u32>,
        adapter: Option<Arc<Lora>>,
    ) -> Span {
        self.push_part(ids, needed, adapter, Place::default())
    }

    /// [`push_adapted`](Self::push_adapted) of a part of a sequence: `ids` are those of its rows, `needed` are positions of
    /// the whole sequence.
    pub fn push_part(
        &mut self,
        ids: &[u32],
        needed: impl IntoIterator<Item = u32>,
        adapter: Option<Arc<Lora>>,
        place: Place,
    ) -> Span {
        let start = self.ids.len();
        self.ids.extend_from_slice(ids);
        let offset = place.offset as u32;
        self.needed.extend(needed.into_iter().map(|position| position - offset + start as u32));
        let span = Span { start, len: ids.len() };
        self.spans.push(span);
        self.adapters.push(adapter);
        self.places.push(place);
        span
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ids.len()
    }
}

/// The image side of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSpec {
    /// Token ids of the codebook; a code is an id minus the start of this range.
    pub codes: Range<u32>,
    /// Rows and columns of the default token grid.
    pub grid: (usize, usize),
}

/// What the rest of the server must know of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Served name, such as `starter`.
    pub name: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Token ids that text may consist of; the head is evaluated on these for text positions.
    pub text_ids: Range<u32>,
    /// The image side, when the model has one.
    pub image: Option<ImageSpec>,
    /// The mask token. It is an input only: it is never sampled.
    pub mask_id: u32,
    /// Ids that end a text. The first is the one that fills the canvas after the end.
    pub eos_ids: Vec<u32>,
    /// Ids below `text_ids.end` that must never be sampled (mask, layout markers).
    pub banned_ids: Vec<u32>,
    /// Longest sequence the model was made for, prompt and layout included.
    pub max_positions: usize,
    /// Length of the blocks that attention goes by: a position sees its own block and those before it. `None`: it sees
    /// all positions.
    pub block: Option<usize>,
    /// Position i is predicted from the hidden state of position i − 1.
    pub shifted: bool,
    /// Hidden size.
    pub d_model: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Number of parameters.
    pub parameters: usize,
    /// SHA-256 of the weights, hexadecimal: which base a completion or an adapter belongs to.
    pub sha256: String,
}

/// A masked diffusion transformer: packed token rows to hidden states, and hidden states to logits.
///
/// Every row's result must depend on its own span only, bit for bit, however many rows ride along (DESIGN §4,
/// "exactness"); implementations pad single-row matrix products to two rows where the kernel would change.
pub trait Backbone: Send + Sync {
    /// What it is.
    fn spec(&self) -> &ModelSpec;

    /// Final, normalised hidden states from which `packed.needed` are predicted, `(needed, d_model)`, on the model's
    /// device. They are those rows' own, or their left neighbours' where a family shifts its logits: nobody else has to
    /// know.
    ///
    /// # Errors
    /// When the batch is malformed or the device fails.
    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError>;

    /// [`forward`](Self::forward), and the keys and values that the spans wish to have kept, one entry per span (or none at
    /// all when nobody wishes any).
    ///
    /// # Errors
    /// As [`forward`](Self::forward); and when a span is part of a sequence, or wishes anything, and the model keeps none.
    fn forward_keeping(&self, packed: &Packed) -> Result<(Tensor, KeptSpans), ModelError> {
        match packed.places.iter().all(|place| *place == Place::default()) {
            true => Ok((self.forward(packed)?, Vec::new())),
            false => Err(ModelError::Input(format!("{} keeps no keys and values", self.spec().name))),
        }
    }

    /// Logits in f32 of `hidden` `(n, d_model)` for the ids of `vocab`: `(n, vocab.len())`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError>;

    /// The shape that adapters must fit; `None` when it takes none.
    fn adaptable(&self) -> Option<&TransformerConfig> {
        None
    }

    /// Its layers, for learning that keeps little of a forward pass ([`transformer::by_layer`]); `None` when it cannot.
    fn transformer(&self) -> Option<&Transformer> {
        None
    }

    /// The same weights, shared, in the arithmetic that learning uses: the fastest that is differentiable. `None` when
    /// it cannot learn.
    fn for_learning(&self) -> Option<Arc<dyn Backbone>> {
        None
    }
}

/// Where a prompt and the masked positions go in a family's sequences.
pub trait Layout: Send + Sync {
    /// The ids before the generated text, for a prompt of `prompt` ids.
    fn text_prefix(&self, prompt: &[u32]) -> Vec<u32>;

    /// The ids before and after the image codes for a prompt; an empty prompt is the unconditional layout.
    fn image_frame(&self, prompt: &[u32]) -> (Vec<u32>, Vec<u32>);

    /// The ids before the answer in a conversation. A model without a chat template of its own reads the messages one
    /// after another, a line each.
    ///
    /// # Errors
    /// When the template refuses the conversation, or a message cannot be encoded.
    fn conversation(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>, TextError> {
        let lines: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
        Ok(self.text_prefix(&tokenizer.encode(&lines.join("\n"))?))
    }

    /// The ids before a text that is about an image, for the image's codes and the ids that would be before the text
    /// without it; `None` when the model does not look at images.
    fn seen_prefix(&self, _codes: &[u32], _prompt: &[u32]) -> Option<Vec<u32>> {
        None
    }
}

/// Discrete codes to pixels and back.
pub trait ImageCodec: Send + Sync {
    /// The picture of a grid of codes (row by row).
    ///
    /// # Errors
    /// When a code is outside the codebook or the grid does not fit.
    fn decode(&self, codes: &[u32], grid: (usize, usize)) -> Result<RgbImage, ModelError>;

    /// The codes of a picture (resized to the grid's size).
    ///
    /// # Errors
    /// When the picture cannot be encoded.
    fn encode(&self, image: &RgbImage, grid: (usize, usize)) -> Result<Vec<u32>, ModelError>;
}

/// Everything that serving a model needs. Cheap to clone; the weights are shared.
#[derive(Clone)]
pub struct Model {
    /// The transformer.
    pub backbone: Arc<dyn Backbone>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Sequence layout of the family.
    pub layout: Arc<dyn Layout>,
    /// Image codec, when the model draws.
    pub codec: Option<Arc<dyn ImageCodec>>,
}
