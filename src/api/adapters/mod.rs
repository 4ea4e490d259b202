//! `/adapters`: which versions there are, which are served, and the decisions about them.
//!
//! `decide` changes what is served, `files` takes adapters in and out; the rules are those of `adapters` and `rl`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::error::{ApiError, Problem};
use super::extract::{Query, Version};
use super::feedback::metric;
use super::generate::check::{self, FIXED};
use super::limits::fixed;
use super::state::App;
use super::time::timestamp;
use crate::adapters::{AdapterError, Routes, VersionId};
use crate::rl::RlError;
use crate::store::{AdapterRow, AuditRow, Outcomes};

pub(super) mod decide;
pub(super) mod files;

/// Metric that tells how well a version is liked, unless another is asked for.
const METRIC: &str = "thumbs";
/// Lines of the audit trail, unless more are asked for.
const AUDIT_ROWS: u32 = 100;

/// Which versions are served, to whom.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct RoutesInfo {
    /// Counts the changes.
    pub generation: u64,
    /// What everybody gets who is not in the canary; `base@0` is the model without an adapter.
    #[schema(example = "main@3")]
    pub active: String,
    /// The version under trial.
    pub canary: Option<CanaryInfo>,
}

/// A version under trial.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct CanaryInfo {
    /// Which.
    #[schema(example = "main@4")]
    pub version: String,
    /// Share of the users that get it, above 0 and at most 1.
    pub share: f64,
}

impl From<&Routes> for RoutesInfo {
    fn from(routes: &Routes) -> Self {
        let canary = routes.canary().map(|(id, share)| CanaryInfo { version: id.to_string(), share });
        Self { generation: routes.generation(), active: routes.active().to_string(), canary }
    }
}

/// A version in short.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterSummary {
    /// `name@version`.
    #[schema(example = "main@3")]
    pub version: String,
    /// `candidate`, `rejected`, `canary`, `active`, `retired` or `rolled_back`.
    #[schema(example = "candidate")]
    pub status: String,
    /// The version that it was trained from.
    pub parent: Option<String>,
    /// RFC 3339.
    #[schema(example = "2026-01-31T12:00:00.123456Z")]
    pub created_at: String,
    /// Largest rank of its factors.
    pub rank: u32,
    /// Size of its tensors' file.
    pub bytes: u64,
    /// SHA-256 of the base weights that it fits.
    pub base_sha256: String,
    /// The gate's verdict; null when no gate has measured it.
    pub gate_passed: Option<bool>,
    /// The training run that made it; null when it was imported.
    pub run: Option<Uuid>,
    /// In memory: requests can ask for it.
    pub loaded: bool,
}

/// Every version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterList {
    /// Which versions are served, to whom.
    pub routes: RoutesInfo,
    /// Newest first, at most 1000.
    pub adapters: Vec<AdapterSummary>,
}

/// A version with all that is known of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterRecord {
    /// In short.
    #[serde(flatten)]
    pub summary: AdapterSummary,
    /// How it came about.
    #[schema(value_type = Object)]
    pub manifest: Value,
    /// What the gate measured; empty when it has not.
    #[schema(value_type = Object)]
    pub gate: Value,
    /// What users said of it.
    pub outcomes: OutcomesInfo,
}

/// What users said of a version.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OutcomesInfo {
    /// By this metric; true counts as 1, false as 0.
    #[schema(example = "thumbs")]
    pub metric: String,
    /// Completions that it made.
    pub completions: u64,
    /// Ratings of these.
    pub ratings: u64,
    /// Distinct raters.
    pub subjects: u64,
    /// Mean rating.
    pub mean: Option<f64>,
    /// Variance of the ratings.
    pub variance: Option<f64>,
    /// Mean of the raters' means.
    pub subject_mean: Option<f64>,
}

/// Which ratings count.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OutcomesQuery {
    /// Name of the metric; `thumbs` by default.
    metric: Option<String>,
}

/// Every version, newest first, and which are served.
#[utoipa::path(get, path = "/adapters", tag = "adapters", responses(
    (status = 200, description = "The versions.", body = AdapterList),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn list_adapters(State(app): State<App>) -> Result<Json<AdapterList>, ApiError> {
    let routes = app.trainer()?.publisher().routes();
    let rows = app.store.adapters().await?;
    let adapters = rows.into_iter().map(|row| AdapterSummary::new(&app, row)).collect();
    Ok(Json(AdapterList { routes: RoutesInfo::from(&routes), adapters }))
}

