//! The block formats of GGUF files: what ggml and llama.cpp store weights in.
//!
//! A row of weights is cut into blocks of one length, each stored on its own with its scales. Rows are
//! multiples of a block. Three formats hold ternary codes exactly, as long as their scale is an fp16 number:
//!
//! | format | weights | bytes | bits per weight | codes |
//! |---|---|---|---|---|
//! | [`TQ1_0`](Block::Tq1_0) | 256 | 54 | 1.6875 | base 3, five in a byte, four in each of the last four |
//! | [`TQ2_0`](Block::Tq2_0) | 256 | 66 | 2.0625 | 2 bits, weights 32 apart in a byte |
//! | [`Q2_0`](Block::Q2_0) | 64 | 18 | 2.25 | 2 bits, neighbours in a byte, scale in front |
//!
//! The plain formats F32, F16 and BF16 are blocks of one weight. Q4_0 to Q6_K are read and never written:
//! models in them are imported.
//!
//! Source: ggml, `ggml-common.h` (layouts) and `ggml-quants.c` (`dequantize_row_*`). The order of float
//! operations is that of the Python package `gguf`, whose arrays the tests compare with.

use core::ops::Range;

use half::{bf16, f16};

use crate::Error;

/// A format of GGUF files, by ggml's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Block {
    /// f32, little endian as everything here.
    F32,
    /// fp16.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 32 weights `(q - 8)·d` in 4 bits.
    Q4_0,
    /// 32 weights `q·d + m` in 4 bits.
    Q4_1,
    /// 32 weights `(q - 16)·d` in 5 bits.
    Q5_0,
    /// 32 weights `q·d + m` in 5 bits.
    Q5_1,
    /// 32 weights `q·d` in 8 bits.
    Q8_0,
    /// 256 weights in eight groups, each `q·(d·s) - dmin·m` in 4 bits; `s` and `m` in 6.
    Q4K,
    /// The same in 5 bits.
    Q5K,
    /// 256 weights in sixteen groups, each `(q - 32)·(d·s)` in 6 bits; `s` in 8.
    Q6K,
    /// Ternary, 54 bytes for 256 weights.
    Tq1_0,
    /// Ternary, 66 bytes for 256 weights.
    Tq2_0,
    /// Ternary with a fourth level `2·d` that we never write, 18 bytes for 64 weights.
    Q2_0,
}

/// What the formats are: ggml's number and name, weights and bytes of a block.
const FORMATS: [(Block, u32, &str, usize, usize); 14] = [
    (Block::F32, 0, "F32", 1, 4),
    (Block::F16, 1, "F16", 1, 2),
    (Block::Q4_0, 2, "Q4_0", 32, 18),
    (Block::Q4_1, 3, "Q4_1", 32, 20),
    (Block::Q5_0, 6, "Q5_0", 32, 22),
    (Block::Q5_1, 7, "Q5_1", 32, 24),
    (Block::Q8_0, 8, "Q8_0", 32, 34),
    (Block::Q4K, 12, "Q4_K", 256, 144),
    (Block::Q5K, 13, "Q5_K", 256, 176),
    (Block::Q6K, 14, "Q6_K", 256, 210),
    (Block::Bf16, 30, "BF16", 1, 2),
    (Block::Tq1_0, 34, "TQ1_0", 256, 54),
    (Block::Tq2_0, 35, "TQ2_0", 256, 66),
    (Block::Q2_0, 42, "Q2_0", 64, 18),
];

impl Block {
    /// Every format, by ggml's number.
    pub fn all() -> impl Iterator<Item = Block> {
        FORMATS.iter().map(|format| format.0)
    }

    /// The format of ggml's number, where it is one of these.
    pub fn from_id(id: u32) -> Option<Block> {
        FORMATS.iter().find(|format| format.1 == id).map(|format| format.0)
    }

    fn format(self) -> &'static (Block, u32, &'static str, usize, usize) {
        // Every variant is in the table, which a test holds; the first row is never taken for another.
        FORMATS.iter().find(|format| format.0 == self).unwrap_or(&FORMATS[0])
    }

    /// ggml's number.
    pub fn id(self) -> u32 {
        self.format().1
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.format().2
    }

    /// Weights of a block.
    pub fn weights(self) -> usize {
        self.format().3
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        self.format().4
    }

    /// Bytes of `n` weights; `None` where they fill no whole number of blocks, or more bytes than can be counted.
    pub fn len(self, n: usize) -> Option<usize> {
        n.is_multiple_of(self.weights()).then(|| (n / self.weights()).checked_mul(self.bytes())).flatten()
    }

    /// Whether it holds ternary codes as they are.
    pub fn is_ternary(self) -> bool {
        matches!(self, Block::Tq1_0 | Block::Tq2_0 | Block::Q2_0)
    }

    fn check(self, bytes: usize, n: usize) -> Result<(), Error> {
        let expected = n.div_ceil(self.weights()) * self.bytes();
        match self.len(n) == Some(bytes) {
            true => Ok(()),
            false => Err(Error::Length { what: "bytes of blocks", n, expected, found: bytes }),
        }
    }
}

