//! y += x · A · B, in place and in one pass over y: what adapters cost where they serve.
//!
//! Composed of matrix products and sums, the update of a few rows costs copies of all: rows of several adapters, and of
//! none, lie in one batch. Here each task takes some rows of y and adds what their adapters say. Without a backward
//! pass; what is trained is composed (`lora`).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use multiversion::multiversion;
use multiversion::target::match_target;
use rayon::prelude::*;

use super::{slice, slice_mut};

/// Values that are computed side by side: a register of AVX-512, two of AVX2.
const LANES: usize = 16;
/// Rows handled by one task.
const ROWS_PER_TASK: usize = 32;

type Lanes = [f32; LANES];

/// The update of some neighbouring outputs of a product.
#[derive(Debug)]
pub struct LowRank {
    /// `(rank / 16, inputs, 16)`: the rank rounded up, zeros beyond it.
    a: Vec<Lanes>,
    /// `(outputs / 16, rank, 16)`: the outputs rounded up, zeros beyond them.
    b: Vec<Lanes>,
    inputs: usize,
    outputs: Range<usize>,
    rank: usize,
}

impl LowRank {
    /// Of factors `a` `(rank, inputs)` and `b` `(outputs, rank)`, the latter times `scale`, for the outputs from `first`.
    ///
    /// # Errors
    /// When a factor is no matrix of f32, or the device fails.
    pub fn new(a: &Tensor, b: &Tensor, scale: f64, first: usize) -> Result<Self> {
        let ((rank, inputs), (outputs, _)) = (a.dims2()?, b.dims2()?);
        let outputs = first..first + outputs;
        Ok(Self { a: tiles(a)?, b: tiles(&(b * scale)?)?, inputs, outputs, rank })
    }
}

/// `(rows, columns)` to `(rows / 16, columns, 16)`, zeros beyond the rows.
fn tiles(matrix: &Tensor) -> Result<Vec<Lanes>> {
    let (rows, columns) = matrix.dims2()?;
    let tiles = rows.div_ceil(LANES);
    let padded = matrix.pad_with_zeros(0, 0, tiles * LANES - rows)?.reshape((tiles, LANES, columns))?;
    let values = padded.transpose(1, 2)?.flatten_all()?.to_vec1()?;
    Ok(values.as_chunks().0.to_vec())
}

/// Rows with the updates of their product.
pub type Updates = (Range<usize>, Arc<[LowRank]>);

/// Adds to `y` `(rows, outputs)` what `updates` make of `x` `(rows, inputs)`. Both must be frozen (no variable behind them), and `y`
/// nobody else's.
///
/// # Errors
/// When shapes do not fit.
pub fn add(y: &Tensor, x: &Tensor, updates: Vec<Updates>) -> Result<()> {
    let ((rows, outputs), (x_rows, inputs)) = (y.dims2()?, x.dims2()?);
    let fits = |part: &LowRank| part.inputs == inputs && part.outputs.end <= outputs;
    let inside = updates.iter().all(|(range, parts)| range.end <= rows && parts.iter().all(fits));
    if x_rows != rows || !inside {
        candle_core::bail!("low-rank: updates do not fit y ({rows}, {outputs}) and x ({x_rows}, {inputs})");
    }
    y.inplace_op2(&x.contiguous()?, &Add { updates, inputs, outputs })
}

struct Add {
    updates: Vec<Updates>,
    inputs: usize,
    outputs: usize,
}

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "low-rank-add"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, yl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        let (x, y) = (slice(x, xl, "low-rank x")?, slice_mut(y, yl, "low-rank y")?);
        let (inputs, outputs) = (self.inputs, self.outputs);
        y.par_chunks_mut(outputs * ROWS_PER_TASK).enumerate().for_each(|(task, y)| {
            let first = task * ROWS_PER_TASK;
            let here = first..first + y.len() / outputs;
            let mut hidden = Vec::new();
            for (rows, parts) in &self.updates {
                let rows = rows.start.max(here.start)..rows.end.min(here.end);
                if rows.is_empty() {
                    continue;
                }
                let x = &x[rows.start * inputs..rows.end * inputs];
                let y = &mut y[(rows.start - first) * outputs..(rows.end - first) * outputs];
                for part in &**parts {
                    update(x, y, outputs, part, &mut hidden);
                }
            }
        });
        Ok(())
    }
}

