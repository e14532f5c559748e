//! Random numbers without state: Philox4x32-10 and what is drawn from it.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Philox
//! is a keyed bijection of 128-bit counters. Every number here is a function of (seed, tensor, step,
//! index): nothing is saved in a checkpoint, a resumed run draws what the first would have drawn, any
//! number of threads draws the same, and so does a GPU.
//!
//! # Layout of the counter
//!
//! The key is the seed, low half first. The second counter word keeps the uses of one key apart:
//!
//! | use | word 0 | word 1 | word 2 | word 3 |
//! |---|---|---|---|---|
//! | [`Stream`] | block, low half | block, high half: `00` + 30 bits | tensor | step, low half |
//! | key of a step from 2³² on | step, high half | `10` + zeros | 0 | 0 |
//! | [`Permutation`] | half block | `11` + zeros + round | epoch, low half | epoch, high half |
//!
//! A block is four indices, so it has 62 bits and the two top bits of word 1 are free. Within one seed
//! no two rows of this table can meet, and different seeds are different keys.

use core::f64::consts::TAU;

/// First word-1 value of the key derivation for large steps.
const KEY_DOMAIN: u32 = 0b10 << 30;
/// First word-1 value of the permutation.
const PERMUTATION_DOMAIN: u32 = 0b11 << 30;

/// Philox4x32-10: 128 random bits from a 128-bit counter and a 64-bit key.
///
/// For a fixed key it is a bijection of the counters. The constants are those of the paper, section
/// 4.3, and of the Random123 library, whose known answers are in the tests.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: usize = 10;
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    // Weyl sequence of the key: the fractional parts of the golden ratio and of sqrt(3).
    const W0: u32 = 0x9E37_79B9;
    const W1: u32 = 0xBB67_AE85;
    for _ in 0..ROUNDS {
        let p0 = M0 * u64::from(counter[0]);
        let p1 = M1 * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(W0), key[1].wrapping_add(W1)];
    }
    counter
}

/// The low and the high half of a 64-bit number.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// The random numbers of one tensor (or purpose) at one step: an array without end, read by index.
///
/// [`bits`](Stream::bits), [`uniform`](Stream::uniform) and [`normal`](Stream::normal) are three views
/// of the same words, not three sources: use one view per (tensor, step), and another `tensor` number
/// for another purpose.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    tensor: u32,
    step: u32,
}

impl Stream {
    /// The stream of `tensor` at `step` in the run with this seed.
    ///
    /// For steps below 2³², different (seed, tensor, step, index) read different words of different
    /// Philox inputs: an exact statement, by the table above. From 2³² on, the four arguments have
    /// more bits than Philox has inputs; the high half of the step then selects a new key,
    /// pseudo-randomly, so that two given streams coincide with probability 2⁻⁶⁴ instead of always.
    pub fn new(seed: u64, tensor: u32, step: u64) -> Self {
        let mut key = halves(seed);
        let [low, high] = halves(step);
        if high != 0 {
            // Not an XOR into the seed: seeds 0 and 1 would then share streams, 2^32 steps apart.
            let [k0, k1, ..] = philox([high, KEY_DOMAIN, 0, 0], key);
            key = [k0, k1];
        }
        Self { key, tensor, step: low }
    }

    /// The Philox counter of a block. Distinct for distinct (block, tensor, low half of step).
    fn counter(&self, block: u64) -> [u32; 4] {
        let [low, high] = halves(block);
        [low, high, self.tensor, self.step]
    }

    /// The words at the indices `4·block` to `4·block + 3`, for a fourth of the price of one by one.
    ///
    /// Blocks from 2⁶² on are beyond the last index and belong to no stream.
    pub fn block(&self, block: u64) -> [u32; 4] {
        debug_assert!(block < 1 << 62, "block {block} is beyond the last index");
        philox(self.counter(block), self.key)
    }

    /// Key, tensor and step word of the stream, for kernels that compute many blocks side by side.
    pub fn words(&self) -> ([u32; 2], u32, u32) {
        (self.key, self.tensor, self.step)
    }

