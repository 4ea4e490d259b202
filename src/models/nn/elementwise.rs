//! Vectorised f32 loops over slices: the arithmetic inside the fused CPU operations, forward and backward.
//!
//! Everything here is a safe loop that the compiler vectorises, compiled once per instruction set and chosen at run
//! time. Multiplications and additions are never contracted and every sum has `LANES` fixed partial sums, so a
//! result depends on its inputs only, not on the machine's vector width. No tensors, no shapes, no threads here: a
//! caller splits its tensor into rows. Slices of one call have equal lengths; the shortest bounds the work.

use multiversion::multiversion;

/// Partial sums of every reduction: two AVX-512 registers, enough to hide an addition's latency.
const LANES: usize = 32;

/// eˣ within 2e-7 relative, +∞ above 88.38 and 0 below −87.68; a NaN stays a NaN.
///
/// eˣ = 2ⁿ·eʳ with n = round(x / ln 2) and |r| ≤ ln 2 / 2, where eight Taylor terms leave 5e-9. Branch-free, so that
/// loops that call it vectorise.
#[must_use]
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding 1.5·2²³ rounds to an integer, which stays in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 = `LN2_HIGH` + `LN2_LOW`; the first has nine bits, so n·`LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Where 2ⁿ leaves the normal range: its bits become those of 0 and of +∞.
    const RANGE: (f32, f32) = (-88.0, 89.0);

    let x = x.clamp(RANGE.0, RANGE.1);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + coefficient;
    }
    // The two largest terms last and apart, where their rounding costs least.
    let e_r = (p * (r * r) + r) + 1.0;
    let two_n = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    e_r * two_n
}

/// 1 / (1 + e⁻ˣ).
#[must_use]
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Combines the lanes pairwise, always in the same order.
#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of partial sums.
#[inline(always)]
fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    fold_lanes(lanes, |a, b| a + b)
}

/// Σ f(aᵢ, bᵢ) in the fixed order.
#[inline(always)]
fn sum_map(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += f(a, b);
    }
    sum_lanes(lanes)
}

/// Σ xᵢ².
#[must_use]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn sum_squares(x: &[f32]) -> f32 {
    sum_map(x, x, |a, b| a * b)
}

/// `SwiGLU` (Shazeer, 2020): out = silu(gate)·up with silu(g) = g·sigmoid(g).
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    debug_assert!(gate.len() == out.len() && up.len() == out.len());
    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *out = g * sigmoid(g) * u;
    }
}

/// [`swiglu`]'s gradients, given `grad` = ∂loss/∂out; overwrites `d_gate` and `d_up`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn swiglu_backward(gate: &[f32], up: &[f32], grad: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    debug_assert!([gate.len(), up.len(), d_gate.len(), d_up.len()].iter().all(|&n| n == grad.len()));
    let inputs = gate.iter().zip(up).zip(grad);
    for ((((&g, &u), &grad), d_gate), d_up) in inputs.zip(d_gate).zip(d_up) {
        let s = sigmoid(g);
        *d_up = grad * (g * s);
        *d_gate = grad * u * (s * (1.0 + g * (1.0 - s)));
    }
}

/// `RMSNorm` (Zhang and Sennrich, 2019) of one row: out = x·r·weight with r = 1 / √(mean(x²) + eps).
///
/// Returns r, which [`rms_norm_backward`] needs.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    debug_assert!(x.len() == out.len() && weight.len() == out.len());
    let mean = sum_map(x, x, |a, b| a * b) / x.len().max(1) as f32;
    let r = 1.0 / (mean + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * r * w;
    }
    r
}

/// [`rms_norm`]'s gradients for one row: overwrites `d_x`, adds to `d_weight` (rows share the weight).
///
/// With h = grad·weight: `d_x` = r·h − x·r³·mean(h·x) and `d_weight` += grad·x·r. `d_x` serves as scratch for h.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn rms_norm_backward(x: &[f32], weight: &[f32], r: f32, grad: &[f32], d_x: &mut [f32], d_weight: &mut [f32]) {
    debug_assert!([weight.len(), grad.len(), d_x.len(), d_weight.len()].iter().all(|&n| n == x.len()));
    for ((((h, d_w), &g), &w), &x) in d_x.iter_mut().zip(d_weight).zip(grad).zip(weight).zip(x) {
        *h = g * w;
        *d_w += g * x * r;
    }
    let mean = sum_map(d_x, x, |a, b| a * b) / x.len().max(1) as f32;
    let scale = r * r * r * mean;
    for (d_x, &x) in d_x.iter_mut().zip(x) {
        *d_x = r * *d_x - x * scale;
    }
}

/// The largest element, −∞ for an empty row; NaNs are passed over.
#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    let larger = |m: f32, x: f32| if x > m { x } else { m };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, x);
    }
    fold_lanes(lanes, larger)
}

/// row ← e^(row − max), and returns (max, Σ e^(row − max)).
#[inline(always)]
fn exp_shifted(row: &mut [f32]) -> (f32, f32) {
    let max = max_of(row);
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = row.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp(chunk[i] - max);
            lanes[i] += chunk[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *x = exp(*x - max);
        *lane += *x;
    }
    (max, sum_lanes(lanes))
}

/// Softmax of one row in place; returns log Σ eˣ of the row before.
///
/// −∞ masks an element; a row of −∞ only becomes zeros (nothing to attend to) and returns −∞.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn softmax(row: &mut [f32]) -> f32 {
    let (max, sum) = exp_shifted(row);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return max;
    }
    let inverse = 1.0 / sum;
    for x in row {
        *x *= inverse;
    }
    max + sum.ln()
}

/// log Σ eˣ of one row, left as it is: [`softmax`]'s return value without its output.
#[must_use]
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let max = max_of(row);
    if max == f32::NEG_INFINITY {
        return max;
    }
    max + sum_map(row, row, |x, _| exp(x - max)).ln()
}

/// [`softmax`]'s gradient in place: grad ← y·(grad − Σ y·grad), y being the softmax.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn softmax_backward(y: &[f32], grad: &mut [f32]) {
    debug_assert_eq!(y.len(), grad.len());
    let projection = sum_map(y, grad, |a, b| a * b);
    for (g, &y) in grad.iter_mut().zip(y) {
        *g = y * (*g - projection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::mix64;

    /// `n` values in [−scale, scale).
    fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
        let unit = |i: usize| (mix64(seed ^ mix64(i as u64)) >> 40) as f32 / (1u64 << 24) as f32;
        (0..n).map(|i| (2.0 * unit(i) - 1.0) * scale).collect()
    }

    fn assert_close(got: f64, want: f64, tolerance: f64, what: &str) {
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{what}: got {got}, want {want}");
    }

    /// d loss / d x\[i\] by central differences, where loss = Σ out·grad in f64.
    fn numeric(x: &[f32], i: usize, loss: impl Fn(&[f32]) -> f64) -> f64 {
        let step = 1e-2f32;
        let shifted = |by: f32| {
            let mut x = x.to_vec();
            x[i] += by;
            loss(&x)
        };
        (shifted(step) - shifted(-step)) / (2.0 * f64::from(step))
    }

    fn weighted(out: &[f32], grad: &[f32]) -> f64 {
        out.iter().zip(grad).map(|(&o, &g)| f64::from(o) * f64::from(g)).sum()
    }

    const SIZES: [usize; 7] = [1, 2, 31, 32, 33, 97, 576];

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        let mut worst = 0.0f64;
        for i in -87_600..88_300 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            if want > f64::from(f32::MIN_POSITIVE) {
                worst = worst.max((f64::from(exp(x)) - want).abs() / want);
            }
        }
        assert!(worst < 2e-7, "relative error {worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_match_f64() {
        for n in SIZES {
            let a = values(2, n, 3.0);
            assert_close(f64::from(sum_squares(&a)), weighted(&a, &a), 1e-5, "sum of squares");
        }
        assert_eq!(sum_squares(&[]), 0.0);
    }

    #[test]
    fn swiglu_and_its_gradient() {
        for n in SIZES {
            let (gate, up, grad) = (values(4, n, 6.0), values(5, n, 2.0), values(6, n, 1.0));
            let run = |gate: &[f32], up: &[f32]| {
                let mut out = vec![0.0; n];
                swiglu(gate, up, &mut out);
                out
            };
            for ((&out, &g), &u) in run(&gate, &up).iter().zip(&gate).zip(&up) {
                let (g, u) = (f64::from(g), f64::from(u));
                assert_close(f64::from(out), g / (1.0 + (-g).exp()) * u, 1e-6, "swiglu");
            }
            let (mut d_gate, mut d_up) = (vec![f32::NAN; n], vec![f32::NAN; n]);
            swiglu_backward(&gate, &up, &grad, &mut d_gate, &mut d_up);
            for i in [0, n / 2, n - 1] {
                let by_gate = numeric(&gate, i, |g| weighted(&run(g, &up), &grad));
                let by_up = numeric(&up, i, |u| weighted(&run(&gate, u), &grad));
                assert_close(f64::from(d_gate[i]), by_gate, 2e-3, "d_gate");
                assert_close(f64::from(d_up[i]), by_up, 2e-3, "d_up");
            }
        }
    }

    #[test]
    fn rms_norm_and_its_gradient() {
        let eps = 1e-5;
        for n in SIZES {
            let (x, w, grad) = (values(7, n, 2.0), values(8, n, 1.5), values(9, n, 1.0));
            let run = |x: &[f32], w: &[f32]| {
                let mut out = vec![0.0; n];
                let r = rms_norm(x, w, eps, &mut out);
                (out, r)
            };
            let (out, r) = run(&x, &w);
            let exact = 1.0 / (weighted(&x, &x) / n as f64 + f64::from(eps)).sqrt();
            for ((&out, &x), &w) in out.iter().zip(&x).zip(&w) {
                assert_close(f64::from(out), f64::from(x) * exact * f64::from(w), 1e-6, "rms_norm");
            }
            let (mut d_x, mut d_w) = (vec![f32::NAN; n], vec![1.0; n]);
            rms_norm_backward(&x, &w, r, &grad, &mut d_x, &mut d_w);
            for i in [0, n / 2, n - 1] {
                let by_x = numeric(&x, i, |x| weighted(&run(x, &w).0, &grad));
                let by_w = numeric(&w, i, |w| weighted(&run(&x, w).0, &grad));
                assert_close(f64::from(d_x[i]), by_x, 3e-3, "d_x");
                assert_close(f64::from(d_w[i]) - 1.0, by_w, 3e-3, "d_weight adds");
            }
        }
    }

    #[test]
    fn softmax_and_its_gradient() {
        for n in SIZES {
            let (x, grad) = (values(10, n, 8.0), values(11, n, 1.0));
            let run = |x: &[f32]| {
                let mut y = x.to_vec();
                let lse = softmax(&mut y);
                (y, lse)
            };
            let (y, lse) = run(&x);
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            assert_close(f64::from(lse), sum.ln(), 1e-6, "log-sum-exp");
            assert_eq!(log_sum_exp(&x), lse);
            for (&y, &x) in y.iter().zip(&x) {
                assert_close(f64::from(y), f64::from(x).exp() / sum, 1e-6, "softmax");
            }
            let mut d_x = grad.clone();
            softmax_backward(&y, &mut d_x);
            for i in [0, n / 2, n - 1] {
                let by_x = numeric(&x, i, |x| weighted(&run(x).0, &grad));
                assert_close(f64::from(d_x[i]), by_x, 2e-3, "d_x");
            }
        }
    }

    #[test]
    fn masked_elements_get_nothing() {
        let mut row = values(12, 40, 1.0);
        row[3] = f32::NEG_INFINITY;
        softmax(&mut row);
        assert_eq!(row[3], 0.0);
        let mut none = [f32::NEG_INFINITY; 40];
        assert_eq!(softmax(&mut none), f32::NEG_INFINITY);
        assert_eq!(none, [0.0; 40]);
        assert_eq!(softmax(&mut []), f32::NEG_INFINITY);
    }
}
