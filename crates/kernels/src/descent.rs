//! The last part of an optimizer's step, row by row: momentum, the step, rounding into the format of the
//! weights, and the bound on what was applied.
//!
//! A row is read, moved, rounded and stored while it is in the first cache; nothing of it exists elsewhere in
//! more bits. Rounding is stochastic (to one of the two neighbours, by chance, so that the mean is right), with
//! random bits that are a function of seed, tensor, step and place: a row can be rounded again, and any number
//! of threads rounds alike.
//!
//! The trust region: for each row `‖Δw‖₂ ≤ radius · RMS · √cols`, where RMS is that of the matrix before the
//! step and Δw what was applied, after rounding. So for any set of rows `‖ΔW‖₂` is at most the radius times the
//! norm that those rows have when they weigh as the mean of their matrix does: for matrices, for clusters of
//! rows that share a radius, and for all of them. A row that goes beyond it takes a shorter step with the same
//! random bits, of which fewer move it to another level.

use tritrain_trit::{
    format::{Format, step},
    rng::Stream,
    ternary::scale_from_total,
};

use crate::{
    Context, Tier, elementwise, lanes, noise,
    packed::{EXACT, Packed, Sums, digits_len, least_level, load, row_sums, store_bf16, store_levels},
    strips::{Parts, Strips},
};

/// How the rows of a cluster move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Learning rate, a share of the root mean square of the weights of the matrix.
    pub rate: f32,
    /// Radius of the trust region, a share of the same; infinite for none.
    pub radius: f32,
}

/// How a matrix moves.
#[derive(Clone, Copy, Debug)]
pub struct Descent<'a> {
    /// By cluster of rows.
    pub paces: &'a [Pace],
    /// The cluster of each row; empty where all are of the first.
    pub clusters: &'a [u8],
    /// Decoupled weight decay, per unit of learning rate before it is made relative.
    pub decay: f32,
    /// Momentum on the direction, where there is room for it.
    pub momentum: f32,
    /// Random bits of the weights, and of the momentum.
    pub noise: (Stream, Stream),
}

/// Numbers of a [`RowReport`].
pub const REPORT: usize = 7;

/// What [`descend`] says of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowReport {
    /// `‖Δw‖²`, as applied.
    pub applied: f32,
    /// `‖u‖²` of the direction, momentum included.
    pub direction: f32,
    /// `‖w‖²` before.
    pub weights: f32,
    /// Codes that changed, by the scale before.
    pub flips: f32,
    /// Codes that are zero afterwards.
    pub zeros: f32,
    /// One where the bound made the step shorter.
    pub bounded: f32,
    /// Digits of a number; none where weights are stored otherwise.
    pub digits: f32,
}

impl RowReport {
    /// From its numbers.
    pub fn read([applied, direction, weights, flips, zeros, bounded, digits]: [f32; REPORT]) -> RowReport {
        RowReport { applied, direction, weights, flips, zeros, bounded, digits }
    }

    fn numbers(self) -> [f32; REPORT] {
        let RowReport { applied, direction, weights, flips, zeros, bounded, digits } = self;
        [applied, direction, weights, flips, zeros, bounded, digits]
    }
}

/// Working memory of [`descend`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    sums: Vec<[f64; 2]>,
}

