//! The store of immutable adapter versions on disk, one folder each:
//!
//! ```text
//! <dir>/<first 12 of the base's sha256>/<name>-v00000042-<first 12 of the tensors' sha256>/
//!     adapter_model.safetensors  adapter_config.json   what PEFT loads
//!     manifest.json                                    written last
//! ```
//!
//! A version appears whole or not at all: it is written beside its place, made durable, and moved there in one step
//! (`commit`). There is no state but the disk, and a lock file orders writers, so that the command line may import
//! while a server runs. Numbers count up per name and are never used twice, not even after a removal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::manifest::{FileRecord, Provenance};
use super::peft::{self, CONFIG_FILE, Limits, MODEL_FILE, PeftFiles};
use super::{Adapter, AdapterError, Base, Manifest, VersionId, hex};
use crate::models::lora::Lora;

mod commit;
#[cfg(test)]
mod tests;

/// Name of a version's manifest.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Folders that are being written.
const TEMPORARY: &str = ".new-";
/// What is left of removed versions: an empty folder that keeps the number taken.
const REMOVED: &str = ".removed-";
const LOCK: &str = ".lock";

/// Characters of a hash in the name of a folder.
const SHORT: usize = 12;

/// A folder that holds no version that could be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Its name.
    pub folder: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// Whole versions, by name and number.
    pub versions: Vec<Manifest>,
    /// Folders to look at by hand; they are never served.
    pub damaged: Vec<Damaged>,
}

/// The adapters of one base model.
#[derive(Debug)]
pub struct Registry {
    /// Of this base.
    root: PathBuf,
    base: Base,
    limits: Limits,
}

impl Registry {
    /// The adapters of `base` under `dir`, which is made if need be. What an interrupted write or removal left is
    /// cleared away.
    ///
    /// # Errors
    /// When the folders cannot be made or read, or are links.
    pub fn open(dir: &Path, base: Base, limits: Limits) -> Result<Self, AdapterError> {
        let short: String = base.sha256.chars().take(SHORT).filter(char::is_ascii_hexdigit).collect();
        if short.len() != SHORT {
            let actual = base.sha256.chars().take(64).collect();
            return Err(AdapterError::Damaged { folder: actual, reason: "is no SHA-256 of a base model".to_owned() });
        }
        let root = dir.join(short);
        fs::create_dir_all(&root).map_err(|e| io("make the adapters' folder", e))?;
        for folder in [dir, &root] {
            let kind = folder.symlink_metadata().map_err(|e| io("read the adapters' folder", e))?;
            if !kind.is_dir() {
                let folder = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(AdapterError::Damaged {
                    folder,
                    reason: "is a link; put the folder itself there".to_owned(),
                });
            }
        }
        let registry = Self { root, base, limits };
        let lock = registry.lock()?;
        registry.clear()?;
        drop(lock);
        Ok(registry)
    }

    /// The base that its adapters fit.
    #[must_use]
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// Every version, each file read and its hash compared.
    ///
    /// # Errors
    /// When the folder cannot be read. A damaged version is listed, and no error.
    pub fn list(&self) -> Result<Listing, AdapterError> {
        let mut listing = Listing::default();
        for folder in self.folders()? {
            if folder.starts_with(TEMPORARY) || folder.starts_with(REMOVED) || folder == LOCK {
                continue;
            }
            match self.verify(&folder) {
                Ok(manifest) => listing.versions.push(manifest),
                Err(error) => listing.damaged.push(Damaged { reason: reason(&error), folder }),
            }
        }
        listing.versions.sort_by(|a, b| a.id.cmp(&b.id));
        listing.damaged.sort_by(|a, b| a.folder.cmp(&b.folder));
        Ok(listing)
    }

    /// The version `id`, checked as if it came from outside.
    ///
    /// # Errors
    /// When there is none, or it is damaged or does not fit the base.
    pub fn load(&self, id: &VersionId) -> Result<Adapter, AdapterError> {
        if id.is_base() {
            return Ok(Adapter::base());
        }
        let (manifest, files) = self.files(id)?;
        let lora = peft::read(&files, &self.base, &self.limits)?;
        Ok(Adapter { id: id.clone(), lora: Some(Arc::new(lora)), manifest: Some(manifest) })
    }

