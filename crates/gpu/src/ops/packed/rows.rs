//! How rows of a matrix lie in words, and the random numbers of their columns, as kernels read and write them.

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::{Format, Stream};

use crate::{
    Floats, Gpu, Packed,
    blocks::{UNITS, as_byte, byte, nearest},
    launch::{Argument, Buffer, arg},
};

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// f32, one to a word.
    Floats,
    /// bf16, two to a word.
    Bf16,
    /// Int8 levels, four to a word.
    Int8,
    /// Balanced ternary levels, five digits to a byte (`trit::digits`).
    Trits,
}

impl Argument for Kind {
    type Given = Kind;

    fn give(&self) -> Kind {
        *self
    }
}

/// Where the rows of a matrix lie.
pub(crate) struct Layout {
    pub(crate) words: Buffer,
    /// See [`Packed`]; one number that nobody reads where all rows are alike.
    pub(crate) places: Buffer,
    pub(crate) placed: bool,
    /// Words of a row, where all are alike.
    pub(crate) row_words: usize,
    /// Digits of a level, where all are alike; 0 of other formats.
    pub(crate) digits: u32,
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) steps: Buffer,
}

impl Packed {
    /// Where its rows lie.
    pub(crate) fn layout(&self) -> Layout {
        let (kind, digits) = match self.format {
            Format::Bf16 => (Kind::Bf16, 0),
            Format::Int8 => (Kind::Int8, 0),
            Format::Trits(digits) => (Kind::Trits, u32::from(digits)),
        };
        Layout {
            words: arg(&self.bytes, self.len),
            places: match &self.places {
                Some(places) => arg(places, self.rows),
                None => arg(&self.steps, 1),
            },
            placed: self.places.is_some(),
            row_words: self.words(),
            digits,
            kind,
            rows: self.rows,
            cols: self.cols,
            steps: self.steps(),
        }
    }

    /// What levels are worth, as an argument.
    pub(crate) fn steps(&self) -> Buffer {
        arg(&self.steps, if self.by_row { self.rows } else { 1 })
    }
}

impl Layout {
    /// Of f32 numbers `[rows][cols]`.
    pub(crate) fn floats(of: &Floats, rows: usize, cols: usize) -> Layout {
        let one = arg(&of.handle, 1);
        Layout {
            words: of.arg(),
            places: one.clone(),
            placed: false,
            row_words: cols,
            digits: 0,
            kind: Kind::Floats,
            rows,
            cols,
            steps: one,
        }
    }
}

/// Key, tensor and step of a stream of random numbers, as kernels take them.
pub(crate) fn words_of(noise: &Stream) -> [u32; 4] {
    let ([low, high], tensor, step) = noise.words();
    [low, high, tensor, step]
}

/// Floats for a matrix, of unknown contents.
pub(crate) fn matrix_room(gpu: &Gpu, rows: usize, cols: usize) -> (Handle, Buffer) {
    let room = gpu.room(rows * cols);
    let buffer = arg(&room, rows * cols);
    (room, buffer)
}

/// Where a row begins, and how many digits its levels have.
#[cube]
pub(crate) fn place(
    places: &[u32],
    row: usize,
    row_words: usize,
    digits: u32,
    #[comptime] placed: bool,
) -> (usize, u32) {
    let mut start = row * row_words;
    let mut own = digits;
    if comptime![placed] {
        let word = places[row];
        start = (word >> 3u32) as usize;
        own = word & 7u32;
    }
    (start, own)
}

/// Three to the power of 0 to 4.
#[cube]
pub(crate) fn power(of: u32) -> u32 {
    let mut power = 81u32;
    if of < 4u32 {
        power = (0x1b09_0301u32.runtime() >> (8u32 * of)) & 0xffu32;
    }
    power
}

