//! When a run goes back to an earlier checkpoint: clipping alone did not help.

use serde::{Deserialize, Serialize};

/// Steps that are looked back on.
pub const WINDOW: u64 = 50;
/// Bad ones among them that are too many.
const TOO_MANY: u32 = 10;
/// Share of the tensors that were clipped in a bad step.
const BAD: f64 = 0.5;
/// A loss is high beyond this many times its running mean.
const HIGH: f64 = 1.5;
/// Weight of a new loss in the mean, but for the first ones.
const NEW: f64 = 0.01;
/// How often a run goes back.
const MOST: u32 = 3;

/// The state behind that decision. Part of the resume state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setbacks {
    /// How often the run went back.
    pub times: u32,
    /// A bit for each of the last steps, set where it was bad; the newest is the lowest.
    bad: u64,
    /// Mean loss of the steps that were not high, and their number.
    loss: f64,
    seen: u64,
    /// Steps in a row whose loss was high.
    high: u64,
}

impl Setbacks {
    /// Takes up a step: its loss and the share of the tensors that was clipped. Returns whether to go back: ten of
    /// the last fifty steps were bad, or the loss of all of them was 1.5 times its mean before, and the run did not
    /// go back three times yet.
    pub fn step(&mut self, loss: f32, clipped: f64) -> bool {
        self.bad = (self.bad << 1 | u64::from(clipped > BAD)) & ((1 << WINDOW) - 1);
        let loss = f64::from(loss);
        if self.seen >= WINDOW && loss > HIGH * self.loss {
            self.high += 1;
        } else {
            self.high = 0;
            self.seen += 1;
            self.loss += NEW.max(1.0 / self.seen as f64) * (loss - self.loss);
        }
        self.times < MOST && (self.bad.count_ones() >= TOO_MANY || self.high >= WINDOW)
    }

    /// After going back once more.
    #[must_use]
    pub fn again(&self) -> Setbacks {
        Setbacks { times: self.times + 1, ..Setbacks::default() }
    }

    /// What rates and radius are multiplied by.
    pub fn share(&self) -> f32 {
        0.5f32.powi(self.times as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps before the first one that asks to go back.
    fn first(setbacks: &mut Setbacks, steps: impl Iterator<Item = (f32, f64)>) -> Option<usize> {
        steps.into_iter().position(|(loss, clipped)| setbacks.step(loss, clipped))
    }

    #[test]
    fn ten_of_fifty_bad_steps_are_too_many() {
        let every = |n: usize| (0..1000).map(move |step| (3.0, f64::from(u8::from(step % n == 0))));
        assert_eq!(first(&mut Setbacks::default(), every(5)), Some(45));
        assert_eq!(first(&mut Setbacks::default(), every(6)), None, "nine of fifty at most");
        assert_eq!(first(&mut Setbacks::default(), (0..1000).map(|_| (3.0, 0.5))), None, "half is not more");
    }

    #[test]
    fn a_loss_that_stays_high_is_a_setback() {
        let losses = |high: usize| (0..200).chain(0..high).map(|_| 3.0f32).enumerate();
        let of = |high| losses(high).map(|(step, loss)| (if step < 200 { loss } else { 5.0 }, 0.0));
        assert_eq!(first(&mut Setbacks::default(), of(49)), None);
        assert_eq!(first(&mut Setbacks::default(), of(50)), Some(249));
        let falling = (0..1000).map(|step| (8.0 / (1.0 + step as f32 / 50.0), 0.0));
        assert_eq!(first(&mut Setbacks::default(), falling), None);
    }

    #[test]
    fn it_goes_back_three_times_and_halves_its_rates_each_time() {
        let bad = || (0..100).map(|_| (3.0, 1.0));
        let mut setbacks = Setbacks::default();
        for times in 0..3 {
            assert_eq!(setbacks.share(), 0.5f32.powi(times));
            assert!(first(&mut setbacks, bad()).is_some());
            setbacks = setbacks.again();
        }
        assert_eq!(first(&mut setbacks, bad()), None);
    }
}
