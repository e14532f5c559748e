//! Sums over whole buffers and over rows.

use cubecl::prelude::*;

use super::buffers::SHARE;
use crate::{
    Floats, Gpu,
    blocks::{UNITS, cube_sum, desk, is_open},
    launch::{arg, cubes, launch, units},
};

/// One cube a share: the sum of `x`, or of `x · y`.
#[cube(launch, create_dummy_kernel)]
fn sum_shares(x: &[f32], y: &[f32], sums: &mut [f32], #[comptime] products: bool) {
    let mut desk = desk();
    if CUBE_POS < sums.len() {
        let first = CUBE_POS * SHARE;
        let last = min(first + SHARE, x.len());
        let mut sum = 0.0f32;
        let mut i = first + UNIT_POS as usize;
        while i < last {
            sum += if comptime![products] { x[i] * y[i] } else { x[i] };
            i += UNITS;
        }
        let sum = cube_sum(sum, &mut desk);
        if UNIT_POS == 0 {
            sums[CUBE_POS] = sum;
        }
    }
}

/// One cube: the sum of all shares, in the place of `out[at]` or added to it.
#[cube(launch, create_dummy_kernel)]
fn sum_sums(sums: &[f32], out: &mut [f32], gates: &[f32], gate: usize, at: usize, #[comptime] add: bool) {
    let mut desk = desk();
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < sums.len() {
        sum += sums[i];
        i += UNITS;
    }
    let sum = cube_sum(sum, &mut desk);
    if UNIT_POS == 0 && is_open(gates, gate) {
        out[at] = if comptime![add] { out[at] + sum } else { sum };
    }
}

/// One cube a row.
#[cube(launch, create_dummy_kernel)]
fn square_rows(x: &[f32], out: &mut [f32], cols: usize) {
    let mut desk = desk();
    if CUBE_POS < out.len() {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < cols {
            let value = x[CUBE_POS * cols + i];
            sum += value * value;
            i += UNITS;
        }
        let sum = cube_sum(sum, &mut desk);
        if UNIT_POS == 0 {
            out[CUBE_POS] = sum;
        }
    }
}

fn total(gpu: &Gpu, x: &Floats, y: Option<&Floats>, (out, at): (&mut Floats, usize), add: bool) {
    assert!(at < out.len && y.is_none_or(|y| y.len == x.len), "lengths of a sum");
    if x.len == 0 {
        // Shares have something to add.
        let none = Floats { handle: gpu.zeros(1), len: 1, room: 1 };
        return total(gpu, &none, None, (out, at), add);
    }
    let shares = x.len.div_ceil(SHARE);
    let sums = gpu.room(shares);
    let sums = || arg(&sums, shares);
    let products = y.is_some();
    launch!(gpu, sum_shares, cubes(shares), units(), x.arg(), y.unwrap_or(x).arg(), sums(), products);
    let (gates, gate) = gpu.gate();
    launch!(gpu, sum_sums, cubes(1), units(), sums(), out.arg(), gates, gate, at, add);
}

pub(crate) fn sum(gpu: &Gpu, x: &Floats, out: &mut Floats, at: usize) {
    total(gpu, x, None, (out, at), false);
}

pub(crate) fn add_sum(gpu: &Gpu, x: &Floats, out: &mut Floats, at: usize) {
    total(gpu, x, None, (out, at), true);
}

pub(crate) fn add_sum_squares(gpu: &Gpu, x: &Floats, out: &mut Floats, at: usize) {
    total(gpu, x, Some(x), (out, at), true);
}

pub(crate) fn add_dot(gpu: &Gpu, x: &Floats, y: &Floats, out: &mut Floats, at: usize) {
    total(gpu, x, Some(y), (out, at), true);
}

pub(crate) fn square_sums(gpu: &Gpu, x: &Floats, out: &mut Floats) {
    let cols = x.len / out.len.max(1);
    assert_eq!(x.len, out.len * cols, "lengths of rows");
    launch!(gpu, square_rows, cubes(out.len), units(), x.arg(), out.arg(), cols);
}
