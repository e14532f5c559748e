//! `tritrain devices`: what this machine can compute on, how fast it is, what would be chosen, and whether its kernels
//! compute what they should. And `--device`.

use std::process::ExitCode;

use serde_json::json;
use tritrain_backend::Tier;
use tritrain_bench::{DevicesReport, devices, self_test};
use tritrain_dispatch::{Config, Decision, Engine, Operation, Task};

use crate::{
    args::{Device, DeviceName, Devices},
    calibration,
    error::{Error, Result},
    show,
};

/// How a program that knows GPUs is made.
const BUILD: &str =
    "this program was built without GPUs; build it with `cargo build --release --features gpu`";

/// The kinds of GPU that `--device` names, and why each cannot be used.
const GPUS: [(DeviceName, &str); 4] = [
    (DeviceName::Cuda, "cuda"),
    (DeviceName::Vulkan, "vulkan"),
    (DeviceName::Metal, "metal"),
    (DeviceName::Software, "software"),
];

/// That what `--device` asks for can be had. What is asked for by name is never replaced by something else.
pub(crate) fn check(args: &Device) -> Result<()> {
    let name = match args.device {
        DeviceName::Auto | DeviceName::Cpu => return Ok(()),
        DeviceName::Gpu => "gpu",
        named => GPUS.iter().find(|(of, _)| *of == named).map_or("gpu", |(_, name)| name),
    };
    Err(Error::Device { name, why: BUILD })
}

/// The engine of a GPU for single operations, or why there is none.
pub(crate) fn gpu() -> Result<Box<dyn Engine>, String> {
    Err(BUILD.to_owned())
}

pub(crate) fn run(args: &Devices) -> Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    show::line(&format!("{} {}, {threads} core(s)", std::env::consts::ARCH, std::env::consts::OS))?;
    if args.self_test { test(args, threads) } else { survey(args, threads) }
}

/// What `--device auto` takes.
fn auto(tier: Tier, threads: usize) -> String {
    format!("cpu, {}, {threads} thread(s)", tier.name())
}

