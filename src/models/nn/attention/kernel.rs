//! The CPU loops of attention. One head at a time, everything padded to whole vectors of [`LANES`] values with
//! zeros, and every sum in an order that does not depend on how many rows are computed together.

use std::ops::Range;

use multiversion::multiversion;
use multiversion::target::match_target;

use super::{AttentionPlan, AttentionSpan};
use crate::models::nn::elementwise;

/// Width to which rows are padded: two AVX-512 vectors.
const LANES: usize = 32;
/// Rows computed together, so that a load of the right operand serves several.
const ROWS: usize = 4;

/// Keys and values of one key/value head of one span, laid out for the loops.
pub(super) struct Head {
    /// Rotated keys, transposed: `(head_dim, keys padded)`.
    keys_t: Vec<f32>,
    /// Values `(keys, head_dim padded)`.
    values: Vec<f32>,
    keys: usize,
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Lays out a key/value head of a span.
pub(super) fn head(plan: &AttentionPlan, span: &AttentionSpan, kv: &[f32], head: usize) -> Head {
    let keys = rotated_keys(plan, span, kv, head);
    let values = gather(kv, plan.kv_width(), span.keys.clone(), value_column(plan, head), plan.head_dim);
    Head { keys_t: transpose(&keys, span.keys.len(), plan.head_dim), values, keys: span.keys.len() }
}

/// Attention of query rows `rows` (one span's) over `heads`; `out` holds just these rows.
pub(super) fn attend(plan: &AttentionPlan, heads: &[Head], rows: Range<usize>, q: &[f32], out: &mut [f32]) {
    let (n, d, d_pad) = (rows.len(), plan.head_dim, padded(plan.head_dim));
    let keys_pad = padded(heads.first().map_or(0, |h| h.keys));
    let mut queries = vec![0.0; n * d_pad];
    let mut scores = vec![0.0; n * keys_pad];
    let mut mixed = vec![0.0; n * d_pad];
    for head in 0..plan.n_heads {
        let kv = &heads[head / (plan.n_heads / plan.n_kv_heads)];
        rotated_queries(plan, rows.clone(), q, head, &mut queries);
        product(Left::Rows(&queries, d_pad), n, d, &kv.keys_t, keys_pad, &mut scores);
        for (row, query) in scores.chunks_exact_mut(keys_pad).zip(rows.clone()) {
            weights(row, plan.visible(query, kv.keys));
        }
        product(Left::Rows(&scores, keys_pad), n, kv.keys, &kv.values, d_pad, &mut mixed);
        scatter(&mixed, d_pad, out, plan.q_width(), head * d, d);
    }
}

/// Gradients of one span: `dq` and `dkv` hold just its rows, zeroed.
pub(super) fn backward(
    plan: &AttentionPlan,
    span: &AttentionSpan,
    q: &[f32],
    kv: &[f32],
    grad: &[f32],
    dq: &mut [f32],
    dkv: &mut [f32],
) {
    let (n, keys, d) = (span.queries.len(), span.keys.len(), plan.head_dim);
    let (d_pad, keys_pad) = (padded(d), padded(keys));
    let mut queries = vec![0.0; n * d_pad];
    let mut scores = vec![0.0; n * keys_pad];
    let mut d_scores = vec![0.0; n * keys_pad];
    let mut d_queries = vec![0.0; n * d_pad];
    let mut d_rows = vec![0.0; keys * d_pad];
    for head in 0..plan.n_heads {
        let kv_head = head / (plan.n_heads / plan.n_kv_heads);
        rotated_queries(plan, span.queries.clone(), q, head, &mut queries);
        let k = rotated_keys(plan, span, kv, kv_head);
        let v = gather(kv, plan.kv_width(), span.keys.clone(), value_column(plan, kv_head), d);
        let g = gather(grad, plan.q_width(), span.queries.clone(), head * d, d);
        // Forward again: P = softmax(QKᵀ); queries are already scaled.
        product(Left::Rows(&queries, d_pad), n, d, &transpose(&k, keys, d), keys_pad, &mut scores);
        for (row, query) in scores.chunks_exact_mut(keys_pad).zip(span.queries.clone()) {
            weights(row, plan.visible(query, keys));
        }
        // dP = dO·Vᵀ, dS = P ⊙ (dP − Σ P dP).
        product(Left::Rows(&g, d_pad), n, d, &transpose(&v, keys, d), keys_pad, &mut d_scores);
        for (p, dp) in scores.chunks_exact(keys_pad).zip(d_scores.chunks_exact_mut(keys_pad)) {
            elementwise::softmax_backward(p, dp);
        }
        // dQ = dS·K (rotated back, scaled), dK = dSᵀ·Q (rotated back), dV = Pᵀ·dO.
        product(Left::Rows(&d_scores, keys_pad), n, keys, &k, d_pad, &mut d_queries);
        unrotate(plan, &mut d_queries, d_pad, |row| plan.positions[span.queries.start + row] as usize);
        for (row, out) in d_queries.chunks_exact(d_pad).zip(dq.chunks_exact_mut(plan.q_width())) {
            for (o, &x) in out[head * d..(head + 1) * d].iter_mut().zip(row) {
                *o = x * plan.scale();
            }
        }
        product(Left::Columns(&d_scores, keys_pad), keys, n, &queries, d_pad, &mut d_rows);
        unrotate(plan, &mut d_rows, d_pad, |row| row);
        accumulate(&d_rows, d_pad, dkv, plan.kv_width(), kv_head * d, d);
        product(Left::Columns(&scores, keys_pad), keys, n, &g, d_pad, &mut d_rows);
        accumulate(&d_rows, d_pad, dkv, plan.kv_width(), value_column(plan, kv_head), d);
    }
}

/// Scores `(keys padded)` to weights: the softmax of the visible ones, then zeros. In whole vectors, as what is hidden by
/// −∞ adds nothing.
fn weights(scores: &mut [f32], visible: usize) {
    let (seen, hidden) = scores.split_at_mut(padded(visible));
    seen[visible..].fill(f32::NEG_INFINITY);
    elementwise::softmax(seen);
    hidden.fill(0.0);
}

fn value_column(plan: &AttentionPlan, kv_head: usize) -> usize {
    (plan.n_kv_heads + kv_head) * plan.head_dim
}

/// Scaled, rotated queries of one head to `out` `(rows, head_dim padded)`, whose padding is zeros.
fn rotated_queries(plan: &AttentionPlan, rows: Range<usize>, q: &[f32], head: usize, out: &mut [f32]) {
    let d = plan.head_dim;
    gather_into(out, q, plan.q_width(), rows.clone(), head * d, d);
    for (row, at) in out.chunks_exact_mut(padded(d)).zip(rows) {
        let (cos, sin) = plan.rope.at(plan.positions[at] as usize);
        rotate(row, cos, sin);
        for x in row {
            *x *= plan.scale();
        }
    }
}

/// Rotated keys of one head `(keys, head_dim padded)`.
fn rotated_keys(plan: &AttentionPlan, span: &AttentionSpan, kv: &[f32], head: usize) -> Vec<f32> {
    let d = plan.head_dim;
    let mut out = gather(kv, plan.kv_width(), span.keys.clone(), head * d, d);
    for (position, row) in out.chunks_exact_mut(padded(d)).enumerate() {
        let (cos, sin) = plan.rope.at(position);
        rotate(row, cos, sin);
    }
    out
}

/// Half-split (NeoX) rotation of one row.
fn rotate(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = row.split_at_mut(cos.len());
    for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// The transposed rotation: the gradient before the rotation.
fn unrotate(plan: &AttentionPlan, rows: &mut [f32], width: usize, position: impl Fn(usize) -> usize) {
    for (i, row) in rows.chunks_exact_mut(width).enumerate() {
        let (cos, sin) = plan.rope.at(position(i));
        let (first, second) = row.split_at_mut(cos.len());
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c + *b * s, *b * c - *a * s);
        }
    }
}

