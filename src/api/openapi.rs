//! The description of the API, generated from the handlers, and the page that shows it.

use std::sync::OnceLock;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tower::ServiceBuilder;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::Problem;
use super::generate::stream::{BlockEvent, PreviewEvent, QueuedEvent, StepEvent};
use super::state::App;

/// What Swagger UI needs: it styles itself inline and draws its logo from a data URL.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                      object-src 'none'; base-uri 'none'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lacuna",
        description = "Inference for masked diffusion models, text and image. Errors are problem details \
                       (RFC 9457). Unknown fields are refused. Every response has an `x-request-id`."
    ),
    components(schemas(Problem, QueuedEvent, StepEvent, BlockEvent, PreviewEvent)),
    tags(
        (name = "generate", description = "Text and images, plain or streamed."),
        (name = "completions", description = "What was generated."),
        (name = "feedback", description = "What people say of it."),
        (name = "adapters", description = "Versions of what was learned, and which are served."),
        (name = "training", description = "What is being learned, from what, with what result."),
        (name = "operations", description = "Health, limits, metrics.")
    )
)]
pub(super) struct Base;

/// The document as pretty JSON with a final line break, as in `openapi/openapi.json`.
///
/// # Errors
/// When it is not JSON, which it is.
pub fn document() -> Result<String, serde_json::Error> {
    let (_, api) = super::routes().split_for_parts();
    Ok(serde_json::to_string_pretty(&api)? + "\n")
}

/// `GET /openapi.json`.
pub(super) async fn get_openapi() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    let text = DOCUMENT.get_or_init(|| document().unwrap_or_default()).as_str();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// `/docs`: Swagger UI, embedded.
pub(super) fn docs() -> Router<App> {
    let policy = HeaderValue::from_static(POLICY);
    let layer = SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy);
    let ui: Router<App> = SwaggerUi::new("/docs").config(Config::new(["/openapi.json"])).into();
    ui.layer(ServiceBuilder::new().layer(layer))
}
