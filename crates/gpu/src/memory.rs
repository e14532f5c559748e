//! Buffers on a device.

use cubecl::server::Handle;
use tritrain_backend::{Format, Memory};
use tritrain_trit::digits::{PER_BYTE, to_byte};

use crate::Gpu;

/// f32 numbers.
#[derive(Clone, Debug)]
pub struct Floats {
    pub(crate) handle: Handle,
    pub(crate) len: usize,
    /// Numbers that the buffer has room for.
    pub(crate) room: usize,
}

/// Token ids.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub(crate) handle: Handle,
    pub(crate) len: usize,
}

/// Int8 rows: four codes to a word, the first in the lowest byte, rows padded with zeros to whole words; a scale
/// for each row.
#[derive(Clone, Debug)]
pub struct Rows {
    pub(crate) codes: Handle,
    pub(crate) scales: Handle,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Ternary codes plus one, in two bits, sixteen to a word, the first in the lowest bits, rows padded with the code 0
/// to whole words; once by outputs and, while training, once by inputs.
#[derive(Clone, Debug)]
pub struct Ternary {
    pub(crate) forward: Handle,
    pub(crate) backward: Option<Handle>,
    /// One f32.
    pub(crate) scale: Handle,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

/// A matrix in few bits: rows as `trit::format` says, padded with zeros to whole words.
#[derive(Clone, Debug)]
pub struct Packed {
    pub(crate) bytes: Handle,
    /// By row, or one for all; of bf16, none (one number that nobody reads).
    pub(crate) steps: Handle,
    /// Where each row begins, in words, times eight, plus its digits: where rows have different numbers of them.
    pub(crate) places: Option<Handle>,
    /// Words of all rows.
    pub(crate) len: usize,
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) by_row: bool,
}

impl Rows {
    /// Words of a row.
    pub(crate) fn words(&self) -> usize {
        self.cols.div_ceil(4)
    }
}

impl Packed {
    /// Words of a row, where all have as many.
    pub(crate) fn words(&self) -> usize {
        self.format.row_len(self.cols).div_ceil(4)
    }
}

impl Gpu {
    /// A buffer of zeros.
    pub(crate) fn zeros(&self, words: usize) -> Handle {
        match self.holds(words) && !self.is_noting() {
            true => self.put(&vec![0u8; 4 * words.max(1)]),
            false => self.room(words),
        }
    }

    /// Host floats in a buffer of their own.
    pub(crate) fn given(&self, host: &[f32]) -> Floats {
        Floats { handle: self.put(bytemuck::cast_slice(host)), len: host.len(), room: host.len() }
    }

    /// Floats whose values are unknown.
    pub(crate) fn unset(&self, len: usize) -> Floats {
        Floats { handle: self.room(len), len, room: len }
    }
}

impl Memory for Gpu {
    type Floats = Floats;
    type Tokens = Tokens;
    type Rows = Rows;
    type Ternary = Ternary;
    type Packed = Packed;

    fn queues(&self) -> bool {
        true
    }

    fn floats(&self, len: usize) -> Floats {
        Floats { handle: self.zeros(len), len, room: len }
    }

    fn tokens(&self, len: usize) -> Tokens {
        Tokens { handle: self.zeros(len), len }
    }

    fn rows(&self, rows: usize, cols: usize) -> Rows {
        Rows { codes: self.zeros(rows * cols.div_ceil(4)), scales: self.zeros(rows), rows, cols }
    }

    fn ternary(&self, outputs: usize, inputs: usize, gradient: bool) -> Ternary {
        Ternary {
            forward: self.zeros(outputs * inputs.div_ceil(16)),
            backward: gradient.then(|| self.zeros(inputs * outputs.div_ceil(16))),
            scale: self.zeros(1),
            outputs,
            inputs,
        }
    }

    fn packed(&self, format: Format, rows: usize, cols: usize, by_row: bool) -> Packed {
        let len = rows * format.row_len(cols).div_ceil(4);
        let steps = if by_row { rows } else { 1 };
        // Of balanced ternary levels the byte of zeros is no zero.
        let zero = if let Format::Trits(_) = format { to_byte([1; PER_BYTE]) } else { 0 };
        Packed {
            bytes: self.put(&vec![zero; 4 * len.max(1)]),
            steps: self.zeros(steps),
            places: None,
            len,
            format,
            rows,
            cols,
            by_row,
        }
    }
}
