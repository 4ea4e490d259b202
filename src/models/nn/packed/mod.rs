//! y = x·Wᵀ on the CPU with W packed once, when it is loaded: the products of serving.
//!
//! W `(outputs, inputs)` is cut into panels of 32 outputs. A panel holds, word by word along the inputs, a `u32`
//! for each of its outputs: one f32, two bf16 or four int8, whatever a processor multiplies in one lane. So one loop
//! serves all formats: a word of x is broadcast, multiplied by the panel's words and added to sums in registers.
//! `rows` brings x into the same words, `kernel` picks the instructions when the product is computed: AVX-512, AVX2,
//! or what the compiler makes of plain loops.
//!
//! **What an output depends on** is its row of x and its row of W, bit for bit; neither how many rows there are nor
//! the threads. A sum always runs over the inputs in order. In f32 it is a chain of fused multiply-adds: AVX-512,
//! AVX2 and NEON give the same bits. In int8 sums of a block are integers, scaled and added up in order: the same
//! bits everywhere. In bf16 the order of a pair is the processor's.
//!
//! Memory is that of one copy of W. Learning, which needs W itself, gets it [unpacked](Panels::unpack) for as long as
//! a product takes.

mod kernel;
mod rows;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod quantize;

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::filled;
use super::gemm::GemmError;
use kernel::{Block, Kernel, Sums};
use rows::Rows;

/// `u32`s of a cache line and of an AVX-512 register.
const LANES: usize = 16;
/// Outputs of a panel: two registers.
const COLS: usize = 2 * LANES;
/// Rows of x that are multiplied together: with 2 registers each, 24 of 32 hold sums.
const ROWS: usize = 12;
/// Groups of [`ROWS`] that pass a panel's block one after another. Their sums, 24 KiB, are with it in the first-level
/// cache or near it; more groups read a panel less often.
const GROUPS: usize = 16;
/// Tasks per thread: enough to even out what the threads are interrupted by.
const TASKS: usize = 4;
/// Bytes of weights that are taken to stay in the second-level cache from one product to the next.
const NEAR: usize = 1 << 20;

/// A cache line of words.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LANES]);

/// How weights are kept, and with what precision a product is computed. Sums are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// f32 throughout.
    #[default]
    F32,
    /// Weights, and rows when they are multiplied, rounded to bf16.
    Bf16,
    /// Weights, and rows when they are multiplied, rounded to integers of −127 to 127, each [`BLOCK`] values with a
    /// scale of their own.
    Int8,
}

/// Values along the inputs that share a scale in [`Format::Int8`].
pub const BLOCK: usize = 256;

impl Format {
    /// Values of a word.
    fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }

    /// Bytes that a weight takes.
    #[must_use]
    pub fn bytes(self, outputs: usize, inputs: usize) -> usize {
        let row_lines = row_lines(inputs, self);
        let marks = self.blocks(inputs) * (size_of::<[f32; COLS]>() + size_of::<[i32; COLS]>());
        outputs.div_ceil(COLS) * (row_lines * COLS * size_of::<Line>() + marks)
    }

    /// Blocks with scales in a row of so many values.
    fn blocks(self, inputs: usize) -> usize {
        if self == Self::Int8 { inputs.div_ceil(BLOCK) } else { 0 }
    }

    /// Lines of a row of x that a panel is passed with at a time. Of int8 it is a block with its scale, else what keeps
    /// the panel's share, 16 KiB, in the first-level cache beside that of a group.
    fn depth(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 8,
            Self::Int8 => BLOCK / (LANES * self.per_word()),
        }
    }
}

/// A weight `(outputs, inputs)`, packed.
#[derive(Debug)]
pub struct Panels {
    format: Format,
    outputs: usize,
    inputs: usize,
    /// Panel by panel, word by word, two lines each.
    lines: Vec<Line>,
    /// Of int8, panel by panel and block by block: what 1 stands for.
    scales: Vec<[f32; COLS]>,
    /// Of int8, likewise: −128 · Σ of the block's integers, as rows are stored with 128 added.
    offsets: Vec<[i32; COLS]>,
}

/// A weight that is being packed, some rows at a time: loading never holds all of it in another form beside it.
#[derive(Debug)]
pub struct Packing {
    panels: Panels,
    /// Rows that have been packed.
    filled: usize,
}

