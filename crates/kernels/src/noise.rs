//! Random bits for stochastic rounding: the words of `trit::rng::Stream`, many at a time.

use tritrain_trit::rng::Stream;

/// Philox blocks computed side by side.
pub(crate) const SIDE: usize = 16;
/// Halves of words in a block.
const HALVES: usize = 8;

tiered! {
    /// The 16-bit halves of the words of `stream`, in runs of [`SIDE`] blocks from block `first` on: the low
    /// halves of the first words of all blocks of a run, then the high halves, then those of the second words...
    pub(crate) fn fill(stream: &Stream, first: u64, out: &mut [u16]) {
        let (key, tensor, step) = stream.words();
        let mut halves = [[0u16; SIDE]; HALVES];
        for (run, out) in out.chunks_mut(SIDE * HALVES).enumerate() {
            side_by_side(key, first + (run * SIDE) as u64, tensor, step, &mut halves);
            out.copy_from_slice(&halves.as_flattened()[..out.len()]);
        }
    }
}

/// Philox4x32-10 of [`SIDE`] blocks that follow each other.
#[inline(always)]
fn side_by_side(mut key: [u32; 2], first: u64, tensor: u32, step: u32, halves: &mut [[u16; SIDE]; HALVES]) {
    let mut c = [[0u32; SIDE], [0; SIDE], [tensor; SIDE], [step; SIDE]];
    for lane in 0..SIDE {
        let block = first + lane as u64;
        c[0][lane] = block as u32;
        c[1][lane] = (block >> 32) as u32;
    }
    for _ in 0..10 {
        for lane in 0..SIDE {
            let p0 = 0xD251_1F53 * u64::from(c[0][lane]);
            let p1 = 0xCD9E_8D57 * u64::from(c[2][lane]);
            c[0][lane] = (p1 >> 32) as u32 ^ c[1][lane] ^ key[0];
            c[1][lane] = p1 as u32;
            c[2][lane] = (p0 >> 32) as u32 ^ c[3][lane] ^ key[1];
            c[3][lane] = p0 as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    for (word, c) in c.iter().enumerate() {
        for lane in 0..SIDE {
            halves[2 * word][lane] = c[lane] as u16;
            halves[2 * word + 1][lane] = (c[lane] >> 16) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tier;

    #[test]
    fn they_are_the_words_of_the_stream() {
        let stream = Stream::new(7, 3, 1 << 33);
        for tier in Tier::available() {
            for (first, len) in [(0, 1), (5, 300), ((1 << 32) - 3, 512)] {
                let mut out = vec![0; len];
                fill(tier, &stream, first, &mut out);
                for (at, half) in out.iter().enumerate() {
                    let (run, half_word, block) = (at / 128, at % 128 / SIDE, at % SIDE);
                    let word = stream.block(first + (run * SIDE + block) as u64)[half_word / 2];
                    assert_eq!(*half, (word >> (half_word % 2 * 16)) as u16, "{}: {at}", tier.name());
                }
            }
        }
    }
}
