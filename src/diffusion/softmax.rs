//! Exponentials of a row of logits in f64: the inner loop of every draw.
//!
//! Safe loops that the compiler vectorises, one version per instruction set. Nothing is contracted and every reduction
//! has [`LANES`] fixed partial results, so a draw depends on the row alone, not on the machine's vector width.

use multiversion::multiversion;

/// Partial results of a reduction: two AVX-512 registers of f64.
const LANES: usize = 16;

/// eˣ within 4e-16 relative for x in [−708, 709]; 0 below. A NaN stays a NaN.
///
/// eˣ = 2ⁿ·eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2, where thirteen Taylor terms leave 2e-16.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Adding 1.5·2⁵² rounds to an integer, which stays in the low bits of the sum.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 = `LN2_HIGH` + `LN2_LOW`; the first has 33 bits, so n·`LN2_HIGH` is exact.
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const LEAST: f64 = -708.0;
    const TAYLOR: [f64; 10] = [
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
    ];

    let clamped = x.clamp(LEAST, 709.0);
    let rounded = clamped * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 479_001_600.0;
    for coefficient in TAYLOR {
        p = p * r + coefficient;
    }
    let e_r = (p * (r * r) + r) + 1.0;
    let two_n = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    if x < LEAST { 0.0 } else { e_r * two_n }
}

/// The largest of `row`, −∞ of none; a NaN is passed over.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn highest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top })
}

/// Writes e^((x − top)·scale) of every x of `row` and returns their sum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(crate) fn weights(row: &[f32], top: f64, scale: f64, out: &mut [f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (rows, row_rest) = row.as_chunks::<LANES>();
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    for (row, out) in rows.iter().zip(outs) {
        for i in 0..LANES {
            out[i] = exp((f64::from(row[i]) - top) * scale);
            lanes[i] += out[i];
        }
    }
    let mut sum = lanes.iter().sum::<f64>();
    for (x, out) in row_rest.iter().zip(out_rest) {
        *out = exp((f64::from(*x) - top) * scale);
        sum += *out;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library() {
        for i in -7080..=40 {
            let x = f64::from(i) / 10.0 + 0.037;
            let error = (exp(x) - x.exp()).abs() / x.exp();
            assert!(x < -708.0 || error < 5e-16, "{x}: {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([f64::NEG_INFINITY, -1e300, -709.0].map(exp), [0.0; 3]);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn rows_of_any_length_are_summed() {
        for len in 0..70usize {
            let row: Vec<f32> = (0..len).map(|i| (i * 7 % 11) as f32 / 3.0).collect();
            let mut out = vec![0.0; len];
            let top = f64::from(highest(&row).max(0.0));
            let sum = weights(&row, top, 2.0, &mut out);
            let expected: Vec<f64> = row.iter().map(|&x| ((f64::from(x) - top) * 2.0).exp()).collect();
            assert!((sum - expected.iter().sum::<f64>()).abs() < 1e-12);
            assert!(out.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-14));
            assert_eq!(highest(&row), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert_eq!(highest(&[f32::NAN, 1.0, f32::NAN]), 1.0);
    }
}