impl Packing {
    /// Room for a weight `(outputs, inputs)`.
    #[must_use]
    pub fn new(outputs: usize, inputs: usize, format: Format) -> Self {
        let (panels, blocks) = (outputs.div_ceil(COLS), format.blocks(inputs));
        let lines = vec![Line([0; LANES]); panels * row_lines(inputs, format) * COLS];
        let (scales, offsets) = (vec![[0.0; COLS]; panels * blocks], vec![[0; COLS]; panels * blocks]);
        Self { panels: Panels { format, outputs, inputs, lines, scales, offsets }, filled: 0 }
    }

    /// Packs the next `rows` `(n, inputs)`.
    ///
    /// # Errors
    /// When these are not whole rows, or more than there is room for.
    pub fn push(&mut self, rows: &[f32]) -> Result<(), GemmError> {
        let Panels { format, outputs, inputs, .. } = self.panels;
        let pushed = self.filled..self.filled + rows.len() / inputs.max(1);
        if rows.is_empty() || rows.len() != pushed.len() * inputs || pushed.end > outputs {
            return Err(self.misfit(rows.len()));
        }
        let (row_lines, blocks) = (row_lines(inputs, format), format.blocks(inputs));
        let touched = pushed.start / COLS..pushed.end.div_ceil(COLS);
        let source = |panel: usize| {
            let columns = Panels::columns(panel, &pushed);
            let first = panel * COLS + columns.start - pushed.start;
            (columns.start, rows[first * inputs..(first + columns.len()) * inputs].chunks_exact(inputs))
        };
        let lines = &mut self.panels.lines[touched.start * row_lines * COLS..touched.end * row_lines * COLS];
        let targets = touched.clone().into_par_iter().zip(lines.par_chunks_mut(row_lines * COLS));
        if format == Format::Int8 {
            let blocks_of = touched.start * blocks..touched.end * blocks;
            let scales = self.panels.scales[blocks_of.clone()].par_chunks_mut(blocks);
            let marks = scales.zip(self.panels.offsets[blocks_of].par_chunks_mut(blocks));
            targets.zip(marks).for_each(|((panel, target), (scales, offsets))| {
                let (first, rows) = source(panel);
                for (column, row) in (first..).zip(rows) {
                    quantize::column(row, column, target, scales, offsets);
                }
            });
        } else {
            targets.for_each(|(panel, target)| {
                let (first, rows) = source(panel);
                for (column, row) in (first..).zip(rows) {
                    for (word, values) in row.chunks(format.per_word()).enumerate() {
                        *word_mut(target, word, column) = rows::word(values, format);
                    }
                }
            });
        }
        self.filled = pushed.end;
        Ok(())
    }

    /// The packed weight.
    ///
    /// # Errors
    /// When rows are missing.
    pub fn finish(self) -> Result<Panels, GemmError> {
        if self.filled < self.panels.outputs || self.filled == 0 {
            return Err(self.misfit(self.filled * self.panels.inputs));
        }
        Ok(self.panels)
    }

    fn misfit(&self, len: usize) -> GemmError {
        GemmError::View { rows: self.panels.outputs, cols: self.panels.inputs, strides: (self.panels.inputs, 1), len }
    }
}

impl Panels {
    /// Packs `weight` `(outputs, inputs)`, row by row.
    ///
    /// # Errors
    /// When it does not have that many values.
    pub fn pack(weight: &[f32], outputs: usize, inputs: usize, format: Format) -> Result<Self, GemmError> {
        if outputs.checked_mul(inputs) != Some(weight.len()) || weight.is_empty() {
            return Err(GemmError::View { rows: outputs, cols: inputs, strides: (inputs, 1), len: weight.len() });
        }
        let mut packing = Packing::new(outputs, inputs, format);
        packing.push(weight)?;
        packing.finish()
    }

    /// How it is kept.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns of the weight.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// Rows `outputs` of the weight as they are multiplied `(outputs, inputs)`: exact, rounded to bf16, or the integers
    /// times their scales.
    ///
    /// # Errors
    /// When there are no such rows.
    pub fn unpack(&self, outputs: Range<usize>) -> Result<Vec<f32>, GemmError> {
        self.check(&outputs)?;
        let mut out = vec![0.0; outputs.len() * self.inputs];
        let mut rest = &mut out[..];
        for panel in outputs.start / COLS..outputs.end.div_ceil(COLS) {
            let columns = Self::columns(panel, &outputs);
            let (rows, after) = rest.split_at_mut(columns.len() * self.inputs);
            self.unpack_panel(panel, columns, rows);
            rest = after;
        }
        Ok(out)
    }

