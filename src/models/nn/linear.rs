//! Linear layers: y = x · Wᵀ (+ b), with W stored `(out, in)` as checkpoints do, or packed to be served.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::gemm::{self, MatRef};
use super::packed::{Format, Panels};
use super::timing::timed;
use super::{pause, slice};

/// How products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As the weights are kept: what is served.
    #[default]
    Exact,
    /// Operands rounded to bf16, sums in f32: twice as fast on CPUs with AVX-512 BF16; for training. Packed weights are
    /// unpacked for as long as a product takes.
    Mixed,
}

/// How products are computed, and how the weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Products {
    /// How products are computed.
    pub precision: Precision,
    /// How weights are packed; `None` keeps them as tensors, which may be variables. On a GPU they always are tensors.
    pub format: Option<Format>,
}

impl From<Precision> for Products {
    fn from(precision: Precision) -> Self {
        Self { precision, format: None }
    }
}

/// A linear layer.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Weight {
    Tensor(Tensor),
    Packed(Rows),
}

/// Rows of a packed weight.
#[derive(Debug, Clone)]
struct Rows {
    panels: Arc<Panels>,
    rows: Range<usize>,
}

impl Linear {
    /// From a weight `(out, in)` and, perhaps, a bias `(out)`. What is packed shares nothing with `weight`.
    ///
    /// # Errors
    /// When the weight is to be packed and is not a matrix of f32.
    pub fn new(weight: &Tensor, bias: Option<Tensor>, products: Products) -> Result<Self> {
        let weight = match products.format.filter(|_| weight.device().is_cpu()) {
            Some(format) => Weight::Packed(Rows::pack(weight, format)?),
            None => Weight::Tensor(weight.clone()),
        };
        Ok(Self { weight, bias, precision: products.precision })
    }

    /// From a packed weight `(out, in)` and, perhaps, a bias `(out)`.
    #[must_use]
    pub fn packed(panels: Panels, bias: Option<Tensor>, precision: Precision) -> Self {
        Self { weight: Weight::Packed(Rows::all(panels)), bias, precision }
    }

    /// The same weights, computed in another way.
    #[must_use]
    pub fn with_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// The layer of some of the outputs, its weights shared.
    ///
    /// # Errors
    /// When there are no such outputs.
    pub fn narrow(&self, outputs: Range<usize>) -> Result<Self> {
        let narrowed = |t: &Tensor| t.narrow(0, outputs.start, outputs.len());
        let weight = match &self.weight {
            Weight::Tensor(weight) => Weight::Tensor(narrowed(weight)?),
            // Whether there are such rows is checked by the product.
            Weight::Packed(packed) => {
                let rows = packed.rows.start + outputs.start..packed.rows.start + outputs.end;
                Weight::Packed(Rows { panels: Arc::clone(&packed.panels), rows })
            }
        };
        Ok(Self { weight, bias: self.bias.as_ref().map(narrowed).transpose()?, precision: self.precision })
    }

    /// `(rows, in)` to `(rows, out)`.
    ///
    /// # Errors
    /// When the widths differ or the device fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        pause::point();
        let y = timed(
            |t| &mut t.matmul,
            || match (&self.weight, self.precision) {
                (Weight::Packed(weight), precision) => {
                    x.contiguous()?.apply_op1(PackedLinear { weight: weight.clone(), precision })
                }
                (Weight::Tensor(weight), Precision::Exact) => exact(x, weight),
                (Weight::Tensor(weight), Precision::Mixed) => x.contiguous()?.apply_op2(weight, MixedLinear),
            },
        )?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl Rows {
    fn all(panels: Panels) -> Self {
        Self { rows: 0..panels.shape().0, panels: Arc::new(panels) }
    }

    fn pack(weight: &Tensor, format: Format) -> Result<Self> {
        let (out, width) = weight.dims2()?;
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("linear: only weights on the CPU are packed");
        };
        let panels = Panels::pack(slice(storage, layout, "linear weight")?, out, width, format);
        Ok(Self::all(panels.map_err(candle_core::Error::wrap)?))
    }

    fn inputs(&self) -> usize {
        self.panels.shape().1
    }

    /// The rows `(rows, in)` in f32.
    fn unpack(&self) -> Result<Vec<f32>> {
        self.panels.unpack(self.rows.clone()).map_err(candle_core::Error::wrap)
    }
}

