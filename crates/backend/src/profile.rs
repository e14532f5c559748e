//! Where the time of a backend goes, by operation.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time spent in one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Calls.
    pub calls: u64,
    /// All calls together.
    pub time: Duration,
}

/// Sums of [`Spent`] by name of operation.
#[derive(Debug, Default)]
pub(crate) struct Profile(Mutex<BTreeMap<&'static str, Spent>>);

impl Profile {
    /// Counts one call, until the span is dropped.
    pub(crate) fn span(&self, name: &'static str) -> Span<'_> {
        Span { profile: self, name, started: Instant::now() }
    }

    /// What was spent since the last call of this function.
    pub(crate) fn take(&self) -> BTreeMap<&'static str, Spent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A call under way.
pub(crate) struct Span<'a> {
    profile: &'a Profile,
    name: &'static str,
    started: Instant,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        let mut sums = self.profile.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spent = sums.entry(self.name).or_default();
        spent.calls += 1;
        spent.time += self.started.elapsed();
    }
}
