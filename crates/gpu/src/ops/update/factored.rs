//! The factored update (Adafactor, 1804.04235).

use cubecl::prelude::*;
use tritrain_backend::{Factored, Memory};

use crate::{
    Floats, Gpu,
    blocks::{UNITS, cube_sum, desk, is_open},
    launch::{arg, cubes, cubes_for, launch, units},
    ops::reduce,
};

/// Rows whose squares one unit adds up, of a column.
const ROWS: usize = 32;
/// Added to squares, so that a row or column without gradient divides by something.
const TINY: f32 = 1e-30;

/// One cube a row: the running mean of its squares.
#[cube(launch, create_dummy_kernel)]
fn row_means(g: &[f32], row: &mut [f32], gates: &[f32], gate: usize, cols: usize, beta2: f32, new: f32) {
    let mut desk = desk();
    if CUBE_POS < row.len() {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < cols {
            let value = gates[gate] * g[CUBE_POS * cols + i];
            sum += value * value;
            i += UNITS;
        }
        let mean = cube_sum(sum, &mut desk) / f32::cast_from(cols);
        if UNIT_POS == 0 && is_open(gates, gate) {
            row[CUBE_POS] = beta2 * row[CUBE_POS] + new * (mean + TINY);
        }
    }
}

/// One unit a column and block of rows: the sum of squares.
#[cube(launch, create_dummy_kernel)]
fn column_squares(g: &[f32], parts: &mut [f32], gates: &[f32], gate: usize, rows: usize, cols: usize) {
    if ABSOLUTE_POS < parts.len() {
        let (block, col) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let first = block * ROWS;
        let last = min(first + ROWS, rows);
        let mut sum = 0.0f32;
        for row in first..last {
            let value = gates[gate] * g[row * cols + col];
            sum += value * value;
        }
        parts[ABSOLUTE_POS] = sum;
    }
}

/// One unit a column: the running mean of its squares.
#[cube(launch, create_dummy_kernel)]
fn column_means(
    parts: &[f32],
    col: &mut [f32],
    gates: &[f32],
    gate: usize,
    rows: usize,
    beta2: f32,
    new: f32,
) {
    let cols = col.len();
    if ABSOLUTE_POS < cols && is_open(gates, gate) {
        let mut sum = 0.0f32;
        for block in 0..parts.len() / cols {
            sum += parts[block * cols + ABSOLUTE_POS];
        }
        col[ABSOLUTE_POS] = beta2 * col[ABSOLUTE_POS] + new * (sum / f32::cast_from(rows) + TINY);
    }
}

/// The update of an entry, before it is clipped; `total` is the sum of the means of all rows.
#[cube]
fn scaled(g: f32, total: f32, rows: usize, row: f32, col: f32) -> f32 {
    g * (total / f32::cast_from(rows) / row).sqrt() * (1.0f32 / col.sqrt())
}

/// One cube a row: the sum of squares of the update.
#[cube(launch, create_dummy_kernel)]
fn scaled_squares(
    g: &[f32],
    row: &[f32],
    col: &[f32],
    total: &[f32],
    squares: &mut [f32],
    gates: &[f32],
    gate: usize,
) {
    let mut desk = desk();
    let (rows, cols) = (row.len(), col.len());
    if CUBE_POS < rows {
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < cols {
            let value = gates[gate] * g[CUBE_POS * cols + i];
            let value = scaled(value, total[0], rows, row[CUBE_POS], col[i]);
            sum += value * value;
            i += UNITS;
        }
        let sum = cube_sum(sum, &mut desk);
        if UNIT_POS == 0 {
            squares[CUBE_POS] = sum;
        }
    }
}

/// One unit an entry. `totals` are the sum of the means of rows, and of the squares of the update.
#[cube(launch, create_dummy_kernel)]
fn scale_update(
    g: &mut [f32],
    row: &[f32],
    col: &[f32],
    totals: &[f32],
    mean: &mut [f32],
    gates: &[f32],
    gate: usize,
    momentum: f32,
    new: f32,
    #[comptime] averaged: bool,
) {
    if ABSOLUTE_POS < g.len() && is_open(gates, gate) {
        let (rows, cols) = (row.len(), col.len());
        let (r, c) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let rms = (totals[1] / f32::cast_from(g.len())).sqrt();
        let mut clip = 1.0f32;
        if rms > 1.0f32 {
            clip = 1.0f32 / rms;
        }
        let mut update = scaled(gates[gate] * g[ABSOLUTE_POS], totals[0], rows, row[r], col[c]) * clip;
        if comptime![averaged] {
            update = momentum * mean[ABSOLUTE_POS] + new * update;
            mean[ABSOLUTE_POS] = update;
        }
        g[ABSOLUTE_POS] = update;
    }
}

pub(crate) fn factored(
    gpu: &Gpu,
    g: &mut Floats,
    row: &mut Floats,
    col: &mut Floats,
    momentum: &mut Floats,
    with: Factored,
) {
    let (rows, cols) = (row.len, col.len);
    assert!(g.len == rows * cols && (momentum.len == 0 || momentum.len == g.len), "lengths of a matrix");
    if g.len == 0 {
        return;
    }
    let (beta2, new) = (with.beta2, 1.0 - with.beta2);
    let (gates, gate) = gpu.gate();
    launch!(gpu, row_means, cubes(rows), units(), g.arg(), row.arg(), gates, gate, cols, beta2, new);
    let len = rows.div_ceil(ROWS) * cols;
    let parts = gpu.room(len);
    let parts = arg(&parts, len);
    launch!(gpu, column_squares, cubes_for(len), units(), g.arg(), parts, gates, gate, rows, cols);
    launch!(gpu, column_means, cubes_for(cols), units(), parts, col.arg(), gates, gate, rows, beta2, new);
    let mut totals = gpu.floats(2);
    let squares = Floats { handle: gpu.room(rows), len: rows, room: rows };
    reduce::sum(gpu, row, &mut totals, 0);
    let given = totals.arg();
    launch!(
        gpu,
        scaled_squares,
        cubes(rows),
        units(),
        g.arg(),
        row.arg(),
        col.arg(),
        given,
        squares.arg(),
        gates,
        gate,
    );
    reduce::sum(gpu, &squares, &mut totals, 1);
    launch!(
        gpu,
        scale_update,
        cubes_for(g.len),
        units(),
        g.arg(),
        row.arg(),
        col.arg(),
        totals.arg(),
        momentum.arg(),
        gates,
        gate,
        with.momentum,
        1.0 - with.momentum,
        momentum.len > 0,
    );
}