    /// Some columns of a panel, row by row. A strip of a line of words at a time, which stays in the first-level cache
    /// while its rows are read across.
    fn unpack_panel(&self, panel: usize, columns: Range<usize>, out: &mut [f32]) {
        let (lines, scales, _) = self.parts(panel);
        let strip = LANES * self.format.per_word();
        for (line, words) in lines.chunks_exact(COLS).enumerate() {
            let scales = scales.get(line / self.format.depth());
            for (column, row) in columns.clone().zip(out.chunks_exact_mut(self.inputs)) {
                let values = line * strip..self.inputs.min((line + 1) * strip);
                let scale = scales.map_or(1.0, |scales| scales[column]);
                rows::unpack(words, column, self.format, scale, &mut row[values]);
            }
        }
    }

    /// x `(rows, inputs)` times rows `outputs` of the weight: `(rows, outputs)`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn product(&self, x: &[f32], rows: usize, outputs: Range<usize>) -> Result<Vec<f32>, GemmError> {
        self.product_with(Kernel::best(self.format), x, rows, outputs)
    }

    fn product_with(
        &self,
        kernel: Kernel,
        x: &[f32],
        rows: usize,
        outputs: Range<usize>,
    ) -> Result<Vec<f32>, GemmError> {
        self.check(&outputs)?;
        if rows.checked_mul(self.inputs) != Some(x.len()) {
            return Err(GemmError::View { rows, cols: self.inputs, strides: (self.inputs, 1), len: x.len() });
        }
        let len = rows * outputs.len();
        // Not filled with zeros first, which would cost as much as writing the result.
        let mut out = Vec::with_capacity(len);
        if len > 0 {
            let to = Output { start: out.as_mut_ptr(), len, width: outputs.len() };
            self.product_into(kernel, &Rows::pack(x, self.inputs, kernel), outputs, &to);
        }
        // SAFETY: every column of every row has been written: the strips cover all panels that have any of `outputs`,
        // and the groups all rows.
        unsafe { out.set_len(len) };
        Ok(out)
    }

    /// Writes all columns of all rows, in tiles of up to [`GROUPS`] groups and some panels.
    fn product_into(&self, kernel: Kernel, x: &Rows, outputs: Range<usize>, out: &Output) {
        let panels = outputs.start / COLS..outputs.end.div_ceil(COLS);
        let bands = x.groups().div_ceil(GROUPS);
        // Rows are divided first: what a thread writes is then close together, and what it reads of x its own.
        let strips = (TASKS * rayon::current_num_threads()).div_ceil(bands).min(panels.len());
        let (band, strip) = (x.groups().div_ceil(bands), panels.len().div_ceil(strips));
        let bands = (0..x.groups()).step_by(band).map(|at| at..x.groups().min(at + band));
        let strips = panels.clone().step_by(strip).map(|at| at..panels.end.min(at + strip));
        let tiles: Vec<_> = bands.flat_map(|groups| strips.clone().map(move |strip| (groups.clone(), strip))).collect();
        tiles.into_par_iter().for_each(|(groups, strip)| {
            let mut sums = [const { MaybeUninit::uninit() }; GROUPS];
            let sums = filled(&mut sums[..groups.len()], Sums::ZERO);
            let rows = groups.start * ROWS..x.len().min(groups.end * ROWS);
            for panel in strip {
                let columns = Self::columns(panel, &outputs);
                let at = panel * COLS + columns.start - outputs.start;
                self.multiply(kernel, panel, x, groups.clone(), sums, |rows| {
                    rows.for_each(|row| out.prefetch(row, at))
                });
                // SAFETY: tiles have no outputs in common, so nobody else writes these; the rows are among the output's,
                // and the columns lie within its width.
                unsafe { out.write(rows.clone(), at, sums, columns) };
            }
        });
    }

    /// The sums of a panel's outputs for groups of rows; `soon` is told of a group's rows before the last of its sums.
    fn multiply(
        &self,
        kernel: Kernel,
        panel: usize,
        x: &Rows,
        groups: Range<usize>,
        sums: &mut [Sums],
        soon: impl Fn(Range<usize>),
    ) {
        let (lines, scales, offsets) = self.parts(panel);
        let depth = self.format.depth();
        // With few rows memory is what takes the time, and the processor's own prefetching does as well.
        let ahead = self.lines.len() * size_of::<Line>() > NEAR && groups.len() > 2;
        for (block, w) in lines.chunks(depth * COLS).enumerate() {
            let range = block * depth..block * depth + w.len() / COLS;
            let next = lines.get(range.end * COLS..).unwrap_or_default();
            let share = next.len().min(depth * COLS).div_ceil(groups.len());
            let mut next = next.chunks(share.max(1)).take(if ahead { groups.len() } else { 0 });
            for (group, sums) in groups.clone().zip(&mut *sums) {
                let block = Block {
                    first: block == 0,
                    x: x.lines(group, range.clone()),
                    w,
                    rows: x.rows(group),
                    x_scales: x.scales(group, block),
                    w_scales: scales.get(block).zip(offsets.get(block)),
                };
                if range.end * COLS == lines.len() {
                    soon(group * ROWS..group * ROWS + block.rows);
                }
                kernel.add(&block, sums);
                next.next().unwrap_or_default().iter().for_each(|line| prefetch(line));
            }
        }
    }

    /// A panel's lines, scales and offsets.
    fn parts(&self, panel: usize) -> (&[Line], &[[f32; COLS]], &[[i32; COLS]]) {
        let row_lines = row_lines(self.inputs, self.format);
        let blocks = self.format.blocks(self.inputs);
        let lines = &self.lines[panel * row_lines * COLS..][..row_lines * COLS];
        let blocks = panel * blocks..(panel + 1) * blocks;
        (lines, &self.scales[blocks.clone()], &self.offsets[blocks])
    }

    /// A panel's columns that are among `outputs`.
    fn columns(panel: usize, outputs: &Range<usize>) -> Range<usize> {
        let first = panel * COLS;
        outputs.start.saturating_sub(first)..COLS.min(outputs.end - first)
    }

    fn check(&self, outputs: &Range<usize>) -> Result<(), GemmError> {
        if outputs.start <= outputs.end && outputs.end <= self.outputs {
            return Ok(());
        }
        let len = self.outputs * self.inputs;
        Err(GemmError::View { rows: outputs.end, cols: self.inputs, strides: (self.inputs, 1), len })
    }
}

