//! The playground: the files of `static/`, embedded in the binary. No client path reaches the filesystem.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::error::ApiError;

/// What the page may load: its own files and pictures made here; no other origin, no inline script or style.
const POLICY: &str = "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; \
                      connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'";

#[derive(RustEmbed)]
#[folder = "static/"]
#[allow_missing = true]
struct Files;

/// The playground's page.
pub(super) async fn get_index(headers: HeaderMap) -> Response {
    named("index.html", &headers)
}

/// A file that the page loads.
pub(super) async fn get_file(Path(path): Path<String>, headers: HeaderMap) -> Response {
    named(&path, &headers)
}

fn named(path: &str, headers: &HeaderMap) -> Response {
    match Files::get(path) {
        Some(file) => respond(path, file, headers),
        None => missing(path).into_response(),
    }
}

fn missing(path: &str) -> ApiError {
    ApiError::NotFound { what: "file", name: path.to_owned(), field: None, hint: "the playground is at /" }
}

/// The file, or 304 when the client has it. Names carry no version, so clients ask each time.
fn respond(path: &str, file: EmbeddedFile, headers: &HeaderMap) -> Response {
    let tag = etag(&file.metadata.sha256_hash());
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| matches(known, &tag));
    let caching = [
        (header::ETAG, HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""))),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    ];
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(media_type(path)))];
    (kind, caching, file.data).into_response()
}

fn etag(hash: &[u8; 32]) -> String {
    let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// `If-None-Match` names the tag; a proxy that compresses may have made it weak.
fn matches(known: &HeaderValue, tag: &str) -> bool {
    let known = known.to_str().unwrap_or_default();
    known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
}

fn media_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_match_weak_or_strong_and_in_lists() {
        let tag = etag(&[7; 32]);
        let known = |value: &str| matches(&HeaderValue::from_str(value).unwrap(), &tag);
        assert!(known(&tag) && known(&format!("W/{tag}")) && known(&format!("\"x\", {tag}")) && known("*"));
        assert!(!known("\"x\""));
    }

    #[test]
    fn scripts_and_styles_have_their_media_types() {
        assert_eq!(media_type("js/main.js"), "text/javascript; charset=utf-8");
        assert_eq!(media_type("style.css"), "text/css; charset=utf-8");
        assert_eq!(media_type("LICENSE"), "application/octet-stream");
    }

    #[test]
    fn paths_do_not_leave_the_folder() {
        for path in ["../Cargo.toml", "/etc/passwd", "..%2fCargo.toml", "js/../../Cargo.toml"] {
            assert_eq!(named(path, &HeaderMap::new()).status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
