//! Whether a model fits the device, before any of it is loaded: weights by the headers of its files, activations and
//! caches by its shape and the configured limits.

use std::path::Path;

use super::Verdict;
use crate::config::Engine;
use crate::models::Placement;
use crate::models::checkpoint::Checkpoint;
use crate::models::shape::TransformerConfig;

/// Bytes that logits take at most at once; the sampler works in chunks of this size.
const LOGITS: u64 = 64 << 20;

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
pub(super) fn need(weights: u64, shape: &TransformerConfig, limits: &Engine, width: u64) -> Need {
    let [hidden, layers, heads, kv_heads, head_dim, mlp, positions, rows, running] = [
        shape.d_model,
        shape.n_layers,
        shape.n_heads,
        shape.n_kv_heads,
        shape.head_dim(),
        shape.mlp_hidden_size,
        shape.max_sequence_length,
        limits.max_rows,
        limits.max_running,
    ]
    .map(|size| size as u64);
    // The residual stream and its norm; then queries, keys, values and what attention makes of them, or the two
    // projections of the feed-forward layer and their product.
    let product = |factors: &[u64]| factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor));
    let row = product(&[2, hidden]).saturating_add(product(&[2, heads + kv_heads, head_dim]).max(product(&[3, mlp])));
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
pub(super) fn check(folder: &Path, to: &Placement, limits: &Engine) -> Result<(Verdict, String), String> {
    let checkpoint = Checkpoint::open(folder, &limits.model).map_err(|e| e.to_string())?;
    let memory = if to.device.is_cpu() { free_memory() } else { None };
    // On the CPU activations are f32, whatever the file holds; elsewhere they have its type.
    let width = if to.device.is_cpu() { 4 } else { 2 };
    Ok(judge(&need(checkpoint.weight_bytes(to), checkpoint.config(), limits, width), memory))
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
    use super::*;
    use crate::models::shape::Variant;

    fn llada() -> TransformerConfig {
        TransformerConfig {
            d_model: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: 32,
            mlp_hidden_size: 12288,
            embedding_size: 126_464,
            max_sequence_length: 4096,
            rms_norm_eps: 1e-5,
            rope_theta: 5e5,
            weight_tying: false,
            variant: Variant::default(),
        }
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
    fn free_memory_is_what_is_available() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:          100000 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available(meminfo), Some(22_000_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