/// Columns `column..column + d` of some rows, padded.
fn gather(x: &[f32], width: usize, rows: Range<usize>, column: usize, d: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() * padded(d)];
    gather_into(&mut out, x, width, rows, column, d);
    out
}

/// The same into `out`; its padding stays as it is.
fn gather_into(out: &mut [f32], x: &[f32], width: usize, rows: Range<usize>, column: usize, d: usize) {
    for (out, at) in out.chunks_exact_mut(padded(d)).zip(rows) {
        out[..d].copy_from_slice(&x[at * width + column..][..d]);
    }
}

fn scatter(rows: &[f32], row_width: usize, out: &mut [f32], width: usize, column: usize, d: usize) {
    for (row, out) in rows.chunks_exact(row_width).zip(out.chunks_exact_mut(width)) {
        out[column..column + d].copy_from_slice(&row[..d]);
    }
}

fn accumulate(rows: &[f32], row_width: usize, out: &mut [f32], width: usize, column: usize, d: usize) {
    for (row, out) in rows.chunks_exact(row_width).zip(out.chunks_exact_mut(width)) {
        for (o, &x) in out[column..column + d].iter_mut().zip(row) {
            *o += x;
        }
    }
}

/// `(n, d padded)` to `(d, n padded)`.
fn transpose(x: &[f32], n: usize, d: usize) -> Vec<f32> {
    let n_pad = padded(n);
    let mut out = vec![0.0; d * n_pad];
    for (i, row) in x.chunks_exact(padded(d)).enumerate() {
        for (j, &value) in row[..d].iter().enumerate() {
            out[j * n_pad + i] = value;
        }
    }
    out
}

