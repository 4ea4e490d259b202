//! HTTP only: routes, bodies, bounds, errors. Everything that takes thought happens below, in the engine and the log.
//!
//! This file is the route table and the layers around it. A handler checks (pure functions in its resource's file),
//! calls the engine or the log, and answers; [`error`] turns what fails into problem details.

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn;
use axum::routing::get;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::trace::{DefaultOnFailure, DefaultOnResponse, TraceLayer};
use tracing::Level;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod adapters;
mod completions;
pub mod defaults;
pub mod error;
mod extract;
mod feedback;
mod generate;
mod health;
mod idempotency;
pub mod limits;
mod metrics;
mod middleware;
pub mod openapi;
mod preferences;
pub mod reserve;
mod serve;
mod sse;
mod state;
mod time;
mod training;
mod ui;

pub use serve::serve;
pub use state::{App, AppState, Shutdown};

use error::ApiError;

/// The documented routes.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .routes(routes!(generate::text::generate_text))
        .routes(routes!(generate::image::generate_image))
        .routes(routes!(completions::get_completion, completions::delete_completion))
        .routes(routes!(completions::get_completion_image))
        .routes(routes!(feedback::add_feedback))
        .routes(routes!(feedback::delete_feedback))
        .routes(routes!(preferences::add_preference))
        .routes(routes!(adapters::list_adapters, adapters::files::import_adapter))
        .routes(routes!(adapters::get_audit))
        .routes(routes!(adapters::decide::roll_back))
        .routes(routes!(adapters::get_adapter))
        .routes(routes!(adapters::files::get_archive))
        .routes(routes!(adapters::decide::approve))
        .routes(routes!(adapters::decide::reject))
        .routes(routes!(training::get_training))
        .routes(routes!(training::trigger))
        .routes(routes!(training::pause))
        .routes(routes!(training::resume))
        .routes(routes!(training::cancel))
        .routes(routes!(training::list_runs))
        .routes(routes!(training::get_run))
        .routes(routes!(health::get_health))
        .routes(routes!(health::get_ready))
        .routes(routes!(health::get_info))
        .routes(routes!(health::get_metrics))
}

/// The pages.
fn pages() -> Router<App> {
    Router::new()
        .route("/", get(ui::get_index))
        .route("/static/{*path}", get(ui::get_file))
        .route("/openapi.json", get(openapi::get_openapi))
        .merge(openapi::docs())
        .layer(CompressionLayer::new())
}

/// Every route with its layers, outermost first.
pub fn router(state: App) -> Router {
    let layers = ServiceBuilder::new()
        .layer(from_fn(middleware::request_id))
        .layer(from_fn(middleware::safe_headers))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(|request: &Request| middleware::span(request))
                .on_response(DefaultOnResponse::new().level(Level::DEBUG))
                .on_failure(DefaultOnFailure::new().level(Level::DEBUG)), // the cause is logged where it is known
        )
        .layer(from_fn(metrics::track))
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn(middleware::bound_headers));
    let (routes, _) = routes().split_for_parts();
    routes
        .merge(pages())
        .fallback(async |request: Request| ApiError::NotFound {
            what: "route",
            name: request.uri().path().to_owned(),
            field: None,
            hint: "/docs lists the routes",
        })
        .method_not_allowed_fallback(async |request: Request| ApiError::Method { method: request.method().to_string() })
        .layer(layers)
        .with_state(state)
}
