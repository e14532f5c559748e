//! Rows rounded by chance into few bits: gradients, counts, and running means of them.

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::{Format, Momentum, Stream};

use super::rows::{
    HALVES, Kind, Layout, RUN, SIDE, chance, half, halved, largest_level, matrix_room, number, pack_row,
    random_words, step, to_level, words_of,
};
use crate::{
    Floats, Gpu, Packed,
    blocks::{UNITS, cube_max, cube_sum, desk, is_open, magnitude, word_desk},
    launch::{Argument, Buffer, arg, cubes, launch, units},
};

/// Standard deviations that levels reach to.
const RANGE: f32 = 2.5;

/// What is kept of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mode {
    /// The row.
    Row,
    /// The row, added to counts of steps; `begins` with counts of zero.
    Count { begins: bool },
    /// A running mean, which is also given.
    Mean,
    /// A running mean, of which another share is given in place of the row, or signs.
    Seen { signs: bool },
}

impl Mode {
    fn reads(self) -> bool {
        matches!(self, Mode::Mean | Mode::Seen { .. })
    }

    fn counts(self) -> bool {
        matches!(self, Mode::Count { .. })
    }

    fn begins(self) -> bool {
        self == Mode::Count { begins: true }
    }

    fn sees(self) -> bool {
        matches!(self, Mode::Seen { .. })
    }

    fn signs(self) -> bool {
        self == Mode::Seen { signs: true }
    }
}

impl Argument for Mode {
    type Given = Mode;

    fn give(&self) -> Mode {
        *self
    }
}

/// Signs; zeros, and what is no number, as they are.
#[cube]
pub(crate) fn sign(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    let size = bits & 0x7fff_ffffu32;
    let mut sign = x;
    if size > 0u32 && size <= 0x7f80_0000u32 {
        sign = f32::reinterpret((bits & 0x8000_0000u32) | 0x3f80_0000u32);
    }
    sign
}

/// One cube a row. `x` is the row, `mean` where a mean is given, `levels` room for as many numbers.
#[cube(launch, create_dummy_kernel)]
fn keep_kernel(
    x: &mut [f32],
    words: &mut [u32],
    steps: &mut [f32],
    mean: &mut [f32],
    levels: &mut [f32],
    gates: &[f32],
    gate: usize,
    rows: usize,
    cols: usize,
    row_words: usize,
    digits: u32,
    kept: f32,
    new: f32,
    seen: f32,
    unseen: f32,
    range: f32,
    key_low: u32,
    key_high: u32,
    tensor: u32,
    time: u32,
    #[comptime] kind: Kind,
    #[comptime] mode: Mode,
) {
    let mut desk = desk();
    let mut words_desk = word_desk();
    let row = CUBE_POS;
    if row < rows && is_open(gates, gate) {
        let (start, first) = (row * row_words, row * cols);
        let unit = UNIT_POS as usize;
        let mut before = 1.0f32;
        if comptime![kind != Kind::Bf16] {
            before = steps[row];
        }
        let mut squares = 0.0f32;
        let mut most = 0u32;
        let mut i = unit;
        while i < cols {
            let given = gates[gate] * x[first + i];
            let mut value = given;
            if comptime![mode.reads()] {
                let old = number(&*words, start, cols, i, digits, kind);
                value = (before * kept) * old + new * given;
                if comptime![mode.sees()] {
                    let direction = (before * seen) * old + unseen * given;
                    x[first + i] = if comptime![mode.signs()] { sign(direction) } else { direction };
                } else {
                    mean[first + i] = value;
                }
            }
            levels[first + i] = value;
            squares += value * value;
            most = max(most, magnitude(value));
            i += UNITS;
        }
        let deviation = (cube_sum(squares, &mut desk) / f32::cast_from(cols)).sqrt();
        let most = f32::reinterpret(cube_max(most, &mut words_desk));
        let mut largest = largest_level(digits, kind);
        let mut after = 1.0f32;
        let mut begins = true;
        if comptime![mode.counts()] {
            after = step(range * deviation);
            if comptime![!mode.begins()] {
                begins = before == 0.0f32;
                if !begins {
                    after = before;
                }
            }
            largest = 1.0f32;
        } else if comptime![kind == Kind::Int8] {
            after = step(most / largest);
        } else if comptime![kind == Kind::Trits] {
            after = step(range * deviation / largest);
        }
        let mut inverse = 0.0f32;
        if after > 0.0f32 {
            inverse = 1.0f32 / after;
        }
        sync_storage();
        if comptime![kind != Kind::Bf16] && unit == 0 {
            steps[row] = after;
        }
        let blocks = cols.div_ceil(RUN) * SIDE;
        let mut at = unit;
        while at < blocks {
            let random = random_words(row, cols, at, key_low, key_high, tensor, time);
            #[unroll]
            for h in 0..HALVES {
                let col = at / SIDE * RUN + h * SIDE + at % SIDE;
                if col < cols {
                    let value = levels[first + col];
                    let half = half(&random, h);
                    if comptime![kind == Kind::Bf16] {
                        levels[first + col] = halved(value, half);
                    } else {
                        let mut level = to_level(inverse * value + chance(half), largest);
                        if comptime![mode.counts()] && !begins {
                            level += number(&*words, start, cols, col, digits, kind);
                        }
                        levels[first + col] = level;
                    }
                }
            }
            at += UNITS;
        }
        sync_storage();
        pack_row(&*levels, first, words, start, cols, digits, kind);
    }
}

