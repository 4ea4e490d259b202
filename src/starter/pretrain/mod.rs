//! `lacuna pretrain`: trains the built-in model from nothing on generated data.
//!
//! A step draws a batch, splits it into fixed shards, runs forward and backward on one thread each, sums the
//! gradients in order and updates: the result depends on the seed and the options, not on the number of threads.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};

use crate::models::nn::Precision;
use crate::models::nn::token_logprob::token_logprob;
use crate::models::optim::{LrSchedule, OptimConfig, Optimizer, Parameter, Rule};
use crate::models::transformer::{Transformer, TransformerConfig};
use crate::models::{ModelError, Packed};

mod batch;
mod checkpoint;
mod init;
mod samples;

pub use batch::{Mixture, Sequence, Source};
pub use checkpoint::{Checkpoint, export};
pub use samples::Answer;

/// Sequences of one forward and backward: few enough to stay in the cache.
const MICRO_BATCH: usize = 12;
/// Shards of a batch. Fixed, so that the order of summation is.
const SHARDS: usize = 2;

/// What to train, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where checkpoints and the final weights go.
    pub out: PathBuf,
    /// Updates in all.
    pub steps: u64,
    /// Sequences per update.
    pub batch: usize,
    /// Seed of data, masks and initialisation.
    pub seed: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Share of the steps over which the rate falls to zero.
    pub decay_share: f64,
    /// Decay of the averaged weights, which are the ones exported.
    pub ema: f64,
    /// Muon for the hidden matrices; AdamW for all otherwise.
    pub muon: bool,
    /// bf16 products where the CPU has them.
    pub precision: Precision,
    /// Data mixture.
    pub mixture: Mixture,
    /// Updates between checkpoints.
    pub checkpoint_every: u64,
    /// Continue from the checkpoint in `out`.
    pub resume: bool,
    /// Shape of the transformer.
    pub config: TransformerConfig,
}

/// How it goes, after every update.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Updates made.
    pub step: u64,
    /// Updates in all.
    pub steps: u64,
    /// Loss of text and of images in this batch: mean over sequences of the weighted cross-entropy, nats.
    pub losses: [f64; 2],
    /// Learning rate.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Rows trained on in this update.
    pub rows: usize,
    /// Time of this update.
    pub elapsed: Duration,
    /// With a checkpoint come samples: these answers, and pictures in `samples.png` beside it.
    pub samples: Option<Vec<Answer>>,
}

/// Trains to the end and exports the averaged weights to `out`. `report` sees every step and can stop the run
/// (a checkpoint is written first) by returning false.
///
/// # Errors
/// When the options are invalid, a checkpoint cannot be read or written, or the device fails.
pub fn run(options: &Options, mut report: impl FnMut(&Progress) -> bool) -> Result<(), ModelError> {
    let source = Source::new(options.mixture, options.seed)?;
    let mut trainer = Trainer::new(options, &source)?;
    while trainer.optimizer.steps() < options.steps {
        let mut progress = trainer.step(options, &source)?;
        let due = progress.step % options.checkpoint_every.max(1) == 0 || progress.step == options.steps;
        if due {
            trainer.save(options)?;
            progress.samples = Some(samples::take(&options.out, &options.config, &trainer.ema, options.seed)?);
        }
        if !report(&progress) {
            if !due {
                trainer.save(options)?;
            }
            return Ok(());
        }
    }
    export(&options.out, &trainer.ema)
}

struct Trainer {
    optimizer: Optimizer,
    ema: Vec<(String, Tensor)>,
    schedule: LrSchedule,
    pools: Vec<rayon::ThreadPool>,
}

impl Trainer {
    fn new(options: &Options, source: &Source) -> Result<Self, ModelError> {
        let restored = if options.resume { Some(Checkpoint::load(&options.out)?) } else { None };
        let initial = match &restored {
            Some(checkpoint) => checkpoint.weights.clone(),
            None => init::weights(&options.config, source.tokenizer(), options.seed)?,
        };
        let mut parameters = Vec::with_capacity(initial.len());
        for (name, value) in &initial {
            let hidden = name.contains(".blocks.") && value.rank() == 2;
            let rule = if hidden && options.muon { Rule::Muon } else { Rule::AdamW };
            parameters.push(Parameter { name: name.clone(), var: Var::from_tensor(value)?, rule });
        }
        let mut optimizer = Optimizer::new(parameters, OptimConfig::default())?;
        let ema = match restored {
            Some(checkpoint) => {
                optimizer.restore(checkpoint.step, |name| checkpoint.state(name))?;
                checkpoint.ema
            }
            None => initial,
        };
        let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools =
            (0..SHARDS).map(pool).collect::<Result<_, _>>().map_err(|e| ModelError::Input(format!("threads: {e}")))?;
        let schedule = LrSchedule {
            peak: options.lr,
            warmup: options.warmup,
            total: options.steps,
            decay_share: options.decay_share,
        };
        Ok(Self { optimizer, ema, schedule, pools })
    }

