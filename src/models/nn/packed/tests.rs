//! Every kernel of every format against f64, and against itself with other rows, threads and columns.

use proptest::prelude::*;
use rayon::ThreadPoolBuilder;

use super::*;
use crate::diffusion::rng::mix64;

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];

/// `len` values in [−scale, scale).
fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let unit = |i: usize| (mix64(seed ^ mix64(i as u64)) >> 40) as f32 / (1u64 << 23) as f32;
    (0..len).map(|i| (unit(i) - 1.0) * scale).collect()
}

fn run(panels: &Panels, kernel: Kernel, x: &[f32], outputs: Range<usize>) -> Vec<f32> {
    let rows = x.len() / panels.inputs;
    panels.product_with(kernel, x, rows, outputs).unwrap()
}

fn largest(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |most: f64, &x| most.max(f64::from(x).abs()))
}

/// What an output may differ by from the sum of x·w in f64.
///
/// f32: k roundings of partial sums, none of which exceeds Σ|x·w|. bf16: besides, two factors rounded to eight bits,
/// 2⁻⁸ each, relative. int8: factors are off by half a unit, a 254th of the block's largest magnitude, which makes
/// |Δx|·|w| + |x|·|Δw| + |Δx|·|Δw| a product; sums of a block are exact, then there are two roundings a block.
fn bound(format: Format, x: &[f32], w: &[f32]) -> f64 {
    let norm: f64 = x.iter().zip(w).map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs()).sum();
    let sums = norm * (x.len() + 2) as f64 * 2f64.powi(-24);
    match format {
        Format::F32 => sums,
        Format::Bf16 => 1.002 * norm * 2.0 * 2f64.powi(-8) + 2.0 * sums,
        Format::Int8 => {
            let blocks = x.chunks(BLOCK).zip(w.chunks(BLOCK));
            let error = blocks.map(|(x, w)| {
                let (dx, dw) = (largest(x) / 254.0, largest(w) / 254.0);
                let magnitude = |v: &[f32]| v.iter().map(|v| f64::from(v.abs())).sum::<f64>();
                dx * magnitude(w) + dw * magnitude(x) + x.len() as f64 * dx * dw
            });
            1.001 * error.sum::<f64>() + 2.0 * sums
        }
    }
}

