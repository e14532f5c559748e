//! The tile in plain Rust: the truth that other tiers equal bit for bit.

use super::{COLUMNS, STEP, Sums};

/// See [`super::tile`].
pub(super) fn tile(x: &[i8], rows: usize, inputs: usize, codes: &[u8], sums: &mut Sums) {
    for (r, sums) in sums.iter_mut().enumerate().take(rows) {
        *sums = [0; COLUMNS];
        let row = &x[r * inputs..(r + 1) * inputs];
        for (values, codes) in row.chunks(STEP).zip(codes.chunks_exact(STEP * COLUMNS)) {
            for (c, codes) in codes.chunks_exact(STEP).enumerate() {
                for (value, code) in values.iter().zip(codes) {
                    sums[c] += i32::from(*value) * i32::from(*code);
                }
            }
        }
    }
}
