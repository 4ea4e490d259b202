//! Adapters' versions, which of them a channel serves, who changed that, and who may train.
//!
//! Lives here: types and the [`Registry`] trait. Does not: SQL (see `adapters`, `audit` and `lease`), weights' files,
//! which status may follow which.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::StoreError;

/// Adapters that [`Registry::adapters`] answers: the newest.
pub const MAX_ADAPTERS: u32 = 1000;
/// Changes in one call of [`Registry::change_registry`].
pub const MAX_CHANGES: usize = 64;
/// Rows that [`Registry::audit`] answers: the newest.
pub const MAX_AUDIT: u32 = 1000;
/// Bytes of an adapter's manifest and gate, a route and an audit's detail, each, as JSON.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// A version of an adapter to be added.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAdapter {
    /// `name@version`, never used before.
    pub id: String,
    /// Version it was trained from.
    pub parent: Option<String>,
    /// SHA-256 of the base weights it belongs to.
    pub base_sha256: String,
    /// Run that made it.
    pub run: Option<Uuid>,
    /// First status, such as `candidate`.
    pub status: String,
    /// SHA-256 of its weights' file.
    pub sha256: String,
    /// Size of its weights' file.
    pub bytes: u64,
    /// Rank of its factors.
    pub rank: u32,
    /// Data, hyperparameters and hashes, as JSON.
    pub manifest: serde_json::Value,
    /// Results of its gates, as JSON.
    pub gate: serde_json::Value,
}

/// A version of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRow {
    /// As it was added, with its newest status and gate.
    pub adapter: NewAdapter,
    /// Creation time, microseconds since the epoch.
    pub created_us: i64,
}

/// What a channel serves.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteRow {
    /// Name of the channel.
    pub channel: String,
    /// Grows by one with every change, from 1.
    pub generation: u64,
    /// Adapters and their weights, as JSON.
    pub spec: serde_json::Value,
    /// Who changed it last.
    pub actor: String,
    /// When, microseconds since the epoch.
    pub updated_us: i64,
}

/// A change of the registry. Each leaves a row in the audit trail, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Adds a version.
    Add(NewAdapter),
    /// Moves a version on, if its status is still `from`.
    Status {
        /// The version.
        id: String,
        /// The status it must have.
        from: String,
        /// The status it gets.
        to: String,
        /// New results of its gates; `None` keeps those it has.
        gate: Option<serde_json::Value>,
    },
    /// Points a channel elsewhere, if its generation is still the expected one.
    Route {
        /// Name of the channel.
        channel: String,
        /// The generation it must have; 0 when it must not exist. It becomes one more.
        expected: u64,
        /// Adapters and their weights, as JSON.
        spec: serde_json::Value,
    },
}

/// Who makes a change and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Author {
    /// A person, or `trainer`.
    pub actor: String,
    /// Reason and circumstances as JSON; kept in the audit trail.
    pub detail: serde_json::Value,
    /// Term of the trainer's lease: the change is refused when the lease is not held with this term any more.
    pub term: Option<u64>,
}

/// What users said of a version.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcomes {
    /// Completions that it made.
    pub completions: u64,
    /// Effective ratings of its completions with a number; true counts as 1, false as 0.
    pub ratings: u64,
    /// Distinct subjects of these; those without one count as one.
    pub subjects: u64,
    /// Mean rating.
    pub mean: Option<f64>,
    /// Variance of the ratings (n − 1); none for fewer than two.
    pub variance: Option<f64>,
    /// Mean of the subjects' means: one busy subject cannot move it far.
    pub subject_mean: Option<f64>,
}

/// A line of the audit trail.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// Position, from 1 without gaps.
    pub seq: u64,
    /// When, microseconds since the epoch.
    pub at_us: i64,
    /// Who.
    pub actor: String,
    /// `adapter.add`, `adapter.status` or `route.set`.
    pub action: String,
    /// The adapter or the channel.
    pub object: String,
    /// What changed and why, as JSON.
    pub detail: serde_json::Value,
    /// SHA-256 over this row and the hash of the row before.
    pub sha256: Vec<u8>,
}

