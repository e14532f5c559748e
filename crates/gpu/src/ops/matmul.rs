//! Products of f32 matrices.

use cubecl::prelude::*;

use super::products::{Onto, Place, SIDE};
use crate::{
    Floats, Gpu, Tile,
    blocks::UNITS,
    launch::{arg, launch},
};

/// A matrix in a buffer: where it begins, and what lies between its rows and its columns.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    of: &'a Floats,
    from: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix from element `from` on.
    pub(super) fn at(of: &'a Floats, from: usize, rows: usize, cols: usize) -> View<'a> {
        assert!(from + rows * cols <= of.len, "a matrix in a buffer");
        View { of, from, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A row-major matrix that is a whole buffer.
    pub(super) fn new(of: &'a Floats, rows: usize, cols: usize) -> View<'a> {
        assert_eq!(of.len, rows * cols, "a matrix is a buffer");
        View::at(of, 0, rows, cols)
    }

    /// The matrix turned.
    pub(super) fn t(self) -> View<'a> {
        let (rows, cols) = (self.cols, self.rows);
        View { rows, cols, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

#[cube(launch, create_dummy_kernel)]
fn matmul_kernel(
    a: &[f32],
    b: &[f32],
    residual: &[f32],
    y: &mut [f32],
    rows: usize,
    columns: usize,
    inner: usize,
    a_from: usize,
    a_row: usize,
    a_col: usize,
    b_from: usize,
    b_row: usize,
    b_col: usize,
    y_from: usize,
    a_step: usize,
    b_step: usize,
    y_step: usize,
    depth: usize,
    #[comptime] base: u32,
    #[comptime] own: usize,
    #[comptime] deep: usize,
) {
    let tile = comptime![own * SIDE];
    // Between rows of a tile in shared memory.
    let pitch = comptime![deep + 1];
    let mut l = Shared::<[f32]>::new_slice(comptime![own * SIDE * (deep + 1)]);
    let mut r = Shared::<[f32]>::new_slice(comptime![own * SIDE * (deep + 1)]);
    let unit = UNIT_POS as usize;
    let one = CUBE_POS_Z as usize;
    let a_from = a_from + one * a_step;
    let b_from = b_from + one * b_step;
    let y_from = y_from + one * y_step;
    let across = unit % SIDE;
    let down = unit / SIDE;
    let first_row = CUBE_POS_Y as usize * tile;
    let first_column = CUBE_POS_X as usize * tile;
    let mut sums = Array::<f32>::new(comptime![own * own]);
    #[unroll]
    for at in 0..own * own {
        sums[at] = 0.0f32;
    }
    for step in 0..inner.div_ceil(deep) {
        let from = step * deep;
        #[unroll]
        for part in 0..comptime![own * SIDE * deep / UNITS] {
            let place = unit + part * UNITS;
            let line = place / deep;
            let at = place % deep;
            let inside = from + at < inner;
            l[line * pitch + at] = if inside && first_row + line < rows {
                a[a_from + (first_row + line) * a_row + (from + at) * a_col]
            } else {
                0.0f32.runtime()
            };
            r[line * pitch + at] = if inside && first_column + line < columns {
                b[b_from + (from + at) * b_row + (first_column + line) * b_col]
            } else {
                0.0f32.runtime()
            };
        }
        sync_cube();
        // No constant, or compilers unroll it until registers run out.
        for at in 0..depth {
            #[unroll]
            for i in 0..own {
                let left = l[(down + SIDE * i) * pitch + at];
                #[unroll]
                for j in 0..own {
                    sums[comptime![i * own + j]] += left * r[(across + SIDE * j) * pitch + at];
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..own {
        let row = first_row + down + SIDE * i;
        #[unroll]
        for j in 0..own {
            let column = first_column + across + SIDE * j;
            if row < rows && column < columns {
                let place = row * columns + column;
                let sum = sums[comptime![i * own + j]];
                y[y_from + place] = if comptime![base == 1] {
                    y[y_from + place] + sum
                } else if comptime![base == 2] {
                    residual[place] + sum
                } else {
                    sum
                };
            }
        }
    }
}

/// `y = a·b`, or that added to something.
pub(super) fn gemm(gpu: &Gpu, a: View<'_>, b: View<'_>, onto: Onto<'_>, y: Place<'_>) {
    gemms(gpu, 1, (a, 0), (b, 0), onto, (y, 0));
}

/// Some products of one shape: each pair of factors and each result lies so many elements behind the one before.
/// Onto a residual there is one.
pub(super) fn gemms(
    gpu: &Gpu,
    count: usize,
    (a, a_step): (View<'_>, usize),
    (b, b_step): (View<'_>, usize),
    onto: Onto<'_>,
    (y, y_step): (Place<'_>, usize),
) {
    let last = count.saturating_sub(1);
    assert!(a.cols == b.rows, "sizes of a product");
    assert!(y.from + last * y_step + a.rows * b.cols <= y.of.len, "sizes of a product");
    assert!(a.from + last * a_step + a.rows * a.cols <= a.of.len, "sizes of a product");
    assert!(b.from + last * b_step + b.rows * b.cols <= b.of.len, "sizes of a product");
    if count * a.rows * b.cols == 0 {
        return;
    }
    let spare = gpu.room(1);
    let (residual, base) = match onto {
        Onto::Replace => (arg(&spare, 1), 0_u32),
        Onto::Add => (arg(&spare, 1), 1),
        Onto::Residual(residual) => (arg(residual, a.rows * b.cols), 2),
    };
    let Tile { own, depth } = gpu.tiles.matmul;
    let tile = own * SIDE;
    launch!(
        gpu,
        matmul_kernel,
        CubeCount::Static(b.cols.div_ceil(tile) as u32, a.rows.div_ceil(tile) as u32, count as u32),
        CubeDim::new_1d(UNITS as u32),
        a.of.arg(),
        b.of.arg(),
        residual,
        y.of.arg(),
        a.rows,
        b.cols,
        a.cols,
        a.from,
        a.row_stride,
        a.col_stride,
        b.from,
        b.row_stride,
        b.col_stride,
        y.from,
        a_step,
        b_step,
        y_step,
        depth,
        base,
        own,
        depth,
    );
}

pub(crate) fn matmul(
    gpu: &Gpu,
    x: &Floats,
    w: &Floats,
    inputs: usize,
    residual: Option<&Floats>,
    y: &mut Floats,
) {
    let (tokens, outputs) = (x.len / inputs, w.len / inputs);
    let onto = match residual {
        Some(residual) => Onto::Residual(&residual.handle),
        None => Onto::Replace,
    };
    gemm(gpu, View::new(x, tokens, inputs), View::new(w, outputs, inputs).t(), onto, y.into());
}

pub(crate) fn matmul_input_gradient(gpu: &Gpu, dy: &Floats, w: &Floats, inputs: usize, dx: &mut Floats) {
    let (tokens, outputs) = (dx.len / inputs, w.len / inputs);
    gemm(gpu, View::new(dy, tokens, outputs), View::new(w, outputs, inputs), Onto::Replace, dx.into());
}

pub(crate) fn matmul_weight_gradient(gpu: &Gpu, dy: &Floats, x: &Floats, inputs: usize, dw: &mut Floats) {
    let (tokens, outputs) = (x.len / inputs, dw.len / inputs);
    gemm(gpu, View::new(dy, tokens, outputs).t(), View::new(x, tokens, inputs), Onto::Replace, dw.into());
}
