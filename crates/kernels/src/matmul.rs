//! f32 matrix products, by the `gemm` crate, split by rows of the result.
//!
//! The crate takes memory for packed operands and gives it back in every call, and cannot be lent any:
//! up to two allocations for each task of a product.

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

/// A rectangle of a row-major result that one call of the `gemm` crate writes.
struct Target {
    first: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
}

// SAFETY: targets of several threads are disjoint parts of one exclusively borrowed slice; see `matmul`.
unsafe impl Send for Target {}

/// # Safety
/// `out` must be valid for reads and writes of all of its elements, and nothing else may touch them.
unsafe fn product(a: View<'_>, b: View<'_>, beta: f32, out: &Target) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(a.cols == b.rows && out.rows == m && out.cols == n, "shapes of a product");
    if m == 0 || n == 0 {
        return;
    }
    let stride = |s: usize| s as isize;
    // SAFETY: the views were checked on construction to hold every (row, column) of their shape, and the
    // caller vouches for the result.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.first,
            1,
            stride(out.stride),
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
    if m >= n {
        let rows = part(m);
        cx.chunks(out, rows * n, |index, out| {
            let rows_here = out.len() / n;
            let target = Target { first: out.as_mut_ptr(), stride: n, rows: rows_here, cols: n };
            // SAFETY: the target is all of `out`, which is exclusively borrowed.
            unsafe { product(a.rows_from(index * rows, rows_here), b, beta, &target) }
        });
        return;
    }
    let cols = part(n);
    let first = out.as_mut_ptr();
    let mut targets: [Target; TASKS] = std::array::from_fn(|index| {
        let column = n.min(index * cols);
        Target { first: first.wrapping_add(column), stride: n, rows: m, cols: cols.min(n - column) }
    });
    cx.chunks(&mut targets[..n.div_ceil(cols)], 1, |index, target| {
        let b = b.t().rows_from(index * cols, target[0].cols).t();
        // SAFETY: the columns of the targets are disjoint and lie in `out`, which holds m rows of n.
        unsafe { product(a, b, beta, &target[0]) }
    });
}
