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
/// Rows that share what is loaded of A and B.
const ROWS: usize = 4;
/// Rows handled by one task.
const ROWS_PER_TASK: usize = 32;

/// The update of some neighbouring outputs of a product.
#[derive(Debug)]
pub struct LowRank {
    /// `(inputs, lanes)`: the rank rounded up, zeros beyond it.
    a: Vec<f32>,
    /// `(rank, outputs)`.
    b: Vec<f32>,
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
        let lanes = rank.next_multiple_of(LANES);
        let a = a.pad_with_zeros(0, 0, lanes - rank)?.t()?.flatten_all()?.to_vec1()?;
        let b = (b * scale)?.t()?.flatten_all()?.to_vec1()?;
        Ok(Self { a, b, inputs, outputs: first..first + outputs, rank })
    }

    fn lanes(&self) -> usize {
        self.rank.next_multiple_of(LANES)
    }
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
                    hidden.resize(ROWS * part.lanes(), 0.0);
                    update(x, y, outputs, part, &mut hidden);
                }
            }
        });
        Ok(())
    }
}

/// Rows of `x` to rows of `y`; every row's sums have one order, however many there are.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn update(x: &[f32], y: &mut [f32], width: usize, part: &LowRank, hidden: &mut [f32]) {
    match_target! {
        "x86_64+avx512f" => blocks::<true>(x, y, width, part, hidden),
        "x86_64+avx2+fma" => blocks::<true>(x, y, width, part, hidden),
        "aarch64+neon" => blocks::<true>(x, y, width, part, hidden),
        _ => blocks::<false>(x, y, width, part, hidden),
    }
}

/// In blocks of [`ROWS`]. With FUSED a multiplication and its addition are one instruction, rounded once.
#[inline(always)]
fn blocks<const FUSED: bool>(x: &[f32], y: &mut [f32], width: usize, part: &LowRank, hidden: &mut [f32]) {
    let whole = x.len() / part.inputs / ROWS * ROWS;
    let (x_blocks, x_rest) = x.split_at(whole * part.inputs);
    let (y_blocks, y_rest) = y.split_at_mut(whole * width);
    let blocks = x_blocks.chunks_exact(ROWS * part.inputs).zip(y_blocks.chunks_exact_mut(ROWS * width));
    for (x, y) in blocks {
        block::<ROWS, FUSED>(x, y, width, part, hidden);
    }
    for (x, y) in x_rest.chunks_exact(part.inputs).zip(y_rest.chunks_exact_mut(width)) {
        block::<1, FUSED>(x, y, width, part, hidden);
    }
}

/// N rows.
#[inline(always)]
fn block<const N: usize, const FUSED: bool>(
    x: &[f32],
    y: &mut [f32],
    width: usize,
    part: &LowRank,
    hidden: &mut [f32],
) {
    let add = |sum: f32, a: f32, b: f32| if FUSED { a.mul_add(b, sum) } else { sum + a * b };
    let (lanes, outputs) = (part.lanes(), part.outputs.len());
    for first in (0..lanes).step_by(LANES) {
        let mut sums = [[0.0f32; LANES]; N];
        for (i, a) in part.a.chunks_exact(lanes).enumerate() {
            let Some(a) = a[first..].first_chunk::<LANES>() else { continue };
            for n in 0..N {
                let x = x[n * part.inputs + i];
                for l in 0..LANES {
                    sums[n][l] = add(sums[n][l], x, a[l]);
                }
            }
        }
        for n in 0..N {
            hidden[n * lanes + first..][..LANES].copy_from_slice(&sums[n]);
        }
    }
    let tiled = outputs / LANES * LANES;
    for first in (0..tiled).step_by(LANES) {
        let at = |n: usize| n * width + part.outputs.start + first;
        let mut sums = [[0.0f32; LANES]; N];
        for n in 0..N {
            sums[n].copy_from_slice(&y[at(n)..][..LANES]);
        }
        for (r, b) in part.b.chunks_exact(outputs).enumerate() {
            let Some(b) = b[first..].first_chunk::<LANES>() else { continue };
            for n in 0..N {
                let t = hidden[n * lanes + r];
                for l in 0..LANES {
                    sums[n][l] = add(sums[n][l], t, b[l]);
                }
            }
        }
        for n in 0..N {
            y[at(n)..][..LANES].copy_from_slice(&sums[n]);
        }
    }
    for n in 0..N {
        for o in tiled..outputs {
            let y = &mut y[n * width + part.outputs.start + o];
            for r in 0..part.rank {
                *y = add(*y, hidden[n * lanes + r], part.b[r * outputs + o]);
            }
        }
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
        for (rank, inputs, outputs) in [(1, 7, 5), (16, 48, 40), (17, 33, 64), (40, 96, 100)] {
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
