//! AVX-512: a row takes two registers of sums, so twelve rows take 24 of the 32. Per word, two loads of weights serve
//! all rows, and every broadcast of a row's word serves both registers.

use std::arch::x86_64::*;

use super::kernel::{Block, Sums};
use super::rows::{self, Target};
use super::{COLS, Format, LANES, Line, ROWS};

/// Whether this processor multiplies the format.
pub(super) fn available(format: Format) -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && match format {
            Format::F32 => true,
            Format::Bf16 => true,
            Format::Int8 => is_x86_feature_detected!("avx512vnni"),
        }
}

/// Whether this processor multiplies bf16 by itself; others widen it to f32.
pub(super) fn native_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

/// Packs a row of x.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack(to: &mut Target<'_>, x: &[f32], format: Format) {
    rows::pack(to, x, format);
}

/// Calls a kernel with at least the block's number of rows as its constant.
macro_rules! by_rows {
    ($kernel:ident, $block:ident, $sums:ident) => {
        match $block.rows {
            0..=1 => $kernel::<1>($block, $sums),
            2 => $kernel::<2>($block, $sums),
            3..=4 => $kernel::<4>($block, $sums),
            5..=6 => $kernel::<6>($block, $sums),
            7..=8 => $kernel::<8>($block, $sums),
            9..=10 => $kernel::<10>($block, $sums),
            _ => $kernel::<ROWS>($block, $sums),
        }
    };
}

/// Adds a block's products to `sums`.
///
/// # Safety
/// The processor must have the format's instructions: [`available`].
pub(super) unsafe fn add(format: Format, block: &Block<'_>, sums: &mut Sums) {
    // SAFETY: the caller has made sure of the instructions that these ask for.
    unsafe {
        match format {
            Format::F32 => by_rows!(f32, block, sums),
            Format::Bf16 if native_bf16() => by_rows!(bf16, block, sums),
            Format::Bf16 => by_rows!(widened, block, sums),
            Format::Int8 => by_rows!(int8, block, sums),
        }
    }
}

/// The loop over a block's words: `$dot` adds to a sum the product of a row's word, in all lanes, and the weights'.
macro_rules! accumulate {
    ($acc:ident, $block:ident, $dot:expr) => {
        for (x, w) in $block.x.as_chunks::<ROWS>().0.iter().zip($block.w.as_chunks::<COLS>().0) {
            for t in 0..LANES {
                let w = [load(&w[2 * t]), load(&w[2 * t + 1])];
                for (acc, x) in $acc.iter_mut().zip(x) {
                    let x = _mm512_set1_epi32(x.0[t].cast_signed());
                    acc[0] = $dot(acc[0], x, w[0]);
                    acc[1] = $dot(acc[1], x, w[1]);
                }
            }
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw")]
fn f32<const M: usize>(block: &Block<'_>, sums: &mut Sums) {
    let mut acc = begin::<M>(block, sums);
    accumulate!(acc, block, |sum, x, w| _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum));
    end(&acc, sums);
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn bf16<const M: usize>(block: &Block<'_>, sums: &mut Sums) {
    let mut acc = begin::<M>(block, sums);
    accumulate!(acc, block, |sum, x, w| _mm512_dpbf16_ps(sum, pairs(x), pairs(w)));
    end(&acc, sums);
}

/// For processors without the instruction: pairs as two f32, with two multiply-adds.
#[target_feature(enable = "avx512f,avx512bw")]
fn widened<const M: usize>(block: &Block<'_>, sums: &mut Sums) {
    let mut acc = begin::<M>(block, sums);
    accumulate!(acc, block, |sum, x, w| {
        let sum = _mm512_fmadd_ps(upper(x), upper(w), sum);
        _mm512_fmadd_ps(lower(x), lower(w), sum)
    });
    end(&acc, sums);
}

/// Sums of integers, exact; then scaled and added.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const M: usize>(block: &Block<'_>, sums: &mut Sums) {
    let (x_scales, w_scales, offsets) = block.scales();
    let (w_scales, offsets) = (w_scales.as_chunks::<LANES>().0, offsets.as_chunks::<LANES>().0);
    let mut acc = [[load_offsets(&offsets[0]), load_offsets(&offsets[1])]; M];
    accumulate!(acc, block, |sum, x, w| _mm512_dpbusd_epi32(sum, x, w));
    for half in 0..2 {
        let w_scale = load_sums(&w_scales[half]);
        for ((acc, sums), &x_scale) in acc.iter().zip(&mut sums.0).zip(x_scales) {
            let scale = _mm512_mul_ps(_mm512_set1_ps(x_scale), w_scale);
            let before = if block.first { _mm512_setzero_ps() } else { load_sums(&sums[half]) };
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[half]), scale, before);
            store_sums(sum, &mut sums[half]);
        }
    }
}

/// What a block's products are added to.
#[inline]
#[target_feature(enable = "avx512f")]
fn begin<const M: usize>(block: &Block<'_>, sums: &Sums) -> [[__m512; 2]; M] {
    let mut acc = [[_mm512_setzero_ps(); 2]; M];
    if !block.first {
        for (acc, sums) in acc.iter_mut().zip(&sums.0) {
            *acc = [load_sums(&sums[0]), load_sums(&sums[1])];
        }
    }
    acc
}

#[inline]
#[target_feature(enable = "avx512f")]
fn end<const M: usize>(acc: &[[__m512; 2]; M], sums: &mut Sums) {
    for (acc, sums) in acc.iter().zip(&mut sums.0) {
        store_sums(acc[0], &mut sums[0]);
        store_sums(acc[1], &mut sums[1]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 readable bytes, aligned to 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_sums(from: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen f32s are readable.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_offsets(from: &[i32; LANES]) -> __m512i {
    // SAFETY: sixteen i32s are readable.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_sums(sums: __m512, to: &mut [f32; LANES]) {
    // SAFETY: sixteen f32s are writable.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) }
}

/// The second values of pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper(words: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(0xFFFF_0000u32.cast_signed())))
}

/// The first values of pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn lower(words: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(words: __m512i) -> __m512bh {
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}
