//! f32 matrix products, by the `gemm` crate, split by rows of the result.
//!
//! The crate takes memory for packed operands and gives it back in every call, and cannot be lent any:
//! up to two allocations for each task of a product.

use crate::{Context, strips::Rect};

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

/// `out = a·b`, `out` row-major, on the calling thread.
///
/// # Panics
/// The shapes do not fit together.
pub(crate) fn multiply(a: View<'_>, b: View<'_>, out: &mut [f32]) {
    assert_eq!(out.len(), a.rows * b.cols);
    if !out.is_empty() {
        product(a, b, 0.0, &mut Rect::of(out, b.cols));
    }
}
