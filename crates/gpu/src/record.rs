//! What is launched, noted in place of being done: a step of a model of any size on a device of none, for what can be
//! said about its time beforehand.

use std::sync::{Arc, Mutex, PoisonError};

use cubecl::prelude::CubeCount;

use crate::Gpu;

/// A launch that was noted.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Bytes of each buffer it is given, in order.
    pub bytes: Vec<u64>,
    /// Numbers it is given, in order.
    pub numbers: Vec<f64>,
}

/// Arithmetic of a launch that grows faster than its buffers; of all other kernels it is a few operations a number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Arithmetic {
    /// Multiplications and additions of int8 in dot products of four.
    pub int8: f64,
    /// Multiplications and additions of f32.
    pub f32: f64,
}

/// Launches that were noted, where they are.
pub(crate) type Notes = Mutex<Vec<Launch>>;

/// What every number on a device that computes nothing is.
const NUMBER: f32 = 0.5;

impl Gpu {
    /// The same backend, which notes launches and does none. Buffers have no memory, and every number read is a half.
    #[must_use]
    pub fn noting(mut self) -> Gpu {
        self.notes = Some(Arc::default());
        self
    }

    /// The launches noted since the last call.
    pub fn launches(&self) -> Vec<Launch> {
        let Some(notes) = &self.notes else { return Vec::new() };
        std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a launch, if launches are noted.
    pub(crate) fn note_launch(
        &self,
        kernel: &'static str,
        cubes: &CubeCount,
        tell: impl FnOnce(&mut Launch),
    ) -> bool {
        let Some(notes) = &self.notes else { return false };
        debug_assert!(matches!(cubes, CubeCount::Static(..)), "{kernel}");
        let mut launch = Launch { kernel, bytes: Vec::new(), numbers: Vec::new() };
        tell(&mut launch);
        notes.lock().unwrap_or_else(PoisonError::into_inner).push(launch);
        true
    }

    /// Bytes of numbers that were never computed, where launches are noted.
    pub(crate) fn made_up(&self, len: usize) -> Option<Vec<u8>> {
        self.notes.as_ref().map(|_| NUMBER.to_le_bytes().into_iter().cycle().take(len).collect())
    }
}

/// Buffers that a kernel reads and writes.
const IN_PLACE: [(&str, &[usize]); 11] = [
    ("adam_kernel", &[0, 1, 2]),
    ("apply_kernel", &[0]),
    ("column_means", &[1]),
    ("descend_kernel", &[0]),
    ("entropy", &[0]),
    ("row_means", &[1]),
    ("scale_kernel", &[0]),
    ("scale_update", &[0, 4]),
    ("scatter", &[3]),
    ("subtract_hidden", &[4]),
    ("subtract_words", &[3]),
];

impl Launch {
    /// The kernel, with the numbers that a product multiplies.
    pub fn label(&self) -> String {
        let kind = match (self.kernel, &self.numbers[..]) {
            ("product_kernel", [_, _, _, _, _, _, 1.0, ..]) => "int8 × ternary",
            ("product_kernel", [_, _, _, _, _, _, _, 1.0, 1.0, ..]) => "int8 × int8",
            ("product_kernel", [_, _, _, _, _, _, _, 2.0, 1.0, ..]) => "int16 × int8",
            ("product_kernel", _) => "12 × 12 bits",
            ("forward_kernel", _) => "attention",
            ("query_kernel" | "key_kernel", _) => "attention, gradients",
            _ => return self.kernel.into(),
        };
        format!("{} ({kind})", self.kernel)
    }

    /// Bytes that move at least, if caches hold whatever is used again: every buffer once, and twice where it is read and
    /// written.
    pub fn traffic(&self) -> u64 {
        let all: u64 = self.bytes.iter().sum();
        match (self.kernel, &self.bytes[..], &self.numbers[..]) {
            // Of a table only the rows that are picked.
            ("gather", [tokens, table, rows], _) => tokens + table.min(rows) + rows,
            // Blocks of the inner index are added one by one where the result lies, which may be a part of a buffer.
            ("product_kernel", [left, right, scales, others, residual, _], n) => {
                let (result, blocks) = (4.0 * n[0] * n[1], (n[2] / n[3]).ceil());
                let again = if n[11] == 1.0 { 1.0 } else { 0.0 };
                left + right + scales + others + residual + (result * (2.0 * blocks - 1.0 + again)) as u64
            }
            ("matmul_kernel", [left, right, residual, _], n) => {
                left + right + residual + (4.0 * n[0] * n[1] * if n[11] == 1.0 { 2.0 } else { 1.0 }) as u64
            }
            _ => {
                let twice =
                    IN_PLACE.iter().find(|(kernel, _)| *kernel == self.kernel).map_or(&[][..], |of| of.1);
                all + twice.iter().map(|at| self.bytes[*at]).sum::<u64>()
            }
        }
    }

    /// Its arithmetic.
    pub fn arithmetic(&self) -> Arithmetic {
        let n = &self.numbers;
        match self.kernel {
            // Rows, columns, words of four, words of a block, place, depth, ternary, planes of both factors.
            "product_kernel" => {
                let products = match (n[7], n[8]) {
                    (1.0, 1.0) => 1.0,
                    // One more for the sum of the other factor.
                    (2.0, 1.0) => 3.0,
                    _ => 4.0,
                };
                Arithmetic { int8: 8.0 * n[0] * n[1] * n[2] * products, f32: 0.0 }
            }
            "matmul_kernel" => Arithmetic { int8: 0.0, f32: 2.0 * n[0] * n[1] * n[2] },
            // Time, heads, key heads, scale, width, tile; a tile of queries meets those of keys up to its own.
            "forward_kernel" | "query_kernel" | "key_kernel" => {
                let (time, width, tile) = (n[0], n[4], n[5]);
                // One number of the second or third buffer for each token and head.
                let heads =
                    self.bytes[if self.kernel == "forward_kernel" { 3 } else { 1 }] as f64 / 4.0 / time;
                let tiles = (time / tile).ceil();
                let pairs = tiles * (tiles + 1.0) / 2.0 * tile * tile;
                // Dot products with, and sums of, rows of a head.
                let passes = match self.kernel {
                    "forward_kernel" => 2.0,
                    "query_kernel" => 3.0,
                    _ => 4.0,
                };
                Arithmetic { int8: 0.0, f32: 2.0 * passes * pairs * heads * width }
            }
            _ => Arithmetic::default(),
        }
    }
}
