//! The AVX-512 BF16 product: both operands packed into panels of bf16 pairs, then tiles of 12×32 sums in registers.
//!
//! The blocking is Goto and van de Geijn's (2008): a strip of `NC` columns of b and `KC` rows is packed once, then
//! blocks of `MC` rows of a, which stay in the second-level cache while every panel of b passes. `vdpbf16ps`
//! multiplies pairs along k, so a panel holds, per pair of k, one `u32` (two bf16) for each of its rows. Its sums
//! round to nearest even and flush denormals, whatever the thread's floating-point mode.

use super::MatRef;
use bytemuck::{Pod, Zeroable};
use std::arch::x86_64::*;
use std::cell::Cell;
use std::ops::Range;

/// Rows of a tile, and of a panel of a.
const MR: usize = 12;
/// Columns of a tile, and of a panel of b: two vectors.
const NR: usize = 2 * LANES;
/// `u32`s or f32s in a vector.
const LANES: usize = 16;
/// Depth of a block. A panel of a takes `KC`·`MR` bf16 = 12 KiB of a 32 KiB cache; one of b takes 32 KiB and streams
/// from the next cache, at a fifth of what that can deliver. Deeper is better for a large output, which is read and
/// written once per block. Even, so that only the end of k has half a pair.
const KC: usize = 512;
/// Rows of a block of a: `MC`·`KC` bf16 = 240 KiB of a 1 MiB second-level cache.
const MC: usize = 20 * MR;
/// Columns of a strip of b, which bounds the packed copy to 2 MiB.
const NC: usize = 64 * NR;

/// How many columns ahead [`pack_columns`] fetches.
const AHEAD: usize = 4;

/// Sixteen pairs of bf16, the first of each pair in the low half; one cache line.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

thread_local! {
    /// The packed blocks of a and b, kept between calls.
    static BUFFERS: Cell<(Vec<Line>, Vec<Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// Whether this processor runs [`matmul`].
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// out (+)= a·b for checked shapes without a 0; false, and nothing done, where the processor cannot.
pub(super) fn matmul(a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) -> bool {
    if !available() {
        return false;
    }
    // SAFETY: the processor has the features, which is all that `blocks` asks.
    unsafe { blocks(a, b, out, accumulate) }
    true
}

/// The loops over blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn blocks(a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let b = b.t();
    let (mut a_lines, mut b_lines) = BUFFERS.take();
    for k0 in (0..k).step_by(KC) {
        let depth = k0..k.min(k0 + KC);
        let pairs = depth.len().div_ceil(2);
        for j0 in (0..n).step_by(NC) {
            let columns = j0..n.min(j0 + NC);
            pack::<NR>(&b, columns.clone(), depth.clone(), &mut b_lines);
            for i0 in (0..m).step_by(MC) {
                let rows = i0..m.min(i0 + MC);
                pack::<MR>(&a, rows.clone(), depth.clone(), &mut a_lines);
                let a_panels = bytemuck::cast_slice(&a_lines);
                for (j, b_panel) in columns.clone().step_by(NR).zip(b_lines.chunks(panel_len::<NR>(pairs) / LANES)) {
                    for (i, a_panel) in rows.clone().step_by(MR).zip(a_panels.chunks(panel_len::<MR>(pairs))) {
                        let tile = Tile { i, j, m, n, add: accumulate || k0 > 0 };
                        tile.compute(a_panel, b_panel, out);
                    }
                }
            }
        }
    }
    BUFFERS.set((a_lines, b_lines));
}

/// Where a tile lies in the m×n output and whether it adds to what is there.
struct Tile {
    i: usize,
    j: usize,
    m: usize,
    n: usize,
    add: bool,
}

impl Tile {
    /// Multiplies a panel of a by one of b, in registers, and writes the part that lies in the output.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn compute(&self, a_panel: &[u32], b_panel: &[Line], out: &mut [f32]) {
        // The panel of b has exactly the pairs; the spare line of the one of a may look like more.
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        for (a, b) in a_panel.as_chunks::<MR>().0.iter().zip(b_panel.as_chunks::<2>().0) {
            let b = [load_pairs(&b[0]), load_pairs(&b[1])];
            for (sums, &a) in sums.iter_mut().zip(a) {
                let a = as_bf16(_mm512_set1_epi32(a.cast_signed()));
                sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
            }
        }
        let (rows, cols) = (MR.min(self.m - self.i), NR.min(self.n - self.j));
        if rows == MR && cols == NR {
            for (i, sums) in sums.into_iter().enumerate() {
                let at = (self.i + i) * self.n + self.j;
                if let ([low, high], _) = out[at..at + NR].as_chunks_mut::<LANES>() {
                    store_sum(sums[0], low, self.add);
                    store_sum(sums[1], high, self.add);
                }
            }
            return;
        }
        let mut edge = [[[0.0; LANES]; 2]; MR];
        for (edge, sums) in edge.iter_mut().zip(&sums) {
            store_sum(sums[0], &mut edge[0], false);
            store_sum(sums[1], &mut edge[1], false);
        }
        for (i, edge) in edge.iter().enumerate().take(rows) {
            let at = (self.i + i) * self.n + self.j;
            for (out, &sum) in out[at..at + cols].iter_mut().zip(edge.as_flattened()) {
                *out = if self.add { *out + sum } else { sum };
            }
        }
    }
}

