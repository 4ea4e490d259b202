//! `/training`: what the server learns, from what, with what result; and the switches.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::adapters::RoutesInfo;
use super::error::{ApiError, Problem};
use super::extract::{Path, Query};
use super::generate::check::{self, FIXED};
use super::limits::fixed;
use super::state::App;
use super::time::timestamp;
use crate::rl::trainer::status::{LaneStatus, Phase, RunProgress};
use crate::rl::update::UpdateReport;
use crate::store::{LaneTotal, RUNNING, RunRow};

/// Runs in one answer, unless more are asked for.
const RUNS: u64 = 20;

/// What the trainer is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TrainingStatus {
    /// `idle`, `collecting`, `training`, `gating` or `paused`.
    #[schema(value_type = String, example = "collecting")]
    pub state: Phase,
    /// Why it waits.
    #[schema(example = "212 more judgements are needed")]
    pub reason: String,
    /// Judgements that wait for the next run.
    pub waiting: u64,
    /// Judgements that start a run.
    pub min_samples: u64,
    /// Distinct raters of these.
    pub subjects: u64,
    /// Samples of all runs, by lane: `groups`, `regenerated` and `singles`.
    pub lanes: BTreeMap<String, LaneInfo>,
    /// The version that everybody gets.
    #[schema(example = "main@3")]
    pub current: String,
    /// Which versions are served, to whom.
    pub routes: RoutesInfo,
    /// The run in progress.
    pub run: Option<ProgressInfo>,
    /// The run that ended last.
    pub last_run: Option<RunRecord>,
}

/// Samples of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub(crate) struct LaneInfo {
    /// Learned from.
    pub used: u64,
    /// Left out, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// How far a run is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ProgressInfo {
    /// Batches done.
    pub done: usize,
    /// Batches in all.
    pub total: usize,
    /// What the last batch did.
    #[schema(value_type = Object)]
    pub last: UpdateReport,
}

/// A training run.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunRecord {
    /// Its id.
    pub id: Uuid,
    /// `running`, `promoted`, `candidate`, `rejected`, `nothing_to_learn`, `cancelled`, `failed` or `abandoned`.
    #[schema(example = "candidate")]
    pub status: String,
    /// What started it: `samples` or `manual`.
    #[schema(example = "samples")]
    pub trigger: String,
    /// The version that it started from.
    #[schema(example = "main@2")]
    pub parent: String,
    /// RFC 3339.
    #[schema(example = "2026-01-31T12:00:00.123456Z")]
    pub started_at: String,
    /// RFC 3339; null while it runs.
    pub ended_at: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// What was measured.
    #[schema(value_type = Object)]
    pub metrics: Value,
}

/// A training run with its settings.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunDetail {
    /// The run.
    #[serde(flatten)]
    pub run: RunRecord,
    /// Hyperparameters.
    #[schema(value_type = Object)]
    pub config: Value,
}

/// Training runs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunList {
    /// Newest first.
    pub runs: Vec<RunRecord>,
}

/// Which runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunsQuery {
    /// At most 100; 20 by default.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u64>,
    /// Only runs that started before this one.
    before: Option<Uuid>,
}

/// What is being learned, from what, with what result.
#[utoipa::path(get, path = "/training", tag = "training", responses(
    (status = 200, description = "The trainer.", body = TrainingStatus),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_training(State(app): State<App>) -> Result<Json<TrainingStatus>, ApiError> {
    status(&app).await.map(Json)
}

/// Starts a run as soon as possible, however few judgements there are.
#[utoipa::path(post, path = "/training/trigger", tag = "training", responses(
    (status = 202, description = "Asked for; GET /training shows what becomes of it.", body = TrainingStatus),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn trigger(State(app): State<App>) -> Result<(StatusCode, Json<TrainingStatus>), ApiError> {
    app.trainer()?.trigger();
    accepted(&app).await
}

/// Starts no more runs; the one in progress is given up after its batch.
#[utoipa::path(post, path = "/training/pause", tag = "training", responses(
    (status = 202, description = "Asked for; GET /training shows what becomes of it.", body = TrainingStatus),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn pause(State(app): State<App>) -> Result<(StatusCode, Json<TrainingStatus>), ApiError> {
    app.trainer()?.pause();
    accepted(&app).await
}

/// Goes on after a pause.
#[utoipa::path(post, path = "/training/resume", tag = "training", responses(
    (status = 202, description = "Asked for; GET /training shows what becomes of it.", body = TrainingStatus),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn resume(State(app): State<App>) -> Result<(StatusCode, Json<TrainingStatus>), ApiError> {
    app.trainer()?.resume();
    accepted(&app).await
}

