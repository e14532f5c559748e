//! The search of a task: bounds that settle labels, the integer product, and the candidates it leaves.

use super::{
    Assigned, NONE, Searched,
    codes::{CentroidCodes, Coding},
    extremes::{Columns, Extremes, extremes, reaching},
};
use crate::{
    Tier,
    outer::{Factors, Side, TILE, TILE_ROWS, tiles},
    strips::Rect,
    tier::Registers,
    tile::{Base, COLUMNS, Out},
};

/// Centroids that are compared at once.
pub(super) const WIDTH: usize = 512;
/// Rows of a block at most: whole panels of every form.
const BLOCK: usize = 32;
/// Floats of a line of the cache.
const LINE: usize = 16;
/// Bytes of a lane of a tile.
const LANE: usize = TILE / TILE_ROWS;

/// The rows of a task.
pub(super) struct Rows<'a> {
    /// The first of them among all.
    pub(super) first: usize,
    pub(super) labels: &'a mut [u32],
    pub(super) upper: &'a mut [f32],
    pub(super) lower: &'a mut [f32],
}

/// What all tasks read.
pub(super) struct Screen<'a> {
    of: Searched<'a>,
    coding: Coding,
    /// The centroids that `codes` are about, where that is not all.
    ids: Option<&'a [u32]>,
}

/// How centroids have moved since the bounds were true.
pub(super) struct Moves<'a> {
    /// How far each, at most.
    pub(super) shifts: &'a [f32],
    /// Whether to measure rows that bounds leave open to their own centroid.
    pub(super) tighten: bool,
    /// A screen of the centroids that moved most, and how far any other did, where there are so many others
    /// that it pays.
    pub(super) fast: Option<(Screen<'a>, f32)>,
}

/// The working memory of a task.
struct Desk<'a> {
    /// Panels of the rows of a block.
    left: &'a mut [u8],
    /// Their dot products with up to [`WIDTH`] centroids, then the largest that these may be.
    values: &'a mut [f32],
    /// `e` by centroid.
    errors: &'a mut [f32],
    registers: Registers,
}

/// What is known of the nearest centroid of a row, while centroids go by.
#[derive(Clone, Copy)]
struct Nearest {
    extremes: Extremes,
    /// Candidates so far.
    candidates: usize,
    /// The best of them, its upper bound, and its distance once there are two.
    label: u32,
    bound: f32,
    distance: f32,
    /// Where only some centroids go by: the label before, its upper bound if it is among them, and its
    /// distance once there is another candidate.
    own: u32,
    own_bound: f32,
    own_distance: f32,
}

impl Nearest {
    const NONE: Nearest = Nearest {
        extremes: Extremes::NONE,
        candidates: 0,
        label: NONE,
        bound: f32::NEG_INFINITY,
        distance: f32::INFINITY,
        own: NONE,
        own_bound: f32::NEG_INFINITY,
        own_distance: f32::INFINITY,
    };
}

/// Distances below which squares may have lost bits to underflow: no bound settles anything there.
pub(super) const NEAR: f32 = 1e-16;

/// A margin around computed bounds, for what few roundings do.
pub(super) const MARGIN: f32 = 8.0 * f32::EPSILON;

impl<'a> Screen<'a> {
    pub(super) fn new(of: Searched<'a>) -> Screen<'a> {
        Screen { of, coding: Coding::of(of.tier, of.dim), ids: None }
    }

    /// The same of some centroids alone, given in ascending order with their codes.
    pub(super) fn some(&self, ids: &'a [u32], codes: &'a CentroidCodes) -> Screen<'a> {
        Screen { of: Searched { codes, ..self.of }, ids: Some(ids), ..*self }
    }

    /// Rows of a block: whole panels.
    fn block(&self) -> usize {
        BLOCK / self.coding.form.left.width() * self.coding.form.left.width()
    }

    /// Bytes of the panels of a block.
    fn left_bytes(&self) -> usize {
        BLOCK.div_ceil(self.coding.form.left.width()) * self.coding.form.left.panel(self.of.dim)
    }

    /// Centroids that are compared at once.
    fn width(&self) -> usize {
        WIDTH.min(self.of.codes.scales.len())
    }

    /// Floats that a task needs.
    pub(super) fn scratch(&self) -> usize {
        LINE + self.left_bytes() / size_of::<f32>() + (BLOCK + 1) * self.width()
    }

