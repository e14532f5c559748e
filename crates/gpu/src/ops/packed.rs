//! Matrices in few bits: rounded to them, read, turned into ternary codes, and as they are stored.

mod keep;
mod rows;
mod sums;

use cubecl::prelude::*;
use tritrain_backend::{Backend, Format, Memory, Pace, Sides, Stored};

pub(crate) use keep::{accumulate, mean, momentum, round, sign};
pub(crate) use rows::{
    HALVES, Kind, Layout, RUN, SIDE, chance, half, halved, is_nan, largest_level, matrix_room, number,
    pack_row, place, random_words, step, to_level, words_of, worth,
};
pub(crate) use sums::measure;

use super::descend::{INFO, TURN, row_table};
use crate::{
    Floats, Gpu, Packed, Ternary,
    launch::{arg, cubes_for, launch, units},
};

/// One unit a number.
#[cube(launch, create_dummy_kernel)]
fn unpack_kernel(
    words: &[u32],
    places: &[u32],
    steps: &[f32],
    to: &mut [f32],
    cols: usize,
    row_words: usize,
    digits: u32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
) {
    if ABSOLUTE_POS < to.len() {
        let (row, col) = (ABSOLUTE_POS / cols, ABSOLUTE_POS % cols);
        let (start, own) = place(places, row, row_words, digits, placed);
        let mut value = number(words, start, cols, col, own, kind);
        if comptime![kind != Kind::Bf16] {
            value *= worth(steps, row, own, digits, kind, placed);
        }
        to[ABSOLUTE_POS] = value;
    }
}

/// One unit a word: sixteen codes of a row, or of a column where `turned`.
#[cube(launch, create_dummy_kernel)]
fn packed_code_words(
    words: &[u32],
    places: &[u32],
    table: &[f32],
    codes: &mut [u32],
    rows: usize,
    cols: usize,
    row_words: usize,
    digits: u32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
    #[comptime] turned: bool,
) {
    if ABSOLUTE_POS < codes.len() {
        let along = if comptime![turned] { rows } else { cols };
        let line_words = along.div_ceil(16);
        let line = ABSOLUTE_POS / line_words;
        let first = ABSOLUTE_POS % line_words * 16;
        let mut word = 0u32;
        for at in 0..16usize {
            let mut code = 1u32;
            if first + at < along {
                let row = if comptime![turned] { first + at } else { line };
                let col = if comptime![turned] { line } else { first + at };
                let (start, own) = place(places, row, row_words, digits, placed);
                let value = number(words, start, cols, col, own, kind);
                let turn = table[row * INFO + TURN];
                code = code + u32::cast_from(value > turn) - u32::cast_from(value < -turn);
            }
            word |= code << (2u32 * at as u32);
        }
        codes[ABSOLUTE_POS] = word;
    }
}

pub(crate) fn unpack(gpu: &Gpu, from: &Packed, to: &mut Floats) {
    assert_eq!(to.len, from.rows * from.cols, "lengths of a matrix");
    let Layout { words, places, placed, row_words, digits, kind, cols, steps, .. } = from.layout();
    let (count, to) = (cubes_for(to.len), to.arg());
    launch!(
        gpu,
        unpack_kernel,
        count,
        units(),
        words,
        places,
        steps,
        to,
        cols,
        row_words,
        digits,
        kind,
        placed
    );
}

pub(crate) fn ternarize_packed(gpu: &Gpu, latent: &Packed, w: &mut Ternary, sides: Sides) {
    assert!(latent.rows == w.outputs && latent.cols == w.inputs, "latent weights and codes");
    let of = latent.layout();
    if of.rows * of.cols == 0 {
        return;
    }
    let rms = measure(gpu, &of, &w.scale);
    let still = Pace { rate: 0.0, radius: 0.0 };
    let (_table, table) = row_table(gpu, &of, &w.scale, &rms, (&[still], &[]), 0.0);
    let Layout { words, places, placed, row_words, digits, kind, rows, cols, .. } = of;
    let (codes, len) = match (sides, &w.backward) {
        (Sides::Forward, _) => (&w.forward, rows * cols.div_ceil(16)),
        (Sides::Backward, Some(codes)) => (codes, cols * rows.div_ceil(16)),
        (Sides::Backward, None) => return,
    };
    let (codes, turned) = (arg(codes, len), sides == Sides::Backward);
    launch!(
        gpu,
        packed_code_words,
        cubes_for(len),
        units(),
        words,
        places,
        table,
        codes,
        rows,
        cols,
        row_words,
        digits,
        kind,
        placed,
        turned,
    );
}

