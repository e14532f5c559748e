//! Products of integers, exact in i32: `y[m][n] = Σ_k left[m][k] · right[n][k]`, scaled by rows of both factors and
//! blocks of the inner index, blocks added in f32 in order.
#![expect(
    clippy::if_same_then_else,
    reason = "which of these branches there are is known when a kernel is compiled"
)]

use cubecl::{prelude::*, server::Handle};

use crate::{
    Floats, Gpu, Tile,
    blocks::UNITS,
    launch::{arg, launch},
};

/// Units along a side of a cube.
pub(super) const SIDE: usize = 16;

/// Inner indices that share a scale, as on a processor (`kernels::outer::BLOCK`).
pub(super) const BLOCK: usize = 512;

/// The integers of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Int8 by ternary codes in two bits.
    Ternary,
    /// Int8 by int8.
    Int8,
    /// Int16 by int8: the left factor has two planes, `v = 256 · high + low + 128`.
    Int16,
    /// Twelve bits by twelve bits: both have two planes, `v = 64 · high + low`.
    Twelve,
}

/// One factor: rows of words along the inner index.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    /// `[rows][words]`, or `[rows][2][words]` of two planes.
    pub(super) words: &'a Handle,
    /// `[blocks][rows]`, or one where all rows share it, or none where they are ones.
    pub(super) scales: Scales<'a>,
    pub(super) rows: usize,
}

/// Scales of a factor.
#[derive(Clone, Copy)]
pub(super) enum Scales<'a> {
    /// `[blocks][rows]`.
    Rows(&'a Handle),
    /// One for all.
    One(&'a Handle),
    /// All are 1.
    None,
}

/// What becomes of what is there.
#[derive(Clone, Copy)]
pub(super) enum Onto<'a> {
    /// It is replaced.
    Replace,
    /// It is added to.
    Add,
    /// It is replaced by the sum with a matrix of the same size.
    Residual(&'a Handle),
}

/// Where a result begins in a buffer.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) of: &'a Floats,
    pub(super) from: usize,
}

impl<'a> From<&'a mut Floats> for Place<'a> {
    fn from(of: &'a mut Floats) -> Place<'a> {
        Place { of, from: 0 }
    }
}

/// Four ternary codes plus one, two bits each, as four int8.
#[cube]
fn spread(codes: u32) -> u32 {
    let bytes = (codes & 3u32)
        | ((codes & 0xcu32) << 6u32)
        | ((codes & 0x30u32) << 12u32)
        | ((codes & 0xc0u32) << 18u32);
    // One less in every byte, without a borrow between them.
    ((bytes | 0x8080_8080u32) - 0x0101_0101u32) ^ 0x8080_8080u32
}

/// Word `at` of a row of a factor as int8, zero beyond its end.
#[cube]
fn word_of(
    factor: &[u32],
    row: usize,
    rows: usize,
    at: usize,
    words: usize,
    #[comptime] ternary: bool,
) -> u32 {
    let mut word = 0u32;
    if row < rows && at < words {
        if comptime![ternary] {
            let codes = factor[row * words.div_ceil(4) + at / 4];
            word = spread((codes >> (8u32 * (at % 4) as u32)) & 0xffu32);
        } else {
            word = factor[row * words + at];
        }
    }
    word
}