    /// Labels the rows of a task. Without `moves`, bounds are unknown.
    pub(super) fn task(
        &self,
        tier: Tier,
        rows: &mut Rows<'_>,
        moves: Option<&Moves<'_>>,
        scratch: &mut [f32],
    ) -> Assigned {
        let mut done = Assigned::default();
        let (mut open, mut narrow) = ([0; super::TASK], [0; super::TASK]);
        let (count, narrowed) = match moves {
            Some(moves) => keep(tier, self, rows, moves, &mut open, &mut narrow, &mut done),
            None => {
                for (at, open) in open.iter_mut().enumerate() {
                    *open = at;
                }
                (rows.labels.len(), 0)
            }
        };
        if count + narrowed == 0 {
            return done;
        }
        let start = scratch.as_ptr().align_offset(size_of::<f32>() * LINE).min(LINE);
        let (left, scratch) = scratch[start..].split_at_mut(self.left_bytes() / size_of::<f32>());
        let (values, scratch) = scratch.split_at_mut(BLOCK * self.width());
        let mut desk = Desk {
            left: bytemuck::cast_slice_mut(left),
            values,
            errors: &mut scratch[..self.width()],
            registers: Registers::of(tier),
        };
        for block in open[..count].chunks(self.block()) {
            self.block_of(tier, rows, block, &mut desk, &mut done);
        }
        if let Some((fast, _)) = moves.and_then(|moves| moves.fast.as_ref()) {
            for block in narrow[..narrowed].chunks(self.block()) {
                fast.block_of(tier, rows, block, &mut desk, &mut done);
            }
        }
        done
    }

    /// Labels the rows at `block` of those of a task.
    fn block_of(
        &self,
        tier: Tier,
        rows: &mut Rows<'_>,
        block: &[usize],
        desk: &mut Desk<'_>,
        done: &mut Assigned,
    ) {
        let (mut offsets, mut scales) = ([0; BLOCK], [0.0; BLOCK]);
        let mut share = 0.0f32;
        for (lane, at) in block.iter().enumerate() {
            let row = rows.first + at;
            let codes = &self.of.rows.codes[row * self.of.rows.stride..][..self.of.rows.stride];
            lay_out(self.coding.form.left, self.coding.form.left.panel(self.of.dim), lane, codes, desk.left);
            let row = self.of.rows.rows[row];
            offsets[lane] = self.coding.form.offset * row.sum;
            scales[lane] = row.scale;
            share = share.max(row.share);
        }
        let mut nearest = [Nearest::NONE; BLOCK];
        if self.ids.is_some() {
            for (nearest, at) in nearest.iter_mut().zip(block) {
                *nearest = self.own(rows, *at);
            }
        }
        let padded = self.of.codes.scales.len();
        for first in (0..padded).step_by(WIDTH) {
            let width = WIDTH.min(padded - first);
            let values = &mut desk.values[..block.len() * width];
            let mut out = Rect::of(values, width);
            for panel in (0..width / COLUMNS).step_by(self.coding.form.panels) {
                let columns = panel * COLUMNS..(panel + self.coding.form.panels) * COLUMNS;
                let from = first + columns.start;
                let factors = Factors {
                    left: desk.left,
                    left_panel: self.coding.form.left.panel(self.of.dim),
                    right: &self.of.codes.panels.bytes()[from / COLUMNS * self.of.codes.panel..],
                    right_panel: self.of.codes.panel,
                    inner: self.of.dim,
                };
                let mut out = Out {
                    offsets: &offsets[..block.len()],
                    factors: &scales[..block.len()],
                    column_factors: &[],
                    base: Base::Nothing,
                    y: out.part(0..block.len(), columns),
                };
                tiles(tier, &desk.registers, self.coding.kind, factors, &mut out);
            }
            errors(
                tier,
                &self.of.codes.rests[first..][..width],
                &self.of.codes.norms[first..][..width],
                share,
                &mut desk.errors[..width],
            );
            let columns = Columns {
                scales: &self.of.codes.scales[first..][..width],
                halves: &self.of.codes.halves[first..][..width],
                errors: &desk.errors[..width],
            };
            choose(tier, self, rows.first, block, first, values, columns, &mut nearest, done);
        }
        settle(tier, self, rows, block, &nearest, done);
    }