/// An fp16 number at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The weights of blocks in any format, as f32.
///
/// # Errors
/// [`Error::Length`] unless `bytes` are the blocks of `out.len()` weights; [`Error::Trits`] for bytes that
/// stand for no codes. Scales that are not finite are passed on.
pub fn decode(block: Block, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    block.check(bytes.len(), out.len())?;
    let blocks = bytes.chunks_exact(block.bytes()).zip(out.chunks_exact_mut(block.weights()));
    for (index, (bytes, out)) in blocks.enumerate() {
        match block {
            Block::F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Block::F16 => out[0] = half_at(bytes, 0),
            Block::Bf16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Block::Q4_0 => nibbles(&bytes[2..], None, out, |q| (q - 8.0) * half_at(bytes, 0)),
            Block::Q4_1 => nibbles(&bytes[4..], None, out, |q| q * half_at(bytes, 0) + half_at(bytes, 2)),
            Block::Q5_0 => {
                nibbles(&bytes[6..], Some(&bytes[2..6]), out, |q| (q - 16.0) * half_at(bytes, 0));
            }
            Block::Q5_1 => {
                let weight = |q: f32| q * half_at(bytes, 0) + half_at(bytes, 2);
                nibbles(&bytes[8..], Some(&bytes[4..8]), out, weight);
            }
            Block::Q8_0 => {
                let d = half_at(bytes, 0);
                out.iter_mut().zip(&bytes[2..]).for_each(|(w, &q)| *w = f32::from(q as i8) * d);
            }
            Block::Q4K => groups(bytes, None, &bytes[16..], out),
            Block::Q5K => groups(bytes, Some(&bytes[16..48]), &bytes[48..], out),
            Block::Q6K => sixteen_groups(bytes, out),
            Block::Tq1_0 | Block::Tq2_0 | Block::Q2_0 => {
                let mut fields = [0u8; 256];
                let fields = &mut fields[..out.len()];
                let scale = read_fields(block, bytes, fields).map_err(|error| error.at(block, index))?;
                // The fourth level of Q2_0 is part of that format.
                out.iter_mut().zip(&*fields).for_each(|(w, &q)| *w = (f32::from(q) - 1.0) * scale.to_f32());
            }
        }
    }
    Ok(())
}

/// Blocks of 32 weights in 4 bits, the first 16 in the low halves of the bytes, with a fifth bit from `high`.
fn nibbles(codes: &[u8], high: Option<&[u8]>, out: &mut [f32], weight: impl Fn(f32) -> f32) {
    let fifth = high.map_or(0, |high| u32::from_le_bytes([high[0], high[1], high[2], high[3]]));
    let (low, up) = out.split_at_mut(16);
    for j in 0..16 {
        let bit = |place: usize| ((fifth >> place) as u8 & 1) << 4;
        low[j] = weight(f32::from(codes[j] & 15 | bit(j)));
        up[j] = weight(f32::from(codes[j] >> 4 | bit(j + 16)));
    }
}

/// Q4_K and Q5_K: eight groups of 32 weights, two in the halves of the same 32 bytes.
fn groups(block: &[u8], high: Option<&[u8]>, codes: &[u8], out: &mut [f32]) {
    let (d, dmin, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        // Six bits of scale and of minimum; the upper two of the last four groups lie in the bytes of the first.
        let (scale, min) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (l, w) in out.iter_mut().enumerate() {
            let code = codes[group / 2 * 32 + l] >> (4 * (group % 2)) & 15;
            let fifth = high.map_or(0, |high| (high[l] >> group & 1) << 4);
            *w = scale * f32::from(code | fifth) - min;
        }
    }
}

