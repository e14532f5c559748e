//! The tile in plain Rust: the truth that other tiers equal bit for bit.

use super::{COLUMNS, Sums};

/// See [`super::tile`].
pub(super) fn tile(
    gradients: &[i16],
    stride: usize,
    start: usize,
    rows: usize,
    packed: &[i16],
    sums: &mut Sums,
) {
    for (r, sums) in sums.iter_mut().enumerate().take(rows) {
        *sums = [0; COLUMNS];
        let row = &gradients[r * stride + start..];
        for (pair, x) in row.as_chunks::<2>().0.iter().zip(packed.as_chunks::<{ 2 * COLUMNS }>().0) {
            for (sum, x) in sums.iter_mut().zip(x.as_chunks::<2>().0) {
                *sum += i32::from(pair[0]) * i32::from(x[0]) + i32::from(pair[1]) * i32::from(x[1]);
            }
        }
    }
}
