//! Clusters of parameters: rows of matrices that behave alike, found by k-means over what updates did to them.
//!
//! A row is described by four numbers that mean the same in a matrix of any size: the logarithm of its gradient
//! (root mean square), the share of its codes that flip in an update, the share that is zero, and the logarithm
//! of its update relative to its weights. They are measured over the last eight updates before clusters are
//! made anew, and brought to mean zero and variance one. New clusters start from the centroids of the old ones,
//! so a cluster keeps its number; the first are numbered by rising gradients.

use std::{array, ops::Range};

use tritrain_backend::{Backend, REPORT, RowReport};
use tritrain_cluster::{Options, Points, Start, fit};

use crate::{Parameter, Report, Role, digits};

/// Numbers by which a row is described.
const FEATURES: usize = 4;
/// Updates that are measured before clusters are made anew.
const MEASURED: u64 = 8;
/// Updates between new clusters, once they have been made after 16, 32 and 64.
const EVERY: u64 = 128;
/// Least square of which there is a logarithm.
const LEAST: f64 = 1e-24;

/// What is summed over the measured updates of a row.
mod sum {
    /// Mean squares of the gradient.
    pub(super) const GRADIENT: usize = 0;
    /// Squares of the update, as a share of those of the weights.
    pub(super) const UPDATE: usize = 1;
    /// Shares of codes that flipped.
    pub(super) const FLIPS: usize = 2;
    /// Shares of codes that were zero.
    pub(super) const ZEROS: usize = 3;
    /// Updates.
    pub(super) const COUNT: usize = 4;
}

/// Numbers that are summed for a row.
const SUMS: usize = 5;

/// How the rows of a cluster move, beside what the schedule says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steer {
    /// Factor of the learning rate.
    pub rate: f32,
    /// Factor of the radius of the trust region.
    pub radius: f32,
}

impl Default for Steer {
    fn default() -> Steer {
        Steer { rate: 1.0, radius: 1.0 }
    }
}

/// The rows of all matrices and the cluster of each.
#[derive(Debug)]
pub(crate) struct Clusters {
    k: usize,
    /// By tensor, its rows among those of all matrices; none for other tensors.
    rows: Vec<Option<Range<usize>>>,
    /// By row; empty with one cluster, as the other lists.
    labels: Vec<u8>,
    sums: Vec<[f32; SUMS]>,
    /// By cluster, in the units of [`features`]; zeros before there are any.
    centroids: Vec<[f32; FEATURES]>,
    /// What became of each cluster in the update at hand.
    reports: Vec<Report>,
    /// By row, what is suggested since clusters were made anew, where that is asked for; else empty.
    digits: Vec<u8>,
}

impl Clusters {
    /// `k` clusters, at most 256, of the rows of the matrices among `parameters`; all rows are in the first
    /// until updates have been measured.
    pub(crate) fn new(parameters: &[Parameter], k: usize) -> Clusters {
        let mut total = 0;
        let rows = parameters.iter().map(|parameter| {
            (parameter.role == Role::Matrix).then(|| {
                let first = total;
                total += parameter.rows;
                first..total
            })
        });
        let rows = rows.collect();
        let kept = if k > 1 { total } else { 0 };
        Clusters {
            k,
            rows,
            labels: vec![0; kept],
            sums: vec![[0.0; SUMS]; kept],
            centroids: vec![[0.0; FEATURES]; if k > 1 { k } else { 0 }],
            reports: vec![Report::default(); k],
            digits: Vec::new(),
        }
    }

    /// Number of clusters.
    pub(crate) fn count(&self) -> usize {
        self.k
    }

    /// The cluster of each row of tensor `id`; empty with one cluster.
    pub(crate) fn labels(&self, id: usize) -> &[u8] {
        match &self.rows[id] {
            Some(rows) if self.k > 1 => &self.labels[rows.clone()],
            _ => &[],
        }
    }

    /// What became of each cluster since [`Clusters::begin`].
    pub(crate) fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// Whether update `update`, from 1, is measured.
    pub(crate) fn measures(&self, update: u64) -> bool {
        self.k > 1 && (update..update + MEASURED).any(due)
    }

    /// Begins the update after `updates` others: makes clusters anew where that is due, which takes memory, and
    /// suggests digits for rows of `parameters` that are stored in `even` of them, where there is such a number.
    pub(crate) fn begin<B: Backend>(
        &mut self,
        backend: &B,
        updates: u64,
        (parameters, even): (&[Parameter], Option<u8>),
    ) {
        self.reports.fill(Report::default());
        if self.k > 1 && due(updates) {
            self.refresh(backend);
            if let Some(even) = even {
                self.digits.resize(self.labels.len(), even);
                for (rows, parameter) in self.rows.iter().zip(parameters) {
                    let Some(rows) = rows.clone() else { continue };
                    let (labels, digits) = (&self.labels[rows.clone()], &mut self.digits[rows.clone()]);
                    let gradients = self.sums[rows].iter().map(|sums| sums[sum::GRADIENT]);
                    digits::suggest(even, parameter.cols, (self.k, labels), gradients, digits);
                }
            }
            self.sums.fill([0.0; SUMS]);
        }
    }

