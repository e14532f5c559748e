//! Block formats: against arrays made by the Python package `gguf` (`interop/golden.py`), and against their layouts
//! written down once more, weight by weight.

use half::f16;
use tritrain_trit::Error;
use tritrain_trit::blocks::{Block, decode, decode_codes, encode, encode_codes};

macro_rules! golden {
    ($($block:ident $name:literal),* $(,)?) => {
        [$((
            Block::$block,
            &include_bytes!(concat!("../golden/", $name, ".bytes"))[..],
            &include_bytes!(concat!("../golden/", $name, ".f32"))[..],
        )),*]
    };
}

/// Format, blocks, and the weights they stand for.
fn golden() -> Vec<(Block, &'static [u8], Vec<f32>)> {
    let files = golden![
        F16 "F16", Bf16 "BF16", Q4_0 "Q4_0", Q4_1 "Q4_1", Q5_0 "Q5_0", Q5_1 "Q5_1", Q8_0 "Q8_0",
        Q4K "Q4_K", Q5K "Q5_K", Q6K "Q6_K", Tq1_0 "TQ1_0", Tq2_0 "TQ2_0",
    ];
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    files.into_iter().map(|(block, bytes, weights)| (block, bytes, floats(weights))).collect()
}

const TERNARY: [Block; 3] = [Block::Tq1_0, Block::Tq2_0, Block::Q2_0];

/// `n` codes that depend on `seed` and look like noise.
fn codes(seed: u64, n: usize) -> Vec<i8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % 3
    };
    (0..n).map(|_| next() as i8 - 1).collect()
}

/// Where weight `i` of a block lies: its byte, and its place in that byte.
fn place(block: Block, i: usize) -> (usize, usize) {
    match block {
        Block::Q2_0 => (2 + i / 4, i % 4),
        Block::Tq2_0 => (i / 128 * 32 + i % 32, i % 128 / 32),
        Block::Tq1_0 if i < 160 => (i % 32, i / 32),
        Block::Tq1_0 if i < 240 => (32 + (i - 160) % 16, (i - 160) / 16),
        _ => (48 + (i - 240) % 4, (i - 240) / 4),
    }
}

#[test]
fn weights_are_those_that_the_gguf_package_reads() {
    for (block, bytes, weights) in golden() {
        let mut found = vec![0.0; weights.len()];
        decode(block, bytes, &mut found).unwrap();
        let bits = |x: &[f32]| x.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&weights), "{}", block.name());
    }
}

#[test]
fn blocks_are_those_that_the_gguf_package_writes() {
    for (block, bytes, weights) in golden() {
        let mut found = vec![0; bytes.len()];
        if block.is_ternary() {
            // The package takes the largest magnitude for a scale, block by block, and rounds to fp16.
            for (bytes, found) in bytes.chunks(block.bytes()).zip(found.chunks_mut(block.bytes())) {
                let (mut codes, mut scale) = ([0; 256], [f16::ZERO]);
                decode_codes(block, bytes, &mut codes, &mut scale).unwrap();
                encode_codes(block, &codes, scale[0], found).unwrap();
            }
        } else if matches!(block, Block::F16 | Block::Bf16) {
            encode(block, &weights, &mut found).unwrap();
        } else {
            continue;
        }
        assert_eq!(found, bytes, "{}", block.name());
    }
}

#[test]
fn every_ternary_code_is_where_its_layout_says() {
    for block in TERNARY {
        for seed in 0..20 {
            let n = 3 * block.weights();
            let (codes, scale) = (codes(seed, n), f16::from_f32(0.0123));
            let mut bytes = vec![0xaa; block.len(n).unwrap()];
            encode_codes(block, &codes, scale, &mut bytes).unwrap();
            let at = if block == Block::Q2_0 { 0 } else { block.bytes() - 2 };
            for (b, one) in bytes.chunks(block.bytes()).enumerate() {
                assert_eq!(one[at..at + 2], scale.to_le_bytes());
                for i in 0..block.weights() {
                    let (byte, position) = place(block, i);
                    let field = if block == Block::Tq1_0 {
                        // ggml: ((byte * 3^n mod 256) * 3) >> 8
                        let shifted = (u32::from(one[byte]) * 3u32.pow(position as u32)) % 256;
                        ((shifted * 3) >> 8) as i8
                    } else {
                        (one[byte] >> (2 * position) & 3) as i8
                    };
                    assert_eq!(field - 1, codes[b * block.weights() + i], "{} {i}", block.name());
                }
            }
            let (mut back, mut scales) = (vec![9; n], [f16::ZERO; 3]);
            decode_codes(block, &bytes, &mut back, &mut scales).unwrap();
            assert_eq!((back, scales), (codes.clone(), [scale; 3]), "{}", block.name());
            let mut weights = vec![9.0; n];
            decode(block, &bytes, &mut weights).unwrap();
            let expected: Vec<_> = codes.iter().map(|&q| f32::from(q) * scale.to_f32()).collect();
            assert_eq!(weights, expected);
        }
    }
}