/// The largest level; 0 of numbers without levels.
#[cube]
pub(crate) fn largest_level(digits: u32, #[comptime] kind: Kind) -> f32 {
    let mut largest = 0.0f32;
    if comptime![kind == Kind::Int8] {
        largest = 127.0f32;
    }
    if comptime![kind == Kind::Trits] {
        largest = f32::cast_from((3u32 * power(digits - 1u32) - 1u32) / 2u32);
    }
    largest
}

/// The number of a column of the row that begins at a word: levels as they are.
#[cube]
pub(crate) fn number(
    words: &[u32],
    start: usize,
    cols: usize,
    col: usize,
    digits: u32,
    #[comptime] kind: Kind,
) -> f32 {
    let mut number = 0.0f32;
    if comptime![kind == Kind::Floats] {
        number = f32::reinterpret(words[start + col]);
    }
    if comptime![kind == Kind::Bf16] {
        let word = words[start + col / 2];
        number = f32::reinterpret((word >> (16u32 * (col % 2) as u32)) << 16u32);
    }
    if comptime![kind == Kind::Int8] {
        number = f32::cast_from(byte(words[start + col / 4], (col % 4) as u32));
    }
    if comptime![kind == Kind::Trits] {
        let len = (digits as usize * cols).div_ceil(5);
        let mut raised = 0u32;
        for plane in 0..digits {
            let at = plane as usize * cols + col;
            let lane = at % len;
            let stored = (words[start + lane / 4] >> (8u32 * (lane % 4) as u32)) & 0xffu32;
            let fraction = (stored * power((at / len) as u32)) & 0xffu32;
            raised = 3u32 * raised + ((3u32 * fraction) >> 8u32);
        }
        number = f32::cast_from(raised) - largest_level(digits, kind);
    }
    number
}

/// A level as an integer; what is no number is 0.
#[cube]
fn integer(level: f32) -> i32 {
    (nearest(level) << 24i32) >> 24i32
}

/// Stores numbers from `first` on, levels of formats that have them, in the row that begins at a word: all units of
/// a cube together.
#[cube]
pub(crate) fn pack_row(
    from: &[f32],
    first: usize,
    words: &mut [u32],
    start: usize,
    cols: usize,
    digits: u32,
    #[comptime] kind: Kind,
) {
    let mut w = UNIT_POS as usize;
    if comptime![kind == Kind::Floats] {
        while w < cols {
            words[start + w] = u32::reinterpret(from[first + w]);
            w += UNITS;
        }
    }
    if comptime![kind == Kind::Bf16] {
        while w < cols.div_ceil(2) {
            let mut word = u32::reinterpret(from[first + 2 * w]) >> 16u32;
            if 2 * w + 1 < cols {
                word |= u32::reinterpret(from[first + 2 * w + 1]) & 0xffff_0000u32;
            }
            words[start + w] = word;
            w += UNITS;
        }
    }
    if comptime![kind == Kind::Int8] {
        while w < cols.div_ceil(4) {
            let mut word = 0u32;
            #[unroll]
            for at in 0..4usize {
                if 4 * w + at < cols {
                    word |= as_byte(nearest(from[first + 4 * w + at]), comptime![at as u32]);
                }
            }
            words[start + w] = word;
            w += UNITS;
        }
    }
    if comptime![kind == Kind::Trits] {
        let len = (digits as usize * cols).div_ceil(5);
        let largest = i32::cast_from(largest_level(digits, kind));
        while w < len.div_ceil(4) {
            let mut word = 0u32;
            #[unroll]
            for at in 0..4usize {
                let lane = 4 * w + at;
                if lane < len {
                    let mut value = 0u32;
                    for position in 0..5usize {
                        let place = position * len + lane;
                        // Padding is the digit zero.
                        let mut digit = 1u32;
                        if place < digits as usize * cols {
                            let raised = u32::cast_from(integer(from[first + place % cols]) + largest);
                            digit = raised / power(digits - 1u32 - (place / cols) as u32) % 3u32;
                        }
                        value = 3u32 * value + digit;
                    }
                    word |= (256u32 * value).div_ceil(243u32) << comptime![8 * at as u32];
                }
            }
            words[start + w] = word;
            w += UNITS;
        }
    }
}

