//! What clusters of passages are: their words and domains, near-duplicates within them, a map of them,
//! and the file by which any text finds its cluster.
//!
//! Labels and centroids come from elsewhere: any k-means on the vectors of [`embed`](crate::embed).

mod agreement;
mod describe;
mod duplicates;
mod file;
mod plane;
mod shingles;

pub use agreement::{Table, nmi, purity};
pub use describe::{Cluster, Description, DomainShare, Nearest, describe};
pub(crate) use duplicates::pairs;
pub use duplicates::{ClusterDuplicates, Duplicates, Pair, RESEMBLANCE, candidates, duplicates};
pub use file::Clusters;
pub use plane::plane;
pub use shingles::Shingles;

use crate::{Error, Result};

/// Vectors with their clusters, whose sizes agree.
#[derive(Clone, Copy, Debug)]
pub struct Clustering<'a> {
    /// `[passages][dim]`.
    pub(crate) vectors: &'a [f32],
    pub(crate) dim: usize,
    /// `[passages]`, each below `k`.
    pub(crate) labels: &'a [u32],
    /// `[k][dim]`.
    pub(crate) centroids: &'a [f32],
}

impl<'a> Clustering<'a> {
    /// Vectors `[passages][dim]`, labels `[passages]` and centroids `[k][dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit each other.
    pub fn new(vectors: &'a [f32], dim: usize, labels: &'a [u32], centroids: &'a [f32]) -> Result<Self> {
        let wrong = |what, expected: String, found: String| Err(Error::Shape { what, expected, found });
        if dim == 0 || vectors.len() != labels.len() * dim {
            let expected = format!("{} labels × {dim}, which is not 0", labels.len());
            return wrong("vectors", expected, vectors.len().to_string());
        }
        if !centroids.len().is_multiple_of(dim) {
            return wrong("centroids", format!("a multiple of {dim}"), centroids.len().to_string());
        }
        let k = centroids.len() / dim;
        if let Some(label) = labels.iter().find(|&&label| label as usize >= k) {
            return wrong("labels", format!("less than {k}"), label.to_string());
        }
        Ok(Clustering { vectors, dim, labels, centroids })
    }

    /// Number of clusters.
    pub fn k(&self) -> usize {
        self.centroids.len() / self.dim
    }

    fn vector(&self, passage: usize) -> &'a [f32] {
        self.vectors.get(passage * self.dim..(passage + 1) * self.dim).unwrap_or_default()
    }

    fn centroid(&self, cluster: usize) -> &'a [f32] {
        self.centroids.get(cluster * self.dim..(cluster + 1) * self.dim).unwrap_or_default()
    }

    /// Passages of each cluster, in order.
    fn members(&self) -> Vec<Vec<u32>> {
        let mut members = vec![Vec::new(); self.k()];
        for (passage, &label) in self.labels.iter().enumerate() {
            members[label as usize].push(passage as u32);
        }
        members
    }

    /// Squared distance of a passage to the centroid of its cluster.
    fn distance(&self, passage: usize) -> f64 {
        let centroid = self.centroid(self.labels[passage] as usize);
        squared_distance(self.vector(passage), centroid)
    }
}

/// In f64, in order.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b));
    differences.map(|difference| difference * difference).sum()
}
