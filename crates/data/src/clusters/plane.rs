//! Vectors on a plane, to be drawn.

use rayon::prelude::*;

use crate::embed::eigen;

/// Rows that one task sums.
const BLOCK: usize = 4096;

/// The two principal components of vectors `[n][dim]`: their coordinates along the two directions in
/// which they differ most, from their mean. The same bits on any number of threads.
pub fn plane(vectors: &[f32], dim: usize) -> Vec<[f32; 2]> {
    let n = vectors.len().checked_div(dim).unwrap_or(0);
    if n == 0 {
        return Vec::new();
    }
    let add = |mut sum: Vec<f64>, part: Vec<f64>| {
        sum.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
        sum
    };
    let sums = |rows: &[f32]| {
        let mut sum = vec![0.0; dim];
        for row in rows.chunks_exact(dim) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        sum
    };
    let parts: Vec<Vec<f64>> = vectors.par_chunks(BLOCK * dim).map(sums).collect();
    let mut mean = parts.into_iter().fold(vec![0.0; dim], add);
    mean.iter_mut().for_each(|x| *x /= n as f64);
    let squares = |rows: &[f32]| {
        let (mut sum, mut centred) = (vec![0.0; dim * dim], vec![0.0; dim]);
        for row in rows.chunks_exact(dim) {
            centred
                .iter_mut()
                .zip(row.iter().zip(&mean))
                .for_each(|(out, (x, mean))| *out = f64::from(*x) - mean);
            for (i, &a) in centred.iter().enumerate() {
                sum[i * dim..][..dim].iter_mut().zip(&centred).for_each(|(sum, b)| *sum += a * b);
            }
        }
        sum
    };
    let parts: Vec<Vec<f64>> = vectors.par_chunks(BLOCK * dim).map(squares).collect();
    let covariance = parts.into_iter().fold(vec![0.0; dim * dim], add);
    let (_, axes) = eigen(covariance, dim);
    let along = |row: &[f32], axis: usize| {
        let axis = axes.get(axis).map_or(&[][..], Vec::as_slice);
        row.iter().zip(&mean).zip(axis).map(|((x, mean), axis)| (f64::from(*x) - mean) * axis).sum::<f64>()
            as f32
    };
    vectors.par_chunks_exact(dim).map(|row| [along(row, 0), along(row, 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_a_plane_keep_their_distances() {
        // Points on a tilted plane in four dimensions: x·(1,1,0,0)/√2 + y·(0,0,1,1)/√2 + (9,0,0,9).
        let points = [(-3.0f32, 0.5f32), (1.0, -1.0), (2.0, 0.5), (0.0, 0.0)];
        let half = 0.5f32.sqrt();
        let vectors: Vec<f32> =
            points.iter().flat_map(|(x, y)| [x * half + 9.0, x * half, y * half, y * half + 9.0]).collect();
        let found = plane(&vectors, 4);
        for i in 0..4 {
            for j in 0..4 {
                let expected = (points[i].0 - points[j].0).hypot(points[i].1 - points[j].1);
                let distance = (found[i][0] - found[j][0]).hypot(found[i][1] - found[j][1]);
                assert!((expected - distance).abs() < 1e-5, "{i} {j}");
            }
        }
        let along: f32 = found.iter().map(|p| p[0] * p[0]).sum();
        assert!(along > found.iter().map(|p| p[1] * p[1]).sum(), "the first axis is the longer one");
    }

    #[test]
    fn small_inputs() {
        assert_eq!(plane(&[], 4), [[0.0; 2]; 0]);
        assert_eq!(plane(&[1.0, 2.0], 2), [[0.0, 0.0]]);
        assert_eq!(plane(&[1.0, 3.0], 1), [[-1.0, 0.0], [1.0, 0.0]]);
        assert_eq!(plane(&[1.0], 0), [[0.0; 2]; 0]);
    }
}