/// Blocks of random bits side by side (`kernels::noise`).
pub(crate) const SIDE: usize = 16;
/// Halves of words in a block.
pub(crate) const HALVES: usize = 8;
/// Random halves of one run of blocks.
pub(crate) const RUN: usize = SIDE * HALVES;

/// The words of block `at` of a row (Philox4x32-10, `trit::rng`): halves of the columns from
/// `at / SIDE · RUN + at % SIDE` on, [`SIDE`] apart.
#[cube]
pub(crate) fn random_words(
    row: usize,
    cols: usize,
    at: usize,
    key_low: u32,
    key_high: u32,
    tensor: u32,
    step: u32,
) -> Array<u32> {
    let blocks = (cols.div_ceil(RUN) * SIDE) as u32;
    let first = row as u32 * blocks;
    let low = first + at as u32;
    let mut high = u32::mul_hi(row as u32, blocks);
    if low < first {
        high += 1u32;
    }
    let mut c = Array::<u32>::new(4usize);
    c[0] = low;
    c[1] = high;
    c[2] = tensor;
    c[3] = step;
    let mut key_low = key_low;
    let mut key_high = key_high;
    for _round in 0..10u32 {
        let (a, b) = (c[0], c[2]);
        let first = u32::mul_hi(b, 0xcd9e_8d57u32.runtime()) ^ c[1] ^ key_low;
        let third = u32::mul_hi(a, 0xd251_1f53u32.runtime()) ^ c[3] ^ key_high;
        c[0] = first;
        c[1] = b * 0xcd9e_8d57u32;
        c[2] = third;
        c[3] = a * 0xd251_1f53u32;
        key_low += 0x9e37_79b9u32;
        key_high += 0xbb67_ae85u32;
    }
    c
}

/// Half `at` of the words of a block.
#[cube]
pub(crate) fn half(words: &Array<u32>, #[comptime] at: usize) -> u32 {
    (words[comptime![at / 2]] >> comptime![16 * (at % 2) as u32]) & 0xffffu32
}

/// A number in (0, 1) from a random half.
#[cube]
pub(crate) fn chance(half: u32) -> f32 {
    (f32::cast_from(half) + 0.5f32) * comptime![1.0f32 / 65_536.0]
}

#[cube]
pub(crate) fn is_nan(x: f32) -> bool {
    u32::reinterpret(x) & 0x7fff_ffffu32 > 0x7f80_0000u32
}

/// The level of a number that its chance is added to, no farther than the largest; NaN of NaN.
#[cube]
pub(crate) fn to_level(x: f32, largest: f32) -> f32 {
    let mut level = x.floor();
    if level > largest {
        level = largest;
    }
    if level < -largest {
        level = -largest;
    }
    if is_nan(x) {
        level = f32::reinterpret(0x7fc0_0000u32.runtime());
    }
    level
}

/// One of the two nearest bf16 numbers, by a random half.
#[cube]
pub(crate) fn halved(x: f32, half: u32) -> f32 {
    f32::reinterpret((u32::reinterpret(x) + half) & 0xffff_0000u32)
}

/// The nearest bf16 number, ties to even, as steps are.
#[cube]
pub(crate) fn step(x: f32) -> f32 {
    let bits = u32::reinterpret(x);
    f32::reinterpret((bits + 0x7fffu32 + ((bits >> 16u32) & 1u32)) & 0xffff_0000u32)
}

/// What a level of a row is worth (`kernels::packed`), 1 where levels are numbers.
#[cube]
pub(crate) fn worth(
    steps: &[f32],
    row: usize,
    own: u32,
    digits: u32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
) -> f32 {
    let mut worth = 1.0f32;
    if comptime![kind == Kind::Int8 || kind == Kind::Trits] {
        worth = if steps.len() == 1 { steps[0] } else { steps[row] };
    }
    if comptime![placed] {
        worth = step(worth * largest_level(digits, kind) / largest_level(own, kind));
    }
    worth
}
