//! Nearest centroids of rows, and the sums of rows that centroids are means of.
//!
//! The label of a row is the index of the centroid with the least squared distance, the lowest index where
//! several are least. The distance is [`lanes::square_distance`]: differences and squares in f32, summed in
//! a fixed order. It has a small *relative* error, whatever offset the data have, and that is what lets
//! two ways around most of the work give the very same labels:
//!
//! * **Screen**: rows and centroids, less the mean of all rows, are rounded to integers, and one integer product
//!   gives every dot product within a bound that is proven, see `kmeans/codes.rs`. Only centroids that may be
//!   nearest within that bound are compared by the definition: mostly one, which needs no comparison at all.
//!   Among sixteen centroids or fewer the sums of a row are one register, see `kmeans/few.rs`.
//! * **Bounds**: the screen also bounds the distance to the nearest centroid from above and to all others from
//!   below. While centroids have moved by less than the gap, a row keeps its label unseen (Hamerly, "Making
//!   k-means even faster", SDM 2010). Where all but a few have, it is compared with these few.
//!
//! Sums are exact: entries are rounded to multiples of 2^-28 or less of the largest one of their column, so
//! that no f64 sum of them is ever rounded. A row that changes its label is subtracted from one sum and added
//! to another, in any order, on any thread, with the same bits as a sum from the start.

mod codes;
mod extremes;
mod few;
mod screen;
mod sums;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::{Context, Tier, lanes, strips::Parts};
use codes::{CentroidCodes, Coding, RowCodes};
use few::Few;

/// The label of a row that no centroid was compared with.
pub const NONE: u32 = u32::MAX;

/// Rows of one task: whole blocks of the screen.
const TASK: usize = 768;

/// How rows are compared with centroids. The labels are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Every row with every centroid, as the definition says.
    Plain,
    /// Every row with every centroid in integers, and by the definition with those that may be nearest.
    Screen,
    /// The same for rows whose bounds do not settle their label.
    Bounds {
        /// Whether a row that its bounds leave open is first measured to its own centroid. Among sixteen or
        /// fewer it never is: all of them take as little time.
        tighten: bool,
    },
}

/// What [`assign`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Rows whose label changed.
    pub moved: usize,
    /// Rows that were not compared with any other centroid than their own.
    pub skipped: usize,
    /// Rows that were compared with those centroids alone that moved most.
    pub narrowed: usize,
    /// Distances computed by the definition to choose among candidates.
    pub compared: usize,
}

/// Rows that are being clustered: labels, and what the search keeps about each row.
///
/// The rows themselves are given to every function again, the same each time.
#[derive(Debug)]
pub struct Clusters {
    dim: usize,
    labels: Vec<u32>,
    /// Bounds of distances: to the centroid of the label, and to the nearest other one.
    upper: Vec<f32>,
    lower: Vec<f32>,
    rows: RowCodes,
    centroids: CentroidCodes,
    /// Centroids of the last [`assign`], which the bounds are about.
    last: Vec<f32>,
    /// How far each has moved since.
    shifts: Vec<f32>,
    fast: Fast,
    sums: sums::Sums,
}

impl Clusters {
    /// Rows of `x` `[rows][dim]`, without labels. `x` is finite, of magnitudes between 2^-40 and 2^40 or so:
    /// squares must neither overflow nor vanish.
    ///
    /// # Panics
    /// `dim` is 0 or does not divide the length of `x`.
    pub fn new(cx: &Context, x: &[f32], dim: usize) -> Clusters {
        assert!(dim > 0 && x.len().is_multiple_of(dim), "x is not rows × dim");
        let count = x.len() / dim;
        let columns = sums::Columns::measure(cx, x, dim);
        Clusters {
            dim,
            labels: vec![NONE; count],
            upper: vec![f32::INFINITY; count],
            lower: vec![0.0; count],
            rows: RowCodes::default(),
            centroids: CentroidCodes::new(columns.mean()),
            last: Vec::new(),
            shifts: Vec::new(),
            fast: Fast { codes: CentroidCodes::new(columns.mean()), ..Fast::default() },
            sums: sums::Sums::new(&columns, count),
        }
    }

