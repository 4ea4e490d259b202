//! Writing a version: all of it or nothing, whenever the power fails.
//!
//! Each file is flushed to the disk, then the folder that holds them, then one rename makes the version visible, then
//! the rename itself is flushed. Up to the rename there is only a folder that the next opening clears away; from then
//! on everything that the version consists of is on the disk already.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::{AdapterError, CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, Manifest, PeftFiles, TEMPORARY, io};

/// What has been done, for tests that stop there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Folder,
    Written(&'static str),
    Synced(&'static str),
    FolderSynced,
    Renamed,
    Done,
}

/// Puts a version at `root/folder`. Under the registry's lock.
pub(super) fn commit(root: &Path, folder: &str, files: &PeftFiles, manifest: &Manifest) -> Result<(), AdapterError> {
    let result = steps(root, folder, files, manifest, &mut |_| Ok(()));
    if result.is_err() {
        // Best effort: what cannot be cleared now is cleared when the store is opened next.
        let _ = fs::remove_dir_all(root.join(format!("{TEMPORARY}{folder}")));
    }
    result
}

/// [`commit`], calling `after` each step. An error of `after` ends it on the spot, as a crash would.
pub(super) fn steps(
    root: &Path,
    folder: &str,
    files: &PeftFiles,
    manifest: &Manifest,
    after: &mut dyn FnMut(Step) -> std::io::Result<()>,
) -> Result<(), AdapterError> {
    let manifest = serde_json::to_vec_pretty(manifest)
        .map_err(|e| AdapterError::Malformed { file: MANIFEST_FILE, reason: e.to_string() })?;
    let temporary = root.join(format!("{TEMPORARY}{folder}"));
    let mut write = || {
        if temporary.try_exists()? {
            fs::remove_dir_all(&temporary)?;
        }
        fs::create_dir(&temporary)?;
        after(Step::Folder)?;
        for (name, bytes) in [(MODEL_FILE, &files.model), (CONFIG_FILE, &files.config), (MANIFEST_FILE, &manifest)] {
            let mut file = OpenOptions::new().write(true).create_new(true).open(temporary.join(name))?;
            file.write_all(bytes)?;
            after(Step::Written(name))?;
            file.sync_all()?;
            after(Step::Synced(name))?;
        }
        File::open(&temporary)?.sync_all()?;
        after(Step::FolderSynced)?;
        fs::rename(&temporary, root.join(folder))?;
        after(Step::Renamed)?;
        File::open(root)?.sync_all()?;
        after(Step::Done)
    };
    write().map_err(|e| io("write an adapter", e))
}

/// Makes a rename in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), AdapterError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| io("flush the adapters' folder", e))
}
