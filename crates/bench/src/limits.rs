//! What the instructions and the memory of this machine allow, measured with as many threads.
//!
//! Of several measurements the best counts: other programs can only take away from a limit.

use serde::Serialize;
use tritrain_kernels::{
    Context, ContextError, Tier,
    limit::{self, Kind},
};

use crate::time;

/// What this machine does at most with the instructions and threads used.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Billions of multiply-adds a second of bytes, from registers; none for the scalar tier.
    pub int8_gmacs: Option<f64>,
    /// The same of int16.
    pub int16_gmacs: Option<f64>,
    /// The same of f32.
    pub f32_gmacs: Option<f64>,
    /// Gigabytes a second read from a buffer that no cache of these threads holds.
    pub read_gb_per_s: f64,
}

/// Rounds of a loop of multiply-adds: about ten milliseconds, as long as an operation is measured. A shorter
/// one would slip through between the turns of other programs, and find a limit that operations never have.
const ROUNDS: u64 = 1 << 22;
/// Bytes of the buffer in memory.
const MEMORY: usize = 256 << 20;
/// Seconds that a measurement of reading should take.
const TARGET: f64 = 0.02;
/// Measurements of which the best counts.
const RUNS: usize = 5;

impl Limits {
    /// Measures them.
    pub(crate) fn measure(cx: &Context) -> Limits {
        let most = |kind| (0..RUNS).filter_map(|_| gmacs(cx, kind)).reduce(f64::max);
        let reader = Reader::new(cx, MEMORY);
        Limits {
            int8_gmacs: most(Kind::Int8),
            int16_gmacs: most(Kind::Int16),
            f32_gmacs: most(Kind::F32),
            read_gb_per_s: (0..RUNS).map(|_| reader.gb_per_s()).fold(0.0, f64::max),
        }
    }

    /// Takes a limit of one kind that was seen later, where it is higher.
    pub(crate) fn raise(&mut self, kind: Kind, gmacs: f64) {
        let limit = match kind {
            Kind::Int8 => &mut self.int8_gmacs,
            Kind::Int16 => &mut self.int16_gmacs,
            Kind::F32 => &mut self.f32_gmacs,
        };
        *limit = limit.map(|limit| limit.max(gmacs));
    }
}

/// The widest instructions of this machine: those that the f32 GEMM takes, whatever the tier.
pub(crate) fn widest(threads: usize) -> Result<Context, ContextError> {
    let tier = Tier::available().last().copied().unwrap_or(Tier::SCALAR);
    Context::new(tier, threads)
}

/// Billions of multiply-adds a second from registers, once.
fn gmacs(cx: &Context, kind: Kind) -> Option<f64> {
    let mut count = None;
    let seconds = time::seconds(|| count = limit::multiply_adds(cx, kind, ROUNDS));
    count.map(|count| count as f64 / seconds / 1e9)
}

/// Seconds that `macs` take from registers at least, measured now; none where one of them has no limit.
pub(crate) fn least_seconds(cx: &Context, macs: &[(Kind, f64)]) -> Option<f64> {
    macs.iter().map(|(kind, count)| gmacs(cx, *kind).map(|limit| count / limit / 1e9)).sum()
}

/// A buffer that is read again and again, each thread its own part.
pub(crate) struct Reader<'a> {
    cx: &'a Context,
    data: Vec<u64>,
    times: u64,
}

impl Reader<'_> {
    /// A buffer of `bytes` bytes, in the caches as far as it fits.
    pub(crate) fn new(cx: &Context, bytes: usize) -> Reader<'_> {
        // Not zeros, which the system would not give memory of their own.
        let data = vec![1u64; bytes.div_ceil(8).max(1)];
        limit::read(cx, &data, 1);
        let once = time::seconds(|| {
            limit::read(cx, &data, 1);
        });
        let times = time::repeats(once, TARGET) as u64;
        Reader { cx, data, times }
    }

    /// Gigabytes a second, once.
    pub(crate) fn gb_per_s(&self) -> f64 {
        let seconds = time::seconds(|| {
            limit::read(self.cx, &self.data, self.times);
        });
        (self.data.len() * 8) as f64 * self.times as f64 / seconds / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_only_rises() {
        let mut limits =
            Limits { int8_gmacs: Some(3.0), int16_gmacs: None, f32_gmacs: Some(1.0), read_gb_per_s: 1.0 };
        for kind in [Kind::Int8, Kind::Int16, Kind::F32] {
            limits.raise(kind, 2.0);
        }
        assert_eq!((limits.int8_gmacs, limits.int16_gmacs, limits.f32_gmacs), (Some(3.0), None, Some(2.0)));
    }

    #[test]
    fn work_of_several_kinds_takes_the_sum_of_their_times() {
        for tier in Tier::available() {
            let cx = Context::new(tier, 1).unwrap();
            let none = tier == Tier::SCALAR;
            assert_eq!(least_seconds(&cx, &[(Kind::Int8, 1e6)]).is_none(), none);
            assert_eq!(least_seconds(&cx, &[]), Some(0.0));
            let zero = [(Kind::Int8, 0.0), (Kind::F32, 0.0)];
            assert_eq!(least_seconds(&cx, &zero), (!none).then_some(0.0));
        }
    }
}