    /// Labels of the rows.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Gives a row another label than its nearest centroid's, until the next [`assign`].
    ///
    /// # Panics
    /// There is no such row.
    pub fn relabel(&mut self, row: usize, label: u32) {
        self.labels[row] = label;
        (self.upper[row], self.lower[row]) = (f32::INFINITY, 0.0);
    }

    /// Forgets labels and sums.
    pub fn reset(&mut self) {
        self.labels.fill(NONE);
        self.upper.fill(f32::INFINITY);
        self.lower.fill(0.0);
        self.last.clear();
        self.sums.reset();
    }

    fn check(&self, x: &[f32], centroids: &[f32]) {
        assert_eq!(x.len(), self.labels.len() * self.dim, "x is not rows × dim");
        assert!(centroids.len().is_multiple_of(self.dim), "centroids are not k × dim");
    }
}

/// The centroids that moved most.
#[derive(Debug, Default)]
struct Fast {
    /// Which, in ascending order.
    ids: Vec<u32>,
    centroids: Vec<f32>,
    codes: CentroidCodes,
    /// How far any other has moved.
    others: f32,
    order: Vec<u32>,
}

impl Fast {
    /// Chooses a tile of them, where that is less than half of all.
    fn choose(&mut self, cx: &Context, shifts: &[f32], centroids: &[f32], dim: usize) {
        self.ids.clear();
        if shifts.len() <= 2 * codes::WIDE {
            return;
        }
        self.order.clear();
        self.order.extend(0..shifts.len() as u32);
        self.order
            .sort_unstable_by(|a, b| shifts[*b as usize].total_cmp(&shifts[*a as usize]).then(a.cmp(b)));
        self.ids.extend(&self.order[..codes::WIDE]);
        self.ids.sort_unstable();
        self.others = shifts[self.order[codes::WIDE] as usize];
        self.centroids.clear();
        for id in &self.ids {
            self.centroids.extend_from_slice(&centroids[*id as usize * dim..][..dim]);
        }
        self.codes.prepare(cx, &self.centroids, Coding::of(cx.tier(), dim));
    }
}

/// What a distance by the definition is off at most, relative to the exact square, twice over.
///
/// A term has a difference, which counts twice, and a multiply-add for each of its chain: `dim / 32`, with the
/// rest at most 4 more. Then chains and lanes are added: 5. Each is off by 2^-24 at most.
fn relative_error(dim: usize) -> f32 {
    (dim / 32 + 16) as f32 * f32::EPSILON
}

