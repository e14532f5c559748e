//! Codes of a matrix in 2 bits, in panels, for products over its inputs or over its outputs.

use super::{COLUMNS, GROUP, STEP};
use crate::{Context, Tier, strips::Strips};

/// Inputs a matrix may have before an i32 could overflow.
pub const MAX_INPUTS: usize = i32::MAX as usize / (2 * 127);

/// Ternary codes of a matrix, packed for products over its inputs.
///
/// Layout: for each panel of 16 outputs, for each group of 8 inputs, 32 bytes; byte `4c + k` holds, from
/// its low bits up, code+1 of (output c, input k), (output 8 + c, input k), (output c, input 4 + k),
/// (output 8 + c, input 4 + k). Padding holds code 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Panels {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) bytes: Vec<u8>,
}

impl Panels {
    /// Room for a matrix; all codes zero.
    ///
    /// # Panics
    /// More than [`MAX_INPUTS`] inputs: the sums would not fit an i32.
    pub fn zeros(outputs: usize, inputs: usize) -> Panels {
        assert!(inputs <= MAX_INPUTS, "{inputs} inputs: at most {MAX_INPUTS} keep the sums exact");
        let bytes = vec![0b0101_0101; Panels::room(outputs, inputs)];
        Panels { outputs, inputs, bytes }
    }

    /// Bytes that a matrix takes.
    pub fn room(outputs: usize, inputs: usize) -> usize {
        outputs.div_ceil(COLUMNS) * panel_len(inputs)
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

    /// The codes, row-major `[outputs][inputs]`.
    pub fn codes(&self) -> Vec<i8> {
        let at = |output: usize, input: usize| {
            let (panel, c) = (output / COLUMNS, output % COLUMNS);
            let group = &self.bytes[panel * panel_len(self.inputs) + input / GROUP * 32..][..32];
            let byte = group[STEP * (c % 8) + input % STEP];
            (byte >> (c / 8 * 2 + input % GROUP / STEP * 4) & 3) as i8 - 1
        };
        (0..self.outputs).flat_map(|output| (0..self.inputs).map(move |input| at(output, input))).collect()
    }
}

/// What becomes codes: a matrix, row-major `[outputs][inputs]`.
pub trait Source: Copy + Sync + Send {
    /// Number of its elements.
    fn count(&self) -> usize;
    /// Codes of the columns from `column` on of a row.
    fn codes(&self, tier: Tier, row: usize, column: usize, to: &mut [i8]);
}

/// A matrix with rows of `cols`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a, T> {
    /// Its elements.
    pub elements: &'a [T],
    /// Their number in a row.
    pub cols: usize,
}

impl<'a, T> Rows<'a, T> {
    fn part(&self, row: usize, column: usize, len: usize) -> &'a [T] {
        &self.elements[row * self.cols + column..][..len]
    }
}

/// Codes as they are, in {-1, 0, 1}.
impl Source for Rows<'_, i8> {
    fn count(&self) -> usize {
        self.elements.len()
    }

    fn codes(&self, _: Tier, row: usize, column: usize, to: &mut [i8]) {
        to.copy_from_slice(self.part(row, column, to.len()));
    }
}

/// Latent weights, whose code is the sign where |w| > scale/2, else 0; see `trit::ternary::code`.
#[derive(Clone, Copy, Debug)]
pub struct Latent<'a> {
    /// The weights.
    pub weights: Rows<'a, f32>,
    /// Their scale.
    pub scale: f32,
}

impl Source for Latent<'_> {
    fn count(&self) -> usize {
        self.weights.elements.len()
    }

    fn codes(&self, tier: Tier, row: usize, column: usize, to: &mut [i8]) {
        let threshold = if self.scale > 0.0 { self.scale * 0.5 } else { f32::INFINITY };
        signs(tier, self.weights.part(row, column, to.len()), threshold, to);
    }
}

tiered! {
    fn signs(w: &[f32], threshold: f32, codes: &mut [i8]) {
        for (code, w) in codes.iter_mut().zip(w) {
            *code = i8::from(*w > threshold) - i8::from(*w < -threshold);
        }
    }
}

/// Outputs and inputs of a block: its codes stay in the first cache while both packings read them.
const BLOCK: (usize, usize) = (64, 512);

/// Packs a matrix `[outputs][inputs]` into `forward`, and its transpose into `transposed`
/// `[inputs][outputs]`; either may be left out.
///
/// # Panics
/// The sizes do not fit together.
pub fn pack<S: Source>(
    cx: &Context,
    source: S,
    (outputs, inputs): (usize, usize),
    forward: Option<&mut Panels>,
    transposed: Option<&mut Panels>,
) {
    assert_eq!(source.count(), outputs * inputs, "source is not outputs × inputs");
    let fits = |t: Option<&Panels>, sizes| t.is_none_or(|t| (t.outputs, t.inputs) == sizes);
    assert!(fits(forward.as_deref(), (outputs, inputs)), "the panels are not outputs × inputs");
    assert!(fits(transposed.as_deref(), (inputs, outputs)), "the transpose is not inputs × outputs");
    if outputs * inputs == 0 {
        return;
    }
    let forward = forward.map(|panels| Strips::new(&mut panels.bytes, panel_len(inputs)));
    let transposed = transposed.map(|panels| Strips::new(&mut panels.bytes, panel_len(outputs)));
    let across = inputs.div_ceil(BLOCK.1);
    let floats = BLOCK.0 * BLOCK.1 / size_of::<f32>();
    cx.each(outputs.div_ceil(BLOCK.0) * across, floats, |task, desk| {
        let (row, column) = (task / across * BLOCK.0, task % across * BLOCK.1);
        let (rows, columns) = (BLOCK.0.min(outputs - row), BLOCK.1.min(inputs - column));
        let codes = &mut bytemuck::cast_slice_mut::<f32, i8>(desk)[..rows * columns];
        for (r, codes) in codes.chunks_exact_mut(columns).enumerate() {
            source.codes(cx.tier(), row + r, column, codes);
        }
        let codes = &*codes;
        let bytes = |inputs: usize| panel_len(inputs);
        if let Some(forward) = &forward {
            for (panel, rows) in codes.chunks(COLUMNS * columns).enumerate() {
                // SAFETY: these columns of these panels belong to this task.
                let to = unsafe { forward.slice(row / COLUMNS + panel, bytes(column), bytes(columns)) };
                pack_panel(cx.tier(), rows, columns, to);
            }
        }
        if let Some(transposed) = &transposed {
            for first in (0..columns).step_by(COLUMNS) {
                // SAFETY: as above.
                let to = unsafe { transposed.slice((column + first) / COLUMNS, bytes(row), bytes(rows)) };
                pack_transposed_panel(cx.tier(), codes, columns, first, to);
            }
        }
    });
}

