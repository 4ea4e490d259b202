//! Blocks of f32 as integers of −127 to 127 and a scale.

use super::{BLOCK, COLS, LANES, Line, word_mut};

/// What is added to a row's integers, which a processor multiplies as unsigned bytes by signed ones.
const SHIFT: i32 = 128;
/// Values of a line.
const VALUES: usize = 4 * LANES;

/// What 1 stands for in a block: its largest magnitude is 127. Not finite if a value is not, so that products are not,
/// either.
#[inline(always)]
fn scale(x: &[f32]) -> f32 {
    // Of magnitudes, the order of bits is that of values; infinities and NaNs come after all others.
    let most = x.iter().fold(0, |most: u32, x| most.max(x.abs().to_bits()));
    f32::from_bits(most) / 127.0
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

/// Adding 1.5·2²³ rounds to an integer, ties to even, which stays in the low bits of the sum.
#[inline(always)]
fn round(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    (x.clamp(-127.0, 127.0) + ROUND).to_bits().cast_signed() - ROUND.to_bits().cast_signed()
}

/// Quantizes a block of a row of x into its lines and returns the scale.
#[inline(always)]
pub(super) fn row<'a>(x: &[f32], lines: impl Iterator<Item = &'a mut Line>) -> f32 {
    let scale = scale(x);
    let inverse = inverse(scale);
    for (line, x) in lines.zip(x.chunks(VALUES)) {
        let mut full = [0.0; VALUES];
        let x: &[f32; VALUES] = match x.first_chunk() {
            Some(x) => x,
            None => {
                full[..x.len()].copy_from_slice(x);
                &full
            }
        };
        // All bytes first, in their order: a compiler makes a few narrowing instructions of that.
        let mut bytes = [0; VALUES];
        for (byte, x) in bytes.iter_mut().zip(x) {
            *byte = ((round(x * inverse) + SHIFT) & 0xFF) as u8;
        }
        for (word, bytes) in line.0.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    scale
}

/// Quantizes a row of weights into a column of a panel; `scales` and `offsets` are those of the panel's blocks.
pub(super) fn column(
    row: &[f32],
    column: usize,
    lines: &mut [Line],
    scales: &mut [[f32; COLS]],
    offsets: &mut [[i32; COLS]],
) {
    for (block, x) in row.chunks(BLOCK).enumerate() {
        let scale = scale(x);
        let inverse = inverse(scale);
        let mut sum = 0;
        for (t, values) in x.chunks(4).enumerate() {
            let mut bytes = [0; 4];
            for (byte, &x) in bytes.iter_mut().zip(values) {
                let q = round(x * inverse);
                sum += q;
                *byte = (q & 0xFF) as u8;
            }
            *word_mut(lines, block * BLOCK / 4 + t, column) = u32::from_le_bytes(bytes);
        }
        scales[block][column] = scale;
        offsets[block][column] = -SHIFT * sum;
    }
}
