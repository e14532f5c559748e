//! What an update did to the matrices.

use tritrain_backend::RowReport;

/// Sums over the rows of matrices since the update began.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// `‖ΔW‖²` of all matrices, as applied after rounding.
    pub applied: f64,
    /// `‖W‖²` of all matrices, before.
    pub weights: f64,
    /// `‖u‖²` of the directions of all matrices, momentum included.
    pub direction: f64,
    /// Ternary codes that changed.
    pub flips: f64,
    /// Ternary codes that are zero.
    pub zeros: f64,
    /// Numbers in all matrices.
    pub numbers: f64,
    /// Rows that the trust region made shorter.
    pub bounded: f64,
    /// Rows of all matrices.
    pub rows: f64,
    /// Digits of latent weights, summed over rows.
    pub digits: f64,
    /// Tensors whose gradient the spike guard clipped or left.
    pub clipped: f64,
    /// Tensors that had a gradient.
    pub tensors: f64,
}

impl Report {
    /// Adds a row of `cols` numbers.
    pub fn add(&mut self, row: &RowReport, cols: usize) {
        self.applied += f64::from(row.applied);
        self.weights += f64::from(row.weights);
        self.direction += f64::from(row.direction);
        self.flips += f64::from(row.flips);
        self.zeros += f64::from(row.zeros);
        self.numbers += cols as f64;
        self.bounded += f64::from(row.bounded);
        self.rows += 1.0;
        self.digits += f64::from(row.digits);
    }

    /// Both together.
    pub fn with(self, other: &Report) -> Report {
        Report {
            applied: self.applied + other.applied,
            weights: self.weights + other.weights,
            direction: self.direction + other.direction,
            flips: self.flips + other.flips,
            zeros: self.zeros + other.zeros,
            numbers: self.numbers + other.numbers,
            bounded: self.bounded + other.bounded,
            rows: self.rows + other.rows,
            digits: self.digits + other.digits,
            clipped: self.clipped + other.clipped,
            tensors: self.tensors + other.tensors,
        }
    }

    /// Norm of the update as a share of that of the weights.
    pub fn relative(&self) -> f64 {
        if self.weights > 0.0 { (self.applied / self.weights).sqrt() } else { 0.0 }
    }

    /// Norm of the update at `rate` as a share of that of the weights, before rounding and bound.
    pub fn intended(&self, rate: f32) -> f64 {
        f64::from(rate) * (self.direction / self.numbers.max(1.0)).sqrt()
    }

    /// Share of the codes that changed.
    pub fn flip_rate(&self) -> f64 {
        self.flips / self.numbers.max(1.0)
    }

    /// Share of the tensors whose gradient the spike guard clipped or left.
    pub fn clipped_share(&self) -> f64 {
        self.clipped / self.tensors.max(1.0)
    }

    /// Share of the rows that the trust region made shorter.
    pub fn bounded_share(&self) -> f64 {
        self.bounded / self.rows.max(1.0)
    }

    /// Mean number of digits of latent weights, by rows, where they have digits.
    pub fn mean_digits(&self) -> Option<f64> {
        (self.digits > 0.0).then(|| self.digits / self.rows)
    }
}
