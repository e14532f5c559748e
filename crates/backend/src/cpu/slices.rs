//! Single operations on what lies in the memory of the host already.

use tritrain_kernels::{
    Context,
    matmul::{self, View},
    quantize, rows, ternary,
};
use tritrain_trit::Error;

use super::{Cpu, TernaryMatrix};
use crate::Memory;

impl Cpu {
    /// Packs the ternary codes of `x` `[n]` into `codes` `[n/4, rounded up]`, two bits each, as `trit::pack::pack2`
    /// does; returns their scale, `fp16(mean |x|)`.
    ///
    /// # Errors
    /// A number is not finite, the mean is beyond fp16, or the lengths do not fit together.
    pub fn quantize(&self, x: &[f32], codes: &mut [u8]) -> Result<f32, Error> {
        self.cx.run(|| quantize::quantize(&self.cx, x, codes))
    }

    /// Writes what packed codes `[n/4, rounded up]` stand for into `out` `[n]`.
    ///
    /// # Errors
    /// A field is no code, or the lengths do not fit together.
    pub fn dequantize(&self, codes: &[u8], scale: f32, out: &mut [f32]) -> Result<(), Error> {
        self.cx.run(|| quantize::dequantize(&self.cx, codes, scale, out))
    }

    /// `y = x·wᵀ`; `x` `[rows][inputs]`, `w` `[outputs][inputs]`, `y` `[rows][outputs]`, by the `gemm` crate with
    /// the instructions it chooses, whatever the tier.
    ///
    /// # Panics
    /// The lengths do not fit together.
    pub fn product(&self, x: &[f32], w: &[f32], [rows, outputs, inputs]: [usize; 3], y: &mut [f32]) {
        let (x, w) = (View::new(x, rows, inputs), View::new(w, outputs, inputs));
        self.cx.run(|| matmul::matmul(&self.cx, x, w.t(), 0.0, y));
    }

    /// A ternary matrix for products over its inputs, from codes `[outputs][inputs]` in {-1, 0, 1}. Every tier has
    /// the same.
    ///
    /// # Panics
    /// There are other than `outputs × inputs` codes, or so many inputs that sums would not fit an i32.
    pub fn ternary_matrix(
        &self,
        codes: &[i8],
        scale: f32,
        (outputs, inputs): (usize, usize),
    ) -> TernaryMatrix {
        let mut matrix = self.ternary(outputs, inputs, false);
        self.cx.run(|| matrix.set(&self.cx, codes, scale));
        matrix
    }

    /// `y = q(x)·wᵀ`, where `q` rounds each row of `x` `[rows][inputs]` to int8 (`scale = max|x| / 127`); exact in i32
    /// before the scales. `y` `[rows][outputs]`.
    ///
    /// # Panics
    /// The lengths do not fit together.
    pub fn ternary_product(&self, x: &[f32], w: &TernaryMatrix, y: &mut [f32]) {
        let inputs = w.forward.inputs();
        let mut int8 = self.rows(x.len() / inputs.max(1), inputs);
        self.cx.run(|| {
            rows::quantize(&self.cx, x, &mut int8.codes, &mut int8.scales);
            let mut scratch = self.ternary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (codes, scales) = (&int8.codes, &int8.scales);
            ternary::matmul(&self.cx, codes, scales, &w.forward, w.scale, None, &mut scratch, y);
        });
    }
}

impl TernaryMatrix {
    /// Takes codes and scale, for every product it has room for.
    pub(super) fn set(&mut self, cx: &Context, codes: &[i8], scale: f32) {
        self.scale = scale;
        let (outputs, inputs) = self.shape();
        let codes = ternary::Rows { elements: codes, cols: inputs };
        ternary::pack(cx, codes, (outputs, inputs), Some(&mut self.forward), self.backward.as_mut());
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        (self.forward.outputs(), self.forward.inputs())
    }
}
