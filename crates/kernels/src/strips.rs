//! What tasks fill side by side: parts of a slice, or columns of a matrix.

use std::{marker::PhantomData, ops::Range};

use crate::Context;

/// A slice in parts of a length, lent to tasks.
pub(crate) struct Parts<'a, T> {
    data: *mut T,
    len: usize,
    part: usize,
    lent: PhantomData<&'a mut [T]>,
}

// SAFETY: what is lent are disjoint slices, as the contract of `get` demands.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(data: &'a mut [T], part: usize) -> Parts<'a, T> {
        Parts { data: data.as_mut_ptr(), len: data.len(), part: part.max(1), lent: PhantomData }
    }

    /// Number of parts; the last one may be shorter.
    pub(crate) fn count(&self) -> usize {
        self.len.div_ceil(self.part)
    }

    /// A part, empty beyond the end.
    ///
    /// # Safety
    /// No other slice of this part is in use.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint, as the contract demands")]
    pub(crate) unsafe fn get(&self, index: usize) -> &mut [T] {
        let start = self.len.min(index * self.part);
        let len = self.part.min(self.len - start);
        // SAFETY: inside the slice, which is borrowed for 'a; disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// Rows of a matrix, lent to tasks that write different parts of them.
pub(crate) struct Strips<'a, T = f32> {
    data: *mut T,
    len: usize,
    width: usize,
    lent: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Strips<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Strips<'_, T> {}

// SAFETY: what is lent are disjoint slices, as the contract of `slice` demands.
unsafe impl<T: Send> Send for Strips<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Strips<'_, T> {}

impl<'a, T> Strips<'a, T> {
    /// The rows of `data`, `width` apart.
    pub(crate) fn new(data: &'a mut [T], width: usize) -> Strips<'a, T> {
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
    pub(crate) unsafe fn slice(&self, row: usize, from: usize, count: usize) -> &'a mut [T] {
        assert!(from + count <= self.width && (row + 1) * self.width <= self.len, "columns of a row");
        // SAFETY: inside the matrix, as asserted, which is borrowed for 'a; disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.width + from), count) }
    }
}

/// A rectangle of a matrix, lent to one task.
pub(crate) struct Rect<'a> {
    strips: Strips<'a>,
    first: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl<'a> Rect<'a> {
    /// A whole matrix, with rows of `width`.
    pub(crate) fn of(data: &'a mut [f32], width: usize) -> Rect<'a> {
        let rows = data.len() / width;
        Rect { strips: Strips::new(data, width), first: 0, rows, column: 0, columns: width }
    }
}

impl Rect<'_> {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// A row.
    ///
    /// # Panics
    /// There is no such row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row of a rectangle");
        // SAFETY: the rectangle is lent to its owner alone, who is borrowed here.
        unsafe { self.strips.slice(self.first + row, self.column, self.columns) }
    }

    /// Where a row begins in the matrix.
    pub(crate) fn position(&self, row: usize) -> usize {
        (self.first + row) * self.strips.width + self.column
    }

    /// Where its first element lies, and the distance of rows.
    pub(crate) fn start(&mut self) -> (*mut f32, usize) {
        let start = self.first * self.strips.width + self.column;
        (self.strips.data.wrapping_add(start), self.strips.width)
    }

    /// A part of it.
    ///
    /// # Panics
    /// There is no such part.
    #[inline(always)]
    pub(crate) fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> Rect<'_> {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "part of a rectangle");
        Rect {
            strips: self.strips,
            first: self.first + rows.start,
            rows: rows.len(),
            column: self.column + columns.start,
            columns: columns.len(),
        }
    }
}

impl Context {
    /// Runs `work` on every rectangle of at most `task` rows and columns of `y`, which has rows of `width`,
    /// with its first row and column. Rectangles below each other follow each other.
    pub(crate) fn grid(
        &self,
        y: &mut [f32],
        width: usize,
        task: (usize, usize),
        work: impl Fn((usize, usize), Rect<'_>) + Sync + Send,
    ) {
        self.grid_of(Rect::of(y, width), task, work);
    }

    /// [`Context::grid`] of a rectangle.
    pub(crate) fn grid_of(
        &self,
        y: Rect<'_>,
        task: (usize, usize),
        work: impl Fn((usize, usize), Rect<'_>) + Sync + Send,
    ) {
        let down = y.rows.div_ceil(task.0);
        let (strips, at) = (y.strips, (y.first, y.column));
        self.tasks(down * y.columns.div_ceil(task.1), |index| {
            let (first, column) = (index % down * task.0, index / down * task.1);
            let (rows, columns) = (task.0.min(y.rows - first), task.1.min(y.columns - column));
            work((first, column), Rect { strips, first: at.0 + first, rows, column: at.1 + column, columns });
        });
    }
}