/// Two bits of every byte: code + 1.
#[inline(always)]
fn offset(codes: u64) -> u64 {
    const LOW: u64 = 0x0303_0303_0303_0303;
    ((codes & LOW) + 0x0101_0101_0101_0101) & LOW
}

tiered! {
    /// Packs up to sixteen rows of codes as one panel.
    fn pack_panel(rows: &[i8], inputs: usize, bytes: &mut [u8]) {
        for (group, bytes) in bytes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for c in 0..COLUMNS / 2 {
                let [near, far] = [c, c + 8].map(|output| {
                    let mut eight = [0; GROUP];
                    if (output + 1) * inputs <= rows.len() {
                        let row = &rows[output * inputs..][..inputs][group * GROUP..];
                        match row.first_chunk::<GROUP>() {
                            Some(whole) => eight = whole.map(i8::cast_unsigned),
                            None => {
                                for (to, from) in eight.iter_mut().zip(row) {
                                    *to = from.cast_unsigned();
                                }
                            }
                        }
                    }
                    offset(u64::from_le_bytes(eight))
                });
                let word = near | far << 2 | near >> 32 << 4 | far >> 32 << 6;
                bytes[4 * c..4 * c + 4].copy_from_slice(&(word as u32).to_le_bytes());
            }
        }
    }
}

tiered! {
    /// Packs sixteen columns of `codes` `[inputs][outputs]`, from `first` on, as one panel.
    fn pack_transposed_panel(codes: &[i8], outputs: usize, first: usize, bytes: &mut [u8]) {
        let columns = COLUMNS.min(outputs - first);
        for (group, bytes) in bytes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            // By input: outputs 0..8 and 8..16.
            let mut rows = [[offset(0); 2]; GROUP];
            for (k, row) in rows.iter_mut().enumerate() {
                let start = (group * GROUP + k) * outputs + first;
                if start + columns <= codes.len() {
                    let mut sixteen = [0; COLUMNS];
                    for (to, from) in sixteen.iter_mut().zip(&codes[start..start + columns]) {
                        *to = from.cast_unsigned();
                    }
                    let (near, far) = sixteen.split_at(8);
                    let eight = |half: &[u8]| u64::from_le_bytes(half.try_into().unwrap_or_default());
                    *row = [offset(eight(near)), offset(eight(far))];
                }
            }
            for k in 0..STEP {
                let word = rows[k][0] | rows[k][1] << 2 | rows[STEP + k][0] << 4 | rows[STEP + k][1] << 6;
                for (c, byte) in word.to_le_bytes().into_iter().enumerate() {
                    bytes[STEP * c + k] = byte;
                }
            }
        }
    }
}

pub(super) fn panel_len(inputs: usize) -> usize {
    inputs.div_ceil(GROUP) * 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_packings_hold_the_codes_of_the_definition() {
        let latent = |i: usize| ((i * 7919 % 4001) as f32 - 2000.0) * 1e-3;
        for tier in Tier::available() {
            let cx = Context::new(tier, 2).unwrap();
            for (outputs, inputs) in [(1, 1), (17, 9), (64, 512), (65, 513), (130, 1030), (515, 70)] {
                let mut weights: Vec<f32> = (0..outputs * inputs).map(latent).collect();
                // On the threshold, beyond all numbers, and none.
                for (at, w) in [0.5, -0.5, f32::INFINITY, f32::NAN].into_iter().enumerate() {
                    let len = weights.len();
                    weights[at * 37 % len] = w;
                }
                for scale in [1.0, 0.0, f32::NAN] {
                    let mut codes = vec![0; weights.len()];
                    tritrain_trit::ternary::quantize(&weights, scale, &mut codes);
                    let transposed: Vec<i8> =
                        (0..codes.len()).map(|i| codes[i % outputs * inputs + i / outputs]).collect();
                    let (mut forward, mut backward) =
                        (Panels::zeros(outputs, inputs), Panels::zeros(inputs, outputs));
                    let source = Latent { weights: Rows { elements: &weights, cols: inputs }, scale };
                    pack(&cx, source, (outputs, inputs), Some(&mut forward), Some(&mut backward));
                    assert_eq!(forward.codes(), codes, "{outputs}×{inputs}");
                    assert_eq!(backward.codes(), transposed, "{outputs}×{inputs}");
                    let mut from_codes = Panels::zeros(outputs, inputs);
                    let source = Rows { elements: &codes[..], cols: inputs };
                    pack(&cx, source, (outputs, inputs), Some(&mut from_codes), None);
                    assert!(from_codes == forward, "{outputs}×{inputs}");
                }
            }
        }
    }
}
