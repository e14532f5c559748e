//! Codes in bytes: 2 bits per code, base 3 and base 5.
//!
//! | functions | codes | in a byte | bits per code | order in a byte |
//! |---|---|---|---|---|
//! | [`pack2`], [`unpack2`] | -1, 0, 1 | 4 | 2 | first code in the lowest bits |
//! | [`pack3`], [`unpack3`] | -1, 0, 1 | 5 (3⁵ = 243) | 1.6 | first code is the most significant digit |
//! | [`pack5`], [`unpack5`] | 0 to 4 | 3 (5³ = 125) | 2.67 | first code is the most significant digit |
//!
//! The lengths are exact: `n` codes take `packed_len(n)` bytes and no others are accepted. The last
//! byte is filled up with the code of zero, and the readers insist on it. So a slice of codes has one
//! packed form, equal weights have equal checksums, and a wrong shape is more likely to be noticed.
//!
//! Packed bytes come from files. The readers therefore check every byte: a pattern that stands for no
//! code is an error with its place, never a guess.
//!
//! These are the layouts of this project's checkpoints. The base-3 layout agrees with llama.cpp's
//! TQ1_0 in the order of digits, not in the stored byte (which is scaled to 256 there) nor in the
//! order of the weights.

use crate::{Error, five};

/// Codes in a byte of 2-bit fields.
const PER2: usize = 4;
/// Digits in a base-3 byte.
const PER3: usize = 5;
/// Digits in a base-5 byte.
const PER5: usize = 3;

/// Name of the 2-bit packing in errors.
const NAME2: &str = "2-bit ternary";

/// Bytes that [`pack2`] needs for `n` codes.
pub const fn packed2_len(n: usize) -> usize {
    n.div_ceil(PER2)
}

/// Bytes that [`pack3`] needs for `n` codes.
pub const fn packed3_len(n: usize) -> usize {
    n.div_ceil(PER3)
}

/// Bytes that [`pack5`] needs for `n` codes.
pub const fn packed5_len(n: usize) -> usize {
    n.div_ceil(PER5)
}

/// Packs ternary codes, four in a byte: code + 1 in 2 bits, the first code in the lowest bits.
///
/// # Errors
///
/// [`Error::Length`] unless `out` has [`packed2_len`] bytes; [`Error::Code`] with the index of the
/// first code outside -1 to 1.
pub fn pack2(codes: &[i8], out: &mut [u8]) -> Result<(), Error> {
    check_length(codes.len(), packed2_len(codes.len()), out.len())?;
    for (b, (group, byte)) in codes.chunks(PER2).zip(out).enumerate() {
        // Four fields that hold code 0; each code replaces the 1 of its field.
        let mut bits = 0b01_01_01_01u8;
        for (i, &c) in group.iter().enumerate() {
            if !(-1..=1).contains(&c) {
                return Err(Error::Code { format: NAME2, index: b * PER2 + i, found: c, low: -1, high: 1 });
            }
            bits ^= (1 ^ (c + 1) as u8) << (2 * i);
        }
        *byte = bits;
    }
    Ok(())
}

/// Reads codes packed by [`pack2`].
///
/// # Errors
///
/// [`Error::Length`] unless `bytes` has [`packed2_len`] bytes for the codes of `out`;
/// [`Error::Pattern`] at the first field that holds 3, padding included; [`Error::Padding`] when a
/// field behind the last code holds another code than 0.
pub fn unpack2(bytes: &[u8], out: &mut [i8]) -> Result<(), Error> {
    check_length(out.len(), packed2_len(out.len()), bytes.len())?;
    for (byte, (&bits, group)) in bytes.iter().zip(out.chunks_mut(PER2)).enumerate() {
        for position in 0..PER2 {
            let field = (bits >> (2 * position)) & 3;
            if field == 3 {
                return Err(Error::Pattern { byte, position, found: field });
            }
            let code = field as i8 - 1;
            match group.get_mut(position) {
                Some(c) => *c = code,
                None if code == 0 => {}
                None => {
                    return Err(Error::Padding { format: NAME2, byte, position, found: code, expected: 0 });
                }
            }
        }
    }
    Ok(())
}

/// Packs ternary codes, five in a byte: code + 1 as base-3 digits, the first most significant.
///
/// # Errors
///
/// [`Error::Length`] unless `out` has [`packed3_len`] bytes; [`Error::Code`] with the index of the
/// first code outside -1 to 1.
pub fn pack3(codes: &[i8], out: &mut [u8]) -> Result<(), Error> {
    pack_digits::<PER3>(BASE3, codes, out)
}