/// Weights to be moved.
#[derive(Debug)]
pub enum Weights<'a> {
    /// f32, `[rows][cols]`.
    Floats(&'a mut [f32]),
    /// Fewer bits.
    Packed(&'a mut Packed),
}

/// Standard deviations that gradients and the factored direction's momentum reach to in digits, by rows.
pub(crate) const MOMENT_RANGE: f64 = 2.5;
/// Shorter steps that are tried before a row stays where it is.
const TRIES: usize = 16;

/// Root mean square that weights are taken to have at least, so that zeros can leave zero (Adafactor,
/// 1804.04235, ε₂ of section 8).
pub const SMALLEST: f32 = 1e-3;

/// Moves weights against a direction, `[rows][cols]`, whose momentum is kept in `moment` where there is room.
/// Writes a [`RowReport`] for every row, `reports` `[rows][REPORT]`.
///
/// # Panics
/// The sizes do not fit together; a cluster has no pace.
pub fn descend(
    cx: &Context,
    mut weights: Weights<'_>,
    direction: &[f32],
    moment: Option<&mut Packed>,
    with: &Descent<'_>,
    reports: &mut [f32],
    scratch: &mut Scratch,
) {
    let rows = reports.len() / REPORT;
    let cols = direction.len() / rows.max(1);
    assert_eq!(direction.len(), rows * cols, "one report for every row");
    assert!(with.clusters.is_empty() || with.clusters.len() == rows, "one cluster for every row");
    assert!(moment.as_ref().is_none_or(|m| m.shape() == [rows, cols]), "momentum and direction");
    let Descent { paces, clusters, noise, .. } = *with;
    let (places, bytes, steps, sums) = match weights {
        Weights::Floats(ref mut w) => {
            assert_eq!(w.len(), direction.len(), "weights and direction");
            let [absolute, squares] = elementwise::sums_abs_squares(cx, w);
            (None, bytemuck::cast_slice_mut::<f32, u8>(w), &[][..], Sums { absolute, squares })
        }
        Weights::Packed(ref mut w) => {
            assert_eq!(w.shape(), [rows, cols], "weights and direction");
            let sums = w.sums();
            let (bytes, steps, places) = w.placed_parts();
            (Some(places), bytes, &*steps, sums)
        }
    };
    if direction.is_empty() {
        return;
    }
    let rms = (sums.squares / direction.len() as f64).sqrt().max(f64::from(SMALLEST));
    let scale = scale_from_total(sums.absolute, direction.len()).unwrap_or(f32::NAN);
    scratch.sums.resize(rows, [0.0; 2]);
    {
        let all = bytes.len();
        let (bytes, reports) = (Strips::new(bytes, all), Parts::new(reports, REPORT));
        let sums = Parts::new(&mut scratch.sums, 1);
        let moment = moment.map(|m| {
            let (format, len) = (m.format(), m.row_len());
            let (bytes, steps) = m.parts();
            let by_row = steps.len().div_ceil(rows);
            (format, Parts::new(bytes, len), Parts::new(steps, by_row))
        });
        let desk = Desk::len(cols);
        cx.each(rows, desk, |row, desk| {
            let format = places.map(|places| places.format(row));
            let own = places.map_or(row * all / rows..(row + 1) * all / rows, |places| places.range(row));
            // SAFETY: every part goes to one task, and rows do not overlap.
            let (bytes, report, sums) =
                unsafe { (bytes.slice(0, own.start, own.len()), reports.get(row), sums.get(row)) };
            let mut desk = Desk::new(desk, cols);
            let direction = &direction[row * cols..][..cols];
            let blocks = first_block(row, cols);
            let pace = paces[clusters.get(row).map_or(0, |cluster| usize::from(*cluster))];
            let unit = places.map_or(1.0, |places| places.step(steps, row));
            let budget = (f64::from(pace.radius) * rms).powi(2) * cols as f64;
            let half = scale * 0.5;
            let turn = match format.and_then(Format::largest) {
                // Levels from `least` on are codes: between it and the one below there is none.
                Some(largest) => f32::from(least_level(scale, unit, largest)) - 0.5,
                None if half > 0.0 => half,
                None => f32::INFINITY,
            };
            match &moment {
                Some((format, bytes, steps)) => {
                    // SAFETY: as above.
                    let (bytes, step) = unsafe { (bytes.get(row), steps.get(row)) };
                    noise::fill(cx.tier(), &noise.1, blocks, desk.noise);
                    average(cx.tier(), *format, bytes, step, direction, with.momentum, &mut desk);
                }
                None if format.is_none() && budget.is_infinite() => {
                    let square = square_sum(cx.tier(), direction);
                    // What is no number goes the long way, which moves nothing.
                    if square.is_finite() {
                        let w = bytemuck::cast_slice_mut(bytes);
                        let (keep, rate) = (1.0 - pace.rate * with.decay, pace.rate * rms as f32);
                        let row = unbounded(cx.tier(), w, direction, keep, rate, turn);
                        report.copy_from_slice(&RowReport { direction: square, ..row }.numbers());
                        return;
                    }
                    desk.direction.copy_from_slice(direction);
                }
                None => desk.direction.copy_from_slice(direction),
            }
            if format.is_some() {
                noise::fill(cx.tier(), &noise.0, blocks, desk.noise);
            }
            let row = Row { format, unit, rate: pace.rate * rms as f32, decay: pace.rate * with.decay };
            let (row, by_row) = row.descend(cx.tier(), bytes, &mut desk, budget, turn);
            report.copy_from_slice(&row.numbers());
            sums[0] = by_row;
        });
    }
    if let Weights::Packed(w) = weights {
        w.total(cx, &scratch.sums);
    }
}

/// Rounds a matrix by chance, rows with a step each, so that the mean is right; levels reach to 2.5 standard
/// deviations of the row, in int8 to its largest number.
///
/// # Panics
/// The sizes do not fit together.
pub fn round(cx: &Context, from: &[f32], noise: &Stream, to: &mut Packed) {
    let [rows, cols] = to.shape();
    assert_eq!(from.len(), rows * cols);
    if from.is_empty() {
        return;
    }
    let (format, len) = (to.format(), to.row_len());
    let (bytes, steps) = to.parts();
    let by_row = steps.len().div_ceil(rows);
    let (bytes, steps) = (Parts::new(bytes, len), Parts::new(steps, by_row));
    cx.each(rows, Desk::len(cols), |row, desk| {
        // SAFETY: every part goes to one task.
        let (bytes, step) = unsafe { (bytes.get(row), steps.get(row)) };
        let mut desk = Desk::new(desk, cols);
        noise::fill(cx.tier(), noise, first_block(row, cols), desk.noise);
        average(cx.tier(), format, bytes, step, &from[row * cols..][..cols], 0.0, &mut desk);
    });
}

/// Adds a matrix, rounded by chance to a step up, none, or a step down, to counts of these steps: to `to`, digits
/// whose rows have a step each. The `first` of several makes counts zero and a step 2.5 standard deviations of its
/// row; what is beyond a step counts as one. Counts of as many matrices as digits have levels above zero are exact.
///
/// # Panics
/// The sizes do not fit together, or `to` has no levels.
pub fn accumulate(cx: &Context, from: &[f32], noise: &Stream, first: bool, to: &mut Packed) {
    let [rows, cols] = to.shape();
    assert_eq!(from.len(), rows * cols);
    assert!(to.format().largest().is_some() && to.steps().len() == rows, "counts by rows");
    if from.is_empty() {
        return;
    }
    let (format, len) = (to.format(), to.row_len());
    let (bytes, steps) = to.parts();
    let (bytes, steps) = (Parts::new(bytes, len), Parts::new(steps, 1));
    cx.each(rows, Desk::len(cols), |row, desk| {
        // SAFETY: every part goes to one task.
        let (bytes, unit) = unsafe { (bytes.get(row), steps.get(row)) };
        let (tier, desk, from) = (cx.tier(), Desk::new(desk, cols), &from[row * cols..][..cols]);
        noise::fill(tier, noise, first_block(row, cols), desk.noise);
        // A row that was zero so far has no step yet.
        let begins = first || unit[0] == 0.0;
        if begins {
            let deviation = (f64::from(square_sum(tier, from)) / cols as f64).sqrt();
            unit[0] = step((MOMENT_RANGE * deviation) as f32);
        }
        let inverse = if unit[0] > 0.0 { 1.0 / unit[0] } else { 0.0 };
        desk.old.fill(0.0);
        to_levels(tier, desk.old, from, 1.0, -inverse, desk.noise, 1.0, desk.new);
        if !begins {
            load(tier, format, bytes, desk.old, desk.levels);
            desk.new.iter_mut().zip(&*desk.old).for_each(|(count, before)| *count += before);
        }
        store_levels(tier, desk.new, format, bytes, desk.levels, desk.digits);
    });
}

/// The first block of random bits of a row.
pub(crate) fn first_block(row: usize, cols: usize) -> u64 {
    (row * cols.div_ceil(RUN) * noise::SIDE) as u64
}

/// Random halves of one run of blocks.
const RUN: usize = 8 * noise::SIDE;

/// What one row is worked on with.
pub(crate) struct Desk<'a> {
    pub(crate) old: &'a mut [f32],
    new: &'a mut [f32],
    pub(crate) direction: &'a mut [f32],
    pub(crate) levels: &'a mut [i8],
    digits: &'a mut [u8],
    pub(crate) noise: &'a mut [u16],
}

