//! One fit: labels and means in turn.

use tritrain_backend::{Assigned, Backend, Search};

use crate::{
    Error, Points, Result,
    points::{not_finite, zero_row},
    seed,
};

/// How nearest centroids are found. Labels are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// What should be fastest.
    #[default]
    Auto,
    /// Every row with every centroid in each iteration, screened in integers.
    Lloyd,
    /// Bounds between iterations decide which rows are looked at (Hamerly, SDM 2010).
    Bounds,
}

/// What a fit does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Iterations at most.
    pub iterations: usize,
    /// A fit ends when the squares of all shifts of centroids together are at most this share of the mean
    /// variance of a column (scikit-learn's `tol`). At 0 it ends when no label changes.
    pub tolerance: f64,
    /// How nearest centroids are found.
    pub method: Method,
    /// Seed of the first centroids, where they are chosen.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { iterations: 300, tolerance: 1e-4, method: Method::Auto, seed: 0 }
    }
}

/// Where centroids start.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// This many of the rows: k-means++ (Arthur and Vassilvitskii, SODA 2007), the best of a few at each step,
    /// or for large sets k-means|| (Bahmani et al., VLDB 2012).
    Seeded(usize),
    /// These, `[k][dim]`.
    Given(&'a [f32]),
}

/// Why a fit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No label changed.
    Labels,
    /// Centroids moved by no more than the tolerance.
    Shift,
    /// All iterations were done.
    Iterations,
}

/// A fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Label of each row: its nearest centroid below.
    pub labels: Vec<u32>,
    /// `[k][dim]`, of length 1 where directions were clustered.
    pub centroids: Vec<f32>,
    /// Sum of squared distances of rows to their centroids; between directions, `2 - 2·cos`.
    pub inertia: f64,
    /// Iterations done.
    pub iterations: usize,
    /// Why no more.
    pub stop: Stop,
    /// Rows that kept their label by bounds, summed over iterations.
    pub skipped: u64,
}

/// Least centroids times columns for which a screen pays.
const SCREENED: usize = 64;

/// Share of rows that bounds must settle for measuring the others to their own centroid to pay: an eighth.
const SETTLED: usize = 8;

/// Clusters rows.
///
/// A centroid without rows is moved to the row that is farthest from its own centroid (the first of several),
/// out of a cluster of two rows or more, before the next iteration. Only the last iteration may leave one.
///
/// # Errors
/// `k` is 0, above the number of rows or of different rows; a given centroid is not finite, or zero where
/// directions are clustered, or their shape is wrong; the tolerance is no number from 0 on.
pub fn fit<B: Backend>(points: &mut Points<'_, B>, start: Start<'_>, options: &Options) -> Result<Fit> {
    if !(options.tolerance >= 0.0 && options.tolerance.is_finite()) {
        return Err(Error::Tolerance { found: options.tolerance });
    }
    let backend = points.backend;
    let mut centroids = match start {
        Start::Seeded(k) => {
            points.check_k(k)?;
            seed::choose(points, k, options.seed)?
        }
        Start::Given(centroids) => {
            let centroids = given(points, centroids)?;
            // Rows may be fewer where nothing is fitted to them.
            if options.iterations > 0 {
                points.check_k(centroids.len() / points.dim)?;
            }
            centroids
        }
    };
    let mut lloyd = Lloyd::new(points, &centroids, options);
    let (mut iterations, mut stop, mut limit) = (0, Stop::Iterations, None);
    while iterations < options.iterations && stop == Stop::Iterations {
        iterations += 1;
        if lloyd.assign(points) == 0 {
            stop = Stop::Labels;
            break;
        }
        // After the first labels, whose search has what the spread is summed from.
        let limit = *limit.get_or_insert_with(|| match options.tolerance {
            0.0 => 0.0,
            share => share * backend.spread(&points.x, &mut points.state) / (points.rows * points.dim) as f64,
        });
        if lloyd.update(points, &mut centroids)? <= limit {
            stop = Stop::Shift;
        }
    }
    if stop != Stop::Labels {
        lloyd.assign(points);
    }
    let inertia: f64 = lloyd.distances(points).iter().copied().map(f64::from).sum();
    let scale = points.scale;
    for centroid in &mut centroids {
        *centroid = (f64::from(*centroid) / scale) as f32;
    }
    Ok(Fit {
        labels: backend.labels(&points.state),
        centroids,
        inertia: inertia / scale / scale,
        iterations,
        stop,
        skipped: lloyd.skipped,
    })
}

/// Labels of rows that centroids `[k][dim]` were not fitted to, and their inertia.
///
/// # Errors
/// As [`fit`], for what is given.
pub fn label<B: Backend>(points: &mut Points<'_, B>, centroids: &[f32]) -> Result<(Vec<u32>, f64)> {
    let none = Options { iterations: 0, ..Options::default() };
    let Fit { labels, inertia, .. } = fit(points, Start::Given(centroids), &none)?;
    Ok((labels, inertia))
}

