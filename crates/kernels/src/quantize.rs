//! f32 to packed ternary codes and back, as fast as the numbers come from memory.
//!
//! Two passes over the numbers: the sum of their magnitudes, which gives the scale, and the comparisons. Layout
//! and scale are those of `trit::pack::pack2` and `trit::ternary::absmean`, bit for bit.

use std::sync::atomic::{AtomicBool, Ordering};

use tritrain_trit::{
    Error, first_non_finite,
    pack::{packed2_len, unpack2},
    ternary::scale_from_total,
};

use crate::{Context, elementwise, lines::LINE};

/// Codes in a byte.
const PER_BYTE: usize = 4;
/// Bytes of codes of one task: 16 Ki numbers, as many as a task sums.
const TASK: usize = 4096;
/// Bytes of codes that a step of the loops makes or reads.
const STEP: usize = 16;

/// Packs the codes of `x` `[n]` into `bytes` `[n/4, rounded up]`, and gives their scale.
///
/// `scale = fp16(mean |x|)`, `code = sign(x)` where `|x| > scale/2`, else 0; two bits a code, the first in the lowest
/// bits; what is beyond the last code holds code 0. Source: BitNet b1.58 (arXiv:2402.17764, section 2).
///
/// # Errors
/// [`Error::Length`] unless `bytes` has one byte for four numbers, [`Error::NonFinite`] with the place of the
/// first number that is none, [`Error::ScaleRange`] where the mean is beyond 65504.
pub fn quantize(cx: &Context, x: &[f32], bytes: &mut [u8]) -> Result<f32, Error> {
    check(x.len(), bytes.len())?;
    let total = elementwise::sum_abs(cx, x);
    if !total.is_finite()
        && let Some(index) = first_non_finite(x)
    {
        return Err(Error::NonFinite { what: "weight", index, found: x[index] });
    }
    let scale = scale_from_total(total, x.len())?;
    // As in `trit::ternary::code`: an infinite threshold makes every code 0.
    let threshold = if scale > 0.0 { scale * 0.5 } else { f32::INFINITY };
    cx.chunks(bytes, TASK, |index, bytes| {
        let x = &x[index * TASK * PER_BYTE..];
        pack(cx.tier(), &x[..x.len().min(bytes.len() * PER_BYTE)], threshold, bytes);
    });
    Ok(scale)
}

/// Writes `code · scale` for the codes in `bytes` `[n/4, rounded up]` into `out` `[n]`.
///
/// # Errors
/// [`Error::Length`] unless the lengths fit together, [`Error::Pattern`] at the first field that is no code,
/// [`Error::Padding`] where a field beyond the last code holds another code than 0. `out` then holds anything.
pub fn dequantize(cx: &Context, bytes: &[u8], scale: f32, out: &mut [f32]) -> Result<(), Error> {
    check(out.len(), bytes.len())?;
    let whole = out.len() / PER_BYTE;
    let (body, tail) = out.split_at_mut(whole * PER_BYTE);
    let broken = AtomicBool::new(false);
    cx.chunks(body, TASK * PER_BYTE, |index, out| {
        let start = index * TASK;
        if unpack(cx.tier(), &bytes[start..start + out.len() / PER_BYTE], scale, out) {
            broken.store(true, Ordering::Relaxed);
        }
    });
    if broken.into_inner() {
        let first = bytes.iter().position(|byte| pattern(*byte) != 0).unwrap_or(0);
        return unpack2(&bytes[first..=first], &mut [0; PER_BYTE]).map_err(|error| moved(error, first));
    }
    let mut last = [0; PER_BYTE];
    unpack2(&bytes[whole..], &mut last[..tail.len()]).map_err(|error| moved(error, whole))?;
    for (out, code) in tail.iter_mut().zip(last) {
        *out = f32::from(code) * scale;
    }
    Ok(())
}

fn check(n: usize, found: usize) -> Result<(), Error> {
    let expected = packed2_len(n);
    if found == expected { Ok(()) } else { Err(Error::Length { what: "packed bytes", n, expected, found }) }
}

