//! Levels of balanced ternary rows: their digits, read and written in blocks of bytes.

use tritrain_trit::digits::{self, PER_BYTE};

/// Bytes worked on at once. Runs of digits end anywhere: whole blocks are written, and what is beyond a run is
/// overwritten by the next.
const BLOCK: usize = 32;

/// Columns whose levels are made at once.
const COLUMNS: usize = 512;

/// Room for the digits of a row that is being stored.
pub(crate) const fn digits_len(cols: usize) -> usize {
    digits::MOST * cols + 2 * BLOCK
}

tiered! {
    /// Levels of the columns from `first` on of a row of `cols`, whose `len` bytes `bytes` begins with.
    pub(super) fn load_levels(
        bytes: &[u8], len: usize, digits: usize, cols: usize, first: usize, to: &mut [i8],
    ) {
        let high = digits::largest(digits).cast_unsigned();
        for (chunk, to) in to.chunks_mut(COLUMNS).enumerate() {
            let mut levels = [0u8; COLUMNS];
            for plane in 0..digits {
                let mut plane_digits = [0u8; COLUMNS + BLOCK];
                let from = plane * cols + first + chunk * COLUMNS;
                let mut done = 0;
                while done < to.len() {
                    let (position, lane) = ((from + done) / len, (from + done) % len);
                    let run = (len - lane).min(to.len() - done);
                    let (bytes, out) = (&bytes[lane..], &mut plane_digits[done..]);
                    match position {
                        0 => take_digits::<0>(bytes, run, out),
                        1 => take_digits::<1>(bytes, run, out),
                        2 => take_digits::<2>(bytes, run, out),
                        3 => take_digits::<3>(bytes, run, out),
                        _ => take_digits::<4>(bytes, run, out),
                    }
                    done += run;
                }
                for (level, digit) in levels.iter_mut().zip(&plane_digits) {
                    *level = thrice(*level).wrapping_add(*digit);
                }
            }
            for (to, level) in to.iter_mut().zip(&levels) {
                *to = level.wrapping_sub(high).cast_signed();
            }
        }
    }
}

tiered! {
    /// Stores a row of levels; `room` is [`digits_len`] bytes of any contents.
    pub(super) fn pack_levels(levels: &[i8], digits: usize, bytes: &mut [u8], room: &mut [u8]) {
        let (cols, len) = (levels.len(), bytes.len());
        let high = digits::largest(digits).cast_unsigned();
        let levels: &[u8] = bytemuck::cast_slice(levels);
        for plane in 0..digits {
            let to = &mut room[plane * cols..];
            match digits - 1 - plane {
                0 => put_digits::<1>(levels, high, to),
                1 => put_digits::<3>(levels, high, to),
                2 => put_digits::<9>(levels, high, to),
                3 => put_digits::<27>(levels, high, to),
                _ => put_digits::<81>(levels, high, to),
            }
        }
        // Padding is the digit zero.
        room[digits * cols..][..2 * BLOCK].fill(1);
        for (block, bytes) in bytes.chunks_mut(BLOCK).enumerate() {
            let mut values = [0u8; BLOCK];
            for position in 0..PER_BYTE {
                let at = position * len + block * BLOCK;
                if let Some(digits) = room[at..].first_chunk::<BLOCK>() {
                    for i in 0..BLOCK {
                        values[i] = thrice(values[i]).wrapping_add(digits[i]);
                    }
                }
            }
            for value in &mut values {
                *value = (u16::from(*value) * 256).div_ceil(243) as u8;
            }
            match bytes.first_chunk_mut() {
                Some(whole) => *whole = values,
                None => bytes.copy_from_slice(&values[..bytes.len()]),
            }
        }
    }
}

/// Three times a byte, in additions: bytes have no product of their own in any register.
#[inline(always)]
fn thrice(x: u8) -> u8 {
    x.wrapping_add(x).wrapping_add(x)
}

/// A block of bytes, filled up with zeros where there are fewer.
#[inline(always)]
fn block(bytes: &[u8]) -> [u8; BLOCK] {
    bytes.first_chunk().copied().unwrap_or_else(|| {
        let mut block = [0; BLOCK];
        block[..bytes.len()].copy_from_slice(bytes);
        block
    })
}

/// The digits at a position of `run` bytes, in whole blocks: thirds of 256 tell them.
#[inline(always)]
fn take_digits<const POSITION: usize>(bytes: &[u8], run: usize, to: &mut [u8]) {
    for start in (0..run).step_by(BLOCK) {
        let mut fractions = block(&bytes[start..]);
        for fraction in &mut fractions {
            for _ in 0..POSITION {
                *fraction = thrice(*fraction);
            }
            *fraction = u8::from(*fraction >= 86) + u8::from(*fraction >= 171);
        }
        if let Some(to) = to[start..].first_chunk_mut() {
            *to = fractions;
        }
    }
}

/// The digits of a power of levels plus the largest, in whole blocks.
#[inline(always)]
fn put_digits<const POWER: u8>(levels: &[u8], high: u8, to: &mut [u8]) {
    for start in (0..levels.len()).step_by(BLOCK) {
        let mut digits = block(&levels[start..]);
        for digit in &mut digits {
            let mut rest = digit.wrapping_add(high);
            for power in [81, 27, 9, 3, 1] {
                if power >= POWER {
                    let (one, two) = (u8::from(rest >= power), u8::from(rest >= 2 * power));
                    *digit = one + two;
                    // All bits where the condition holds.
                    let taken = (one.wrapping_neg() & power).wrapping_add(two.wrapping_neg() & power);
                    rest = rest.wrapping_sub(taken);
                }
            }
        }
        if let Some(to) = to[start..].first_chunk_mut() {
            *to = digits;
        }
    }
}
