//! `ORG/NAME[@revision]` to a folder: what a model needs is downloaded from the Hugging Face hub, once.
//!
//! Lives here: names, which files are wanted, the transfer, the cache. Does not: what the files mean.
//!
//! The cache is `hf-hub`'s, the one that Python's `huggingface_hub` fills and reads, too. The transfer is our own, on
//! the HTTP and TLS that the program has anyway: hf-hub's client sends the token to whatever host a download is
//! redirected to, waits for ever, trusts certificates of its own only and does not compare hashes (0.5), or brings
//! ninety more crates along (1.0). Here the token goes to the endpoint alone, an idle connection is given up and taken
//! up again where it broke off, the machine's certificates count, and every weight file is hashed as it arrives.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;
use indicatif::{ProgressBar, ProgressStyle};

mod cache;
mod client;
mod files;
mod proxy;
mod transfer;

pub use proxy::Proxy;

/// Where models are, unless `HF_ENDPOINT` says otherwise.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Why a model could not be had from the hub.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is not one.
    #[error("model {given:?}: {problem}; expected ORG/NAME or ORG/NAME@REVISION")]
    Name {
        /// As given.
        given: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The hub does not let us.
    #[error("{repo}: the hub answered {status}: {advice}")]
    Denied {
        /// The model.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        advice: String,
    },
    /// There is no such model, revision or file.
    #[error("{what}: not found at {endpoint}; check the name and the revision")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Where.
        endpoint: String,
    },
    /// Offline, and not all of it is in the cache.
    #[error("{repo}@{revision}: {file} is not in {cache}, and --offline forbids to download it; run once without")]
    NotCached {
        /// The model.
        repo: String,
        /// The revision.
        revision: String,
        /// The first file that is not there.
        file: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// The repository holds nothing that can be loaded.
    #[error("{repo}: no safetensors weights ({found}); other formats are not read")]
    NoWeights {
        /// The model.
        repo: String,
        /// Weights of other formats that are there.
        found: String,
    },
    /// The hub answers with an error.
    #[error("{url}: the hub answered {status}")]
    Status {
        /// The address, without its query.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// No connection, or a broken one.
    #[error("{url}: {problem}")]
    Connection {
        /// The address, without its query.
        url: String,
        /// What happened.
        problem: String,
    },
    /// An answer that makes no sense.
    #[error("{url}: {problem}; does HF_ENDPOINT name a hub?")]
    Malformed {
        /// The address, without its query.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file arrived whole but is not what the hub announced.
    #[error(
        "{file}: its SHA-256 is {found}, the hub announced {announced}; what had arrived was thrown away, try again"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Of what arrived.
        found: String,
        /// Of what should have.
        announced: String,
    },
    /// The disk.
    #[error("{}: {source}", path.display())]
    Disk {
        /// What was read or written.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// A token of the hub: never printed, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Blank ones are none.
    #[must_use]
    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        (!token.is_empty()).then(|| Self(token.to_owned()))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How [`resolve`] goes about it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Root of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// For gated and private models.
    pub token: Option<Token>,
    /// Nothing is asked for; what is not in the cache is an error.
    pub offline: bool,
    /// How often a broken transfer is taken up again before that is an error.
    pub retries: u32,
    /// Wait before the first of them; it doubles.
    pub pause: Duration,
    /// What HTTPS goes through.
    pub proxy: Option<Proxy>,
    /// A connection that is silent for so long is broken.
    pub idle: Duration,
    /// Shows the bytes; hidden unless the caller brings one.
    pub progress: ProgressBar,
}

impl Options {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN` (else the file that `huggingface-cli login` left),
    /// `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`, and `HTTPS_PROXY` with its kin.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// [`from_env`](Self::from_env) with the variables that `var` knows.
    #[must_use]
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let home = || match (var("HF_HOME"), var("XDG_CACHE_HOME")) {
            (Some(home), _) => PathBuf::from(home),
            (None, Some(caches)) => PathBuf::from(caches).join("huggingface"),
            (None, None) => std::env::home_dir().unwrap_or_default().join(".cache/huggingface"),
        };
        let cache = var("HF_HUB_CACHE").map_or_else(|| home().join("hub"), PathBuf::from);
        let saved = || Cache::new(home().join("hub")).token();
        Self {
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned(),
            cache,
            token: var("HF_TOKEN").or_else(saved).as_deref().and_then(Token::new),
            offline: var("HF_HUB_OFFLINE").is_some_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "on")),
            retries: 5,
            pause: Duration::from_secs(1),
            proxy: Proxy::from_vars(&var),
            idle: Duration::from_secs(60),
            progress: ProgressBar::hidden(),
        }
    }
}

/// A model's name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `ORG/NAME`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl Reference {
    /// Reads `ORG/NAME[@revision]`; the revision is `main` unless given.
    ///
    /// # Errors
    /// `Name` says what is wrong.
    pub fn parse(given: &str) -> Result<Self, HubError> {
        let refused = |problem| HubError::Name { given: given.to_owned(), problem };
        let (repo, revision) = given.split_once('@').unwrap_or((given, "main"));
        let (org, name) = repo.split_once('/').ok_or_else(|| refused("there is no organisation"))?;
        let plain = |part: &str, also: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
                && part.len() <= 200
        };
        if !plain(org, "-_.") || !plain(name, "-_.") || repo.contains("..") {
            return Err(refused("a part of it is empty or has characters that names do not have"));
        }
        // It becomes a path below the cache's `refs`.
        if !plain(revision, "-_./") || revision.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refused("that is no revision"));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

/// The folder with the configuration, the tokenizer and the weights of `model` (`ORG/NAME[@revision]`), downloaded
/// unless it is in the cache. Blocks; the work is done on a thread of its own, so any caller may wait for it.
///
/// What is in the cache serves when the hub cannot be reached.
///
/// # Errors
/// See [`HubError`].
pub fn resolve(model: &str, options: &Options) -> Result<PathBuf, HubError> {
    let reference = Reference::parse(model)?;
    let cached = cache::Snapshots::new(&options.cache, &reference);
    if options.offline {
        return cached.current();
    }
    let fetched = std::thread::scope(|scope| {
        let fetch = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map_err(|e| HubError::Connection { url: options.endpoint.clone(), problem: e.to_string() })?
                .block_on(transfer::fetch(&reference, &cached, options))
        };
        scope.spawn(fetch).join().unwrap_or_else(|_| {
            Err(HubError::Connection { url: options.endpoint.clone(), problem: "the download panicked".to_owned() })
        })
    });
    options.progress.finish_and_clear();
    match fetched {
        Err(HubError::Connection { url, problem }) => match cached.current() {
            Ok(folder) => {
                tracing::warn!(url, problem, "the hub cannot be reached; what is in the cache is used");
                Ok(folder)
            }
            Err(_) => Err(HubError::Connection { url, problem }),
        },
        fetched => fetched,
    }
}

/// [`resolve`] as the environment says, with a bar on standard error: what a command does with its `--model`.
///
/// # Errors
/// As [`resolve`].
pub fn obtain(model: &str, offline: bool) -> Result<PathBuf, HubError> {
    let mut options = Options::from_env();
    options.offline |= offline;
    options.progress = progress_bar();
    resolve(model, &options)
}

/// Bytes, speed and the time that is left; nothing is drawn where no terminal is.
fn progress_bar() -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

#[cfg(test)]
mod tests;
