//! Balanced ternary numbers of one to five digits, in rows: the levels of low-bit latent weights and moments.
//!
//! With `n` digits in {-1, 0, 1}, most significant first, a level is `Σ dⱼ·3^(n-1-j)`, from `-(3ⁿ-1)/2` to
//! `(3ⁿ-1)/2`: 3, 9, 27, 81 or 243 levels. A row of `cols` levels is a row of `n·cols` digits, plane by plane
//! (all first digits, then all second digits, ...), five digits to a byte: 1.6 bits a digit, up to four digits
//! of padding a row.
//!
//! With `L` bytes, byte `l` holds the digits `l`, `L + l`, ... `4L + l` of the row, so that reading a run of
//! bytes gives five runs of digits. Digits plus one are a number `v` below 243 in base 3, the first digit most
//! significant, stored as `⌈256·v / 243⌉`: each digit is then the integer part of three times a fraction, as
//! in llama.cpp's TQ1_0.

use crate::Error;

/// Digits in a byte.
pub const PER_BYTE: usize = 5;
/// Digits a level has at most: more do not fit an i8.
pub const MOST: usize = 5;
/// Name in errors.
const NAME: &str = "balanced ternary rows";

/// The largest level of `digits` digits.
///
/// # Panics
/// No digits, or more than [`MOST`].
pub const fn largest(digits: usize) -> i8 {
    assert!(digits >= 1 && digits <= MOST);
    ((3i16.pow(digits as u32) - 1) / 2) as i8
}

/// Bytes of a row.
pub const fn row_len(digits: usize, cols: usize) -> usize {
    (digits * cols).div_ceil(PER_BYTE)
}

/// Digit `plane`, 0 the most significant, of a level.
fn digit(level: i8, digits: usize, plane: usize) -> u8 {
    let raised = (i16::from(level) + i16::from(largest(digits))) as u16;
    (raised / 3u16.pow((digits - 1 - plane) as u32) % 3) as u8
}

/// The stored byte of five digits plus one.
pub const fn to_byte(five: [u8; PER_BYTE]) -> u8 {
    let [a, b, c, d, e] = five;
    let v = (((a as u16 * 3 + b as u16) * 3 + c as u16) * 3 + d as u16) * 3 + e as u16;
    (v * 256).div_ceil(243) as u8
}

/// Digit `position` of a stored byte, plus one.
pub const fn from_byte(byte: u8, position: usize) -> u8 {
    const POWERS: [u8; PER_BYTE] = [1, 3, 9, 27, 81];
    ((byte.wrapping_mul(POWERS[position]) as u16 * 3) >> 8) as u8
}

/// Packs a row of levels.
///
/// # Errors
/// [`Error::Length`] unless `bytes` has [`row_len`] bytes; [`Error::Code`] at the first level out of range.
///
/// # Panics
/// As [`largest`].
pub fn pack_row(levels: &[i8], digits: usize, bytes: &mut [u8]) -> Result<(), Error> {
    check(levels.len(), digits, bytes.len())?;
    let high = largest(digits);
    if let Some(index) = levels.iter().position(|level| !(-high..=high).contains(level)) {
        return Err(Error::Code { format: NAME, index, found: levels[index], low: -high, high });
    }
    let (cols, len) = (levels.len(), bytes.len());
    for (l, byte) in bytes.iter_mut().enumerate() {
        let five: [u8; PER_BYTE] = core::array::from_fn(|position| {
            let at = position * len + l;
            // Padding is the digit zero.
            if at < digits * cols { digit(levels[at % cols], digits, at / cols) } else { 1 }
        });
        *byte = to_byte(five);
    }
    Ok(())
}

/// Reads a row of levels.
///
/// # Errors
/// [`Error::Length`] as [`pack_row`]; [`Error::Byte`] at the first byte that stands for no five digits, or whose
/// padding is not zero.
///
/// # Panics
/// As [`largest`].
pub fn unpack_row(bytes: &[u8], digits: usize, levels: &mut [i8]) -> Result<(), Error> {
    check(levels.len(), digits, bytes.len())?;
    let (cols, len) = (levels.len(), bytes.len());
    for (l, byte) in bytes.iter().enumerate() {
        let five: [u8; PER_BYTE] = core::array::from_fn(|position| from_byte(*byte, position));
        let padded = (0..PER_BYTE).all(|p| p * len + l < digits * cols || five[p] == 1);
        if to_byte(five) != *byte || !padded {
            return Err(Error::Byte { format: NAME, byte: l, found: *byte, largest: to_byte([2; PER_BYTE]) });
        }
    }
    let high = i16::from(largest(digits));
    for (col, level) in levels.iter_mut().enumerate() {
        let raised = (0..digits).fold(0, |raised, plane| {
            let at = plane * cols + col;
            raised * 3 + i16::from(from_byte(bytes[at % len], at / len))
        });
        *level = (raised - high) as i8;
    }
    Ok(())
}

fn check(n: usize, digits: usize, found: usize) -> Result<(), Error> {
    let expected = row_len(digits, n);
    if found == expected { Ok(()) } else { Err(Error::Length { what: "packed bytes", n, expected, found }) }
}