/// Distance between panels of `W` rows, in `u32`s, a multiple of a line.
///
/// The spare line takes the last pair's excess and keeps panels from falling into the same sets of a cache.
fn panel_len<const W: usize>(pairs: usize) -> usize {
    (pairs * W).next_multiple_of(LANES) + LANES
}

/// Packs rows × depth of `src` into panels of `W` rows: pair t of row i of a panel is its `u32` number t·`W` + i.
///
/// An odd depth ends with a zero. Rows after the last hold anything, as nobody reads what comes of them. Vectors are
/// stored whole where `W` is not a multiple of their length: the next pair overwrites the excess.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack<const W: usize>(src: &MatRef, rows: Range<usize>, depth: Range<usize>, lines: &mut Vec<Line>) {
    let panel_len = panel_len::<W>(depth.len().div_ceil(2));
    let needed = rows.len().div_ceil(W) * panel_len / LANES;
    if lines.len() < needed {
        lines.resize(needed, Line::zeroed());
    }
    let panels: &mut [u32] = bytemuck::cast_slice_mut(&mut lines[..needed]);
    if src.col_stride == 1 {
        for (panel, first) in panels.chunks_mut(panel_len).zip(rows.clone().step_by(W)) {
            for part in (0..W).step_by(LANES) {
                let begin = rows.end.min(first + part);
                let end = rows.end.min(first + W).min(begin + LANES);
                pack_rows::<W>(src, begin..end, depth.clone(), &mut panel[part..]);
            }
        }
    } else {
        pack_columns::<W>(src, rows, depth, panels);
    }
}

/// Packs at most sixteen rows that are contiguous along k: converts 16×32 squares and transposes their pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_rows<const W: usize>(src: &MatRef, rows: Range<usize>, depth: Range<usize>, to: &mut [u32]) {
    let mut sources: [&[f32]; LANES] = [&[]; LANES];
    for (source, i) in sources.iter_mut().zip(rows) {
        *source = &src.data[i * src.row_stride..][depth.clone()];
    }
    let pairs = depth.len().div_ceil(2);
    for t in (0..pairs).step_by(LANES) {
        let mut square = [_mm512_setzero_si512(); LANES];
        for (row, source) in square.iter_mut().zip(&sources) {
            let source = source.get(2 * t..).unwrap_or_default();
            let (low, high) = source.split_at(source.len().min(LANES));
            prefetch(low, W * src.row_stride);
            prefetch(high, W * src.row_stride);
            *row = to_bf16(load(low), load(high));
        }
        for (t, row) in (t..pairs).zip(transpose(square)) {
            store_pairs(row, &mut to[t * W..]);
        }
    }
}

