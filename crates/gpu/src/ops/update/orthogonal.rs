//! The direction of Muon: a matrix with its singular values drawn towards one, by the steps of
//! `kernels::update::orthogonal`.

use cubecl::prelude::*;
use tritrain_backend::Memory;

use crate::{
    Floats, Gpu,
    launch::{cubes_for, launch, units},
    ops::{
        buffers::{self, copy},
        matmul::{View, gemm},
        products::Onto,
        reduce,
    },
};

/// Coefficients of each Newton–Schulz step (Amsel et al., 2505.16932, algorithm 1); the processor has the same.
const QUINTICS: [[f32; 3]; 3] = [
    [8.093_368, -23.620_43, 17.446_152],
    [3.636_585_5, -2.721_927, 0.536_546_3],
    [2.661_3, -1.977_154_5, 0.452_616_4],
];
/// What norms are taken to be at least.
const LEAST: f32 = 1e-30;

/// `to = x / norm`.
#[cube(launch, create_dummy_kernel)]
fn unit_kernel(x: &[f32], square: &[f32], to: &mut [f32]) {
    if ABSOLUTE_POS < to.len() {
        let mut norm = square[0].sqrt();
        if norm < LEAST {
            norm = LEAST;
        }
        to[ABSOLUTE_POS] = x[ABSOLUTE_POS] / norm;
    }
}

/// `square = a·I + b·gram + c·square`.
#[cube(launch, create_dummy_kernel)]
fn quintic_kernel(gram: &[f32], square: &mut [f32], side: usize, a: f32, b: f32, c: f32) {
    if ABSOLUTE_POS < square.len() {
        let mut sum = c * square[ABSOLUTE_POS] + b * gram[ABSOLUTE_POS];
        if ABSOLUTE_POS / side == ABSOLUTE_POS % side {
            sum += a;
        }
        square[ABSOLUTE_POS] = sum;
    }
}

pub(crate) fn orthogonalize(gpu: &Gpu, x: &mut Floats, rows: usize, rms: f32) {
    let cols = x.len / rows.max(1);
    assert_eq!(x.len, rows * cols, "lengths of a matrix");
    if x.len == 0 {
        return;
    }
    let side = rows.min(cols);
    let room = |len: usize| Floats { handle: gpu.room(len), len, room: len };
    let mut square = gpu.floats(1);
    reduce::add_sum_squares(gpu, x, &mut square, 0);
    let unit = room(x.len);
    launch!(gpu, unit_kernel, cubes_for(x.len), units(), x.arg(), square.arg(), unit.arg());
    let small = || room(side * side);
    let (mut gram, mut polynomial, mut product, mut spare) = (small(), small(), small(), small());
    let unit = View::new(&unit, rows, cols);
    let (wide, tall) = if rows <= cols { (unit, unit.t()) } else { (unit.t(), unit) };
    gemm(gpu, wide, tall, Onto::Replace, (&mut gram).into());
    let times = |a: &Floats, b: &Floats, to: &mut Floats| {
        gemm(gpu, View::new(a, side, side), View::new(b, side, side), Onto::Replace, to.into());
    };
    for (at, [a, b, c]) in QUINTICS.into_iter().enumerate() {
        times(&gram, &gram, &mut polynomial);
        let count = cubes_for(side * side);
        launch!(gpu, quintic_kernel, count, units(), gram.arg(), polynomial.arg(), side, a, b, c);
        if at == 0 {
            copy(gpu, &polynomial, &mut product);
        } else {
            times(&product, &polynomial, &mut spare);
            std::mem::swap(&mut product, &mut spare);
        }
        if at + 1 < QUINTICS.len() {
            times(&gram, &polynomial, &mut spare);
            times(&spare, &polynomial, &mut gram);
        }
    }
    buffers::scale(gpu, &mut product, rms * (rows.max(cols) as f32).sqrt());
    let product = View::new(&product, side, side);
    let (left, right) = if rows <= cols { (product, unit) } else { (unit, product) };
    gemm(gpu, left, right, Onto::Replace, x.into());
}