    /// A row that only some centroids can take from its own.
    fn own(&self, rows: &Rows<'_>, at: usize) -> Nearest {
        let (label, upper) = (rows.labels[at], rows.upper[at]);
        let square = self.of.rows.rows[rows.first + at].square;
        // |x - c|² = |x - m|² - 2·S is at most the square of the upper bound.
        let least = 0.5 * (square * (1.0 - self.of.error - MARGIN) - upper * upper * (1.0 + MARGIN));
        let extremes = Extremes { least, ..Extremes::NONE };
        Nearest { extremes, candidates: 1, label, own: label, ..Nearest::NONE }
    }
}

/// Puts the codes of a row into its lane of the panels.
fn lay_out(side: Side, panel: usize, lane: usize, codes: &[u8], to: &mut [u8]) {
    let to = &mut to[lane / side.width() * panel..][..panel];
    let lane = lane % side.width();
    match side {
        Side::Rows { .. } => {
            for (tile, codes) in to.as_chunks_mut::<TILE>().0.iter_mut().zip(codes.as_chunks::<LANE>().0) {
                tile[lane * LANE..][..LANE].copy_from_slice(codes);
            }
        }
        _ => {
            let words = to.as_chunks_mut::<4>().0[lane..].iter_mut().step_by(side.width());
            for (to, codes) in words.zip(codes.as_chunks::<4>().0) {
                *to = *codes;
            }
        }
    }
}

tiered! {
    /// Moves the bounds of the rows of a task on, and lists the rows that they leave open: to all centroids, or
    /// only to those that moved most. Returns the lengths of the lists.
    fn keep(
        screen: &Screen<'_>,
        rows: &mut Rows<'_>,
        moves: &Moves<'_>,
        open: &mut [usize],
        narrow: &mut [usize],
        done: &mut Assigned,
    ) -> (usize, usize) {
        // The longest way that another centroid can have come.
        let (mut first, mut second) = ((0.0, NONE), 0.0f32);
        for (label, shift) in moves.shifts.iter().enumerate() {
            if *shift > first.0 {
                (first, second) = ((*shift, label as u32), first.0);
            } else if *shift > second {
                second = *shift;
            }
        }
        let (mut count, mut narrowed) = (0, 0);
        for at in 0..rows.labels.len() {
            let label = rows.labels[at];
            if label == NONE {
                open[count] = at;
                count += 1;
                continue;
            }
            let by = if label == first.1 { second } else { first.0 };
            let mut upper = (rows.upper[at] + moves.shifts[label as usize]) * (1.0 + MARGIN);
            let lower_after = |by: f32| (rows.lower[at] - by) * (1.0 - MARGIN);
            let lower = lower_after(by);
            // The definition is off by half of `error` at most, relative to squares.
            let settled = |upper: f32, lower: f32| lower > NEAR && upper * (1.0 + screen.of.error) < lower;
            let mut kept = settled(upper, lower);
            if moves.tighten && !kept {
                let distance = screen.of.distance(rows.first + at, label as usize);
                done.compared += 1;
                upper = (distance + f32::MIN_POSITIVE).sqrt() * (1.0 + screen.of.error);
                kept = settled(upper, lower);
            }
            let slow = moves.fast.as_ref().map(|(_, by)| lower_after(*by)).filter(|lower| settled(upper, *lower));
            rows.upper[at] = upper;
            if kept {
                rows.lower[at] = lower;
                done.skipped += 1;
            } else if let Some(lower) = slow {
                rows.lower[at] = lower;
                narrow[narrowed] = at;
                narrowed += 1;
            } else {
                open[count] = at;
                count += 1;
            }
        }
        done.narrowed += narrowed;
        (count, narrowed)
    }
}

tiered! {
    /// `e` of some centroids, for rows with `R ≤ share · N`.
    fn errors(rests: &[f32], norms: &[f32], share: f32, errors: &mut [f32]) {
        for ((e, t), c) in errors.iter_mut().zip(rests).zip(norms) {
            *e = share.mul_add(*c, *t) * (1.0 + MARGIN) + (c + t) * MARGIN;
        }
    }
}