    /// The digits suggested for the rows of tensor `id`, until they are [taken](Clusters::taken).
    pub(crate) fn digits(&self, id: usize) -> Option<&[u8]> {
        self.digits.get(self.rows[id].clone()?)
    }

    /// Forgets suggested digits, which rows have by now.
    pub(crate) fn taken(&mut self) {
        self.digits.clear();
    }

    /// Notes the squares of the gradient by row of tensor `id`, whose rows have `cols` numbers; `share` is what the
    /// gradient was multiplied by, 0 where it was left.
    pub(crate) fn gradient(&mut self, id: usize, squares: &[f32], share: f32, cols: usize) {
        let Some(rows) = self.rows[id].clone().filter(|_| share != 0.0) else { return };
        for (sums, squares) in self.sums[rows].iter_mut().zip(squares) {
            sums[sum::GRADIENT] += share * share * squares / cols as f32;
        }
    }

    /// Notes what an update did to tensor `id`, `[rows][REPORT]`; `measured` where it is measured.
    pub(crate) fn applied(&mut self, id: usize, reports: &[f32], cols: usize, measured: bool) {
        let Some(rows) = self.rows[id].clone() else { return };
        for (row, report) in rows.zip(reports.as_chunks::<REPORT>().0) {
            let report = RowReport::read(*report);
            let label = self.labels.get(row).map_or(0, |label| usize::from(*label));
            self.reports[label].add(&report, cols);
            if measured {
                let (sums, numbers) = (&mut self.sums[row], cols as f32);
                sums[sum::UPDATE] += if report.weights > 0.0 { report.applied / report.weights } else { 0.0 };
                sums[sum::FLIPS] += report.flips / numbers;
                sums[sum::ZEROS] += report.zeros / numbers;
                sums[sum::COUNT] += 1.0;
            }
        }
    }

    fn refresh<B: Backend>(&mut self, backend: &B) {
        let mut rows: Vec<[f32; FEATURES]> = self.sums.iter().map(features).collect();
        let scale = Scale::of(&rows);
        let mut given = self.centroids.clone();
        for row in rows.iter_mut().chain(&mut given) {
            *row = scale.apply(row);
        }
        let mut x = backend.floats(rows.len() * FEATURES);
        backend.upload(rows.as_flattened(), &mut x);
        let seeded = self.centroids.as_flattened().iter().all(|value| *value == 0.0);
        let start = if seeded { Start::Seeded(self.k) } else { Start::Given(given.as_flattened()) };
        let fitted = Points::new(backend, x, (rows.len(), FEATURES), false)
            .and_then(|mut points| fit(&mut points, start, &Options::default()));
        // Fewer rows than clusters, or not as many different ones: all stay where they are.
        let Ok(fitted) = fitted else { return };
        let centroids = fitted.centroids.as_chunks::<FEATURES>().0;
        let mut order: Vec<usize> = (0..self.k).collect();
        if seeded {
            order.sort_by(|a, b| centroids[*a][0].total_cmp(&centroids[*b][0]));
        }
        let mut number = vec![0; self.k];
        for (new, old) in order.into_iter().enumerate() {
            number[old] = new as u8;
            self.centroids[new] = scale.undo(&centroids[old]);
        }
        for (label, old) in self.labels.iter_mut().zip(&fitted.labels) {
            *label = number[*old as usize];
        }
    }

    /// What a checkpoint keeps of the clusters.
    pub(crate) fn state(&self) -> Vec<(&'static str, [usize; 2], Vec<f32>)> {
        if self.k == 1 {
            return Vec::new();
        }
        let labels: Vec<f32> = self.labels.iter().map(|label| f32::from(*label)).collect();
        vec![
            (LABELS, [labels.len(), 1], labels),
            (STATISTICS, [self.sums.len(), SUMS], self.sums.as_flattened().to_vec()),
            (CENTROIDS, [self.k, FEATURES], self.centroids.as_flattened().to_vec()),
        ]
    }

    /// Takes a tensor of [`Clusters::state`], of the same size.
    pub(crate) fn restore(&mut self, part: &str, from: &[f32]) {
        match part {
            LABELS => {
                let last = (self.k - 1) as f32;
                for (label, from) in self.labels.iter_mut().zip(from) {
                    *label = from.clamp(0.0, last) as u8;
                }
            }
            STATISTICS => self.sums.as_flattened_mut().copy_from_slice(from),
            _ => self.centroids.as_flattened_mut().copy_from_slice(from),
        }
    }
}

/// Names of what a checkpoint keeps.
const LABELS: &str = "clusters.labels";
const STATISTICS: &str = "clusters.statistics";
const CENTROIDS: &str = "clusters.centroids";

/// Whether clusters are made anew after `updates` updates.
fn due(updates: u64) -> bool {
    matches!(updates, 16 | 32 | 64) || updates > 0 && updates.is_multiple_of(EVERY)
}

