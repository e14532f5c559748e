//! The three packings.

use proptest::prelude::*;
use tritrain_trit::Error;
use tritrain_trit::pack::*;

type Pack = fn(&[i8], &mut [u8]) -> Result<(), Error>;
type Unpack = fn(&[u8], &mut [i8]) -> Result<(), Error>;

/// One packing, as the tests see it.
struct Packing {
    name: &'static str,
    pack: Pack,
    unpack: Unpack,
    len: fn(usize) -> usize,
    /// Codes in a byte.
    per: usize,
    low: i8,
    high: i8,
    zero: i8,
    /// The byte of a full group, by the definition.
    byte: fn(&[i8]) -> u8,
}

const ALL: [Packing; 3] = [
    Packing {
        name: "2-bit ternary",
        pack: pack2,
        unpack: unpack2,
        len: packed2_len,
        per: 4,
        low: -1,
        high: 1,
        zero: 0,
        byte: |c| (0..4).map(|i| ((c[i] + 1) as u8) << (2 * i)).sum(),
    },
    Packing {
        name: "base-3 ternary",
        pack: pack3,
        unpack: unpack3,
        len: packed3_len,
        per: 5,
        low: -1,
        high: 1,
        zero: 0,
        byte: |c| [81u8, 27, 9, 3, 1].iter().zip(c).map(|(p, c)| p * (c + 1) as u8).sum(),
    },
    Packing {
        name: "base-5 five-level",
        pack: pack5,
        unpack: unpack5,
        len: packed5_len,
        per: 3,
        low: 0,
        high: 4,
        zero: 2,
        byte: |c| [25u8, 5, 1].iter().zip(c).map(|(p, c)| p * *c as u8).sum(),
    },
];

/// Every group of `len` codes of a packing.
fn groups(p: &Packing, len: usize) -> Vec<Vec<i8>> {
    (0..len).fold(vec![vec![]], |shorter, _| {
        let longer =
            |g: &Vec<i8>| (p.low..=p.high).map(|c| [g.as_slice(), &[c]].concat()).collect::<Vec<_>>();
        shorter.iter().flat_map(longer).collect()
    })
}

#[test]
fn every_group_of_every_length_goes_through() {
    for p in &ALL {
        let mut tried = 0;
        for len in 0..=p.per {
            for codes in groups(p, len) {
                let mut full = codes.clone();
                full.resize(p.per, p.zero);
                let expected: Vec<u8> = if len == 0 { vec![] } else { vec![(p.byte)(&full)] };
                let mut bytes = vec![0xee; (p.len)(len)];
                (p.pack)(&codes, &mut bytes).unwrap();
                assert_eq!(bytes, expected, "{}: {codes:?}", p.name);
                let mut back = vec![77i8; len];
                (p.unpack)(&bytes, &mut back).unwrap();
                assert_eq!(back, codes, "{}", p.name);
                tried += 1;
            }
        }
        let base = (p.high - p.low + 1) as usize;
        assert_eq!(tried, (0..=p.per).map(|l| base.pow(l as u32)).sum::<usize>());
    }
}

/// All 256 bytes as the second of three, so that the index in the error is not trivially 0.
#[test]
fn every_byte_value_is_a_group_or_an_error() {
    for p in &ALL {
        let zeros = vec![p.zero; p.per];
        let (mut good, mut bad) = (0, 0);
        for value in 0..=255u8 {
            let bytes = [(p.byte)(&zeros), value, (p.byte)(&zeros)];
            let mut codes = vec![77i8; 3 * p.per];
            match (p.unpack)(&bytes, &mut codes) {
                Ok(()) => {
                    let group = &codes[p.per..2 * p.per];
                    assert!(group.iter().all(|c| (p.low..=p.high).contains(c)), "{}: {group:?}", p.name);
                    assert_eq!((p.byte)(group), value, "{}", p.name);
                    good += 1;
                }
                Err(Error::Byte { format, byte, found, largest }) => {
                    assert_eq!((format, byte, found), (p.name, 1, value));
                    assert!(p.per != 4 && value > largest);
                    bad += 1;
                }
                Err(Error::Pattern { byte, position, found }) => {
                    assert_eq!((p.per, byte, found), (4, 1, 3));
                    let first = (0..4).find(|i| value >> (2 * i) & 3 == 3);
                    assert_eq!(Some(position), first, "byte {value:#010b}");
                    bad += 1;
                }
                Err(other) => panic!("{}, {value}: {other:?}", p.name),
            }
        }
        let groups = ((p.high - p.low + 1) as usize).pow(p.per as u32);
        assert_eq!((good, bad), (groups, 256 - groups), "{}", p.name);
    }
}

