//! What scales and rates of a matrix are made from: its mean magnitude and its mean square.

use cubecl::{prelude::*, server::Handle};

use super::rows::{Kind, Layout, number, place, worth};
use crate::{
    Gpu,
    blocks::{UNITS, cube_sum, desk, magnitude},
    launch::{arg, cubes, launch, units},
    ops::ternary::{fp16, upper},
};

/// Elements of a block of the absolute sum, and lanes in it (`trit::ternary::SUM_BLOCK`).
const SUM_BLOCK: usize = 4096;
const LANES: usize = 8;

/// Root mean square that weights are taken to have at least (`kernels::descent::SMALLEST`).
const SMALLEST: f32 = 1e-3;

/// Blocks of a cube, a unit for each lane.
const BLOCKS: usize = UNITS / LANES;

/// One unit a lane of a block of numbers without levels: magnitudes in the order that `trit::ternary` defines, and
/// squares.
#[cube(launch, create_dummy_kernel)]
fn block_terms(
    words: &[u32],
    absolute: &mut [f32],
    squares: &mut [f32],
    rows: usize,
    cols: usize,
    row_words: usize,
    #[comptime] kind: Kind,
) {
    let mut sums = desk();
    let mut parts = desk();
    let unit = UNIT_POS as usize;
    let (block, lane) = (CUBE_POS * BLOCKS + unit / LANES, unit % LANES);
    let last = min((block + 1) * SUM_BLOCK, rows * cols);
    let mut sum = 0.0f32;
    let mut square = 0.0f32;
    let mut i = block * SUM_BLOCK + lane;
    while i < last {
        let value = number(words, i / cols * row_words, cols, i % cols, 0u32, kind);
        sum += f32::reinterpret(magnitude(value));
        square += value * value;
        i += LANES;
    }
    sums[unit] = sum;
    parts[unit] = square;
    sync_cube();
    if lane == 0 && block < absolute.len() {
        absolute[block] = fold(&sums, unit);
        squares[block] = fold(&parts, unit);
    }
}

/// The sum of lanes, as a tree.
#[cube]
fn fold(lanes: &Shared<[f32]>, at: usize) -> f32 {
    let left = (lanes[at] + lanes[at + 4]) + (lanes[at + 2] + lanes[at + 6]);
    let right = (lanes[at + 1] + lanes[at + 5]) + (lanes[at + 3] + lanes[at + 7]);
    left + right
}

/// One cube a row of levels: the sum of magnitudes, exactly, in two terms, and that of squares.
#[cube(launch, create_dummy_kernel)]
fn row_terms(
    words: &[u32],
    places: &[u32],
    steps: &[f32],
    absolute: &mut [f32],
    squares: &mut [f32],
    cols: usize,
    row_words: usize,
    digits: u32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
) {
    let mut desk = desk();
    let row = CUBE_POS;
    if row < squares.len() {
        let (start, own) = place(places, row, row_words, digits, placed);
        let mut sum = 0.0f32;
        let mut square = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < cols {
            let level = number(words, start, cols, i, own, kind);
            sum += f32::reinterpret(magnitude(level));
            square += level * level;
            i += UNITS;
        }
        // Below 2^24, so exact.
        let sum = cube_sum(sum, &mut desk);
        let square = cube_sum(square, &mut desk);
        if UNIT_POS == 0 {
            let worth = worth(steps, row, own, digits, kind, placed);
            // A step has eight digits: its products with twelve are exact.
            let high = (sum / 4096.0f32).floor() * 4096.0f32;
            absolute[2 * row] = worth * high;
            absolute[2 * row + 1] = worth * (sum - high);
            squares[row] = worth * worth * square;
        }
    }
}

/// A number that no compiler knows, so that it cannot say what a sum of it less a part is. `zero` is none known to it.
#[cube]
fn held(x: f32, zero: u32) -> f32 {
    f32::reinterpret(u32::reinterpret(x) ^ zero)
}

/// A number as the sum of two f32: adds `x` to it, what is lost of the sum included (Knuth).
#[cube]
fn add_exactly(high: f32, low: f32, x: f32, zero: u32) -> (f32, f32) {
    let sum = held(high + x, zero);
    let part = held(sum - high, zero);
    let lost = (high - held(sum - part, zero)) + (x - part);
    (sum, low + lost)
}

