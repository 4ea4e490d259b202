//! Matrix products for training on a CPU: f32 in and out, bf16 factors where the processor multiplies them natively.
//!
//! With AVX-512 BF16 both operands are rounded to bf16 (nearest even) and products are summed in f32, about twice as
//! fast as f32: the precision mixed-precision training uses. Elsewhere the product is exact f32. Serving promises exact
//! f32: of this it uses [`matmul_exact`] only. One thread per call; callers split work over threads. The result of an
//! element depends on its row, its column and the kernel only, so it is the same in every batch.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::sync::OnceLock;

/// A strided view of an f32 matrix: element (i, j) is `data[i * row_stride + j * col_stride]`.
///
/// Products are fastest where either stride is 1.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Distance between vertical neighbours, in elements.
    pub row_stride: usize,
    /// Distance between horizontal neighbours, in elements.
    pub col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A contiguous row-major matrix.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, over the same data.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Checks that every element lies in `data`.
    fn check(&self) -> Result<(), GemmError> {
        let last = |n: usize, stride: usize| n.saturating_sub(1).checked_mul(stride);
        let needed = match (last(self.rows, self.row_stride), last(self.cols, self.col_stride)) {
            _ if self.rows == 0 || self.cols == 0 => Some(0),
            (Some(down), Some(across)) => down.checked_add(across).and_then(|index| index.checked_add(1)),
            _ => None,
        };
        match needed {
            Some(needed) if needed <= self.data.len() => Ok(()),
            _ => Err(GemmError::View {
                rows: self.rows,
                cols: self.cols,
                strides: (self.row_stride, self.col_stride),
                len: self.data.len(),
            }),
        }
    }
}

/// Operands that do not form a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GemmError {
    /// A view reaches outside its data.
    #[error("a {rows}×{cols} matrix with strides {strides:?} does not fit in {len} elements; check its shape")]
    View {
        /// Rows of the view.
        rows: usize,
        /// Columns of the view.
        cols: usize,
        /// Row and column stride.
        strides: (usize, usize),
        /// Elements present.
        len: usize,
    },
    /// The left matrix's columns do not pair with the right one's rows.
    #[error("the left matrix has {left} columns but the right one {right} rows; they must be equal")]
    Inner {
        /// Columns on the left.
        left: usize,
        /// Rows on the right.
        right: usize,
    },
    /// The output has another number of elements than the product.
    #[error("the output has {len} elements but the product is {rows}×{cols}; give it exactly that many")]
    Output {
        /// Rows of the product.
        rows: usize,
        /// Columns of the product.
        cols: usize,
        /// Elements of the output.
        len: usize,
    },
}

/// How this machine multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// bf16 factors and f32 sums with AVX-512 BF16 (AMD since Zen 4, Intel since Cooper Lake).
    Avx512Bf16,
    /// f32 throughout.
    F32,
}

/// The kernel that [`matmul`] uses, decided once per process.
#[must_use]
pub fn kernel() -> Kernel {
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    *KERNEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            return Kernel::Avx512Bf16;
        }
        Kernel::F32
    })
}

/// out = a·b, or out += a·b with `accumulate`; a is m×k, b is k×n and out m×n, row-major and contiguous.
///
/// # Errors
/// When the shapes do not match or a view reaches outside its data; `out` is then untouched.
pub fn matmul(a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) -> Result<(), GemmError> {
    matmul_with(kernel(), a, b, out, accumulate)
}

/// [`matmul`] in f32 throughout, whatever the machine: for serving.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_exact(a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) -> Result<(), GemmError> {
    matmul_with(Kernel::F32, a, b, out, accumulate)
}

fn matmul_with(kernel: Kernel, a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) -> Result<(), GemmError> {
    a.check()?;
    b.check()?;
    if a.cols != b.rows {
        return Err(GemmError::Inner { left: a.cols, right: b.rows });
    }
    if a.rows.checked_mul(b.cols) != Some(out.len()) {
        return Err(GemmError::Output { rows: a.rows, cols: b.cols, len: out.len() });
    }
    if a.cols == 0 && !accumulate {
        out.fill(0.0);
    }
    if a.cols == 0 || out.is_empty() {
        return Ok(());
    }
    let done = match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512Bf16 => avx512::matmul(a, b, out, accumulate),
        _ => false,
    };
    if !done {
        matmul_f32(a, b, out, accumulate);
    }
    Ok(())
}

/// The exact product, by the `gemm` crate. Shapes have been checked and no dimension is 0.
fn matmul_f32(a: MatRef, b: MatRef, out: &mut [f32], accumulate: bool) {
    let stride = |s: usize| isize::try_from(s).unwrap_or(isize::MAX);
    // SAFETY: `MatRef::check` has bounded every element that the strides reach; `out` holds m×n elements with row
    // stride n and is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            stride(b.cols),
            accumulate,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests;
