//! Adapters in and out of the server, as the files that PEFT reads and writes.
//!
//! An adapter is in memory as a whole on its way, so only a few are under way at the same time. Nothing that was
//! refused leaves a trace.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use multer::{Constraints, Field, Multipart, SizeLimit};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::decide::order;
use super::{AdapterSummary, find};
use crate::adapters::manifest::Provenance;
use crate::adapters::peft::{CONFIG_FILE, MODEL_FILE, PeftFiles};
use crate::adapters::registry::MANIFEST_FILE;
use crate::adapters::{Adapter, AdapterError, Manifest, Registry, VersionId};
use crate::api::error::{ApiError, Problem};
use crate::api::extract::{Version, announced};
use crate::api::limits::fixed;
use crate::api::state::App;
use crate::rl::RlError;

/// Field with the adapter's name.
const NAME: &str = "name";
/// The request body, in messages.
const BODY: &str = "body";
/// Bytes of a tar block.
const BLOCK: usize = 512;

/// The fields of an import, in any order.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described: the fields are read one by one")]
pub(crate) struct AdapterUpload {
    /// Name of the adapter: 1 to 64 characters of a-z 0-9 . _ -, the first a letter or digit. It gets the next version.
    #[schema(example = "taste", pattern = "^[a-z0-9][a-z0-9._-]{0,63}$")]
    name: String,
    /// PEFT's settings, at most 1 MiB.
    #[schema(value_type = String, format = Binary)]
    #[schema(rename = "adapter_config.json")]
    config: Vec<u8>,
    /// PEFT's tensors, at most 512 MiB.
    #[schema(value_type = String, format = Binary)]
    #[schema(rename = "adapter_model.safetensors")]
    model: Vec<u8>,
}

/// A checked upload.
pub(crate) struct Upload {
    name: String,
    files: PeftFiles,
    _turn: OwnedSemaphorePermit,
}

/// Takes in a LoRA adapter that PEFT wrote. It becomes a candidate: it can be asked for, nobody gets it unasked.
#[utoipa::path(post, path = "/adapters", tag = "adapters",
    request_body(content = AdapterUpload, content_type = "multipart/form-data"), responses(
    (status = 201, description = "A candidate.", body = AdapterSummary),
    (status = 400, description = "Refused; `detail` says why.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "The model takes no adapters.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "Larger than the limit.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "Too many adapters are under way; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn import_adapter(State(app): State<App>, upload: Upload) -> Result<Response, ApiError> {
    let publisher = Arc::clone(app.trainer()?.publisher());
    let files = Arc::clone(publisher.files());
    let Upload { name, files: peft, _turn } = upload;
    let registry = Arc::clone(&files);
    let adapter = Arc::new(on_disk(move || import(&registry, &name, &peft)).await?);
    let id = adapter.id.clone();
    if let Err(error) = publisher.add(adapter, None, serde_json::json!({}), &order(None, "imported")?).await {
        remove(files, id).await;
        return Err(error.into());
    }
    let summary = AdapterSummary::new(&app, find(&app, &id).await?);
    let place = HeaderValue::from_str(&format!("/adapters/{id}")).unwrap_or(HeaderValue::from_static("/adapters"));
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(summary)).into_response())
}

/// The files of a version as a tar: a folder that PEFT loads, with the manifest.
#[utoipa::path(get, path = "/adapters/{id}/archive", tag = "adapters",
    params(("id" = String, Path, example = "main@3")), responses(
    (status = 200, description = "The archive.", content((String = "application/x-tar"))),
    (status = 404, description = "No such version.", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "Its files are damaged.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "Too many adapters are under way; see Retry-After.", body = Problem, content_type = "application/problem+json"),
))]
pub(crate) async fn get_archive(State(app): State<App>, Version(id): Version) -> Result<Response, ApiError> {
    let files = Arc::clone(app.trainer()?.publisher().files());
    let turn = turn(&app)?;
    let asked = id.clone();
    let (manifest, peft) = on_disk(move || files.files(&asked)).await?;
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{id}.tar\""));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (header::CONTENT_DISPOSITION, disposition.unwrap_or(HeaderValue::from_static("attachment"))),
    ];
    let parts = tar(&manifest, peft)?;
    let length: usize = parts.iter().map(Bytes::len).sum();
    // The turn is over when the last part has left.
    let stream = tokio_stream::iter(parts.into_iter().map(move |part| {
        let _held = &turn;
        Ok::<_, std::convert::Infallible>(part)
    }));
    Ok((headers, [(header::CONTENT_LENGTH, HeaderValue::from(length))], Body::from_stream(stream)).into_response())
}

fn import(registry: &Registry, name: &str, files: &PeftFiles) -> Result<Adapter, AdapterError> {
    let created_us = jiff::Timestamp::now().as_microsecond();
    let provenance = Provenance { algorithm: "import".to_owned(), created_us, ..Provenance::default() };
    registry.import(name, files, provenance)
}

/// Removes the files of a version that the log does not know.
async fn remove(files: Arc<Registry>, id: VersionId) {
    let shown = id.to_string();
    if let Err(error) = on_disk(move || files.remove(&id)).await {
        tracing::error!(%error, adapter = shown, "the files of an adapter that the log refused are still there");
    }
}

/// Runs what reads or writes an adapter's files.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| ApiError::Internal(format!("a task failed: {error}")))?;
    Ok(done.map_err(RlError::from)?)
}

