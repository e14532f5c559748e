//! Clocks and medians.

use std::time::Instant;

/// Seconds that `work` takes.
pub(crate) fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// How often to repeat work that takes `once` seconds, for the clock to see `target` seconds.
pub(crate) fn repeats(once: f64, target: f64) -> usize {
    (target / once).ceil().clamp(1.0, 10_000.0) as usize
}

/// The middle of some numbers, or the mean of the two in the middle; 0 of none.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    match n {
        0 => 0.0,
        _ => (numbers[(n - 1) / 2] + numbers[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn short_work_is_repeated() {
        assert_eq!([0.0, 0.01, 0.3, 0.9, 5.0].map(|once| repeats(once, 0.9)), [10_000, 90, 3, 1, 1]);
    }
}
