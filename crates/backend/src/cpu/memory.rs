//! Buffers of the CPU: vectors.

use tritrain_kernels::{Floats, packed::Packed, ternary};

use super::Cpu;
use crate::{Format, Memory};

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
