//! AVX2 with FMA: three rows of four registers each, twelve of the 16; the words of a few lines pass all rows while
//! they are in the first-level cache.

use std::arch::x86_64::*;

use super::kernel::{Block, Sums};
use super::rows::{self, Target};
use super::{COLS, Format, LANES, Line, ROWS};

/// `u32`s of a register.
const HALF: usize = LANES / 2;
/// Registers of a row's sums.
const PARTS: usize = COLS / HALF;
/// Rows computed together.
const TOGETHER: usize = 3;
/// Lines of x whose weights, 2 KiB a line, stay in the first-level cache.
const STRIP: usize = 4;

/// Whether this processor has them.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Packs a row of x.
#[target_feature(enable = "avx2,fma")]
pub(super) fn pack(to: &mut Target<'_>, x: &[f32], format: Format) {
    rows::pack(to, x, format);
}

/// Adds a block's products to `sums`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn add(format: Format, block: &Block<'_>, sums: &mut Sums) {
    if block.first {
        *sums = Sums::ZERO;
    }
    if format == Format::Int8 {
        for first in (0..block.rows).step_by(TOGETHER) {
            int8(block, first, sums);
        }
        return;
    }
    let (x, w) = (block.x.as_chunks::<ROWS>().0, block.w.as_chunks::<COLS>().0);
    for (x, w) in x.chunks(STRIP).zip(w.chunks(STRIP)) {
        for first in (0..block.rows).step_by(TOGETHER) {
            match format {
                Format::Bf16 => bf16(x, w, first, sums),
                _ => f32(x, w, first, sums),
            }
        }
    }
}

/// The loop over words: `$dot` adds to a sum the product of a row's word, in all lanes, and the weights'.
macro_rules! accumulate {
    ($acc:ident, $x:expr, $w:expr, $first:expr, $dot:expr) => {
        for (x, w) in $x.iter().zip($w) {
            for t in 0..LANES {
                let x: [__m256i; TOGETHER] =
                    std::array::from_fn(|i| _mm256_set1_epi32(x[$first + i].0[t].cast_signed()));
                for part in 0..PARTS {
                    let w = load(&w[2 * t + part / 2], part % 2);
                    for (acc, x) in $acc.iter_mut().zip(x) {
                        acc[part] = $dot(acc[part], x, w);
                    }
                }
            }
        }
    };
}

#[target_feature(enable = "avx2,fma")]
fn f32(x: &[[Line; ROWS]], w: &[[Line; COLS]], first: usize, sums: &mut Sums) {
    let mut acc = load_sums(sums, first);
    accumulate!(acc, x, w, first, |sum, x, w| _mm256_fmadd_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(w), sum));
    store_sums(&acc, sums, first);
}

#[target_feature(enable = "avx2,fma")]
fn bf16(x: &[[Line; ROWS]], w: &[[Line; COLS]], first: usize, sums: &mut Sums) {
    let mut acc = load_sums(sums, first);
    accumulate!(acc, x, w, first, |sum, x, w| {
        let sum = _mm256_fmadd_ps(upper(x), upper(w), sum);
        _mm256_fmadd_ps(lower(x), lower(w), sum)
    });
    store_sums(&acc, sums, first);
}

/// Sums of integers, exact; then scaled and added. Bytes are widened: `vpmaddubsw` would saturate.
#[target_feature(enable = "avx2,fma")]
fn int8(block: &Block<'_>, first: usize, sums: &mut Sums) {
    let (x_scales, w_scales, offsets) = block.scales();
    let mut acc = [[_mm256_setzero_si256(); PARTS]; TOGETHER];
    let low = _mm256_set1_epi16(0xFF);
    accumulate!(acc, block.x.as_chunks::<ROWS>().0, block.w.as_chunks::<COLS>().0, first, |sum, x, w| {
        let even = _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(x), _mm256_srai_epi16::<8>(w));
        _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
    });
    let mut total = load_sums(sums, first);
    for part in 0..PARTS {
        let (w_scale, offset) = (floats(w_scales, part), integers(offsets, part));
        for ((total, acc), &x_scale) in total.iter_mut().zip(&acc).zip(&x_scales[first..]) {
            let scale = _mm256_mul_ps(_mm256_set1_ps(x_scale), w_scale);
            let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(acc[part], offset));
            total[part] = _mm256_fmadd_ps(sum, scale, total[part]);
        }
    }
    store_sums(&total, sums, first);
}

/// The second values of pairs of bf16.
#[inline]
#[target_feature(enable = "avx2")]
fn upper(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xFFFF_0000u32.cast_signed())))
}

/// The first values of pairs of bf16.
#[inline]
#[target_feature(enable = "avx2")]
fn lower(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

/// Half a line.
#[inline]
#[target_feature(enable = "avx2")]
fn load(line: &Line, half: usize) -> __m256i {
    let half = &line.0.as_chunks::<HALF>().0[half];
    // SAFETY: eight u32s are readable.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn floats(from: &[f32; COLS], part: usize) -> __m256 {
    let part = &from.as_chunks::<HALF>().0[part];
    // SAFETY: eight f32s are readable.
    unsafe { _mm256_loadu_ps(part.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn integers(from: &[i32; COLS], part: usize) -> __m256i {
    let part = &from.as_chunks::<HALF>().0[part];
    // SAFETY: eight i32s are readable.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_sums(sums: &Sums, first: usize) -> [[__m256; PARTS]; TOGETHER] {
    let mut acc = [[_mm256_setzero_ps(); PARTS]; TOGETHER];
    for (acc, sums) in acc.iter_mut().zip(&sums.0[first..]) {
        for (acc, sums) in acc.iter_mut().zip(sums.as_flattened().as_chunks::<HALF>().0) {
            // SAFETY: eight f32s are readable.
            *acc = unsafe { _mm256_loadu_ps(sums.as_ptr()) };
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_sums(acc: &[[__m256; PARTS]; TOGETHER], sums: &mut Sums, first: usize) {
    for (acc, sums) in acc.iter().zip(&mut sums.0[first..]) {
        for (acc, sums) in acc.iter().zip(sums.as_flattened_mut().as_chunks_mut::<HALF>().0) {
            // SAFETY: eight f32s are writable.
            unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), *acc) };
        }
    }
}
