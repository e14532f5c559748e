//! What the register tiles of integer products share: where their sums go.

/// Columns of the result in a panel of the second operand: sixteen i32 sums.
pub(crate) const COLUMNS: usize = 16;

/// Whether a product replaces what the result holds or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = …`
    Replace,
    /// `y += …`
    Add,
}

/// A result in f32, to be filled tile by tile from sums in i32.
pub(crate) struct Out<'a> {
    /// From the first row and the first panel's first column on, rows `stride` apart.
    pub(crate) y: &'a mut [f32],
    pub(crate) stride: usize,
    /// Columns that exist, of the sixteen in each panel.
    pub(crate) columns: usize,
    /// Subtracted from the sums of each row.
    pub(crate) offsets: &'a [i32],
    /// What the sums of each row are scaled with.
    pub(crate) factors: &'a [f32],
    /// What the sums of each column are scaled with, or nothing for ones.
    pub(crate) column_factors: &'a [f32],
    pub(crate) store: Store,
}

impl Out<'_> {
    /// Rows of the result.
    pub(crate) fn rows(&self) -> usize {
        self.factors.len()
    }

    /// Panels that the columns span.
    pub(crate) fn panels(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }

    /// Asks for the lines that `R` rows from row `first` on will be stored to.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch<const R: usize>(&self, first: usize) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        for row in self.y.chunks(self.stride).skip(first).take(R) {
            // SAFETY: the address is that of a slice; prefetching changes nothing.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(row.as_ptr().cast()) };
        }
    }

    /// Stores the sums of those of `R` rows from row `first` on that exist, and `P` panels.
    #[inline(always)]
    pub(crate) fn finish<const R: usize, const P: usize>(
        &mut self,
        first: usize,
        sums: &[[[i32; COLUMNS]; P]; R],
    ) {
        for r in 0..R.min(self.rows() - first) {
            let (offset, factor) = (self.offsets[first + r], self.factors[first + r]);
            let start = (first + r) * self.stride;
            for p in 0..P {
                let mut values = [0.0; COLUMNS];
                for c in 0..COLUMNS {
                    values[c] = (sums[r][p][c] - offset) as f32 * factor;
                }
                let columns = (self.columns - p * COLUMNS).min(COLUMNS);
                if !self.column_factors.is_empty() {
                    for (value, factor) in values.iter_mut().zip(&self.column_factors[p * COLUMNS..]) {
                        *value *= factor;
                    }
                }
                let y = &mut self.y[start + p * COLUMNS..][..columns];
                if let Ok(y) = <&mut [f32; COLUMNS]>::try_from(&mut *y) {
                    for c in 0..COLUMNS {
                        y[c] = if self.store == Store::Add { y[c] + values[c] } else { values[c] };
                    }
                } else {
                    for (y, value) in y.iter_mut().zip(values) {
                        *y = if self.store == Store::Add { *y + value } else { value };
                    }
                }
            }
        }
    }
}

/// Registers as arrays of sixteen sums.
#[cfg(target_arch = "x86_64")]
pub(crate) mod store {
    use std::arch::x86_64::{__m256i, __m512i, _mm256_storeu_si256, _mm512_storeu_si512};

    use super::COLUMNS;

    /// Two 256-bit registers.
    #[target_feature(enable = "avx2")]
    pub(crate) fn ymm(halves: [__m256i; 2]) -> [i32; COLUMNS] {
        let mut sums = [0; COLUMNS];
        // SAFETY: the array is two registers wide.
        unsafe {
            _mm256_storeu_si256(sums.as_mut_ptr().cast(), halves[0]);
            _mm256_storeu_si256(sums.as_mut_ptr().add(8).cast(), halves[1]);
        }
        sums
    }

    /// One 512-bit register.
    #[target_feature(enable = "avx512f")]
    pub(crate) fn zmm(register: __m512i) -> [i32; COLUMNS] {
        let mut sums = [0; COLUMNS];
        // SAFETY: the array is one register wide.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), register) };
        sums
    }
}
