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

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::GemmError;
use kernel::{Block, Kernel, Sums};
use rows::Rows;

/// `u32`s of a cache line and of an AVX-512 register.
const LANES: usize = 16;
/// Outputs of a panel: two registers.
const COLS: usize = 2 * LANES;
/// Rows of x that are multiplied together: with 2 registers each, 24 of 32 hold sums.
const ROWS: usize = 12;
/// Groups of [`ROWS`] that pass a panel's block while it is in the second-level cache: they share that cache (1 MiB)
/// with it, 480 KiB to 128.
const GROUPS: usize = 10;
/// Tasks per thread: enough to even out what the threads are interrupted by.
const TASKS: usize = 4;

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
    /// a panel's share in the second-level cache.
    fn depth(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => 64,
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

    /// Writes all columns of all rows.
    fn product_into(&self, kernel: Kernel, x: &Rows, outputs: Range<usize>, out: &Output) {
        let panels = outputs.start / COLS..outputs.end.div_ceil(COLS);
        let strip = panels.len().div_ceil(TASKS * rayon::current_num_threads()).max(1);
        let strips: Vec<_> = panels.clone().step_by(strip).map(|at| at..panels.end.min(at + strip)).collect();
        strips.into_par_iter().for_each(|strip| {
            let mut sums = [Sums::ZERO; GROUPS];
            for group in (0..x.groups()).step_by(GROUPS) {
                let groups = group..x.groups().min(group + GROUPS);
                for panel in strip.clone() {
                    self.multiply(kernel, panel, x, groups.clone(), &mut sums);
                    let columns = Self::columns(panel, &outputs);
                    let at = panel * COLS + columns.start - outputs.start;
                    for (row, sums) in (group * ROWS..x.len()).zip(sums.iter().flat_map(|sums| &sums.0)) {
                        let sums = &sums.as_flattened()[columns.clone()];
                        // SAFETY: strips have no panel in common, so nobody else writes these columns; the row is one
                        // of the output's, and the columns lie within its width.
                        unsafe { out.write(row, at, sums) };
                    }
                }
            }
        });
    }

    /// The sums of a panel's outputs for groups of rows.
    fn multiply(&self, kernel: Kernel, panel: usize, x: &Rows, groups: Range<usize>, sums: &mut [Sums; GROUPS]) {
        let (lines, scales, offsets) = self.parts(panel);
        let depth = self.format.depth();
        sums[..groups.len()].fill(Sums::ZERO);
        for (block, w) in lines.chunks(depth * COLS).enumerate() {
            let range = block * depth..block * depth + w.len() / COLS;
            for (group, sums) in groups.clone().zip(sums.iter_mut()) {
                let block = Block {
                    x: x.lines(group, range.clone()),
                    w,
                    rows: x.rows(group),
                    x_scales: x.scales(group, block),
                    w_scales: scales.get(block).zip(offsets.get(block)),
                };
                kernel.add(&block, sums);
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
    /// Writes `values` at column `at` of a row.
    ///
    /// # Safety
    /// No other thread may write to these columns, and they must lie within the width.
    unsafe fn write(&self, row: usize, at: usize, values: &[f32]) {
        let first = row * self.width + at;
        debug_assert!(at + values.len() <= self.width && first + values.len() <= self.len);
        // SAFETY: the caller keeps to an existing row and to columns within the width, so this is inside the output,
        // whose memory `product_with` keeps for as long as this exists; `values` are on a thread's stack.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(first), values.len()) }
    }
}

#[cfg(test)]
mod speed;
#[cfg(test)]
mod tests;
