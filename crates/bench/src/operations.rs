//! Every operation of a training step, against what the machine allows and against the scalar tier.

use serde::Serialize;
use tritrain_backend::{Backend, Cpu};
use tritrain_kernels::{Context, Tier};
use tritrain_model::{ModelConfig, Precision};

use crate::{
    BenchError, ModelShape,
    limits::{self, Limits},
    time,
    work::{Build, F32_PRODUCT, OPERATIONS, Work},
};

/// What every operation takes.
#[derive(Clone, Debug, Serialize)]
pub struct OperationsReport {
    /// What the machine allows.
    pub limits: Limits,
    /// The operations, in about the order of a step.
    pub operations: Vec<OperationReport>,
    /// Threads used.
    pub threads: usize,
    /// Instructions used.
    pub tier: &'static str,
}

/// What one operation takes.
#[derive(Clone, Debug, Serialize)]
pub struct OperationReport {
    /// The operation.
    pub name: &'static str,
    /// Milliseconds of a call.
    pub ms: f64,
    /// Billions of multiply-adds a second, where it multiplies.
    pub gmacs: Option<f64>,
    /// Time that its multiply-adds would take from registers over its time, measured in turns. The fastest
    /// run of each counts, the ones that other programs disturbed least.
    pub share_of_limit: Option<f64>,
    /// Bytes that it moves at least.
    pub bytes: usize,
    /// Gigabytes a second of those.
    pub gb_per_s: f64,
    /// The same over what is read from memory; above one, data come from caches.
    pub share_of_bandwidth: f64,
    /// Milliseconds of the scalar tier on as many threads; none for the f32 product, which has no tiers.
    pub scalar_ms: Option<f64>,
    /// Share of the work that the scalar tier did. Below one, `scalar_ms` is its time over this share.
    pub scalar_part: Option<f64>,
    /// Time of the scalar tier over time.
    pub over_scalar: Option<f64>,
}

/// Seconds that a measurement should take at least: short calls are repeated.
const TARGET: f64 = 0.01;
/// Measurements of which the median counts, and the same of the scalar tier.
const RUNS: usize = 7;
const SCALAR_RUNS: usize = 3;
/// Seconds above which the scalar tier does only a part of the work.
const SCALAR_LIMIT: f64 = 0.1;

/// Names of the operations, in order.
pub fn operation_names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.into_iter().map(|(name, _)| name)
}

/// Measures every operation on a ternary model of this shape; its steps are those of one block.
///
/// The scalar tier is slow: where a call of it would take long, it works on fewer tokens, a narrower
/// feed-forward block and a smaller vocabulary, and its time is scaled by the number of multiply-adds (of
/// bytes, where nothing is multiplied).
///
/// # Errors
/// The sizes make no model, the backend does not start, or a step was not finite.
pub fn operations(
    shape: &ModelShape,
    mut done: impl FnMut(&OperationReport),
) -> Result<OperationsReport, BenchError> {
    let model = ModelConfig { layers: 1, precision: Precision::Ternary, ..shape.model };
    let shape = &ModelShape { model, ..*shape };
    shape.check()?;
    let cpu = Cpu::new(shape.threads)?;
    let scalar = Cpu::with_tier(Tier::SCALAR, cpu.threads())?;
    let cx = Context::new(cpu.tier(), cpu.threads())?;
    let widest = limits::widest(cpu.threads())?;
    let mut limits = Limits::measure(&cx);
    let small = few(shape);
    let mut operations = Vec::new();
    for (name, build) in OPERATIONS {
        let has_tiers = name != F32_PRODUCT;
        let mut work = build(&cpu, shape);
        let (seconds, fastest, least) = measure(&cpu, &mut work, if has_tiers { &cx } else { &widest })?;
        let full = amount(&work);
        let (macs, bytes) = (macs(&work), work.bytes);
        if let (true, Some(least), [(kind, count)]) = (has_tiers, least, &work.macs[..]) {
            limits.raise(*kind, count / least / 1e9);
        }
        // Its operands go before those of the scalar tier come.
        drop(work);
        let by_scalar = match has_tiers {
            true => Some(measure_scalar(&scalar, build, (shape, &small), full)?),
            false => None,
        };
        let gb_per_s = bytes as f64 / seconds / 1e9;
        let report = OperationReport {
            name,
            ms: seconds * 1e3,
            gmacs: (macs > 0.0).then_some(macs / seconds / 1e9),
            share_of_limit: least.map(|least| least / fastest),
            bytes,
            gb_per_s,
            share_of_bandwidth: gb_per_s / limits.read_gb_per_s,
            scalar_ms: by_scalar.map(|(seconds, _)| seconds * 1e3),
            scalar_part: by_scalar.map(|(_, part)| part),
            over_scalar: by_scalar.map(|(scalar, _)| scalar / seconds),
        };
        done(&report);
        operations.push(report);
    }
    Ok(OperationsReport { limits, operations, threads: cpu.threads(), tier: cpu.tier().name() })
}

/// A shape with the same rows to multiply, and so few of them that the scalar tier takes no minutes.
fn few(shape: &ModelShape) -> ModelShape {
    let mut few = shape.clone();
    let tokens = ((1 << 26) / (shape.model.dim * shape.model.dim)).clamp(16, 256);
    few.batch = 1;
    few.model.context = shape.model.context.min(tokens);
    few.model.ffn = shape.model.ffn.min(256);
    few.vocab = shape.vocab.min(1024);
    few
}

