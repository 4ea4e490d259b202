//! Whether a model fits the device, before any of it is loaded: weights by the headers of the safetensors files,
//! activations and caches by the shape in `config.json` and the configured limits.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::Value;

use super::Verdict;
use crate::config::Engine;
use crate::models::vq::tensors::TensorFile;

/// Bytes that logits take at most at once; the sampler works in chunks of this size.
const LOGITS: u64 = 64 << 20;

/// The sizes that memory depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    hidden: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    mlp: u64,
    positions: u64,
}

impl Shape {
    /// Reads LLaDA's names or those of Qwen's descendants.
    pub(super) fn from_config(config: &Value) -> Result<Self, String> {
        // Sizes beyond this are no model's, and their products would not fit the sums below.
        let size = |name: &&str| config.get(*name).and_then(Value::as_u64).filter(|n| (1..=1 << 20).contains(n));
        let first = |names: &[&str]| names.iter().find_map(size);
        let needed =
            |names: &[&str]| first(names).ok_or_else(|| format!("config.json: no usable {}", names.join(" or ")));
        let hidden = needed(&["d_model", "hidden_size"])?;
        let heads = needed(&["n_heads", "num_attention_heads"])?;
        let mlp = first(&["mlp_hidden_size", "intermediate_size"])
            .or_else(|| Some(first(&["mlp_ratio"])?.saturating_mul(hidden)));
        Ok(Self {
            hidden,
            layers: needed(&["n_layers", "num_hidden_layers"])?,
            heads,
            kv_heads: first(&["n_kv_heads", "num_key_value_heads"]).unwrap_or(heads),
            head_dim: first(&["head_dim"]).unwrap_or(hidden / heads),
            mlp: mlp.ok_or("config.json: no mlp_hidden_size or intermediate_size")?,
            positions: needed(&["max_sequence_length", "max_position_embeddings"])?,
        })
    }
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    weights: u64,
    /// Of one forward with every row taken.
    activations: u64,
    /// Of the requests that ask for one, if all that may run do, at the greatest length, within the limit.
    caches: u64,
}

/// What a model needs under the limits; `width` is the bytes of a value.
pub(super) fn need(weights: u64, shape: &Shape, limits: &Engine, width: u64) -> Need {
    let Shape { hidden, layers, heads, kv_heads, head_dim, mlp, positions } = *shape;
    let (rows, running) = (limits.max_rows as u64, limits.max_running as u64);
    // The residual stream and its norm; then queries, keys, values and what attention makes of them, or the two
    // projections of the feed-forward layer and their product.
    let row = 2 * hidden + (2 * (heads + kv_heads) * head_dim).max(3 * mlp);
    let product = |factors: &[u64]| factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor));
    Need {
        weights,
        activations: product(&[rows, row, width]).saturating_add(LOGITS),
        caches: product(&[running, positions.min(rows), layers, 2, kv_heads, head_dim, width])
            .min(limits.max_cache_bytes as u64),
    }
}

/// The verdict on a need, where `memory` bytes are free (`None`: the device does not say).
pub(super) fn judge(need: &Need, memory: Option<u64>) -> (Verdict, String) {
    let Need { weights, activations, caches } = *need;
    let always = weights.saturating_add(activations);
    let found = format!(
        "{} of weights, {} of activations, up to {} of caches for requests that ask for them",
        gigabytes(weights),
        gigabytes(activations),
        gigabytes(caches)
    );
    match memory {
        None => (Verdict::Warn, format!("{found}; the device does not say how much it has")),
        Some(memory) if always > memory => {
            let advice = if weights > memory { "it needs a larger device" } else { "lower --max-rows" };
            (Verdict::Fail, format!("{found}; {} are free: {advice}", gigabytes(memory)))
        }
        Some(memory) if always.saturating_add(caches) > memory => {
            (Verdict::Warn, format!("{found}; {} are free: lower --max-cache-bytes", gigabytes(memory)))
        }
        Some(memory) => (Verdict::Pass, format!("{found}; {} are free", gigabytes(memory))),
    }
}

fn gigabytes(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        small if small < 0.1 => format!("{:.1} MB", small * 1e3),
        large => format!("{large:.1} GB"),
    }
}

