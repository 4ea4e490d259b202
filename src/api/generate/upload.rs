//! Pictures that a request brings: base64 to pixels within bounds, pixels to the model's codes, off the async threads
//! and few at a time.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, GrayImage, ImageDecoder as _, ImageError, ImageReader, Limits, RgbImage};

use super::check::{self, FIXED};
use crate::api::error::ApiError;
use crate::api::limits::fixed;
use crate::api::state::App;

/// From this brightness on a mask is white.
const WHITE: u8 = 128;
/// Most bytes of a pixel: four channels of sixteen bits.
const PIXEL_BYTES: u64 = 8;

/// Rows and columns of tokens.
type Grid = (usize, usize);

/// The codes of a picture, row by row.
pub(super) async fn codes(app: &App, image: String, grid: Grid) -> Result<Vec<u32>, ApiError> {
    let engine = app.engine.clone();
    work(app, move || Ok(engine.encode_image(&pixels("image", &image)?, grid)?)).await
}

/// The codes of a picture where its mask is black; `None` where it is white.
pub(super) async fn kept(app: &App, image: String, mask: String, grid: Grid) -> Result<Vec<Option<u32>>, ApiError> {
    let engine = app.engine.clone();
    let kept = move || {
        let (image, mask) = (pixels("image", &image)?, open("mask", &mask)?.into_luma8());
        fit(&image, &mask, grid)?;
        let white = white(&mask, grid);
        if !white.contains(&true) {
            return Err(ApiError::invalid("mask", "is black everywhere", "make white what is to be drawn anew"));
        }
        let codes = engine.encode_image(&image, grid)?;
        Ok(codes.into_iter().zip(white).map(|(code, white)| (!white).then_some(code)).collect())
    };
    work(app, kept).await
}

/// Runs `job` on a thread that may block. Each waiting request holds a picture in memory, so few may wait.
async fn work<T: Send + 'static>(
    app: &App,
    job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let place = app.uploads.clone().try_acquire_owned();
    let place = place.map_err(|_| ApiError::Busy("too many pictures are being read at this time"))?;
    let permit = app.renders.clone().acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal("reading pictures has stopped".to_owned()))?;
    let work = tokio::task::spawn_blocking(move || {
        let _held = (place, permit); // until the work is over, even when nobody waits for it any more
        job()
    });
    work.await.map_err(|error| ApiError::Internal(format!("reading a picture failed: {error}")))?
}

fn pixels(field: &str, base64: &str) -> Result<RgbImage, ApiError> {
    open(field, base64).map(DynamicImage::into_rgb8)
}

/// A picture file in base64, upright. Its size is known, and bounded, before it is decoded.
fn open(field: &str, base64: &str) -> Result<DynamicImage, ApiError> {
    let bytes = STANDARD.decode(base64).map_err(|error| {
        ApiError::invalid(
            field,
            format!("is not base64: {error}"),
            "send the file in standard base64, without a prefix",
        )
    })?;
    let unread = |error: ImageError| {
        ApiError::invalid(field, format!("cannot be read: {error}"), "send a whole PNG, JPEG or WebP file")
    };
    let side = fixed::PICTURE_SIDE;
    let mut limits = Limits::default();
    limits.max_alloc = Some(u64::from(side) * u64::from(side) * PIXEL_BYTES);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| unread(e.into()))?;
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unread)?;
    let (width, height) = decoder.dimensions();
    if width.max(height) > side {
        let message = format!("is {width}×{height} pixels, at most {side}×{side} are read");
        return Err(check::beyond(field, message, side, width.max(height), FIXED));
    }
    let orientation = decoder.orientation().map_err(unread)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(unread)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// A mask says which tokens of a picture stay, so nothing of either may be stretched or cut off.
fn fit(image: &RgbImage, mask: &GrayImage, (rows, columns): Grid) -> Result<(), ApiError> {
    let (width, height) = image.dimensions();
    if mask.dimensions() != (width, height) {
        let message = format!("is {}×{} pixels, the image {width}×{height}", mask.width(), mask.height());
        return Err(ApiError::invalid("mask", message, "send both in the same size"));
    }
    // Sides are at most `PICTURE_SIDE`, the grid is bounded by `max_image_cells`: no product overflows.
    if u64::from(width) * rows as u64 == u64::from(height) * columns as u64 {
        return Ok(());
    }
    let message = format!("is {width}×{height} pixels, the grid has {columns}×{rows} cells, which are square");
    Err(ApiError::invalid("image", message, "cut or pad image and mask to the grid's proportions"))
}

