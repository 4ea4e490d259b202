//! The transfer: what the hub lists and the cache lacks, file by file, taken up again where it broke off.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::cache::Snapshots;
use super::files::{Info, WEIGHTS, Wanted, is_hash};
use super::{HubError, Options, Reference, client};

/// Most bytes of the hub's list of files.
const MAX_INFO_BYTES: usize = 16 << 20;

/// Bytes read at once when what had arrived is hashed.
const BLOCK: usize = 1 << 20;

/// The model's folder, everything in it.
pub(super) async fn fetch(reference: &Reference, cached: &Snapshots, options: &Options) -> Result<PathBuf, HubError> {
    let work = Transfer { reference, cached, options };
    let info = work.info().await?;
    let mut files = info.wanted(&reference.repo)?;
    if let Some(at) = files.iter().position(|file| file.name == WEIGHTS[0]) {
        let index = files.swap_remove(at);
        work.have(&info.sha, &index).await?;
        let path = cached.blob(&index.blob);
        let bytes = std::fs::read(&path).map_err(|source| HubError::Disk { path, source })?;
        files.extend(info.shards(&bytes)?);
    }
    let missing: u64 = files.iter().filter(|file| !cached.blob(&file.blob).exists()).map(|file| file.size).sum();
    options.progress.set_length(missing);
    options.progress.set_position(0);
    for file in &files {
        work.have(&info.sha, file).await?;
    }
    cached.publish(&info.sha)
}

struct Transfer<'a> {
    reference: &'a Reference,
    cached: &'a Snapshots,
    options: &'a Options,
}

