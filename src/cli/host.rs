//! The engine of a command, set up from the configuration: threads, device, model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use candle_core::Device;

use crate::config::{self, DeviceKind, WeightFormat};
use crate::engine::{Engine, Limits};
use crate::hub::{self, Reference};
use crate::models::checkpoint::{self, Checkpoint};
use crate::models::nn::{Format, calibrate};
use crate::models::vq;
use crate::models::{Model, Placement};
use crate::starter;

/// An engine that runs in this process.
pub struct Host {
    /// Its door.
    pub engine: Engine,
    /// What it runs.
    pub model: Model,
    /// Where the model's tensors are.
    pub device_handle: Device,
    /// The device in words.
    pub device: String,
    /// How the weights of products are kept.
    pub weights: &'static str,
    /// CPU threads it computes with.
    pub threads: usize,
}

impl Host {
    /// The model in one line: name, weights, size, what it makes.
    #[must_use]
    pub fn describe_model(&self) -> String {
        let spec = self.engine.spec();
        let sha = spec.sha256.get(..12).unwrap_or(&spec.sha256);
        let images = spec.image.as_ref().map_or(String::new(), |image| {
            let (rows, columns) = image.grid;
            format!(" and images of {rows}×{columns} tokens")
        });
        format!("{}@{sha}, {:.1} M parameters, text{images}", spec.name, spec.parameters as f64 / 1e6)
    }
}

/// Loads the model and starts the engine.
///
/// # Errors
/// When the device is not there or the model cannot be loaded.
pub fn start(config: &config::Engine) -> anyhow::Result<Host> {
    let begun = Instant::now();
    let threads = threads(config)?;
    let placement = placement(config)?;
    let model = load(config, &placement)?;
    let loaded_ms = begun.elapsed().as_millis();
    let (words, weights) = (describe(&placement.device), weights(&placement));
    tracing::info!(model = config.model, device = words, weights, threads, loaded_ms, "model loaded");
    let &config::Engine { max_queue, max_rows, max_running, max_cache_bytes, .. } = config;
    let limits = Limits { max_queue, max_rows, max_running, max_cache_bytes };
    let engine = Engine::start(model.clone(), limits)?;
    Ok(Host { engine, model, device_handle: placement.device, device: words, weights, threads })
}

/// Loads the model alone, for commands that run it without an engine.
///
/// # Errors
/// As [`start`].
pub fn model(config: &config::Engine) -> anyhow::Result<Model> {
    threads(config)?;
    load(config, &placement(config)?)
}

/// Where the weights go.
///
/// # Errors
/// When the device is not there, or keeps no weights in the format.
pub fn placement(config: &config::Engine) -> anyhow::Result<Placement> {
    let device = device(config.device)?;
    let format = match config.weights {
        WeightFormat::F32 => Format::F32,
        WeightFormat::Bf16 => Format::Bf16,
        WeightFormat::Int8 => Format::Int8,
    };
    if format != Format::F32 && !device.is_cpu() {
        bail!("--weights {}: only for the CPU; a GPU keeps the types of the file", name(format));
    }
    Ok(Placement { device, format })
}

/// How weights are kept, in a word.
fn weights(placement: &Placement) -> &'static str {
    if placement.device.is_cpu() { name(placement.format) } else { "as in the file" }
}

fn name(format: Format) -> &'static str {
    match format {
        Format::F32 => "f32",
        Format::Bf16 => "bf16",
        Format::Int8 => "int8",
    }
}

/// Sets the size of the thread pool, once per process, and returns it.
fn threads(config: &config::Engine) -> anyhow::Result<usize> {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.threads.unwrap_or_else(|| calibrate::threads(processors()));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("thread pool")?;
    Ok(threads)
}

/// The device that was asked for.
///
/// # Errors
/// When this build or this machine has none of the kind.
pub fn device(kind: DeviceKind) -> anyhow::Result<Device> {
    let gpu = |kind: &str, feature: &str, device: candle_core::Result<Device>| {
        device.with_context(|| {
            format!("--device {kind}: not available; it needs the device and a build with `--features {feature}`")
        })
    };
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => gpu("cuda", "cuda", Device::new_cuda(0)),
        DeviceKind::Metal => gpu("metal", "metal", Device::new_metal(0)),
        DeviceKind::Auto if candle_core::utils::cuda_is_available() => gpu("cuda", "cuda", Device::new_cuda(0)),
        DeviceKind::Auto if candle_core::utils::metal_is_available() => gpu("metal", "metal", Device::new_metal(0)),
        DeviceKind::Auto => Ok(Device::Cpu),
    }
}

/// A device in words.
#[must_use]
pub fn describe(device: &Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({})", cpu_features().join(" ")),
        Device::Cuda(_) => "cuda:0".to_owned(),
        Device::Metal(_) => "metal:0".to_owned(),
    }
}

/// Instruction sets of this CPU that kernels make use of.
#[must_use]
pub fn cpu_features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
    ] {
        if there {
            features.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    features.push("neon");
    features
}

/// The codec that the published MMaDA models draw with.
const CODEC: &str = "showlab/magvitv2";

/// The built-in model by its name, else a checkpoint as a hub has it, or weights of the built-in model's shape that
/// `lacuna pretrain` left.
fn load(config: &config::Engine, to: &Placement) -> anyhow::Result<Model> {
    let model = &config.model;
    if model == starter::NAME {
        return Ok(starter::model::load(to)?);
    }
    let (folder, of_hub) = obtain(model, config.offline).with_context(|| format!("--model {model}"))?;
    if !checkpoint::is_checkpoint(&folder) {
        return starter::model::load_from(&folder, to).with_context(|| format!("--model {model}"));
    }
    let name = if of_hub { model.clone() } else { served_name(&folder) };
    let loaded = Checkpoint::open(&folder, &name).and_then(|checkpoint| checkpoint.load(to));
    let mut loaded = loaded.with_context(|| format!("--model {model}"))?;
    if loaded.backbone.spec().image.is_some() {
        let named = config.codec.as_deref().or_else(|| of_hub.then_some(CODEC));
        match named {
            Some(codec) => {
                let (folder, _) = obtain(codec, config.offline).with_context(|| format!("--codec {codec}"))?;
                loaded.codec = Some(vq::load(&folder, &to.device).with_context(|| format!("--codec {codec}"))?);
            }
            None => tracing::warn!("this model draws, but --codec names no image codec: it only writes"),
        }
    }
    Ok(loaded)
}

/// The folder of the model, if it is a checkpoint; one of the hub is downloaded first.
///
/// # Errors
/// When it is nowhere.
pub fn checkpoint(config: &config::Engine) -> anyhow::Result<Option<PathBuf>> {
    if config.model == starter::NAME {
        return Ok(None);
    }
    let (folder, _) = obtain(&config.model, config.offline)?;
    Ok(checkpoint::is_checkpoint(&folder).then_some(folder))
}

/// The folder of a model or codec, and whether it is the hub's.
fn obtain(model: &str, offline: bool) -> anyhow::Result<(PathBuf, bool)> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Ok((folder.to_owned(), false));
    }
    let reason = match Reference::parse(model) {
        Ok(_) => return Ok((hub::obtain(model, offline)?, true)),
        Err(reason) => reason,
    };
    bail!("neither `{}`, nor a folder, nor a name of the hub ({reason})", starter::NAME)
}

/// The folder's own name.
fn served_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}
