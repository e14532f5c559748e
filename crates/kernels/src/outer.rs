//! Weight gradients: `dW[o][i] = Σ_t g[t][o] · x[t][i]`, int16 × int8 summed exactly in i32.
//!
//! The inner dimension is tokens. Gradients are folded with the token scales of the inputs and
//! quantised to int16 with one scale per output column; inputs are int8 already. Sums run over blocks
//! of [`TOKENS`] tokens and blocks are added in f32 in order.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::{Context, Tier, lanes, ternary::Store, tier::Level};

/// Tokens whose products one i32 sums: the most that cannot overflow.
pub const TOKENS: usize = 512;
const _: () = assert!(TOKENS * 127 * 32767 <= i32::MAX as usize);

/// Inputs in a panel.
const COLUMNS: usize = 16;
/// Outputs of a tile.
const TILE: usize = 6;
/// Outputs of a task.
const ROWS: usize = 4 * TILE;

/// Working memory of [`weight_gradient`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Quantised gradients, `[outputs][pairs · 2]`.
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
    quantise_columns(cx, dy, a, outputs, scratch);
    pack_inputs(cx, x, inputs, tokens, &mut scratch.inputs);
    let pairs = tokens.div_ceil(2);
    let Scratch { gradients, scales, inputs: packed } = scratch;
    let (gradients, scales, packed) = (&*gradients, &*scales, &*packed);
    cx.chunks(dw, ROWS * inputs, |index, dw| {
        let first = index * ROWS;
        let mut sums = [[0; COLUMNS]; TILE];
        for block in (0..pairs).step_by(TOKENS / 2) {
            let count = (pairs - block).min(TOKENS / 2);
            for (panel, packed) in packed.chunks_exact(pairs * 2 * COLUMNS).enumerate() {
                let column = panel * COLUMNS;
                let columns = COLUMNS.min(inputs - column);
                let packed = &packed[block * 2 * COLUMNS..(block + count) * 2 * COLUMNS];
                for (tile_index, dw) in dw.chunks_mut(TILE * inputs).enumerate() {
                    let first = first + tile_index * TILE;
                    let rows = dw.len() / inputs;
                    tile(
                        cx.tier(),
                        &gradients[first * pairs * 2..],
                        pairs * 2,
                        block * 2,
                        rows,
                        packed,
                        &mut sums,
                    );
                    for r in 0..rows {
                        let out = &mut dw[r * inputs + column..][..columns];
                        let add = store == Store::Add || block > 0;
                        finish(cx.tier(), &sums[r], scales[first + r], add, out);
                    }
                }
            }
        }
    });
}

/// Output columns of one task of [`quantise_columns`].
const GROUP: usize = 16;

/// Folds the token scales into `dy` and quantises every output column to int16, transposed.
fn quantise_columns(cx: &Context, dy: &[f32], a: &[f32], outputs: usize, scratch: &mut Scratch) {
    let tokens = a.len();
    let width = tokens.next_multiple_of(2);
    scratch.gradients.resize(outputs * width, 0);
    scratch.scales.resize(outputs, 0.0);
    let (gradients, scales) = ((&mut scratch.gradients[..], GROUP * width), (&mut scratch.scales[..], GROUP));
    cx.chunks2(gradients, scales, |index, q, scales| {
        let first = index * GROUP;
        quantise_group(cx.tier(), dy, a, outputs, first, q, scales);
    });
}

