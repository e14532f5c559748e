//! Balanced ternary rows: every byte, every number of digits, every padding.

use tritrain_trit::{
    Error,
    digits::{from_byte, largest, pack_row, row_len, to_byte, unpack_row},
    format::{Format, round_bf16},
};

#[test]
fn every_byte_gives_its_digits_back() {
    let mut seen = [false; 256];
    for v in 0..243u16 {
        let five: [u8; 5] = std::array::from_fn(|p| (v / 3u16.pow(4 - p as u32) % 3) as u8);
        let byte = to_byte(five);
        assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "two numbers share {byte}");
        assert_eq!(std::array::from_fn(|p| from_byte(byte, p)), five, "{v}");
    }
}

#[test]
fn rows_come_back_at_every_size() {
    for digits in 1..=5 {
        let high = i32::from(largest(digits));
        for cols in (0..40).chain([255, 256, 768, 2048]) {
            let levels: Vec<i8> =
                (0..cols as i32).map(|i| ((i * 7919 + 13) % (2 * high + 1) - high) as i8).collect();
            let mut bytes = vec![0xaa; row_len(digits, cols)];
            pack_row(&levels, digits, &mut bytes).unwrap();
            let mut back = vec![99; cols];
            unpack_row(&bytes, digits, &mut back).unwrap();
            assert_eq!(back, levels, "{digits} digits, {cols} columns");
        }
        assert_eq!(Format::Trits(digits as u8).row_len(256), (digits * 256).div_ceil(5));
    }
    assert_eq!([1, 2, 3, 4, 5].map(largest), [1, 4, 13, 40, 121]);
}

#[test]
fn damage_is_named() {
    let mut bytes = [0; 2];
    let error = pack_row(&[0, 14, 0], 3, &mut bytes).unwrap_err();
    assert!(matches!(error, Error::Code { index: 1, found: 14, low: -13, high: 13, .. }), "{error}");
    assert!(matches!(pack_row(&[0; 4], 3, &mut bytes), Err(Error::Length { expected: 3, found: 2, .. })));
    pack_row(&[1, 2, 3], 3, &mut bytes).unwrap();
    let mut levels = [0; 3];
    let unused = (0..=255).find(|b| to_byte(std::array::from_fn(|p| from_byte(*b, p))) != *b).unwrap();
    let error = unpack_row(&[bytes[0], unused], 3, &mut levels).unwrap_err();
    assert!(matches!(error, Error::Byte { byte: 1, .. }), "{error}");
    // Nine digits in two bytes leave one of padding: the last digit of the last byte.
    let mut five: [u8; 5] = std::array::from_fn(|p| from_byte(bytes[1], p));
    five[4] = 2;
    let error = unpack_row(&[bytes[0], to_byte(five)], 3, &mut levels).unwrap_err();
    assert!(matches!(error, Error::Byte { byte: 1, .. }), "{error}");
}

#[test]
fn bf16_is_rounded_to_even() {
    for (x, expected) in [
        (1.0, 1.0),
        (1.0 + 1.0 / 256.0, 1.0),
        (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
        (-1.003_91, -1.0 - 2.0 / 256.0),
    ] {
        assert_eq!(round_bf16(x), expected, "{x}");
    }
}