tiered! {
    /// Looks for candidates among the centroids from `first` on, in ascending order.
    fn choose(
        screen: &Screen<'_>,
        first_row: usize,
        block: &[usize],
        first: usize,
        values: &mut [f32],
        columns: Columns<'_>,
        nearest: &mut [Nearest; BLOCK],
        done: &mut Assigned,
    ) {
        let width = columns.errors.len();
        for ((values, at_row), nearest) in values.chunks_exact_mut(width).zip(block).zip(nearest) {
            let row = screen.of.rows.rows[first_row + at_row];
            nearest.extremes = nearest.extremes.and(extremes(screen.of.tier, values, columns, row.norm));
            let least = nearest.extremes.least;
            let threshold = threshold(row.square, least, screen.of.codes.gap, screen.of.error, screen.of.dim);
            let bits = reaching(screen.of.tier, values, threshold);
            for (word, bits) in bits[..width.div_ceil(64)].iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    let at = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    let label = screen.ids.map_or((first + at) as u32, |ids| ids[at]);
                    candidate(screen, first_row + at_row, label, values[at], nearest, done);
                }
            }
        }
    }
}

/// What the upper bound of `S` of the nearest centroid reaches, where that of one is `least` or more.
///
/// By the definition a centroid can be nearer than one at the square `D` only where its own is at most
/// `D·(1 + 2·error)`, and `S` is half of that less. Squares below 2^-126 are off by 2^-148 for each term.
#[inline(always)]
pub(super) fn threshold(square: f32, least: f32, gap: f32, error: f32, dim: usize) -> f32 {
    let farthest = (square * (1.0 + error) - 2.0 * (least - gap)).max(0.0);
    let tiny = dim as f32 * f32::from_bits(8);
    least - 2.0 * gap - farthest * error - (square + least.abs()) * MARGIN - tiny
}

/// Takes a centroid that may be nearest.
#[inline(always)]
fn candidate(
    screen: &Screen<'_>,
    row: usize,
    label: u32,
    bound: f32,
    nearest: &mut Nearest,
    done: &mut Assigned,
) {
    if label == nearest.own {
        // It was the first candidate.
        nearest.own_bound = bound;
        return;
    }
    nearest.candidates += 1;
    if nearest.candidates == 1 {
        (nearest.label, nearest.bound) = (label, bound);
        return;
    }
    if nearest.candidates == 2 {
        nearest.distance = screen.of.distance(row, nearest.label as usize);
        nearest.own_distance = nearest.distance;
        done.compared += 1;
    }
    let distance = screen.of.distance(row, label as usize);
    done.compared += 1;
    let first = distance == nearest.distance && label < nearest.label;
    if distance < nearest.distance || first {
        (nearest.label, nearest.bound, nearest.distance) = (label, bound, distance);
    }
}

tiered! {
    /// Writes labels and bounds of the rows of a block.
    fn settle(
        screen: &Screen<'_>,
        rows: &mut Rows<'_>,
        block: &[usize],
        nearest: &[Nearest; BLOCK],
        done: &mut Assigned,
    ) {
        let gap = screen.of.codes.gap;
        for (at, nearest) in block.iter().zip(nearest) {
            done.moved += usize::from(rows.labels[*at] != nearest.label);
            rows.labels[*at] = nearest.label;
            let square = screen.of.rows.rows[rows.first + at].square;
            let slack = square * (screen.of.error + MARGIN);
            let narrowed = nearest.own != NONE;
            let stays = nearest.label == nearest.own;
            let bound = if stays { nearest.own_bound } else { nearest.bound };
            let top = nearest.extremes.top;
            let other = if bound == top[0] { top[1] } else { top[0] };
            let root = |square: f32| if square > 0.0 { square.sqrt() } else { 0.0 };
            if nearest.candidates > 1 {
                rows.upper[*at] = root(nearest.distance + f32::MIN_POSITIVE) * (1.0 + screen.of.error);
            } else if !narrowed {
                let least = nearest.extremes.least;
                let square = square + slack - 2.0 * (least - gap) + least.abs() * MARGIN;
                rows.upper[*at] = root(square) * (1.0 + MARGIN);
            }
            let square = square - slack - 2.0 * (other + gap) - other.abs() * MARGIN;
            let mut lower = root(square) * (1.0 - MARGIN);
            if narrowed {
                // The others that did not go by, and the centroid that the row leaves.
                lower = if rows.lower[*at] < lower { rows.lower[*at] } else { lower };
                let left = root(nearest.own_distance) * (1.0 - screen.of.error);
                lower = if !stays && left < lower { left } else { lower };
            }
            rows.lower[*at] = lower;
        }
    }
}