/// Reads codes packed by [`pack3`].
///
/// # Errors
///
/// [`Error::Length`] unless `bytes` has [`packed3_len`] bytes for the codes of `out`; [`Error::Byte`]
/// at the first byte above 242; [`Error::Padding`] when a digit behind the last code is not code 0.
pub fn unpack3(bytes: &[u8], out: &mut [i8]) -> Result<(), Error> {
    unpack_digits::<PER3>(BASE3, bytes, out)
}

/// Packs indices of the [five-level codebook](crate::five), three in a byte, as base-5 digits, the
/// first most significant.
///
/// # Errors
///
/// [`Error::Length`] unless `out` has [`packed5_len`] bytes; [`Error::Code`] at the first index
/// outside 0 to 4.
pub fn pack5(codes: &[i8], out: &mut [u8]) -> Result<(), Error> {
    pack_digits::<PER5>(BASE5, codes, out)
}

/// Reads indices packed by [`pack5`].
///
/// # Errors
///
/// [`Error::Length`] unless `bytes` has [`packed5_len`] bytes for the indices of `out`;
/// [`Error::Byte`] at the first byte above 124; [`Error::Padding`] when a digit behind the last index
/// is not [`five::ZERO`].
pub fn unpack5(bytes: &[u8], out: &mut [i8]) -> Result<(), Error> {
    unpack_digits::<PER5>(BASE5, bytes, out)
}

/// A positional packing: what turns codes into digits and digits into a byte.
#[derive(Clone, Copy)]
struct Digits {
    /// Name in errors.
    format: &'static str,
    /// Number of digits, and of codes.
    base: u8,
    /// Smallest code: the digit of code `c` is `c - low`.
    low: i8,
    /// Code of a zero weight, which fills the last byte.
    zero: i8,
    /// Largest byte, `base^per - 1`.
    largest: u8,
}

const BASE3: Digits = Digits { format: "base-3 ternary", base: 3, low: -1, zero: 0, largest: 242 };
const BASE5: Digits = Digits { format: "base-5 five-level", base: 5, low: 0, zero: five::ZERO, largest: 124 };

// The largest bytes above are typed by hand for the reader; this ties them to the bases.
const _: () = assert!(3usize.pow(PER3 as u32) - 1 == BASE3.largest as usize);
const _: () = assert!(5usize.pow(PER5 as u32) - 1 == BASE5.largest as usize);

/// The body of [`pack3`] and [`pack5`]. Inlined into both, so the base is a constant in each.
#[inline(always)]
fn pack_digits<const PER: usize>(d: Digits, codes: &[i8], out: &mut [u8]) -> Result<(), Error> {
    check_length(codes.len(), codes.len().div_ceil(PER), out.len())?;
    let high = d.low + d.base as i8 - 1;
    for (b, (group, byte)) in codes.chunks(PER).zip(out).enumerate() {
        // Horner's rule; at most `largest`, which fits a byte.
        let mut value = 0u8;
        for i in 0..PER {
            let c = group.get(i).copied().unwrap_or(d.zero);
            if !(d.low..=high).contains(&c) {
                return Err(Error::Code { format: d.format, index: b * PER + i, found: c, low: d.low, high });
            }
            value = value * d.base + (c - d.low) as u8;
        }
        *byte = value;
    }
    Ok(())
}

/// The body of [`unpack3`] and [`unpack5`].
#[inline(always)]
fn unpack_digits<const PER: usize>(d: Digits, bytes: &[u8], out: &mut [i8]) -> Result<(), Error> {
    check_length(out.len(), out.len().div_ceil(PER), bytes.len())?;
    for (byte, (&found, group)) in bytes.iter().zip(out.chunks_mut(PER)).enumerate() {
        if found > d.largest {
            return Err(Error::Byte { format: d.format, byte, found, largest: d.largest });
        }
        // Digits come out least significant first, so they are collected before any is judged: the
        // error should name the first bad position, as the other reader does.
        let mut digits = [0i8; PER];
        let mut rest = found;
        for digit in digits.iter_mut().rev() {
            *digit = (rest % d.base) as i8 + d.low;
            rest /= d.base;
        }
        let (codes, padding) = digits.split_at(group.len());
        group.copy_from_slice(codes);
        if let Some(i) = padding.iter().position(|&c| c != d.zero) {
            let position = group.len() + i;
            let found = padding[i];
            return Err(Error::Padding { format: d.format, byte, position, found, expected: d.zero });
        }
    }
    Ok(())
}

/// The one length check of all six functions: `expected` bytes for `n` codes.
fn check_length(n: usize, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what: "packed bytes", n, expected, found }) }
}
