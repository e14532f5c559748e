//! What is asked for, and how much work that is.

use serde::{Deserialize, Serialize};

/// A single operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// f32 to packed ternary codes and a scale.
    Quantize,
    /// Packed codes to f32.
    Dequantize,
    /// A fit of k-means.
    Kmeans,
    /// `y = x·wᵀ` in f32.
    Matmul,
    /// The same with ternary weights, and rows of `x` rounded to int8.
    TernaryMatmul,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 5] = [
        Operation::Quantize,
        Operation::Dequantize,
        Operation::Kmeans,
        Operation::Matmul,
        Operation::TernaryMatmul,
    ];

    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Quantize => "quantize",
            Operation::Dequantize => "dequantize",
            Operation::Kmeans => "kmeans",
            Operation::Matmul => "matmul",
            Operation::TernaryMatmul => "ternary_matmul",
        }
    }
}

/// An operation with its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// `len` numbers.
    Quantize {
        /// Numbers.
        len: usize,
    },
    /// `len` codes.
    Dequantize {
        /// Codes.
        len: usize,
    },
    /// `rows × dim` numbers in `k` clusters.
    Kmeans {
        /// Rows.
        rows: usize,
        /// Columns.
        dim: usize,
        /// Clusters.
        k: usize,
        /// Iterations; before a fit, a guess.
        iterations: usize,
    },
    /// `x` `[rows][inputs]`, `w` `[outputs][inputs]`.
    Matmul {
        /// Rows of `x`.
        rows: usize,
        /// Rows of `w`.
        outputs: usize,
        /// Columns of both.
        inputs: usize,
    },
    /// The same with ternary `w`.
    TernaryMatmul {
        /// Rows of `x`.
        rows: usize,
        /// Rows of `w`.
        outputs: usize,
        /// Columns of both.
        inputs: usize,
    },
}

/// Bytes that the caches of a core hold.
const CACHED: f64 = 1048576.0;

impl Task {
    /// The operation.
    pub fn operation(&self) -> Operation {
        match self {
            Task::Quantize { .. } => Operation::Quantize,
            Task::Dequantize { .. } => Operation::Dequantize,
            Task::Kmeans { .. } => Operation::Kmeans,
            Task::Matmul { .. } => Operation::Matmul,
            Task::TernaryMatmul { .. } => Operation::TernaryMatmul,
        }
    }

    /// Units of work: numbers converted, coordinates compared, multiply-adds.
    pub fn work(&self) -> f64 {
        match *self {
            Task::Quantize { len } | Task::Dequantize { len } => len as f64,
            Task::Kmeans { rows, dim, k, iterations } => {
                rows as f64 * dim as f64 * k as f64 * iterations as f64
            }
            Task::Matmul { rows, outputs, inputs } | Task::TernaryMatmul { rows, outputs, inputs } => {
                rows as f64 * outputs as f64 * inputs as f64
            }
        }
    }

    /// What a [`crate::Cost`] is counted in: one call, units of work, and bytes that are moved.
    ///
    /// * Conversions: numbers, and bytes beyond the first MiB, which caches hold.
    /// * k-means: rows times clusters that each is compared with, screened a few dimensions at a time, and eight more
    ///   for what a row takes by itself; and the bytes of rows.
    /// * Products: multiply-adds, and the bytes of factors and result.
    pub fn terms(&self) -> [f64; 3] {
        let units = match *self {
            Task::Kmeans { rows, k, iterations, .. } => {
                rows as f64 * (k as f64 + 8.0) * (iterations as f64 + 2.0)
            }
            _ => self.work(),
        };
        let bytes = match *self {
            Task::Quantize { len } | Task::Dequantize { len } => (4.0 * len as f64 - CACHED).max(0.0),
            Task::Kmeans { rows, dim, .. } => 4.0 * rows as f64 * dim as f64,
            Task::Matmul { rows, outputs, inputs } => {
                4.0 * (rows as f64 * (inputs as f64 + outputs as f64) + outputs as f64 * inputs as f64)
            }
            Task::TernaryMatmul { rows, outputs, inputs } => {
                4.0 * rows as f64 * (inputs as f64 + outputs as f64) + outputs as f64 * inputs as f64
            }
        };
        [1.0, units, bytes]
    }

    /// Numbers that go in: what [`crate::Config::min_size_for_gpu`] is compared with.
    pub fn size(&self) -> usize {
        match *self {
            Task::Quantize { len } | Task::Dequantize { len } => len,
            Task::Kmeans { rows, dim, .. } => rows.saturating_mul(dim),
            Task::Matmul { rows, outputs, inputs } | Task::TernaryMatmul { rows, outputs, inputs } => {
                rows.saturating_add(outputs).saturating_mul(inputs)
            }
        }
    }
}