    fn step(&mut self, options: &Options, source: &Source) -> Result<Progress, ModelError> {
        let started = Instant::now();
        let step = self.optimizer.steps();
        let sequences = draw(source, options, step)?;
        let parameters = self.optimizer.parameters();
        let shards: Vec<Vec<&Sequence>> =
            (0..SHARDS).map(|shard| sequences.iter().skip(shard).step_by(SHARDS).collect()).collect();
        let outcomes: Vec<Result<Gradients, ModelError>> = std::thread::scope(|scope| {
            let workers: Vec<_> = shards
                .iter()
                .zip(&self.pools)
                .map(|(shard, pool)| scope.spawn(move || pool.install(|| gradients(options, parameters, shard))))
                .collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|_| Err(ModelError::Input("a training thread failed".into()))))
                .collect()
        });
        let mut total = Gradients::default();
        for outcome in outcomes {
            total.add(outcome?)?;
        }
        let scale = 1.0 / sequences.len() as f64;
        let grads = total.values.iter().map(|g| g * scale).collect::<candle_core::Result<Vec<_>>>()?;
        let lr = self.schedule.at(step);
        let grad_norm = self.optimizer.step(&grads, lr)?;
        self.average(options.ema.min((step + 1) as f64 / (step + 10) as f64))?;
        let images = sequences.iter().filter(|s| s.image).count();
        let counts = [sequences.len() - images, images];
        Ok(Progress {
            step: self.optimizer.steps(),
            steps: options.steps,
            losses: std::array::from_fn(|i| total.losses[i] / counts[i].max(1) as f64),
            lr,
            grad_norm,
            rows: sequences.iter().map(|s| s.ids.len()).sum(),
            elapsed: started.elapsed(),
            samples: None,
        })
    }

    fn average(&mut self, decay: f64) -> Result<(), ModelError> {
        for ((_, mean), parameter) in self.ema.iter_mut().zip(self.optimizer.parameters()) {
            *mean = ((&*mean * decay)? + (parameter.var.as_tensor() * (1.0 - decay))?)?.detach();
        }
        Ok(())
    }

    fn save(&self, options: &Options) -> Result<(), ModelError> {
        checkpoint::save(&options.out, &self.optimizer, &self.ema)
    }
}

/// The batch of one step, mask ratios stratified over it.
fn draw(source: &Source, options: &Options, step: u64) -> Result<Vec<Sequence>, ModelError> {
    let n = options.batch as u64;
    let offset = crate::diffusion::rng::Stream::new(options.seed ^ 0x5747, step).unit();
    (0..n)
        .map(|i| {
            // A fixed stride visits the strata in an order unrelated to the kinds of sequences.
            let stratum = ((i as f64 * 0.618_033_988_749_895) + offset).fract();
            source.sequence(step * n + i, stratum)
        })
        .collect()
}

/// Summed gradients and losses (text, image) of some sequences.
#[derive(Default)]
struct Gradients {
    values: Vec<Tensor>,
    losses: [f64; 2],
}

impl Gradients {
    fn add(&mut self, other: Self) -> Result<(), ModelError> {
        if self.values.is_empty() {
            self.values = other.values;
        } else {
            for (sum, value) in self.values.iter_mut().zip(&other.values) {
                *sum = (&*sum + value)?;
            }
        }
        for (sum, value) in self.losses.iter_mut().zip(other.losses) {
            *sum += value;
        }
        Ok(())
    }
}

/// Forward and backward over a shard, in micro-batches.
fn gradients(options: &Options, parameters: &[Parameter], shard: &[&Sequence]) -> Result<Gradients, ModelError> {
    let named = |name: &str| parameters.iter().find(|p| p.name == name).map(|p| p.var.as_tensor().clone());
    let mut total = Gradients::default();
    for part in shard.chunks(MICRO_BATCH) {
        let model = Transformer::new(options.config.clone(), options.precision, named)?;
        let (loss, losses) = loss(&model, part)?;
        let grads: GradStore = loss.backward()?;
        let values = parameters
            .iter()
            .map(|p| grads.get(&p.var).map_or_else(|| p.var.zeros_like(), |g| Ok(g.clone())))
            .collect::<candle_core::Result<_>>()?;
        total.add(Gradients { values, losses })?;
    }
    Ok(total)
}

