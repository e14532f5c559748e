//! Ternary × int8 matrix products: `y = x · qᵀ` with codes q in {-1, 0, 1}, exact in i32.
//!
//! Codes lie in memory in 2 bits, in panels of [`COLUMNS`] outputs ordered as the kernel reads them. A
//! task takes a block of rows, expands one panel at a time to a byte per code (two registers for every
//! four inputs), and runs tiles of six rows over it.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod scalar;

use crate::{Context, Tier, tier::Level};

/// Outputs in a panel.
pub const COLUMNS: usize = 16;
/// Inputs that one step of the inner loop consumes.
const STEP: usize = 4;
/// Rows of a tile.
const TILE: usize = 6;
/// Rows of a task: a multiple of the tile, small enough that a few threads share a batch evenly.
const ROWS: usize = 96;

/// Steps that 16-bit lanes can sum before they must be widened: each step adds one pair of products
/// of a code in {0, 1, 2} and an activation in [-127, 127] to a lane.
const STEPS_16: usize = 64;
const _: () = assert!(STEPS_16 * 2 * (2 * 127) <= i16::MAX as usize);
/// Inputs a matrix may have before an i32 could overflow.
pub const MAX_INPUTS: usize = i32::MAX as usize / (2 * 127);

/// Whether a product replaces what the result holds or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// `y = …`
    Replace,
    /// `y += …`
    Add,
}

/// Ternary codes of a matrix, packed for products over its inputs.
///
/// Layout: for each panel of 16 outputs, for each group of 8 inputs, 32 bytes; byte `4c + k` holds, from
/// its low bits up, code+1 of (output c, input k), (output 8 + c, input k), (output c, input 4 + k),
/// (output 8 + c, input 4 + k). Padding holds code 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Panels {
    outputs: usize,
    inputs: usize,
    bytes: Vec<u8>,
}

impl Panels {
    /// Room for a matrix; all codes zero.
    ///
    /// # Panics
    /// More than [`MAX_INPUTS`] inputs: the sums would not fit an i32.
    pub fn zeros(outputs: usize, inputs: usize) -> Panels {
        assert!(inputs <= MAX_INPUTS, "{inputs} inputs: at most {MAX_INPUTS} keep the sums exact");
        let bytes = vec![0b0101_0101; outputs.div_ceil(COLUMNS) * panel_len(inputs)];
        Panels { outputs, inputs, bytes }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Packs `codes`, row-major `[outputs][inputs]`, values in {-1, 0, 1}.
    ///
    /// # Panics
    /// `codes` has another length.
    pub fn pack(&mut self, cx: &Context, codes: &[i8]) {
        let (outputs, inputs) = (self.outputs, self.inputs);
        assert_eq!(codes.len(), outputs * inputs);
        self.fill(cx, |output, input| codes[output * inputs + input]);
    }

    /// Packs the transpose of `codes`, which is row-major `[inputs][outputs]`.
    ///
    /// # Panics
    /// `codes` has another length.
    pub fn pack_transposed(&mut self, cx: &Context, codes: &[i8]) {
        let (outputs, inputs) = (self.outputs, self.inputs);
        assert_eq!(codes.len(), outputs * inputs);
        self.fill(cx, |output, input| codes[input * outputs + output]);
    }

    fn fill(&mut self, cx: &Context, code: impl Fn(usize, usize) -> i8 + Sync + Send) {
        let (outputs, inputs) = (self.outputs, self.inputs);
        let bits = |output: usize, input: usize| {
            let inside = output < outputs && input < inputs;
            (if inside { code(output, input) + 1 } else { 1 }) as u8
        };
        cx.chunks(&mut self.bytes, panel_len(inputs), |panel, bytes| {
            let first = panel * COLUMNS;
            for (group, part) in bytes.chunks_exact_mut(32).enumerate() {
                for (j, byte) in part.iter_mut().enumerate() {
                    let (output, input) = (first + j / 4, group * 8 + j % 4);
                    *byte = bits(output, input)
                        | bits(output + 8, input) << 2
                        | bits(output, input + 4) << 4
                        | bits(output + 8, input + 4) << 6;
                }
            }
        });
    }
}

fn panel_len(inputs: usize) -> usize {
    inputs.div_ceil(8) * 32
}

tiered! {
    /// One byte per code: register by register, two registers a step.
    fn expand(packed: &[u8], codes: &mut [u8]) {
        for (bytes, out) in packed.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
            for shift in 0..4 {
                for j in 0..32 {
                    out[32 * shift + j] = bytes[j] >> (2 * shift) & 3;
                }
            }
        }
    }
}

/// Sums of a tile: `TILE` rows of `COLUMNS` outputs, codes still offset by one.
type Sums = [[i32; COLUMNS]; TILE];

/// `sums[r][c] = Σ_k x[r][k] · (code[c][k] + 1)` for one tile of up to six rows.
fn tile(tier: Tier, x: &[i8], rows: usize, inputs: usize, codes: &[u8], sums: &mut Sums) {
    debug_assert!(rows <= TILE && x.len() == rows * inputs && codes.len() >= inputs.div_ceil(STEP) * 64);
    match tier.level() {
        Level::Scalar => scalar::tile(x, rows, inputs, codes, sums),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::tile(tier, x, rows, inputs, codes, sums),
    }
}

