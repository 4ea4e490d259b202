//! The product against f64, in every layout and at every edge.

use super::*;
use crate::diffusion::rng::mix64;

/// A row-major matrix with elements in [−1, 1).
fn random(seed: u64, len: usize) -> Vec<f32> {
    let unit = |i: usize| (mix64(seed ^ mix64(i as u64)) >> 40) as f32 / (1u64 << 23) as f32;
    (0..len).map(|i| unit(i) - 1.0).collect()
}

fn transposed(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| data[at % rows * cols + at / rows]).collect()
}

/// Largest error over Σ|a·b| of its element, for one product in f64; panics where it exceeds the kernel's bound.
fn check_element(kernel: Kernel, got: f32, start: f64, products: impl Iterator<Item = f64>) -> f64 {
    let (mut want, mut norm, mut k) = (start, start.abs(), 0);
    for product in products {
        want += product;
        norm += product.abs();
        k += 1;
    }
    let error = (f64::from(got) - want).abs();
    // Per product two roundings to eight bits, 2⁻⁸ each; per sum k roundings of 2⁻²⁴.
    let per_product = if kernel == Kernel::F32 { 0.0 } else { 2f64.powi(-7) * 1.002 };
    let bound = norm * (per_product + f64::from(k + 2) * 2f64.powi(-24));
    assert!(error <= bound, "{kernel:?}, k = {k}: got {got}, want {want}, bound {bound}");
    if norm > 0.0 { error / norm } else { 0.0 }
}

/// Compares every `skip`-th element in all four layouts, with and without accumulation; returns the worst error.
fn check(kernel: Kernel, m: usize, n: usize, k: usize, skip: usize) -> f64 {
    let (a, b, start) = (random(1, m * k), random(2, k * n), random(3, m * n));
    let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
    let mut worst = 0.0f64;
    let mut first: Option<[Vec<f32>; 2]> = None;
    for a_ref in [MatRef::new(&a, m, k), MatRef::new(&a_t, k, m).t()] {
        for b_ref in [MatRef::new(&b, k, n), MatRef::new(&b_t, n, k).t()] {
            let results = [false, true].map(|accumulate| {
                let mut out = if accumulate { start.clone() } else { vec![f32::NAN; m * n] };
                matmul_with(kernel, a_ref, b_ref, &mut out, accumulate).unwrap();
                for at in (0..m * n).step_by(skip) {
                    let (i, j) = (at / n, at % n);
                    let products = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j]));
                    let start = if accumulate { f64::from(start[at]) } else { 0.0 };
                    worst = worst.max(check_element(kernel, out[at], start, products));
                }
                out
            });
            if kernel == Kernel::Avx512Bf16 {
                let first = first.get_or_insert_with(|| results.clone());
                assert_eq!(*first, results, "the layout does not change a bit ({m}×{n}×{k})");
            }
        }
    }
    worst
}

fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::F32, kernel()];
    kernels.dedup();
    kernels
}

#[test]
fn every_small_shape_with_its_tails() {
    for kernel in kernels() {
        for (m, n, k) in (0..400).map(|i| (mix64(3 * i), mix64(3 * i + 1), mix64(3 * i + 2))) {
            let size = |x: u64| (x % 70 + 1) as usize;
            check(kernel, size(m), size(n), size(k), 1);
        }
        for edge in [1, 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65] {
            check(kernel, edge, edge, edge, 1);
            check(kernel, edge, 1, 1, 1);
            check(kernel, 1, edge, 1, 1);
            check(kernel, 1, 1, edge, 1);
        }
    }
}

