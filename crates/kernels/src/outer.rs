//! Sums of outer products of integers: `y[o][i] = Σ_t l[t][o] · r[t][i]`, exact in i32.
//!
//! Both factors lie in memory as int16, in panels, two of the inner index `t` side by side; their scales
//! come in when a sum is done. Sums run over blocks of [`TOKENS`] of the inner index, and blocks are
//! added in f32 in order.
//!
//! [`weight_gradient`] is the product that a linear layer needs: the inner index is tokens, gradients are
//! int16 with one scale per output, inputs int8. [`crate::loss`] builds the products of the output head
//! from the same parts.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod pack;
mod scalar;

pub(crate) use pack::{pack_columns, pack_rows, quantise_columns, scale};

use crate::{
    Context, Store, Tier,
    tier::Level,
    tile::{COLUMNS, Out},
};

/// Products that one i32 sums.
pub const TOKENS: usize = 512;

/// Largest magnitudes of the two factors whose sums cannot overflow: a gradient and an int8,
pub(crate) const GRADIENT: i16 = 32767;
const _: () = assert!(TOKENS * 127 * GRADIENT as usize <= i32::MAX as usize);
/// or two numbers of twelve bits.
pub(crate) const TWELVE_BITS: i16 = 2047;
const _: () = assert!(TOKENS * TWELVE_BITS as usize * TWELVE_BITS as usize <= i32::MAX as usize);

/// Rows of the result in a task, and in one of a result of few rows: multiples of every tile.
const ROWS: usize = 48;
const FEW_ROWS: usize = 24;

/// The left factor: rows of the result.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// `[panel][pair of the inner index][rows of a tile][2]`.
    pub(crate) values: Vec<i16>,
    /// `[rows]`.
    pub(crate) scales: Vec<f32>,
}

/// The right factor: columns of the result.
#[derive(Debug, Default)]
pub(crate) struct Right {
    /// `[panel][pair of the inner index][16 columns][2]`.
    pub(crate) values: Vec<i16>,
    /// `[columns]`, or none where they are ones.
    pub(crate) scales: Vec<f32>,
}

/// Working memory of [`weight_gradient`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    gradients: Left,
    inputs: Right,
}

/// `dw = Σ_t (dy[t] · a[t]) ⊗ x[t]`, or that added to `dw`.
///
/// `dy` `[tokens][outputs]` f32, `a` `[tokens]` the scales of the int8 rows `x` `[tokens][inputs]`,
/// `dw` `[outputs][inputs]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn weight_gradient(
    cx: &Context,
    dy: &[f32],
    a: &[f32],
    x: &[i8],
    store: Store,
    scratch: &mut Scratch,
    dw: &mut [f32],
) {
    let tokens = a.len();
    if tokens == 0 {
        if store == Store::Replace {
            dw.fill(0.0);
        }
        return;
    }
    let (outputs, inputs) = (dy.len() / tokens, x.len() / tokens);
    assert_eq!(dy.len(), tokens * outputs, "dy is not tokens × outputs");
    assert_eq!(x.len(), tokens * inputs, "x is not tokens × inputs");
    assert_eq!(dw.len(), outputs * inputs, "dw is not outputs × inputs");
    if dw.is_empty() {
        return;
    }
    let Scratch { gradients, inputs: right } = scratch;
    quantise_columns(cx, dy, a, outputs, gradients);
    pack_columns(cx, x, inputs, &mut right.values);
    product(cx, gradients, right, tokens, store, dw);
}

/// `y = lᵀ·r` over an inner index below `inner`, or that added to `y`.
pub(crate) fn product(cx: &Context, left: &Left, right: &Right, inner: usize, store: Store, y: &mut [f32]) {
    let (rows, pairs) = (left.scales.len(), inner.div_ceil(2));
    let columns = y.len() / rows;
    let (_, tile_panels) = tile_shape(cx.tier());
    // Enough tasks that two threads or more end at about the same time.
    let task = if rows < 32 * ROWS { FEW_ROWS } else { ROWS };
    cx.chunks(y, task * columns, |index, y| {
        let (first, rows) = (index * task, y.len() / columns);
        for start in (0..pairs).step_by(TOKENS / 2) {
            let store = if start > 0 { Store::Add } else { store };
            for panel in (0..columns.div_ceil(COLUMNS)).step_by(tile_panels) {
                let column = panel * COLUMNS;
                let count = (columns - column).min(tile_panels * COLUMNS);
                let mut out = Out {
                    y: &mut y[column..],
                    stride: columns,
                    columns: count,
                    offsets: &[0; ROWS][..rows],
                    factors: &left.scales[first..first + rows],
                    column_factors: right.scales.get(column..column + count).unwrap_or_default(),
                    store,
                };
                let block = Block {
                    gradients: &left.values[first * pairs * 2..],
                    inputs: &right.values[panel * pairs * 2 * COLUMNS..],
                    stride: pairs,
                    start,
                    pairs: (pairs - start).min(TOKENS / 2),
                };
                tiles(cx.tier(), block, &mut out);
            }
        }
    });
}

