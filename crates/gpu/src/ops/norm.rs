//! RMSNorm, alone or with int8 rows behind it, and int8 rows alone.

use cubecl::prelude::*;
use tritrain_backend::Store;

use crate::{
    Floats, Gpu, Rows,
    blocks::{
        UNITS, as_byte, cube_max, cube_sum, desk, inverse_scale, magnitude, nearest, row_scale, word_desk,
    },
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Largest code of an int8 row.
const BOUND: f32 = 127.0;

/// Rows that one cube sums for the gradient of a gain.
const GAIN_ROWS: usize = 32;

/// One cube a row: its reciprocal root mean square, and with it the row where `write`.
#[cube(launch, create_dummy_kernel)]
fn normalise(x: &[f32], gain: &[f32], h: &mut [f32], rstd: &mut [f32], cols: usize, eps: f32) {
    let mut desk = desk();
    let row = CUBE_POS;
    if row < rstd.len() {
        let unit = UNIT_POS as usize;
        let start = row * cols;
        let r = reciprocal_rms(x, start, cols, eps, &mut desk);
        if unit == 0 {
            rstd[row] = r;
        }
        let mut i = unit;
        while i < cols {
            h[start + i] = x[start + i] * r * gain[i];
            i += UNITS;
        }
    }
}

#[cube]
pub(super) fn reciprocal_rms(
    x: &[f32],
    start: usize,
    cols: usize,
    eps: f32,
    desk: &mut Shared<[f32]>,
) -> f32 {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < cols {
        let value = x[start + i];
        sum += value * value;
        i += UNITS;
    }
    let sum = cube_sum(sum, desk);
    1.0f32 / (sum / f32::cast_from(cols) + eps).sqrt()
}

/// One cube a row: int8 codes of `x · factor`, or of `x · rstd · gain`.
#[cube(launch, create_dummy_kernel)]
fn normalise_quantise(
    x: &[f32],
    gain: &[f32],
    codes: &mut [u32],
    scales: &mut [f32],
    rstd: &mut [f32],
    cols: usize,
    eps: f32,
    #[comptime] norm: bool,
) {
    let mut desk = desk();
    let mut words = word_desk();
    let row = CUBE_POS;
    if row < scales.len() {
        let unit = UNIT_POS as usize;
        let start = row * cols;
        let mut r = 1.0f32;
        if comptime![norm] {
            r = reciprocal_rms(x, start, cols, eps, &mut desk);
            if unit == 0 {
                rstd[row] = r;
            }
        }
        let mut largest = 0u32;
        let mut i = unit;
        while i < cols {
            let value = if comptime![norm] { x[start + i] * r * gain[i] } else { x[start + i] };
            largest = max(largest, magnitude(value));
            i += UNITS;
        }
        let largest = cube_max(largest, &mut words);
        if unit == 0 {
            scales[row] = row_scale(largest, BOUND);
        }
        let inverse = inverse_scale(largest, BOUND);
        let row_words = cols.div_ceil(4);
        let mut w = unit;
        while w < row_words {
            let mut word = 0u32;
            #[unroll]
            for at in 0..4usize {
                let i = 4 * w + at;
                if i < cols && inverse != 0.0f32 {
                    let value = if comptime![norm] { x[start + i] * r * gain[i] } else { x[start + i] };
                    word |= as_byte(nearest(value * inverse), comptime![at as u32]);
                }
            }
            codes[row * row_words + w] = word;
            w += UNITS;
        }
    }
}

/// One cube a row: the gradient of its input.
#[cube(launch, create_dummy_kernel)]
fn differentiate(
    dh: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
    cols: usize,
    #[comptime] add: bool,
) {
    let mut desk = desk();
    let row = CUBE_POS;
    if row < rstd.len() {
        let unit = UNIT_POS as usize;
        let start = row * cols;
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < cols {
            sum += dh[start + i] * gain[i] * x[start + i];
            i += UNITS;
        }
        let r = rstd[row];
        let mean = cube_sum(sum, &mut desk) * r * r / f32::cast_from(cols);
        let mut i = unit;
        while i < cols {
            let slope = r * (dh[start + i] * gain[i] - x[start + i] * mean);
            dx[start + i] = if comptime![add] { dx[start + i] + slope } else { slope };
            i += UNITS;
        }
    }
}

/// One unit a column and block of rows: `Σ dh · rstd · x` of the block.
#[cube(launch, create_dummy_kernel)]
fn gain_parts(dh: &[f32], x: &[f32], rstd: &[f32], parts: &mut [f32], cols: usize) {
    if ABSOLUTE_POS < parts.len() {
        let (block, col) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let first = block * GAIN_ROWS;
        let last = min(first + GAIN_ROWS, rstd.len());
        let mut sum = 0.0f32;
        for row in first..last {
            sum += dh[row * cols + col] * rstd[row] * x[row * cols + col];
        }
        parts[ABSOLUTE_POS] = sum;
    }
}

/// One unit a column: the sum of all blocks.
#[cube(launch, create_dummy_kernel)]
pub(super) fn add_parts(parts: &[f32], out: &mut [f32]) {
    let cols = out.len();
    if ABSOLUTE_POS < cols {
        let mut sum = 0.0f32;
        for block in 0..parts.len() / cols {
            sum += parts[block * cols + ABSOLUTE_POS];
        }
        out[ABSOLUTE_POS] = sum;
    }
}

pub(crate) fn rmsnorm(gpu: &Gpu, x: &Floats, gain: &Floats, eps: f32, h: &mut Floats, rstd: &mut Floats) {
    assert!(x.len == h.len && x.len == rstd.len * gain.len, "lengths of a norm");
    launch!(
        gpu,
        normalise,
        cubes(rstd.len),
        units(),
        x.arg(),
        gain.arg(),
        h.arg(),
        rstd.arg(),
        gain.len,
        eps,
    );
}

pub(crate) fn rmsnorm_quantize(
    gpu: &Gpu,
    x: &Floats,
    gain: &Floats,
    eps: f32,
    h: &mut Rows,
    rstd: &mut Floats,
) {
    assert!(x.len == h.rows * h.cols && h.cols == gain.len && rstd.len == h.rows, "lengths of a norm");
    launch_quantise(gpu, x, Some((gain, eps)), h, rstd);
}

pub(crate) fn quantize_rows(gpu: &Gpu, x: &Floats, rows: &mut Rows) {
    assert_eq!(x.len, rows.rows * rows.cols, "lengths of rows");
    // Nothing is normalised: stand-ins that the kernel does not read.
    let mut unread = Floats { handle: rows.scales.clone(), len: rows.rows, room: rows.rows };
    launch_quantise(gpu, x, None, rows, &mut unread);
}

/// One unit a number.
#[cube(launch, create_dummy_kernel)]
fn dequantise(codes: &[u32], scales: &[f32], x: &mut [f32], cols: usize) {
    if ABSOLUTE_POS < x.len() {
        let (row, col) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let code = crate::blocks::byte(codes[row * cols.div_ceil(4) + col / 4], (col % 4) as u32);
        x[ABSOLUTE_POS] = f32::cast_from(code) * scales[row];
    }
}

pub(crate) fn dequantize_rows(gpu: &Gpu, rows: &Rows, x: &mut Floats) -> usize {
    super::buffers::resize(gpu, x, rows.rows * rows.cols);
    let (codes, scales) = (arg(&rows.codes, rows.rows * rows.words()), arg(&rows.scales, rows.rows));
    launch!(gpu, dequantise, cubes_for(x.len), units(), codes, scales, x.arg(), rows.cols);
    rows.rows
}

pub(super) fn launch_quantise(
    gpu: &Gpu,
    x: &Floats,
    norm: Option<(&Floats, f32)>,
    to: &mut Rows,
    rstd: &mut Floats,
) {
    let (gain, eps) = norm.map_or((x, 0.0), |(gain, eps)| (gain, eps));
    let spare = if norm.is_none() { Some(gpu.room(1)) } else { None };
    let rstd = spare.map_or_else(|| rstd.arg(), |spare| arg(&spare, 1));
    launch!(
        gpu,
        normalise_quantise,
        cubes(to.rows),
        units(),
        x.arg(),
        gain.arg(),
        arg(&to.codes, to.rows * to.words()),
        arg(&to.scales, to.rows),
        rstd,
        to.cols,
        eps,
        norm.is_some(),
    );
}

pub(crate) fn rmsnorm_backward(
    gpu: &Gpu,
    dh: &Floats,
    x: &Floats,
    gain: &Floats,
    rstd: &Floats,
    store: Store,
    dx: &mut Floats,
    rows: Option<&mut Rows>,
    d_gain: &mut Floats,
) {
    let cols = gain.len;
    assert!(
        x.len == dh.len && x.len == dx.len && x.len == rstd.len * cols && d_gain.len == cols,
        "lengths of a norm"
    );
    launch!(
        gpu,
        differentiate,
        cubes(rstd.len),
        units(),
        dh.arg(),
        x.arg(),
        gain.arg(),
        rstd.arg(),
        dx.arg(),
        cols,
        store == Store::Add,
    );
    gain_gradient(gpu, dh, x, rstd, d_gain);
    if let Some(rows) = rows {
        quantize_rows(gpu, dx, rows);
    }
}

/// `d_gain = Σ_r dh[r] · rstd[r] · x[r]`.
pub(super) fn gain_gradient(gpu: &Gpu, dh: &Floats, x: &Floats, rstd: &Floats, d_gain: &mut Floats) {
    let len = rstd.len.div_ceil(GAIN_ROWS) * d_gain.len;
    let parts = gpu.room(len);
    launch!(
        gpu,
        gain_parts,
        cubes_for(len),
        units(),
        dh.arg(),
        x.arg(),
        rstd.arg(),
        arg(&parts, len),
        d_gain.len,
    );
    launch!(gpu, add_parts, cubes_for(d_gain.len), units(), arg(&parts, len), d_gain.arg());
}
