//! Operations: is it alive, does it take requests, what is it, what has it done.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::defaults::Defaults;
use super::error::ApiError;
use super::generate::template;
use super::limits::ApiLimits;
use super::state::App;
use crate::engine::Status;
use crate::rl::trainer::Promotion;
use crate::store::StoreCounts;
use crate::telemetry;

/// The process is alive.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether requests are taken.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Requests are taken.
    ready: bool,
    /// Why not.
    reasons: Vec<String>,
}

/// What is served, and within which bounds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info {
    /// Of this server.
    version: &'static str,
    /// The model.
    model: ModelInfo,
    /// Adapter that new requests are pinned to, `name@version`.
    adapter: String,
    /// Whether the server learns from feedback.
    learning: LearningInfo,
    /// In words.
    device: String,
    /// How the weights of matrix products are kept, and the precision these have: `f32` is exact, `bf16` and `int8`
    /// round weights and activations; on a GPU `as in the file`.
    #[schema(example = "f32")]
    weights: &'static str,
    /// What a request may ask for.
    limits: ApiLimits,
    /// What it gets when it does not say.
    defaults: Defaults,
    /// How a hole of n tokens is written in a template.
    template_hole: &'static str,
    /// What is in the log.
    store: LogInfo,
    /// What the engine is doing.
    engine: EngineInfo,
}

/// The served model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelInfo {
    /// Served name.
    name: String,
    /// Number of parameters.
    parameters: usize,
    /// Number of token ids.
    vocab_size: usize,
    /// Longest sequence, prompt and layout included.
    max_positions: usize,
    /// Hidden size.
    d_model: usize,
    /// Number of layers.
    n_layers: usize,
    /// Ids that end a text.
    eos_ids: Vec<u32>,
    /// The mask token.
    mask_id: u32,
    /// SHA-256 of the base weights.
    base_sha256: String,
    /// The image side; null when it draws none.
    image: Option<ImageInfo>,
}

/// The image side of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ImageInfo {
    /// Rows and columns of the default token grid.
    grid: (usize, usize),
    /// Number of codes.
    codebook: u32,
}

/// Whether the server learns.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LearningInfo {
    /// It learns from feedback; GET /training says more.
    on: bool,
    /// When a version that passed its gate is served: `approve` (when a person says so) or `auto`; null when off.
    #[schema(value_type = Option<String>, example = "approve")]
    promotion: Option<Promotion>,
    /// Adapters can be imported and served.
    adapters: bool,
}

/// Counts of the log.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogInfo {
    /// Completions.
    completions: u64,
    /// Ratings.
    feedback: u64,
}

/// What the engine is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EngineInfo {
    /// Canvases waiting for their first step.
    queued: usize,
    /// Canvases stepping.
    running: usize,
    /// The last forward succeeded.
    healthy: bool,
    /// New requests are refused.
    draining: bool,
}

/// The process is alive.
#[utoipa::path(get, path = "/health", tag = "operations", responses((status = 200, body = Health)))]
pub(super) async fn get_health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Requests are taken: the engine is healthy, the log answers, and no shutdown is under way.
#[utoipa::path(get, path = "/ready", tag = "operations", responses(
    (status = 200, description = "Ready.", body = Readiness),
    (status = 503, description = "Not ready; `reasons` says why.", body = Readiness),
))]
pub(super) async fn get_ready(State(app): State<App>) -> Response {
    let ping = app.store.ping().await.map_err(|error| ApiError::from(error).report());
    let readiness = Readiness::new(app.engine.status(), app.shutdown.draining.is_cancelled(), ping.is_ok());
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(readiness)).into_response()
}

/// What is served, limits and defaults.
#[utoipa::path(get, path = "/info", tag = "operations", responses((status = 200, body = Info)))]
pub(super) async fn get_info(State(app): State<App>) -> Result<Json<Info>, ApiError> {
    let counts = app.store.counts().await?;
    Ok(Json(Info::new(&app, counts)))
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "Prometheus text format.", body = String, content_type = "text/plain")))]
pub(super) async fn get_metrics(State(app): State<App>) -> Response {
    let media_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    telemetry::note_memory();
    ([(header::CONTENT_TYPE, media_type)], app.metrics.render()).into_response()
}

impl Readiness {
    fn new(engine: Status, stopping: bool, log: bool) -> Self {
        let reasons = [
            (!engine.healthy, "the last forward of the model failed, or its thread has ended"),
            (engine.draining || stopping, "the server is shutting down"),
            (!log, "the log's database does not answer"),
        ];
        let reasons: Vec<_> = reasons.iter().filter(|(holds, _)| *holds).map(|(_, why)| (*why).to_owned()).collect();
        Self { ready: reasons.is_empty(), reasons }
    }
}

impl Info {
    fn new(app: &App, counts: StoreCounts) -> Self {
        let spec = app.engine.spec();
        let status = app.engine.status();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            model: ModelInfo {
                name: spec.name.clone(),
                parameters: spec.parameters,
                vocab_size: spec.vocab_size,
                max_positions: spec.max_positions,
                d_model: spec.d_model,
                n_layers: spec.n_layers,
                eos_ids: spec.eos_ids.clone(),
                mask_id: spec.mask_id,
                base_sha256: spec.sha256.clone(),
                image: spec
                    .image
                    .as_ref()
                    .filter(|_| app.engine.draws())
                    .map(|image| ImageInfo { grid: image.grid, codebook: image.codes.end - image.codes.start }),
            },
            adapter: app.engine.serving().routes().active().to_string(),
            learning: LearningInfo {
                on: app.learning.is_some(),
                promotion: app.learning,
                adapters: app.trainer.is_some(),
            },
            device: app.device.clone(),
            weights: app.weights,
            limits: app.limits.clone(),
            defaults: app.defaults.clone(),
            template_hole: template::HOLE,
            store: LogInfo { completions: counts.completions, feedback: counts.feedback },
            engine: EngineInfo {
                queued: status.queued,
                running: status.running,
                healthy: status.healthy,
                draining: status.draining,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_lists_every_reason() {
        let well = Status { healthy: true, ..Status::default() };
        assert_eq!(Readiness::new(well, false, true), Readiness { ready: true, reasons: vec![] });
        let ill = Status { healthy: false, draining: true, ..Status::default() };
        assert_eq!(Readiness::new(ill, true, false).reasons.len(), 3);
        assert!(!Readiness::new(well, true, true).ready);
    }
}
