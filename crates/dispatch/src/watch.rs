//! When to doubt the costs of an operation.

use crate::EngineKind;

/// Predictions are wrong when they are off by more than this factor.
pub(crate) const WRONG: f64 = 2.0;
/// Weight of a new call in the running mean of errors.
const NEWEST: f64 = 1.0 / 8.0;
/// Calls before a mean of errors says something.
const CALLS: u32 = 8;
/// Seconds of work for each second of an audit: half a percent of the time goes into them.
const ROUTINE: f64 = 200.0;
/// The same where calls take other times than predicted.
const SUSPECT: f64 = 20.0;

/// What is known of one operation since its costs were last compared with a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    /// Whether they ever were.
    audited: bool,
    /// Seconds that the last audit took, repair included.
    cost: f64,
    /// Seconds of work since.
    spent: f64,
    /// By engine: calls since, and the running mean of `ln(measured / predicted)`.
    errors: [(u32, f64); 4],
}

impl Watch {
    /// Costs that were measured just now, in so many seconds.
    pub(crate) fn measured(cost: f64) -> Watch {
        Watch { audited: true, cost, ..Watch::default() }
    }

    /// A call took `seconds`; `comparable` where that depends on nothing but the sizes.
    pub(crate) fn saw(&mut self, engine: EngineKind, predicted: f64, seconds: f64, comparable: bool) {
        self.spent += seconds;
        if comparable && predicted > 0.0 && seconds > 0.0 {
            let (calls, mean) = &mut self.errors[engine.index()];
            *calls = calls.saturating_add(1);
            let weight = NEWEST.max(1.0 / f64::from(*calls));
            *mean += weight * ((seconds / predicted).ln() - *mean);
        }
    }

    /// Whether the costs should be compared with a measurement now.
    pub(crate) fn is_due(&self) -> bool {
        let suspect = self.errors.iter().any(|(calls, mean)| *calls >= CALLS && mean.abs() > WRONG.ln());
        !self.audited || self.spent >= self.cost * if suspect { SUSPECT } else { ROUTINE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adopted_costs_are_audited_first_and_measured_ones_after_a_share_of_time() {
        assert!(Watch::default().is_due());
        let mut watch = Watch::measured(0.01);
        for _ in 0..199 {
            watch.saw(EngineKind::Simd, 0.01, 0.01, true);
            assert!(!watch.is_due());
        }
        watch.saw(EngineKind::Simd, 0.01, 0.0101, true);
        assert!(watch.is_due());
    }

    #[test]
    fn calls_that_take_other_times_make_an_audit_due_sooner() {
        for error in [2.5, 1.0 / 2.5] {
            let mut watch = Watch::measured(0.0099);
            let due = (1..).find(|_| {
                watch.saw(EngineKind::Parallel, 0.01, 0.01 * error, true);
                watch.is_due()
            });
            let calls = (20.0 * 0.0099 / (0.01 * error)).ceil().max(f64::from(CALLS)) as u32;
            assert_eq!(due, Some(calls));
        }
        let mut watch = Watch::measured(0.01);
        for _ in 0..19 {
            watch.saw(EngineKind::Parallel, 0.001, 0.01, false);
            assert!(!watch.is_due(), "times of a fit depend on its rows");
        }
    }
}