/// An error about a part that begins at byte `by`.
fn moved(error: Error, by: usize) -> Error {
    match error {
        Error::Pattern { byte, position, found } => Error::Pattern { byte: byte + by, position, found },
        Error::Padding { format, byte, position, found, expected } => {
            Error::Padding { format, byte: byte + by, position, found, expected }
        }
        other => other,
    }
}

/// A code and one: 0, 1 or 2.
#[inline(always)]
fn field(x: f32, threshold: f32) -> u8 {
    1 + u8::from(x > threshold) - u8::from(x < -threshold)
}

/// The bytes of a step.
#[inline(always)]
fn pack_step(x: &[f32; STEP * PER_BYTE], threshold: f32) -> [u8; STEP] {
    let fields = x.map(|x| field(x, threshold));
    let mut bytes = [0; STEP];
    for (to, four) in bytes.iter_mut().zip(fields.as_chunks::<PER_BYTE>().0) {
        let word = u32::from_le_bytes(*four);
        *to = (word | word >> 6 | word >> 12 | word >> 18) as u8;
    }
    bytes
}

tiered! {
    fn pack(x: &[f32], threshold: f32, bytes: &mut [u8]) {
        let (steps, rest) = x.as_chunks::<{ STEP * PER_BYTE }>();
        let (whole, last) = bytes.split_at_mut(steps.len() * STEP);
        for (x, to) in steps.iter().zip(whole.as_chunks_mut::<STEP>().0) {
            *to = pack_step(x, threshold);
        }
        if !last.is_empty() {
            // Zeros have code 0, as what is beyond the last code must.
            let mut x = [0.0; STEP * PER_BYTE];
            x[..rest.len()].copy_from_slice(rest);
            last.copy_from_slice(&pack_step(&x, threshold)[..last.len()]);
        }
    }
}

/// The fields of a byte, in a byte each.
#[inline(always)]
fn spread(byte: u8) -> [u8; PER_BYTE] {
    let word = u32::from(byte);
    ((word | word << 6 | word << 12 | word << 18) & 0x0303_0303).to_le_bytes()
}

/// Not zero where a field holds 3, which is no code.
#[inline(always)]
fn pattern(byte: u8) -> u8 {
    byte & byte >> 1 & 0x55
}

/// The numbers of a step, and whether a field was no code.
#[inline(always)]
fn unpack_step(bytes: &[u8; STEP], scale: f32) -> ([f32; STEP * PER_BYTE], u8) {
    let mut out = [0.0; STEP * PER_BYTE];
    for (to, field) in out.iter_mut().zip(bytes.map(spread).as_flattened()) {
        *to = (f32::from(*field) - 1.0) * scale;
    }
    (out, bytes.iter().fold(0, |seen, byte| seen | pattern(*byte)))
}

/// A part of a step.
#[inline(always)]
fn unpack_part(bytes: &[u8], scale: f32, out: &mut [f32]) -> u8 {
    if bytes.is_empty() {
        return 0;
    }
    let mut step = [0; STEP];
    step[..bytes.len()].copy_from_slice(bytes);
    let (numbers, wrong) = unpack_step(&step, scale);
    out.copy_from_slice(&numbers[..out.len()]);
    wrong
}

tiered! {
    /// Whether a field was no code.
    fn unpack(bytes: &[u8], scale: f32, out: &mut [f32]) -> bool {
        // Where a register that is stored would straddle two lines of the cache, a part of a step comes first.
        let first = (out.as_ptr().align_offset(LINE) / PER_BYTE).min(bytes.len());
        let (unaligned, bytes) = bytes.split_at(first);
        let (to, out) = out.split_at_mut(first * PER_BYTE);
        let mut seen = unpack_part(unaligned, scale, to);
        let (steps, rest) = bytes.as_chunks::<STEP>();
        let (to, last) = out.as_chunks_mut::<{ STEP * PER_BYTE }>();
        for (bytes, to) in steps.iter().zip(to) {
            let (numbers, wrong) = unpack_step(bytes, scale);
            *to = numbers;
            seen |= wrong;
        }
        seen |= unpack_part(rest, scale, last);
        seen != 0
    }
}
