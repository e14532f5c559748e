//! What the register tiles of integer products share: where their sums go.

use crate::strips::Rect;

/// Columns of the result in a panel of the second operand: sixteen i32 sums.
pub(crate) const COLUMNS: usize = 16;
/// Floats of a line of the cache.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 16;

/// Whether a product replaces what the result holds or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = …`
    Replace,
    /// `y += …`
    Add,
}

/// What the sums are added to.
#[derive(Clone, Copy)]
pub(crate) enum Base<'a> {
    Nothing,
    /// What the result holds.
    Itself,
    /// A matrix of the size of the whole result.
    Matrix(&'a [f32]),
}

impl From<Store> for Base<'_> {
    fn from(store: Store) -> Self {
        match store {
            Store::Replace => Base::Nothing,
            Store::Add => Base::Itself,
        }
    }
}

/// A result in f32, to be filled tile by tile from sums in i32.
pub(crate) struct Out<'a> {
    /// The rows and columns that exist, of sixteen columns in each panel.
    pub(crate) y: Rect<'a>,
    /// Subtracted from the sums of each row.
    pub(crate) offsets: &'a [i32],
    /// What the sums of each row are scaled with.
    pub(crate) factors: &'a [f32],
    /// What the sums of each column are scaled with, or nothing for ones.
    pub(crate) column_factors: &'a [f32],
    pub(crate) base: Base<'a>,
}

impl Out<'_> {
    /// Rows of the result.
    pub(crate) fn rows(&self) -> usize {
        self.y.rows()
    }

    /// Panels that the columns span.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn panels(&self) -> usize {
        self.y.columns().div_ceil(COLUMNS)
    }

    /// Asks for the lines that `R` rows from row `first` on will be stored to.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn prefetch<const R: usize>(&mut self, first: usize) {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        for row in first..self.rows().min(first + R) {
            let at = self.y.position(row);
            let y = self.y.row(row);
            for line in y.chunks(LINE) {
                // SAFETY: the address is that of a slice; prefetching changes nothing.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
            }
            if let Base::Matrix(matrix) = self.base {
                for line in matrix[at..at + y.len()].chunks(LINE) {
                    // SAFETY: as above.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
                }
            }
        }
    }

    /// Stores the sums of those of `R` rows, from row `first` on, and `P` panels that exist.
    #[inline(always)]
    pub(crate) fn finish<const R: usize, const P: usize>(
        &mut self,
        first: usize,
        sums: &[[[i32; COLUMNS]; P]; R],
    ) {
        // Decided once, not for every row.
        match (self.base, self.column_factors.is_empty()) {
            (Base::Nothing, true) => self.store(first, sums, None, |_, value, _| value),
            (Base::Itself, true) => self.store(first, sums, None, |y, value, _| y + value),
            (Base::Matrix(matrix), true) => self.store(first, sums, Some(matrix), |x, value, _| x + value),
            (Base::Nothing, false) => self.store(first, sums, None, |_, value, factor| value * factor),
            (Base::Itself, false) => self.store(first, sums, None, |y, value, factor| y + value * factor),
            (Base::Matrix(matrix), false) => {
                self.store(first, sums, Some(matrix), |x, value, factor| x + value * factor);
            }
        }
    }

    /// `y = with(x, scaled sum, factor of the column)`, where x is `y`, or that of a matrix in its place.
    #[inline(always)]
    fn store<const R: usize, const P: usize>(
        &mut self,
        first: usize,
        sums: &[[[i32; COLUMNS]; P]; R],
        matrix: Option<&[f32]>,
        with: impl Fn(f32, f32, f32) -> f32,
    ) {
        let mut column_factors = [[1.0; COLUMNS]; P];
        for (to, from) in column_factors.as_flattened_mut().iter_mut().zip(self.column_factors) {
            *to = *from;
        }
        // Row by row, each as far as it goes: lines are whole before the cache gives them up.
        for r in 0..R.min(self.rows() - first) {
            let (offset, factor) = (self.offsets[first + r], self.factors[first + r]);
            let at = self.y.position(first + r);
            let y = self.y.row(first + r);
            let matrix = matrix.map(|matrix| &matrix[at..at + y.len()]);
            for (p, y) in y.chunks_mut(COLUMNS).take(P).enumerate() {
                // Everything is read before anything is written: then registers hold it.
                let mut values = [0.0; COLUMNS];
                for c in 0..COLUMNS {
                    values[c] = sums[r][p][c].wrapping_sub(offset) as f32 * factor;
                }
                match <&mut [f32; COLUMNS]>::try_from(&mut *y) {
                    Ok(y) => {
                        let place = p * COLUMNS..(p + 1) * COLUMNS;
                        let other = matrix.and_then(|matrix| matrix[place].first_chunk::<COLUMNS>());
                        let before = *other.unwrap_or(y);
                        for c in 0..COLUMNS {
                            values[c] = with(before[c], values[c], column_factors[p][c]);
                        }
                        *y = values;
                    }
                    Err(_) => {
                        for (c, y) in y.iter_mut().enumerate() {
                            let before = matrix.map_or(*y, |matrix| matrix[p * COLUMNS + c]);
                            *y = with(before, values[c], column_factors[p][c]);
                        }
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
