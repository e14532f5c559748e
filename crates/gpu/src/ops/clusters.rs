//! clusters.

#![allow(unused)]
use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};
use std::borrow::Cow;
use tritrain_backend::*;

/// Rows that are being clustered.
#[derive(Debug)]
pub struct Clusters;

pub(crate) fn normalize_rows(gpu: &Gpu, x: &mut Floats, dim: usize) -> bool {
    todo!()
}

pub(crate) fn clusters(gpu: &Gpu, x: &Floats, dim: usize) -> Clusters {
    todo!()
}

pub(crate) fn assign(
    gpu: &Gpu,
    x: &Floats,
    centroids: &Floats,
    search: Search,
    clusters: &mut Clusters,
) -> Assigned {
    todo!()
}

pub(crate) fn sum_clusters(
    gpu: &Gpu,
    x: &Floats,
    clusters: &mut Clusters,
    sums: &mut [f64],
    counts: &mut [u64],
) {
    todo!()
}

pub(crate) fn cluster_distances(
    gpu: &Gpu,
    x: &Floats,
    centroids: &Floats,
    clusters: &Clusters,
    out: &mut Floats,
) {
    todo!()
}

pub(crate) fn approach(gpu: &Gpu, x: &Floats, centroid: &Floats, nearest: &mut Floats) {
    todo!()
}

pub(crate) fn spread(gpu: &Gpu, x: &Floats, clusters: &mut Clusters) -> f64 {
    todo!()
}

pub(crate) fn labels(gpu: &Gpu, clusters: &Clusters) -> Vec<u32> {
    todo!()
}

pub(crate) fn relabel(gpu: &Gpu, clusters: &mut Clusters, row: usize, label: u32) {
    todo!()
}

pub(crate) fn reset_clusters(gpu: &Gpu, clusters: &mut Clusters) {
    todo!()
}