/// For each number of codes in the last byte, each of its 256 values: only the ones whose padding is
/// zero are read, and the error names the first position that is not.
#[test]
fn padding_must_be_zero() {
    for p in &ALL {
        for len in 1..p.per {
            for full in groups(p, p.per) {
                let bytes = [(p.byte)(&full)];
                let mut codes = vec![77i8; len];
                let expected = match (len..p.per).find(|&i| full[i] != p.zero) {
                    None => Ok(()),
                    Some(position) => Err(Error::Padding {
                        format: p.name,
                        byte: 0,
                        position,
                        found: full[position],
                        expected: p.zero,
                    }),
                };
                assert_eq!((p.unpack)(&bytes, &mut codes), expected, "{}: {full:?} for {len}", p.name);
                if expected.is_ok() {
                    assert_eq!(codes, full[..len]);
                }
            }
        }
    }
    // The pattern 3 is named as such in the padding too.
    let found = unpack2(&[0b11_01_01_01], &mut [0; 2]);
    assert_eq!(found, Err(Error::Pattern { byte: 0, position: 3, found: 3 }));
    assert!(matches!(unpack3(&[243], &mut [0]), Err(Error::Byte { byte: 0, found: 243, largest: 242, .. })));
    assert!(matches!(unpack5(&[125], &mut [0]), Err(Error::Byte { byte: 0, found: 125, largest: 124, .. })));
}

#[test]
fn codes_outside_the_codebook_are_named() {
    for p in &ALL {
        for found in i8::MIN..=i8::MAX {
            for index in 0..2 * p.per + 1 {
                let mut codes = vec![p.zero; 2 * p.per + 1];
                codes[index] = found;
                let mut bytes = [0; 3];
                let expected = if (p.low..=p.high).contains(&found) {
                    Ok(())
                } else {
                    Err(Error::Code { format: p.name, index, found, low: p.low, high: p.high })
                };
                assert_eq!((p.pack)(&codes, &mut bytes), expected);
            }
        }
    }
}

#[test]
fn lengths_are_exact() {
    for p in &ALL {
        for n in 0..40 {
            let need = (p.len)(n);
            assert!(need * p.per >= n && need * p.per < n + p.per, "{}: {need} bytes for {n}", p.name);
            let mut codes = vec![p.zero; n];
            for found in [need + 1, need.wrapping_sub(1)].into_iter().filter(|&f| f < 1000) {
                let error = Err(Error::Length { what: "packed bytes", n, expected: need, found });
                let mut bytes = vec![(p.byte)(&vec![p.zero; p.per]); found];
                assert_eq!((p.pack)(&codes, &mut bytes), error);
                assert_eq!((p.unpack)(&bytes, &mut codes), error);
            }
        }
        assert_eq!((p.len)(usize::MAX), usize::MAX / p.per + usize::from(!usize::MAX.is_multiple_of(p.per)));
    }
}

proptest! {
    #[test]
    fn round_trips(raw in prop::collection::vec(any::<u8>(), 0..600)) {
        for p in &ALL {
            let base = (p.high - p.low + 1) as u8;
            let codes: Vec<i8> = raw.iter().map(|r| (r % base) as i8 + p.low).collect();
            let mut bytes = vec![0xee; (p.len)(codes.len())];
            prop_assert_eq!((p.pack)(&codes, &mut bytes), Ok(()));
            let mut back = vec![77i8; codes.len()];
            prop_assert_eq!((p.unpack)(&bytes, &mut back), Ok(()));
            prop_assert_eq!(&back, &codes, "{}", p.name);
        }
    }

    /// Whatever is accepted packs to the same bytes: one slice of codes, one packed form.
    #[test]
    fn accepted_bytes_are_the_only_form(bytes in prop::collection::vec(0u8..130, 1..8), short in 0usize..5) {
        for p in &ALL {
            let mut codes = vec![0i8; bytes.len() * p.per - short.min(p.per - 1)];
            if (p.unpack)(&bytes, &mut codes).is_ok() {
                let mut again = vec![0; bytes.len()];
                prop_assert_eq!((p.pack)(&codes, &mut again), Ok(()));
                prop_assert_eq!(&again, &bytes, "{}", p.name);
            }
        }
    }
}