fn macs(work: &Work<'_>) -> f64 {
    work.macs.iter().map(|(_, count)| count).sum()
}

/// What times are scaled by.
fn amount(work: &Work<'_>) -> f64 {
    if work.macs.is_empty() { work.bytes as f64 } else { macs(work) }
}

/// Seconds of a call, from `repeats` in a row.
fn seconds(cpu: &Cpu, work: &mut Work<'_>, repeats: usize) -> Result<f64, BenchError> {
    let mut outcome = Ok(());
    let all = time::seconds(|| outcome = cpu.run(|| (0..repeats).try_for_each(|_| (work.call)())));
    outcome.map(|()| all / repeats as f64)
}

/// Seconds of a call, median and fastest, and the least that its multiply-adds take from registers.
fn measure(cpu: &Cpu, work: &mut Work<'_>, cx: &Context) -> Result<(f64, f64, Option<f64>), BenchError> {
    seconds(cpu, work, 1)?;
    let repeats = time::repeats(seconds(cpu, work, 1)?, TARGET);
    let (mut times, mut least) = (Vec::new(), None);
    for _ in 0..RUNS {
        times.push(seconds(cpu, work, repeats)?);
        if !work.macs.is_empty() {
            least = limits::least_seconds(cx, &work.macs).into_iter().chain(least).reduce(f64::min);
        }
    }
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    Ok((time::median(times), fastest, least))
}

/// Seconds of a call whose size is `full`, and the part of it that was done to know.
fn measure_scalar(
    scalar: &Cpu,
    build: Build,
    (shape, small): (&ModelShape, &ModelShape),
    full: f64,
) -> Result<(f64, f64), BenchError> {
    let mut work = build(scalar, small);
    let mut part = amount(&work) / full;
    seconds(scalar, &mut work, 1)?;
    let mut once = seconds(scalar, &mut work, 1)?;
    if part < 1.0 && once / part < SCALAR_LIMIT {
        (work, part) = (build(scalar, shape), 1.0);
        once = seconds(scalar, &mut work, 1)?;
    }
    let repeats = time::repeats(once, TARGET);
    let times: Result<Vec<f64>, BenchError> =
        (0..SCALAR_RUNS).map(|_| seconds(scalar, &mut work, repeats)).collect();
    Ok((time::median(times?) / part, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> ModelShape {
        let model = ModelConfig {
            dim: 256,
            layers: 1,
            heads: 4,
            kv_heads: 4,
            ffn: 512,
            context: 24,
            ..ModelConfig::default()
        };
        ModelShape { model, vocab: 1100, batch: 3, threads: 2 }
    }

    #[test]
    fn every_operation_is_measured() {
        let mut shown = Vec::new();
        let report = operations(&shape(), |operation| shown.push(operation.name)).unwrap();
        assert!(operation_names().eq(shown));
        assert_eq!(report.threads, 2);
        for operation in &report.operations {
            let positive = |value: f64| value.is_finite() && value > 0.0;
            assert!(positive(operation.ms) && positive(operation.share_of_bandwidth), "{operation:?}");
            assert!(operation.gmacs.is_none_or(positive), "{operation:?}");
            let best = Tier::available().last().map_or("scalar", |tier| tier.name());
            let tier = if operation.name == F32_PRODUCT { best } else { report.tier };
            let limited = operation.gmacs.is_some() && tier != "scalar";
            assert_eq!(operation.share_of_limit.is_some_and(positive), limited, "{operation:?}");
            let tiers = operation.name != F32_PRODUCT;
            assert_eq!(operation.over_scalar.is_some_and(positive), tiers, "{operation:?}");
            assert!(operation.scalar_part.is_none_or(|part| part > 0.0 && part <= 1.0), "{operation:?}");
        }
    }

    #[test]
    fn the_scalar_tier_does_a_known_part() {
        let (scalar, full) = (Cpu::with_tier(Tier::SCALAR, 1).unwrap(), shape());
        let small = few(&full);
        small.check().unwrap();
        let part = |name: &str| {
            let (_, build) = OPERATIONS.into_iter().find(|(known, _)| *known == name).unwrap();
            let amounts = [&small, &full].map(|shape| amount(&build(&scalar, shape)));
            amounts[0] / amounts[1]
        };
        assert_eq!(part("ternary product"), 1.0 / 3.0 / 2.0);
        assert_eq!(part("ternary product, one row"), 1.0 / 2.0);
        assert_eq!(part("attention"), 1.0 / 3.0);
        assert_eq!(part("nearest centroids"), 1.0 / 3.0);
        // But for the scales of the rows.
        assert!((part("int8 rows") * 6.0 - 1.0).abs() < 1e-2);
        assert_eq!(part("head and loss"), 1024.0 / 1100.0 / 3.0);
    }

    #[test]
    fn a_shape_that_fits_no_model_is_refused() {
        let zero = ModelShape { batch: 0, ..shape() };
        assert!(matches!(operations(&zero, |_| ()), Err(BenchError::Zero { option: "batch" })));
    }
}