/// Ends the run in progress; what it learned is forgotten.
#[utoipa::path(post, path = "/training/cancel", tag = "training", responses(
    (status = 202, description = "Asked for; GET /training shows what becomes of it.", body = TrainingStatus),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn cancel(State(app): State<App>) -> Result<(StatusCode, Json<TrainingStatus>), ApiError> {
    app.trainer()?.cancel();
    accepted(&app).await
}

/// The runs, newest first.
#[utoipa::path(get, path = "/training/runs", tag = "training", params(RunsQuery), responses(
    (status = 200, description = "The runs.", body = RunList),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn list_runs(
    State(app): State<App>,
    Query(query): Query<RunsQuery>,
) -> Result<Json<RunList>, ApiError> {
    app.trainer()?;
    let limit = check::integer("limit", query.limit.unwrap_or(RUNS), 1, u64::from(fixed::RUNS), FIXED)? as u32;
    let runs = app.store.runs(limit, query.before).await?;
    Ok(Json(RunList { runs: runs.into_iter().map(RunRecord::from).collect() }))
}

/// A run with its settings.
#[utoipa::path(get, path = "/training/runs/{id}", tag = "training", params(("id" = Uuid, Path)), responses(
    (status = 200, description = "The run.", body = RunDetail),
    (status = 404, description = "No such run.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn get_run(State(app): State<App>, Path(id): Path<Uuid>) -> Result<Json<RunDetail>, ApiError> {
    app.trainer()?;
    let row = app.store.run(id).await?.ok_or_else(|| ApiError::NotFound {
        what: "training run",
        name: id.to_string(),
        field: None,
        hint: "GET /training/runs lists the runs",
    })?;
    let config = row.run.config.clone();
    Ok(Json(RunDetail { run: row.into(), config }))
}

async fn accepted(app: &App) -> Result<(StatusCode, Json<TrainingStatus>), ApiError> {
    Ok((StatusCode::ACCEPTED, Json(status(app).await?)))
}

async fn status(app: &App) -> Result<TrainingStatus, ApiError> {
    let trainer = app.trainer()?;
    // The trainer first: what it has just booked is then among the totals.
    let status = trainer.status();
    let routes = trainer.publisher().routes();
    let totals = app.store.lane_totals().await?;
    // One trainer has at most one run in progress.
    let ended = app.store.runs(2, None).await?.into_iter().find(|row| row.status != RUNNING);
    Ok(TrainingStatus {
        state: status.state,
        reason: status.reason,
        waiting: status.waiting,
        min_samples: status.min_samples,
        subjects: status.subjects,
        lanes: lanes(status.lanes, totals),
        current: routes.active().to_string(),
        routes: RoutesInfo::from(&routes),
        run: status.run.map(ProgressInfo::from),
        last_run: ended.map(RunRecord::from),
    })
}

/// The log's totals, which survive a restart; of a lane that has no items in the log (regenerated completions are
/// none) this process's own count.
fn lanes(own: BTreeMap<String, LaneStatus>, totals: Vec<LaneTotal>) -> BTreeMap<String, LaneInfo> {
    let mut lanes: BTreeMap<String, LaneInfo> = BTreeMap::new();
    for LaneTotal { lane, drop_reason, samples } in totals {
        let of = lanes.entry(lane).or_default();
        match drop_reason {
            None => of.used += samples,
            Some(reason) => *of.dropped.entry(reason).or_default() += samples,
        }
    }
    for (lane, LaneStatus { used, dropped }) in own {
        lanes.entry(lane).or_insert(LaneInfo { used, dropped });
    }
    lanes
}

impl From<RunProgress> for ProgressInfo {
    fn from(RunProgress { done, total, last }: RunProgress) -> Self {
        Self { done, total, last }
    }
}

impl From<RunRow> for RunRecord {
    fn from(row: RunRow) -> Self {
        Self {
            id: row.run.id,
            status: row.status,
            trigger: row.run.trigger,
            parent: row.run.parent,
            started_at: timestamp(row.started_us),
            ended_at: row.ended_us.map(timestamp),
            error: row.error,
            metrics: row.metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_those_of_the_log_and_the_rest_from_the_trainer() {
        let own = |used| LaneStatus { used, dropped: BTreeMap::new() };
        let own = [("groups", own(3)), ("regenerated", own(5)), ("singles", own(0))];
        let total = |reason: Option<&str>, samples| LaneTotal {
            lane: "groups".to_owned(),
            drop_reason: reason.map(str::to_owned),
            samples,
        };
        let lanes = lanes(
            own.map(|(lane, status)| (lane.to_owned(), status)).into(),
            vec![total(None, 7), total(Some("stale"), 2)],
        );
        let groups = LaneInfo { used: 7, dropped: BTreeMap::from([("stale".to_owned(), 2)]) };
        assert_eq!((&lanes["groups"], lanes["regenerated"].used), (&groups, 5));
        assert_eq!(lanes["singles"], LaneInfo::default());
    }
}
