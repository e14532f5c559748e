//! Buffers of the CPU: vectors.

use tritrain_kernels::{
    Context, Floats, elementwise,
    packed::{Codes, Packed},
    ternary,
};
use tritrain_trit::ternary::scale_from_total;

use super::Cpu;
use crate::{Format, Memory, Sides};

/// Int8 rows in memory.
#[derive(Clone, Debug)]
pub struct Int8Rows {
    pub(super) codes: Vec<i8>,
    pub(super) scales: Vec<f32>,
}

/// A ternary matrix in memory: codes packed for the forward product and, while training, for the
/// gradient of its input.
#[derive(Clone, Debug)]
pub struct TernaryMatrix {
    pub(super) scale: f32,
    pub(super) forward: ternary::Panels,
    pub(super) backward: Option<ternary::Panels>,
}

impl TernaryMatrix {
    /// Codes and scale of latent weights.
    pub(super) fn take(&mut self, cx: &Context, latent: &[f32]) {
        self.scale = scale_from_total(elementwise::sum_abs(cx, latent), latent.len()).unwrap_or(f32::NAN);
        let (outputs, inputs) = (self.forward.outputs(), self.forward.inputs());
        let weights = ternary::Rows { elements: latent, cols: inputs };
        let latent = ternary::Latent { weights, scale: self.scale };
        ternary::pack(cx, latent, (outputs, inputs), Some(&mut self.forward), self.backward.as_mut());
    }

    /// The same of latent weights in few bits, for products of one side.
    pub(super) fn take_packed(&mut self, cx: &Context, latent: &Packed, sides: Sides) {
        let [outputs, inputs] = latent.shape();
        self.scale = scale_from_total(latent.sums().absolute, outputs * inputs).unwrap_or(f32::NAN);
        let (forward, backward) = match sides {
            Sides::Forward => (Some(&mut self.forward), None),
            Sides::Backward => (None, self.backward.as_mut()),
        };
        let codes = Codes { latent, scale: self.scale };
        ternary::pack(cx, codes, (outputs, inputs), forward, backward);
    }
}

impl Memory for Cpu {
    type Floats = Floats;
    type Tokens = Vec<u32>;
    type Rows = Int8Rows;
    type Ternary = TernaryMatrix;
    type Packed = Packed;

    fn floats(&self, len: usize) -> Floats {
        Floats::zeros(len)
    }

    fn tokens(&self, len: usize) -> Vec<u32> {
        vec![0; len]
    }

    fn rows(&self, rows: usize, cols: usize) -> Int8Rows {
        Int8Rows { codes: vec![0; rows * cols], scales: vec![0.0; rows] }
    }

    fn ternary(&self, outputs: usize, inputs: usize, gradient: bool) -> TernaryMatrix {
        TernaryMatrix {
            scale: 0.0,
            forward: ternary::Panels::zeros(outputs, inputs),
            backward: gradient.then(|| ternary::Panels::zeros(inputs, outputs)),
        }
    }

    fn packed(&self, format: Format, rows: usize, cols: usize, by_row: bool) -> Packed {
        Packed::zeros(format, rows, cols, by_row)
    }
}
