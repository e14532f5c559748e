//! Ternary codes at their entropy: asymmetric numeral systems over groups of five codes.
//!
//! Source: Duda 2013, arXiv:1311.2540, in the range variant (rANS) with 32-bit states and 16-bit words. A symbol is a
//! group of five codes, one of 243, whose probability is the product of those of its codes: so a matrix needs two
//! numbers to say them all, and a symbol decodes to five weights at once. Symbols go to four states in turn, which
//! decode side by side.
//!
//! | bytes | content |
//! |---|---|
//! | 2, 2 | share of -1, share of 0, of 65535; the rest is that of 1 |
//! | 4 × 4 | the states, from which decoding starts |
//! | 2 each | words, in the order in which decoding takes them |
//!
//! All little endian. The number of codes is not stored. The last group is filled up with the most frequent code.

use alloc::{vec, vec::Vec};

use crate::Error;

/// Codes of a symbol.
const GROUP: usize = 5;
/// Symbols.
const SYMBOLS: usize = 243;
/// Symbols decoded side by side.
const STATES: usize = 4;
/// Frequencies sum to `1 << BITS`.
const BITS: u32 = 14;
const TOTAL: u32 = 1 << BITS;
/// States between symbols are in `LOW..LOW << 16`.
const LOW: u32 = 1 << 16;
/// Shares of codes sum to this.
const SHARES: u32 = 65_535;
/// Bytes in front of the words.
const HEADER: usize = 4 + 4 * STATES;

const FORMAT: &str = "entropy-coded ternary";

/// Frequencies of all symbols, and the sums of those before each.
struct Model {
    starts: [u32; SYMBOLS + 1],
}

/// The codes, less -1, of a symbol: the first counts most.
fn digits(symbol: usize) -> [usize; GROUP] {
    let mut rest = symbol;
    let mut digits = [0; GROUP];
    for digit in digits.iter_mut().rev() {
        *digit = rest % 3;
        rest /= 3;
    }
    digits
}

impl Model {
    /// Of shares that sum to [`SHARES`]. Every symbol that can occur has a frequency.
    fn new(shares: [u32; 3]) -> Model {
        let weight = |symbol| digits(symbol).iter().map(|digit| u128::from(shares[*digit])).product::<u128>();
        let whole = u128::from(SHARES).pow(GROUP as u32);
        let mut frequencies = [0u32; SYMBOLS];
        let (mut sum, mut before) = (0u128, 0u32);
        for (symbol, frequency) in frequencies.iter_mut().enumerate() {
            sum += weight(symbol);
            // Differences of rounded sums: they add up, and no symbol is off by one.
            let end = (sum * u128::from(TOTAL) / whole) as u32;
            *frequency = end - before;
            before = end;
        }
        for symbol in 0..SYMBOLS {
            if frequencies[symbol] == 0 && weight(symbol) > 0 {
                // Lost to the largest, which has more than as many of them as there can be.
                let largest = (0..SYMBOLS).max_by_key(|other| frequencies[*other]).unwrap_or(0);
                frequencies[largest] -= 1;
                frequencies[symbol] = 1;
            }
        }
        let mut starts = [0; SYMBOLS + 1];
        for (symbol, frequency) in frequencies.iter().enumerate() {
            starts[symbol + 1] = starts[symbol] + frequency;
        }
        Model { starts }
    }

    fn frequency(&self, symbol: usize) -> u32 {
        self.starts[symbol + 1] - self.starts[symbol]
    }
}

/// Shares of the codes -1, 0 and 1 among `n`, of [`SHARES`]: none is 0 whose code occurs.
fn shares(counts: [u64; 3]) -> [u32; 3] {
    let n: u64 = counts.iter().sum();
    if n == 0 {
        return [0, SHARES, 0];
    }
    let mut shares = counts.map(|count| {
        let share = (u128::from(count) * u128::from(SHARES) / u128::from(n)) as u32;
        share.max(u32::from(count > 0))
    });
    // What rounding left over, or took too much, is the most frequent code's.
    let largest = (0..3).max_by_key(|code| counts[*code]).unwrap_or(1);
    let others: u32 = (0..3).filter(|code| *code != largest).map(|code| shares[code]).sum();
    shares[largest] = SHARES - others;
    shares
}

