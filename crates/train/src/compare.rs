//! A ternary run beside its f32 twin: the gap and how alike the two loss curves are.

use serde::Serialize;

use crate::Evaluation;

/// The training losses of a run, step by step, and its last evaluation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Curve {
    /// Loss of every step.
    pub losses: Vec<f32>,
    /// Step and validation loss of every evaluation.
    pub evaluations: Vec<(u64, f64)>,
    /// The last evaluation.
    pub last: Option<Evaluation>,
}

/// Two curves compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Validation loss of the ternary model, nats per token.
    pub ternary_loss: f64,
    /// Validation loss of the f32 twin.
    pub f32_loss: f64,
    /// `(ternary / f32 - 1) · 100`.
    pub gap_percent: f64,
    /// Pearson correlation of the training losses, step by step.
    pub pearson_r: f64,
}

impl Comparison {
    /// Compares the last evaluations and the whole curves; `None` when a run was never evaluated.
    pub fn new(ternary: &Curve, f32: &Curve) -> Option<Comparison> {
        let (ternary_loss, f32_loss) = (ternary.last.as_ref()?.loss, f32.last.as_ref()?.loss);
        Some(Comparison {
            ternary_loss,
            f32_loss,
            gap_percent: (ternary_loss / f32_loss - 1.0) * 100.0,
            pearson_r: pearson(&ternary.losses, &f32.losses),
        })
    }
}

/// Pearson correlation over the steps both have; NaN when one does not vary.
pub fn pearson(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().min(b.len());
    let mean = |x: &[f32]| x[..n].iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a[..n].iter().zip(&b[..n]) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pearson_of_known_curves() {
        let a = [1.0, 2.0, 3.0, 5.0];
        assert!((pearson(&a, &a.map(|v| 3.0 - 2.0 * v)) + 1.0).abs() < 1e-12);
        // By hand: deviations (-1.75, -0.75, 0.25, 2.25) and (0.5, -0.5, 0.5, -0.5).
        let expected = (-0.875 + 0.375 + 0.125 - 1.125) / (8.75f64 * 1.0).sqrt();
        assert!((pearson(&a, &[1.0, 0.0, 1.0, 0.0]) - expected).abs() < 1e-12);
        assert!(pearson(&a, &[1.0; 4]).is_nan());
    }
}