/// Rows of `x` to rows of `y`; every row's sums have one order, however many there are.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn update(x: &[f32], y: &mut [f32], width: usize, part: &LowRank, hidden: &mut Vec<f32>) {
    match_target! {
        "x86_64+avx512f" => blocks::<4, 2, true>(x, y, width, part, hidden),
        "x86_64+avx2+fma" => blocks::<4, 1, true>(x, y, width, part, hidden),
        "aarch64+neon" => blocks::<4, 1, true>(x, y, width, part, hidden),
        _ => blocks::<4, 1, false>(x, y, width, part, hidden),
    }
}

/// In blocks of `R` rows that share what is loaded of A and B, `T` tiles of outputs at a time: with more sums under way a
/// multiplication waits less for the one before, but registers must hold them. With FUSED a multiplication and its
/// addition are one instruction, rounded once.
#[inline(always)]
fn blocks<const R: usize, const T: usize, const FUSED: bool>(
    x: &[f32],
    y: &mut [f32],
    width: usize,
    part: &LowRank,
    hidden: &mut Vec<f32>,
) {
    hidden.resize(R * part.rank.next_multiple_of(LANES), 0.0);
    let whole = x.len() / part.inputs / R * R;
    let (x_blocks, x_rest) = x.split_at(whole * part.inputs);
    let (y_blocks, y_rest) = y.split_at_mut(whole * width);
    for (x, y) in x_blocks.chunks_exact(R * part.inputs).zip(y_blocks.chunks_exact_mut(R * width)) {
        block::<R, T, FUSED>(x, y, width, part, hidden);
    }
    for (x, y) in x_rest.chunks_exact(part.inputs).zip(y_rest.chunks_exact_mut(width)) {
        block::<1, T, FUSED>(x, y, width, part, hidden);
    }
}

/// N rows.
#[inline(always)]
fn block<const N: usize, const T: usize, const FUSED: bool>(
    x: &[f32],
    y: &mut [f32],
    width: usize,
    part: &LowRank,
    hidden: &mut [f32],
) {
    let lanes = part.rank.next_multiple_of(LANES);
    for (a, first) in part.a.chunks_exact(part.inputs).zip((0..lanes).step_by(LANES)) {
        let sums = multiply_add::<N, 1, FUSED>([[[0.0; LANES]; 1]; N], x, part.inputs, [a]);
        store(&sums, &mut hidden[first..], lanes);
    }
    let tile = |tile: usize| &part.b[tile * part.rank..][..part.rank];
    let outputs = &mut y[part.outputs.start..];
    // Sums stay in registers only where every length is known: the last outputs are padded.
    let (full, padding) = (part.outputs.len() / LANES, part.outputs.len() % LANES);
    let grouped = full / T * T;
    for t in (0..grouped).step_by(T) {
        let (b, y) = (std::array::from_fn(|i| tile(t + i)), &mut outputs[t * LANES..]);
        let sums = multiply_add::<N, T, FUSED>(load(y, width), hidden, lanes, b);
        store(&sums, y, width);
    }
    for t in grouped..full {
        let y = &mut outputs[t * LANES..];
        let sums = multiply_add::<N, 1, FUSED>(load(y, width), hidden, lanes, [tile(t)]);
        store(&sums, y, width);
    }
    if padding > 0 {
        let y = &mut outputs[full * LANES..];
        let mut padded = [[[0.0; LANES]; 1]; N];
        for (padded, y) in padded.iter_mut().zip(y.chunks(width)) {
            padded[0][..padding].copy_from_slice(&y[..padding]);
        }
        let sums = multiply_add::<N, 1, FUSED>(padded, hidden, lanes, [tile(full)]);
        for (sums, y) in sums.iter().zip(y.chunks_mut(width)) {
            y[..padding].copy_from_slice(&sums[0][..padding]);
        }
    }
}

