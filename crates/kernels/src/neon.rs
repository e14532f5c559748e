//! Tiles with NEON and its dot products, for the integers of both kinds of products.
//!
//! Twelve rows by eight columns, half a panel: 24 registers of four sums, two of columns and three of rows
//! are 29 of 32. `sdot` multiplies four columns by one of the four rows that a register holds, and adds
//! fours: per step of four bytes a lane that is 24 of them for five loads. Six rows by sixteen columns would
//! have as many sums and need six, one of them of half a register. An `sdot` is 16 multiply-adds: the
//! instruction limit is 32 a cycle where two pipes have it, 64 where four do.
//!
//! NEON has no sums of pairs of int16. Columns are taken apart as they are loaded, and `smlal` multiplies
//! four of them by one inner index of one row: 48 of them per pair of inner indices, of four multiply-adds
//! each, a quarter of the limit of bytes.
//!
//! Where there is no NEON, tests run the same tiles on an emulation of the instructions.

#[cfg(test)]
mod emulation;
#[cfg(target_arch = "aarch64")]
mod instructions;

#[cfg(not(target_arch = "aarch64"))]
pub(crate) use emulation::*;
#[cfg(target_arch = "aarch64")]
pub(crate) use instructions::*;

use crate::{Tier, tier::Level, tile::COLUMNS};

/// Rows of a tile.
pub(crate) const ROWS: usize = 12;
/// Rows that share a register.
const SHARE: usize = 4;

/// Sums of a tile.
pub(crate) type Sums = [[[i32; COLUMNS]; 1]; ROWS];

/// Products of int8 by int8: rows `[step][12][4]` by a panel of columns `[step][16][4]`, as many steps as
/// both have.
pub(crate) fn bytes(tier: Tier, rows: &[u8], columns: &[u8]) -> Sums {
    assert!(tier.level() == Level::Neon);
    // SAFETY: the tier proves the features, or these are emulated.
    unsafe { tile::<true>(rows, columns) }
}

/// Products of int16 by int16, likewise: `[step][12][2]` by `[step][16][2]`.
pub(crate) fn pairs(tier: Tier, rows: &[u8], columns: &[u8]) -> Sums {
    assert!(tier.level() == Level::Neon);
    // SAFETY: the tier proves the features, or these are emulated.
    unsafe { tile::<false>(rows, columns) }
}

/// # Safety
/// Needs NEON with dot products.
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
unsafe fn tile<const BYTES: bool>(rows: &[u8], columns: &[u8]) -> Sums {
    let mut sums = [[[0; COLUMNS]; 1]; ROWS];
    let (rows, _) = rows.as_chunks::<{ 4 * ROWS }>();
    let (columns, _) = columns.as_chunks::<{ 4 * COLUMNS }>();
    for half in 0..2 {
        let mut acc = [[[zero(); 2]; SHARE]; ROWS / SHARE];
        for (rows, columns) in rows.iter().zip(columns) {
            let columns = &columns.as_chunks::<{ 2 * COLUMNS }>().0[half];
            let columns = if BYTES { load_two(columns) } else { load_apart(columns) };
            for (acc, rows) in acc.iter_mut().zip(rows.as_chunks::<{ 4 * SHARE }>().0) {
                multiply::<BYTES>(acc, columns, load(rows));
            }
        }
        for (sums, acc) in sums.iter_mut().zip(acc.as_flattened()) {
            let (eight, _) = sums[0].as_chunks_mut::<{ COLUMNS / 2 }>();
            eight[half][..4].copy_from_slice(&store(acc[0]));
            eight[half][4..].copy_from_slice(&store(acc[1]));
        }
    }
    sums
}

/// Four rows by eight columns.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
fn multiply<const BYTES: bool>(acc: &mut [[Words; 2]; SHARE], columns: [Register; 2], rows: Register) {
    if BYTES {
        acc[0] = quads::<0>(acc[0], columns, rows);
        acc[1] = quads::<1>(acc[1], columns, rows);
        acc[2] = quads::<2>(acc[2], columns, rows);
        acc[3] = quads::<3>(acc[3], columns, rows);
    } else {
        acc[0] = pair::<0, 1>(acc[0], columns, rows);
        acc[1] = pair::<2, 3>(acc[1], columns, rows);
        acc[2] = pair::<4, 5>(acc[2], columns, rows);
        acc[3] = pair::<6, 7>(acc[3], columns, rows);
    }
}

/// One row of bytes by eight columns.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
fn quads<const ROW: i32>(acc: [Words; 2], columns: [Register; 2], rows: Register) -> [Words; 2] {
    [dot::<ROW>(acc[0], columns[0], rows), dot::<ROW>(acc[1], columns[1], rows)]
}

/// One row of int16 by eight columns: its two inner indices lie side by side, those of columns apart.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
fn pair<const FIRST: i32, const SECOND: i32>(
    acc: [Words; 2],
    columns: [Register; 2],
    rows: Register,
) -> [Words; 2] {
    let acc = [low::<FIRST>(acc[0], columns[0], rows), high::<FIRST>(acc[1], columns[0], rows)];
    [low::<SECOND>(acc[0], columns[1], rows), high::<SECOND>(acc[1], columns[1], rows)]
}

#[cfg(test)]
mod tests {
    //! The emulation against known values and, where there is NEON, against the instructions.
    use super::emulation as twin;

