//! The products of a linear layer, ternary against f32.

use serde::Serialize;
use tritrain_kernels::{
    Context, Floats, Store, Tier,
    matmul::{self, View},
    outer, ternary,
};
use tritrain_trit::rng::Stream;

use crate::{BenchError, time};

/// Billions of multiply-adds a second, and ratios of medians from alternating runs.
#[derive(Clone, Debug, Serialize)]
pub struct GemmReport {
    /// `y = x·wᵀ` with ternary codes and int8 rows.
    pub ternary_gmacs: f64,
    /// The same in f32, by the `gemm` crate.
    pub f32_gmacs: f64,
    /// Time of f32 over time of ternary.
    pub ternary_over_f32: f64,
    /// The same for `dx = dy·w`.
    pub dx_over_f32: f64,
    /// The same for `dw = dyᵀ·x`, quantisation of the gradients included.
    pub dw_over_f32: f64,
    /// Threads used.
    pub threads: usize,
    /// Instructions used.
    pub tier: &'static str,
}

/// Seconds that one pair of runs should take at least: short runs are repeated.
const TARGET: f64 = 0.05;

/// Measures `m` tokens, `n` outputs and `k` inputs in `pairs` alternating pairs.
///
/// # Errors
/// A size is zero, or the threads cannot be started.
pub fn gemm(m: usize, n: usize, k: usize, threads: usize, pairs: usize) -> Result<GemmReport, BenchError> {
    for (option, size) in [("m", m), ("n", n), ("k", k)] {
        if size == 0 {
            return Err(BenchError::Zero { option });
        }
    }
    let cx = Context::new(Tier::detect()?, threads)?;
    let floats = |stream: u32, len: usize| -> Vec<f32> {
        let random = Stream::new(1, stream, 0);
        (0..len as u64).map(|i| random.normal(i)).collect()
    };
    let (x, w, dy) = (floats(0, m * k), floats(1, n * k), floats(2, m * n));
    let int8 = |values: &[f32]| -> Vec<i8> { values.iter().map(|v| (v * 40.0) as i8).collect() };
    let (x8, dy8, scales) = (int8(&x), int8(&dy), vec![1.0; m]);
    let codes: Vec<i8> = w.iter().map(|w| i8::from(*w > 0.4) - i8::from(*w < -0.4)).collect();
    let (mut forward, mut backward) = (ternary::Panels::zeros(n, k), ternary::Panels::zeros(k, n));
    let source = ternary::Rows { elements: &codes[..], cols: k };
    ternary::pack(&cx, source, (n, k), Some(&mut forward), Some(&mut backward));
    let result = |len: usize| (Floats::zeros(len), Floats::zeros(len));
    let ((mut y, mut y32), (mut dx, mut dx32), (mut dw, mut dw32)) =
        (result(m * n), result(m * k), result(n * k));
    let mut scratch = ternary::Scratch::default();
    let mut gradients = outer::Scratch::default();
    let (xs, ws, dys) = (View::new(&x, m, k), View::new(&w, n, k), View::new(&dy, m, n));

    let (forward_ours, forward_theirs) = alternate(
        pairs,
        || ternary::matmul(&cx, &x8, &scales, &forward, 1.0, None, &mut scratch, &mut y),
        || matmul::matmul(&cx, xs, ws.t(), 0.0, &mut y32),
    );
    let (dx_ours, dx_theirs) = alternate(
        pairs,
        || ternary::matmul(&cx, &dy8, &scales, &backward, 1.0, None, &mut scratch, &mut dx),
        || matmul::matmul(&cx, dys, ws, 0.0, &mut dx32),
    );
    let (dw_ours, dw_theirs) = alternate(
        pairs,
        || outer::weight_gradient(&cx, &dy, &scales, &x8, Store::Replace, &mut gradients, &mut dw),
        || matmul::matmul(&cx, dys.t(), xs, 0.0, &mut dw32),
    );
    let gmacs = m as f64 * n as f64 * k as f64 / 1e9;
    Ok(GemmReport {
        ternary_gmacs: gmacs / forward_ours,
        f32_gmacs: gmacs / forward_theirs,
        ternary_over_f32: forward_theirs / forward_ours,
        dx_over_f32: dx_theirs / dx_ours,
        dw_over_f32: dw_theirs / dw_ours,
        threads: cx.threads(),
        tier: cx.tier().name(),
    })
}

/// Median seconds of two pieces of work, from `pairs` alternating measurements.
fn alternate(pairs: usize, mut ours: impl FnMut(), mut theirs: impl FnMut()) -> (f64, f64) {
    // Warm up, and see how often to repeat.
    ours();
    let once = time::seconds(&mut ours) + time::seconds(&mut theirs);
    let repeats = time::repeats(once, TARGET);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..pairs.max(1) {
        a.push(time::seconds(|| (0..repeats).for_each(|_| ours())) / repeats as f64);
        b.push(time::seconds(|| (0..repeats).for_each(|_| theirs())) / repeats as f64);
    }
    (time::median(a), time::median(b))
}
