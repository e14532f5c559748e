//! K-means of rows that do not fit in memory, a batch at a time.

use tritrain_backend::{Backend, Search};

use crate::{Error, Fit, Options, Points, Result, Start, fit};

/// Centroids that follow batches of a stream (Sculley, "Web-scale k-means clustering", WWW 2010): each is the
/// mean of all rows that were nearest to it when their batch came by. Between directions it is the direction of
/// that mean.
#[derive(Clone, Debug, PartialEq)]
pub struct MiniBatch {
    dim: usize,
    spherical: bool,
    centroids: Vec<f32>,
    /// Lengths of the means that centroids are the directions of; else 1.
    lengths: Vec<f64>,
    counts: Vec<u64>,
}

impl MiniBatch {
    /// `k` centroids fitted to the first batch, which counts as seen. If its rows are directions, those of all
    /// batches are.
    ///
    /// # Errors
    /// As [`fit`]: the first batch must have `k` different rows.
    pub fn start<B: Backend>(first: &mut Points<'_, B>, k: usize, options: &Options) -> Result<MiniBatch> {
        let Fit { centroids, .. } = fit(first, Start::Seeded(k), options)?;
        let (dim, spherical) = (first.dim, first.spherical);
        let mut started = MiniBatch { dim, spherical, centroids, lengths: vec![1.0; k], counts: vec![0; k] };
        started.step(first)?;
        Ok(started)
    }

    /// Moves the centroids towards the rows of a batch; returns the labels that these had before.
    ///
    /// # Errors
    /// [`Error::Shape`] where the batch has another number of columns, or its rows are directions and those of
    /// the first were not, or the reverse.
    pub fn step<B: Backend>(&mut self, batch: &mut Points<'_, B>) -> Result<Vec<u32>> {
        if (batch.dim, batch.spherical) != (self.dim, self.spherical) {
            let rows = |dim, spherical| {
                format!("{dim} columns of {}", if spherical { "directions" } else { "rows" })
            };
            let (expected, found) = (rows(self.dim, self.spherical), rows(batch.dim, batch.spherical));
            return Err(Error::Shape { what: "a batch", expected, found });
        }
        let backend = batch.backend;
        let scaled: Vec<f32> = self.centroids.iter().map(|c| (f64::from(*c) * batch.scale) as f32).collect();
        backend.reset_clusters(&mut batch.state);
        backend.assign(&batch.x, &batch.upload(&scaled), Search::Screen, &mut batch.state);
        let (mut sums, mut counts) = (vec![0.0; scaled.len()], vec![0; self.counts.len()]);
        backend.sum_clusters(&batch.x, &mut batch.state, &mut sums, &mut counts);
        let rows = self.centroids.chunks_exact_mut(self.dim).zip(sums.chunks_exact_mut(self.dim));
        let seen = self.counts.iter_mut().zip(&mut self.lengths);
        for (((centroid, sum), (seen, length)), count) in
            rows.zip(seen).zip(counts).filter(|(_, count)| *count > 0)
        {
            *seen += count;
            let (rate, count) = (1.0 / *seen as f64, count as f64);
            for (mean, centroid) in sum.iter_mut().zip(&*centroid) {
                let old = f64::from(*centroid) * *length;
                *mean = old + (*mean / batch.scale - count * old) * rate;
            }
            let mut divisor = 1.0;
            if self.spherical {
                *length = sum.iter().map(|s| s * s).sum::<f64>().sqrt();
                divisor = *length;
            }
            // A mean of no length has no direction: the old one stays.
            if divisor > 0.0 {
                for (centroid, mean) in centroid.iter_mut().zip(sum) {
                    *centroid = (*mean / divisor) as f32;
                }
            }
        }
        Ok(backend.labels(&batch.state))
    }

    /// `[k][dim]`
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Rows that each centroid is a mean of.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}
