//! Which files of a repository are wanted: configuration, tokenizer, safetensors weights, nothing else.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::HubError;

/// Files that are taken when they are there.
const SMALL: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Names of weights, the first that is there is taken; an index stands for the shards that it names.
pub(super) const WEIGHTS: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
];

/// Bytes of the largest file that is not weights: vocabularies of a few hundred thousand entries take tens of MB.
const MAX_SMALL_BYTES: u64 = 256 << 20;

/// What the hub says of a model at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// The commit, 40 hexadecimal digits.
    pub sha: String,
    /// Its files.
    pub siblings: Vec<Sibling>,
}

/// A file as the hub lists it.
#[derive(Debug, Deserialize)]
pub(super) struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
}

/// A file to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its name, without folders.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What its content is called in the cache: its SHA-256 (64 digits), or the object id that git gives it (40).
    pub blob: String,
}

impl Info {
    /// The configuration, the tokenizer and the weights, or the index in their place.
    ///
    /// # Errors
    /// When there are no weights to load, or the list does not make sense.
    pub(super) fn wanted(&self, repo: &str) -> Result<Vec<Wanted>, HubError> {
        let Some(weights) = WEIGHTS.iter().find(|name| self.find(name).is_some()) else {
            return Err(HubError::NoWeights { repo: repo.to_owned(), found: self.other_weights() });
        };
        let small = SMALL.iter().filter(|name| self.find(name).is_some());
        small.chain([weights]).map(|name| self.file(name)).collect()
    }

    /// The shards that the index (a JSON file) names.
    ///
    /// # Errors
    /// When it names a file that is not there or is none.
    pub(super) fn shards(&self, index: &[u8]) -> Result<Vec<Wanted>, HubError> {
        shard_names(index)
            .map_err(|problem| malformed(WEIGHTS[0], &problem))?
            .iter()
            .map(|name| self.file(name))
            .collect()
    }

    fn find(&self, name: &str) -> Option<&Sibling> {
        self.siblings.iter().find(|file| file.rfilename == name)
    }

    fn file(&self, name: &str) -> Result<Wanted, HubError> {
        let file = self.find(name).ok_or_else(|| malformed(name, "the repository does not list it"))?;
        let blob = file.lfs.as_ref().map(|lfs| &lfs.sha256).or(file.blob_id.as_ref());
        let (Some(blob), Some(size)) = (blob, file.size) else {
            return Err(malformed(name, "the hub says neither its size nor its hash"));
        };
        if !is_hash(blob) {
            return Err(malformed(name, "the hub's hash of it is none"));
        }
        if size > MAX_SMALL_BYTES && !name.ends_with(".safetensors") {
            return Err(malformed(name, &format!("{size} bytes; at most {MAX_SMALL_BYTES} are taken")));
        }
        Ok(Wanted { name: name.to_owned(), size, blob: blob.clone() })
    }

    fn other_weights(&self) -> String {
        let names = self.siblings.iter().map(|file| file.rfilename.as_str());
        let other =
            |name: &&str| [".bin", ".pt", ".pth", ".ckpt", ".gguf", ".safetensors"].iter().any(|e| name.ends_with(e));
        let found: Vec<&str> = names.filter(other).take(5).collect();
        if found.is_empty() { "no weights at all".to_owned() } else { format!("there is {}", found.join(", ")) }
    }
}

/// The files that an index of shards names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn shard_names(index: &[u8]) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|e| e.to_string())?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    match names.iter().find(|name| !is_plain(name) || !name.ends_with(".safetensors")) {
        Some(name) => Err(format!("{name:?} is no name of a safetensors file")),
        None if names.is_empty() => Err("it names no file".to_owned()),
        None => Ok(names),
    }
}

/// Whether it can be a file's name in the cache and in a URL, without folders and without escapes.
fn is_plain(name: &str) -> bool {
    !name.starts_with('.') && name.len() <= 200 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Whether it is a SHA-1 or a SHA-256, in hexadecimal digits.
pub(super) fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn malformed(name: &str, problem: &str) -> HubError {
    HubError::Malformed { url: name.to_owned(), problem: problem.to_owned() }
}
