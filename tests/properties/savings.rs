//! What the engine leaves out changes nothing: every saving is taken back, one at a time and all at once, on the built-in
//! model, and gives the same tokens at the same steps with the same bits of the log-probabilities. How much it is, is
//! counted against a loop that computes everything.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use candle_core::{Device, Tensor};
use lacuna::diffusion::canvas::Canvas;
use lacuna::diffusion::denoise::{Denoiser, Savings};
use lacuna::diffusion::frame::given;
use lacuna::diffusion::params::{Fidelity, ImageParams, ImageSampler, Schedule, TextParams};
use lacuna::diffusion::rng::Stream;
use lacuna::models::{Backbone, ImageSpec, ModelError, ModelSpec, Packed};
use lacuna::starter::model;

use super::exactness::{Outcome, WASTEFUL, quiet, result};
use super::fake::Hash;
use super::starter::{image, text};

/// What a model is made to compute although nobody needs it.
#[derive(Debug, Clone, Copy, Default)]
struct Waste {
    /// Every sequence in a forward of its own: requests, and the two sides of guidance.
    unpacked: bool,
    /// The last layer for every row.
    unpruned: bool,
    /// Logits of every position.
    every_position: bool,
    /// Logits over the whole vocabulary.
    whole_vocabulary: bool,
}

/// A model that wastes.
struct Wasteful<'a> {
    inner: &'a dyn Backbone,
    waste: Waste,
}

impl Wasteful<'_> {
    fn all(&self) -> Range<u32> {
        0..self.inner.spec().vocab_size as u32
    }

    /// The hidden states of `packed.needed`, and with `every_position` their logits instead.
    fn compute(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        let Waste { unpruned, every_position, .. } = self.waste;
        if !unpruned && !every_position {
            return self.inner.forward(packed);
        }
        let whole = Packed { needed: (0..packed.rows() as u32).collect(), ..packed.clone() };
        let mut rows = self.inner.forward(&whole)?;
        if every_position {
            rows = self.inner.logits(&rows, self.all())?;
        }
        Ok(rows.index_select(&Tensor::new(packed.needed.as_slice(), &Device::Cpu)?, 0)?)
    }
}

impl Backbone for Wasteful<'_> {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        if !self.waste.unpacked {
            return self.compute(packed);
        }
        let mut parts = Vec::new();
        for (span, adapter) in packed.spans.iter().zip(&packed.adapters) {
            let rows = span.start..span.start + span.len;
            let needed = packed.needed.iter().filter(|&&row| rows.contains(&(row as usize)));
            let mut alone = Packed::default();
            let positions = needed.map(|row| row - span.start as u32).collect::<Vec<_>>();
            alone.push_adapted(&packed.ids[rows.clone()], positions, adapter.clone());
            parts.push(self.compute(&alone)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        let all = match self.waste {
            Waste { every_position: true, .. } => hidden.clone(),
            Waste { whole_vocabulary: true, .. } => self.inner.logits(hidden, self.all())?,
            _ => return self.inner.logits(hidden, vocab),
        };
        Ok(all.narrow(1, vocab.start as usize, vocab.len())?.contiguous()?)
    }
}

/// Runs all canvases together, each to its end, and then all of them again; the outcomes of both, and the rows of both.
fn run(model: &dyn Backbone, savings: Savings, start: &[Canvas]) -> (Vec<Outcome>, [usize; 2]) {
    let mut denoiser = Denoiser::default();
    denoiser.savings = savings;
    let (mut outcomes, mut rows) = (Vec::new(), [0; 2]);
    for rows in &mut rows {
        let mut canvases = start.to_vec();
        loop {
            let mut batch: Vec<&mut Canvas> = canvases.iter_mut().filter(|c| c.finish().is_none()).collect();
            if batch.is_empty() {
                break;
            }
            *rows += denoiser.step(model, &mut batch).unwrap().batch.rows();
        }
        outcomes.extend(canvases.iter().map(result));
    }
    (outcomes, rows)
}