/// Σ weight · −log p(target) over the masked positions of `sequences`, and its text and image parts.
fn loss(model: &Transformer, sequences: &[&Sequence]) -> Result<(Tensor, [f64; 2]), ModelError> {
    let mut packed = Packed::default();
    // Text first, so that each head slice gets contiguous rows.
    let ordered: Vec<&&Sequence> =
        sequences.iter().filter(|s| !s.image).chain(sequences.iter().filter(|s| s.image)).collect();
    for sequence in &ordered {
        packed.push(&sequence.ids, sequence.masked.iter().copied());
    }
    let hidden = model.hidden(&packed)?;
    let text_rows: usize = ordered.iter().filter(|s| !s.image).map(|s| s.masked.len()).sum();
    let text_ids = 0..crate::starter::tokenizer::VOCAB_SIZE as u32;
    let parts = [(0..text_rows, text_ids, false), (text_rows..hidden.dim(0)?, crate::starter::code_ids(), true)];
    let mut sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
    let mut losses = [0.0; 2];
    for (i, (rows, ids, image)) in parts.into_iter().enumerate() {
        if rows.is_empty() {
            continue;
        }
        let of_kind = || ordered.iter().filter(|s| s.image == image);
        let targets: Vec<u32> = of_kind().flat_map(|s| s.targets.iter().map(|t| t - ids.start)).collect();
        let weights: Vec<f32> = of_kind().flat_map(|s| s.weights.iter().copied()).collect();
        let logits = model.logits(&hidden.narrow(0, rows.start, rows.len())?, ids)?;
        let weights = Tensor::from_vec(weights, targets.len(), hidden.device())?;
        let part = (token_logprob(&logits, &targets)? * weights)?.sum_all()?.neg()?;
        losses[i] = f64::from(part.to_scalar::<f32>()?);
        sum = (sum + part)?;
    }
    Ok((sum, losses))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(out: &std::path::Path) -> Options {
        let config = TransformerConfig {
            d_model: 24,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            mlp_hidden_size: 40,
            ..crate::starter::config()
        };
        Options {
            out: out.to_path_buf(),
            steps: 6,
            batch: 5,
            seed: 3,
            lr: 1e-2,
            warmup: 2,
            decay_share: 0.5,
            ema: 0.9,
            muon: true,
            precision: Precision::Exact,
            mixture: Mixture::default(),
            checkpoint_every: 3,
            resume: false,
            config,
        }
    }

    #[test]
    fn a_run_repeats_and_an_interrupted_one_ends_the_same() -> Result<(), ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let [whole, again, parts] = ["whole", "again", "parts"].map(|name| tiny(&folder.path().join(name)));
        let mut losses = Vec::new();
        run(&whole, |p| {
            losses.push(p.losses[0] + p.losses[1]);
            assert_eq!(p.samples.as_ref().map(Vec::len), (p.step % 3 == 0).then_some(3));
            true
        })?;
        run(&again, |_| true)?;
        run(&parts, |p| p.step < 4)?;
        assert!(!parts.out.join("model.safetensors").exists());
        run(&Options { resume: true, ..parts.clone() }, |p| {
            assert!(p.step > 4);
            true
        })?;
        let bytes = |o: &Options| std::fs::read(o.out.join("model.safetensors")).unwrap();
        assert!(bytes(&whole) == bytes(&again) && bytes(&whole) == bytes(&parts));
        assert!(whole.out.join("samples.png").exists());
        assert!(losses[5] < losses[0], "{losses:?}");
        Ok(())
    }

    #[test]
    fn every_variable_has_the_gradient_of_finite_differences() -> Result<(), ModelError> {
        let options = tiny(std::path::Path::new("unused"));
        let source = Source::new(options.mixture, 1)?;
        let sequences: Vec<Sequence> = (0..6).map(|i| source.sequence(i, 0.5)).collect::<Result<_, _>>()?;
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        let weights = init::weights(&options.config, source.tokenizer(), 1)?;
        let parameters: Vec<Parameter> = weights
            .iter()
            .map(|(name, value)| Ok(Parameter { name: name.clone(), var: Var::from_tensor(value)?, rule: Rule::AdamW }))
            .collect::<candle_core::Result<_>>()?;
        let value = |parameters: &[Parameter]| -> Result<f64, ModelError> {
            let named = |name: &str| parameters.iter().find(|p| p.name == name).map(|p| p.var.as_tensor().clone());
            let model = Transformer::new(options.config.clone(), Precision::Exact, named)?;
            Ok(loss(&model, &sequences)?.1.iter().sum())
        };
        let analytic = gradients(&options, &parameters, &sequences)?.values;
        for (parameter, gradient) in parameters.iter().zip(&analytic) {
            // Along the gradient itself the derivative is its norm: one number tests every entry of the variable.
            let norm = f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
            assert!(norm > 0.0, "{} has no gradient", parameter.name);
            let direction = (gradient / norm)?;
            let original = parameter.var.as_tensor().copy()?;
            let step = 1e-2;
            let at = |by: f64| -> Result<f64, ModelError> {
                parameter.var.set(&(&original + (&direction * by)?)?)?;
                value(&parameters)
            };
            let numeric = (at(step)? - at(-step)?) / (2.0 * step);
            parameter.var.set(&original)?;
            let error = (numeric - norm).abs() / norm;
            assert!(error < 0.05, "{}: {numeric} by differences, {norm} by backward", parameter.name);
        }
        Ok(())
    }
}
