//! The cache's folders: `blobs` by content, `snapshots` by commit with links to blobs, `refs` by branch.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::files::{WEIGHTS, is_hash, shard_names};
use super::{HubError, Reference};

/// One model in the cache.
pub(super) struct Snapshots {
    reference: Reference,
    cache: PathBuf,
    blobs: PathBuf,
    repo: CacheRepo,
}

impl Snapshots {
    pub(super) fn new(cache: &Path, reference: &Reference) -> Self {
        let repo = Repo::with_revision(reference.repo.clone(), RepoType::Model, reference.revision.clone());
        Self {
            reference: reference.clone(),
            cache: cache.to_owned(),
            blobs: cache.join(repo.folder_name()).join("blobs"),
            repo: Cache::new(cache.to_owned()).repo(repo),
        }
    }

    /// Where the content called `blob` is or will be.
    pub(super) fn blob(&self, blob: &str) -> PathBuf {
        self.blobs.join(blob)
    }

    /// The folder of a commit.
    pub(super) fn folder(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// Makes `name` of a commit stand for a blob that is there.
    pub(super) fn link(&self, commit: &str, name: &str, blob: &str) -> Result<(), HubError> {
        let link = self.folder(commit).join(name);
        let refused = |source| HubError::Disk { path: link.clone(), source };
        if link.exists() {
            return Ok(());
        }
        std::fs::create_dir_all(self.folder(commit)).map_err(refused)?;
        // A link whose blob was deleted would be in the way.
        let _ = std::fs::remove_file(&link);
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), &link);
        #[cfg(not(unix))]
        let made = std::fs::hard_link(self.blob(blob), &link);
        made.map_err(refused)
    }

    /// Makes the revision stand for a commit whose files are all there.
    pub(super) fn publish(&self, commit: &str) -> Result<PathBuf, HubError> {
        let folder = self.folder(commit);
        if self.reference.revision != commit {
            self.repo.create_ref(commit).map_err(|source| HubError::Disk { path: folder.clone(), source })?;
        }
        Ok(folder)
    }

    /// The folder that the revision stands for, all of its files there.
    ///
    /// # Errors
    /// `NotCached` names the first file that is not.
    pub(super) fn current(&self) -> Result<PathBuf, HubError> {
        let missing = |file: &str| HubError::NotCached {
            repo: self.reference.repo.clone(),
            revision: self.reference.revision.clone(),
            file: file.to_owned(),
            cache: self.cache.clone(),
        };
        let revision = &self.reference.revision;
        let folder = match self.repo.get("config.json") {
            Some(config) => config.parent().map(Path::to_owned),
            // A commit stands for itself.
            None if is_hash(revision) => Some(self.folder(revision)),
            None => None,
        };
        let folder = folder.ok_or_else(|| missing("config.json"))?;
        if !folder.join("config.json").exists() {
            return Err(missing("config.json"));
        }
        let Some(weights) = WEIGHTS.iter().find(|name| folder.join(name).exists()) else {
            return Err(missing("model.safetensors"));
        };
        if *weights == WEIGHTS[0] {
            let path = folder.join(weights);
            let index = std::fs::read(&path).map_err(|source| HubError::Disk { path: path.clone(), source })?;
            let shards = shard_names(&index)
                .map_err(|problem| HubError::Malformed { url: path.display().to_string(), problem })?;
            if let Some(shard) = shards.iter().find(|shard| !folder.join(shard).exists()) {
                return Err(missing(shard));
            }
        }
        Ok(folder)
    }
}
