//! Plain loops over arrays, which the compiler turns into what vectors the target has: NEON, or SSE on an old x86.

use super::kernel::{Block, Sums};
use super::rows::halves;
use super::{COLS, Format, LANES, ROWS};

/// Whether the target multiplies and adds with one rounding; elsewhere that would be a call of a function.
pub(super) const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Rows computed together, so that a load of weights serves several.
const TOGETHER: usize = 4;

#[inline(always)]
fn multiply_add(a: f32, b: f32, sum: f32) -> f32 {
    if FUSED { a.mul_add(b, sum) } else { a * b + sum }
}

/// Adds a block's products to `sums`.
pub(super) fn add(format: Format, block: &Block<'_>, sums: &mut Sums) {
    if block.first {
        *sums = Sums::ZERO;
    }
    for first in (0..block.rows).step_by(TOGETHER) {
        match format {
            Format::F32 => {
                floats(block, first, sums, |x, w, sum| multiply_add(f32::from_bits(x), f32::from_bits(w), sum))
            }
            Format::Bf16 => floats(block, first, sums, |x, w, sum| {
                let ([x0, x1], [w0, w1]) = (halves(x), halves(w));
                multiply_add(x0, w0, multiply_add(x1, w1, sum))
            }),
            Format::Int8 => integers(block, first, sums),
        }
    }
}

/// Calls `each` with the words of every row from `first` on and of the weights.
#[inline(always)]
fn words(block: &Block<'_>, first: usize, mut each: impl FnMut([u32; TOGETHER], &[u32; COLS])) {
    for (x, w) in block.x.as_chunks::<ROWS>().0.iter().zip(block.w.as_chunks::<COLS>().0) {
        for t in 0..LANES {
            let x = std::array::from_fn(|i| x[first + i].0[t]);
            let mut both = [0; COLS];
            both[..LANES].copy_from_slice(&w[2 * t].0);
            both[LANES..].copy_from_slice(&w[2 * t + 1].0);
            each(x, &both);
        }
    }
}

#[inline(always)]
fn floats(block: &Block<'_>, first: usize, sums: &mut Sums, dot: impl Fn(u32, u32, f32) -> f32) {
    let mut acc: [[f32; COLS]; TOGETHER] = [[0.0; COLS]; TOGETHER];
    for (acc, sums) in acc.iter_mut().zip(&sums.0[first..]) {
        acc.copy_from_slice(sums.as_flattened());
    }
    words(block, first, |x, w| {
        for (acc, x) in acc.iter_mut().zip(x) {
            for (acc, &w) in acc.iter_mut().zip(w) {
                *acc = dot(x, w, *acc);
            }
        }
    });
    for (acc, sums) in acc.iter().zip(&mut sums.0[first..]) {
        sums.as_flattened_mut().copy_from_slice(acc);
    }
}

fn integers(block: &Block<'_>, first: usize, sums: &mut Sums) {
    let (x_scales, w_scales, offsets) = block.scales();
    let mut acc = [*offsets; TOGETHER];
    words(block, first, |x, w| {
        for (acc, x) in acc.iter_mut().zip(x) {
            let x = x.to_le_bytes().map(i32::from);
            for (acc, &w) in acc.iter_mut().zip(w) {
                let w = w.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
                *acc += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
        }
    });
    for ((acc, sums), x_scale) in acc.iter().zip(&mut sums.0[first..]).zip(&x_scales[first..]) {
        for ((sum, &acc), w_scale) in sums.as_flattened_mut().iter_mut().zip(acc).zip(w_scales) {
            *sum = (acc as f32).mul_add(x_scale * w_scale, *sum);
        }
    }
}