    /// The manifest and files of a version, for download.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub fn files(&self, id: &VersionId) -> Result<(Manifest, PeftFiles), AdapterError> {
        let folder = self.folder(id)?.ok_or_else(|| AdapterError::NotFound(id.clone()))?;
        let damaged = |reason: String| AdapterError::Damaged { folder: folder.clone(), reason };
        let manifest = self.manifest(&folder).map_err(|e| damaged(reason(&e)))?;
        let files = PeftFiles::from_dir(&self.path(&folder)?, &self.limits).map_err(|e| damaged(reason(&e)))?;
        for (name, bytes) in [(MODEL_FILE, &files.model), (CONFIG_FILE, &files.config)] {
            if manifest.files.get(name) != Some(&record(bytes)) {
                return Err(damaged(format!("{name} is not the file that was committed")));
            }
        }
        Ok((manifest, files))
    }

    /// Stores `lora` as the next version of `name`. The adapter returned is read back from the bytes that were
    /// written, so what is served now and what is served after a restart are the same.
    ///
    /// # Errors
    /// When the name is no name, a value is not finite or out of bounds, or the disk refuses; nothing is stored then.
    pub fn commit(&self, name: &str, lora: &Lora, provenance: Provenance) -> Result<Adapter, AdapterError> {
        self.import(name, &peft::write(lora, &self.base)?, provenance)
    }

    /// Stores the files of a PEFT adapter as the next version of `name`, byte for byte.
    ///
    /// # Errors
    /// When anything about them is not exactly right; nothing is stored then.
    pub fn import(&self, name: &str, files: &PeftFiles, provenance: Provenance) -> Result<Adapter, AdapterError> {
        VersionId::new(name, 1)?;
        let lora = Arc::new(peft::read(files, &self.base, &self.limits)?);
        let lock = self.lock()?;
        let id = VersionId::new(name, self.next_number(name)?)?;
        let manifest = self.describe(id.clone(), &lora, files, provenance);
        commit::commit(&self.root, &folder_name(&manifest), files, &manifest)?;
        drop(lock);
        Ok(Adapter { id, lora: Some(lora), manifest: Some(manifest) })
    }

    /// Removes a version's files. The caller sees to it that nobody is served by it; who holds its `Adapter` keeps it.
    ///
    /// # Errors
    /// When there is no such version or the disk refuses.
    pub fn remove(&self, id: &VersionId) -> Result<(), AdapterError> {
        let lock = self.lock()?;
        let folder = self.folder(id)?.ok_or_else(|| AdapterError::NotFound(id.clone()))?;
        let removed = self.root.join(format!("{REMOVED}{folder}"));
        // One step takes the version away, however long the rest takes.
        fs::rename(self.root.join(&folder), &removed).map_err(|e| io("remove an adapter's folder", e))?;
        commit::sync_folder(&self.root)?;
        empty(&removed)?;
        drop(lock);
        Ok(())
    }

    fn describe(&self, id: VersionId, lora: &Lora, files: &PeftFiles, provenance: Provenance) -> Manifest {
        let rank = lora.pairs().values().map(|pair| pair.a.dims()[0]).max().unwrap_or(0);
        let mut targets: Vec<_> = lora.pairs().keys().map(|(_, target)| *target).collect();
        targets.sort_unstable();
        targets.dedup();
        let names = self.base.config.variant.names;
        let size = |pair: &crate::models::lora::Pair| (pair.a.elem_count() + pair.b.elem_count()) as u64;
        Manifest {
            id,
            base_sha256: self.base.sha256.clone(),
            model: self.base.model.clone(),
            files: [(MODEL_FILE, &files.model), (CONFIG_FILE, &files.config)]
                .map(|(name, bytes)| (name.to_owned(), record(bytes)))
                .into(),
            rank,
            alpha: lora.scale() * rank as f64,
            targets: targets.iter().map(|target| names.part(target.part()).to_owned()).collect(),
            parameters: lora.pairs().values().map(size).sum(),
            provenance,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Names of everything in the base's folder.
    fn folders(&self) -> Result<Vec<String>, AdapterError> {
        let entries = fs::read_dir(&self.root).map_err(|e| io("list the adapters", e))?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()
            .map_err(|e| io("list the adapters", e))
    }

    /// The folder of a version.
    fn folder(&self, id: &VersionId) -> Result<Option<String>, AdapterError> {
        Ok(self.folders()?.into_iter().find(|folder| parse_folder(folder).is_some_and(|(found, _)| found == *id)))
    }

    /// The path of a folder that is no link.
    fn path(&self, folder: &str) -> Result<PathBuf, AdapterError> {
        let path = self.root.join(folder);
        let kind = path.symlink_metadata().map_err(|e| io("open an adapter's folder", e))?;
        if kind.is_dir() {
            return Ok(path);
        }
        Err(AdapterError::Damaged { folder: folder.to_owned(), reason: "is a link or no folder".to_owned() })
    }

    /// The manifest of a folder, which must be about this folder.
    fn manifest(&self, folder: &str) -> Result<Manifest, AdapterError> {
        let refuse = |reason: &str| AdapterError::Malformed { file: MANIFEST_FILE, reason: reason.to_owned() };
        let bytes = peft::read_file(&self.path(folder)?, MANIFEST_FILE, self.limits.config_bytes)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| refuse(&e.to_string()))?;
        if manifest.base_sha256 != self.base.sha256 {
            let (actual, expected) = (manifest.base_sha256, self.base.sha256.clone());
            return Err(AdapterError::WrongBase { file: MANIFEST_FILE, actual, expected });
        }
        if folder_name(&manifest) != folder {
            return Err(refuse("is of another version than the folder's name says"));
        }
        Ok(manifest)
    }

    /// The manifest of a folder whose files are those that it names.
    fn verify(&self, folder: &str) -> Result<Manifest, AdapterError> {
        if parse_folder(folder).is_none() {
            let reason = "has another form than NAME-vNUMBER-HASH".to_owned();
            return Err(AdapterError::Damaged { folder: folder.to_owned(), reason });
        }
        let manifest = self.manifest(folder)?;
        let path = self.path(folder)?;
        for name in [MODEL_FILE, CONFIG_FILE] {
            let (file, bytes) = peft::open_file(&path, name)?;
            let limit = self.limits.file_bytes.max(self.limits.config_bytes);
            let sha256 = hash(file.take(limit + 1)).map_err(|e| io("read an adapter's file", e))?;
            if manifest.files.get(name) != Some(&FileRecord { sha256, bytes }) {
                let reason = "is not the file that was committed".to_owned();
                return Err(AdapterError::Malformed { file: name, reason });
            }
        }
        Ok(manifest)
    }

    /// One more than any version of `name` that there is or was.
    fn next_number(&self, name: &str) -> Result<u64, AdapterError> {
        let number = |folder: &String| {
            let folder = folder.strip_prefix(REMOVED).unwrap_or(folder);
            parse_folder(folder).filter(|(id, _)| id.name() == name).map(|(id, _)| id.version())
        };
        Ok(self.folders()?.iter().filter_map(number).max().unwrap_or(0) + 1)
    }

    /// Finishes what an interrupted writer began. Only under the lock: then nobody is writing.
    fn clear(&self) -> Result<(), AdapterError> {
        for folder in self.folders()? {
            if folder.starts_with(TEMPORARY) {
                remove(&self.root.join(&folder)).map_err(|e| io("clear an unfinished adapter", e))?;
            } else if folder.starts_with(REMOVED) {
                empty(&self.root.join(&folder))?;
            }
        }
        Ok(())
    }

    /// Excludes other writers, of other processes too, until the file is dropped.
    fn lock(&self) -> Result<File, AdapterError> {
        let path = self.root.join(LOCK);
        if path.symlink_metadata().is_ok_and(|kind| !kind.is_file()) {
            return Err(AdapterError::Damaged {
                folder: LOCK.to_owned(),
                reason: "is no plain file; remove it".to_owned(),
            });
        }
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(|e| io("open the adapters' lock", e))?;
        file.lock().map_err(|e| io("lock the adapters", e))?;
        Ok(file)
    }
}