/// out `(m, n)` = a `(m, k)` · b `(k, n)` with n a multiple of [`LANES`]. Each output is summed over k in order, whatever
/// m is.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma", "aarch64+neon"))]
fn product(a: Left<'_>, m: usize, k: usize, b: &[f32], n: usize, out: &mut [f32]) {
    // A tile's sums take 8 of 32 registers or of 16. Twice as many rows would be too much for the compiler, which keeps
    // sums in memory then.
    match_target! {
        "x86_64+avx512f" => tiles::<LANES, true>(a, m, k, b, n, out),
        "x86_64+avx2+fma" => tiles::<{ LANES / 2 }, true>(a, m, k, b, n, out),
        "aarch64+neon" => tiles::<{ LANES / 4 }, true>(a, m, k, b, n, out),
        _ => tiles::<{ LANES / 4 }, false>(a, m, k, b, n, out),
    }
}

/// The left operand of a [`product`].
#[derive(Clone, Copy)]
enum Left<'a> {
    /// Rows, so far apart.
    Rows(&'a [f32], usize),
    /// Columns, so far apart.
    Columns(&'a [f32], usize),
}

/// In tiles of [`ROWS`] × W, of fewer rows at the end. With FUSED a multiplication and its addition are one instruction,
/// rounded once.
#[inline(always)]
fn tiles<const W: usize, const FUSED: bool>(a: Left<'_>, m: usize, k: usize, b: &[f32], n: usize, out: &mut [f32]) {
    let mut row = 0;
    while row < m {
        row += match m - row {
            ROWS.. => strip::<ROWS, W, FUSED>(a, row, k, b, n, out),
            2.. => strip::<2, W, FUSED>(a, row, k, b, n, out),
            _ => strip::<1, W, FUSED>(a, row, k, b, n, out),
        };
    }
}

/// All columns of R rows from `row` on; returns R.
#[inline(always)]
fn strip<const R: usize, const W: usize, const FUSED: bool>(
    a: Left<'_>,
    row: usize,
    k: usize,
    b: &[f32],
    n: usize,
    out: &mut [f32],
) -> usize {
    let out = &mut out[row * n..(row + R) * n];
    match a {
        Left::Rows(a, stride) => {
            // Cut to length first: no index is checked in the loop.
            let rows: [&[f32]; R] = std::array::from_fn(|r| &a[(row + r) * stride..][..k]);
            tile::<R, W, FUSED>(|j| rows.map(|row| row[j]), k, b, n, out);
        }
        Left::Columns(a, stride) => {
            let column = |j: usize| a[j * stride + row..].first_chunk().copied().unwrap_or([0.0; R]);
            tile::<R, W, FUSED>(column, k, b, n, out);
        }
    }
    R
}

/// R rows, W columns at a time; `left` gives a column of the left operand's rows.
#[inline(always)]
fn tile<const R: usize, const W: usize, const FUSED: bool>(
    left: impl Fn(usize) -> [f32; R],
    k: usize,
    b: &[f32],
    n: usize,
    out: &mut [f32],
) {
    for column in (0..n).step_by(W) {
        let mut sums = [[0.0f32; W]; R];
        for j in 0..k {
            let Some(b) = b[j * n + column..].first_chunk::<W>() else { return };
            let a = left(j);
            for r in 0..R {
                for lane in 0..W {
                    let sum = sums[r][lane];
                    sums[r][lane] = if FUSED { a[r].mul_add(b[lane], sum) } else { sum + a[r] * b[lane] };
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(n)) {
            out[column..column + W].copy_from_slice(sums);
        }
    }
}