/// `y[r][o] = scale · scales[r] · Σ_k x[r][k] · code[o][k]`, or that added to `y`.
///
/// `x` is row-major `[rows][inputs]` with values in [-127, 127], `scales` `[rows]`, `y` `[rows][outputs]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn matmul(cx: &Context, x: &[i8], scales: &[f32], w: &Panels, scale: f32, store: Store, y: &mut [f32]) {
    let (inputs, outputs, rows) = (w.inputs, w.outputs, scales.len());
    assert_eq!(x.len(), rows * inputs, "x is not rows × inputs");
    assert_eq!(y.len(), rows * outputs, "y is not rows × outputs");
    if y.is_empty() {
        return;
    }
    if rows == 1 {
        // One row: split the outputs instead, sixteen panels at a time.
        let columns = COLUMNS * 16;
        cx.chunks(y, columns, |index, part| {
            let panels = index * 16..(index * 16 + part.len().div_ceil(COLUMNS));
            block(cx.tier(), x, scales, w, scale, store, panels, part);
        });
        return;
    }
    cx.chunks(y, ROWS * outputs, |index, part| {
        let first = index * ROWS;
        let count = part.len() / outputs;
        let x = &x[first * inputs..(first + count) * inputs];
        let panels = 0..outputs.div_ceil(COLUMNS);
        block(cx.tier(), x, &scales[first..first + count], w, scale, store, panels, part);
    });
}

/// One task: all of `x` against some panels; `y` holds just those outputs.
fn block(
    tier: Tier,
    x: &[i8],
    scales: &[f32],
    w: &Panels,
    scale: f32,
    store: Store,
    panels: std::ops::Range<usize>,
    y: &mut [f32],
) {
    let (inputs, rows) = (w.inputs, scales.len());
    let width = y.len() / rows;
    let row_sums: Vec<i32> =
        x.chunks_exact(inputs.max(1)).map(|row| row.iter().map(|v| i32::from(*v)).sum()).collect();
    let mut codes = vec![0; panel_len(inputs) * 4];
    let mut sums = [[0; COLUMNS]; TILE];
    let first_panel = panels.start;
    for panel in panels {
        expand(tier, &w.bytes[panel * panel_len(inputs)..(panel + 1) * panel_len(inputs)], &mut codes);
        let column = (panel - first_panel) * COLUMNS;
        let columns = COLUMNS.min(width - column);
        for row in (0..rows).step_by(TILE) {
            let count = TILE.min(rows - row);
            tile(tier, &x[row * inputs..(row + count) * inputs], count, inputs, &codes, &mut sums);
            for r in 0..count {
                let total = row_sums.get(row + r).copied().unwrap_or(0);
                let factor = scale * scales[row + r];
                let out = &mut y[(row + r) * width + column..][..columns];
                finish(tier, &sums[r], total, factor, store == Store::Add, out);
            }
        }
    }
}

tiered! {
    /// Takes the offset of the codes out of the sums and scales them.
    fn finish(sums: &[i32; COLUMNS], row_sum: i32, factor: f32, add: bool, y: &mut [f32]) {
        let mut values = [0.0; COLUMNS];
        for c in 0..COLUMNS {
            values[c] = (sums[c] - row_sum) as f32 * factor;
        }
        if add {
            for (y, value) in y.iter_mut().zip(values) {
                *y += value;
            }
        } else {
            y.copy_from_slice(&values[..y.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Every tier against a product over the codes themselves, at all sizes and offsets.
    use super::*;

    fn noise(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    fn check(
        tier: Tier,
        rows: usize,
        outputs: usize,
        inputs: usize,
        offset: usize,
        seed: u64,
        extreme: bool,
    ) {
        let mut seed = seed;
        let cx = Context::new(tier, 2).unwrap();
        let mut random = |low: i64, high: i64| (low + (noise(&mut seed) as i64) % (high - low + 1)) as i8;
        let storage: Vec<i8> =
            (0..offset + rows * inputs).map(|_| if extreme { 127 } else { random(-127, 127) }).collect();
        let x = &storage[offset..];
        let codes: Vec<i8> = (0..outputs * inputs).map(|_| if extreme { 1 } else { random(-1, 1) }).collect();
        let mut panels = Panels::zeros(outputs, inputs);
        panels.pack(&cx, &codes);
        let transposed: Vec<i8> = (0..inputs)
            .flat_map(|i| (0..outputs).map(move |o| (o, i)))
            .map(|(o, i)| codes[o * inputs + i])
            .collect();
        let mut twin = Panels::zeros(outputs, inputs);
        twin.pack_transposed(&cx, &transposed);
        assert!(panels == twin, "packings differ at {outputs}×{inputs}");
        let mut y = vec![1.0; rows * outputs];
        matmul(&cx, x, &vec![1.0; rows], &panels, 1.0, Store::Add, &mut y);
        for r in 0..rows {
            for o in 0..outputs {
                let exact: i32 = (0..inputs)
                    .map(|k| i32::from(x[r * inputs + k]) * i32::from(codes[o * inputs + k]))
                    .sum();
                assert_eq!(y[r * outputs + o], exact as f32 + 1.0, "{rows}×{outputs}×{inputs} at ({r}, {o})");
            }
        }
    }

    #[test]
    fn every_tier_is_exact_at_every_size_and_offset() {
        for tier in Tier::available() {
            for inputs in 0..=515 {
                check(tier, 1 + inputs % 13, 1 + inputs % 35, inputs, inputs % 33, inputs as u64, false);
            }
            for outputs in 1..=515 {
                check(tier, 1 + outputs % 7, outputs, 1 + outputs % 19, outputs % 5, outputs as u64, false);
            }
            for rows in (0..=515).step_by(5).chain([95, 96, 97, 191, 192, 193]) {
                check(tier, rows, 17, 9, rows % 31, rows as u64, false);
            }
        }
    }

    #[test]
    fn extreme_sums_do_not_saturate() {
        for tier in Tier::available() {
            for inputs in [255, 256, 257, 511, 512, 1024, 4096] {
                check(tier, 7, 18, inputs, 0, 0, true);
            }
        }
    }
}