/// `<name>-v<number>-<hash>`; the number in eight digits or more, so that names sort as versions do.
fn folder_name(manifest: &Manifest) -> String {
    let (name, version) = (manifest.id.name(), manifest.id.version());
    let hash = manifest.files.get(MODEL_FILE).map_or("", |file| file.sha256.get(..SHORT).unwrap_or(""));
    format!("{name}-v{version:08}-{hash}")
}

/// Version and short hash of a folder's name.
fn parse_folder(folder: &str) -> Option<(VersionId, &str)> {
    let (rest, hash) = folder.rsplit_once('-')?;
    let (name, number) = rest.rsplit_once("-v")?;
    let digits = number.len() >= 8 && number.bytes().all(|c| c.is_ascii_digit());
    let hexadecimal = hash.len() == SHORT && hash.bytes().all(|c| c.is_ascii_hexdigit());
    let id = VersionId::new(name, number.parse().ok().filter(|_| digits && hexadecimal)?).ok()?;
    (!id.is_base()).then_some((id, hash))
}

/// Removes what is in a folder; of a link, nothing.
fn empty(folder: &Path) -> Result<(), AdapterError> {
    let empty = || {
        if folder.symlink_metadata()?.is_dir() {
            for entry in fs::read_dir(folder)? {
                remove(&entry?.path())?;
            }
        }
        Ok(())
    };
    empty().map_err(|e| io("clear an adapter's folder", e))
}

/// Removes a file, a folder with what is in it, or a link and not what it points to.
fn remove(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn record(bytes: &[u8]) -> FileRecord {
    FileRecord { sha256: peft::sha256(bytes), bytes: bytes.len() as u64 }
}

/// SHA-256 of a stream, hexadecimal.
fn hash(mut from: impl Read) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn reason(error: &AdapterError) -> String {
    match error {
        AdapterError::Damaged { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

fn io(what: &str, source: io::Error) -> AdapterError {
    AdapterError::Io { what: what.to_owned(), source }
}
