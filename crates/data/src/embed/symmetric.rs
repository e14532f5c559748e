//! Eigenvalues and eigenvectors of a small symmetric matrix.

/// Sweeps at most: Jacobi converges quadratically, and 80 × 80 takes eight.
const SWEEPS: usize = 64;

/// Eigenvalues in falling order, and the eigenvectors as rows, of a symmetric matrix `[n][n]`.
///
/// Cyclic Jacobi (Golub, Van Loan, Matrix Computations, 8.5), serial: the same bits everywhere. The
/// largest component of each vector is positive; equal eigenvalues keep their order.
pub(crate) fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut rows: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(i == j)).collect()).collect();
    let scale: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let mut off = 0.0;
        for p in 0..n {
            for q in p + 1..n {
                off += a[p * n + q] * a[p * n + q];
                rotate(&mut a, &mut rows, n, p, q);
            }
        }
        if off <= 1e-30 * scale {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let vectors = order.into_iter().map(|i| upright(std::mem::take(&mut rows[i]))).collect();
    (values, vectors)
}

/// Makes `a[p][q]` zero by a rotation of rows and columns `p` and `q`.
fn rotate(a: &mut [f64], rows: &mut [Vec<f64>], n: usize, p: usize, q: usize) {
    let off = a[p * n + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
    let t = if theta < 0.0 { -1.0 } else { 1.0 } / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..n {
        let (x, y) = (a[i * n + p], a[i * n + q]);
        a[i * n + p] = c * x - s * y;
        a[i * n + q] = s * x + c * y;
    }
    for i in 0..n {
        let (x, y) = (a[p * n + i], a[q * n + i]);
        a[p * n + i] = c * x - s * y;
        a[q * n + i] = s * x + c * y;
        let (x, y) = (rows[p][i], rows[q][i]);
        rows[p][i] = c * x - s * y;
        rows[q][i] = s * x + c * y;
    }
}

/// The vector or its negative: the one whose first component of largest size is positive.
fn upright(mut vector: Vec<f64>) -> Vec<f64> {
    let largest = vector.iter().fold(0.0f64, |best, &x| if x.abs() > best.abs() { x } else { best });
    if largest < 0.0 {
        vector.iter_mut().for_each(|x| *x = -*x);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_matrices() {
        let (values, vectors) = eigen(vec![2.0, 1.0, 1.0, 2.0], 2);
        let half = 0.5f64.sqrt();
        assert!((values[0] - 3.0).abs() < 1e-15 && (values[1] - 1.0).abs() < 1e-15, "{values:?}");
        assert!((vectors[0][0] - half).abs() < 1e-15 && (vectors[0][1] - half).abs() < 1e-15);
        assert!((vectors[1][0] * vectors[1][1] + 0.5).abs() < 1e-15);
        assert_eq!(eigen(vec![0.0; 9], 3).0, [0.0; 3]);
        assert_eq!(eigen(vec![], 0).0, [0.0; 0]);
        assert_eq!(eigen(vec![-4.0], 1), (vec![-4.0], vec![vec![1.0]]));
    }

    proptest! {
        /// A v = λ v, and the vectors are orthonormal.
        #[test]
        fn eigenvectors_are_what_they_are_called(n in 1usize..12, seed: u64) {
            let stream = tritrain_trit::rng::Stream::new(seed, 0, 0);
            let mut a = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    let x = f64::from(stream.normal((i * n + j) as u64));
                    (a[i * n + j], a[j * n + i]) = (x, x);
                }
            }
            let (values, vectors) = eigen(a.clone(), n);
            for (k, (value, vector)) in values.iter().zip(&vectors).enumerate() {
                for i in 0..n {
                    let product: f64 = (0..n).map(|j| a[i * n + j] * vector[j]).sum();
                    prop_assert!((product - value * vector[i]).abs() < 1e-11, "{product} {}", value * vector[i]);
                }
                for (other, expected) in vectors.iter().zip((0..).map(|l| f64::from(k == l))) {
                    let dot: f64 = vector.iter().zip(other).map(|(x, y)| x * y).sum();
                    prop_assert!((dot - expected).abs() < 1e-12);
                }
                prop_assert!(k == 0 || values[k - 1] >= *value);
            }
        }
    }
}
