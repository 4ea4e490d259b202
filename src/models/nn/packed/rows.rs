//! Rows of x in the words of a format: groups of [`ROWS`] rows, line by line of all of them, so that a kernel finds
//! everything at fixed distances from one address.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::Kernel;
use super::{Format, LANES, Line, ROWS, filled, quantize, row_lines};

/// Values beyond which packing is spread over threads.
const GRAIN: usize = 1 << 14;

/// Packed rows.
pub(super) struct Rows {
    rows: usize,
    row_lines: usize,
    blocks: usize,
    /// Group by group; in it line by line, of every row.
    lines: Vec<Line>,
    /// Of int8: group by group, block by block.
    scales: Vec<[f32; ROWS]>,
}

impl Rows {
    /// Packs x `(rows, inputs)`, not empty.
    pub(super) fn pack(x: &[f32], inputs: usize, kernel: Kernel) -> Self {
        let format = kernel.format();
        let (rows, row_lines) = (x.len() / inputs, row_lines(inputs, format));
        let (groups, blocks) = (rows.div_ceil(ROWS), format.blocks(inputs));
        let len = groups * row_lines * ROWS;
        let mut lines = Vec::with_capacity(len);
        let mut scales = vec![[0.0; ROWS]; groups * blocks];
        // A format without scales has empty ones, so that all formats go one way.
        let mut unscaled = vec![[[0.0; ROWS]; 0]; if blocks == 0 { groups } else { 0 }];
        let marks = scales.chunks_mut(blocks.max(1)).chain(unscaled.iter_mut().map(|none| &mut none[..]));
        let chunks = lines.spare_capacity_mut()[..len].chunks_mut(row_lines * ROWS);
        let tasks: Vec<_> = x.chunks(ROWS * inputs).zip(chunks).zip(marks).collect();
        let least = GRAIN.div_ceil(ROWS * inputs);
        tasks.into_par_iter().with_min_len(least).for_each(|((x, lines), scales)| {
            let lines = filled(lines, Line([0; LANES]));
            for (i, x) in x.chunks_exact(inputs).enumerate() {
                kernel.pack(&mut Target { lines: &mut *lines, scales: &mut *scales, row: i }, x);
            }
        });
        // SAFETY: there is a chunk for every group of rows, and `filled` has set every line of it.
        unsafe { lines.set_len(len) };
        Self { rows, row_lines, blocks, lines, scales }
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Rows of a group.
    pub(super) fn rows(&self, group: usize) -> usize {
        ROWS.min(self.rows - group * ROWS)
    }

    /// Some of a group's lines.
    pub(super) fn lines(&self, group: usize, lines: Range<usize>) -> &[Line] {
        let start = (group * self.row_lines + lines.start) * ROWS;
        &self.lines[start..start + lines.len() * ROWS]
    }

    /// A group's scales of a block, if the format has any.
    pub(super) fn scales(&self, group: usize, block: usize) -> Option<&[f32; ROWS]> {
        self.scales.get(group * self.blocks + block)
    }
}

/// Where a row of a group goes.
pub(super) struct Target<'a> {
    lines: &'a mut [Line],
    scales: &'a mut [[f32; ROWS]],
    row: usize,
}

/// Packs a row. Always inlined, so that it is compiled for the instructions of whoever calls it.
#[inline(always)]
pub(super) fn pack(to: &mut Target<'_>, x: &[f32], format: Format) {
    let values = LANES * format.per_word();
    match format {
        Format::F32 => {
            let (full, tail) = x.as_chunks::<LANES>();
            for (line, x) in to.lines.chunks_exact_mut(ROWS).zip(full) {
                line[to.row] = Line(x.map(f32::to_bits));
            }
            last(to, full.len(), tail, format);
        }
        Format::Bf16 => {
            let (full, tail) = x.as_chunks::<{ 2 * LANES }>();
            for (line, x) in to.lines.chunks_exact_mut(ROWS).zip(full) {
                // All halves first, in their order: a compiler makes a few narrowing instructions of that.
                let mut halves = [0; 2 * LANES];
                for (half, &x) in halves.iter_mut().zip(x) {
                    *half = (bf16(x) & 0xFFFF) as u16;
                }
                for (word, [first, second]) in line[to.row].0.iter_mut().zip(halves.as_chunks().0) {
                    *word = u32::from(*first) | u32::from(*second) << 16;
                }
            }
            last(to, full.len(), tail, format);
        }
        Format::Int8 => {
            let depth = format.depth();
            let blocks = to.lines.chunks_mut(depth * ROWS).zip(x.chunks(depth * values));
            for ((lines, x), scales) in blocks.zip(to.scales.iter_mut()) {
                scales[to.row] = quantize::row(x, lines.chunks_exact_mut(ROWS).map(|line| &mut line[to.row]));
            }
        }
    }
}

/// What does not fill a line.
#[inline(always)]
fn last(to: &mut Target<'_>, line: usize, x: &[f32], format: Format) {
    for (t, values) in x.chunks(format.per_word()).enumerate() {
        to.lines[line * ROWS + to.row].0[t] = word(values, format);
    }
}

/// One word of f32 or bf16; missing values are zeros.
pub(super) fn word(values: &[f32], format: Format) -> u32 {
    let value = |i: usize| values.get(i).copied().unwrap_or_default();
    match format {
        Format::Bf16 => bf16(value(0)) | bf16(value(1)) << 16,
        _ => value(0).to_bits(),
    }
}

/// Rounds to nearest even, as the upper half of an f32; a NaN stays one.
#[inline(always)]
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// The two values of a word of bf16.
#[inline(always)]
pub(super) fn halves(word: u32) -> [f32; 2] {
    [f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000)]
}

/// The values of one output in a line's worth of a panel's words.
pub(super) fn unpack(words: &[Line], column: usize, format: Format, scale: f32, out: &mut [f32]) {
    let words = words.iter().skip(column / LANES).step_by(2).map(|line| line.0[column % LANES]);
    for (word, out) in words.zip(out.chunks_mut(format.per_word())) {
        match format {
            Format::F32 => out[0] = f32::from_bits(word),
            Format::Bf16 => out.copy_from_slice(&halves(word)[..out.len()]),
            Format::Int8 => {
                for (out, byte) in out.iter_mut().zip(word.to_le_bytes()) {
                    *out = f32::from(byte.cast_signed()) * scale;
                }
            }
        }
    }
}
