//! The instructions of `instructions.rs` on arrays, for tests: what the Arm Architecture Reference Manual
//! (chapter C7.2) says of each, sums that wrap included.

/// Sixteen bytes, or eight int16.
pub(crate) type Register = [i8; 16];
/// Four sums.
pub(crate) type Words = [i32; 4];

/// MOVI.
pub(crate) fn zero() -> Words {
    [0; 4]
}

/// LDR.
pub(crate) fn load(bytes: &[u8; 16]) -> Register {
    bytes.map(u8::cast_signed)
}

/// LDP.
pub(crate) fn load_two(bytes: &[u8; 32]) -> [Register; 2] {
    [0, 16].map(|at| std::array::from_fn(|i| bytes[at + i].cast_signed()))
}

/// LD2 of halfwords: element `e` of register `r` is number `2e + r` in memory.
pub(crate) fn load_apart(bytes: &[u8; 32]) -> [Register; 2] {
    [0, 1].map(|r| std::array::from_fn(|i| bytes[2 * (2 * (i / 2) + r) + i % 2].cast_signed()))
}

/// STR.
pub(crate) fn store(words: Words) -> [i32; 4] {
    words
}

/// ADD (vector).
pub(crate) fn add(a: Words, b: Words) -> Words {
    std::array::from_fn(|e| a[e].wrapping_add(b[e]))
}

/// SDOT (by element).
pub(crate) fn dot<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    let product = |e: usize, i: usize| i32::from(columns[4 * e + i]) * i32::from(rows[4 * LANE as usize + i]);
    std::array::from_fn(|e| (0..4).fold(acc[e], |sum, i| sum.wrapping_add(product(e, i))))
}

/// SMLAL (by element).
pub(crate) fn low<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    multiply_half(acc, columns, 0, half(rows, LANE as usize))
}

/// SMLAL2 (by element).
pub(crate) fn high<const LANE: i32>(acc: Words, columns: Register, rows: Register) -> Words {
    multiply_half(acc, columns, 4, half(rows, LANE as usize))
}

fn multiply_half(acc: Words, columns: Register, first: usize, row: i32) -> Words {
    std::array::from_fn(|e| acc[e].wrapping_add(half(columns, first + e) * row))
}

/// Element `e` of eight int16.
fn half(register: Register, e: usize) -> i32 {
    i16::from_le_bytes([register[2 * e].cast_unsigned(), register[2 * e + 1].cast_unsigned()]).into()
}

/// AND with threes.
pub(crate) fn codes(register: Register) -> Register {
    register.map(|byte| byte & 3)
}

/// USHR.
pub(crate) fn shifted<const BITS: i32>(register: Register) -> Register {
    register.map(|byte| (byte.cast_unsigned() >> BITS).cast_signed())
}
