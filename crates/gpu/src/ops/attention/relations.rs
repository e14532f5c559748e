//! Relations within queries, keys and values; see the kernel `attention::relate` of the processor.

use cubecl::prelude::*;
use tritrain_backend::Shape;

use super::super::reduce;
use crate::{
    Floats, Gpu,
    blocks::{UNITS, cube_max, cube_sum, desk, ordered, unordered, word_desk},
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Scaled product of rows `i` and `j` of a head, which begin at `start` in rows of `width`.
#[cube]
fn product(x: &[f32], start: usize, width: usize, i: usize, j: usize, dim: usize, scale: f32) -> f32 {
    let mut sum = 0.0f32;
    for col in 0..dim {
        sum += x[start + i * width + col] * x[start + j * width + col];
    }
    sum * scale
}

/// One cube a row of a head of one sequence: `weight·(S − R)` of the row, and its share of the mean divergence.
#[cube(launch, create_dummy_kernel)]
fn differ(
    qkv: &[f32],
    of: &[f32],
    differences: &mut [f32],
    divergences: &mut [f32],
    sequence: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    scale: f32,
    weight: f32,
) {
    let mut sums = desk();
    let mut words = word_desk();
    if CUBE_POS < divergences.len() {
        let (group, i) = (CUBE_POS / time, CUBE_POS % time);
        let width = (heads + 2 * kv_heads) * dim;
        let start = sequence * time * width + group * dim;
        let unit = UNIT_POS as usize;
        let first = CUBE_POS * time;
        let mut most = 0u32;
        let mut their_most = 0u32;
        let mut j = unit;
        while j < time {
            let mine = product(qkv, start, width, i, j, dim, scale);
            differences[first + j] = mine;
            most = max(most, ordered(mine));
            their_most = max(their_most, ordered(product(of, start, width, i, j, dim, scale)));
            j += UNITS;
        }
        let most = unordered(cube_max(most, &mut words));
        let their_most = unordered(cube_max(their_most, &mut words));
        let mut total = 0.0f32;
        let mut their_total = 0.0f32;
        let mut gap = 0.0f32;
        let mut j = unit;
        while j < time {
            let mine = differences[first + j];
            let theirs = product(of, start, width, i, j, dim, scale);
            let their_exp = (theirs - their_most).exp();
            total += (mine - most).exp();
            their_total += their_exp;
            gap += their_exp * (theirs - mine);
            j += UNITS;
        }
        let total = cube_sum(total, &mut sums);
        let their_total = cube_sum(their_total, &mut sums);
        let gap = cube_sum(gap, &mut sums);
        let kind = if group < heads { heads } else { kv_heads };
        let share = 1.0f32 / f32::cast_from(3 * kind) / f32::cast_from(qkv.len() / width);
        if unit == 0 {
            let of_theirs = their_most + their_total.ln();
            divergences[CUBE_POS] = share * (gap / their_total - of_theirs + most + total.ln());
        }
        let mut j = unit;
        while j < time {
            let mine = (differences[first + j] - most).exp() / total;
            let theirs = (product(of, start, width, i, j, dim, scale) - their_most).exp() / their_total;
            differences[first + j] = weight * share * (mine - theirs);
            j += UNITS;
        }
    }
}

/// One unit a number of the rows of one sequence: adds `(D + Dᵀ)·A·scale`.
#[cube(launch, create_dummy_kernel)]
fn spread(
    qkv: &[f32],
    differences: &[f32],
    d_qkv: &mut [f32],
    sequence: usize,
    time: usize,
    width: usize,
    dim: usize,
    scale: f32,
) {
    if ABSOLUTE_POS < time * width {
        let (i, col) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
        let square = col / dim * time * time;
        let start = sequence * time * width;
        let mut sum = 0.0f32;
        for j in 0..time {
            let difference = differences[square + i * time + j] + differences[square + j * time + i];
            sum += difference * qkv[start + j * width + col];
        }
        d_qkv[start + ABSOLUTE_POS] += sum * scale;
    }
}

pub(crate) fn relate(
    gpu: &Gpu,
    qkv: &Floats,
    of: &Floats,
    shape: Shape,
    weight: f32,
    d_qkv: &mut Floats,
    (sums, at): (&mut Floats, usize),
) {
    let Shape { batch, time, heads, kv_heads, head_dim } = shape;
    let (width, rows) = (shape.qkv_width(), (heads + 2 * kv_heads) * time);
    assert!(qkv.len == shape.rows() * width && of.len == qkv.len && d_qkv.len == qkv.len, "of {shape:?}");
    let scale = 1.0 / (head_dim as f32).sqrt();
    let differences = gpu.room(rows * time);
    let divergences = Floats { handle: gpu.room(rows), len: rows, room: rows };
    for sequence in (0..batch).filter(|_| time > 0) {
        launch!(
            gpu,
            differ,
            cubes(rows),
            units(),
            qkv.arg(),
            of.arg(),
            arg(&differences, rows * time),
            divergences.arg(),
            sequence,
            time,
            heads,
            kv_heads,
            head_dim,
            scale,
            weight,
        );
        launch!(
            gpu,
            spread,
            cubes_for(time * width),
            units(),
            qkv.arg(),
            arg(&differences, rows * time),
            d_qkv.arg(),
            sequence,
            time,
            width,
            head_dim,
            scale,
        );
        reduce::add_sum(gpu, &divergences, sums, at);
    }
}