impl Transfer<'_> {
    /// The hub's list of the files, with sizes and hashes.
    async fn info(&self) -> Result<Info, HubError> {
        let Reference { repo, revision } = self.reference;
        let path = format!("/api/models/{repo}/revision/{}?blobs=true", revision.replace('/', "%2F"));
        let body = self.persist(async || self.get(&path, 0, repo).await?.whole(MAX_INFO_BYTES).await).await?;
        let malformed =
            |problem: String| HubError::Malformed { url: format!("{}{path}", self.options.endpoint), problem };
        let info: Info = serde_json::from_slice(&body).map_err(|e| malformed(e.to_string()))?;
        match is_hash(&info.sha) {
            true => Ok(info),
            false => Err(malformed("its commit is none".to_owned())),
        }
    }

    /// Sees to it that `file` is in the commit's folder.
    async fn have(&self, commit: &str, file: &Wanted) -> Result<(), HubError> {
        let blob = self.cached.blob(&file.blob);
        if !blob.exists() {
            let folder = blob.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).map_err(|e| disk(folder, e))?;
            // Another process may be at it: whoever is first downloads, the other finds the blob.
            let lock_path = blob.with_extension("lock");
            let lock = File::create(&lock_path).map_err(|e| disk(&lock_path, e))?;
            lock.lock().map_err(|e| disk(&lock_path, e))?;
            if !blob.exists() {
                let part = blob.with_extension("incomplete");
                let begun = self.options.progress.position();
                self.persist(async || self.download(commit, file, &part, begun).await).await?;
                std::fs::rename(&part, &blob).map_err(|e| disk(&blob, e))?;
            }
        }
        self.cached.link(commit, &file.name, &file.blob)
    }

    /// Brings `part` from what is there to the whole file, and checks it; `begun` is how much was shown before.
    async fn download(&self, commit: &str, file: &Wanted, part: &Path, begun: u64) -> Result<(), HubError> {
        let mut output =
            OpenOptions::new().create(true).append(true).read(true).open(part).map_err(|e| disk(part, e))?;
        let (mut hash, mut have) = hash_so_far(part)?;
        if have > file.size {
            output.set_len(0).map_err(|e| disk(part, e))?;
            (hash, have) = (Sha256::new(), 0);
        }
        self.options.progress.set_message(file.name.clone());
        if have < file.size {
            let Reference { repo, .. } = self.reference;
            let path = format!("/{repo}/resolve/{commit}/{}", file.name);
            let mut answer = self.get(&path, have, &format!("{repo}: {}", file.name)).await?;
            if answer.status == 200 && have > 0 {
                // The whole of it comes again.
                output.set_len(0).map_err(|e| disk(part, e))?;
                (hash, have) = (Sha256::new(), 0);
            }
            self.options.progress.set_position(begun + have);
            while let Some(chunk) = answer.chunk().await? {
                have += chunk.len() as u64;
                if have > file.size {
                    let problem = format!("more than the {} bytes that {} has", file.size, file.name);
                    return Err(HubError::Malformed { url: answer.url().to_owned(), problem });
                }
                output.write_all(&chunk).map_err(|e| disk(part, e))?;
                hash.update(&chunk);
                self.options.progress.set_position(begun + have);
            }
        }
        if have < file.size {
            let problem = format!("{} ended after {have} of {} bytes", file.name, file.size);
            return Err(HubError::Connection { url: self.options.endpoint.clone(), problem });
        }
        output.sync_all().map_err(|e| disk(part, e))?;
        // Small files have the object id of git, a SHA-1, for a name: their length is what is checked.
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if file.blob.len() == 64 && found != file.blob {
            std::fs::remove_file(part).map_err(|e| disk(part, e))?;
            return Err(HubError::Corrupt { file: file.name.clone(), found, announced: file.blob.clone() });
        }
        Ok(())
    }

    /// GET, with statuses that are not successes turned into errors about `what`.
    async fn get(&self, path: &str, from: u64, what: &str) -> Result<client::Answer, HubError> {
        let answer = client::get(self.options, path, from).await?;
        match answer.status {
            200 => Ok(answer),
            206 if from > 0 => Ok(answer),
            status @ (401 | 403) => Err(self.denied(status)),
            404 => {
                let endpoint = self.options.endpoint.clone();
                let revision = &self.reference.revision;
                Err(HubError::NotFound { what: format!("{what}@{revision}"), endpoint })
            }
            status => Err(HubError::Status { url: answer.url().to_owned(), status }),
        }
    }

    fn denied(&self, status: u16) -> HubError {
        let Options { endpoint, token, .. } = self.options;
        let repo = self.reference.repo.clone();
        let advice = match (status, token.is_some()) {
            (401, true) => "it does not know the token; check HF_TOKEN, or unset it for public models".to_owned(),
            (_, true) => format!("accept the terms at {endpoint}/{repo} with the account whose token HF_TOKEN is"),
            (_, false) => format!(
                "the model is gated or private, or does not exist; accept its terms at {endpoint}/{repo} and set \
                 HF_TOKEN to a token of that account"
            ),
        };
        HubError::Denied { repo, status, advice }
    }

    /// Tries again while the connection or the hub is what failed, up to the number of times that were asked for.
    async fn persist<T>(&self, work: impl AsyncFn() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut pause = self.options.pause;
        for attempt in 1..=self.options.retries {
            match work().await {
                Err(error @ (HubError::Connection { .. } | HubError::Status { status: 429 | 500.., .. })) => {
                    tracing::warn!(%error, attempt, pause_ms = pause.as_millis(), "download broke off; trying again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                outcome => return outcome,
            }
        }
        work().await
    }
}

/// The hash and the number of the bytes in `part`.
fn hash_so_far(part: &Path) -> Result<(Sha256, u64), HubError> {
    let mut file = File::open(part).map_err(|e| disk(part, e))?;
    let (mut hash, mut have) = (Sha256::new(), 0);
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block).map_err(|e| disk(part, e))? {
            0 => return Ok((hash, have)),
            n => {
                hash.update(&block[..n]);
                have += n as u64;
            }
        }
    }
}

fn disk(path: &Path, source: std::io::Error) -> HubError {
    HubError::Disk { path: path.to_owned(), source }
}
