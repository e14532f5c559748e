//! Tiles in plain Rust: the truth that other tiers equal bit for bit.

use super::{GROUP, STEP};
use crate::tile::{COLUMNS, Out};

/// See [`super::tiles`]: one row, one panel.
pub(super) fn tiles(x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    for r in 0..out.rows() {
        let mut sums = [0; COLUMNS];
        let row = &x[r * steps * STEP..][..steps * STEP];
        for (values, codes) in row.chunks(STEP).zip(codes.chunks_exact(STEP * COLUMNS)) {
            for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(STEP)) {
                for (value, code) in values.iter().zip(codes) {
                    *sum += i32::from(value.cast_signed()) * i32::from(*code);
                }
            }
        }
        out.finish(r, &[[sums]]);
    }
}

/// One row, padded to whole groups, against one panel of packed codes.
pub(super) fn panel(x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    let mut sums = [0; COLUMNS];
    for (values, bytes) in x.as_chunks::<GROUP>().0.iter().zip(packed.as_chunks::<32>().0) {
        for (j, byte) in bytes.iter().enumerate() {
            let (c, k) = (j / STEP, j % STEP);
            let product =
                |k: usize, shift: u8| i32::from(values[k].cast_signed()) * i32::from(byte >> shift & 3);
            sums[c] += product(k, 0) + product(STEP + k, 4);
            sums[8 + c] += product(k, 2) + product(STEP + k, 6);
        }
    }
    out.finish(0, &[[sums]]);
}
