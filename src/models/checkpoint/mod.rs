//! A checkpoint's folder, as published on a hub, to a [`Model`]: configuration, tokenizer, weights.
//!
//! Everything is read and compared before the first value is loaded, so that a folder that does not fit is refused in
//! a moment, by name. `family` reads the configurations, `layout` has the families' sequences. The
//! transformer itself is the same for all of them.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::backbone::TransformerBackbone;
use super::fields::{self, CONFIG};
use super::shape::{Pattern, TransformerConfig, parameters};
use super::shards::Shards;
use super::transformer::Transformer;
use super::{ImageSpec, Layout, Model, ModelError, ModelSpec, Placement};
use crate::text::TextFiles;

mod family;
mod layout;

pub use family::Family;
use family::{Facts, ImageFacts};
use layout::{MmadaLayout, TextLayout, turn_end};

const GENERATION: &str = "generation_config.json";

/// Whether `folder` is laid out as a checkpoint of a hub, complete or not: it has more than weights.
#[must_use]
pub fn is_checkpoint(folder: &Path) -> bool {
    [CONFIG, "tokenizer.json", "tokenizer_config.json", "vocab.json"].iter().any(|name| folder.join(name).is_file())
}

/// A folder that fits together, with no weights loaded yet.
pub struct Checkpoint {
    facts: Facts,
    text: TextFiles,
    shards: Shards,
    spec: ModelSpec,
    layout: Arc<dyn Layout>,
}

impl Checkpoint {
    /// Reads a folder's configuration and tokenizer and the headers of its weights, and checks that they fit.
    ///
    /// # Errors
    /// Names the file, field or tensor at fault.
    pub fn open(folder: &Path, name: &str) -> Result<Self, ModelError> {
        let facts = Facts::read(fields::config(folder)?)?;
        let shards = Shards::open(folder)?;
        shards.check(facts.config.tensors(), &[])?;
        let tokenizer = |e: crate::text::TextError| ModelError::Tokenizer(e.to_string());
        let mut text = TextFiles::open(folder).map_err(tokenizer)?;
        text.tokenizer.reserve(facts.mask_id);
        let ends = ends(&facts, &text, fields::object(folder, GENERATION)?)?;
        let spec = spec(&facts, &text, name, ends)?;
        let layout: Arc<dyn Layout> = match &spec.image {
            Some(image) => Arc::new(MmadaLayout::new(&text, facts.eos_id, image.codes.clone())?),
            None => Arc::new(TextLayout::new(&text).map_err(tokenizer)?),
        };
        Ok(Self { facts, text, shards, spec, layout })
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        self.facts.family
    }

    /// Its shape.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.facts.config
    }

    /// What it will be served as; the hash is not known yet.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Bytes that its weights will take where they go.
    #[must_use]
    pub fn weight_bytes(&self, to: &Placement) -> u64 {
        if !to.device.is_cpu() {
            return self.shards.bytes();
        }
        let config = &self.facts.config;
        let size = |(name, shape): (String, Vec<usize>)| match *shape {
            [outputs, inputs] if name != config.variant.names.embedding() => to.format.bytes(outputs, inputs),
            _ => size_of::<f32>() * shape.iter().product::<usize>(),
        };
        let head = if config.weight_tying { to.format.bytes(config.embedding_size, config.d_model) } else { 0 };
        (config.tensors().into_iter().map(size).sum::<usize>() + head) as u64
    }

    /// Loads the weights. The files are hashed meanwhile. Pictures need a codec, which other files hold: there is none
    /// yet.
    ///
    /// # Errors
    /// When a file cannot be read, a value is not finite, or the device has no room.
    pub fn load(self, to: impl Into<Placement>) -> Result<Model, ModelError> {
        let Self { facts, text, shards, mut spec, layout } = self;
        let to = to.into();
        let device = &to.device;
        tracing::debug!(dtypes = shards.dtypes(), bytes = shards.bytes(), format = ?to.format, "loading weights");
        let (transformer, sha256) = std::thread::scope(|scope| {
            let hash = scope.spawn(|| shards.sha256());
            let transformer = Transformer::load(facts.config, to.products(), shards.source(device));
            (transformer, hash.join())
        });
        spec.sha256 = sha256.map_err(|_| ModelError::Weights("hashing the files failed".into()))??;
        Ok(Model {
            backbone: Arc::new(TransformerBackbone::new(spec, transformer?)),
            tokenizer: Arc::new(text.tokenizer),
            layout,
            codec: None,
        })
    }
}

/// The ids that end a text, that of the configuration first: it is the one that fills a canvas after the end.
fn ends(facts: &Facts, text: &TextFiles, generation: Option<Map<String, Value>>) -> Result<Vec<u32>, ModelError> {
    let mut ends = vec![facts.eos_id];
    let more = generation.and_then(|mut fields| fields.remove("eos_token_id")).unwrap_or(Value::Null);
    let list = if let Value::Array(list) = more { list } else { vec![more] };
    for value in list.iter().filter(|value| !value.is_null()) {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let hint = || ModelError::File(format!("{GENERATION}: eos_token_id {value} is not a token id"));
        ends.push(id.ok_or_else(hint)?);
    }
    ends.extend(text.tokenizer.token_id(turn_end(facts.family)));
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|&id| seen.insert(id));
    Ok(ends)
}

fn spec(facts: &Facts, text: &TextFiles, name: &str, eos_ids: Vec<u32>) -> Result<ModelSpec, ModelError> {
    let config = &facts.config;
    let rows = config.embedding_size as u32;
    let tokens = text.tokenizer.vocab_size();
    if tokens > config.embedding_size {
        return Err(ModelError::Tokenizer(format!("it has {tokens} tokens, the model only {rows}; is it another's?")));
    }
    let ends = eos_ids.iter().map(|&id| ("eos_token_id", id));
    if let Some((field, id)) = [("mask_token_id", facts.mask_id)].into_iter().chain(ends).find(|&(_, id)| id >= rows) {
        let hint = format!("the vocabulary has {rows} rows");
        return Err(ModelError::Config { field: field.to_owned(), actual: id.to_string(), hint });
    }
    Ok(ModelSpec {
        name: name.to_owned(),
        vocab_size: config.embedding_size,
        // All rows, as the official samplers have it: a confidence is a share of all of them.
        text_ids: 0..rows,
        image: facts.image.as_ref().map(|image| image_spec(image, tokens as u32, rows)).transpose()?,
        mask_id: facts.mask_id,
        eos_ids,
        banned_ids: vec![facts.mask_id],
        max_positions: config.max_sequence_length,
        block: match config.variant.pattern {
            Pattern::Bidirectional => None,
            Pattern::BlockCausal { block } => Some(block),
        },
        shifted: config.variant.shifted,
        d_model: config.d_model,
        n_layers: config.n_layers,
        parameters: parameters(config),
        sha256: String::new(),
    })
}

/// Codes follow the tokenizer's ids, whatever room the text side of the embedding has beyond them.
fn image_spec(image: &ImageFacts, tokens: u32, rows: u32) -> Result<ImageSpec, ModelError> {
    let start = image.offset.unwrap_or(tokens);
    let codes = start..start.saturating_add(image.codes as u32);
    if codes.end <= rows {
        return Ok(ImageSpec { codes, grid: (image.side, image.side) });
    }
    let hint = format!("codes would have ids {codes:?}, the vocabulary has {rows} rows");
    Err(ModelError::Config { field: "codebook_size".into(), actual: image.codes.to_string(), hint })
}