/// Compares every output with the product in f64.
fn check(x: &[f32], w: &[f32], (m, n, k): (usize, usize, usize), format: Format) {
    let panels = Panels::pack(w, n, k, format).unwrap();
    let kernels = Kernel::all(format);
    let results: Vec<_> = kernels.iter().map(|&kernel| run(&panels, kernel, x, 0..n)).collect();
    for (kernel, out) in kernels.iter().zip(&results) {
        for (at, &got) in out.iter().enumerate() {
            let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
            let want: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let bound = bound(format, x, w);
            assert!((f64::from(got) - want).abs() <= bound, "{kernel:?} {m}×{n}×{k}: {got}, {want} ± {bound}");
        }
    }
    // With one rounding per product and sum all kernels agree, except where the processor pairs bf16 its own way.
    let same = |kernel: &Kernel| (kernel.fused() || format == Format::Int8) && !kernel.native_bf16();
    let mut equal = kernels.iter().zip(&results).filter(|(kernel, _)| same(kernel)).map(|(_, out)| out);
    if let Some(first) = equal.next() {
        assert!(equal.all(|out| out == first), "kernels differ: {format:?} {m}×{n}×{k}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn products_are_within_their_bounds(
        m in 1usize..40, n in 1usize..100, k in 1usize..700, seed in any::<u64>(), scale in 0.01f32..30.0,
    ) {
        let (x, w) = (random(seed, m * k, scale), random(!seed, n * k, 1.0));
        for format in FORMATS {
            check(&x, &w, (m, n, k), format);
        }
    }

    #[test]
    fn an_output_depends_on_its_row_and_column_alone(
        m in 2usize..300, n in 1usize..150, k in 1usize..400, threads in 1usize..5, seed in any::<u64>(),
    ) {
        let (x, w) = (random(seed, m * k, 1.0), random(!seed, n * k, 1.0));
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (row, column) = ((seed % m as u64) as usize, (seed / 7 % n as u64) as usize);
        for format in FORMATS {
            let panels = Panels::pack(&w, n, k, format).unwrap();
            for kernel in Kernel::all(format) {
                let all = run(&panels, kernel, &x, 0..n);
                prop_assert_eq!(&all, &pool.install(|| run(&panels, kernel, &x, 0..n)), "{} threads", threads);
                let alone = run(&panels, kernel, &x[row * k..(row + 1) * k], 0..n);
                prop_assert_eq!(&alone[..], &all[row * n..(row + 1) * n], "row {} of {:?}", row, kernel);
                let rest = run(&panels, kernel, &x[row * k..], column..n);
                let want: Vec<f32> = all[row * n..].chunks(n).flat_map(|row| &row[column..]).copied().collect();
                prop_assert_eq!(rest, want, "rows from {} and columns from {} of {:?}", row, column, kernel);
            }
        }
    }
}

#[test]
fn depths_of_several_blocks_and_many_groups_of_rows() {
    for (m, n, k) in [(130, 40, 2500), (3, 33, 4100), (12, 32, 1024), (250, 65, 300)] {
        let (x, w) = (random(1, m * k, 1.0), random(2, n * k, 0.1));
        for format in FORMATS {
            check(&x, &w, (m, n, k), format);
        }
    }
}

#[test]
fn what_is_unpacked_is_what_is_multiplied() {
    let (n, k) = (70, 530);
    let w = random(3, n * k, 2.0);
    for format in FORMATS {
        let panels = Panels::pack(&w, n, k, format).unwrap();
        let all = panels.unpack(0..n).unwrap();
        assert_eq!(panels.unpack(30..66).unwrap(), all[30 * k..66 * k]);
        assert_eq!(panels.unpack(5..5).unwrap(), [0.0; 0]);
        for (row, (got, want)) in all.chunks(k).zip(w.chunks(k)).enumerate() {
            for (block, (got, want)) in got.chunks(BLOCK).zip(want.chunks(BLOCK)).enumerate() {
                let unit = match format {
                    Format::F32 => 0.0,
                    Format::Bf16 => 2.0 * 2f64.powi(-8),
                    Format::Int8 => largest(want) / 127.0,
                };
                let near = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) <= 0.501 * unit;
                assert!(got.iter().zip(want).all(near), "{format:?}, row {row}, block {block}");
            }
        }
        // A row of a single one picks a column of the weight; one is exact in every format.
        for column in [0, 17, k - 1] {
            let mut x = vec![0.0; k];
            x[column] = 1.0;
            let picked = run(&panels, Kernel::best(format), &x, 0..n);
            for (got, row) in picked.iter().zip(all.chunks(k)) {
                assert!((got - row[column]).abs() <= 1e-6 * row[column].abs(), "{format:?}: {got} {}", row[column]);
            }
        }
    }
}

#[test]
fn int8_blocks_have_scales_of_their_own() {
    // A huge value in the first block costs the second nothing.
    let (mut x, w) = (random(4, 2 * BLOCK, 1.0), random(5, 2 * BLOCK, 1.0));
    let panels = Panels::pack(&w, 1, 2 * BLOCK, Format::Int8).unwrap();
    let out = |x: &[f32]| f64::from(run(&panels, Kernel::best(Format::Int8), x, 0..1)[0]);
    x[..BLOCK].fill(0.0);
    let second = out(&x);
    x[0] = 1e4;
    let first = f64::from(panels.unpack(0..1).unwrap()[0]) * 1e4;
    assert!((out(&x) - first - second).abs() < 2e-3, "{} {first} {second}", out(&x));
}