/// Labels every row of `x` `[rows][dim]` with its nearest centroid of `centroids` `[k][dim]`, by any search.
///
/// # Panics
/// The lengths do not fit together, or there is no centroid or more than 2^32 - 2.
pub fn assign(
    cx: &Context,
    x: &[f32],
    centroids: &[f32],
    search: Search,
    clusters: &mut Clusters,
) -> Assigned {
    clusters.check(x, centroids);
    let dim = clusters.dim;
    let k = centroids.len() / dim;
    assert!(k > 0 && u32::try_from(k).is_ok_and(|k| k < NONE), "number of centroids");
    let search = if dim > codes::MAX_DIM { Search::Plain } else { search };
    let bounded = matches!(search, Search::Bounds { .. }) && clusters.last.len() == centroids.len();
    let few = Few::coding(dim, k);
    if bounded {
        moved_by(&clusters.last, centroids, dim, &mut clusters.shifts);
        clusters.fast.choose(cx, &clusters.shifts, centroids, dim);
    }
    clusters.last.clear();
    clusters.last.extend_from_slice(centroids);
    if search != Search::Plain {
        let coding = few.unwrap_or(Coding::of(cx.tier(), dim));
        clusters.rows.prepare(cx, x, clusters.centroids.mean(), coding);
        clusters.centroids.prepare(cx, centroids, coding);
    }
    let (tier, error) = (cx.tier(), relative_error(dim));
    let coded = Searched { tier, x, centroids, dim, rows: &clusters.rows, codes: &clusters.centroids, error };
    if few.is_some() && search != Search::Plain {
        let few = Few::new(coded);
        let moves = bounded.then(|| few::Moves::new(&clusters.shifts));
        let (labels, upper, lower) = (&mut clusters.labels, &mut clusters.upper, &mut clusters.lower);
        return by_tasks(cx, (labels, upper, lower), 0, |rows, _| few.task(rows, moves.as_ref()));
    }
    let screen = screen::Screen::new(coded);
    let tighten = search == Search::Bounds { tighten: true };
    let fast = &clusters.fast;
    let some = (!fast.ids.is_empty()).then(|| (screen.some(&fast.ids, &fast.codes), fast.others));
    let moves = screen::Moves { shifts: &clusters.shifts, tighten, fast: some };
    let moves = bounded.then_some(&moves);
    let scratch = if search == Search::Plain { 0 } else { screen.scratch() };
    let (labels, upper, lower) = (&mut clusters.labels, &mut clusters.upper, &mut clusters.lower);
    by_tasks(cx, (labels, upper, lower), scratch, |rows, scratch| match search {
        Search::Plain => plain(cx.tier(), x, centroids, dim, rows),
        _ => screen.task(cx.tier(), rows, moves, scratch),
    })
}

/// What a search by codes reads.
#[derive(Clone, Copy)]
struct Searched<'a> {
    tier: Tier,
    x: &'a [f32],
    centroids: &'a [f32],
    dim: usize,
    rows: &'a RowCodes,
    codes: &'a CentroidCodes,
    /// See [`relative_error`].
    error: f32,
}

impl Searched<'_> {
    /// The definition.
    #[inline(always)]
    fn distance(&self, row: usize, label: usize) -> f32 {
        let [x, centroid] =
            [(self.x, row), (self.centroids, label)].map(|(of, at)| &of[at * self.dim..][..self.dim]);
        square_distance(self.tier, x, centroid)
    }
}

