//! The register tile of f32 products inside attention: six rows by sixteen columns.
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

/// `Σ_k a[·][k] · b[k][·]`
///
/// # Panics
/// `a` does not hold as many as `b`.
#[inline(always)]
pub(super) fn tile(a: &impl Left, b: &[[f32; N]]) -> [[f32; N]; R] {
    assert!(a.holds(b.len()), "the factors of a tile");
    // No other check inside the loop: with one, the sums would go to memory in every step.
    let mut acc = [[0.0f32; N]; R];
    for (k, b) in b.iter().enumerate() {
        // SAFETY: k is below what was asserted.
        let a = unsafe { a.at(k) };
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = a[r].mul_add(b[n], acc[r][n]);
            }
        }
    }
    acc
}