#[test]
fn every_saving_is_lossless() {
    let (all, off) = (Savings::default(), Waste::default());
    let ways = [
        ("no step shared", Savings { share_first_step: false, ..all }, off),
        ("nothing memoised", Savings { memoise_unconditional: false, ..all }, off),
        ("nothing packed", all, Waste { unpacked: true, ..off }),
        ("no layer pruned", all, Waste { unpruned: true, ..off }),
        ("logits of every position", all, Waste { every_position: true, ..off }),
        ("logits of the whole vocabulary", all, Waste { whole_vocabulary: true, ..off }),
        (
            "nothing saved",
            WASTEFUL,
            Waste { unpacked: true, unpruned: true, every_position: true, whole_vocabulary: true },
        ),
    ];
    let model = model::load(&Device::Cpu).unwrap();
    let (backbone, mut again) = (&*model.backbone, 0);
    for case in 0..4 {
        let mut s = Stream::new(0x5AFE, case);
        let mut start: Vec<Canvas> = (0..3).map(|_| text(&model, &mut s, &[Fidelity::Exact])).collect();
        start.extend((0..3).map(|_| image(&model, &mut s)));
        // Completions of one prompt: their first step is one. Those that come later find it memoised.
        start.extend([start[0].clone(), start[3].clone()]);
        let (saved, rows) = run(backbone, all, &start);
        again += rows[0] - rows[1];
        for (what, savings, waste) in ways {
            let wasteful = Wasteful { inner: backbone, waste };
            assert_eq!(run(&wasteful, savings, &start).0, saved, "case {case}: {what}");
        }
    }
    assert!(again > 100, "the second time {again} rows of first unconditional steps are known");
}

/// Weights that products take: of a layer, of its keys and values, and per id of the head.
struct Shape {
    layers: u64,
    layer: u64,
    keys: u64,
    id: u64,
}

/// Counts the multiplications and row-layers of a model of some shape that it does not compute.
struct Counting {
    hash: Hash,
    spec: ModelSpec,
    shape: Shape,
    products: AtomicU64,
    /// Rows of every layer, in the last one only those that are needed.
    row_layers: AtomicU64,
}

impl Counting {
    fn new(image: ImageSpec, vocab_size: usize, max_positions: usize, shape: Shape) -> Self {
        let hash = Hash::new();
        let spec = ModelSpec { vocab_size, image: Some(image), max_positions, ..hash.spec().clone() };
        Self { hash, spec, shape, products: AtomicU64::new(0), row_layers: AtomicU64::new(0) }
    }
}

impl Backbone for Counting {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&self, packed: &Packed) -> Result<Tensor, ModelError> {
        let (rows, needed) = (packed.rows() as u64, packed.needed.len() as u64);
        let Shape { layers, layer, keys, .. } = self.shape;
        self.products.fetch_add(rows * layer * (layers - 1) + needed * layer + (rows - needed) * keys, SeqCst);
        self.row_layers.fetch_add(rows * (layers - 1) + needed, SeqCst);
        self.hash.forward(packed)
    }

    fn logits(&self, hidden: &Tensor, vocab: Range<u32>) -> Result<Tensor, ModelError> {
        self.products.fetch_add(hidden.dim(0)? as u64 * vocab.len() as u64 * self.shape.id, SeqCst);
        self.hash.logits(hidden, vocab)
    }
}

/// How many times as much the naive loop does.
#[derive(Debug)]
struct Gain {
    products: f64,
    row_layers: f64,
}

/// An image of a caption of so many ids on a model's usual grid, with guidance.
fn guided(spec: &ModelSpec, steps: usize, caption: usize, seed: u64) -> Canvas {
    let params = ImageParams {
        steps,
        guidance_scale: 2.0,
        schedule: Schedule::Cosine,
        temperature: 1.0,
        token_temperature: None,
        sampler: ImageSampler::Maskgit,
        grid: spec.image.as_ref().unwrap().grid,
        initial_codes: Vec::new(),
        preview_every: 0,
    };
    let frame = |caption: usize| ([vec![1; caption], vec![2; 3]].concat(), vec![3]);
    Canvas::image(spec, frame(caption), frame(0), &params, seed).unwrap()
}

/// What is gained on `images` that are drawn together, the first ones or, if `later`, after another one. The naive loop has
/// two sequences of `naive` rows each, every layer and the whole head for all of them, at every step.
fn gain(model: &Counting, later: bool, images: u64, steps: usize, caption: usize, naive: u64) -> Gain {
    let mut denoiser = Denoiser::default();
    if later {
        denoiser.step(model, &mut [&mut guided(&model.spec, steps, caption, 0)]).unwrap();
    }
    model.products.store(0, SeqCst);
    model.row_layers.store(0, SeqCst);
    let mut canvases: Vec<Canvas> = (0..images).map(|seed| guided(&model.spec, steps, caption, seed)).collect();
    while canvases.iter().any(|canvas| canvas.finish().is_none()) {
        let mut batch: Vec<&mut Canvas> = canvases.iter_mut().filter(|c| c.finish().is_none()).collect();
        denoiser.step(model, &mut batch).unwrap();
    }
    let Shape { layers, layer, id, .. } = model.shape;
    let rows = images * steps as u64 * 2 * naive;
    let over = |naive: u64, served: &AtomicU64| naive as f64 / served.load(SeqCst) as f64;
    Gain {
        products: over(rows * (layers * layer + model.spec.vocab_size as u64 * id), &model.products),
        row_layers: over(rows * layers, &model.row_layers),
    }
}

