//! The search among sixteen centroids or fewer, whose sums of a row are one or two registers.
//!
//! Rows and centroids are coded in twelve bits on every tier: a bound that leaves few rows in a hundred to the
//! definition, from codes that stay in the second cache where rows themselves would not. The rows that bounds
//! leave open are taken sixteen at a time; sums are made row by row, turned, and everything after that is
//! arithmetic on sixteen rows side by side. As in [`super::screen`], but with one error for all centroids.

use super::{
    Assigned, Searched, TASK,
    codes::Coding,
    screen::{MARGIN, NEAR, Rows, threshold},
};
#[cfg(target_arch = "x86_64")]
use crate::tier::Level;
use crate::{Tier, tile::COLUMNS};

/// Centroids at most.
pub(super) const MOST: usize = COLUMNS;

/// Rows that are looked at together.
const BLOCK: usize = 16;

/// Something about each row of a block.
type Lanes = [f32; BLOCK];

/// Sums of a block: by row and centroid, or by centroid and row.
type Sums = [[i32; BLOCK]; MOST];
const _: () = assert!(BLOCK == MOST);

/// What all tasks read.
pub(super) struct Few<'a> {
    of: Searched<'a>,
    /// The largest `T` and `C` of all centroids.
    rest: f32,
    norm: f32,
}

/// How far bounds have to move, by label.
pub(super) struct Moves {
    own: [f32; MOST],
    /// The longest way that another centroid can have come.
    other: [f32; MOST],
}

impl Moves {
    /// From how far each centroid has moved.
    pub(super) fn new(shifts: &[f32]) -> Moves {
        let (mut own, mut other) = ([0.0; MOST], [0.0; MOST]);
        own[..shifts.len()].copy_from_slice(shifts);
        for (label, other) in other.iter_mut().enumerate() {
            let others = own.iter().enumerate().filter(|(at, _)| *at != label);
            *other = others.map(|(_, shift)| *shift).fold(0.0, f32::max);
        }
        Moves { own, other }
    }
}

/// What is known of the rows of a block.
struct Block {
    /// `a`, `N`, `ρ` and `|x'|²`
    scale: Lanes,
    norm: Lanes,
    share: Lanes,
    square: Lanes,
}

/// What is found about them.
struct Found {
    /// What `S` is at most, by centroid.
    high: [Lanes; MOST],
    /// What that reaches for a candidate.
    threshold: Lanes,
    /// The largest and the second of `high`, and the first centroid that has the largest.
    top: [Lanes; 2],
    label: [u32; BLOCK],
    /// Bounds of distances, where the label is the only candidate: to it, and to all others.
    upper: Lanes,
    lower: Lanes,
}

/// The working memory of a task.
struct Desk {
    by_row: Sums,
    sums: Sums,
    found: Found,
}

impl Desk {
    fn new() -> Desk {
        let found = Found {
            high: [[0.0; BLOCK]; MOST],
            threshold: [0.0; BLOCK],
            top: [[0.0; BLOCK]; 2],
            label: [0; BLOCK],
            upper: [0.0; BLOCK],
            lower: [0.0; BLOCK],
        };
        Desk { by_row: [[0; BLOCK]; MOST], sums: [[0; BLOCK]; MOST], found }
    }
}

impl<'a> Few<'a> {
    /// The codes it takes, where there is such a search.
    pub(super) fn coding(dim: usize, k: usize) -> Option<Coding> {
        Coding::pairs(dim).filter(|_| k <= MOST)
    }

