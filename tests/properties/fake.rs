//! Small deterministic models: one is a hash of the whole span, one is made of tensors. Both are row-local.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};
use lacuna::diffusion::rng::{Stream, mix64};
use lacuna::models::{Backbone, ImageCodec, ImageSpec, Layout, Model, ModelError, ModelSpec, Packed};
use lacuna::text::Tokenizer;

pub(crate) const EOS: u32 = 256;
pub(crate) const MASK: u32 = 257;
pub(crate) const TEXT: Range<u32> = 0..260;
pub(crate) const CODES: Range<u32> = 260..280;
const VOCAB: usize = 280;

fn spec(d_model: usize) -> ModelSpec {
    ModelSpec {
        name: "fake".to_owned(),
        vocab_size: VOCAB,
        text_ids: TEXT,
        image: Some(ImageSpec { codes: CODES, grid: (4, 4) }),
        mask_id: MASK,
        eos_ids: vec![EOS],
        banned_ids: vec![258, 259],
        max_positions: 200,
        block: None,
        shifted: false,
        d_model,
        n_layers: 1,
        parameters: 0,
        sha256: String::new(),
    }
}

/// Counts what it is asked to do, and can be held and broken.
#[derive(Default)]
pub(crate) struct Gauge {
    pub(crate) forwards: AtomicUsize,
    pub(crate) rows: AtomicUsize,
    pub(crate) most_rows: AtomicUsize,
    pub(crate) head_rows: AtomicUsize,
    pub(crate) most_logits: AtomicUsize,
    gate: Mutex<Gate>,
    moved: Condvar,
}

#[derive(Default)]
struct Gate {
    held: bool,
    waiting: usize,
    failures: usize,
}

impl Gauge {
    /// Forwards wait from now on.
    pub(crate) fn hold(&self) {
        self.gate.lock().unwrap().held = true;
    }

    /// Forwards go on.
    pub(crate) fn release(&self) {
        self.gate.lock().unwrap().held = false;
        self.moved.notify_all();
    }

    /// Returns once a forward is waiting.
    pub(crate) fn wait_until_held(&self) {
        let gate = self.gate.lock().unwrap();
        drop(self.moved.wait_while(gate, |g| g.waiting == 0).unwrap());
    }

    /// The next `n` forwards fail.
    pub(crate) fn fail(&self, n: usize) {
        self.gate.lock().unwrap().failures = n;
    }

    fn enter(&self, packed: &Packed) -> Result<(), ModelError> {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.moved.notify_all();
        gate = self.moved.wait_while(gate, |g| g.held).unwrap();
        gate.waiting -= 1;
        if gate.failures > 0 {
            gate.failures -= 1;
            return Err(ModelError::Input("broken on purpose".to_owned()));
        }
        self.forwards.fetch_add(1, SeqCst);
        self.rows.fetch_add(packed.rows(), SeqCst);
        self.most_rows.fetch_max(packed.rows(), SeqCst);
        assert!(packed.needed.is_sorted_by(|a, b| a < b), "needed rows ascend strictly");
        assert_eq!(packed.spans.iter().map(|s| s.len).sum::<usize>(), packed.rows());
        Ok(())
    }

    fn note_head(&self, rows: usize, vocab: &Range<u32>) {
        self.head_rows.fetch_add(rows, SeqCst);
        self.most_logits.fetch_max(rows * vocab.len(), SeqCst);
    }
}

/// Logits are a hash of the span's ids, the position and the id. `sharp` makes them far apart.
pub(crate) struct Hash {
    spec: ModelSpec,
    pub(crate) gauge: Arc<Gauge>,
    /// Adds to the logit of EOS.
    pub(crate) eos_bias: f32,
}

impl Hash {
    pub(crate) fn new() -> Self {
        Self { spec: spec(4), gauge: Arc::default(), eos_bias: 0.0 }
    }
}

impl Backbone for Hash {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        self.gauge.enter(packed)?;
        let mut needed = packed.needed.iter().copied().peekable();
        let mut hidden: Vec<f32> = Vec::new();
        for span in &packed.spans {
            let ids = &packed.ids[span.start..span.start + span.len];
            let context = ids.iter().fold(0, |h, &id| mix64(h ^ u64::from(id)));
            while let Some(row) = needed.next_if(|&r| (r as usize) < span.start + span.len) {
                let hash = mix64(context ^ mix64(u64::from(row) - span.start as u64));
                hidden.extend((0..4).map(|i| ((hash >> (16 * i)) & 0xFFFF) as f32));
            }
        }
        Ok(Tensor::from_vec(hidden, (packed.needed.len(), 4), &Device::Cpu)?)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        let rows = hidden.to_vec2::<f32>()?;
        self.gauge.note_head(rows.len(), &vocab);
        let logits = rows.iter().flat_map(|row| {
            let hash = (0..4).fold(0u64, |h, i| h | (row[i] as u64) << (16 * i));
            vocab.clone().map(move |id| {
                let bits = mix64(hash ^ mix64(u64::from(id)));
                let logit = (bits >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0;
                if id == EOS { logit + self.eos_bias } else { logit }
            })
        });
        Ok(Tensor::from_vec(logits.collect::<Vec<f32>>(), (rows.len(), vocab.len()), &Device::Cpu)?)
    }
}