tiered! {
    /// Sixteen output columns of [`quantise_columns`], or what is left of them.
    fn quantise_group(dy: &[f32], a: &[f32], outputs: usize, first: usize, q: &mut [i16], scales: &mut [f32]) {
        let (count, width) = (scales.len(), a.len().next_multiple_of(2));
        // Rows of sixteen, the missing columns zero: full lanes wherever the group lies.
        let row = |t: usize| -> [f32; GROUP] {
            let row = &dy[t * outputs + first..][..count];
            row.try_into().unwrap_or_else(|_| {
                let mut padded = [0.0; GROUP];
                padded[..count].copy_from_slice(row);
                padded
            })
        };
        let mut largest = [0u32; GROUP];
        for (t, a) in a.iter().enumerate() {
            let row = row(t);
            for c in 0..GROUP {
                largest[c] = largest[c].max((row[c] * a).to_bits() & 0x7fff_ffff);
            }
        }
        let mut inverse = [0.0; GROUP];
        for c in 0..count {
            let bound = f32::from_bits(largest[c]);
            // Not finite: the scale carries it on, and the guard of the optimizer sees it.
            let usable = bound.is_finite() && bound > f32::MIN_POSITIVE * 65536.0;
            scales[c] = if usable { bound / 32767.0 } else if bound.is_finite() { 0.0 } else { f32::NAN };
            inverse[c] = if usable { 32767.0 / bound } else { 0.0 };
        }
        for (block, a) in a.chunks(GROUP).enumerate() {
            let mut turned = [[0i16; GROUP]; GROUP];
            for (t, a) in a.iter().enumerate() {
                let row = row(block * GROUP + t);
                for c in 0..GROUP {
                    // |dy·a·inverse| ≤ 32767·(1 + 2^-22), which rounds to at most 32767.
                    turned[t][c] = lanes::round(row[c] * a * inverse[c]) as i16;
                }
            }
            for c in 0..count {
                for (t, q) in q[c * width + block * GROUP..][..a.len()].iter_mut().enumerate() {
                    *q = turned[t][c];
                }
            }
        }
        if a.len() % 2 == 1 {
            for row in q.chunks_exact_mut(width) {
                row[width - 1] = 0;
            }
        }
    }
}

/// Widens `x` to i16 and lays it out in panels of sixteen columns, tokens in pairs.
fn pack_inputs(cx: &Context, x: &[i8], inputs: usize, tokens: usize, packed: &mut Vec<i16>) {
    let pairs = tokens.div_ceil(2);
    packed.resize(inputs.div_ceil(COLUMNS) * pairs * 2 * COLUMNS, 0);
    cx.chunks(packed, pairs * 2 * COLUMNS, |panel, packed| {
        let first = panel * COLUMNS;
        let columns = COLUMNS.min(inputs - first);
        for (pair, out) in packed.as_chunks_mut::<{ 2 * COLUMNS }>().0.iter_mut().enumerate() {
            *out = [0; 2 * COLUMNS];
            for half in 0..2 {
                let token = 2 * pair + half;
                if token < tokens {
                    let row = &x[token * inputs + first..][..columns];
                    for (c, value) in row.iter().enumerate() {
                        out[2 * c + half] = i16::from(*value);
                    }
                }
            }
        }
    });
}

type Sums = [[i32; COLUMNS]; TILE];

/// `sums[r][c] = Σ g[r][t] · x[t][c]` over one block of tokens: `gradients` has rows `stride` apart and
/// the block starts at token `start`; `packed` is the block of one panel.
fn tile(
    tier: Tier,
    gradients: &[i16],
    stride: usize,
    start: usize,
    rows: usize,
    packed: &[i16],
    sums: &mut Sums,
) {
    match tier.level() {
        Level::Scalar => scalar::tile(gradients, stride, start, rows, packed, sums),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::tile(tier, gradients, stride, start, rows, packed, sums),
    }
}

tiered! {
    fn finish(sums: &[i32; COLUMNS], scale: f32, add: bool, out: &mut [f32]) {
        let mut values = [0.0; COLUMNS];
        for c in 0..COLUMNS {
            values[c] = sums[c] as f32 * scale;
        }
        if add {
            for (out, value) in out.iter_mut().zip(values) {
                *out += value;
            }
        } else {
            out.copy_from_slice(&values[..out.len()]);
        }
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
