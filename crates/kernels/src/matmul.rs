//! f32 matrix products, by the `gemm` crate, split by rows of the result.

use crate::Context;

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

    /// `rows × cols` of a larger row-major matrix, whose rows are `row_stride` apart, from `offset` on.
    ///
    /// # Panics
    /// The last element lies outside `data`.
    pub fn strided(data: &'a [f32], offset: usize, rows: usize, cols: usize, row_stride: usize) -> View<'a> {
        assert!(cols <= row_stride);
        assert!(rows == 0 || cols == 0 || offset + (rows - 1) * row_stride + cols <= data.len());
        let data = if rows == 0 || cols == 0 { &[] } else { &data[offset..] };
        View { data, rows, cols, row_stride, col_stride: 1 }
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

/// `out = beta·out + alpha·a·b` on one thread; `out` has rows `out_stride` apart.
///
/// # Panics
/// The shapes do not fit together.
pub fn serial(a: View<'_>, b: View<'_>, alpha: f32, beta: f32, out: &mut [f32], out_stride: usize) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(a.cols, b.rows, "inner dimensions");
    assert!(n <= out_stride);
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * out_stride + n <= out.len(), "result too small");
    let stride = |s: usize| s as isize;
    // SAFETY: the views were checked on construction to hold every (row, column) of their shape, the
    // result was checked above, and it is exclusively borrowed, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(out_stride),
            beta != 0.0,
            a.data.as_ptr(),
            stride(a.col_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.col_stride),
            stride(b.row_stride),
            beta,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `out = beta·out + a·b`, `out` row-major, rows split among threads.
///
/// # Panics
/// The shapes do not fit together.
pub fn matmul(cx: &Context, a: View<'_>, b: View<'_>, beta: f32, out: &mut [f32]) {
    let n = b.cols;
    assert_eq!(out.len(), a.rows * n);
    if out.is_empty() {
        return;
    }
    // A quarter of the rows, in multiples of 16: enough pieces for a few threads, few enough that the
    // packing of `b`, which every piece repeats, stays small. A function of the shape alone.
    let rows = a.rows.div_ceil(4).next_multiple_of(16);
    cx.chunks(out, rows * n, |index, part| {
        serial(a.rows_from(index * rows, part.len() / n), b, 1.0, beta, part, n);
    });
}