impl<'a> Desk<'a> {
    /// Floats of a desk for rows of `cols`.
    pub(crate) fn len(cols: usize) -> usize {
        3 * cols + cols.div_ceil(4) + digits_len(cols).div_ceil(4) + cols.next_multiple_of(RUN) / 2
    }

    pub(crate) fn new(floats: &'a mut [f32], cols: usize) -> Desk<'a> {
        let (old, rest) = floats.split_at_mut(cols);
        let (new, rest) = rest.split_at_mut(cols);
        let (direction, rest) = rest.split_at_mut(cols);
        let (levels, rest) = rest.split_at_mut(cols.div_ceil(4));
        let (digits, noise) = rest.split_at_mut(digits_len(cols).div_ceil(4));
        let levels = &mut bytemuck::cast_slice_mut::<f32, i8>(levels)[..cols];
        let digits = bytemuck::cast_slice_mut(digits);
        Desk { old, new, direction, levels, digits, noise: bytemuck::cast_slice_mut(noise) }
    }
}

/// `m = momentum · m + (1 - momentum) · u`, to `desk.direction`, and stored rounded.
fn average(
    tier: Tier,
    format: Format,
    bytes: &mut [u8],
    unit: &mut [f32],
    direction: &[f32],
    momentum: f32,
    desk: &mut Desk<'_>,
) {
    if momentum == 0.0 {
        // What was stored has no weight, not even where it is no number.
        desk.direction.copy_from_slice(direction);
    } else {
        load(tier, format, bytes, desk.old, desk.levels);
        let before = unit.first().copied().unwrap_or(1.0);
        mix(tier, desk.old, before * momentum, direction, 1.0 - momentum, desk.direction);
    }
    keep(tier, format, MOMENT_RANGE, bytes, unit, desk);
}

/// Stores `desk.direction`, rounded by chance; digits reach to `range` standard deviations.
pub(crate) fn keep(
    tier: Tier,
    format: Format,
    range: f64,
    bytes: &mut [u8],
    unit: &mut [f32],
    desk: &mut Desk<'_>,
) {
    let Some(largest) = format.largest() else {
        halve(tier, desk.direction, desk.noise, desk.new);
        return store_bf16(tier, desk.new, bytes);
    };
    let deviation = (f64::from(square_sum(tier, desk.direction)) / desk.direction.len() as f64).sqrt();
    // Eight bits reach to the largest number, few digits no farther than most of them.
    let reach = match format {
        Format::Int8 => f64::from(lanes_max_abs(tier, desk.direction)),
        _ => range * deviation,
    };
    let after = step((reach / f64::from(largest)) as f32);
    let inverse = if after > 0.0 { 1.0 / after } else { 0.0 };
    desk.old.fill(0.0);
    let (high, noise) = (f32::from(largest), &*desk.noise);
    to_levels(tier, desk.old, desk.direction, 1.0, -inverse, noise, high, desk.new);
    unit[0] = after;
    store_levels(tier, desk.new, format, bytes, desk.levels, desk.digits);
}

/// How a row is stored, and how it moves.
struct Row {
    /// None is f32.
    format: Option<Format>,
    /// What a level is worth.
    unit: f32,
    rate: f32,
    decay: f32,
}

impl Row {
    /// Moves a row against `desk.direction`, no farther than the root of `budget`. `turn` is where codes change.
    fn descend(
        &self,
        tier: Tier,
        bytes: &mut [u8],
        desk: &mut Desk<'_>,
        budget: f64,
        turn: f32,
    ) -> (RowReport, [f64; 2]) {
        match self.format {
            None => desk.old.copy_from_slice(bytemuck::cast_slice(bytes)),
            Some(format) => load(tier, format, bytes, desk.old, desk.levels),
        }
        let levels = self.format.is_some_and(|format| format.largest().is_some());
        let scale = f64::from(self.unit).powi(2);
        let (mut share, mut bounded, mut applied) = (1.0f32, false, 0.0);
        for attempt in 0.. {
            let (keep, rate) = (1.0 - self.decay * share, self.rate * share);
            let (old, u, noise, new) = (&*desk.old, &*desk.direction, &*desk.noise, &mut *desk.new);
            match self.format.map(|format| format.largest()) {
                None => advance(tier, old, u, keep, rate, new),
                Some(None) => {
                    advance(tier, old, u, keep, rate, new);
                    halve_in_place(tier, new, noise);
                }
                Some(Some(largest)) => {
                    let shift = if self.unit > 0.0 { rate / self.unit } else { 0.0 };
                    to_levels(tier, old, u, keep, shift, noise, f32::from(largest), new);
                }
            }
            applied = square_distance(tier, old, new, levels) * scale;
            // Also false where the direction is no number.
            if applied <= budget {
                break;
            }
            bounded = true;
            if attempt == TRIES {
                desk.new.copy_from_slice(desk.old);
                applied = 0.0;
                break;
            }
            // Steps of levels are mostly of one: their number, not their length, goes with the share.
            let excess = budget / applied;
            share *= if self.format.is_some() { excess as f32 } else { excess.sqrt() as f32 }.min(1.0) * 0.99;
            if !share.is_finite() {
                share = 0.0;
            }
        }
        let (flips, zeros) = codes(tier, desk.old, desk.new, turn);
        match self.format {
            None => bytes.copy_from_slice(bytemuck::cast_slice(desk.new)),
            Some(Format::Bf16) => store_bf16(tier, desk.new, bytes),
            Some(format) => store_levels(tier, desk.new, format, bytes, desk.levels, desk.digits),
        }
        let report = RowReport {
            applied: applied as f32,
            direction: square_sum(tier, desk.direction),
            weights: (f64::from(square_sum(tier, desk.old)) * scale) as f32,
            flips: flips as f32,
            zeros: zeros as f32,
            bounded: f32::from(u8::from(bounded)),
            digits: if let Some(Format::Trits(digits)) = self.format { f32::from(digits) } else { 0.0 },
        };
        let sums = if self.format.is_some() { row_sums(tier, desk.new) } else { [0.0; 2] };
        (report, sums)
    }
}

tiered! {
    fn square_sum(x: &[f32]) -> f32 {
        lanes::dot(x, x)
    }
}

tiered! {
    pub(crate) fn mix(m: &[f32], a: f32, u: &[f32], b: f32, to: &mut [f32]) {
        for ((to, m), u) in to.iter_mut().zip(m).zip(u) {
            *to = a * m + b * u;
        }
    }
}

tiered! {
    fn lanes_max_abs(x: &[f32]) -> f32 {
        lanes::max_abs(x)
    }
}

tiered! {
    fn advance(w: &[f32], u: &[f32], keep: f32, rate: f32, to: &mut [f32]) {
        for ((to, w), u) in to.iter_mut().zip(w).zip(u) {
            *to = keep * w - rate * u;
        }
    }
}

tiered! {
    /// A step of an f32 row that nothing bounds, in one pass; its report lacks the direction.
    fn unbounded(w: &mut [f32], u: &[f32], keep: f32, rate: f32, turn: f32) -> RowReport {
        const LANES: usize = 2 * lanes::LANES;
        let code = |w: f32| i32::from(w > turn) - i32::from(w < -turn);
        let (mut applied, mut weights) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (mut flips, mut zeros) = ([0i32; LANES], [0i32; LANES]);
        let mut step = |l: usize, w: &mut f32, u: f32| {
            let (old, new) = (*w, keep * *w - rate * u);
            *w = new;
            let (difference, code_of_new) = (new - old, code(new));
            applied[l] = difference.mul_add(difference, applied[l]);
            weights[l] = old.mul_add(old, weights[l]);
            flips[l] += i32::from(code(old) != code_of_new);
            zeros[l] += i32::from(code_of_new == 0);
        };
        let ((w, w_tail), (u, u_tail)) = (w.as_chunks_mut::<LANES>(), u.as_chunks::<LANES>());
        for (w, u) in w.iter_mut().zip(u) {
            for l in 0..LANES {
                step(l, &mut w[l], u[l]);
            }
        }
        for (l, (w, u)) in w_tail.iter_mut().zip(u_tail).enumerate() {
            step(l, w, *u);
        }
        RowReport {
            applied: applied.iter().sum(),
            direction: 0.0,
            weights: weights.iter().sum(),
            flips: flips.iter().sum::<i32>() as f32,
            zeros: zeros.iter().sum::<i32>() as f32,
            bounded: 0.0,
            digits: 0.0,
        }
    }
}

tiered! {
    /// `keep · w - rate · u` in levels, to one of the two nearest by chance.
    fn to_levels(
        w: &[f32], u: &[f32], keep: f32, rate: f32, noise: &[u16], largest: f32, to: &mut [f32],
    ) {
        for (((to, w), u), noise) in to.iter_mut().zip(w).zip(u).zip(noise) {
            let chance = (f32::from(*noise) + 0.5) * (1.0 / 65_536.0);
            let level = (keep * w - rate * u + chance).floor();
            let level = if level > largest { largest } else { level };
            *to = if level < -largest { -largest } else { level };
        }
    }
}

#[inline(always)]
fn halved(x: f32, noise: u16) -> f32 {
    f32::from_bits(x.to_bits().wrapping_add(u32::from(noise)) & 0xffff_0000)
}

tiered! {
    /// One of the two nearest bf16 numbers by chance.
    fn halve(x: &[f32], noise: &[u16], to: &mut [f32]) {
        for ((to, x), noise) in to.iter_mut().zip(x).zip(noise) {
            *to = halved(*x, *noise);
        }
    }
}

tiered! {
    fn halve_in_place(x: &mut [f32], noise: &[u16]) {
        for (x, noise) in x.iter_mut().zip(noise) {
            *x = halved(*x, *noise);
        }
    }
}

/// `Σ (a - b)²`, exact for levels, in f64 for anything else.
fn square_distance(tier: Tier, a: &[f32], b: &[f32], levels: bool) -> f64 {
    if !levels {
        return wide_distance(tier, a, b);
    }
    a.chunks(EXACT).zip(b.chunks(EXACT)).map(|(a, b)| f64::from(distance(tier, a, b))).sum()
}

tiered! {
    fn distance(a: &[f32], b: &[f32]) -> f32 {
        lanes::square_distance(a, b)
    }
}

tiered! {
    fn wide_distance(a: &[f32], b: &[f32]) -> f64 {
        let mut lanes = [0.0f64; lanes::LANES];
        let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<{ lanes::LANES }>(), b.as_chunks::<{ lanes::LANES }>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..lanes::LANES {
                let difference = f64::from(a[l]) - f64::from(b[l]);
                lanes[l] = difference.mul_add(difference, lanes[l]);
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
            let difference = f64::from(*a) - f64::from(*b);
            *lane = difference.mul_add(difference, *lane);
        }
        lanes.iter().sum()
    }
}

tiered! {
    /// How many codes differ between two rows, and how many of the second are zero.
    fn codes(old: &[f32], new: &[f32], turn: f32) -> (u32, u32) {
        let code = |w: f32| i32::from(w > turn) - i32::from(w < -turn);
        let (mut flips, mut zeros) = (0, 0);
        for (old, new) in old.iter().zip(new) {
            let new = code(*new);
            flips += u32::from(code(*old) != new);
            zeros += u32::from(new == 0);
        }
        (flips, zeros)
    }
}