/// `sums` + x · w, of x `(N, stride)` as many columns as each of w `(columns, 16)` has.
#[inline(always)]
fn multiply_add<const N: usize, const T: usize, const FUSED: bool>(
    mut sums: [[Lanes; T]; N],
    x: &[f32],
    stride: usize,
    w: [&[Lanes]; T],
) -> [[Lanes; T]; N] {
    let columns = w[0].len();
    let w = w.map(|w| &w[..columns]);
    let x: [&[f32]; N] = std::array::from_fn(|n| &x[n * stride..][..columns]);
    for i in 0..columns {
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = x[i];
            for (sums, w) in sums.iter_mut().zip(w) {
                for (sum, w) in sums.iter_mut().zip(w[i]) {
                    *sum = if FUSED { x.mul_add(w, *sum) } else { *sum + x * w };
                }
            }
        }
    }
    sums
}

/// The first T times 16 values of N rows that are `stride` apart.
#[inline(always)]
fn load<const N: usize, const T: usize>(from: &[f32], stride: usize) -> [[Lanes; T]; N] {
    let mut out = [[[0.0; LANES]; T]; N];
    for (n, out) in out.iter_mut().enumerate() {
        out.as_flattened_mut().copy_from_slice(&from[n * stride..][..T * LANES]);
    }
    out
}

/// What [`load`] reads, written.
#[inline(always)]
fn store<const N: usize, const T: usize>(sums: &[[Lanes; T]; N], to: &mut [f32], stride: usize) {
    for (n, sums) in sums.iter().enumerate() {
        to[n * stride..][..T * LANES].copy_from_slice(sums.as_flattened());
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::nn::tests::close;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn it_adds_what_the_composition_adds() {
        for (rank, inputs, outputs) in [(1, 7, 5), (16, 48, 40), (16, 48, 55), (17, 33, 64), (40, 96, 100)] {
            let (a, b) = (random((rank, inputs)), random((outputs, rank)));
            let part: Arc<[LowRank]> = Arc::new([LowRank::new(&a, &b, 0.5, 3).unwrap()]);
            let (x, y) = (random((71, inputs)), random((71, outputs + 10)));
            let update = (x.matmul(&a.t().unwrap()).unwrap().matmul(&b.t().unwrap()).unwrap() * 0.5).unwrap();
            let rows = update.narrow(0, 20, 45).unwrap().pad_with_zeros(0, 20, 6).unwrap();
            let expected = (&y + rows.pad_with_zeros(1, 3, 7).unwrap()).unwrap();
            let got = y.copy().unwrap();
            add(&got, &x, vec![(20..65, part)]).unwrap();
            close(&got, &expected, 1e-4).unwrap();
            let untouched = |t: &Tensor| t.narrow(0, 0, 20).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(untouched(&got), untouched(&y), "rows without an adapter stay bit for bit");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let part: Arc<[LowRank]> = Arc::new([LowRank::new(&random((9, 50)), &random((70, 9)), 1.0, 0).unwrap()]);
        let (x, y) = (random((70, 50)), random((70, 70)));
        let all = y.copy().unwrap();
        add(&all, &x, vec![(0..70, Arc::clone(&part))]).unwrap();
        for rows in [0..1, 3..5, 30..37, 69..70] {
            let some = |t: &Tensor| t.narrow(0, rows.start, rows.len()).unwrap().copy().unwrap();
            let alone = some(&y);
            add(&alone, &some(&x), vec![(0..rows.len(), Arc::clone(&part))]).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap(), some(&all).to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let part: Arc<[LowRank]> = Arc::new([LowRank::new(&random((2, 5)), &random((6, 2)), 1.0, 0).unwrap()]);
        let refused = |y: (usize, usize), x: (usize, usize), rows| {
            add(&random(y), &random(x), vec![(rows, Arc::clone(&part))]).is_err()
        };
        assert!(!refused((3, 6), (3, 5), 0..3));
        assert!(refused((3, 5), (3, 5), 0..3) && refused((3, 6), (3, 4), 0..3) && refused((3, 6), (3, 5), 0..4));
    }
}
