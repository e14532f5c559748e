//! Weight gradients: `dW[o][i] = Σ_t g[t][o] · x[t][i]`, int16 × int8 summed exactly in i32.
//!
//! The inner dimension is tokens. Gradients are folded with the token scales of the inputs and
//! quantised to int16 with one scale per output column; inputs are int8 already. Sums run over blocks
//! of [`TOKENS`] tokens and blocks are added in f32 in order.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::{
    Context, Store, Tier, lanes,
    tier::Level,
    tile::{COLUMNS, Out},
};

/// Tokens whose products one i32 sums: the most that cannot overflow.
pub const TOKENS: usize = 512;
const _: () = assert!(TOKENS * 127 * 32767 <= i32::MAX as usize);

/// Outputs of a task: a multiple of every tile.
const ROWS: usize = 48;

/// Working memory of [`weight_gradient`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Quantised gradients: `[panel][pair of tokens][outputs of a tile][2 tokens]`.
    gradients: Vec<i16>,
    /// Scale of each output column.
    scales: Vec<f32>,
    /// Inputs as i16: `[panel][pair of tokens][16 columns][2 tokens]`.
    inputs: Vec<i16>,
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
    let (tile_rows, tile_panels) = tile_shape(cx.tier());
    quantise_columns(cx, dy, a, outputs, tile_rows, scratch);
    pack_inputs(cx, x, inputs, &mut scratch.inputs);
    let pairs = tokens.div_ceil(2);
    let Scratch { gradients, scales, inputs: packed } = &*scratch;
    cx.chunks(dw, ROWS * inputs, |index, dw| {
        let (first, rows) = (index * ROWS, dw.len() / inputs);
        for start in (0..pairs).step_by(TOKENS / 2) {
            let store = if start > 0 { Store::Add } else { store };
            for panel in (0..inputs.div_ceil(COLUMNS)).step_by(tile_panels) {
                let column = panel * COLUMNS;
                let mut out = Out {
                    y: &mut dw[column..],
                    stride: inputs,
                    columns: (inputs - column).min(tile_panels * COLUMNS),
                    offsets: &[0; ROWS][..rows],
                    factors: &scales[first..first + rows],
                    store,
                };
                let block = Block {
                    gradients: &gradients[first * pairs * 2..],
                    inputs: &packed[panel * pairs * 2 * COLUMNS..],
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

/// Outputs and panels of a tile.
fn tile_shape(tier: Tier) -> (usize, usize) {
    match tier.level() {
        Level::Scalar => (scalar::ROWS, 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => (avx2::ROWS, 1),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => (avx512::ROWS, 2),
    }
}
const _: () = assert!(ROWS.is_multiple_of(scalar::ROWS));
#[cfg(target_arch = "x86_64")]
const _: () = assert!(ROWS.is_multiple_of(avx2::ROWS) && ROWS.is_multiple_of(avx512::ROWS));

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

/// Folds the token scales into `dy` and quantises every output column to int16, in panels of `width`.
fn quantise_columns(
    cx: &Context,
    dy: &[f32],
    a: &[f32],
    outputs: usize,
    width: usize,
    scratch: &mut Scratch,
) {
    let pairs = a.len().div_ceil(2);
    scratch.gradients.resize(outputs.next_multiple_of(width) * pairs * 2, 0);
    scratch.scales.resize(outputs, 0.0);
    let gradients = (&mut scratch.gradients[..], ROWS * pairs * 2);
    cx.chunks2(gradients, (&mut scratch.scales, ROWS), |index, q, scales| {
        quantise_group(cx.tier(), dy, a, outputs, index * ROWS, width, q, scales);
    });
}

tiered! {
    /// [`ROWS`] output columns of [`quantise_columns`], or what is left of them.
    fn quantise_group(
        dy: &[f32],
        a: &[f32],
        outputs: usize,
        first: usize,
        width: usize,
        q: &mut [i16],
        scales: &mut [f32],
    ) {
        let count = scales.len();
        let mut largest = [0u32; ROWS];
        for (t, a) in a.iter().enumerate() {
            let row = fold(&dy[t * outputs + first..][..count], *a);
            for c in 0..ROWS {
                largest[c] = largest[c].max(row[c].to_bits() & 0x7fff_ffff);
            }
        }
        let mut inverse = [0.0; ROWS];
        for c in 0..count {
            let bound = f32::from_bits(largest[c]);
            // Not finite: the scale carries it on, and the guard of the optimizer sees it.
            let usable = bound.is_finite() && bound > f32::MIN_POSITIVE * 65536.0;
            scales[c] = if usable { bound / 32767.0 } else if bound.is_finite() { 0.0 } else { f32::NAN };
            inverse[c] = if usable { 32767.0 / bound } else { 0.0 };
        }
        let pairs = a.len().div_ceil(2);
        for pair in 0..pairs {
            let mut quantised = [[0i16; ROWS]; 2];
            for (half, quantised) in quantised.iter_mut().enumerate() {
                let t = 2 * pair + half;
                if t < a.len() {
                    let row = fold(&dy[t * outputs + first..][..count], a[t]);
                    for c in 0..ROWS {
                        // |dy·a·inverse| ≤ 32767·(1 + 2^-22), which rounds to at most 32767.
                        quantised[c] = lanes::round(row[c] * inverse[c]) as i16;
                    }
                }
            }
            let mut both = [0; 2 * ROWS];
            for c in 0..ROWS {
                both[2 * c] = quantised[0][c];
                both[2 * c + 1] = quantised[1][c];
            }
            for (panel, both) in q.chunks_exact_mut(2 * pairs * width).zip(both.chunks_exact(2 * width)) {
                panel[2 * pair * width..][..2 * width].copy_from_slice(both);
            }
        }
    }
}

/// A row times `a`, the missing columns zero: full lanes wherever the row lies.
#[inline(always)]
fn fold(row: &[f32], a: f32) -> [f32; ROWS] {
    let mut folded = [0.0; ROWS];
    if let Ok(row) = <&[f32; ROWS]>::try_from(row) {
        for c in 0..ROWS {
            folded[c] = row[c] * a;
        }
    } else {
        for (folded, value) in folded.iter_mut().zip(row) {
            *folded = value * a;
        }
    }
    folded
}

/// Panels that one task of [`pack_inputs`] writes: a cache line of every row.
const PANELS: usize = 4;

/// Widens `x` to i16 and lays it out in panels of sixteen columns, tokens in pairs.
fn pack_inputs(cx: &Context, x: &[i8], inputs: usize, packed: &mut Vec<i16>) {
    let panel = (x.len() / inputs).div_ceil(2) * 2 * COLUMNS;
    packed.resize(inputs.div_ceil(COLUMNS) * panel, 0);
    cx.chunks(packed, PANELS * panel, |index, packed| {
        pack_panels(cx.tier(), x, inputs, index * PANELS * COLUMNS, packed);
    });
}

tiered! {
    /// Up to [`PANELS`] panels, from column `first` on.
    fn pack_panels(x: &[i8], inputs: usize, first: usize, packed: &mut [i16]) {
        let tokens = x.len() / inputs;
        let pairs = tokens.div_ceil(2);
        for pair in 0..pairs {
            for (panel, packed) in packed.chunks_exact_mut(pairs * 2 * COLUMNS).enumerate() {
                let column = first + panel * COLUMNS;
                let even = sixteen(&x[2 * pair * inputs..], column, inputs);
                let odd = if 2 * pair + 1 < tokens {
                    sixteen(&x[(2 * pair + 1) * inputs..], column, inputs)
                } else {
                    [0; COLUMNS]
                };
                let mut both = [0; 2 * COLUMNS];
                for c in 0..COLUMNS {
                    both[2 * c] = i16::from(even[c]);
                    both[2 * c + 1] = i16::from(odd[c]);
                }
                packed[2 * pair * COLUMNS..][..2 * COLUMNS].copy_from_slice(&both);
            }
        }
    }
}

/// Sixteen columns of a row of `inputs`, those beyond its end zero.
#[inline(always)]
fn sixteen(row: &[i8], column: usize, inputs: usize) -> [i8; COLUMNS] {
    let row = &row[column..inputs.min(column + COLUMNS)];
    <[i8; COLUMNS]>::try_from(row).unwrap_or_else(|_| {
        let mut padded = [0; COLUMNS];
        padded[..row.len()].copy_from_slice(row);
        padded
    })
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
