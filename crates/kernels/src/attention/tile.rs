//! The register tile of f32 products inside attention: six rows by sixteen columns, or twice as many.
//!
//! Every element is one chain of multiply-adds over the inner index, in order, so a tile has the same
//! bits on every tier.

/// Rows of a tile.
pub(super) const R: usize = 6;
/// Columns of a tile, and of a panel of the right factor.
pub(super) const N: usize = 16;

/// The left factor of a tile.
pub(super) trait Left {
    /// Whether there are entries for `inner` rows of the right factor.
    fn holds(&self, inner: usize) -> bool;

    /// The six entries that meet row `k` of the right factor.
    ///
    /// # Safety
    /// It holds more than `k`.
    unsafe fn at(&self, k: usize) -> [f32; R];
}

/// Rows of a matrix: the inner index runs along them.
pub(super) struct Rows<'a>([&'a [f32]; R]);

impl<'a> Rows<'a> {
    /// `inner` entries of rows `first..first + count` of rows `stride` apart; the last one stands in for
    /// those that a tile has beyond `count`.
    #[inline(always)]
    pub(super) fn new(data: &'a [f32], stride: usize, first: usize, count: usize, inner: usize) -> Rows<'a> {
        let mut rows = [&data[..0]; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &data[(first + r.min(count - 1)) * stride..][..inner];
        }
        Rows(rows)
    }
}

impl Left for Rows<'_> {
    #[inline(always)]
    fn holds(&self, inner: usize) -> bool {
        self.0.iter().all(|row| row.len() >= inner)
    }

    /// # Safety
    /// As [`Left::at`].
    #[inline(always)]
    unsafe fn at(&self, k: usize) -> [f32; R] {
        let mut entries = [0.0; R];
        for r in 0..R {
            // SAFETY: every row holds more than k, as the caller vouches.
            entries[r] = unsafe { *self.0[r].get_unchecked(k) };
        }
        entries
    }
}

/// Columns of a matrix: the inner index runs along them.
pub(super) struct Columns<'a> {
    /// From the first of the columns on.
    pub(super) data: &'a [f32],
    /// Distance of rows.
    pub(super) stride: usize,
}

impl Left for Columns<'_> {
    #[inline(always)]
    fn holds(&self, inner: usize) -> bool {
        inner == 0 || self.data.len() >= (inner - 1) * self.stride + R
    }

    /// # Safety
    /// As [`Left::at`].
    #[inline(always)]
    unsafe fn at(&self, k: usize) -> [f32; R] {
        let mut entries = [0.0; R];
        for r in 0..R {
            // SAFETY: six entries follow the start of row k, as the caller vouches.
            entries[r] = unsafe { *self.data.get_unchecked(k * self.stride + r) };
        }
        entries
    }
}

/// `Σ_k a[·][k] · b[k][·]` with some panels `b`.
///
/// # Panics
/// `a` or a panel does not hold as many as the first panel.
#[inline(always)]
fn tile<const P: usize>(a: &impl Left, b: [&[[f32; N]]; P]) -> [[[f32; N]; P]; R] {
    let inner = b[0].len();
    assert!(a.holds(inner) && b.iter().all(|b| b.len() == inner), "the factors of a tile");
    // No other check inside the loop: with one, the sums would go to memory in every step.
    let mut acc = [[[0.0f32; N]; P]; R];
    for k in 0..inner {
        // SAFETY: k is below what was asserted.
        let a = unsafe { a.at(k) };
        for p in 0..P {
            // SAFETY: as above.
            let b = unsafe { b[p].get_unchecked(k) };
            for r in 0..R {
                for n in 0..N {
                    acc[r][p][n] = a[r].mul_add(b[n], acc[r][p][n]);
                }
            }
        }
    }
    acc
}

/// Products of `rows` rows with `panels` panels, by tiles of one panel, or of two where registers are
/// `wide`: `put` takes a row, a panel and their sums.
#[inline(always)]
pub(super) fn products<'b, L: Left>(
    wide: bool,
    (rows, panels): (usize, usize),
    left: impl Fn(usize) -> L,
    panel: impl Fn(usize) -> &'b [[f32; N]],
    mut put: impl FnMut(usize, usize, &[f32; N]),
) {
    let pairs = if wide { panels / 2 } else { 0 };
    for first in (0..2 * pairs).step_by(2) {
        for top in (0..rows).step_by(R) {
            let sums = tile(&left(top), [panel(first), panel(first + 1)]);
            for r in 0..R.min(rows - top) {
                put(top + r, first, &sums[r][0]);
                put(top + r, first + 1, &sums[r][1]);
            }
        }
    }
    for last in 2 * pairs..panels {
        for top in (0..rows).step_by(R) {
            let sums = tile(&left(top), [panel(last)]);
            for r in 0..R.min(rows - top) {
                put(top + r, last, &sums[r][0]);
            }
        }
    }
}