#[test]
fn values_that_are_not_finite_stay_so() {
    let (n, k) = (40, 300);
    let w = random(6, n * k, 1.0);
    for format in FORMATS {
        let panels = Panels::pack(&w, n, k, format).unwrap();
        for kernel in Kernel::all(format) {
            for bad in [f32::NAN, f32::from_bits(0x7FFF_FFFF), f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random(7, 3 * k, 1.0);
                x[k + 290] = bad;
                let out = run(&panels, kernel, &x, 0..n);
                assert!(out[n..2 * n].iter().all(|y| !y.is_finite()), "{kernel:?} {bad}");
                assert!(out[..n].iter().chain(&out[2 * n..]).all(|y| y.is_finite()), "{kernel:?} {bad}");
            }
            assert_eq!(run(&panels, kernel, &[0.0; 600], 0..n), [0.0; 80], "{kernel:?}");
        }
    }
}

#[test]
fn formats_take_the_memory_that_they_promise() {
    let (n, k) = (320, 768);
    assert_eq!(Format::F32.bytes(n, k), 4 * n * k);
    assert_eq!(Format::Bf16.bytes(n, k), 2 * n * k);
    // Two words for every block of 256.
    assert_eq!(Format::Int8.bytes(n, k), n * k + 8 * n * k / BLOCK);
    for (n, k) in [(320, 768), (70, 530), (1, 1)] {
        for format in FORMATS {
            let panels = Panels::pack(&vec![0.5; n * k], n, k, format).unwrap();
            let marks = size_of_val(&panels.scales[..]) + size_of_val(&panels.offsets[..]);
            assert_eq!(format.bytes(n, k), size_of_val(&panels.lines[..]) + marks);
        }
    }
}

#[test]
fn packed_in_pieces_it_is_what_it_is_packed_at_once() {
    let (n, k) = (150, 530);
    let w = random(8, n * k, 1.0);
    for format in FORMATS {
        let whole = Panels::pack(&w, n, k, format).unwrap();
        // Within a panel, over its edge, whole panels, several.
        let mut packing = Packing::new(n, k, format);
        let mut first = 0;
        for rows in [1, 30, 2, 32, 5, 70, 10] {
            packing.push(&w[first * k..(first + rows) * k]).unwrap();
            first += rows;
        }
        let pieces = packing.finish().unwrap();
        assert_eq!(pieces.unpack(0..n).unwrap(), whole.unpack(0..n).unwrap(), "{format:?}");
        let x = random(9, 5 * k, 1.0);
        assert_eq!(pieces.product(&x, 5, 0..n).unwrap(), whole.product(&x, 5, 0..n).unwrap(), "{format:?}");
    }
}

#[test]
fn rows_that_do_not_fit_are_refused_and_missing_ones_noticed() {
    let mut packing = Packing::new(3, 4, Format::F32);
    assert!(packing.push(&[]).is_err());
    assert!(packing.push(&[1.0; 6]).is_err());
    packing.push(&[1.0; 8]).unwrap();
    assert!(packing.push(&[1.0; 8]).is_err(), "a fourth row");
    assert!(matches!(packing.finish(), Err(GemmError::View { rows: 3, len: 8, .. })), "the third is missing");
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(Panels::pack(&[0.0; 6], 2, 4, Format::F32).is_err());
    assert!(Panels::pack(&[], 0, 4, Format::F32).is_err());
    let panels = Panels::pack(&[1.0; 6], 2, 3, Format::F32).unwrap();
    assert!(matches!(panels.product(&[1.0; 5], 2, 0..2), Err(GemmError::View { .. })));
    assert!(matches!(panels.product(&[1.0; 6], 2, 1..3), Err(GemmError::View { .. })));
    assert_eq!(panels.product(&[1.0; 6], 2, 0..2).unwrap(), [3.0; 4]);
    assert_eq!(panels.product(&[1.0; 6], 2, 1..1).unwrap(), [0.0; 0]);
    assert_eq!(panels.product(&[], 0, 0..2).unwrap(), [0.0; 0]);
}