/// The formats of all rows.
fn formats(format: Format, rows: usize, digits: &[u8]) -> impl Iterator<Item = Format> {
    (0..rows).map(move |row| digits.get(row).map_or(format, |digits| Format::Trits(*digits)))
}

/// Takes rows that were checked.
fn take(gpu: &Gpu, from: &Stored<'_>, to: &mut Packed) {
    let even = from.digits.iter().all(|digits| Format::Trits(*digits) == to.format);
    let (mut words, mut places) = (Vec::<u8>::with_capacity(from.bytes.len()), Vec::<u32>::new());
    let mut bytes = &from.bytes[..];
    for format in formats(to.format, to.rows, &from.digits) {
        if let (Format::Trits(digits), false) = (format, even) {
            places.push((words.len() / 4) as u32 * 8 + u32::from(digits));
        }
        let (row, rest) = bytes.split_at(format.row_len(to.cols));
        words.extend_from_slice(row);
        words.resize(words.len().next_multiple_of(4), 0);
        bytes = rest;
    }
    to.len = words.len() / 4;
    if to.len > 0 {
        to.bytes = gpu.put(&words);
    }
    to.places = (!even).then(|| gpu.put(bytemuck::cast_slice(&places)));
    if !from.steps.is_empty() {
        to.steps = gpu.put(bytemuck::cast_slice(&from.steps));
    }
}

pub(crate) fn stored<'a>(gpu: &Gpu, from: &'a Packed) -> Stored<'a> {
    let words = gpu.read(&from.bytes, 4 * from.len);
    let digits: Vec<u8> = match &from.places {
        Some(places) => gpu.read(places, 4 * from.rows).iter().step_by(4).map(|low| low & 7).collect(),
        None => Vec::new(),
    };
    let mut bytes = Vec::with_capacity(words.len());
    let mut at = 0;
    for format in formats(from.format, from.rows, &digits) {
        let len = format.row_len(from.cols);
        bytes.extend_from_slice(&words[at..at + len]);
        at += len.next_multiple_of(4);
    }
    let count = match from.format.largest() {
        None => 0,
        Some(_) if from.by_row => from.rows,
        Some(_) => 1,
    };
    let steps = gpu.read(&from.steps, 4 * count);
    let steps: Vec<f32> = steps.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    Stored { format: from.format, bytes: bytes.into(), digits: digits.into(), steps: steps.into() }
}

pub(crate) fn restore(gpu: &Gpu, from: &Stored<'_>, to: &mut Packed) -> Result<(), String> {
    // The processor says what is wrong, in the same words.
    let mut host = gpu.host.packed(to.format, to.rows, to.cols, to.by_row);
    gpu.host.restore(from, &mut host)?;
    take(gpu, from, to);
    Ok(())
}

pub(crate) fn upload_packed(gpu: &Gpu, from: &[f32], range: f32, to: &mut Packed) {
    let mut host = gpu.host.packed(to.format, to.rows, to.cols, to.by_row);
    gpu.host.upload_packed(from, range, &mut host);
    take(gpu, &gpu.host.stored(&host), to);
}

pub(crate) fn download_packed(gpu: &Gpu, from: &Packed, to: &mut [f32]) {
    let mut floats = gpu.floats(from.rows * from.cols);
    unpack(gpu, from, &mut floats);
    gpu.download(&floats, to);
}

/// Waits. On the host: numbers of digits change once in many steps.
pub(crate) fn set_digits(gpu: &Gpu, w: &mut Packed, digits: &[u8]) -> f64 {
    let (before, mut host) = (stored(gpu, w), gpu.host.packed(w.format, w.rows, w.cols, w.by_row));
    if gpu.host.restore(&before, &mut host).is_err() {
        // A step that is no number: there is nothing to round.
        return f64::NAN;
    }
    let moved = gpu.host.set_digits(&mut host, digits);
    take(gpu, &gpu.host.stored(&host), w);
    moved
}