/// Lines of a row of so many values, the last one filled up with zeros.
fn row_lines(inputs: usize, format: Format) -> usize {
    inputs.div_ceil(LANES * format.per_word())
}

/// The word of a panel that belongs to an output.
fn word_mut(panel: &mut [Line], word: usize, column: usize) -> &mut u32 {
    &mut panel[word * 2 + column / LANES].0[column % LANES]
}

/// An output `(rows, width)` whose columns are written by several threads.
struct Output {
    start: *mut f32,
    len: usize,
    width: usize,
}

// SAFETY: it is only written through, by `write`, whose callers keep to columns of their own.
unsafe impl Sync for Output {}

impl Output {
    /// Writes some columns of sums, row after row, from column `at` on.
    ///
    /// # Safety
    /// No other thread may write there, the rows must exist, and the columns lie within the width.
    unsafe fn write(&self, rows: Range<usize>, at: usize, sums: &[Sums], columns: Range<usize>) {
        debug_assert!(at + columns.len() <= self.width && rows.end * self.width <= self.len);
        for (row, sums) in rows.zip(sums.iter().flat_map(|sums| &sums.0)) {
            let sums = sums.as_flattened();
            // SAFETY: the caller keeps to existing rows and to columns within the width, so this is inside the output,
            // whose memory `product_with` keeps for as long as this exists; `sums` are on a thread's stack.
            unsafe {
                let to = self.start.add(row * self.width + at);
                match sums.first_chunk::<COLS>() {
                    // Nearly always; a length that is known needs no call.
                    Some(all) if columns.len() == COLS => to.cast::<[f32; COLS]>().write(*all),
                    _ => std::ptr::copy_nonoverlapping(sums[columns.clone()].as_ptr(), to, columns.len()),
                }
            }
        }
    }

    /// Brings the lines of a panel's columns of a row near: rows are far apart, so that a processor does not see by itself
    /// where it is written next.
    #[inline]
    fn prefetch(&self, row: usize, at: usize) {
        let first = self.start.wrapping_add(row * self.width + at);
        prefetch(first);
        prefetch(first.wrapping_add(LANES));
    }
}

/// Brings the cache line of a value near; a hint, whatever the address.
#[inline]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 processor has the instruction, which does nothing but fetch, and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