/// Packs all rows where they are not contiguous along k, two columns at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_columns<const W: usize>(src: &MatRef, rows: Range<usize>, depth: Range<usize>, panels: &mut [u32]) {
    let interleave = interleave_words();
    let panel_len = panel_len::<W>(depth.len().div_ceil(2));
    let mut gathered = [vec![], vec![]];
    for (t, k) in depth.clone().step_by(2).enumerate() {
        let columns = [k, k + 1]
            .map(|k| if k < depth.end { &src.data[k * src.col_stride + rows.start * src.row_stride..] } else { &[] });
        let columns = if src.row_stride == 1 {
            columns
        } else {
            for (to, from) in gathered.iter_mut().zip(columns) {
                let element = |i| from.get(i * src.row_stride).copied().unwrap_or_default();
                to.clear();
                to.extend((0..rows.len()).map(element));
            }
            [&gathered[0][..], &gathered[1][..]]
        };
        let [low, high] = columns;
        for (panel, first) in panels.chunks_mut(panel_len).zip((0..rows.len()).step_by(W)) {
            for part in (0..W).step_by(LANES) {
                let pair = [low, high].map(|column| {
                    let from = column.get(first + part..).unwrap_or_default();
                    prefetch(from, AHEAD * src.col_stride);
                    load(from)
                });
                let pair = _mm512_permutexvar_epi16(interleave, to_bf16(pair[0], pair[1]));
                store_pairs(pair, &mut panel[t * W + part..]);
            }
        }
    }
}

/// Transposes a 16×16 square of `u32`s: four perfect shuffles of its 256 elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(mut square: [__m512i; LANES]) -> [__m512i; LANES] {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for _ in 0..4 {
        let from = square;
        for i in 0..LANES / 2 {
            square[2 * i] = _mm512_permutex2var_epi32(from[i], low, from[i + LANES / 2]);
            square[2 * i + 1] = _mm512_permutex2var_epi32(from[i], high, from[i + LANES / 2]);
        }
    }
    square
}

/// The permutation of 32 words that pairs word t with word t + 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn interleave_words() -> __m512i {
    // A u32 of words (t, t + 16) for t = 0..16.
    let t = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_add_epi32(_mm512_mullo_epi32(t, _mm512_set1_epi32(0x1_0001)), _mm512_set1_epi32(16 << 16))
}

/// Starts to fetch the line `distance` elements after the first of `from`, wherever that is.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(from: &[f32], distance: usize) {
    _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(distance).cast());
}

/// Thirty-two f32s as bf16, `low` first, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn to_bf16(low: __m512, high: __m512) -> __m512i {
    let words = _mm512_cvtne2ps_pbh(high, low);
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(words) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_pairs(line: &Line) -> __m512bh {
    // SAFETY: a line is 64 readable bytes, aligned to 64.
    as_bf16(unsafe { _mm512_load_si512(line.0.as_ptr().cast()) })
}

/// The first sixteen elements, zeros after the last.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(from: &[f32]) -> __m512 {
    if let Some(full) = from.first_chunk::<LANES>() {
        // SAFETY: sixteen f32s are readable.
        return unsafe { _mm512_loadu_ps(full.as_ptr()) };
    }
    if from.is_empty() {
        // Not a load with an empty mask: at an empty slice's address the processor handles that as a fault, slowly.
        return _mm512_setzero_ps();
    }
    let present = (1u16 << from.len()) - 1;
    // SAFETY: the mask keeps the load to the slice's fewer than sixteen elements.
    unsafe { _mm512_maskz_loadu_ps(present, from.as_ptr()) }
}

/// Writes sixteen pairs at the start of `to`.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_pairs(pairs: __m512i, to: &mut [u32]) {
    let to = &mut to[..LANES];
    // SAFETY: the slice has sixteen elements.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pairs) }
}

/// Writes `sums`, added to what is there if `add`.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_sum(sums: __m512, to: &mut [f32; LANES], add: bool) {
    let sums = if add { _mm512_add_ps(load(to), sums) } else { sums };
    // SAFETY: sixteen f32s are writable.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), sums) }
}