/// Shares of a running mean in what is kept, and in what is seen.
#[derive(Clone, Copy, Default)]
struct Shares {
    kept: f32,
    seen: f32,
    range: f32,
}

fn keep(gpu: &Gpu, x: &Buffer, mean: &Buffer, noise: &Stream, to: &Packed, shares: Shares, mode: Mode) {
    let Layout { words, row_words, digits, kind, rows, cols, steps, .. } = to.layout();
    if rows * cols == 0 {
        return;
    }
    assert!(to.by_row || kind == Kind::Bf16, "rows with a step each");
    let Shares { kept, seen, range } = shares;
    let [low, high, tensor, time] = words_of(noise);
    let (_room, levels) = matrix_room(gpu, rows, cols);
    let (gates, gate) = gpu.gate();
    launch!(
        gpu,
        keep_kernel,
        cubes(rows),
        units(),
        x,
        words,
        steps,
        mean,
        levels,
        gates,
        gate,
        rows,
        cols,
        row_words,
        digits,
        kept,
        1.0 - kept,
        seen,
        1.0 - seen,
        range,
        low,
        high,
        tensor,
        time,
        kind,
        mode,
    );
}

/// A buffer for results that there are none of.
fn nothing(gpu: &Gpu) -> Buffer {
    arg(&gpu.room(1), 1)
}

pub(crate) fn round(gpu: &Gpu, from: &Floats, noise: &Stream, to: &mut Packed) {
    assert_eq!(from.len, to.rows * to.cols, "lengths of a matrix");
    let shares = Shares { range: RANGE, ..Shares::default() };
    keep(gpu, &from.arg(), &nothing(gpu), noise, to, shares, Mode::Row);
}

pub(crate) fn accumulate(gpu: &Gpu, from: &Floats, noise: &Stream, first: bool, to: &mut Packed) {
    assert_eq!(from.len, to.rows * to.cols, "lengths of a matrix");
    assert!(to.format != Format::Bf16, "counts by rows");
    let shares = Shares { range: RANGE, ..Shares::default() };
    keep(gpu, &from.arg(), &nothing(gpu), noise, to, shares, Mode::Count { begins: first });
}

/// `m = momentum · m + (1 - momentum) · u`, rounded by chance; gives it as it was before that, or nothing where it is `u`.
pub(crate) fn mean(gpu: &Gpu, u: &Floats, momentum: f32, noise: &Stream, m: &mut Packed) -> Option<Handle> {
    let (room, mean) = matrix_room(gpu, m.rows, m.cols);
    let shares = Shares { kept: momentum, range: RANGE, ..Shares::default() };
    // What was stored has no weight without momentum, not even where it is no number.
    if momentum == 0.0 {
        keep(gpu, &u.arg(), &mean, noise, m, shares, Mode::Row);
        return None;
    }
    keep(gpu, &u.arg(), &mean, noise, m, shares, Mode::Mean);
    Some(room)
}

pub(crate) fn momentum(gpu: &Gpu, g: &mut Floats, m: &mut Packed, with: Momentum, noise: &Stream) {
    assert_eq!(g.len, m.rows * m.cols, "lengths of a matrix");
    // As on a processor, `kernels::update::momentum_packed`.
    let range = match m.format {
        Format::Trits(1) => 0.8,
        Format::Trits(2) => 1.5,
        _ => RANGE,
    };
    let shares = Shares { kept: with.kept, seen: with.seen, range };
    keep(gpu, &g.arg(), &nothing(gpu), noise, m, shares, Mode::Seen { signs: with.signs });
}