    pub(super) fn new(of: Searched<'a>) -> Few<'a> {
        let largest = |of: &[f32]| of.iter().copied().fold(0.0, f32::max);
        Few { of, rest: largest(&of.codes.rests), norm: largest(&of.codes.norms) }
    }

    /// Labels the rows of a task. Without `moves`, bounds are unknown.
    pub(super) fn task(&self, rows: &mut Rows<'_>, moves: Option<&Moves>) -> Assigned {
        let mut done = Assigned::default();
        let mut open = [0; TASK];
        let count = match moves {
            Some(moves) => keep(self.of.tier, self.of.error, rows, moves, &mut open),
            None => {
                for (at, open) in (0..).zip(&mut open) {
                    *open = at;
                }
                rows.labels.len()
            }
        };
        done.skipped = rows.labels.len() - count;
        let mut desk = Desk::new();
        for block in open[..count].chunks(BLOCK) {
            self.block(rows, block, &mut desk, &mut done);
        }
        done
    }

    /// Labels the rows at `block` of those of a task.
    fn block(&self, rows: &mut Rows<'_>, block: &[u32], desk: &mut Desk, done: &mut Assigned) {
        let mut of =
            Block { scale: [0.0; BLOCK], norm: [0.0; BLOCK], share: [0.0; BLOCK], square: [0.0; BLOCK] };
        let stride = self.of.rows.stride;
        let mut codes = [&self.of.rows.codes[..stride]; BLOCK];
        for (lane, at) in block.iter().enumerate() {
            let row = rows.first + *at as usize;
            codes[lane] = &self.of.rows.codes[row * stride..][..stride];
            let row = &self.of.rows.rows[row];
            (of.scale[lane], of.norm[lane]) = (row.scale, row.norm);
            (of.share[lane], of.square[lane]) = (row.share, row.square);
        }
        let Desk { by_row, sums, found } = desk;
        products(self.of.tier, &codes, &self.of.codes.panels.bytes()[..self.of.codes.panel], by_row, sums);
        find(self.of.tier, self, sums, &of, found);
        for (lane, at) in block.iter().enumerate() {
            let at = *at as usize;
            let (mut label, mut upper, mut lower) = (found.label[lane], found.upper[lane], found.lower[lane]);
            // NaN cannot be: of two infinities one would be the norm of a row.
            if found.top[1][lane] >= found.threshold[lane] {
                (label, upper, lower) = self.compare(rows.first + at, lane, &of, found, done);
            }
            done.moved += usize::from(rows.labels[at] != label);
            (rows.labels[at], rows.upper[at], rows.lower[at]) = (label, upper, lower);
        }
    }

    /// Compares the candidates of a row by the definition: label and bounds.
    #[cold]
    fn compare(
        &self,
        row: usize,
        lane: usize,
        of: &Block,
        found: &Found,
        done: &mut Assigned,
    ) -> (u32, f32, f32) {
        let (mut label, mut least) = (0, f32::INFINITY);
        for at in 0..self.of.centroids.len() / self.of.dim {
            if found.high[at][lane] >= found.threshold[lane] {
                let distance = self.of.distance(row, at);
                done.compared += 1;
                if distance < least {
                    (label, least) = (at as u32, distance);
                }
            }
        }
        let upper = (least + f32::MIN_POSITIVE).sqrt() * (1.0 + self.of.error);
        let other = if label == found.label[lane] { found.top[1][lane] } else { found.top[0][lane] };
        (label, upper, self.lower(of.square[lane], other))
    }

    /// The least distance to centroids whose `S` is at most `other`.
    #[inline(always)]
    fn lower(&self, square: f32, other: f32) -> f32 {
        let slack = square * (self.of.error + MARGIN);
        root(square - slack - 2.0 * (other + self.of.codes.gap) - other.abs() * MARGIN) * (1.0 - MARGIN)
    }
}

#[inline(always)]
fn root(square: f32) -> f32 {
    if square > 0.0 { square.sqrt() } else { 0.0 }
}

tiered! {
    /// Moves the bounds of the rows of a task on, and lists the rows that they leave open; returns how many.
    fn keep(error: f32, rows: &mut Rows<'_>, moves: &Moves, open: &mut [u32; TASK]) -> usize {
        let mut kept = [0; TASK];
        let bounds = rows.upper.iter_mut().zip(rows.lower.iter_mut());
        for (((upper, lower), label), kept) in bounds.zip(rows.labels.iter()).zip(&mut kept) {
            // No label at all is no number below sixteen either, but its upper bound is infinite.
            let label = *label as usize % MOST;
            *upper = (*upper + moves.own[label]) * (1.0 + MARGIN);
            *lower = (*lower - moves.other[label]) * (1.0 - MARGIN);
            // The definition is off by half of `error` at most, relative to squares.
            *kept = u32::from(*lower > NEAR) & u32::from(*upper * (1.0 + error) < *lower);
        }
        let mut count = 0;
        for (at, kept) in (0..rows.labels.len() as u32).zip(kept) {
            open[count] = at;
            count += 1 - kept as usize;
        }
        count
    }
}

tiered! {
    /// Bounds of `S`, and what they say, of the rows of a block from their sums by centroid and row.
    fn find(few: &Few<'_>, sums: &Sums, of: &Block, found: &mut Found) {
        let (mut top, mut label) = ([[f32::NEG_INFINITY; BLOCK]; 2], [0; BLOCK]);
        let mut error = [0.0; BLOCK];
        for r in 0..BLOCK {
            let e = of.share[r].mul_add(few.norm, few.rest) * (1.0 + MARGIN) + (few.norm + few.rest) * MARGIN;
            error[r] = of.norm[r] * e;
        }
        let columns = few.of.codes.scales.iter().zip(&few.of.codes.halves);
        for (c, (scale, half)) in columns.enumerate().take(few.of.centroids.len() / few.of.dim) {
            for r in 0..BLOCK {
                let high = (sums[c][r] as f32 * of.scale[r]).mul_add(*scale, *half) + error[r];
                found.high[c][r] = high;
                let more = high > top[0][r];
                let less = if more { top[0][r] } else { high };
                top[1][r] = if less > top[1][r] { less } else { top[1][r] };
                label[r] = if more { c as u32 } else { label[r] };
                top[0][r] = if more { high } else { top[0][r] };
            }
        }
        (found.top, found.label) = (top, label);
        for r in 0..BLOCK {
            let square = of.square[r];
            // The largest `S` less its error; rounded twice more, which `MARGIN` covers.
            let least = top[0][r] - 2.0 * error[r];
            found.threshold[r] = threshold(square, least, few.of.codes.gap, few.of.error, few.of.dim);
            let slack = square * (few.of.error + MARGIN);
            let most = square + slack - 2.0 * (least - few.of.codes.gap) + least.abs() * MARGIN;
            found.upper[r] = root(most) * (1.0 + MARGIN);
            found.lower[r] = few.lower(square, top[1][r]);
        }
    }
}

/// Dot products of the codes of rows and of a panel, by centroid and row; `by_row` may hold them the other way.
fn products(
    tier: Tier,
    rows: &[&[u8]; BLOCK],
    panel: &[u8],
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused))] by_row: &mut Sums,
    sums: &mut Sums,
) {
    let pairs = rows[0].len() / 4;
    assert!(rows.iter().all(|row| row.len() == 4 * pairs) && panel.len() >= 4 * MOST * pairs, "lengths");
    match tier.level() {
        // SAFETY: tiers of these levels exist only where the features were detected; the lengths are checked.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => unsafe {
            x86::avx512(rows, panel, pairs, by_row);
            x86::turn(by_row, sums);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => unsafe {
            x86::avx_vnni(rows, panel, pairs, by_row);
            x86::turn(by_row, sums);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe {
            x86::avx2(rows, panel, pairs, by_row);
            x86::turn(by_row, sums);
        },
        _ => scalar(rows, panel, sums),
    }
}

/// The truth, in lanes of centroids.
fn scalar(rows: &[&[u8]; BLOCK], panel: &[u8], sums: &mut Sums) {
    let code = |low: u8, high: u8| i32::from(i16::from_le_bytes([low, high]));
    for (r, row) in rows.iter().enumerate() {
        let mut lanes = [0; MOST];
        for (pair, panel) in row.as_chunks::<4>().0.iter().zip(panel.as_chunks::<{ 4 * MOST }>().0) {
            let (first, second) = (code(pair[0], pair[1]), code(pair[2], pair[3]));
            for (sum, c) in lanes.iter_mut().zip(panel.as_chunks::<4>().0) {
                *sum += first * code(c[0], c[1]) + second * code(c[2], c[3]);
            }
        }
        for (sums, sum) in sums.iter_mut().zip(lanes) {
            sums[r] = sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_dpwssd_avx_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
        _mm512_dpwssd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
        _mm512_storeu_si512,
    };

    use super::{BLOCK, MOST, Sums};

    /// Rows at once: their sums fill half of the registers.
    const WIDE: usize = 8;
    const NARROW: usize = 4;
    /// Lanes of a register of AVX2.
    const LANES: usize = 8;

    /// # Safety
    /// Needs AVX-512 with VNNI; `pairs` of codes in each row and of sixteen lanes in the panel.
    #[target_feature(enable = "avx2,avx512f,avx512vnni")]
    pub(super) unsafe fn avx512(rows: &[&[u8]; BLOCK], panel: &[u8], pairs: usize, by_row: &mut Sums) {
        for (rows, sums) in rows.as_chunks::<WIDE>().0.iter().zip(by_row.as_chunks_mut::<WIDE>().0) {
            let rows = rows.map(|row| row.as_ptr().cast::<i32>());
            let mut acc = [_mm512_setzero_si512(); WIDE];
            for pair in 0..pairs {
                // SAFETY: a pair is four bytes of a row and one register of the panel.
                unsafe {
                    let panel = _mm512_loadu_si512(panel.as_ptr().add(4 * MOST * pair).cast());
                    for r in 0..WIDE {
                        let row = _mm512_set1_epi32(rows[r].add(pair).read_unaligned());
                        acc[r] = _mm512_dpwssd_epi32(acc[r], panel, row);
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(acc) {
                // SAFETY: sixteen sums are one register.
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
            }
        }
    }

    /// # Safety
    /// Needs AVX2 and AVX-VNNI; `pairs` of codes in each row and of sixteen lanes in the panel.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn avx_vnni(rows: &[&[u8]; BLOCK], panel: &[u8], pairs: usize, by_row: &mut Sums) {
        // SAFETY: the caller's; in closures the instructions are those of this function.
        unsafe {
            narrow(rows, panel, pairs, by_row, |acc, a, b| _mm256_dpwssd_avx_epi32(acc, a, b));
        }
    }

    /// # Safety
    /// Needs AVX2; `pairs` of codes in each row and of sixteen lanes in the panel.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(rows: &[&[u8]; BLOCK], panel: &[u8], pairs: usize, by_row: &mut Sums) {
        // SAFETY: as above.
        unsafe {
            narrow(rows, panel, pairs, by_row, |acc, a, b| _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)));
        }
    }

    /// # Safety
    /// As [`avx2`], and inlined into a function with its instructions.
    #[inline(always)]
    unsafe fn narrow(
        rows: &[&[u8]; BLOCK],
        panel: &[u8],
        pairs: usize,
        by_row: &mut Sums,
        add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
    ) {
        for (rows, sums) in rows.as_chunks::<NARROW>().0.iter().zip(by_row.as_chunks_mut::<NARROW>().0) {
            let rows = rows.map(|row| row.as_ptr().cast::<i32>());
            // SAFETY: a pair is four bytes of a row and two registers of the panel; AVX2 is there.
            unsafe {
                let mut acc = [[_mm256_setzero_si256(); 2]; NARROW];
                for pair in 0..pairs {
                    let panel = panel.as_ptr().add(4 * MOST * pair).cast::<__m256i>();
                    let panel = [_mm256_loadu_si256(panel), _mm256_loadu_si256(panel.add(1))];
                    for r in 0..NARROW {
                        let row = _mm256_set1_epi32(rows[r].add(pair).read_unaligned());
                        acc[r] = [add(acc[r][0], panel[0], row), add(acc[r][1], panel[1], row)];
                    }
                }
                for (sums, acc) in sums.iter_mut().zip(acc) {
                    let to = sums.as_mut_ptr().cast::<__m256i>();
                    _mm256_storeu_si256(to, acc[0]);
                    _mm256_storeu_si256(to.add(1), acc[1]);
                }
            }
        }
    }

    /// Columns become rows, in squares of eight.
    ///
    /// # Safety
    /// Needs AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn turn(from: &Sums, to: &mut Sums) {
        for (row, column) in [(0, 0), (0, LANES), (LANES, 0), (LANES, LANES)] {
            // SAFETY: the squares are four in the sixteen by sixteen.
            unsafe {
                let line = |i: usize| _mm256_loadu_si256(from[row + i][column..].as_ptr().cast());
                let mut pairs = [_mm256_setzero_si256(); LANES];
                for i in 0..LANES / 2 {
                    let (a, b) = (line(2 * i), line(2 * i + 1));
                    (pairs[2 * i], pairs[2 * i + 1]) =
                        (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                }
                // Columns 0 and 4, 1 and 5, 2 and 6, 3 and 7, of four rows.
                let four = |half: usize| {
                    let [a, b, c, d] = [0, 1, 2, 3].map(|i| pairs[4 * half + i]);
                    [
                        _mm256_unpacklo_epi64(a, c),
                        _mm256_unpackhi_epi64(a, c),
                        _mm256_unpacklo_epi64(b, d),
                        _mm256_unpackhi_epi64(b, d),
                    ]
                };
                let (upper, lower) = (four(0), four(1));
                for i in 0..LANES / 2 {
                    let (a, b) = (upper[i], lower[i]);
                    let mut to = |at: usize| to[column + at][row..].as_mut_ptr().cast();
                    _mm256_storeu_si256(to(i), _mm256_permute2x128_si256::<0x20>(a, b));
                    _mm256_storeu_si256(to(i + 4), _mm256_permute2x128_si256::<0x31>(a, b));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tritrain_trit::rng::Stream;

    #[test]
    fn every_tier_equals_the_scalar_one() {
        for pairs in [0, 2, 4, 6, 64, 256] {
            let random = Stream::new(pairs as u64, 0, 0);
            let codes = |len: usize, stream: u64| -> Vec<u8> {
                let extreme = |i: u64| if random.bits(stream + i).is_multiple_of(3) { -2047 } else { 2047 };
                (0..len as u64).flat_map(|i| i16::to_le_bytes(extreme(i))).collect()
            };
            let (rows, panel) = (codes(2 * pairs * BLOCK, 0), codes(2 * pairs * MOST, 1 << 32));
            let rows: [&[u8]; BLOCK] = std::array::from_fn(|r| &rows[4 * pairs * r..][..4 * pairs]);
            let mut expected = [[1; BLOCK]; MOST];
            scalar(&rows, &panel, &mut expected);
            for tier in Tier::tested() {
                let (mut by_row, mut sums) = ([[2; BLOCK]; MOST], [[3; BLOCK]; MOST]);
                products(tier, &rows, &panel, &mut by_row, &mut sums);
                assert_eq!(sums, expected, "{} {pairs}", tier.name());
            }
        }
    }
}