/// Q6_K: sixteen groups of 16 weights; four bits in `ql`, two in `qh`.
fn sixteen_groups(block: &[u8], out: &mut [f32]) {
    let (ql, qh, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (i, w) in out.iter_mut().enumerate() {
        let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let low = ql[64 * part + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
        let high = qh[32 * part + l] >> (2 * quarter) & 3;
        let code = (low | high << 4) as i8 - 32;
        *w = d * f32::from(scales[i / 16] as i8) * f32::from(code);
    }
}

/// Weights in F32, F16 or BF16, rounded to the nearest, ties to even.
///
/// # Errors
/// [`Error::Length`] unless `out` has the bytes of `weights`; [`Error::Format`] for formats of codes.
pub fn encode(block: Block, weights: &[f32], out: &mut [u8]) -> Result<(), Error> {
    block.check(out.len(), weights.len())?;
    let pairs = weights.iter().zip(out.chunks_exact_mut(block.bytes()));
    match block {
        Block::F32 => pairs.for_each(|(w, out)| out.copy_from_slice(&w.to_le_bytes())),
        Block::F16 => pairs.for_each(|(w, out)| out.copy_from_slice(&f16::from_f32(*w).to_le_bytes())),
        Block::Bf16 => pairs.for_each(|(w, out)| out.copy_from_slice(&bf16::from_f32(*w).to_le_bytes())),
        _ => return Err(Error::Format { found: block.name(), expected: "F32, F16 or BF16" }),
    }
    Ok(())
}

const TERNARY: &str = "TQ1_0, TQ2_0 or Q2_0";

/// Ternary codes with one scale, in every block the same, in TQ1_0, TQ2_0 or Q2_0.
///
/// # Errors
/// [`Error::Length`] unless `out` has the bytes of the codes; [`Error::Code`] with the first code outside -1
/// to 1; [`Error::Format`] for other formats.
pub fn encode_codes(block: Block, codes: &[i8], scale: f16, out: &mut [u8]) -> Result<(), Error> {
    if !block.is_ternary() {
        return Err(Error::Format { found: block.name(), expected: TERNARY });
    }
    block.check(out.len(), codes.len())?;
    if let Some(index) = codes.iter().position(|code| !(-1..=1).contains(code)) {
        return Err(Error::Code { format: block.name(), index, found: codes[index], low: -1, high: 1 });
    }
    let field = |code: &i8| (code + 1) as u8;
    for (codes, out) in codes.chunks_exact(block.weights()).zip(out.chunks_exact_mut(block.bytes())) {
        let scale = scale.to_le_bytes();
        match block {
            Block::Q2_0 => {
                out[..2].copy_from_slice(&scale);
                for (byte, codes) in out[2..].iter_mut().zip(codes.chunks_exact(4)) {
                    *byte = codes.iter().rev().fold(0, |byte, code| byte << 2 | field(code));
                }
            }
            Block::Tq2_0 => {
                for (i, byte) in out[..64].iter_mut().enumerate() {
                    let first = i / 32 * 128 + i % 32;
                    *byte = (0..4).rev().fold(0, |byte, n| byte << 2 | field(&codes[first + 32 * n]));
                }
                out[64..].copy_from_slice(&scale);
            }
            _ => {
                for (i, byte) in out[..52].iter_mut().enumerate() {
                    let (first, step, digits) = trits_of(i);
                    *byte = base3((0..digits).map(|n| field(&codes[first + step * n])));
                }
                out[52..].copy_from_slice(&scale);
            }
        }
    }
    Ok(())
}

/// The codes of blocks in TQ1_0, TQ2_0 or Q2_0, and the scale of each block.
///
/// # Errors
/// [`Error::Length`] unless `bytes` are the blocks of `codes.len()` weights, and `scales` as many as blocks;
/// [`Error::Trits`] at the first byte that stands for no ternary codes; [`Error::Format`] for other formats.
pub fn decode_codes(block: Block, bytes: &[u8], codes: &mut [i8], scales: &mut [f16]) -> Result<(), Error> {
    if !block.is_ternary() {
        return Err(Error::Format { found: block.name(), expected: TERNARY });
    }
    block.check(bytes.len(), codes.len())?;
    let blocks = codes.len() / block.weights();
    if scales.len() != blocks {
        let (n, found) = (codes.len(), scales.len());
        return Err(Error::Length { what: "scales of blocks", n, expected: blocks, found });
    }
    let parts = bytes.chunks_exact(block.bytes()).zip(codes.chunks_exact_mut(block.weights()));
    for (index, ((bytes, codes), scale)) in parts.zip(scales).enumerate() {
        let mut fields = [0u8; 256];
        let fields = &mut fields[..codes.len()];
        *scale = read_fields(block, bytes, fields).map_err(|error| error.at(block, index))?;
        if block == Block::Q2_0
            && let Some(at) = fields.iter().position(|&field| field > 2)
        {
            return Err(NoTrits { byte: 2 + at / 4, found: bytes[2 + at / 4] }.at(block, index));
        }
        codes.iter_mut().zip(&*fields).for_each(|(code, &field)| *code = field as i8 - 1);
    }
    Ok(())
}

/// The scale that all blocks in TQ1_0, TQ2_0 or Q2_0 have. `None` for other formats, where scales differ or are not
/// finite, and where fields of Q2_0 stand for a fourth level: such blocks are not codes times one scale as they lie.
pub fn scale(block: Block, bytes: &[u8]) -> Option<f16> {
    let at = match block {
        Block::Q2_0 => 0,
        Block::Tq2_0 => 64,
        Block::Tq1_0 => 52,
        _ => return None,
    };
    let blocks = || bytes.chunks_exact(block.bytes());
    let scale = |bytes: &[u8]| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let one = blocks().map(scale).next().unwrap_or(f16::ZERO);
    let fourth =
        |bytes: &[u8]| block == Block::Q2_0 && bytes[2..].iter().any(|byte| byte & byte >> 1 & 0x55 != 0);
    let fits = |bytes: &[u8]| scale(bytes) == one && !fourth(bytes);
    (one.is_finite() && blocks().all(fits)).then_some(one)
}

/// A byte of a block that stands for no codes.
struct NoTrits {
    byte: usize,
    found: u8,
}

impl NoTrits {
    fn at(self, block: Block, index: usize) -> Error {
        let byte = index * block.bytes() + self.byte;
        Error::Trits { format: block.name(), byte, found: self.found }
    }
}

/// Code + 1 of every weight of one ternary block, and its scale. Fields of Q2_0 may be 3.
fn read_fields(block: Block, bytes: &[u8], fields: &mut [u8]) -> Result<f16, NoTrits> {
    let scale = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]);
    match block {
        Block::Q2_0 => {
            for (i, field) in fields.iter_mut().enumerate() {
                *field = bytes[2 + i / 4] >> (2 * (i % 4)) & 3;
            }
            Ok(scale(0))
        }
        Block::Tq2_0 => {
            for (part, fields) in bytes[..64].chunks_exact(32).zip(fields.chunks_exact_mut(128)) {
                for (n, fields) in fields.chunks_exact_mut(32).enumerate() {
                    fields.iter_mut().zip(part).for_each(|(field, byte)| *field = byte >> (2 * n) & 3);
                }
            }
            // Three is the one field with both bits.
            match bytes[..64].iter().position(|byte| byte & byte >> 1 & 0x55 != 0) {
                Some(byte) => Err(NoTrits { byte, found: bytes[byte] }),
                None => Ok(scale(64)),
            }
        }
        _ => {
            for range in TRITS {
                let (first, step, digits) = trits_of(range.start);
                let mut rest = [0; 32];
                let rest = &mut rest[..range.len()];
                rest.copy_from_slice(&bytes[range.clone()]);
                for n in 0..digits {
                    // The byte is a fraction of 256: times three, its digit stands above the point.
                    for (field, rest) in fields[first + step * n..].iter_mut().zip(&mut *rest) {
                        let product = u16::from(*rest) * 3;
                        *field = (product >> 8) as u8;
                        *rest = product as u8;
                    }
                }
            }
            // Thirteen bytes (and more of four trits) are between those that ggml writes.
            let written = |i: &usize| WRITTEN[usize::from(*i >= TRITS[2].start)][usize::from(bytes[*i])];
            match (0..52).find(|i| !written(i)) {
                Some(byte) => Err(NoTrits { byte, found: bytes[byte] }),
                None => Ok(scale(52)),
            }
        }
    }
}