/// One cube: the sum of all terms as two f32, for unit 0.
#[cube]
fn exact_sum(terms: &[f32], highs: &mut Shared<[f32]>, lows: &mut Shared<[f32]>, zero: u32) -> (f32, f32) {
    let unit = UNIT_POS as usize;
    let mut high = 0.0f32;
    let mut low = 0.0f32;
    let mut i = unit;
    while i < terms.len() {
        let sum = add_exactly(high, low, terms[i], zero);
        high = sum.0;
        low = sum.1;
        i += UNITS;
    }
    highs[unit] = high;
    lows[unit] = low;
    sync_cube();
    let mut half = comptime![UNITS / 2].runtime();
    while half > 0 {
        if unit < half {
            let sum = add_exactly(highs[unit], lows[unit] + lows[unit + half], highs[unit + half], zero);
            highs[unit] = sum.0;
            lows[unit] = sum.1;
        }
        sync_cube();
        half /= 2;
    }
    let sum = add_exactly(highs[0], 0.0f32, lows[0], zero);
    sync_cube();
    sum
}

/// One cube: scale and root mean square of a matrix of `count + rest` weights.
#[cube(launch, create_dummy_kernel)]
fn matrix_kernel(
    absolute: &[f32],
    squares: &[f32],
    scale: &mut [f32],
    rms: &mut [f32],
    count: f32,
    rest: f32,
    zero: u32,
) {
    let mut highs = desk();
    let mut lows = desk();
    let (high, low) = exact_sum(absolute, &mut highs, &mut lows, zero);
    let square = exact_sum(squares, &mut highs, &mut lows, zero);
    if UNIT_POS == 0 {
        // A quotient, and what is left after it (Dekker).
        let quotient = high / count;
        let (a, b) = (upper(quotient), upper(count));
        let (c, d) = (quotient - a, count - b);
        let product = quotient * count;
        let lost = ((a * b - product) + a * d + c * b) + c * d;
        let left = ((high - product) - lost) + (low - quotient * rest);
        scale[0] = if high == 0.0f32 { 0.0f32.runtime() } else { fp16(quotient + left / count) };
        let mut root = (square.0 / count).sqrt();
        // What is no number counts as the smallest, as it does on a processor.
        let bits = magnitude(root);
        if root < SMALLEST || bits > 0x7f80_0000u32 {
            root = SMALLEST;
        }
        rms[0] = root;
    }
}

/// Writes the scale of a matrix, one f32, and gives its root mean square, one f32.
pub(crate) fn measure(gpu: &Gpu, of: &Layout, scale: &Handle) -> Handle {
    let (rows, cols, row_words, kind) = (of.rows, of.cols, of.row_words, of.kind);
    let n = rows * cols;
    let levels = matches!(kind, Kind::Int8 | Kind::Trits);
    let (terms, parts) =
        if levels { (2 * rows, rows) } else { (n.div_ceil(SUM_BLOCK), n.div_ceil(SUM_BLOCK)) };
    let (absolute, squares, rms) = (gpu.room(terms), gpu.room(parts), gpu.room(1));
    let (absolute, squares) = (arg(&absolute, terms), arg(&squares, parts));
    if levels {
        launch!(
            gpu,
            row_terms,
            cubes(rows),
            units(),
            of.words,
            of.places,
            of.steps,
            absolute,
            squares,
            cols,
            row_words,
            of.digits,
            kind,
            of.placed,
        );
    } else {
        launch!(
            gpu,
            block_terms,
            cubes(parts.div_ceil(BLOCKS)),
            units(),
            of.words,
            absolute,
            squares,
            rows,
            cols,
            row_words,
            kind,
        );
    }
    // The count in two parts, each exact.
    let count = n as f32;
    let rest = (n as f64 - f64::from(count)) as f32;
    let (scale, root) = (arg(scale, 1), arg(&rms, 1));
    launch!(gpu, matrix_kernel, cubes(1), units(), absolute, squares, scale, root, count, rest, 0u32);
    rms
}
