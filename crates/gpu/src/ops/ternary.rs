//! Ternary matrices: codes and scales of latent weights, and their three products.

use cubecl::{prelude::*, server::Handle};

use super::packed;
use super::products::{self, BLOCK, Factor, Kind, Onto, Place, Scales, product};
use crate::{
    Floats, Gpu, Rows, Ternary,
    blocks::{as_byte, inverse_scale_of, magnitude, nearest, scale_of},
    launch::{arg, cubes_for, launch, units},
};

/// `x` without its lower half of digits (Dekker).
#[cube]
pub(super) fn upper(x: f32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) & 0xffff_f000u32)
}

/// The nearest fp16 of a number that is not negative, NaN beyond the largest.
#[cube]
pub(super) fn fp16(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    if bits > 0x477f_e000u32 {
        // Above 65504, or not a number.
        f32::reinterpret(0x7fc0_0000u32.runtime())
    } else if bits < 0x3880_0000u32 {
        // Subnormal: multiples of 2^-24.
        f32::cast_from(nearest(x * 16_777_216.0f32)) / 16_777_216.0f32
    } else {
        f32::reinterpret((bits + 0xfffu32 + ((bits >> 13u32) & 1u32)) & 0xffff_e000u32)
    }
}

#[cube]
fn half_of(scale: f32) -> f32 {
    if scale > 0.0f32 { scale * 0.5f32 } else { f32::reinterpret(0x7f80_0000u32.runtime()) }
}

/// One unit a word: sixteen codes of a row, or of a column where `turned`.
#[cube(launch, create_dummy_kernel)]
fn code_words(
    w: &[f32],
    scale: &[f32],
    codes: &mut [u32],
    rows: usize,
    cols: usize,
    #[comptime] turned: bool,
) {
    if ABSOLUTE_POS < codes.len() {
        let along = if comptime![turned] { rows } else { cols };
        let words = along.div_ceil(16);
        let line = ABSOLUTE_POS / words;
        let first = ABSOLUTE_POS % words * 16;
        let half = half_of(scale[0]);
        let mut word = 0u32;
        #[unroll]
        for at in 0..16usize {
            let mut code = 1u32;
            if first + at < along {
                let place =
                    if comptime![turned] { (first + at) * cols + line } else { line * cols + first + at };
                let value = w[place];
                code = code + u32::cast_from(value > half) - u32::cast_from(value < -half);
            }
            word |= code << comptime![2 * at as u32];
        }
        codes[ABSOLUTE_POS] = word;
    }
}

/// One unit a column and block of tokens: the scale of `dy · a`.
#[cube(launch, create_dummy_kernel)]
fn column_scales(dy: &[f32], a: &[f32], scales: &mut [f32], inverses: &mut [f32], cols: usize, bound: f32) {
    if ABSOLUTE_POS < scales.len() {
        let first = ABSOLUTE_POS / cols * BLOCK;
        let last = min(first + BLOCK, dy.len() / cols);
        let mut largest = 0u32;
        for t in first..last {
            let factor = if a.len() == 1 { a[0] } else { a[t] };
            largest = max(largest, magnitude(dy[t * cols + ABSOLUTE_POS % cols] * factor));
        }
        scales[ABSOLUTE_POS] = scale_of(largest, bound);
        inverses[ABSOLUTE_POS] = inverse_scale_of(largest, bound);
    }
}

/// One unit a word: four tokens of a column of `dy · a`, in int8, or in int16 as two planes.
#[cube(launch, create_dummy_kernel)]
fn column_words(
    dy: &[f32],
    a: &[f32],
    inverses: &[f32],
    words: &mut [u32],
    cols: usize,
    tokens: usize,
    #[comptime] planes: usize,
) {
    let along = tokens.div_ceil(4);
    if ABSOLUTE_POS < cols * along {
        // Columns side by side, as they lie in memory.
        let (col, word) = (ABSOLUTE_POS % cols, ABSOLUTE_POS / cols);
        let mut high = 0u32;
        let mut low = 0u32;
        #[unroll]
        for at in 0..4usize {
            let t = 4 * word + at;
            if t < tokens {
                let inverse = inverses[t / BLOCK * cols + col];
                let factor = if a.len() == 1 { a[0] } else { a[t] };
                let mut code = 0i32;
                if inverse != 0.0f32 {
                    code = nearest(dy[t * cols + col] * factor * inverse);
                }
                if comptime![planes == 1] {
                    high |= as_byte(code, comptime![at as u32]);
                } else {
                    high |= as_byte(code >> 8i32, comptime![at as u32]);
                    low |= as_byte((code & 0xffi32) - 128i32, comptime![at as u32]);
                }
            } else if comptime![planes == 2] {
                // 256 · 0 + low + 128 is zero.
                low |= as_byte(-128i32, comptime![at as u32]);
            }
        }
        words[col * planes * along + word] = high;
        if comptime![planes == 2] {
            words[(col * planes + 1) * along + word] = low;
        }
    }
}

/// One unit a word: four rows of a column of int8 rows.
#[cube(launch, create_dummy_kernel)]
fn turn_rows(codes: &[u32], words: &mut [u32], rows: usize, cols: usize) {
    let along = rows.div_ceil(4);
    if ABSOLUTE_POS < words.len() {
        let (col, word) = (ABSOLUTE_POS % cols, ABSOLUTE_POS / cols);
        let row_words = cols.div_ceil(4);
        let mut turned = 0u32;
        #[unroll]
        for at in 0..4usize {
            if 4 * word + at < rows {
                let from = codes[(4 * word + at) * row_words + col / 4];
                turned |= ((from >> (8u32 * (col % 4) as u32)) & 0xffu32) << comptime![8 * at as u32];
            }
        }
        words[col * along + word] = turned;
    }
}