/// x `(rows, in)` to x · Wᵀ, W packed and frozen.
struct PackedLinear {
    weight: Rows,
    precision: Precision,
}

impl CustomOp1 for PackedLinear {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, out) = (matrix(x, layout)?, self.weight.rows.len());
        if self.precision == Precision::Mixed {
            let weight = self.weight.unpack()?;
            return product(x, MatRef::new(&weight, out, self.weight.inputs()).t(), Precision::Mixed);
        }
        let y = self.weight.panels.product(x.data, x.rows, self.weight.rows.clone());
        Ok((CpuStorage::F32(y.map_err(candle_core::Error::wrap)?), Shape::from((x.rows, out))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        pause::point();
        let op = PackedLinearGrad { weight: self.weight.clone(), precision: self.precision };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&op)?))
    }
}

/// grad `(rows, out)` to grad · W, with what the integers or bf16 stand for as W.
struct PackedLinearGrad {
    weight: Rows,
    precision: Precision,
}

impl CustomOp1 for PackedLinearGrad {
    fn name(&self) -> &'static str {
        "packed-linear-grad"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let weight = self.weight.unpack()?;
        let weight = MatRef::new(&weight, self.weight.rows.len(), self.weight.inputs());
        product(matrix(grad, layout)?, weight, self.precision)
    }
}

/// Outputs up to which a product takes another kernel, whose last bits differ (`gemm` 0.19, 16 × 16).
const FEW_OUTPUTS: usize = 256;

/// One row takes a matrix–vector kernel, and few outputs one of their own. Empty rows below keep every row's result
/// independent of how many ride along.
fn exact(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, w) = (x.dim(0)?, weight.t()?);
    let least = (FEW_OUTPUTS / weight.dim(0)?.max(1) + 1).max(2);
    if rows < least {
        return x.pad_with_zeros(0, 0, least - rows)?.matmul(&w)?.narrow(0, 0, rows);
    }
    x.matmul(&w)
}

/// x `(rows, in)`, W `(out, in)` to x · Wᵀ.
struct MixedLinear;

impl CustomOp2 for MixedLinear {
    fn name(&self) -> &'static str {
        "mixed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        product(matrix(x, xl)?, matrix(w, wl)?.t(), Precision::Mixed)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        pause::point();
        let grad = grad.contiguous()?;
        let dx = grad.apply_op2_no_bwd(w, &MixedProduct { transpose_left: false })?;
        // A frozen weight costs nothing: only the input's gradient is computed.
        let dw = if w.track_op() {
            Some(grad.apply_op2_no_bwd(&x.contiguous()?, &MixedProduct { transpose_left: true })?)
        } else {
            None
        };
        Ok((Some(dx), dw))
    }
}

/// a · b, or aᵀ · b.
struct MixedProduct {
    transpose_left: bool,
}

impl CustomOp2 for MixedProduct {
    fn name(&self) -> &'static str {
        "mixed-product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let a = matrix(a, al)?;
        product(if self.transpose_left { a.t() } else { a }, matrix(b, bl)?, Precision::Mixed)
    }
}

fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<MatRef<'a>> {
    match *layout.dims() {
        [rows, cols] => Ok(MatRef::new(slice(storage, layout, "linear")?, rows, cols)),
        ref dims => candle_core::bail!("linear: expected a matrix, got {dims:?}"),
    }
}