/// `words` are those of the inner index as int8; `block` as many of them share scales.
#[cube(launch, create_dummy_kernel)]
fn product_kernel(
    left: &[u32],
    right: &[u32],
    left_scales: &[f32],
    right_scales: &[f32],
    residual: &[f32],
    y: &mut [f32],
    rows: usize,
    columns: usize,
    words: usize,
    block: usize,
    y_from: usize,
    depth: usize,
    #[comptime] ternary: bool,
    #[comptime] left_planes: usize,
    #[comptime] right_planes: usize,
    #[comptime] left_scaled: u32,
    #[comptime] right_scaled: u32,
    #[comptime] base: u32,
    #[comptime] own: usize,
    #[comptime] deep: usize,
) {
    // Between rows of a tile in shared memory: one more than there are, so that banks differ.
    let pitch = comptime![deep + 1];
    let tile = comptime![own * SIDE];
    let mut l = Shared::<[u32]>::new_slice(comptime![left_planes * own * SIDE * (deep + 1)]);
    let mut r = Shared::<[u32]>::new_slice(comptime![right_planes * own * SIDE * (deep + 1)]);
    let unit = UNIT_POS as usize;
    let (across, down) = (unit % SIDE, unit / SIDE);
    let first_row = CUBE_POS_Y as usize * tile;
    let first_column = CUBE_POS_X as usize * tile;
    let mut sums = Array::<i32>::new(comptime![own * own]);
    let blocks = words.div_ceil(block);
    for b in 0..blocks {
        #[unroll]
        for at in 0..own * own {
            sums[at] = 0i32;
        }
        let start = b * block;
        let end = min(start + block, words);
        let steps = (end - start).div_ceil(deep);
        for s in 0..steps {
            let from = start + s * deep;
            // A tile of either factor, one word of each plane or a few by every unit.
            #[unroll]
            for half in 0..comptime![own * SIDE * deep / UNITS] {
                let place = unit + half * UNITS;
                let row = place / deep;
                let at = place % deep;
                let limit = if from + at < end { words } else { 0usize.runtime() };
                #[unroll]
                for plane in 0..left_planes {
                    let of = (first_row + row) * left_planes + plane;
                    let inside = if first_row + row < rows { rows * left_planes } else { 0usize.runtime() };
                    l[plane * own * SIDE * (deep + 1) + row * pitch + at] = if from + at < limit {
                        word_of(left, of, inside, from + at, words, false)
                    } else {
                        0u32.runtime()
                    };
                }
                #[unroll]
                for plane in 0..right_planes {
                    let of = (first_column + row) * right_planes + plane;
                    let inside =
                        if first_column + row < columns { columns * right_planes } else { 0usize.runtime() };
                    r[plane * own * SIDE * (deep + 1) + row * pitch + at] = if from + at < limit {
                        word_of(right, of, inside, from + at, words, ternary)
                    } else {
                        0u32.runtime()
                    };
                }
            }
            sync_cube();
            // No constant, or compilers unroll it until registers run out.
            for at in 0..depth {
                #[unroll]
                for i in 0..own {
                    let row = (down + SIDE * i) * pitch + at;
                    let high = i32::reinterpret(l[row]);
                    #[unroll]
                    for j in 0..own {
                        let column = (across + SIDE * j) * pitch + at;
                        let other = i32::reinterpret(r[column]);
                        let place = comptime![i * own + j];
                        if comptime![left_planes == 1] {
                            sums[place] = dp4a(high, other, sums[place]);
                        } else {
                            let low = i32::reinterpret(l[own * SIDE * (deep + 1) + row]);
                            if comptime![right_planes == 1] {
                                // 256 · high + low + 128.
                                let ones = dp4a(other, 0x0101_0101i32.runtime(), 0i32.runtime());
                                let lower = dp4a(low, other, 128i32 * ones);
                                sums[place] += 256i32 * dp4a(high, other, 0i32.runtime()) + lower;
                            } else {
                                let other_low = i32::reinterpret(r[own * SIDE * (deep + 1) + column]);
                                let mixed = dp4a(high, other_low, dp4a(low, other, 0i32.runtime()));
                                let lower = dp4a(low, other_low, 64i32 * mixed);
                                sums[place] += 4096i32 * dp4a(high, other, 0i32.runtime()) + lower;
                            }
                        }
                    }
                }
            }
            sync_cube();
        }
        #[unroll]
        for i in 0..own {
            let row = first_row + down + SIDE * i;
            #[unroll]
            for j in 0..own {
                let column = first_column + across + SIDE * j;
                if row < rows && column < columns {
                    let mut factor = 1.0f32;
                    if comptime![left_scaled == 2] {
                        factor = left_scales[b * rows + row];
                    }
                    if comptime![right_scaled == 2] {
                        factor *= right_scales[b * columns + column];
                    } else if comptime![right_scaled == 1] {
                        factor *= right_scales[0];
                    }
                    let part = f32::cast_from(sums[comptime![i * own + j]]) * factor;
                    // Blocks are added where the result is: registers are for one of them.
                    let place = y_from + row * columns + column;
                    let mut before = 0.0f32;
                    if b > 0 {
                        before = y[place];
                    } else if comptime![base == 1] {
                        before = y[place];
                    } else if comptime![base == 2] {
                        before = residual[place - y_from];
                    }
                    y[place] = before + part;
                }
            }
        }
    }
}

/// A product of factors with `words` words of four int8 along the inner index, of which `block` share scales.
pub(super) fn product(
    gpu: &Gpu,
    kind: Kind,
    left: Factor<'_>,
    right: Factor<'_>,
    (words, block): (usize, usize),
    onto: Onto<'_>,
    y: Place<'_>,
) {
    let (rows, columns) = (left.rows, right.rows);
    if rows * columns == 0 {
        return;
    }
    assert!(words > 0, "a product over nothing");
    let (left_planes, right_planes) = match kind {
        Kind::Ternary | Kind::Int8 => (1, 1),
        Kind::Int16 => (2, 1),
        Kind::Twelve => (2, 2),
    };
    let blocks = words.div_ceil(block).max(1);
    let spare = gpu.room(1);
    let scales = |factor: &Factor<'_>| match factor.scales {
        Scales::Rows(scales) => (arg(scales, blocks * factor.rows), 2_u32),
        Scales::One(scale) => (arg(scale, 1), 1),
        Scales::None => (arg(&spare, 1), 0),
    };
    let ((left_scales, left_scaled), (right_scales, right_scaled)) = (scales(&left), scales(&right));
    let (residual, base) = match onto {
        Onto::Replace => (arg(&spare, 1), 0_u32),
        Onto::Add => (arg(&spare, 1), 1),
        Onto::Residual(residual) => (arg(residual, rows * columns), 2),
    };
    let ternary = kind == Kind::Ternary;
    // Four planes at work leave no registers for as much.
    let Tile { own, depth } = if kind == Kind::Twelve { gpu.tiles.planes } else { gpu.tiles.product };
    let tile = own * SIDE;
    let right_words = if ternary { words.div_ceil(4) } else { words };
    launch!(
        gpu,
        product_kernel,
        CubeCount::Static(columns.div_ceil(tile) as u32, rows.div_ceil(tile) as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        arg(left.words, rows * left_planes * words),
        arg(right.words, columns * right_planes * right_words),
        left_scales,
        right_scales,
        residual,
        arg(&y.of.handle, y.of.len),
        rows,
        columns,
        words,
        block,
        y.from,
        depth,
        ternary,
        left_planes,
        right_planes,
        left_scaled,
        right_scaled,
        base,
        own,
        depth,
    );
}
