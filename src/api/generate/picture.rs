//! Codes to picture files, off the async threads and few at a time.

use std::io::Cursor;

use axum::http::{HeaderMap, header};
use image::{ImageFormat, RgbImage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::error::ApiError;
use crate::api::state::App;

/// How pictures are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PictureFormat {
    /// Lossless.
    #[default]
    Png,
    /// Small, lossy.
    Jpeg,
    /// Lossless, smaller than PNG.
    Webp,
}

impl PictureFormat {
    /// Its media type.
    pub(in crate::api) fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }

    /// The first supported picture type that `Accept` names, unless JSON or anything comes first.
    pub(in crate::api) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
        let first = accept.split(',').find_map(|range| match range.split(';').next().unwrap_or_default().trim() {
            "image/png" | "image/*" => Some(Some(Self::Png)),
            "image/jpeg" => Some(Some(Self::Jpeg)),
            "image/webp" => Some(Some(Self::Webp)),
            "application/json" | "text/event-stream" | "*/*" => Some(None),
            _ => None,
        });
        first.flatten()
    }

    fn encode(self, image: &RgbImage) -> Result<Vec<u8>, image::ImageError> {
        let format = match self {
            Self::Png => ImageFormat::Png,
            Self::Jpeg => ImageFormat::Jpeg,
            Self::Webp => ImageFormat::WebP,
        };
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format)?;
        Ok(bytes.into_inner())
    }
}

/// An encoded picture.
pub(in crate::api) struct Picture {
    pub bytes: Vec<u8>,
    pub format: PictureFormat,
    pub width: u32,
    pub height: u32,
}

/// Draws codes (`None` where masked) and encodes the picture.
pub(in crate::api) async fn draw(
    app: &App,
    codes: Vec<Option<u32>>,
    grid: (usize, usize),
    format: PictureFormat,
) -> Result<Picture, ApiError> {
    let permit = app.renders.clone().acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal("drawing has stopped".to_owned()))?;
    let engine = app.engine.clone();
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit; // held until the work is over, even when nobody waits for it any more
        let image = engine.render(&codes, grid)?;
        let bytes = format.encode(&image).map_err(|error| ApiError::Internal(format!("encoding failed: {error}")))?;
        Ok(Picture { bytes, format, width: image.width(), height: image.height() })
    });
    work.await.map_err(|error| ApiError::Internal(format!("drawing failed: {error}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_what_it_says() {
        let image = RgbImage::from_pixel(8, 4, image::Rgb([200, 30, 30]));
        for format in [PictureFormat::Png, PictureFormat::Jpeg, PictureFormat::Webp] {
            let bytes = format.encode(&image).unwrap();
            let guessed = image::guess_format(&bytes).unwrap();
            assert_eq!(guessed.to_mime_type(), format.media_type());
            assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 8);
        }
    }

    #[test]
    fn accept_asks_for_bytes_only_when_a_picture_comes_first() {
        let accepted = |value: &'static str| {
            PictureFormat::accepted(&HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]))
        };
        assert_eq!(accepted("image/png"), Some(PictureFormat::Png));
        assert_eq!(accepted("image/avif, image/webp;q=0.9, */*"), Some(PictureFormat::Webp));
        assert_eq!(accepted("*/*"), None);
        assert_eq!(accepted("application/json, image/png"), None);
        assert_eq!(PictureFormat::accepted(&HeaderMap::new()), None);
    }
}
