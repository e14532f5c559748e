//! The time, which tests replace.

use std::time::Instant;

/// Seconds since some moment.
pub(crate) trait Clock: Send + Sync {
    fn seconds(&self) -> f64;
}

/// The clock of the machine.
pub(crate) struct Real(Instant);

impl Real {
    pub(crate) fn new() -> Real {
        Real(Instant::now())
    }
}

impl Clock for Real {
    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