fn survey(args: &Devices, threads: usize) -> Result<ExitCode> {
    let tier = Tier::detect()?;
    let report = devices()?;
    show_processor(&report)?;
    show::line(&format!("  in use: {} (TRITRAIN_TIER chooses)", tier.name()))?;
    show::line("gpu")?;
    for (_, name) in GPUS {
        show::line(&format!("  {name:12} not usable: {BUILD}"))?;
    }
    show::line(&format!("auto, for training and generation: {}", auto(tier, threads)))?;
    let (dispatcher, path) = calibration::dispatcher(Config::default())?;
    show::line("auto, for single operations:")?;
    let decisions = usual().map(|task| dispatcher.explain(&task));
    for decision in &decisions {
        show::line(&format!("  {:40} {}", describe(&decision.task), reasons(decision)))?;
    }
    if let Some(path) = path {
        show::line(&format!("  predicted from a calibration, which lies in {}", path.display()))?;
    }
    if args.json {
        let available: Vec<&str> = Tier::available().iter().map(|tier| tier.name()).collect();
        let gpus: Vec<_> = GPUS.iter().map(|(_, name)| json!({ "name": name, "unusable": BUILD })).collect();
        show::json(&json!({
            "threads": threads,
            "tiers": available,
            "tier": tier.name(),
            "processor": report,
            "gpus": gpus,
            "auto": auto(tier, threads),
            "single_operations": decisions,
            "checks": [],
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show_processor(report: &DevicesReport) -> Result<()> {
    show::line("processor, GMAC/s of a ternary product by threads")?;
    for of in &report.tiers {
        let speed: Vec<String> =
            of.speed.iter().map(|speed| format!("{}: {:.1}", speed.threads, speed.ternary_gmacs)).collect();
        let text = of.unusable.as_ref().map_or(speed.join(", "), |why| format!("not usable: {why}"));
        show::line(&format!("  {:12} {text}", of.name))?;
    }
    report.common.iter().try_for_each(|of| {
        let (threads, f32, gb) = (of.threads, of.f32_gmacs, of.read_gb_per_s);
        show::line(&format!("  {threads} thread(s): {f32:.1} GMAC/s in f32, {gb:.1} GB/s from memory"))
    })
}

/// Tasks for which the choice is shown: a small and a large one of every operation.
fn usual() -> [Task; 10] {
    let square = |side| (side, side, side);
    let product = |(rows, outputs, inputs)| Task::Matmul { rows, outputs, inputs };
    let ternary = |(rows, outputs, inputs)| Task::TernaryMatmul { rows, outputs, inputs };
    [
        Task::Quantize { len: 1000 },
        Task::Quantize { len: 1_000_000 },
        Task::Dequantize { len: 1000 },
        Task::Dequantize { len: 1_000_000 },
        Task::Kmeans { rows: 100, dim: 8, k: 4, iterations: 10 },
        Task::Kmeans { rows: 10_000, dim: 128, k: 10, iterations: 10 },
        product(square(32)),
        product(square(512)),
        ternary(square(32)),
        ternary(square(512)),
    ]
}

/// A task in words.
pub(crate) fn describe(task: &Task) -> String {
    let name = task.operation().name();
    match *task {
        Task::Quantize { len } | Task::Dequantize { len } => {
            format!("{name} {}", show::thousands(len as u64))
        }
        Task::Kmeans { rows, dim, k, .. } => {
            format!("{name} {} × {dim}, k = {k}", show::thousands(rows as u64))
        }
        Task::Matmul { rows, outputs, inputs } | Task::TernaryMatmul { rows, outputs, inputs } => {
            format!("{name} {rows} × {outputs} × {inputs}")
        }
    }
}

/// The choice, and what else was weighed.
fn reasons(decision: &Decision) -> String {
    let predicted = decision.weighed.iter().filter_map(|of| {
        let seconds = of.predicted_s?;
        Some(format!("{} {:.1} µs", of.engine.name(), seconds * 1e6))
    });
    format!("{:9} ({})", decision.chosen.name(), predicted.collect::<Vec<_>>().join(", "))
}

/// Units of [`Task::work`] in words.
pub(crate) fn unit(operation: Operation) -> &'static str {
    match operation {
        Operation::Quantize | Operation::Dequantize => "G numbers/s",
        Operation::Kmeans => "G coordinates/s",
        Operation::Matmul | Operation::TernaryMatmul => "GMAC/s",
    }
}

fn test(args: &Devices, threads: usize) -> Result<ExitCode> {
    let tiers: Vec<&str> = Tier::available().iter().map(|tier| tier.name()).collect();
    let tier = Tier::detect()?.name();
    show::line(&format!("kernels: {}; in use: {tier}", tiers.join(", ")))?;
    show::line(&format!("{:12} {:26} {:>9} {:>6} {:>8}", "tier", "kernel", "cases", "wrong", "seconds"))?;
    let mut shown = Ok(());
    let checks = self_test(args.cases, |check| {
        let row = show::line(&format!(
            "{:12} {:26} {:9} {:6} {:8.1}",
            check.tier, check.kernel, check.cases, check.wrong, check.seconds
        ));
        shown = std::mem::replace(&mut shown, Ok(())).and(row);
    })?;
    shown?;
    let wrong: u64 = checks.iter().map(|check| check.wrong).sum();
    show::line(&match wrong {
        0 => format!("all {} kernels equal the portable ones bit for bit", checks.len()),
        _ => format!("{wrong} cases are wrong: set TRITRAIN_TIER=scalar and report this table"),
    })?;
    if args.json {
        show::json(&json!({ "threads": threads, "tiers": tiers, "tier": tier, "checks": checks }))?;
    }
    if wrong > 0 { Err(Error::SelfTest(wrong)) } else { Ok(ExitCode::SUCCESS) }
}
