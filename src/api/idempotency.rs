//! What is stored once however often it is sent: the client's key, and the mark on a repeated answer.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::ApiError;
use super::generate::check::{self, FIXED};
use super::limits::fixed;

/// The header with the client's key.
const KEY: &str = "idempotency-key";
/// The header that marks a repeated answer.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What a request can be recognised by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    /// The client's key.
    pub key: Option<String>,
    /// SHA-256 of the body, to tell a retry from a reuse of the key.
    pub body_sha256: Vec<u8>,
}

impl Identity {
    /// Of a request with these headers and this body.
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Result<Self, ApiError> {
        Ok(Self { key: key(headers)?, body_sha256: Sha256::digest(body).to_vec() })
    }
}

/// 201 with `reply`, marked when it was given before.
pub(super) fn created(reply: impl Serialize, replayed: bool) -> Response {
    let mut response = (StatusCode::CREATED, Json(reply)).into_response();
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get(KEY) else {
        return Ok(None);
    };
    let max = fixed::IDEMPOTENCY_KEY_BYTES;
    let key = key
        .to_str()
        .map_err(|_| ApiError::invalid(KEY, "is not printable ASCII", "send a random string such as a UUID"))?;
    match key.len() {
        0 => Err(ApiError::invalid(KEY, "is empty", "leave it out instead")),
        actual if actual > max => {
            let message = format!("has {actual} bytes, at most {max} are allowed");
            Err(check::beyond(KEY, message, max, actual, FIXED))
        }
        _ => Ok(Some(key.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_are_bounded() {
        let key = |value: &str| key(&HeaderMap::from_iter([(HeaderName::from_static(KEY), value.parse().unwrap())]));
        assert_eq!(key(&"k".repeat(255)).unwrap().unwrap().len(), 255);
        assert_eq!(key(&"k".repeat(256)).unwrap_err().problem().limit, Some(255.into()));
        assert!(key("").is_err() && key("ä").is_err());
        assert_eq!(super::key(&HeaderMap::new()).unwrap(), None);
    }
}