/// Which cells have a white pixel.
fn white(mask: &GrayImage, (rows, columns): Grid) -> Vec<bool> {
    let span = |index: usize, cells: usize, pixels: u32| {
        let edge = |index: usize| (index as u64 * u64::from(pixels) / cells as u64) as u32;
        // A mask may have fewer pixels than there are cells.
        edge(index)..edge(index + 1).max(edge(index) + 1)
    };
    let cell = |index: usize| {
        let xs = span(index % columns, columns, mask.width());
        span(index / columns, rows, mask.height()).any(|y| xs.clone().any(|x| mask.get_pixel(x, y).0[0] >= WHITE))
    };
    (0..rows * columns).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Luma, Rgb};

    use super::*;

    fn file(image: impl Into<DynamicImage>, format: ImageFormat) -> String {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        STANDARD.encode(bytes.into_inner())
    }

    #[test]
    fn whole_pictures_of_every_format_are_read() {
        let image = RgbImage::from_fn(6, 4, |x, y| Rgb([x as u8 * 40, y as u8 * 60, 9]));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            assert_eq!(pixels("image", &file(image.clone(), format)).unwrap(), image);
        }
        assert_eq!(pixels("image", &file(image, ImageFormat::Jpeg)).unwrap().dimensions(), (6, 4));
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_field() {
        let png = file(RgbImage::new(8, 8), ImageFormat::Png);
        let cut = STANDARD.encode(&STANDARD.decode(&png).unwrap()[..40]);
        let prefixed = format!("data:image/png;base64,{png}");
        for bad in ["", "?", "AAAA", &cut, &prefixed, &STANDARD.encode("GIF89a\x01\0\x01\0\0\0\0;")] {
            let problem = open("mask", bad).unwrap_err().problem();
            assert_eq!((problem.status, problem.field.as_deref()), (400, Some("mask")), "{bad}");
            assert!(problem.hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn a_large_picture_is_refused_before_it_is_decoded() {
        let side = fixed::PICTURE_SIDE;
        assert!(open("image", &file(GrayImage::new(side, 1), ImageFormat::Png)).is_ok());
        let problem = open("image", &file(GrayImage::new(1, side + 1), ImageFormat::Png)).unwrap_err().problem();
        assert_eq!((problem.limit, problem.actual), (Some(side.into()), Some((side + 1).into())));
        // Of a file that promises a larger picture than it holds, only the promise is read.
        let mut png = STANDARD.decode(file(GrayImage::new(8, 8), ImageFormat::Png)).unwrap();
        png[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(open("image", &STANDARD.encode(png)).unwrap_err().problem().status, 400);
    }

    #[test]
    fn a_cell_with_any_white_pixel_is_drawn_anew() {
        let mut mask = GrayImage::new(6, 4);
        assert_eq!(white(&mask, (2, 3)), [false; 6]);
        mask.put_pixel(5, 3, Luma([WHITE]));
        mask.put_pixel(1, 1, Luma([WHITE - 1]));
        assert_eq!(white(&mask, (2, 3)), [false, false, false, false, false, true]);
        assert_eq!(white(&GrayImage::from_pixel(1, 1, Luma([255])), (2, 3)), [true; 6]);
    }

    #[test]
    fn image_and_mask_have_the_grids_proportions() {
        let fits = |image: (u32, u32), mask: (u32, u32)| {
            fit(&RgbImage::new(image.0, image.1), &GrayImage::new(mask.0, mask.1), (2, 3))
        };
        assert!(fits((6, 4), (6, 4)).is_ok() && fits((3, 2), (3, 2)).is_ok());
        assert_eq!(fits((6, 4), (3, 2)).unwrap_err().problem().field.unwrap(), "mask");
        assert_eq!(fits((4, 4), (4, 4)).unwrap_err().problem().field.unwrap(), "image");
    }
}
