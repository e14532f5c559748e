//! The direction of Muon: a matrix with its singular values drawn towards one, by the steps of
//! `kernels::update::orthogonal`.

use cubecl::prelude::*;
use tritrain_backend::Memory;

use crate::{
    Floats, Gpu,
    launch::{cubes_for, launch, units},
    ops::{
        buffers::{self, copy},
        head::slice,
        matmul::{View, gemms},
        products::{Onto, Place},
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

/// Rows of a block, each of which is a matrix of its own; the processor has the same.
const BLOCK_ROWS: usize = 64;

/// `to = x / norm` of each block.
#[cube(launch, create_dummy_kernel)]
fn unit_kernel(x: &[f32], squares: &[f32], to: &mut [f32], block: usize) {
    if ABSOLUTE_POS < to.len() {
        let mut norm = squares[ABSOLUTE_POS / block].sqrt();
        if norm < LEAST {
            norm = LEAST;
        }
        to[ABSOLUTE_POS] = x[ABSOLUTE_POS] / norm;
    }
}

/// `square = a·I + b·gram + c·square`, of each block.
#[cube(launch, create_dummy_kernel)]
fn quintic_kernel(gram: &[f32], square: &mut [f32], side: usize, a: f32, b: f32, c: f32) {
    if ABSOLUTE_POS < square.len() {
        let mut sum = c * square[ABSOLUTE_POS] + b * gram[ABSOLUTE_POS];
        if ABSOLUTE_POS / side % side == ABSOLUTE_POS % side {
            sum += a;
        }
        square[ABSOLUTE_POS] = sum;
    }
}

pub(crate) fn orthogonalize(gpu: &Gpu, x: &mut Floats, rows: usize, rms: f32) {
    let cols = x.len / rows.max(1);
    assert_eq!(x.len, rows * cols, "lengths of a matrix");
    let (whole, rest) = (rows / BLOCK_ROWS, rows % BLOCK_ROWS);
    orthogonalize_blocks(gpu, x, 0, (whole, BLOCK_ROWS, cols), rms);
    orthogonalize_blocks(gpu, x, whole * BLOCK_ROWS * cols, (1, rest, cols), rms);
}

/// `count` blocks of one shape, from an element of `x` on.
fn orthogonalize_blocks(
    gpu: &Gpu,
    x: &mut Floats,
    from: usize,
    (count, rows, cols): (usize, usize, usize),
    rms: f32,
) {
    let (block, side) = (rows * cols, rows.min(cols));
    if count * block == 0 {
        return;
    }
    let room = |len: usize| Floats { handle: gpu.room(len), len, room: len };
    let mut squares = gpu.floats(count);
    let (part, unit) = (slice(gpu, x, from, count * block), room(count * block));
    reduce::square_sums(gpu, &part, &mut squares);
    launch!(gpu, unit_kernel, cubes_for(unit.len), units(), part.arg(), squares.arg(), unit.arg(), block);
    let small = || room(count * side * side);
    let (mut gram, mut polynomial, mut product, mut spare) = (small(), small(), small(), small());
    let unit = View::at(&unit, 0, rows, cols);
    let (wide, tall) = if rows <= cols { (unit, unit.t()) } else { (unit.t(), unit) };
    let step = side * side;
    gemms(gpu, count, (wide, block), (tall, block), Onto::Replace, ((&mut gram).into(), step));
    let times = |a: &Floats, b: &Floats, to: &mut Floats| {
        let [a, b] = [a, b].map(|of| (View::at(of, 0, side, side), step));
        gemms(gpu, count, a, b, Onto::Replace, (to.into(), step));
    };
    for (at, [a, b, c]) in QUINTICS.into_iter().enumerate() {
        times(&gram, &gram, &mut polynomial);
        let cubes = cubes_for(count * step);
        launch!(gpu, quintic_kernel, cubes, units(), gram.arg(), polynomial.arg(), side, a, b, c);
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
    let product = (View::at(&product, 0, side, side), step);
    let unit = (unit, block);
    let (left, right) = if rows <= cols { (product, unit) } else { (unit, product) };
    gemms(gpu, count, left, right, Onto::Replace, (Place { of: x, from }, block));
}