    /// 32 random bits at `index`.
    pub fn bits(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// A uniform number in [0, 1): the top 24 bits at `index`, as a multiple of 2⁻²⁴.
    ///
    /// 24 bits because that is what an f32 below 1 holds exactly; with 32, rounding would return 1.
    pub fn uniform(&self, index: u64) -> f32 {
        (self.bits(index) >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A normal number, mean 0, variance 1, |value| ≤ 6.67, at `index`. Box–Muller.
    ///
    /// The pair at the indices 2j and 2j + 1 comes from the words there: the first gives the radius
    /// sqrt(-2 ln u) with u in (0, 1] in steps of 2⁻³², the second the angle; the cosine goes to the
    /// even index, the sine to the odd one.
    ///
    /// Computed in f64 with the functions of `libm`, which are plain Rust: the system's `log` and
    /// `cos` differ between machines in the last bit, and a run must not.
    pub fn normal(&self, index: u64) -> f32 {
        const STEP: f64 = 1.0 / 4_294_967_296.0;
        let words = self.block(index / 4);
        let pair = (index % 4) as usize & !1;
        // Plus one: the logarithm of zero must not occur, and 1 may.
        let u = (f64::from(words[pair]) + 1.0) * STEP;
        let angle = TAU * (f64::from(words[pair + 1]) * STEP);
        let radius = libm::sqrt(-2.0 * libm::log(u));
        let direction = if index.is_multiple_of(2) { libm::cos(angle) } else { libm::sin(angle) };
        (radius * direction) as f32
    }
}

/// A random order of `0..n`, computed element by element, without memory.
///
/// A balanced Feistel network permutes the numbers of 2h bits, the smallest such range that holds
/// `n`; a result outside `0..n` is permuted again until it falls inside ("cycle walking"; Black and
/// Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). The range is less than 4n, so that
/// takes less than four passes on average.
///
/// Every order is as likely as any other of its parity. The parities themselves are not: a Feistel
/// network with halves of two bits or more is an even permutation, and of that an excess of
/// n(n-1)/(R(R-1)) is left in the order of n out of R = 4^h. Over an order of documents, one bit that
/// nobody looks at.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    key: [u32; 2],
    epoch: [u32; 2],
    n: u64,
    /// Bits in each half of the network, 0 to 32.
    half_bits: u32,
}

impl Permutation {
    /// Rounds of the network. Four make it indistinguishable from random for large halves (Luby and
    /// Rackoff 1988), but halves of two bits need more to mix: with 8, the orders of 5 elements still
    /// show it (`tests/it/rng.rs`), with 10 no more. 10 is also what NIST SP 800-38G takes for FF1.
    const ROUNDS: u32 = 10;

    /// The order of `0..n` in `epoch` of the run with this seed.
    pub fn new(seed: u64, epoch: u64, n: u64) -> Self {
        // Bits of the largest element, halved upwards. None for n = 1: the network is the identity.
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self { key: halves(seed), epoch: halves(epoch), n, half_bits: bits.div_ceil(2) }
    }

    /// The element at position `i`. Over all `i` below `n`, each number below `n` occurs once.
    ///
    /// # Panics
    ///
    /// When `i` is not below `n`.
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "position {i} of a permutation of {} elements", self.n);
        // Ends: the walk follows a cycle of the network's bijection, and `i` itself is on that cycle
        // and below n.
        let mut x = self.network(i);
        while x >= self.n {
            x = self.network(x);
        }
        x
    }

    /// One pass: a bijection of `0..4^half_bits`, whatever the round function is.
    fn network(&self, x: u64) -> u64 {
        // In 64 bits, so that half_bits = 32 (n above 2^62) needs no special case.
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..Self::ROUNDS {
            let counter = [right as u32, PERMUTATION_DOMAIN | round, self.epoch[0], self.epoch[1]];
            let random = u64::from(philox(counter, self.key)[0]);
            (left, right) = (right, left ^ (random & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    //! The exact half of the claim of distinctness; the outputs are compared in `tests/it`.

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// (key, counter) tells (seed, tensor, step < 2^32, block) back, so it is injective.
        #[test]
        fn arguments_can_be_read_back(seed: u64, tensor: u32, step: u32, index: u64) {
            let stream = Stream::new(seed, tensor, u64::from(step));
            let block = index / 4;
            let c = stream.counter(block);
            prop_assert_eq!(u64::from(stream.key[0]) | u64::from(stream.key[1]) << 32, seed);
            prop_assert_eq!(u64::from(c[0]) | u64::from(c[1]) << 32, block);
            prop_assert_eq!([c[2], c[3]], [tensor, step]);
            // The other two uses of a key start above.
            prop_assert!(c[1] < KEY_DOMAIN);
        }
    }

    /// The network is a bijection of its whole range, not only of the part a walk visits.
    #[test]
    fn network_is_a_bijection_of_its_range() {
        for n in [1u64, 2, 4, 5, 16, 17, 1024, 1025] {
            let p = Permutation::new(9, 1, n);
            let range = 1usize << (2 * p.half_bits);
            assert!(range as u64 >= n && (range as u64) < 4 * n, "range {range} for n = {n}");
            let mut seen = std::vec![false; range];
            for x in 0..range as u64 {
                assert!(!core::mem::replace(&mut seen[p.network(x) as usize], true), "n = {n}, x = {x}");
            }
        }
    }
}