/// Bytes of a TQ1_0 block whose weights are equally far apart.
const TRITS: [Range<usize>; 3] = [0..32, 32..48, 48..52];

/// Which bytes stand for five trits, and for four.
const WRITTEN: [[bool; 256]; 2] = {
    let mut written = [[false; 256]; 2];
    let mut value = 0;
    while value < 243 {
        let byte = (value * 256usize).div_ceil(243);
        written[0][byte] = true;
        written[1][byte] |= value % 3 == 0;
        value += 1;
    }
    written
};

/// Of byte `i` of a TQ1_0 block: its first weight, the distance to the next, and their number.
fn trits_of(i: usize) -> (usize, usize, usize) {
    match i {
        0..32 => (i, 32, 5),
        32..48 => (160 + i - 32, 16, 5),
        _ => (240 + i - 48, 4, 4),
    }
}

/// Four or five base-3 digits, the first most significant, as a fraction of 256, rounded up.
fn base3(digits: impl ExactSizeIterator<Item = u8>) -> u8 {
    let missing = 5 - digits.len() as u32;
    let value = digits.fold(0u16, |value, digit| value * 3 + u16::from(digit)) * 3u16.pow(missing);
    // At most 242·256 + 242 < 2^16.
    (value * 256).div_ceil(243) as u8
}
