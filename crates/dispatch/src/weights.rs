//! Arrays in packed ternary codes.

use std::sync::OnceLock;

use tritrain_backend::{Cpu, TernaryMatrix};
use tritrain_trit::pack::{packed2_len, unpack2};

use crate::{Error, Result, error::check};

/// An array in ternary codes, two bits each, with one scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    pub(crate) codes: Vec<u8>,
    pub(crate) scale: f32,
    pub(crate) len: usize,
}

impl Quantized {
    /// `len` codes as `trit::pack::pack2` packs them, from wherever they were kept.
    ///
    /// # Errors
    /// Another number of bytes, or a scale that no quantiser gives. Fields that are no code are found where they are
    /// read.
    pub fn new(codes: Vec<u8>, scale: f32, len: usize) -> Result<Quantized> {
        if codes.len() != packed2_len(len) {
            let (what, expected, found) = ("packed bytes", packed2_len(len), codes.len());
            return Err(tritrain_trit::Error::Length { what, n: len, expected, found }.into());
        }
        if !(scale >= 0.0 && scale.is_finite()) {
            return Err(Error::Scale { found: scale });
        }
        Ok(Quantized { codes, scale, len })
    }

    /// The packed codes.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// What a code of 1 is worth: the mean magnitude of what was quantised, rounded to fp16.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Number of codes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A ternary matrix `[outputs][inputs]` that is multiplied again and again.
#[derive(Debug)]
pub struct TernaryWeights {
    quantized: Quantized,
    outputs: usize,
    inputs: usize,
    /// As CPU kernels read it, made when it is multiplied first.
    panels: OnceLock<TernaryMatrix>,
}

/// Inputs of which sums of int8 times a code surely fit an i32, on any engine.
const MOST_INPUTS: usize = i32::MAX as usize / (2 * 127);

impl TernaryWeights {
    /// Codes as a matrix, row-major.
    ///
    /// # Errors
    /// Their number is not `outputs × inputs`, a field is no code, or sums over the inputs would not be exact.
    pub fn new(quantized: Quantized, outputs: usize, inputs: usize) -> Result<TernaryWeights> {
        check("ternary weights", quantized.len, &[outputs, inputs])?;
        if inputs > MOST_INPUTS {
            let (shape, expected) =
                (format!("{outputs} × {inputs}"), format!("at most {MOST_INPUTS} inputs"));
            return Err(Error::Shape { what: "ternary weights", shape, expected });
        }
        let weights = TernaryWeights { quantized, outputs, inputs, panels: OnceLock::new() };
        weights.unpack()?;
        Ok(weights)
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> (usize, usize) {
        (self.outputs, self.inputs)
    }

    /// The codes, row-major.
    pub fn quantized(&self) -> &Quantized {
        &self.quantized
    }

    fn unpack(&self) -> Result<Vec<i8>> {
        let mut codes = vec![0; self.quantized.len];
        unpack2(&self.quantized.codes, &mut codes)?;
        Ok(codes)
    }

    /// As CPU kernels of any tier read it.
    pub(crate) fn panels(&self, cpu: &Cpu) -> Result<&TernaryMatrix> {
        if let Some(panels) = self.panels.get() {
            return Ok(panels);
        }
        let made = cpu.ternary_matrix(&self.unpack()?, self.quantized.scale, self.shape());
        Ok(self.panels.get_or_init(|| made))
    }

    /// That `x` and `y` fit this matrix; the number of rows.
    pub(crate) fn rows(&self, x: &[f32], y: &[f32]) -> Result<usize> {
        let rows = match (self.inputs, self.outputs) {
            (0, 0) => 0,
            (0, outputs) => y.len() / outputs,
            (inputs, _) => x.len() / inputs,
        };
        check("x", x.len(), &[rows, self.inputs])?;
        check("y", y.len(), &[rows, self.outputs])?;
        Ok(rows)
    }
}
