//! Biases of linear layers: added to rows, their gradients sums of rows.

use cubecl::prelude::*;

use super::norm::add_parts;
use crate::{
    Floats, Gpu,
    launch::{arg, cubes_for, launch, units},
};

/// Rows that one unit sums for the gradient of a bias.
const ROWS: usize = 32;

/// One unit a number.
#[cube(launch, create_dummy_kernel)]
fn add_rows(bias: &[f32], x: &mut [f32]) {
    if ABSOLUTE_POS < x.len() {
        x[ABSOLUTE_POS] += bias[ABSOLUTE_POS % bias.len()];
    }
}

/// One unit a column and block of rows: the sum of the block.
#[cube(launch, create_dummy_kernel)]
fn sum_rows(dy: &[f32], parts: &mut [f32], cols: usize) {
    if ABSOLUTE_POS < parts.len() {
        let (block, col) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let first = block * ROWS;
        let last = min(first + ROWS, dy.len() / cols);
        let mut sum = 0.0f32;
        for row in first..last {
            sum += dy[row * cols + col];
        }
        parts[ABSOLUTE_POS] = sum;
    }
}

pub(crate) fn add(gpu: &Gpu, bias: &Floats, x: &mut Floats) {
    assert!(bias.len > 0 && x.len.is_multiple_of(bias.len), "lengths of a bias");
    launch!(gpu, add_rows, cubes_for(x.len), units(), bias.arg(), x.arg());
}

pub(crate) fn gradient(gpu: &Gpu, dy: &Floats, d_bias: &mut Floats) {
    let cols = d_bias.len;
    assert!(cols > 0 && dy.len.is_multiple_of(cols), "lengths of a bias");
    let len = (dy.len / cols).div_ceil(ROWS) * cols;
    let parts = gpu.room(len);
    launch!(gpu, sum_rows, cubes_for(len), units(), dy.arg(), arg(&parts, len), cols);
    launch!(gpu, add_parts, cubes_for(cols), units(), arg(&parts, len), d_bias.arg());
}
