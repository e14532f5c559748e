//! Operations on what lies in the memory of the host, which take their results back there.

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::{Backend, Memory};
use tritrain_trit::pack::packed2_len;

use super::{matmul, ternary};
use crate::{
    Gpu, Ternary,
    blocks::{cube_max, word_desk},
    launch::{UNITS, arg, cubes, cubes_for, launch, units},
};

/// Codes in a byte, and in a word.
const PER_BYTE: usize = 4;
const PER_WORD: usize = 16;
/// A byte of zeros.
const ZEROS: u8 = 0b01_01_01_01;

/// One unit a code: what it is worth; and of a cube, whether a field is none.
#[cube(launch, create_dummy_kernel)]
fn spread_codes(codes: &[u32], out: &mut [f32], broken: &mut [u32], scale: f32) {
    let mut desk = word_desk();
    let mut field = 1u32;
    if ABSOLUTE_POS < out.len() {
        let word = codes[ABSOLUTE_POS / PER_WORD];
        field = (word >> (2u32 * (ABSOLUTE_POS % PER_WORD) as u32)) & 3u32;
        out[ABSOLUTE_POS] = (f32::cast_from(field) - 1.0f32) * scale;
    }
    if CUBE_POS < broken.len() {
        let largest = cube_max(field, &mut desk);
        if UNIT_POS == 0 {
            broken[CUBE_POS] = u32::cast_from(largest == 3u32);
        }
    }
}

/// One unit a word: sixteen codes of a row out of rows without gaps.
#[cube(launch, create_dummy_kernel)]
fn rows_of_codes(codes: &[u32], rows: &mut [u32], cols: usize) {
    if ABSOLUTE_POS < rows.len() {
        let words = cols.div_ceil(PER_WORD);
        let row = ABSOLUTE_POS / words;
        let first = ABSOLUTE_POS % words * PER_WORD;
        let mut word = 0u32;
        #[unroll]
        for at in 0..PER_WORD {
            let mut field = 1u32;
            if first + at < cols {
                let place = row * cols + first + at;
                field = (codes[place / PER_WORD] >> (2u32 * (place % PER_WORD) as u32)) & 3u32;
            }
            word |= field << comptime![2 * at as u32];
        }
        rows[ABSOLUTE_POS] = word;
    }
}

/// Packs the codes of `x` into `codes`; their scale, or none where numbers are not finite or too large for one.
pub(crate) fn quantize(gpu: &Gpu, x: &[f32], codes: &mut [u8]) -> Option<f32> {
    if x.is_empty() {
        return Some(0.0);
    }
    let latent = gpu.given(x);
    let mut w = Ternary {
        forward: gpu.room(x.len().div_ceil(PER_WORD)),
        backward: None,
        scale: gpu.room(1),
        outputs: 1,
        inputs: x.len(),
    };
    ternary::ternarize(gpu, &latent, &mut w);
    let read = gpu.read_all(vec![w.forward, w.scale]);
    let (bytes, scale) = (read.first()?, read.get(1)?);
    codes.copy_from_slice(&bytes[..codes.len()]);
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    (!scale.is_nan()).then_some(scale)
}

/// Packed codes as words, padded with zeros.
fn words(gpu: &Gpu, codes: &[u8]) -> Handle {
    if codes.len().is_multiple_of(4) {
        return gpu.put(codes);
    }
    let mut padded = codes.to_vec();
    padded.resize(codes.len().next_multiple_of(4), ZEROS);
    gpu.put(&padded)
}

/// Writes what codes stand for into `out`; whether all fields are codes, and zeros beyond the last.
pub(crate) fn dequantize(gpu: &Gpu, codes: &[u8], scale: f32, out: &mut [f32]) -> bool {
    let tail = out.len() % PER_BYTE;
    let padding = codes.last().filter(|_| tail > 0).map_or(0, |last| (last ^ ZEROS) >> (2 * tail));
    if padding != 0 || codes.len() != packed2_len(out.len()) {
        return false;
    }
    if out.is_empty() {
        return true;
    }
    let (len, shares) = (out.len(), out.len().div_ceil(UNITS as usize));
    let (numbers, broken) = (gpu.room(len), gpu.room(shares));
    let from = arg(&words(gpu, codes), len.div_ceil(PER_WORD));
    launch!(gpu, spread_codes, cubes(shares), units(), from, arg(&numbers, len), arg(&broken, shares), scale);
    let read = gpu.read_all(vec![numbers, broken]);
    let [numbers, broken] = &read[..] else { return true };
    bytemuck::cast_slice_mut(out).copy_from_slice(&numbers[..4 * len]);
    broken[..4 * shares].iter().all(|byte| *byte == 0)
}

/// `y = x·wᵀ`.
pub(crate) fn matmul(gpu: &Gpu, x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    let mut product = gpu.unset(y.len());
    matmul::matmul(gpu, &gpu.given(x), &gpu.given(w), inputs, None, &mut product);
    gpu.download(&product, y);
}

/// `y = q(x)·wᵀ` with packed codes of `w` and their scale.
pub(crate) fn ternary_matmul(
    gpu: &Gpu,
    x: &[f32],
    (codes, scale): (&[u8], f32),
    (outputs, inputs): (usize, usize),
    y: &mut [f32],
) {
    let mut forward = words(gpu, codes);
    if !inputs.is_multiple_of(PER_WORD) {
        let len = outputs * inputs.div_ceil(PER_WORD);
        let rows = gpu.room(len);
        let from = arg(&forward, (outputs * inputs).div_ceil(PER_WORD));
        launch!(gpu, rows_of_codes, cubes_for(len), units(), from, arg(&rows, len), inputs);
        forward = rows;
    }
    let scale = gpu.put(&scale.to_le_bytes());
    let w = Ternary { forward, backward: None, scale, outputs, inputs };
    let mut rows = gpu.rows(x.len() / inputs, inputs);
    gpu.quantize_rows(&gpu.given(x), &mut rows);
    let mut product = gpu.unset(y.len());
    ternary::ternary_matmul(gpu, &rows, &w, None, &mut product);
    gpu.download(&product, y);
}