/// A version: how it came about, what the gate measured, what users said of it.
#[utoipa::path(get, path = "/adapters/{id}", tag = "adapters",
    params(("id" = String, Path, example = "main@3"), OutcomesQuery), responses(
    (status = 200, description = "The version.", body = AdapterRecord),
    (status = 404, description = "No such version.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn get_adapter(
    State(app): State<App>,
    Version(id): Version,
    Query(query): Query<OutcomesQuery>,
) -> Result<Json<AdapterRecord>, ApiError> {
    app.trainer()?;
    let name = query.metric.unwrap_or_else(|| METRIC.to_owned());
    metric(&name)?;
    let mut row = find(&app, &id).await?;
    let outcomes = app.store.adapter_outcomes(&id.to_string(), &name, 0).await?;
    let (manifest, gate) = (row.adapter.manifest.take(), row.adapter.gate.clone());
    let summary = AdapterSummary::new(&app, row);
    Ok(Json(AdapterRecord { summary, manifest, gate, outcomes: OutcomesInfo::new(name, outcomes) }))
}

/// The row of a version.
async fn find(app: &App, id: &VersionId) -> Result<AdapterRow, ApiError> {
    let row = app.store.adapter(&id.to_string()).await?;
    row.ok_or_else(|| RlError::from(AdapterError::NotFound(id.clone())).into())
}

impl AdapterSummary {
    fn new(app: &App, row: AdapterRow) -> Self {
        let AdapterRow { adapter, created_us } = row;
        let id = adapter.id.parse::<VersionId>().ok();
        Self {
            loaded: id.is_some_and(|id| app.engine.serving().get(&id).is_some()),
            version: adapter.id,
            status: adapter.status,
            parent: adapter.parent,
            created_at: timestamp(created_us),
            rank: adapter.rank,
            bytes: adapter.bytes,
            base_sha256: adapter.base_sha256,
            gate_passed: adapter.gate.get("passed").and_then(Value::as_bool),
            run: adapter.run,
        }
    }
}

impl OutcomesInfo {
    fn new(metric: String, outcomes: Outcomes) -> Self {
        let Outcomes { completions, ratings, subjects, mean, variance, subject_mean } = outcomes;
        Self { metric, completions, ratings, subjects, mean, variance, subject_mean }
    }
}

/// How much of the audit trail.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Lines, at most 1000; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u64>,
}

/// The audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditTrail {
    /// Newest first.
    pub rows: Vec<AuditRecord>,
}

/// A line of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditRecord {
    /// Position, from 1 without gaps.
    pub seq: u64,
    /// RFC 3339.
    #[schema(example = "2026-01-31T12:00:00.123456Z")]
    pub at: String,
    /// Who: a person, or `trainer`.
    pub actor: String,
    /// `adapter.add`, `adapter.status` or `route.set`.
    pub action: String,
    /// The adapter or the channel.
    pub object: String,
    /// What changed and why.
    #[schema(value_type = Object)]
    pub detail: Value,
    /// Over this line and the hash of the line before, hexadecimal.
    pub sha256: String,
}

/// Who changed what and why, newest first; each line is chained to the one before by its hash.
#[utoipa::path(get, path = "/adapters/audit", tag = "adapters", params(AuditQuery), responses(
    (status = 200, description = "The newest lines.", body = AuditTrail),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn get_audit(
    State(app): State<App>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<AuditTrail>, ApiError> {
    app.trainer()?;
    let limit = query.limit.unwrap_or(u64::from(AUDIT_ROWS));
    let limit = check::integer("limit", limit, 1, u64::from(fixed::AUDIT_ROWS), FIXED)? as u32;
    let rows = app.store.audit(limit).await?.into_iter().map(AuditRecord::from).collect();
    Ok(Json(AuditTrail { rows }))
}

impl From<AuditRow> for AuditRecord {
    fn from(row: AuditRow) -> Self {
        Self {
            seq: row.seq,
            at: timestamp(row.at_us),
            actor: row.actor,
            action: row.action,
            object: row.object,
            detail: row.detail,
            sha256: row.sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}