/// Whether the audit trail is what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditCheck {
    /// Rows that follow from the ones before them.
    pub rows: u64,
    /// Hash of the last of these. Rows removed from the end show only by comparing it with a copy kept elsewhere.
    pub head: Vec<u8>,
    /// Position of the first row that was altered, or follows a gap.
    pub broken_at: Option<u64>,
}

/// Who may train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its holder, or its last one.
    pub holder: String,
    /// Grows whenever the lease changes hands.
    pub term: u64,
    /// When it can be taken by another, microseconds since the epoch.
    pub expires_us: i64,
}

/// The registry of adapters.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Makes all of these changes or none, at most [`MAX_CHANGES`].
    ///
    /// # Errors
    /// `Conflict` when a version exists already or is missing, or a status or generation has moved on; `LeaseLost`,
    /// `Invalid`, `Full` or `Database`.
    async fn change_registry(&self, changes: Vec<Change>, author: Author) -> Result<(), StoreError>;

    /// [`change_registry`](Self::change_registry) of one [`Change::Add`].
    ///
    /// # Errors
    /// As there.
    async fn add_adapter(&self, adapter: NewAdapter, author: Author) -> Result<(), StoreError> {
        self.change_registry(vec![Change::Add(adapter)], author).await
    }

    /// [`change_registry`](Self::change_registry) of one [`Change::Status`].
    ///
    /// # Errors
    /// As there.
    async fn set_adapter_status(&self, id: &str, from: &str, to: &str, author: Author) -> Result<(), StoreError> {
        let (id, from, to) = (id.to_owned(), from.to_owned(), to.to_owned());
        self.change_registry(vec![Change::Status { id, from, to, gate: None }], author).await
    }

    /// [`change_registry`](Self::change_registry) of one [`Change::Route`]. Answers the new generation.
    ///
    /// # Errors
    /// As there.
    async fn set_route(
        &self,
        channel: &str,
        expected: u64,
        spec: serde_json::Value,
        author: Author,
    ) -> Result<u64, StoreError> {
        let channel = channel.to_owned();
        self.change_registry(vec![Change::Route { channel, expected, spec }], author).await?;
        Ok(expected + 1)
    }

    /// The newest versions, newest first, at most [`MAX_ADAPTERS`].
    ///
    /// # Errors
    /// `Database`.
    async fn adapters(&self) -> Result<Vec<AdapterRow>, StoreError>;

    /// One version.
    ///
    /// # Errors
    /// `Database`.
    async fn adapter(&self, id: &str) -> Result<Option<AdapterRow>, StoreError>;

    /// What a channel serves; `None` when it was never set.
    ///
    /// # Errors
    /// `Database`.
    async fn route(&self, channel: &str) -> Result<Option<RouteRow>, StoreError>;

    /// Completions of a version made, and effective ratings of its completions given, at `since_us` or later.
    ///
    /// # Errors
    /// `Database`.
    async fn adapter_outcomes(&self, id: &str, metric: &str, since_us: i64) -> Result<Outcomes, StoreError>;

    /// The newest `limit` (at most [`MAX_AUDIT`]) lines of the audit trail, newest first.
    ///
    /// # Errors
    /// `Database`.
    async fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Reads the whole audit trail and checks its chain.
    ///
    /// # Errors
    /// `Database`.
    async fn verify_audit(&self) -> Result<AuditCheck, StoreError>;

    /// Takes the trainer's lease for `ttl`, or prolongs it for its holder. Answers its term, or `None` while another
    /// holds it. A new term abandons the runs of the terms before. Goes by this machine's clock.
    ///
    /// # Errors
    /// `Invalid`, `Full` or `Database`.
    async fn take_lease(&self, holder: &str, ttl: Duration) -> Result<Option<u64>, StoreError>;

    /// Prolongs the lease, only if it is still held with this term.
    ///
    /// # Errors
    /// `LeaseLost`, `Full` or `Database`.
    async fn renew_lease(&self, term: u64, ttl: Duration) -> Result<(), StoreError>;

    /// Gives the lease back, so that another need not wait for its end. Does nothing when it is lost.
    ///
    /// # Errors
    /// `Full` or `Database`.
    async fn release_lease(&self, term: u64) -> Result<(), StoreError>;

    /// The lease as it stands; `None` when nobody ever took it.
    ///
    /// # Errors
    /// `Database`.
    async fn lease(&self) -> Result<Option<LeaseRow>, StoreError>;
}