/// Codes in {-1, 0, 1} as bytes, near `entropy · n / 8` of them.
///
/// # Errors
/// [`Error::Code`] for another code.
pub fn encode(codes: &[i8]) -> Result<Vec<u8>, Error> {
    let mut counts = [0u64; 3];
    for (index, &found) in codes.iter().enumerate() {
        if !(-1..=1).contains(&found) {
            return Err(Error::Code { format: FORMAT, index, found, low: -1, high: 1 });
        }
        counts[(found + 1) as usize] += 1;
    }
    let shares = shares(counts);
    let model = Model::new(shares);
    let fill = (0..3).max_by_key(|code| shares[*code]).unwrap_or(1);
    let mut words: Vec<u16> = vec![];
    let mut states = [LOW; STATES];
    for (at, group) in codes.chunks(GROUP).enumerate().rev() {
        let symbol = (0..GROUP)
            .fold(0, |symbol, place| symbol * 3 + group.get(place).map_or(fill, |code| (*code + 1) as usize));
        let state = &mut states[at % STATES];
        let (frequency, start) = (model.frequency(symbol), model.starts[symbol]);
        // Below 2^32 after the step: `state / frequency` must be below LOW << 16 >> BITS.
        if u64::from(*state) >= u64::from(frequency) << (32 - BITS) {
            words.push(*state as u16);
            *state >>= 16;
        }
        *state = ((*state / frequency) << BITS) + *state % frequency + start;
    }
    let mut bytes = Vec::with_capacity(HEADER + 2 * words.len());
    bytes.extend_from_slice(&(shares[0] as u16).to_le_bytes());
    bytes.extend_from_slice(&(shares[1] as u16).to_le_bytes());
    states.iter().for_each(|state| bytes.extend_from_slice(&state.to_le_bytes()));
    words.iter().rev().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    Ok(bytes)
}

/// What decoding needs of a symbol, in one look.
#[derive(Clone, Copy)]
struct Step {
    frequency: u16,
    /// Of the slot within its symbol.
    offset: u16,
}

/// The codes of [`encode`], all of `codes`.
///
/// # Errors
/// [`Error::Length`] for bytes that end too early or too late for so many codes, [`Error::Stream`] for bytes that
/// [`encode`] never gives.
pub fn decode(bytes: &[u8], codes: &mut [i8]) -> Result<(), Error> {
    let n = codes.len();
    let length =
        |expected: usize| Error::Length { what: "entropy-coded bytes", n, expected, found: bytes.len() };
    let Some((header, words)) = bytes.split_at_checked(HEADER) else {
        return Err(length(HEADER));
    };
    let half = |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (low, zero) = (half(0), half(2));
    let high = SHARES.checked_sub(low + zero).ok_or(Error::Stream { what: "shares of codes" })?;
    let mut states = [0; STATES];
    for (at, state) in states.iter_mut().enumerate() {
        *state = half(4 + 4 * at) | half(6 + 4 * at) << 16;
        if *state < LOW {
            return Err(Error::Stream { what: "a state at the start" });
        }
    }
    let model = Model::new([low, zero, high]);
    let mut slots = vec![(Step { frequency: 0, offset: 0 }, 0u8); TOTAL as usize];
    for symbol in 0..SYMBOLS {
        let (from, to) = (model.starts[symbol] as usize, model.starts[symbol + 1] as usize);
        for (offset, slot) in slots[from..to].iter_mut().enumerate() {
            // A frequency of 2^14 fits.
            *slot = (Step { frequency: (to - from) as u16, offset: offset as u16 }, symbol as u8);
        }
    }
    let mut groups = [[0i8; 8]; SYMBOLS];
    for (symbol, group) in groups.iter_mut().enumerate() {
        for (code, digit) in group.iter_mut().zip(digits(symbol)) {
            *code = digit as i8 - 1;
        }
    }
    let mut words = words.chunks_exact(2);
    let mut short = false;
    let mut next = |state: &mut u32| -> u8 {
        let (step, symbol) = slots[(*state & (TOTAL - 1)) as usize];
        *state = u32::from(step.frequency) * (*state >> BITS) + u32::from(step.offset);
        if *state < LOW {
            match words.next() {
                Some(word) => *state = *state << 16 | u32::from(u16::from_le_bytes([word[0], word[1]])),
                None => short = true,
            }
        }
        symbol
    };
    // Four symbols a turn. Eight codes are written for five: the next group puts the other three right.
    let mut at = 0;
    while at + STATES * GROUP + 3 <= n {
        for state in &mut states {
            let group = &groups[usize::from(next(state))];
            codes[at..at + 8].copy_from_slice(group);
            at += GROUP;
        }
    }
    for (turn, rest) in codes[at..].chunks_mut(GROUP).enumerate() {
        let group = &groups[usize::from(next(&mut states[turn % STATES]))];
        rest.copy_from_slice(&group[..rest.len()]);
    }
    if short || !words.remainder().is_empty() || words.len() > 0 {
        return Err(length(bytes.len() - 2 * words.len()));
    }
    // Encoding began with these.
    if states.iter().any(|state| *state != LOW) {
        return Err(Error::Stream { what: "a state at the end" });
    }
    Ok(())
}