/// The check of the model in `folder`.
///
/// # Errors
/// What is missing or malformed.
pub(super) fn check(folder: &Path, device: &Device, limits: &Engine) -> Result<(Verdict, String), String> {
    let path = folder.join("config.json");
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    let shape = Shape::from_config(&config)?;
    // On the CPU everything is f32, whatever the file holds; elsewhere weights keep their type.
    let widen = device.is_cpu();
    let mut weights = 0;
    for file in weight_files(folder)? {
        weights += TensorFile::open(&file, device).map_err(|e| e.to_string())?.memory(widen);
    }
    let memory = if device.is_cpu() { free_memory() } else { None };
    Ok(judge(&need(weights, &shape, limits, if widen { 4 } else { 2 }), memory))
}

/// The shards that the index names, or the one file.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let malformed = |why: String| format!("{}: {why}", index.display());
    let bytes = std::fs::read(&index).map_err(|e| malformed(e.to_string()))?;
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let map =
        parsed.get("weight_map").and_then(Value::as_object).ok_or_else(|| malformed("no weight_map".to_owned()))?;
    let names: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    match names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        Some(name) => Err(malformed(format!("{name:?} is not a file of this folder"))),
        None => Ok(names.into_iter().map(|name| folder.join(name)).collect()),
    }
}

/// Bytes that this process may still take: what the machine has, and what its control group allows.
fn free_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = available(&read("/proc/meminfo")?)?;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = match (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current")) {
        (Some(max), Some(current)) => max.saturating_sub(current),
        _ => u64::MAX,
    };
    Some(machine.min(group))
}

/// The available memory by `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llada() -> Shape {
        let config = json!({"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288,
            "max_sequence_length": 4096});
        Shape::from_config(&config).unwrap()
    }

    #[test]
    fn shapes_are_read_by_the_names_of_both_lineages() {
        assert_eq!((llada().head_dim, llada().kv_heads), (128, 32));
        let dream = json!({"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "intermediate_size": 18944, "max_position_embeddings": 131_072});
        let dream = Shape::from_config(&dream).unwrap();
        assert_eq!((dream.head_dim, dream.kv_heads, dream.mlp), (128, 4, 18944));
        let refusal = Shape::from_config(&json!({"d_model": 64, "n_heads": 4})).unwrap_err();
        assert!(refusal.contains("n_layers") || refusal.contains("mlp_hidden_size"), "{refusal}");
    }

    #[test]
    fn llada_in_bf16_fits_a_large_card_and_says_what_a_small_one_lacks() {
        let limits = Engine { max_rows: 2048, max_running: 8, max_cache_bytes: 1 << 40, ..Engine::default() };
        let need = need(16_030_000_000, &llada(), &limits, 2);
        // 2048 rows of 2·4096 + 3·12288 values; 8 canvases of 2048 positions of 32·2·4096 values.
        assert_eq!(need.activations, 2048 * 45_056 * 2 + LOGITS);
        assert_eq!(need.caches, 8 * 2048 * 262_144 * 2);
        let bounded = super::need(0, &llada(), &Engine { max_cache_bytes: 1 << 30, ..limits.clone() }, 2);
        assert_eq!(bounded.caches, 1 << 30);
        let verdict = |gigabytes: u64| judge(&need, Some(gigabytes * 1_000_000_000));
        assert_eq!(verdict(80).0, Verdict::Pass);
        assert_eq!(verdict(24).0, Verdict::Warn);
        assert!(verdict(24).1.contains("--max-cache-bytes"), "{}", verdict(24).1);
        let small = verdict(12);
        assert_eq!(small.0, Verdict::Fail);
        assert!(small.1.contains("16.0 GB of weights") && small.1.contains("12.0 GB are free"), "{}", small.1);
        assert!(judge(&need, Some(16_100_000_000)).1.contains("--max-rows"));
        assert_eq!(judge(&need, None).0, Verdict::Warn);
    }

    #[test]
    fn weights_are_counted_by_headers_alone() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = candle_core::Tensor::zeros((10, 100), candle_core::DType::BF16, &Device::Cpu).unwrap();
        let save = |name: &str| {
            let tensors = std::collections::HashMap::from([("a", tensor.clone())]);
            candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
        };
        save("m-1.safetensors");
        save("m-2.safetensors");
        let index = json!({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let files = weight_files(folder.path()).unwrap();
        assert_eq!(files.len(), 2);
        let sum = |widen| files.iter().map(|f| TensorFile::open(f, &Device::Cpu).unwrap().memory(widen)).sum::<u64>();
        assert_eq!((sum(false), sum(true)), (4000, 8000));
        let outside = json!({"weight_map": {"a": "../x.safetensors"}}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), outside).unwrap();
        assert!(weight_files(folder.path()).is_err());
    }

    #[test]
    fn free_memory_is_what_is_available() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available(meminfo), Some(22_000_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