#[test]
fn shapes_of_the_built_in_model() {
    let mut worst = 0.0f64;
    for (m, n, k) in
        [(2003, 576, 192), (2000, 192, 512), (500, 1600, 192), (576, 192, 2001), (192, 1024, 2600), (100, 2500, 700)]
    {
        worst = worst.max(check(kernel(), m, n, k, 977));
    }
    assert!(worst > 0.0);
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (m, n, k) = (50, 96, 300);
    let (a, b) = (random(4, m * k), random(5, k * n));
    let mut all = vec![0.0; m * n];
    matmul(MatRef::new(&a, m, k), MatRef::new(&b, k, n), &mut all, false).unwrap();
    for kernel in [Kernel::Avx512Bf16].into_iter().filter(|&k| k == super::kernel()) {
        for i in [0, 13, 49] {
            let mut one = vec![0.0; n];
            let row = MatRef::new(&a[i * k..(i + 1) * k], 1, k);
            matmul_with(kernel, row, MatRef::new(&b, k, n), &mut one, false).unwrap();
            assert_eq!(one, all[i * n..(i + 1) * n]);
        }
    }
    let mut again = vec![0.0; m * n];
    matmul(MatRef::new(&a, m, k), MatRef::new(&b, k, n), &mut again, false).unwrap();
    assert_eq!(all, again);
}

#[test]
fn arbitrary_strides_and_slices_of_a_larger_matrix() {
    let (m, n, k) = (40, 50, 35);
    let (a, b) = (random(6, m * k * 3 + 2), random(7, k * 60));
    let a_ref = MatRef { data: &a[2..], rows: m, cols: k, row_stride: 3 * k, col_stride: 3 };
    let b_ref = MatRef { data: &b[7..], rows: k, cols: n, row_stride: 60, col_stride: 1 };
    for kernel in kernels() {
        let mut out = vec![f32::NAN; m * n];
        matmul_with(kernel, a_ref, b_ref, &mut out, false).unwrap();
        for (at, &got) in out.iter().enumerate() {
            let at = |l: usize| (a[2 + at / n * 3 * k + 3 * l], b[7 + l * 60 + at % n]);
            check_element(kernel, got, 0.0, (0..k).map(|l| f64::from(at(l).0) * f64::from(at(l).1)));
        }
    }
}

#[test]
fn special_values_and_empty_products() {
    for kernel in kernels() {
        let mut out = [7.0; 2];
        let a = MatRef::new(&[f32::INFINITY, 1.0, f32::NAN, 1.0], 2, 2);
        matmul_with(kernel, a, MatRef::new(&[1.0, 2.0], 2, 1), &mut out, false).unwrap();
        assert_eq!(out[0], f32::INFINITY);
        assert!(out[1].is_nan());
        matmul_with(kernel, MatRef::new(&[], 2, 0), MatRef::new(&[], 0, 1), &mut out, false).unwrap();
        assert_eq!(out, [0.0; 2]);
        matmul_with(kernel, MatRef::new(&[], 0, 3), MatRef::new(&[1.0; 6], 3, 2), &mut [], false).unwrap();
    }
}

#[test]
fn refuses_shapes_that_do_not_match() {
    let data = [0.0; 6];
    let (two_by_three, out) = (MatRef::new(&data, 2, 3), &mut [0.0; 4]);
    let inner = matmul(two_by_three, two_by_three, out, false);
    assert_eq!(inner, Err(GemmError::Inner { left: 3, right: 2 }));
    let output = matmul(two_by_three, two_by_three.t(), &mut out[1..], false);
    assert_eq!(output, Err(GemmError::Output { rows: 2, cols: 2, len: 3 }));
    for outside in [MatRef::new(&data[1..], 2, 3), MatRef { row_stride: usize::MAX, ..two_by_three }] {
        assert!(matches!(matmul(outside, two_by_three.t(), out, false), Err(GemmError::View { .. })));
    }
    matmul(two_by_three, two_by_three.t(), out, true).unwrap();
}

#[test]
fn a_stride_of_zero_repeats() {
    let (row, ones) = ([1.0, 2.0, 3.0], [1.0; 3]);
    let repeated = MatRef { row_stride: 0, ..MatRef::new(&row, 4, 3) };
    for kernel in kernels() {
        let mut out = [0.0; 4];
        matmul_with(kernel, repeated, MatRef::new(&ones, 3, 1), &mut out, false).unwrap();
        assert_eq!(out, [6.0; 4]);
        let mut out = [0.0; 9];
        let wide = MatRef { col_stride: 2, ..repeated };
        let narrow = MatRef { rows: 9, cols: 2, ..wide };
        matmul_with(kernel, narrow, MatRef::new(&ones, 2, 1), &mut out, false).unwrap();
        assert_eq!(out, [4.0; 9]);
    }
}