/// The operands of some tiles, for a block of tokens. Tokens go in pairs.
#[derive(Clone, Copy)]
struct Block<'a> {
    /// `[panel][stride][outputs of a tile][2]`, from the first output's panel on.
    gradients: &'a [i16],
    /// `[panel][stride][16 columns][2]`, from the first column's panel on.
    inputs: &'a [i16],
    /// Pairs in all.
    stride: usize,
    /// First pair of the block.
    start: usize,
    /// Pairs of the block.
    pairs: usize,
}

impl Block<'_> {
    /// Where the gradients of output `row` begin, in panels of `width`: pairs are `2 · width` apart.
    fn gradients_from(&self, row: usize, width: usize) -> usize {
        2 * ((row / width * self.stride + self.start) * width + row % width)
    }

    /// Where panel `panel` of the inputs begins: pairs are `2 · COLUMNS` apart.
    fn inputs_from(&self, panel: usize) -> usize {
        2 * (panel * self.stride + self.start) * COLUMNS
    }

    /// Whether the operands hold what tiles of `rows` outputs, in panels of `width`, by `panels` read.
    #[cfg(target_arch = "x86_64")]
    fn holds(&self, rows: usize, width: usize, panels: usize) -> bool {
        self.start + self.pairs <= self.stride
            && self.gradients.len() >= rows.div_ceil(width) * self.stride * width * 2
            && self.inputs.len() >= panels * self.stride * COLUMNS * 2
    }
}

/// Rows of a tile: those of a panel of the left factor.
pub(crate) fn tile_rows(tier: Tier) -> usize {
    tile_shape(tier).0
}

/// Rows and panels of a tile.
fn tile_shape(tier: Tier) -> (usize, usize) {
    match tier.level() {
        Level::Scalar => (scalar::ROWS, 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => (avx2::ROWS, 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (avx512::ROWS, 2),
    }
}
const _: () = assert!(ROWS.is_multiple_of(FEW_ROWS) && FEW_ROWS.is_multiple_of(scalar::ROWS));
#[cfg(target_arch = "x86_64")]
const _: () = assert!(FEW_ROWS.is_multiple_of(avx2::ROWS) && FEW_ROWS.is_multiple_of(avx512::ROWS));

/// The rows and panels of `out` from one block of tokens.
fn tiles(tier: Tier, block: Block<'_>, out: &mut Out<'_>) {
    match tier.level() {
        Level::Scalar => scalar::tiles(block, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => avx2::tiles(tier, block, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::tiles(tier, block, out),
    }
}

#[cfg(test)]
mod tests {
    //! Every tier against plain loops over the quantised operands, at all sizes and offsets.
    use super::*;

    fn check(tier: Tier, tokens: usize, outputs: usize, inputs: usize, offset: usize, extreme: bool) {
        let mut seed = (tokens * 1_000_003 + outputs * 1009 + inputs) as u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let cx = Context::new(tier, 2).unwrap();
        let dy: Vec<f32> =
            (0..offset + tokens * outputs).map(|_| if extreme { -1.0 } else { random() }).collect();
        let x: Vec<i8> = (0..offset + tokens * inputs)
            .map(|_| if extreme { -127 } else { (random() * 127.0) as i8 })
            .collect();
        let a: Vec<f32> = (0..tokens).map(|_| if extreme { 1.0 } else { random() }).collect();
        let (dy, x) = (&dy[offset..], &x[offset..]);
        let mut scratch = Scratch::default();
        let mut dw = vec![0.5; outputs * inputs];
        weight_gradient(&cx, dy, &a, x, Store::Add, &mut scratch, &mut dw);
        for o in 0..outputs {
            let folded: Vec<f32> = (0..tokens).map(|t| dy[t * outputs + o] * a[t]).collect();
            let bound = folded.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let q: Vec<i32> = folded
                .iter()
                .map(|v| if bound > 0.0 { (v * (32767.0 / bound)).round_ties_even() as i32 } else { 0 })
                .collect();
            for i in 0..inputs {
                let mut expected = 0.5;
                for block in (0..tokens).step_by(TOKENS) {
                    let sum: i32 = (block..tokens.min(block + TOKENS))
                        .map(|t| q[t].checked_mul(i32::from(x[t * inputs + i])).unwrap())
                        .sum();
                    expected += sum as f32 * (bound / 32767.0);
                }
                let found = dw[o * inputs + i];
                assert_eq!(found, expected, "{tokens}×{outputs}×{inputs} at ({o}, {i})");
            }
        }
    }

    #[test]
    fn every_tier_is_exact_at_every_size_and_offset() {
        for tier in Tier::available() {
            for tokens in 0..=515 {
                check(tier, tokens, 1 + tokens % 14, 1 + tokens % 35, tokens % 7, false);
            }
            for outputs in 1..=515 {
                check(tier, 1 + outputs % 5, outputs, 1 + outputs % 18, outputs % 3, false);
            }
            for inputs in 1..=515 {
                check(tier, 1 + inputs % 6, 1 + inputs % 8, inputs, inputs % 9, false);
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        for tier in Tier::available() {
            for tokens in [511, 512, 513, 1024, 1025, 2048] {
                check(tier, tokens, 7, 17, 0, true);
            }
        }
    }
}
