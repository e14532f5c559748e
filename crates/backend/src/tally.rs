//! A device that is not there: it counts the memory that things would take on a [`Cpu`](crate::Cpu).

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tritrain_kernels::{packed::Packed, ternary::Panels};

use crate::{Format, Memory};

/// Counts bytes, and takes none.
#[derive(Debug, Default)]
pub struct Tally {
    bytes: AtomicUsize,
}

impl Tally {
    /// Bytes counted since the last call.
    pub fn take(&self) -> usize {
        self.bytes.swap(0, Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Memory for Tally {
    type Floats = ();
    type Tokens = ();
    type Rows = ();
    type Ternary = ();
    type Packed = ();

    fn floats(&self, len: usize) {
        self.add(len * size_of::<f32>());
    }

    fn tokens(&self, len: usize) {
        self.add(len * size_of::<u32>());
    }

    fn rows(&self, rows: usize, cols: usize) {
        self.add(rows * (cols + size_of::<f32>()));
    }

    fn ternary(&self, outputs: usize, inputs: usize, gradient: bool) {
        self.add(Panels::room(outputs, inputs) + if gradient { Panels::room(inputs, outputs) } else { 0 });
    }

    fn packed(&self, format: Format, rows: usize, cols: usize, by_row: bool) {
        self.add(Packed::room(format, rows, cols, by_row));
    }
}