/// Given centroids, checked and scaled as the rows are.
fn given<B: Backend>(points: &Points<'_, B>, centroids: &[f32]) -> Result<Vec<f32>> {
    const WHAT: &str = "the given centroids";
    let dim = points.dim;
    if !centroids.len().is_multiple_of(dim) {
        let (expected, found) = (format!("k × {dim}"), format!("{} entries", centroids.len()));
        return Err(Error::Shape { what: WHAT, expected, found });
    }
    if centroids.is_empty() {
        return Err(Error::NoClusters { rows: points.rows });
    }
    if centroids.iter().any(|c| !c.is_finite()) {
        return Err(not_finite(WHAT, centroids, dim));
    }
    let mut centroids: Vec<f32> = centroids.iter().map(|c| (f64::from(*c) * points.scale) as f32).collect();
    if points.spherical {
        let mut on_backend = points.upload(&centroids);
        if points.backend.normalize_rows(&mut on_backend, dim) {
            return Err(zero_row(WHAT, &centroids, dim));
        }
        points.backend.download(&on_backend, &mut centroids);
    }
    Ok(centroids)
}

/// What iterations keep.
struct Lloyd<B: Backend> {
    centroids: B::Floats,
    distances: B::Floats,
    on_host: Vec<f32>,
    sums: Vec<f64>,
    counts: Vec<u64>,
    method: Method,
    /// Rows that bounds settled last.
    settled: usize,
    skipped: u64,
}

impl<B: Backend> Lloyd<B> {
    fn new(points: &mut Points<'_, B>, centroids: &[f32], options: &Options) -> Lloyd<B> {
        points.backend.reset_clusters(&mut points.state);
        Lloyd {
            centroids: points.upload(centroids),
            distances: points.backend.floats(points.rows),
            on_host: vec![0.0; points.rows],
            sums: vec![0.0; centroids.len()],
            counts: vec![0; centroids.len() / points.dim],
            method: options.method,
            settled: 0,
            skipped: 0,
        }
    }

    /// Labels every row; returns how many changed.
    fn assign(&mut self, points: &mut Points<'_, B>) -> usize {
        let small = self.counts.len() * points.dim < SCREENED;
        let search = match self.method {
            Method::Auto if small => Search::Plain,
            Method::Auto => Search::Bounds { tighten: self.settled * SETTLED >= points.rows },
            Method::Lloyd => Search::Screen,
            Method::Bounds => Search::Bounds { tighten: true },
        };
        let Assigned { moved, skipped, narrowed, .. } =
            points.backend.assign(&points.x, &self.centroids, search, &mut points.state);
        self.settled = skipped + narrowed;
        self.skipped += skipped as u64;
        moved
    }

    /// Squared distances of rows to their centroids.
    fn distances(&mut self, points: &Points<'_, B>) -> &[f32] {
        points.backend.cluster_distances(&points.x, &self.centroids, &points.state, &mut self.distances);
        points.backend.download(&self.distances, &mut self.on_host);
        &self.on_host
    }

    /// Centroids become means; returns the sum of the squares of their shifts.
    fn update(&mut self, points: &mut Points<'_, B>, centroids: &mut [f32]) -> Result<f64> {
        let backend = points.backend;
        backend.sum_clusters(&points.x, &mut points.state, &mut self.sums, &mut self.counts);
        if self.counts.contains(&0) {
            self.fill_empty(points)?;
            backend.sum_clusters(&points.x, &mut points.state, &mut self.sums, &mut self.counts);
        }
        let mut shift = 0.0;
        let rows = centroids.chunks_exact_mut(points.dim).zip(self.sums.chunks_exact(points.dim));
        for ((centroid, sum), count) in rows.zip(&self.counts) {
            // Between directions the mean is a sum of any length, which is divided away.
            let length = match points.spherical {
                true => sum.iter().map(|s| s * s).sum::<f64>().sqrt(),
                false => *count as f64,
            };
            if length > 0.0 {
                for (centroid, sum) in centroid.iter_mut().zip(sum) {
                    let mean = (sum / length) as f32;
                    shift += (f64::from(mean) - f64::from(*centroid)).powi(2);
                    *centroid = mean;
                }
            }
        }
        backend.upload(centroids, &mut self.centroids);
        Ok(shift)
    }

    /// Gives each cluster without rows the farthest row of a cluster that has others.
    fn fill_empty(&mut self, points: &mut Points<'_, B>) -> Result<()> {
        let backend = points.backend;
        self.distances(points);
        let mut labels = backend.labels(&points.state);
        // A copy: the counts themselves follow with the sums.
        let mut counts = self.counts.clone();
        for empty in (0..counts.len()).filter(|label| self.counts[*label] == 0) {
            let mut farthest = (0.0, None);
            for (row, (distance, label)) in self.on_host.iter().zip(&labels).enumerate() {
                if *distance > farthest.0 && counts[*label as usize] > 1 {
                    farthest = (*distance, Some(row));
                }
            }
            let Some(row) = farthest.1 else {
                return Err(points.too_few(counts.len()));
            };
            counts[labels[row] as usize] -= 1;
            counts[empty] += 1;
            labels[row] = empty as u32;
            backend.relabel(&mut points.state, row, empty as u32);
            // Rows near this one are no longer far away: equal ones, above all.
            let row = points.gather(&[row as u32]);
            backend.approach(&points.x, &row, &mut self.distances);
            backend.download(&self.distances, &mut self.on_host);
        }
        Ok(())
    }
}