/// MMaDA-8B as its authors run it pads both prompts to 512 tokens and computes the whole head everywhere.
#[test]
fn a_guided_image_of_mmada_takes_two_thirds_of_the_naive_row_layers() {
    let (d, mlp, codes, text) = (4096, 12_288, 8192, 126_464);
    let shape = Shape { layers: 32, layer: 4 * d * d + 3 * d * mlp, keys: 2 * d * d, id: d };
    let image = ImageSpec { codes: text..text + codes, grid: (32, 32) };
    let model = Counting::new(image, (text + codes) as usize, 2048, shape);
    let gain = |later, steps| gain(&model, later, 1, steps, 30, 512 + 1024 + 3);
    // The first one after a start, in few steps.
    let first = gain(false, 4);
    assert!(first.products >= 1.5, "{first:?}");
    let (first, later) = (gain(false, 15), gain(true, 15));
    println!("MMaDA, 15 steps: the first {first:?}, later {later:?}");
    assert!(first.products >= 1.5 && later.products > first.products && later.row_layers >= 1.5, "{first:?} {later:?}");
}

/// What would take more memory than there is for what is memoised is not begun, and does not cost the others theirs.
#[test]
fn what_is_too_large_to_memoise_leaves_what_is() {
    let (codes, text) = (8192, 126_464);
    let shape = Shape { layers: 1, layer: 1, keys: 1, id: 1 };
    let image = ImageSpec { codes: text..text + codes, grid: (8, 8) };
    let mut model = Counting::new(image, (text + codes) as usize, 2048, shape);
    model.spec.text_ids = 0..text;
    let mut denoiser = Denoiser::default();
    let mut rows = |mut canvas: Canvas| denoiser.step(&model, &mut [&mut canvas]).unwrap().batch.rows();
    let picture = || guided(&model.spec, 4, 5, 0);
    let params = |max_tokens| TextParams { max_tokens, steps: 1, block_length: max_tokens, ..quiet() };
    let text = |max_tokens| {
        let params = TextParams { guidance_scale: 1.0, ..params(max_tokens) };
        Canvas::text(&model.spec, given(&[1, 2, 3]), Some(&[4]), &params, 0).unwrap()
    };
    let (first, known) = (rows(picture()), rows(picture()));
    assert_eq!(first - known, 3 + 64 + 1, "the unconditional side");
    // 140 rows of 126,464 logits are 71 MB, 20 are 10.
    assert_eq!((rows(text(140)), rows(text(140))), (143 + 141, 143 + 141));
    assert_eq!(rows(picture()), known);
    assert_eq!((rows(text(20)), rows(text(20))), (23 + 21, 23));
    assert_eq!(rows(picture()), known);
}

/// The built-in model has no padding to leave out and few ids: what is left are the last layer and the head.
#[test]
fn a_guided_image_of_the_built_in_model_takes_fewer_products_too() {
    let (d, mlp, codes, text) = (192, 512, 295, 512);
    let shape = || Shape { layers: 6, layer: 4 * d * d + 3 * d * mlp, keys: 2 * d * d, id: d };
    let image = || ImageSpec { codes: text..text + codes, grid: (8, 8) };
    let model = || Counting::new(image(), (text + codes) as usize, 1024, shape());
    let gain = |images, steps| gain(&model(), false, images, steps, 5, 5 + 3 + 64 + 1);
    let (one, four) = (gain(1, 64), gain(4, 8));
    println!("built in: one in 64 steps {one:?}, four in eight {four:?}");
    assert!(one.products > 1.15 && four.products > 1.25, "{one:?} alone, {four:?} as one of four in eight steps");
    assert!(one.row_layers > 1.1 && four.row_layers > 1.2, "{one:?} alone, {four:?} as one of four in eight steps");
}
