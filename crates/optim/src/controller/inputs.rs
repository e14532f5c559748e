//! What the controller sees: six numbers without a scale, made of what steps measured.

use serde::{Deserialize, Serialize};

use super::network::INPUTS;

/// Every input lies within ± this.
const CLIP: f64 = 3.0;
/// The update-to-weight ratio at the peak of the schedule that is input 0.
pub const RATIO: f64 = 0.01;

/// Memory of the fast running mean in steps, and of the slow one.
const FAST: f64 = 10.0;
const SLOW: f64 = 50.0;
/// Deviations are taken to be this at least.
const LEAST: f64 = 1e-3;
/// Logarithms are taken of this at least.
const TINY: f64 = 1e-30;
/// Deviation of the log gradient norm that is input 0.
const USUAL_DEVIATION: f64 = 0.1;

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signals {
    /// Mean loss of the batch in nats per token; finite.
    pub loss: f64,
    /// Norm of the gradient; finite.
    pub gradient_norm: f64,
    /// Learning rate of the step before any multiplier, as a share of the schedule's peak.
    pub share: f64,
    /// Share of the schedule that is behind, 0 to 1.
    pub done: f64,
}

/// Mean and variance of a series that forgets: weights of past values fall by `1 - 1/memory` a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Running {
    mean: f64,
    variance: f64,
    /// Sum of the weights of what came so far, which tends to one.
    weight: f64,
}

impl Running {
    fn push(&mut self, value: f64, memory: f64) {
        let new = 1.0 / memory;
        self.weight += new * (1.0 - self.weight);
        let (share, difference) = (new / self.weight, value - self.mean);
        self.mean += share * difference;
        self.variance = (1.0 - share) * (self.variance + share * difference * difference);
    }

    fn deviation(&self) -> f64 {
        self.variance.sqrt().max(LEAST)
    }
}

/// Running statistics of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    /// Of the log of the loss.
    fast: Running,
    slow: Running,
    /// Of the log of the gradient norm.
    gradient: Running,
}

impl History {
    /// Takes in what a step measured, and gives the inputs but for that of the cluster:
    ///
    /// | input | |
    /// |---|---|
    /// | 0 loss | log ratio to its slow running mean, in tenths |
    /// | 1 gradient norm | z-score of its log |
    /// | 2 cluster | [`cluster_input`] |
    /// | 3 loss trend | fast less slow running mean of the log loss, in deviations |
    /// | 4 gradient variance | log of the deviation of the log gradient norm, to 0.1 |
    /// | 5 step | -1 at the start of the schedule, 1 at its end |
    pub(super) fn push(&mut self, signals: &Signals) -> [f64; INPUTS] {
        let (loss, gradient) = (log(signals.loss), log(signals.gradient_norm));
        let first = self.slow.weight == 0.0;
        let before = |running: &Running, value: f64| if first { 0.0 } else { value - running.mean };
        let surprise = before(&self.slow, loss) / 0.1;
        let score = before(&self.gradient, gradient) / self.gradient.deviation();
        self.fast.push(loss, FAST);
        self.slow.push(loss, SLOW);
        self.gradient.push(gradient, SLOW);
        let trend = (self.fast.mean - self.slow.mean) / self.slow.deviation();
        let variance = log(self.gradient.deviation() / USUAL_DEVIATION);
        [surprise, score, 0.0, trend, variance, 2.0 * signals.done - 1.0].map(clip)
    }
}

/// Input of a cluster: log of its update-to-weight ratio, as it would be at the peak of the schedule,
/// over [`RATIO`].
pub(super) fn cluster_input(ratio: f64, share: f64) -> f64 {
    clip(log(ratio / share.max(TINY) / RATIO))
}

fn clip(x: f64) -> f64 {
    x.clamp(-CLIP, CLIP)
}

fn log(x: f64) -> f64 {
    libm::log(x.max(TINY))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside sums over the whole series.
    #[test]
    fn running_moments_are_weighted_moments() {
        let series: Vec<f64> = (0..200).map(|i| f64::from(i * i % 37) - 0.1 * f64::from(i)).collect();
        let mut running = Running::default();
        for (last, value) in series.iter().enumerate() {
            running.push(*value, SLOW);
            let weights: Vec<f64> = (0..=last).map(|i| (1.0 - 1.0 / SLOW).powi((last - i) as i32)).collect();
            let total: f64 = weights.iter().sum();
            let mean = weights.iter().zip(&series).map(|(w, x)| w * x).sum::<f64>() / total;
            let square =
                weights.iter().zip(&series).map(|(w, x)| w * (x - mean).powi(2)).sum::<f64>() / total;
            assert!((running.mean - mean).abs() < 1e-9 * mean.abs().max(1.0), "step {last}");
            assert!((running.variance - square).abs() < 1e-9 * square.max(1.0), "step {last}");
        }
    }

    #[test]
    fn inputs_have_no_scale() {
        let of = |scale: f64| {
            let mut history = History::default();
            let steps = (0..120u32).map(|i| {
                let wave = 1.0 + 0.1 * f64::from(i * 7 % 11);
                history.push(&Signals {
                    loss: scale * wave * (5.0 - 0.02 * f64::from(i)),
                    gradient_norm: scale * wave * wave,
                    share: 1.0,
                    done: f64::from(i) / 120.0,
                })
            });
            steps.collect::<Vec<_>>()
        };
        for (small, large) in of(1.0).iter().zip(of(1000.0)) {
            assert!(small.iter().zip(large).all(|(a, b)| (a - b).abs() < 1e-9), "{small:?} {large:?}");
        }
        let last = of(1.0)[119];
        assert!(last[3] < -0.5, "a falling loss has a negative trend: {last:?}");
    }

    #[test]
    fn a_ratio_is_compared_with_the_peak() {
        assert_eq!(cluster_input(RATIO, 1.0), 0.0);
        assert!((cluster_input(RATIO / 8.0, 0.25) + 2f64.ln()).abs() < 1e-12);
        assert_eq!((cluster_input(0.0, 1.0), cluster_input(1.0, 0.0)), (-CLIP, CLIP));
    }
}
