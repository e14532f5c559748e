//! K-means of rows that do not fit in memory, a batch at a time.

use tritrain_backend::{Backend, Search};

use crate::{Error, Fit, Options, Points, Result, Start, fit};

/// Centroids that follow batches of a stream (Sculley, "Web-scale k-means clustering", WWW 2010): each is the
/// mean of all rows that were nearest to it when their batch came by.
#[derive(Clone, Debug, PartialEq)]
pub struct MiniBatch {
    dim: usize,
    centroids: Vec<f32>,
    counts: Vec<u64>,
}

impl MiniBatch {
    /// `k` centroids fitted to the first batch, which counts as seen. Its rows are not directions.
    ///
    /// # Errors
    /// As [`fit`]: the first batch must have `k` different rows.
    pub fn start<B: Backend>(first: &mut Points<'_, B>, k: usize, options: &Options) -> Result<MiniBatch> {
        let Fit { labels, centroids, .. } = fit(first, Start::Seeded(k), options)?;
        let mut counts = vec![0; k];
        for label in labels {
            counts[label as usize] += 1;
        }
        Ok(MiniBatch { dim: first.shape().1, centroids, counts })
    }

    /// Moves the centroids towards the rows of a batch; returns the labels that these had before.
    ///
    /// # Errors
    /// [`Error::Shape`] where the batch has another number of columns.
    pub fn step<B: Backend>(&mut self, batch: &mut Points<'_, B>) -> Result<Vec<u32>> {
        if batch.dim != self.dim {
            let (expected, found) = (format!("{} columns", self.dim), format!("{}", batch.dim));
            return Err(Error::Shape { what: "a batch", expected, found });
        }
        let backend = batch.backend;
        let scaled: Vec<f32> = self.centroids.iter().map(|c| (f64::from(*c) * batch.scale) as f32).collect();
        backend.reset_clusters(&mut batch.state);
        backend.assign(&batch.x, &batch.upload(&scaled), Search::Screen, &mut batch.state);
        let (mut sums, mut counts) = (vec![0.0; scaled.len()], vec![0; self.counts.len()]);
        backend.sum_clusters(&batch.x, &mut batch.state, &mut sums, &mut counts);
        let rows = self.centroids.chunks_exact_mut(self.dim).zip(sums.chunks_exact(self.dim));
        for ((centroid, sum), (seen, count)) in rows.zip(self.counts.iter_mut().zip(&counts)) {
            *seen += count;
            if *count > 0 {
                let (rate, count) = (1.0 / *seen as f64, *count as f64);
                for (centroid, sum) in centroid.iter_mut().zip(sum) {
                    let old = f64::from(*centroid);
                    *centroid = (old + (sum / batch.scale - count * old) * rate) as f32;
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