    #[test]
    fn a_dot_product_takes_one_word_of_rows_and_wraps() {
        let columns = std::array::from_fn(|i| i as i8 - 8);
        let mut rows = [0; 16];
        rows[8..12].copy_from_slice(&[1, -2, 3, -128]);
        let of = |c: [i32; 4]| c[0] - 2 * c[1] + 3 * c[2] - 128 * c[3];
        let expected = [-8, -4, 0, 4].map(|c| of([c, c + 1, c + 2, c + 3]));
        assert_eq!(twin::dot::<2>([0; 4], columns, rows), expected);
        assert_eq!(twin::dot::<1>([7; 4], columns, rows), [7; 4]);
        let (least, most) = (twin::dot::<0>([0; 4], [-128; 16], [127; 16]), 4 * 128 * 128);
        assert_eq!(least, [-4 * 128 * 127; 4]);
        assert_eq!(twin::dot::<3>([i32::MAX; 4], [-128; 16], [-128; 16]), [i32::MIN + most - 1; 4]);
    }

    #[test]
    fn products_of_halves_take_one_lane_of_rows_and_wrap() {
        let bytes = |values: [i16; 8]| -> [i8; 16] { bytemuck::cast(values) };
        let columns = bytes([1, 2, 3, 4, -5, 6, i16::MIN, i16::MAX]);
        let rows = bytes([10, 0, 0, 0, 0, 0, 0, i16::MIN]);
        assert_eq!(twin::low::<0>([1; 4], columns, rows), [11, 21, 31, 41]);
        assert_eq!(twin::high::<0>([0; 4], columns, rows), [-50, 60, -327_680, 327_670]);
        let most = 1 << 30;
        assert_eq!(twin::high::<7>([i32::MAX; 4], columns, rows)[2], i32::MIN + most - 1);
        assert_eq!(twin::low::<7>([i32::MIN; 4], columns, rows)[0], i32::MAX - 32767);
    }

    #[test]
    fn loads_and_codes_are_what_their_names_say() {
        let bytes: [u8; 32] = std::array::from_fn(|i| i as u8 * 9);
        let [even, odd] = twin::load_apart(&bytes).map(|r| r.map(i8::cast_unsigned));
        for pair in 0..8 {
            assert_eq!(even[2 * pair..][..2], bytes[4 * pair..][..2]);
            assert_eq!(odd[2 * pair..][..2], bytes[4 * pair + 2..][..2]);
        }
        let all = twin::load(&[0b11_10_01_00; 16]);
        assert_eq!(twin::codes(all), [0; 16]);
        assert_eq!(twin::codes(twin::shifted::<2>(all)), [1; 16]);
        assert_eq!(twin::codes(twin::shifted::<4>(all)), [2; 16]);
        assert_eq!(twin::shifted::<6>(all), [3; 16]);
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn the_emulation_equals_the_instructions() {
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            // SAFETY: the processor has them.
            unsafe { compare() }
        }
    }

    /// # Safety
    /// Needs NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon,dotprod")]
    unsafe fn compare() {
        use super::{Register, instructions as real};
        // SAFETY: both are sixteen bytes, all of whose values are valid.
        let bytes = |register: Register| unsafe { std::mem::transmute::<Register, [i8; 16]>(register) };
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Half of the bytes are extremes.
            match seed >> 60 {
                0..4 => 0x80,
                4..8 => 0x7f,
                _ => (seed >> 40) as u8,
            }
        };
        for _ in 0..10_000 {
            let two: [u8; 32] = std::array::from_fn(|_| random());
            let (a, b) = (two.first_chunk().unwrap(), two.last_chunk().unwrap());
            let sums: [i32; 4] = bytemuck::cast::<[u8; 16], _>(std::array::from_fn(|_| random()));
            // SAFETY: as above.
            let acc = unsafe { std::mem::transmute::<[i32; 4], super::Words>(sums) };
            let (x, y) = (real::load(a), real::load(b));
            let (twin_x, twin_y) = (twin::load(a), twin::load(b));
            assert_eq!([bytes(x), bytes(y)], [twin_x, twin_y]);
            assert_eq!(real::load_two(&two).map(bytes), twin::load_two(&two));
            assert_eq!(real::load_apart(&two).map(bytes), twin::load_apart(&two));
            assert_eq!(real::store(real::add(acc, acc)), twin::store(twin::add(sums, sums)));
            assert_eq!(real::store(real::zero()), twin::zero());
            assert_eq!(bytes(real::codes(x)), twin::codes(twin_x));
            assert_eq!(bytes(real::shifted::<2>(x)), twin::shifted::<2>(twin_x));
            assert_eq!(bytes(real::shifted::<4>(x)), twin::shifted::<4>(twin_x));
            assert_eq!(bytes(real::shifted::<6>(x)), twin::shifted::<6>(twin_x));
            macro_rules! same {
                ($f:ident: $($lane:literal)*) => {
                    $(assert_eq!(real::store(real::$f::<$lane>(acc, x, y)), twin::$f::<$lane>(sums, twin_x, twin_y));)*
                };
            }
            same!(dot: 0 1 2 3);
            same!(low: 0 1 2 3 4 5 6 7);
            same!(high: 0 1 2 3 4 5 6 7);
        }
    }
}
