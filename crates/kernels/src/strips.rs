//! A matrix that tasks fill side by side, each its own columns.

use std::marker::PhantomData;

/// Rows of a matrix, lent to tasks that write different parts of them.
#[derive(Clone, Copy)]
pub(crate) struct Strips<'a> {
    data: *mut f32,
    len: usize,
    width: usize,
    lent: PhantomData<&'a mut [f32]>,
}

// SAFETY: what is lent are disjoint slices of f32, as the contract of `slice` demands.
unsafe impl Send for Strips<'_> {}
// SAFETY: as above.
unsafe impl Sync for Strips<'_> {}

impl<'a> Strips<'a> {
    /// The rows of `data`, `width` apart.
    pub(crate) fn new(data: &'a mut [f32], width: usize) -> Strips<'a> {
        Strips { data: data.as_mut_ptr(), len: data.len(), width, lent: PhantomData }
    }

    /// Columns `from..from + count` of a row.
    ///
    /// # Safety
    /// No other slice that holds one of these elements is in use.
    ///
    /// # Panics
    /// The row has no such columns.
    #[inline(always)]
    pub(crate) unsafe fn slice(&self, row: usize, from: usize, count: usize) -> &'a mut [f32] {
        assert!(from + count <= self.width && (row + 1) * self.width <= self.len, "columns of a row");
        // SAFETY: inside the matrix, as asserted, which is borrowed for 'a; disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.width + from), count) }
    }
}
