//! Which instructions compute a product.

use super::rows::{self, Target};
use super::{COLS, Format, LANES, Line, ROWS, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Sums of [`ROWS`] rows for a panel's outputs.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[[f32; LANES]; 2]; ROWS]);

impl Sums {
    pub(super) const ZERO: Self = Self([[[0.0; LANES]; 2]; ROWS]);
}

/// A block of a group of rows and of a panel.
pub(super) struct Block<'a> {
    /// Whether it is the first of its panel: sums are set then, whatever they were.
    pub(super) first: bool,
    /// Line by line, of all [`ROWS`] rows.
    pub(super) x: &'a [Line],
    /// Word by word, two lines.
    pub(super) w: &'a [Line],
    /// How many of the rows there are; what is added to the sums of others does not matter.
    pub(super) rows: usize,
    /// Of int8: the rows' scales.
    pub(super) x_scales: Option<&'a [f32; ROWS]>,
    /// Of int8: the outputs' scales, and what the sums of integers start with.
    pub(super) w_scales: Option<(&'a [f32; COLS], &'a [i32; COLS])>,
}

impl Block<'_> {
    /// The scales; ones where there are none, which no kernel asks for.
    #[inline]
    pub(super) fn scales(&self) -> (&[f32; ROWS], &[f32; COLS], &[i32; COLS]) {
        let (w, offsets) = self.w_scales.unwrap_or((&[1.0; COLS], &[0; COLS]));
        (self.x_scales.unwrap_or(&[1.0; ROWS]), w, offsets)
    }
}

/// Sets of instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// A format's kernel for instructions that this processor has: there is no other way to come by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    set: Set,
    format: Format,
}

impl Kernel {
    /// The fastest.
    pub(super) fn best(format: Format) -> Self {
        #[cfg(target_arch = "x86_64")]
        if avx512::available(format) {
            return Self { set: Set::Avx512, format };
        } else if avx2::available() {
            return Self { set: Set::Avx2, format };
        }
        Self { set: Set::Portable, format }
    }

    /// All that run here, the fastest first.
    #[cfg(test)]
    pub(super) fn all(format: Format) -> Vec<Self> {
        let mut all = vec![Self::best(format)];
        #[cfg(target_arch = "x86_64")]
        if avx2::available() {
            all.push(Self { set: Set::Avx2, format });
        }
        all.push(Self { set: Set::Portable, format });
        all.dedup();
        all
    }

    /// Whether it multiplies and adds with one rounding.
    #[cfg(test)]
    pub(super) fn fused(self) -> bool {
        self.set != Set::Portable || portable::FUSED
    }

    /// Whether the processor's own bf16 instruction is used.
    #[cfg(test)]
    pub(super) fn native_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            self.set == Set::Avx512 && self.format == Format::Bf16 && avx512::native_bf16()
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// The format it multiplies.
    pub(super) fn format(self) -> Format {
        self.format
    }

    /// Adds a block's products to `sums`, or to zeros if it is the first.
    #[inline]
    pub(super) fn add(self, block: &Block<'_>, sums: &mut Sums) {
        match self.set {
            // SAFETY: a kernel exists only where the processor has its instructions, as `best` and `all` see to.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512::add(self.format, block, sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::add(self.format, block, sums) },
            Set::Portable => portable::add(self.format, block, sums),
        }
    }

    /// Packs a row of x.
    pub(super) fn pack(self, to: &mut Target<'_>, x: &[f32]) {
        match self.set {
            // SAFETY: as in `add`.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512::pack(to, x, self.format) },
            // SAFETY: as in `add`.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::pack(to, x, self.format) },
            Set::Portable => rows::pack(to, x, self.format),
        }
    }
}