/// One of the few adapters that may be under way.
fn turn(app: &App) -> Result<OwnedSemaphorePermit, ApiError> {
    let turn = Arc::clone(&app.adapter_transfers).try_acquire_owned();
    turn.map_err(|_| ApiError::Busy("other adapters are on their way in or out"))
}

/// A folder with the version's files, in parts, so that the tensors are not copied.
fn tar(manifest: &Manifest, files: PeftFiles) -> Result<Vec<Bytes>, ApiError> {
    let json = serde_json::to_vec_pretty(manifest).map_err(|e| ApiError::Internal(format!("manifest: {e}")))?;
    let seconds = u64::try_from(manifest.provenance.created_us / 1_000_000).unwrap_or(0);
    let mut parts = Vec::new();
    for (name, content) in [(MANIFEST_FILE, json), (CONFIG_FILE, files.config), (MODEL_FILE, files.model)] {
        let mut header = tar::Header::new_ustar();
        let path = format!("{}/{name}", manifest.id);
        header.set_path(&path).map_err(|e| ApiError::Internal(format!("archive {path}: {e}")))?;
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(seconds);
        header.set_cksum();
        let padding = content.len().next_multiple_of(BLOCK) - content.len();
        parts.extend([Bytes::copy_from_slice(header.as_bytes()), content.into(), vec![0; padding].into()]);
    }
    parts.push(vec![0; 2 * BLOCK].into());
    Ok(parts)
}

impl FromRequest<App> for Upload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        app.trainer()?;
        let whole = app.adapter_bytes + fixed::ADAPTER_CONFIG_BYTES + fixed::MULTIPART_BYTES;
        if let Some(actual) = announced(request.headers()).filter(|actual| *actual > whole) {
            return Err(too_large(BODY, actual, whole));
        }
        let sent = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = multer::parse_boundary(sent.unwrap_or_default()).map_err(|_| {
            let sent: String = sent.unwrap_or("none").chars().take(64).collect();
            ApiError::MediaType { expected: "multipart/form-data", sent }
        })?;
        let turn = turn(app)?;
        let constraints = Constraints::new().size_limit(SizeLimit::new().whole_stream(whole));
        let body = Multipart::with_constraints(request.into_body().into_data_stream(), boundary, constraints);
        let reading = read(body, app.adapter_bytes, Duration::from_secs(app.limits.body_timeout_s));
        let most = fixed::ADAPTER_SECONDS;
        let (name, files) =
            tokio::time::timeout(Duration::from_secs(most), reading).await.map_err(|_| ApiError::Slow(most))??;
        Ok(Self { name, files, _turn: turn })
    }
}

/// Reads the three fields; each part must arrive within `patience` of the one before.
async fn read(
    mut body: Multipart<'static>,
    model_bytes: u64,
    patience: Duration,
) -> Result<(String, PeftFiles), ApiError> {
    let (mut name, mut config, mut model) = (None, None, None);
    while let Some(field) = soon(body.next_field(), patience).await?.map_err(broken)? {
        let sent = field.name().unwrap_or_default();
        let (known, place, limit) = match sent {
            NAME => (NAME, &mut name, fixed::ADAPTER_NAME_BYTES),
            CONFIG_FILE => (CONFIG_FILE, &mut config, fixed::ADAPTER_CONFIG_BYTES),
            MODEL_FILE => (MODEL_FILE, &mut model, model_bytes),
            _ => {
                let sent: String = sent.chars().take(64).collect();
                let hint = format!("send {NAME}, {CONFIG_FILE} and {MODEL_FILE}");
                return Err(ApiError::invalid(sent, "is not a field of an adapter", hint));
            }
        };
        if place.is_some() {
            return Err(ApiError::invalid(known, "was sent twice", "send each field once"));
        }
        *place = Some(content(field, known, limit, patience).await?);
    }
    let missing = |field: &'static str| move || ApiError::invalid(field, "is missing", "send all three fields");
    let name = String::from_utf8_lossy(&name.ok_or_else(missing(NAME))?).into_owned();
    if let Err(error) = VersionId::new(&name, 1) {
        return Err(ApiError::invalid(NAME, error.to_string(), "the version is counted by the server"));
    }
    let config = config.ok_or_else(missing(CONFIG_FILE))?;
    Ok((name, PeftFiles { config, model: model.ok_or_else(missing(MODEL_FILE))? }))
}

async fn content(
    mut field: Field<'static>,
    name: &'static str,
    limit: u64,
    patience: Duration,
) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = soon(field.chunk(), patience).await?.map_err(broken)? {
        let actual = (bytes.len() + chunk.len()) as u64;
        if actual > limit {
            return Err(too_large(name, actual, limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn soon<T>(part: impl Future<Output = T>, patience: Duration) -> Result<T, ApiError> {
    tokio::time::timeout(patience, part).await.map_err(|_| ApiError::Slow(patience.as_secs()))
}

fn broken(error: multer::Error) -> ApiError {
    match error {
        multer::Error::StreamSizeExceeded { limit } => too_large(BODY, limit + 1, limit),
        error => ApiError::invalid(BODY, error.to_string(), "send multipart/form-data, whole and well-formed"),
    }
}

/// `actual` is what had come when it was given up, or what was announced.
fn too_large(file: &'static str, actual: u64, limit: u64) -> ApiError {
    RlError::from(AdapterError::TooLarge { file, what: "size in bytes".to_owned(), actual, limit }).into()
}