pub(crate) fn ternarize(gpu: &Gpu, latent: &Floats, w: &mut Ternary) {
    let n = w.outputs * w.inputs;
    assert_eq!(latent.len, n, "latent weights and codes");
    packed::measure(gpu, &packed::Layout::floats(latent, w.outputs, w.inputs), &w.scale);
    codes_of(gpu, latent, w, true, true);
}

/// Codes of f32 weights by the scale that `w` has, for the products asked for.
pub(super) fn codes_of(gpu: &Gpu, latent: &Floats, w: &Ternary, forward: bool, backward: bool) {
    let (rows, cols) = (w.outputs, w.inputs);
    let launch = |codes: &Handle, words: usize, turned: bool| {
        let codes = arg(codes, words);
        let scale = arg(&w.scale, 1);
        launch!(gpu, code_words, cubes_for(words), units(), latent.arg(), scale, codes, rows, cols, turned);
    };
    if forward {
        launch(&w.forward, rows * cols.div_ceil(16), false);
    }
    if let (true, Some(codes)) = (backward, &w.backward) {
        launch(codes, cols * rows.div_ceil(16), true);
    }
}

/// `y = rows · matrixᵀ`, plus `residual`.
fn multiply(
    gpu: &Gpu,
    x: &Rows,
    codes: &Handle,
    outputs: usize,
    scale: &Handle,
    onto: Onto<'_>,
    y: Place<'_>,
) {
    let left = Factor { words: &x.codes, scales: Scales::Rows(&x.scales), rows: x.rows };
    let right = Factor { words: codes, scales: Scales::One(scale), rows: outputs };
    product(gpu, Kind::Ternary, left, right, (x.words(), x.words()), onto, y);
}

pub(crate) fn ternary_matmul(gpu: &Gpu, x: &Rows, w: &Ternary, residual: Option<&Floats>, y: &mut Floats) {
    assert!(x.cols == w.inputs && y.len == x.rows * w.outputs, "sizes of a product");
    let onto = match residual {
        Some(residual) => Onto::Residual(&residual.handle),
        None => Onto::Replace,
    };
    multiply(gpu, x, &w.forward, w.outputs, &w.scale, onto, y.into());
}

pub(crate) fn ternary_input_gradient(gpu: &Gpu, dy: &Rows, w: &Ternary, dx: &mut Floats) {
    assert!(dy.cols == w.outputs && dx.len == dy.rows * w.inputs, "sizes of a product");
    let Some(backward) = &w.backward else {
        panic!("this ternary matrix was made without room for gradients");
    };
    multiply(gpu, dy, backward, w.inputs, &w.scale, Onto::Replace, dx.into());
}

pub(crate) fn ternary_weight_gradient(gpu: &Gpu, dy: &Floats, x: &Rows, dw: &mut Floats) {
    weight_gradient(gpu, Kind::Int8, dy, &x.scales, x, Onto::Replace, dw.into());
}

/// `dw = Σ_t (dy[t] · a[t]) ⊗ x[t]`, with the first factor rounded by column and [`BLOCK`] tokens.
pub(super) fn weight_gradient(
    gpu: &Gpu,
    kind: Kind,
    dy: &Floats,
    a: &Handle,
    x: &Rows,
    onto: Onto<'_>,
    dw: Place<'_>,
) {
    let tokens = x.rows;
    let cols = dy.len / tokens.max(1);
    let (words, scales) = columns(gpu, kind, dy, (a, tokens), (tokens, cols));
    let turned = turned(gpu, x);
    let left = Factor { words: &words, scales: Scales::Rows(&scales), rows: cols };
    let right = Factor { words: &turned, scales: Scales::None, rows: x.cols };
    product(gpu, kind, left, right, (tokens.div_ceil(4), products::BLOCK / 4), onto, dw);
}

/// Columns of int8 rows, four rows to a word: `[cols][⌈rows/4⌉]`.
pub(super) fn turned(gpu: &Gpu, x: &Rows) -> Handle {
    let len = x.cols * x.rows.div_ceil(4);
    let turned = gpu.room(len);
    let codes = arg(&x.codes, x.rows * x.words());
    launch!(gpu, turn_rows, cubes_for(len), units(), codes, arg(&turned, len), x.rows, x.cols);
    turned
}

/// Columns of `x · a`, rounded by column and [`BLOCK`] rows, four rows to a word, and their scales
/// `[blocks][cols]`; `a` has as many numbers as there are rows, or one.
pub(super) fn columns(
    gpu: &Gpu,
    kind: Kind,
    x: &Floats,
    (a, a_len): (&Handle, usize),
    (rows, cols): (usize, usize),
) -> (Handle, Handle) {
    let (planes, bound) = if kind == Kind::Int16 { (2, 32767.0) } else { (1, 127.0) };
    let len = rows.div_ceil(BLOCK) * cols;
    let (scales, inverses) = (gpu.room(len), gpu.room(len));
    let (a, x) = (|| arg(a, a_len), || x.arg());
    let inverse = || arg(&inverses, len);
    launch!(gpu, column_scales, cubes_for(len), units(), x(), a(), arg(&scales, len), inverse(), cols, bound,);
    let words = planes * cols * rows.div_ceil(4);
    let packed = gpu.room(words);
    launch!(
        gpu,
        column_words,
        cubes_for(words / planes),
        units(),
        x(),
        a(),
        inverse(),
        arg(&packed, words),
        cols,
        rows,
        planes,
    );
    (packed, scales)
}
