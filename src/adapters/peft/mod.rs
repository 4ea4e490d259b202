//! The two files that PEFT exchanges LoRA adapters in: read with suspicion, written so that PEFT itself loads them.
//!
//! `adapter_model.safetensors` holds `base_model.model.<module>.lora_A.weight` `(r, in)` and `.lora_B.weight`
//! `(out, r)`, `adapter_config.json` how they are applied (PEFT's `LoraConfig`). Everything that changes results is
//! honoured or refused by name (`config`); tensors must be exactly those of modules of the base (`tensors`).
//! Nothing but safetensors is read: the older pickled files can run code.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::{AdapterError, Base, hex};
use crate::models::lora::Lora;

mod config;
mod json;
mod tensors;
#[cfg(test)]
pub(super) mod tests;

use config::Settings;

/// Name of the tensors' file.
pub const MODEL_FILE: &str = "adapter_model.safetensors";
/// Name of the settings' file.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// What an adapter may be at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes of `adapter_model.safetensors`.
    pub file_bytes: u64,
    /// Bytes of its header.
    pub header_bytes: u64,
    /// Bytes of each JSON file.
    pub config_bytes: u64,
    /// Rank of a module.
    pub max_rank: usize,
    /// Frobenius norm of scale · B, and bound on that of a module's whole update, ‖scale · B‖ · ‖A‖. Weights of
    /// billions of values have norms of some hundreds; an update beyond this only breaks the model.
    pub max_norm: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 512 << 20, header_bytes: 1 << 20, config_bytes: 1 << 20, max_rank: 256, max_norm: 1e4 }
    }
}

/// An adapter's two files, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftFiles {
    /// `adapter_model.safetensors`.
    pub model: Vec<u8>,
    /// `adapter_config.json`.
    pub config: Vec<u8>,
}

impl PeftFiles {
    /// The files of a folder that PEFT's `save_pretrained` wrote. Links are not followed.
    ///
    /// # Errors
    /// When a file is missing, not a plain file, or over its limit.
    pub fn from_dir(dir: &Path, limits: &Limits) -> Result<Self, AdapterError> {
        Ok(Self {
            config: read_file(dir, CONFIG_FILE, limits.config_bytes)?,
            model: read_file(dir, MODEL_FILE, limits.file_bytes)?,
        })
    }

    /// Writes them into a folder, which is made when missing, for `PeftModel.from_pretrained`.
    ///
    /// # Errors
    /// When the folder or a file cannot be written.
    pub fn write_to(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join(CONFIG_FILE), &self.config)?;
        std::fs::write(dir.join(MODEL_FILE), &self.model)
    }
}

/// The adapter in `files`, checked against `base`.
///
/// # Errors
/// When anything about it is not exactly right; nothing of it is kept then.
pub fn read(files: &PeftFiles, base: &Base, limits: &Limits) -> Result<Lora, AdapterError> {
    within(CONFIG_FILE, "size in bytes", files.config.len() as u64, limits.config_bytes)?;
    let settings = Settings::parse(&files.config)?;
    if let Some(revision) = &settings.base_sha256 {
        same_base(CONFIG_FILE, revision, base)?;
    }
    tensors::read(&files.model, &settings, base, limits)
}

/// The files of `lora`, an adapter of `base`.
///
/// # Errors
/// When its tensors cannot be read from their device.
pub fn write(lora: &Lora, base: &Base) -> Result<PeftFiles, AdapterError> {
    Ok(PeftFiles { model: tensors::write(lora, base)?, config: config::write(lora, base)? })
}

fn same_base(file: &'static str, actual: &str, base: &Base) -> Result<(), AdapterError> {
    if actual.eq_ignore_ascii_case(&base.sha256) {
        return Ok(());
    }
    let actual = actual.chars().take(64).collect();
    Err(AdapterError::WrongBase { file, actual, expected: base.sha256.clone() })
}

fn within(file: &'static str, what: &str, actual: u64, limit: u64) -> Result<(), AdapterError> {
    if actual <= limit {
        return Ok(());
    }
    Err(AdapterError::TooLarge { file, what: what.to_owned(), actual, limit })
}

/// Reads a plain file of `dir`, which must not be a link.
pub(super) fn read_file(dir: &Path, name: &'static str, limit: u64) -> Result<Vec<u8>, AdapterError> {
    let io = |source| AdapterError::Io { what: format!("read {name}"), source };
    let (file, bytes) = open_file(dir, name)?;
    within(name, "size in bytes", bytes, limit)?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(io)?;
    // It may have grown since.
    within(name, "size in bytes", content.len() as u64, limit)?;
    Ok(content)
}

/// Opens a plain file of `dir` with its size. A link is refused, and so is what takes the file's place meanwhile.
pub(super) fn open_file(dir: &Path, name: &'static str) -> Result<(File, u64), AdapterError> {
    let io = |source| AdapterError::Io { what: format!("open {name}"), source };
    let path = dir.join(name);
    let seen = path.symlink_metadata().map_err(io)?;
    let plain = |ok: bool| match ok {
        true => Ok(()),
        false => Err(AdapterError::Malformed {
            file: name,
            reason: "is a link or no plain file; put the file itself there".into(),
        }),
    };
    plain(seen.is_file())?;
    let file = File::open(path).map_err(io)?;
    let opened = file.metadata().map_err(io)?;
    plain(same_file(&seen, &opened))?;
    Ok((file, opened.len()))
}

#[cfg(unix)]
fn same_file(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_file(_: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    b.is_file()
}

/// SHA-256 of bytes, hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(bytes))
}