fn product(a: MatRef<'_>, b: MatRef<'_>, precision: Precision) -> Result<(CpuStorage, Shape)> {
    let (rows, cols) = (a.rows, b.cols);
    let mut out = vec![0.0; rows * cols];
    let done = match precision {
        Precision::Exact => gemm::matmul_exact(a, b, &mut out, false),
        Precision::Mixed => gemm::matmul(a, b, &mut out, false),
    };
    done.map_err(candle_core::Error::wrap)?;
    Ok((CpuStorage::F32(out), Shape::from((rows, cols))))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Tensors, and every format.
    fn all() -> [Products; 4] {
        [None, Some(Format::F32), Some(Format::Bf16), Some(Format::Int8)]
            .map(|format| Products { precision: Precision::Exact, format })
    }

    #[test]
    fn a_row_does_not_know_its_neighbours() -> Result<()> {
        for (k, n) in [(192, 192), (192, 384), (192, 1024), (512, 192), (192, 1600), (64, 64), (192, 16), (4096, 300)] {
            let weight = Tensor::randn(0f32, 1.0, (n, k), &Device::Cpu)?;
            let x = Tensor::randn(0f32, 1.0, (700, k), &Device::Cpu)?;
            for products in all() {
                let layer = Linear::new(&weight, None, products)?;
                let all = layer.forward(&x)?.to_vec2::<f32>()?;
                for rows in [1, 2, 3, 7, 31, 64, 65, 129, 500] {
                    let some = layer.forward(&x.narrow(0, 0, rows)?.contiguous()?)?.to_vec2::<f32>()?;
                    assert!(some.iter().zip(&all).all(|(a, b)| a == b), "{rows} rows of {k}×{n}, {products:?}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn some_outputs_are_those_of_all() -> Result<()> {
        let weight = Tensor::randn(0f32, 1.0, (100, 64), &Device::Cpu)?;
        let bias = Tensor::randn(0f32, 1.0, 100, &Device::Cpu)?;
        let x = Tensor::randn(0f32, 1.0, (300, 64), &Device::Cpu)?;
        for products in all() {
            let layer = Linear::new(&weight, Some(bias.clone()), products)?;
            let all = layer.forward(&x)?;
            let some = layer.narrow(20..90)?.narrow(5..45)?.forward(&x)?;
            assert_eq!(some.to_vec2::<f32>()?, all.narrow(1, 25, 40)?.to_vec2::<f32>()?, "{products:?}");
        }
        assert!(Linear::new(&weight, None, all()[1])?.narrow(90..101)?.forward(&x).is_err());
        Ok(())
    }

    #[test]
    fn the_gradient_of_a_packed_layer_is_that_of_the_weights_it_stands_for() -> Result<()> {
        let weight = Tensor::randn(0f32, 0.15, (40, 52), &Device::Cpu)?;
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (33, 52), &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 0.2, (33, 30), &Device::Cpu)?;
        for precision in [Precision::Exact, Precision::Mixed] {
            for format in [Format::F32, Format::Bf16, Format::Int8] {
                let packed = Linear::new(&weight, None, Products { precision, format: Some(format) })?.narrow(7..37)?;
                let Weight::Packed(rows) = &packed.weight else { panic!("{format:?} is not packed") };
                let unpacked = Tensor::from_vec(rows.unpack()?, (30, 52), &Device::Cpu)?;
                let plain = Linear::new(&unpacked, None, precision.into())?;
                let run = |layer: &Linear| -> Result<_> {
                    let y = layer.forward(&x)?;
                    let grads = (&y * &probe)?.sum_all()?.backward()?;
                    Ok((y.detach(), grads.get(&x).unwrap().clone()))
                };
                let ((y, dx), (want_y, want_dx)) = (run(&packed)?, run(&plain)?);
                // A smaller format rounds rows, too. The largest values of one are about 3, so int8 is off by 3/127/√12,
                // and 52 products with weights of 0.15 by 0.008; of some thousands none by seven times that.
                let rounded = precision == Precision::Exact && format != Format::F32;
                let tolerance = if rounded { 0.056 } else { 1e-5 };
                crate::models::nn::tests::close(&y, &want_y, tolerance)?;
                crate::models::nn::tests::close(&dx, &want_dx, 1e-5)?;
            }
        }
        Ok(())
    }

    #[test]
    fn mixed_precision_stays_within_bf16_of_exact_in_values_and_gradients() -> Result<()> {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (33, 48), &Device::Cpu)?)?;
        let w = Var::from_tensor(&Tensor::randn(0f32, 0.15, (20, 48), &Device::Cpu)?)?;
        let probe = Tensor::randn(0f32, 0.2, (33, 20), &Device::Cpu)?;
        let run = |precision: Precision| -> Result<_> {
            let y = Linear::new(w.as_tensor(), None, precision.into())?.forward(&x)?;
            let grads = (&y * &probe)?.sum_all()?.backward()?;
            Ok((y.detach(), grads.get(&x).unwrap().clone(), grads.get(&w).unwrap().clone()))
        };
        let (exact, mixed) = (run(Precision::Exact)?, run(Precision::Mixed)?);
        for (a, b) in [(exact.0, mixed.0), (exact.1, mixed.1), (exact.2, mixed.2)] {
            crate::models::nn::tests::close(&b, &a, 0.03)?;
        }
        Ok(())
    }
}
