//! `tritrain bench backends` and `tritrain bench dispatcher`: single operations on every engine.

use std::path::Path;

use tritrain_bench::{Arrays, BackendReport, Choice, backends, choices};
use tritrain_files::{Disk, npy};

use crate::{
    args::{BenchBackends, BenchDispatcher},
    devices,
    error::Result,
    show,
};

pub(crate) fn bench(args: &BenchBackends) -> Result<()> {
    let arrays = match &args.arrays {
        Some(dir) => read(dir)?,
        None => Arrays::normal(1),
    };
    show::line(&format!(
        "{:36} {:9} {:24} {:>9}  {:>23}  {:>11}  {:>9}",
        "operation", "engine", "", "ms", "throughput", "over scalar", "memory MB"
    ))?;
    let mut shown = Ok(());
    let report = backends(devices::engine(&args.device)?, &arrays, (args.threads, args.runs), |of| {
        let line = show::line(&row(of));
        shown = std::mem::replace(&mut shown, Ok(())).and(line);
    })?;
    shown?;
    for (engine, why) in &report.absent {
        show::line(&format!("no {}: {why}", engine.name()))?;
    }
    show::line(&format!(
        "medians of {} alternating runs; * is what the dispatcher takes; it calibrated in {:.2} s",
        report.runs, report.calibration_s
    ))?;
    if args.json { show::json(&report) } else { Ok(()) }
}

fn row(of: &BackendReport) -> String {
    let mark = if of.chosen { "*" } else { " " };
    let memory = of.memory_mb.map_or("-".into(), |mb| format!("{mb:.1}"));
    format!(
        "{:36} {:9} {:24} {:9.3}{mark} {:>7.2} {:15}  {:>10.1}x  {memory:>9}",
        devices::describe(&of.task),
        of.engine.name(),
        of.runs_on,
        of.ms,
        of.giga_per_s,
        devices::unit(of.operation),
        of.over_scalar,
    )
}

/// The arrays that bench/peers/backends.py wrote.
fn read(dir: &Path) -> Result<Arrays> {
    let array = |name: &str| -> Result<Vec<f32>> {
        let matrix = npy::open(&Disk, &dir.join(name))?;
        Ok(matrix.read(0..matrix.rows()))
    };
    Ok(Arrays {
        numbers: array("numbers.npy")?,
        rows: array("rows.npy")?,
        centroids: array("centroids.npy")?,
        factors: [array("a.npy")?, array("b.npy")?],
    })
}

pub(crate) fn dispatcher(args: &BenchDispatcher) -> Result<()> {
    let head = ["operation", "chosen", "fastest", "over fastest", "over predicted"];
    show::line(&format!("{:36} {:9} {:9} {:>12} {:>14}", head[0], head[1], head[2], head[3], head[4]))?;
    let mut shown = Ok(());
    let what = (args.threads, args.count, args.seed);
    let report = choices(
        devices::engine(&args.device)?,
        what,
        |Choice { task, chosen, fastest, over_fastest, over_predicted }| {
            let (task, chosen, fastest) = (devices::describe(task), chosen.name(), fastest.name());
            let line =
                format!("{task:36} {chosen:9} {fastest:9} {over_fastest:>12.2} {over_predicted:>14.2}");
            shown = std::mem::replace(&mut shown, Ok(())).and(show::line(&line));
        },
    )?;
    shown?;
    show::line(&format!(
        "{:.1} % of {} choices take at most 1.1 times as long as the fastest engine, {:.3} times on average",
        report.within_tenth * 100.0,
        report.choices.len(),
        report.mean_over_fastest
    ))?;
    show::line(&format!(
        "{:.2} µs for each choice; calibrated in {:.2} s",
        report.overhead_us, report.calibration_s
    ))?;
    if args.json { show::json(&report) } else { Ok(()) }
}
