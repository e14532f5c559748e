//! The guard: a step whose loss, gradient norm or update is not finite changes no weight.
//!
//! A loss or gradient that is not finite does not reach the optimizer's state either; with a spike guard, a
//! gradient that is not finite only leaves its own tensor as it is, unless all of them are broken. An update that is
//! not finite comes out of that state, which by then has advanced: if it holds the broken number, every
//! later step is skipped too and the run stops with its last checkpoint sound.

use serde::{Deserialize, Serialize};

/// Steps in a row that may be skipped before the run stops.
const IN_A_ROW: u64 = 8;

/// Which quantity was not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The mean loss of the batch.
    Loss,
    /// The norm of the gradient.
    GradientNorm,
    /// The norm of the update.
    UpdateNorm,
}

/// What to do with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the weights as they are and go to the next batch.
    Skip(Skip),
    /// Too many were skipped: more than eight in a row, or more than one in a hundred.
    Stop(Skip),
}

/// Counts skipped steps. Part of the resume state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Skipped since the last step that was taken.
    pub in_a_row: u64,
    /// Skipped in all.
    pub skipped: u64,
}

impl Guard {
    /// Notes that in step `step` (from 0) the quantity `what` was not finite.
    pub fn skipped(&mut self, what: Skip, step: u64) -> Verdict {
        self.in_a_row += 1;
        self.skipped += 1;
        let too_many = self.in_a_row > IN_A_ROW || self.skipped > IN_A_ROW.max((step + 1) / 100);
        if too_many { Verdict::Stop(what) } else { Verdict::Skip(what) }
    }

    /// Notes that a step was taken.
    pub fn taken(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_in_a_row_are_skipped_and_the_ninth_stops() {
        let mut guard = Guard::default();
        for step in 0..8 {
            assert_eq!(guard.skipped(Skip::Loss, step), Verdict::Skip(Skip::Loss));
        }
        assert_eq!(guard.skipped(Skip::Loss, 8), Verdict::Stop(Skip::Loss));
    }

    #[test]
    fn one_in_a_hundred_is_the_limit_over_a_long_run() {
        let (mut guard, mut stopped) = (Guard::default(), None);
        for step in 0..10_000 {
            if step % 50 != 49 {
                guard.taken();
            } else if let Verdict::Stop(_) = guard.skipped(Skip::GradientNorm, step) {
                stopped = Some(step);
                break;
            }
        }
        assert_eq!(stopped, Some(449), "the ninth skip, when 450 steps allow eight");
        let mut rare = Guard::default();
        for step in 0..10_000 {
            if step % 200 != 199 {
                rare.taken();
            } else {
                let verdict = rare.skipped(Skip::UpdateNorm, step);
                assert!(!matches!(verdict, Verdict::Stop(_)), "step {step}");
            }
        }
    }
}
