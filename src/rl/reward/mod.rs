//! What completions are worth: ratings by people, verifiers, judges over HTTP and child processes behind one trait,
//! and how their scores become one reward.
//!
//! Lives here: the contract ([`RewardHook`], [`Rule`]), every hook that is not about one model, their configuration,
//! and the combination. Does not: which completions are scored and what is learnt from it. A hook is not trusted: it
//! may hang, die or lie, and all that comes of it is a [`HookError`] for the samples concerned.

pub mod address;
pub mod breaker;
pub mod build;
pub mod builtin;
pub mod combine;
pub mod command;
pub mod config;
pub mod connect;
pub mod feedback;
pub mod http;
pub mod rewards;
pub mod rule;
pub mod wire;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use image::RgbImage;
use uuid::Uuid;

pub use build::build;
pub use rewards::Rewards;
pub use rule::{Rule, RuleHook, Rules};

/// What a group's completions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Texts.
    Text,
    /// Pictures.
    Image,
}

/// Completions of one prompt.
#[derive(Debug, Clone)]
pub struct GroupInput {
    /// The group; it need not be in the log.
    pub group_id: Uuid,
    /// What was asked for, as text.
    pub prompt: String,
    /// What the completions are.
    pub kind: Kind,
    /// The completions.
    pub samples: Vec<SampleInput>,
}

/// One completion to be scored.
#[derive(Debug, Clone)]
pub struct SampleInput {
    /// The completion; unique among the groups of one call.
    pub id: Uuid,
    /// Its text; empty for pictures.
    pub text: String,
    /// Its picture, for pictures.
    pub picture: Option<Picture>,
    /// Why it ended, as in the API.
    pub finish_reason: String,
    /// The adapter version that made it, `name@version`; `None` for the base model.
    pub adapter: Option<String>,
    /// What people said of it.
    pub ratings: Vec<Rating>,
    /// What the request's sender attached; an object or null. Expected answers are read from here.
    pub metadata: serde_json::Value,
}

/// One rating that counts (replaced and withdrawn ones are left out by the caller).
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// Name of the metric.
    pub metric: String,
    /// The value given.
    pub value: crate::store::Value,
    /// Hash of who gave it; `None` for nobody known.
    pub subject: Option<String>,
}

/// A picture that is decoded when a hook first looks at it, and once only.
#[derive(Clone)]
pub struct Picture(Arc<Lazy>);

type Decode = Box<dyn Fn() -> Option<RgbImage> + Send + Sync>;

struct Lazy {
    image: OnceLock<Option<RgbImage>>,
    decode: Decode,
}

impl Picture {
    /// A picture that `decode` makes when it is needed; `None` from it means that the codes are no picture.
    pub fn lazy(decode: impl Fn() -> Option<RgbImage> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Lazy { image: OnceLock::new(), decode: Box::new(decode) }))
    }

    /// The picture; `None` if it could not be decoded.
    #[must_use]
    pub fn get(&self) -> Option<&RgbImage> {
        self.0.image.get_or_init(|| (self.0.decode)()).as_ref()
    }
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self(Arc::new(Lazy { image: OnceLock::from(Some(image)), decode: Box::new(|| None) }))
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Picture")
    }
}

/// Why a hook gave a sample no score. [`HookError::reason`] is what is counted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HookError {
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection could not be made, or broke.
    #[error("connection failed: {0}")]
    Connection(String),
    /// The host resolves to an address that hooks may not reach.
    #[error("{0} may not be reached; list host:port in allow_private if that is meant")]
    AddressRefused(String),
    /// An HTTP status other than 200.
    #[error("HTTP status {0}")]
    Status(u16),
    /// More than the bound was answered.
    #[error("answer of more than {limit} bytes")]
    TooLarge {
        /// The bound, bytes.
        limit: usize,
    },
    /// The answer is not of the protocol.
    #[error("answer is not of the protocol: {0}")]
    Protocol(String),
    /// NaN or an infinity.
    #[error("reward is not a finite number")]
    NotFinite,
    /// The reward is outside the hook's declared range.
    #[error("reward {value} is outside [{low}, {high}]")]
    OutOfRange {
        /// The reward.
        value: f64,
        /// Least reward declared.
        low: f64,
        /// Greatest reward declared.
        high: f64,
    },
    /// The answer does not name the sample.
    #[error("the answer leaves the sample out")]
    Missing,
    /// The answer leaves the sample out and names one that was not asked about.
    #[error("the answer leaves the sample out and names unknown ones")]
    UnknownId,
    /// The answer names the sample twice.
    #[error("the answer names the sample twice")]
    DuplicateId,
    /// The hook itself says that it could not score the sample.
    #[error("the hook reports an error")]
    Reported,
    /// Not asked: too many recent calls failed.
    #[error("not asked, because too many recent calls failed")]
    BreakerOpen,
    /// The child process ended or could not be started, or the hook's code panicked.
    #[error("the hook died: {0}")]
    Died(String),
    /// Nobody has rated the sample on the metric.
    #[error("not rated")]
    Unrated,
    /// The sample lacks what the hook needs, or has it in a wrong form.
    #[error("the sample's {0}")]
    Unusable(&'static str),
}

impl HookError {
    /// The class that the error is counted under: one of few, for a metric's label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::Connection(_) => "connection",
            Self::AddressRefused(_) => "address_refused",
            Self::Status(_) => "http_status",
            Self::TooLarge { .. } => "too_large",
            Self::Protocol(_) => "protocol",
            Self::NotFinite => "not_finite",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Missing => "missing",
            Self::UnknownId => "unknown_id",
            Self::DuplicateId => "duplicate_id",
            Self::Reported => "reported",
            Self::BreakerOpen => "breaker_open",
            Self::Died(_) => "died",
            Self::Unrated => "unrated",
            Self::Unusable(_) => "unusable",
        }
    }
}

/// One sample's score by one hook; `Ok(None)` means that the hook does not apply to it.
pub type Score = Result<Option<f64>, HookError>;

/// Scores completions.
#[async_trait]
pub trait RewardHook: Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// One list per group, one score per sample, in order. Takes bounded time whatever is on the other side; dropping
    /// the future stops the work.
    async fn score(&self, groups: &[GroupInput]) -> Vec<Vec<Score>>;
}

/// The same score for every sample.
#[must_use]
pub fn all(groups: &[GroupInput], score: &Score) -> Vec<Vec<Score>> {
    groups.iter().map(|group| vec![score.clone(); group.samples.len()]).collect()
}

#[cfg(test)]
mod fixture_tests;