/// Runs `task` on all rows, [`TASK`] at a time, with `scratch` floats each.
fn by_tasks(
    cx: &Context,
    (labels, upper, lower): (&mut [u32], &mut [f32], &mut [f32]),
    scratch: usize,
    task: impl Fn(&mut screen::Rows<'_>, &mut [f32]) -> Assigned + Sync + Send,
) -> Assigned {
    let [moved, skipped, narrowed, compared] = [0; 4].map(AtomicUsize::new);
    let (labels, upper, lower) = (Parts::new(labels, TASK), Parts::new(upper, TASK), Parts::new(lower, TASK));
    cx.each(labels.count(), scratch, |index, scratch| {
        // SAFETY: every part goes to one task.
        let mut rows = unsafe {
            screen::Rows {
                first: index * TASK,
                labels: labels.get(index),
                upper: upper.get(index),
                lower: lower.get(index),
            }
        };
        let done = task(&mut rows, scratch);
        moved.fetch_add(done.moved, Relaxed);
        skipped.fetch_add(done.skipped, Relaxed);
        narrowed.fetch_add(done.narrowed, Relaxed);
        compared.fetch_add(done.compared, Relaxed);
    });
    let [moved, skipped, narrowed, compared] =
        [moved, skipped, narrowed, compared].map(AtomicUsize::into_inner);
    Assigned { moved, skipped, narrowed, compared }
}

/// Distances from each centroid to its successor, at most.
fn moved_by(last: &[f32], centroids: &[f32], dim: usize, shifts: &mut Vec<f32>) {
    shifts.clear();
    shifts.extend(last.chunks_exact(dim).zip(centroids.chunks_exact(dim)).map(|(a, b)| {
        let square: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        square.sqrt() as f32 * (1.0 + 4.0 * f32::EPSILON)
    }));
}

tiered! {
    /// The definition, for the rows of a task.
    fn plain(x: &[f32], centroids: &[f32], dim: usize, rows: &mut screen::Rows<'_>) -> Assigned {
        let mut done = Assigned::default();
        let x = &x[rows.first * dim..][..rows.labels.len() * dim];
        for (at, x) in x.chunks_exact(dim).enumerate() {
            let mut best = (f32::INFINITY, 0);
            for (label, centroid) in centroids.chunks_exact(dim).enumerate() {
                let distance = lanes::square_distance(x, centroid);
                if distance < best.0 {
                    best = (distance, label as u32);
                }
            }
            done.moved += usize::from(rows.labels[at] != best.1);
            rows.labels[at] = best.1;
            (rows.upper[at], rows.lower[at]) = (f32::INFINITY, 0.0);
        }
        done.compared = rows.labels.len() * (centroids.len() / dim);
        done
    }
}

/// Brings the sums up to date with the labels: `sums` `[k][dim]` and `counts` `[k]` of the rows of `x`.
///
/// # Panics
/// The lengths do not fit together, or a label is not below `k`.
pub fn sum(cx: &Context, x: &[f32], clusters: &mut Clusters, sums: &mut [f64], counts: &mut [u64]) {
    clusters.check(x, &[]);
    assert_eq!(sums.len(), counts.len() * clusters.dim, "sums are not k × dim");
    clusters.sums.update(cx, x, &clusters.labels, sums, counts);
}

/// Squared distance, by the definition, of each row to the centroid of its label: `out` `[rows]`.
///
/// # Panics
/// The lengths do not fit together, or a row has no label.
pub fn distances(cx: &Context, x: &[f32], centroids: &[f32], clusters: &Clusters, out: &mut [f32]) {
    clusters.check(x, centroids);
    assert_eq!(out.len(), clusters.labels.len(), "one distance for each row");
    cx.chunks(out, TASK, |index, out| {
        let x = &x[index * TASK * clusters.dim..];
        let labels = &clusters.labels[index * TASK..][..out.len()];
        labelled_distances(cx.tier(), x, centroids, clusters.dim, labels, out);
    });
}

tiered! {
    /// [`lanes::square_distance`].
    fn square_distance(a: &[f32], b: &[f32]) -> f32 {
        lanes::square_distance(a, b)
    }
}

tiered! {
    fn labelled_distances(x: &[f32], centroids: &[f32], dim: usize, labels: &[u32], out: &mut [f32]) {
        for ((x, label), out) in x.chunks_exact(dim).zip(labels).zip(out) {
            *out = lanes::square_distance(x, &centroids[*label as usize * dim..][..dim]);
        }
    }
}

/// `nearest[r] = min(nearest[r], squared distance of row r to centroid)`, by the definition.
///
/// # Panics
/// The lengths do not fit together.
pub fn approach(cx: &Context, x: &[f32], centroid: &[f32], nearest: &mut [f32]) {
    let dim = centroid.len();
    assert_eq!(x.len(), nearest.len() * dim, "x is not rows × dim");
    cx.chunks(nearest, TASK, |index, nearest| {
        approach_rows(cx.tier(), &x[index * TASK * dim..], centroid, nearest);
    });
}

tiered! {
    fn approach_rows(x: &[f32], centroid: &[f32], nearest: &mut [f32]) {
        for (x, nearest) in x.chunks_exact(centroid.len()).zip(nearest) {
            let distance = lanes::square_distance(x, centroid);
            *nearest = if distance < *nearest { distance } else { *nearest };
        }
    }
}

/// `Σ |x - mean of all rows|²`, about, for the scale of a tolerance.
pub fn spread(cx: &Context, x: &[f32], clusters: &mut Clusters) -> f64 {
    clusters.check(x, &[]);
    let coding = clusters.rows.coding().unwrap_or(Coding::of(cx.tier(), clusters.dim));
    clusters.rows.prepare(cx, x, clusters.centroids.mean(), coding);
    clusters.rows.rows.iter().map(|row| f64::from(row.square)).sum()
}

/// Multiplies all entries by `factor`.
pub fn scale(cx: &Context, x: &mut [f32], factor: f32) {
    cx.chunks(x, 1 << 14, |_, x| x.iter_mut().for_each(|x| *x *= factor));
}

/// Divides every row of `x` `[rows][dim]` by its length; returns whether there is a row without one.
///
/// # Panics
/// `dim` is 0.
pub fn normalize(cx: &Context, x: &mut [f32], dim: usize) -> bool {
    let zeros = AtomicUsize::new(0);
    cx.chunks(x, TASK * dim, |_, x| {
        zeros.fetch_add(normalize_rows(cx.tier(), x, dim), Relaxed);
    });
    zeros.into_inner() > 0
}

tiered! {
    fn normalize_rows(x: &mut [f32], dim: usize) -> usize {
        let mut zeros = 0;
        for x in x.chunks_exact_mut(dim) {
            // By the largest entry first, so that squares neither overflow nor vanish.
            let largest = lanes::max_abs(x);
            if largest == 0.0 {
                zeros += 1;
                continue;
            }
            for x in x.iter_mut() {
                *x /= largest;
            }
            let length = lanes::dot(x, x).sqrt();
            for x in x.iter_mut() {
                *x /= length;
            }
        }
        zeros
    }
}

/// Largest magnitude in `x`; NaN if any entry is.
pub fn max_abs(cx: &Context, x: &[f32]) -> f32 {
    const BLOCK: usize = 1 << 14;
    // Bits of magnitudes order like them, NaN last.
    let largest = std::sync::atomic::AtomicU32::new(0);
    cx.tasks(x.len().div_ceil(BLOCK), |index| {
        let here = max_abs_block(cx.tier(), &x[index * BLOCK..x.len().min((index + 1) * BLOCK)]);
        largest.fetch_max(here.to_bits(), Relaxed);
    });
    f32::from_bits(largest.into_inner())
}

tiered! {
    fn max_abs_block(x: &[f32]) -> f32 {
        lanes::max_abs(x)
    }
}

#[cfg(test)]
mod tests {
    //! The tiers that tests emulate; those of this machine are compared in `tests/kmeans.rs`.
    use super::*;
    use crate::Tier;
    use tritrain_trit::rng::Stream;

    #[test]
    fn every_tested_tier_gives_the_labels_of_the_definition() {
        for tier in Tier::tested() {
            let cx = Context::new(tier, 2).unwrap();
            for (rows, dim, k) in [(1, 1, 1), (50, 3, 7), (200, 64, 70), (90, 130, 33), (40, 600, 5)] {
                let random = Stream::new(dim as u64, 0, 0);
                let x: Vec<f32> = (0..rows * dim).map(|i| random.normal(i as u64)).collect();
                let mut centroids: Vec<f32> = x.iter().cycle().take(k * dim).map(|x| x * 0.5).collect();
                let [mut quick, mut plain] = [0; 2].map(|_| Clusters::new(&cx, &x, dim));
                for _ in 0..3 {
                    assign(&cx, &x, &centroids, Search::Bounds { tighten: true }, &mut quick);
                    assign(&cx, &x, &centroids, Search::Plain, &mut plain);
                    assert_eq!(quick.labels(), plain.labels(), "{} {rows} × {dim}, {k}", tier.name());
                    for (i, centroid) in centroids.iter_mut().enumerate() {
                        *centroid += 0.01 * random.normal((x.len() + i) as u64);
                    }
                }
            }
        }
    }
}
