//! f32 matrix products, by the `gemm` crate, split by rows of the result.
//!
//! The crate takes memory for packed operands and gives it back in every call, and cannot be lent any:
//! up to two allocations for each task of a product.

use crate::{
    Context,
    strips::{Rect, Strips},
};

/// A matrix of f32 in a slice: `rows × cols`, with a distance in elements between rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// `data` holds another number of elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> View<'a> {
        assert_eq!(data.len(), rows * cols);
        View { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> View<'a> {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    fn rows_from(self, row: usize, rows: usize) -> View<'a> {
        View { data: &self.data[row * self.row_stride..], rows, ..self }
    }
}

/// `out = beta·out + a·b`
fn product(a: View<'_>, b: View<'_>, beta: f32, out: &mut Rect<'_>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(a.cols == b.rows && out.rows() == m && out.columns() == n, "shapes of a product");
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| s as isize;
    let (to, to_stride) = out.start();
    // SAFETY: the views were checked on construction to hold every (row, column) of their shape, and the
    // rectangle is ours and holds as many.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to,
            1,
            stride(to_stride),
            beta != 0.0,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            beta,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Tasks of a product: enough for a few threads, few enough that packing an operand anew for each
/// stays small.
const TASKS: usize = 4;

/// `out = beta·out + a·b`, `out` row-major. Its longer side is split among threads.
///
/// # Panics
/// The shapes do not fit together.
pub fn matmul(cx: &Context, a: View<'_>, b: View<'_>, beta: f32, out: &mut [f32]) {
    let (m, n) = (a.rows, b.cols);
    assert_eq!(a.cols, b.rows, "inner dimensions");
    assert_eq!(out.len(), m * n);
    if out.is_empty() {
        return;
    }
    // Parts in multiples of 16, a function of the shape alone.
    let part = |length: usize| length.div_ceil(TASKS).next_multiple_of(16);
    let task = if m >= n { (part(m), n) } else { (m, part(n)) };
    cx.grid(out, n, task, |(row, column), mut out| {
        let a = a.rows_from(row, out.rows());
        let b = b.t().rows_from(column, out.columns()).t();
        product(a, b, beta, &mut out);
    });
}

/// Least rows of a task of [`symmetric`], and how many tasks there are at most beyond that.
const SYMMETRIC: (usize, usize) = (64, 8);

/// `out = a·b`, `[side][side]` row-major, of factors whose product is symmetric, such as `x·xᵀ`: what is above the
/// diagonal is not computed but mirrored, but for squares on it.
///
/// # Panics
/// The shapes do not fit together.
pub(crate) fn symmetric(cx: &Context, a: View<'_>, b: View<'_>, out: &mut [f32]) {
    let side = a.rows;
    assert!(a.cols == b.rows && b.cols == side && out.len() == side * side, "shapes of a symmetric product");
    if out.is_empty() {
        return;
    }
    let rows = side.div_ceil(SYMMETRIC.1).next_multiple_of(16).max(SYMMETRIC.0);
    let strips = Strips::new(out, side);
    let tasks = side.div_ceil(rows);
    // The longest rows first.
    cx.tasks(tasks, |task| {
        let first = (tasks - 1 - task) * rows;
        let end = side.min(first + rows);
        // SAFETY: these rows belong to this task.
        let mut below = unsafe { Rect::part_of(strips, (first, 0), (end - first, end)) };
        product(a.rows_from(first, end - first), b.t().rows_from(0, end).t(), 0.0, &mut below);
    });
    cx.tasks(tasks, |task| {
        let columns = task * rows..side.min((task + 1) * rows);
        for row in columns.end..side {
            // SAFETY: what lies in these columns below the diagonal is read by this task alone, and what mirrors it
            // is written by it alone.
            let below = unsafe { strips.slice(row, columns.start, columns.len()) };
            for (above, value) in columns.clone().zip(below) {
                // SAFETY: as above.
                let to = unsafe { strips.slice(above, row, 1) };
                to[0] = *value;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;

    #[test]
    fn symmetric_products_are_products_and_symmetric() {
        let cx = Context::new(Tier::detect().unwrap(), 3).unwrap();
        for (side, inner) in [(0, 4), (1, 1), (2, 0), (63, 5), (64, 64), (65, 130), (200, 31), (641, 9)] {
            let x: Vec<f32> = (0..side * inner).map(|i| ((i * 7919) % 201) as f32 - 100.0).collect();
            let x = View::new(&x, side, inner);
            let mut expected = vec![f32::NAN; side * side];
            matmul(&cx, x, x.t(), 0.0, &mut expected);
            let mut found = vec![f32::NAN; side * side];
            symmetric(&cx, x, x.t(), &mut found);
            // Integers, so that every order of sums is exact.
            assert_eq!(found, expected, "{side} × {inner}");
        }
    }
}
