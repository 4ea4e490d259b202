//! Many pictures on one, framed green or red, for people's eyes.

use image::{Rgb, RgbImage, imageops};

/// Width of frames, in pixels.
const FRAME: u32 = 4;
/// Distance between framed pictures.
const GAP: u32 = 8;
const WALL: Rgb<u8> = Rgb([226, 222, 214]);
const PASS: Rgb<u8> = Rgb([58, 150, 94]);
const FAIL: Rgb<u8> = Rgb([206, 62, 62]);

/// Lays out pictures row by row, each framed green if it is right and red if it is not. Cells are as large as the
/// largest picture; no pictures give a single blank pixel.
#[must_use]
pub fn contact_sheet(images: &[(RgbImage, bool)], columns: usize) -> RgbImage {
    let columns = columns.clamp(1, images.len().max(1)) as u32;
    let rows = (images.len() as u32).div_ceil(columns);
    let Some(width) = images.iter().map(|(image, _)| image.width()).max() else {
        return RgbImage::from_pixel(1, 1, WALL);
    };
    let height = images.iter().map(|(image, _)| image.height()).max().unwrap_or(1);
    let (step_x, step_y) = (width + 2 * FRAME + GAP, height + 2 * FRAME + GAP);
    let mut sheet = RgbImage::from_pixel(columns * step_x + GAP, rows * step_y + GAP, WALL);
    for (i, (image, pass)) in images.iter().enumerate() {
        let (x, y) = (GAP + i as u32 % columns * step_x, GAP + i as u32 / columns * step_y);
        let frame = if *pass { PASS } else { FAIL };
        let framed = RgbImage::from_pixel(image.width() + 2 * FRAME, image.height() + 2 * FRAME, frame);
        imageops::replace(&mut sheet, &framed, i64::from(x), i64::from(y));
        imageops::replace(&mut sheet, image, i64::from(x + FRAME), i64::from(y + FRAME));
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_tell_right_from_wrong() {
        let image = RgbImage::from_pixel(10, 10, Rgb([1, 2, 3]));
        let sheet = contact_sheet(&[(image.clone(), true), (image.clone(), false), (image, true)], 2);
        assert_eq!(sheet.dimensions(), (8 + 2 * 26, 8 + 2 * 26));
        assert_eq!(sheet.get_pixel(8, 8), &PASS);
        assert_eq!(sheet.get_pixel(34, 8), &FAIL);
        assert_eq!(sheet.get_pixel(12, 12), &Rgb([1, 2, 3]));
        assert_eq!(sheet.get_pixel(34, 34), &WALL);
        assert_eq!(contact_sheet(&[], 4).dimensions(), (1, 1));
    }
}