#[test]
fn bytes_that_stand_for_no_codes_are_refused() {
    // Five trits have 243 bytes of 256, four have 81, four fields of two bits 81.
    for (block, byte, valid) in
        [(Block::Tq1_0, 5, 243), (Block::Tq1_0, 49, 81), (Block::Tq2_0, 40, 81), (Block::Q2_0, 9, 81)]
    {
        let n = 2 * block.weights();
        let mut bytes = vec![0; block.len(n).unwrap()];
        encode_codes(block, &vec![0; n], f16::ONE, &mut bytes).unwrap();
        let at = block.bytes() + byte;
        let read = |found: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = found;
            let (mut codes, mut scales) = (vec![0; n], [f16::ZERO; 2]);
            let codes = decode_codes(block, &bytes, &mut codes, &mut scales);
            let mut weights = vec![0.0; n];
            (codes, decode(block, &bytes, &mut weights))
        };
        let mut found = 0;
        for value in 0..=255 {
            let (codes, weights) = read(value);
            // The fourth level of Q2_0 is a weight but no ternary code.
            assert!(codes == weights || block == Block::Q2_0 && weights.is_ok());
            match codes {
                Ok(()) => found += 1,
                Err(error) => {
                    let expected = Error::Trits { format: block.name(), byte: at, found: value };
                    assert_eq!(error, expected);
                }
            }
        }
        assert_eq!(found, valid, "{} byte {byte}", block.name());
    }
}

#[test]
fn the_fourth_level_of_q2_0_is_twice_the_scale() {
    let mut bytes = [0b01_01_01_11; 18];
    bytes[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
    let mut weights = [0.0; 64];
    decode(Block::Q2_0, &bytes, &mut weights).unwrap();
    assert_eq!(weights[..5], [1.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn plain_formats_round_to_nearest_even() {
    let weights = [1.0, -2.5, 1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 65520.0, 1e-9];
    let mut bytes = [0; 12];
    encode(Block::F16, &weights, &mut bytes).unwrap();
    let mut found = [0.0; 6];
    decode(Block::F16, &bytes, &mut found).unwrap();
    assert_eq!(found, [1.0, -2.5, 1.0, 1.0 + 4.0 / 2048.0, f32::INFINITY, 0.0]);
    encode(Block::Bf16, &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &mut bytes[..4]).unwrap();
    decode(Block::Bf16, &bytes[..4], &mut found[..2]).unwrap();
    assert_eq!(found[..2], [1.0, 1.0 + 4.0 / 256.0]);
    let mut wide = [0; 24];
    encode(Block::F32, &weights, &mut wide).unwrap();
    decode(Block::F32, &wide, &mut found).unwrap();
    assert_eq!(found, weights);
}

#[test]
fn every_format_has_its_number_name_and_size() {
    assert_eq!(Block::all().count(), 14);
    for block in Block::all() {
        assert_eq!(Block::from_id(block.id()), Some(block));
        assert_eq!(block.len(4 * block.weights()), Some(4 * block.bytes()));
        if block.weights() > 1 {
            assert_eq!(block.len(block.weights() + 1), None);
        }
    }
    assert_eq!(Block::F32.len(usize::MAX), None);
    assert_eq!([Block::Tq1_0, Block::Tq2_0, Block::Q2_0].map(Block::id), [34, 35, 42]);
    assert_eq!([4, 5, 9, 10, 11, 36, 200].map(Block::from_id), [None; 7]);
}

#[test]
fn wrong_lengths_codes_and_formats_are_named() {
    let mut out = [0.0; 256];
    let short = decode(Block::Q6K, &[0; 209], &mut out).unwrap_err();
    assert_eq!(short, Error::Length { what: "bytes of blocks", n: 256, expected: 210, found: 209 });
    decode(Block::Q8_0, &[0; 34], &mut out[..31]).unwrap_err();
    let mut bytes = [0; 66];
    let mut codes = [0i8; 256];
    codes[77] = 2;
    let wrong = encode_codes(Block::Tq2_0, &codes, f16::ONE, &mut bytes).unwrap_err();
    assert_eq!(wrong, Error::Code { format: "TQ2_0", index: 77, found: 2, low: -1, high: 1 });
    let wrong = encode_codes(Block::Q4_0, &[0; 32], f16::ONE, &mut [0; 18]).unwrap_err();
    assert!(matches!(wrong, Error::Format { found: "Q4_0", .. }));
    let wrong = encode(Block::Tq1_0, &[0.0; 256], &mut [0; 54]).unwrap_err();
    assert!(matches!(wrong, Error::Format { found: "TQ1_0", .. }));
    let wrong = decode_codes(Block::Tq2_0, &bytes, &mut codes, &mut [f16::ONE; 2]).unwrap_err();
    assert!(matches!(wrong, Error::Length { what: "scales of blocks", .. }));
}
