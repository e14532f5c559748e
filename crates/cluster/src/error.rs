//! What makes clustering impossible.

/// Why rows cannot be clustered as asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// No cluster was asked for.
    #[error("k is 0: expected 1 to {rows}, the number of rows")]
    NoClusters {
        /// Rows there are.
        rows: usize,
    },
    /// More clusters than rows.
    #[error("k is {k}: expected at most {rows}, the number of rows (take a smaller k)")]
    TooManyClusters {
        /// Clusters asked for.
        k: usize,
        /// Rows there are.
        rows: usize,
    },
    /// More clusters than different rows.
    #[error("k is {k}: expected at most {distinct}, the number of different rows (take a smaller k)")]
    TooFewDistinct {
        /// Clusters asked for.
        k: usize,
        /// Different rows there are.
        distinct: usize,
    },
    /// An entry is NaN or infinite.
    #[error("{what}, row {row}, column {column}: expected a finite number, found {found}")]
    NotFinite {
        /// Whose entry it is.
        what: &'static str,
        /// Where, from 0.
        row: usize,
        /// Where, from 0.
        column: usize,
        /// What it is.
        found: f32,
    },
    /// A row without a direction, where directions are clustered.
    #[error("{what}, row {row} is zero: expected a direction (drop such rows, or do not cluster by angle)")]
    ZeroRow {
        /// Whose row it is.
        what: &'static str,
        /// Which, from 0.
        row: usize,
    },
    /// A matrix has another shape than it must have.
    #[error("shape of {what}: expected {expected}, found {found}")]
    Shape {
        /// Which matrix.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The tolerance is no number from 0 on.
    #[error("tolerance: expected a number from 0 on, found {found}")]
    Tolerance {
        /// What it is.
        found: f64,
    },
    /// Too few rows to compare numbers of clusters.
    #[error("a choice of k needs at least 3 different rows, found {distinct} (give k)")]
    NothingToChoose {
        /// Different rows there are.
        distinct: usize,
    },
}