/// What describes a row.
fn features(sums: &[f32; SUMS]) -> [f32; FEATURES] {
    let count = f64::from(sums[sum::COUNT].max(1.0));
    let mean = |which: usize| f64::from(sums[which]) / count;
    let log = |which: usize| (0.5 * mean(which).max(LEAST).ln()) as f32;
    [log(sum::GRADIENT), mean(sum::FLIPS) as f32, mean(sum::ZEROS) as f32, log(sum::UPDATE)]
}

/// Mean and standard deviation of each feature.
struct Scale {
    mean: [f64; FEATURES],
    deviation: [f64; FEATURES],
}

impl Scale {
    fn of(rows: &[[f32; FEATURES]]) -> Scale {
        let count = rows.len().max(1) as f64;
        let mean = array::from_fn(|at| rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / count);
        let deviation = array::from_fn(|at| {
            let square = |row: &[f32; FEATURES]| (f64::from(row[at]) - mean[at]).powi(2);
            let variance = rows.iter().map(square).sum::<f64>() / count;
            // A feature in which rows do not differ says nothing.
            if variance > 0.0 { variance.sqrt() } else { 1.0 }
        });
        Scale { mean, deviation }
    }

    fn apply(&self, row: &[f32; FEATURES]) -> [f32; FEATURES] {
        array::from_fn(|at| ((f64::from(row[at]) - self.mean[at]) / self.deviation[at]) as f32)
    }

    fn undo(&self, row: &[f32; FEATURES]) -> [f32; FEATURES] {
        array::from_fn(|at| (f64::from(row[at]) * self.deviation[at] + self.mean[at]) as f32)
    }
}

#[cfg(test)]
mod tests {
    //! Rows that behave alike end up together, and keep their number.
    use tritrain_backend::Cpu;

    use super::*;

    const ROWS: usize = 60;
    const COLS: usize = 32;

    /// Measures an update in which the rows of every third place have gradients of `large`, the others of 1.
    fn measure(clusters: &mut Clusters, large: f32) {
        let is_large = |row: usize| row.is_multiple_of(3);
        let wobble = |row: usize| 1.0 + 0.01 * (row % 7) as f32;
        let squares: Vec<f32> = (0..ROWS)
            .map(|row| wobble(row) * if is_large(row) { large * large } else { 1.0 } * COLS as f32)
            .collect();
        let reports: Vec<f32> = (0..ROWS)
            .flat_map(|row| {
                let applied = wobble(row) * if is_large(row) { 4e-4 } else { 1e-4 };
                [applied, 1.0, 1.0, 2.0 * wobble(row), 10.0, 0.0, 0.0]
            })
            .collect();
        clusters.gradient(1, &squares, 1.0, COLS);
        clusters.applied(1, &reports, COLS, true);
    }

    fn parameters() -> Vec<Parameter> {
        let named = |name: &str, rows, role| Parameter { name: name.into(), rows, cols: COLS, role };
        vec![named("embedding", 10, Role::Embedding), named("matrix", ROWS, Role::Matrix)]
    }

    #[test]
    fn rows_with_larger_gradients_are_found_and_keep_their_number() {
        let backend = Cpu::new(1).unwrap();
        let mut clusters = Clusters::new(&parameters(), 2);
        let expected: Vec<u8> = (0..ROWS).map(|row| u8::from(row.is_multiple_of(3))).collect();
        for (updates, large) in [(16, 30.0), (32, 10.0), (64, 50.0)] {
            for _ in 0..MEASURED {
                measure(&mut clusters, large);
            }
            clusters.begin(&backend, updates, (&parameters(), None));
            assert_eq!(clusters.labels(1), expected, "after {updates}");
            assert!(clusters.labels(0).is_empty());
        }
        // They are the same after all was saved and read again.
        let mut again = Clusters::new(&parameters(), 2);
        for (name, _, values) in clusters.state() {
            again.restore(name, &values);
        }
        assert_eq!(again.labels(1), expected);
        assert_eq!(again.centroids, clusters.centroids);
        measure(&mut clusters, 20.0);
        assert_eq!(clusters.reports().iter().map(|report| report.rows).collect::<Vec<_>>(), [40.0, 20.0]);
    }

    #[test]
    fn rows_that_are_all_alike_stay_together() {
        let backend = Cpu::new(1).unwrap();
        let mut clusters = Clusters::new(&parameters(), 2);
        clusters.begin(&backend, 16, (&parameters(), None));
        assert_eq!(clusters.labels(1), [0; ROWS]);
    }

    #[test]
    fn eight_updates_before_each_schedule_are_measured() {
        let clusters = Clusters::new(&parameters(), 2);
        let measured: Vec<u64> = (1..300).filter(|update| clusters.measures(*update)).collect();
        let expected = [16, 32, 64, 128, 256].iter().flat_map(|due| due - 7..=*due).collect::<Vec<u64>>();
        assert_eq!(measured, expected);
        assert!(!Clusters::new(&parameters(), 1).measures(16));
    }
}