/// One attention layer and a linear layer, computed with matrix products.
pub(crate) struct Tensors {
    spec: ModelSpec,
    pub(crate) gauge: Arc<Gauge>,
    embedding: Tensor,
    positions: Tensor,
    mix: Tensor,
    head: Tensor,
}

const D: usize = 16;

impl Tensors {
    pub(crate) fn new() -> Self {
        let mut stream = Stream::new(11, 0);
        let mut weights = |rows: usize, columns: usize, scale: f32| {
            let values: Vec<f32> = (0..rows * columns).map(|_| (stream.unit() as f32 - 0.5) * scale).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        Self {
            spec: spec(D),
            gauge: Arc::default(),
            embedding: weights(VOCAB, D, 2.0),
            positions: weights(200, D, 2.0),
            mix: weights(D, D, 1.5),
            head: weights(D, VOCAB, 3.0),
        }
    }
}

/// candle takes another path for a single row: never give it one.
fn linear(x: &Tensor, w: &Tensor) -> candle_core::Result<Tensor> {
    match x.dim(0)? {
        1 => Tensor::cat(&[x, x], 0)?.matmul(w)?.narrow(0, 0, 1),
        _ => x.matmul(w),
    }
}

impl Backbone for Tensors {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        self.gauge.enter(packed)?;
        let ids = Tensor::new(packed.ids.as_slice(), &Device::Cpu)?;
        let x = self.embedding.index_select(&ids, 0)?;
        let mut mixed = Vec::new();
        for span in &packed.spans {
            let x = (x.narrow(0, span.start, span.len)? + self.positions.narrow(0, 0, span.len)?)?;
            let scores = linear(&x, &x.t()?.contiguous()?)?;
            let attention = candle_nn::ops::softmax(&(scores / (D as f64).sqrt())?, 1)?;
            mixed.push((linear(&attention, &x)? + x)?);
        }
        let x = Tensor::cat(&mixed, 0)?;
        let needed = Tensor::new(packed.needed.as_slice(), &Device::Cpu)?;
        Ok(linear(&x, &self.mix)?.tanh()?.index_select(&needed, 0)?)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        self.gauge.note_head(hidden.dim(0)?, &vocab);
        let head = self.head.narrow(1, vocab.start as usize, vocab.len())?.contiguous()?;
        Ok(linear(hidden, &head)?)
    }
}

struct Frame;

impl Layout for Frame {
    fn text_prefix(&self, prompt: &[u32]) -> Vec<u32> {
        [&[258], prompt].concat()
    }

    fn image_frame(&self, prompt: &[u32]) -> (Vec<u32>, Vec<u32>) {
        ([&[259], prompt, &[258]].concat(), vec![EOS])
    }
}

struct Blocks;

impl ImageCodec for Blocks {
    fn decode(&self, codes: &[u32], grid: (usize, usize)) -> Result<RgbImage, ModelError> {
        if codes.len() != grid.0 * grid.1 || codes.iter().any(|&c| c >= CODES.len() as u32) {
            return Err(ModelError::Input("no such grid".to_owned()));
        }
        let (rows, columns) = (grid.0 as u32, grid.1 as u32);
        Ok(RgbImage::from_fn(columns * 2, rows * 2, |x, y| Rgb([codes[(y / 2 * columns + x / 2) as usize] as u8; 3])))
    }

    fn encode(&self, image: &RgbImage, grid: (usize, usize)) -> Result<Vec<u32>, ModelError> {
        let (rows, columns) = (grid.0 as u32, grid.1 as u32);
        Ok((0..rows * columns).map(|i| u32::from(image.get_pixel(i % columns * 2, i / columns * 2).0[0])).collect())
    }
}

/// One token per byte (byte-level BPE without merges), then EOS, the mask and two layout markers.
pub(crate) fn tokenizer() -> Tokenizer {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut others = 256..;
    let vocab: Vec<String> = (0..256u32)
        .map(|b| {
            let shown = if printable(b) { b } else { others.next().unwrap() };
            let shown = char::from_u32(shown).unwrap().to_string();
            format!("{}: {b}", serde_json::to_string(&shown).unwrap())
        })
        .collect();
    let special = |id: u32, content: &str| {
        format!(
            r#"{{"id":{id},"content":"{content}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
        )
    };
    let added =
        [special(256, "<eos>"), special(257, "<mask>"), special(258, "<bos>"), special(259, "<image>")].join(",");
    let byte_level = r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#;
    let json = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{added}],"normalizer":null,
        "pre_tokenizer":{byte_level},"post_processor":null,"decoder":{byte_level},
        "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
        "fuse_unk":false,"byte_fallback":false,"vocab":{{{}}},"merges":[]}}}}"#,
        vocab.join(",")
    );
    Tokenizer::from_bytes(json.as_bytes()).unwrap()
}

pub(crate) fn model(backbone: impl Backbone + 'static) -> Model {
    Model {
        backbone: Arc::new(backbone),
        tokenizer: Arc::new(tokenizer()),
        layout: Arc::new(Frame),
        codec: Some(Arc::new(Blocks)),
    }
}
