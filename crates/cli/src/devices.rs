//! `tritrain devices`: what this machine can compute on, how fast it is, what would be chosen, and whether its kernels
//! compute what they should. And `--device`.

use std::process::ExitCode;

use serde_json::json;
use tritrain_backend::{Backend, Cpu, Tier};
use tritrain_bench::{DevicesReport, devices, self_test};
use tritrain_dispatch::{Config, Decision, Engine, Operation, Task};

use crate::{
    args::{Device, DeviceName, Devices},
    calibration,
    error::{Error, Result},
    show,
};

/// The kinds of GPU that `--device` names.
const GPUS: [(DeviceName, &str); 5] = [
    (DeviceName::Cuda, "cuda"),
    (DeviceName::Hip, "hip"),
    (DeviceName::Vulkan, "vulkan"),
    (DeviceName::Metal, "metal"),
    (DeviceName::Software, "software"),
];

/// Work that any device can do.
pub(crate) trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<B: Backend>(self, backend: &B, device: &On) -> Result<Self::Output>;
}

/// Does some work on the device that was asked for, on `threads` of the processor where that is the device. What is
/// asked for by name is never replaced by something else.
pub(crate) fn work<W: Work>(args: &Device, threads: usize, work: W) -> Result<W::Output> {
    match gpu::open(args.device)? {
        Some(gpu) => {
            let gpu = gpu::ready(gpu);
            work.on(&gpu, &On { name: gpu::describe(&gpu), processor: None })
        }
        None => {
            let backend = Cpu::new(threads)?;
            work.on(&backend, &On::from(&backend))
        }
    }
}

/// That what was asked for is there, before work begins that it would be needed for.
pub(crate) fn check(args: &Device) -> Result<()> {
    gpu::open(args.device).map(|_| ())
}

/// That nothing went wrong on a device that has done some work.
pub(crate) fn sound<B: Backend>(backend: &B) -> Result<()> {
    match backend.fault() {
        Some(reason) => Err(tritrain_train::Error::Device { step: 0, reason }.into()),
        None => Ok(()),
    }
}

/// What something is computed on.
pub(crate) struct On {
    /// In a few words.
    pub(crate) name: String,
    /// Instructions and threads, where it is the processor.
    pub(crate) processor: Option<(Tier, usize)>,
}

impl From<&Cpu> for On {
    fn from(backend: &Cpu) -> On {
        let (tier, threads) = (backend.tier(), backend.threads());
        On { name: format!("{threads} thread(s), {}", tier.name()), processor: Some((tier, threads)) }
    }
}

/// That the processor is a device that was asked for, for work that nothing else does.
pub(crate) fn only_processor(args: &Device) -> Result<()> {
    match args.device {
        DeviceName::Auto | DeviceName::Cpu => Ok(()),
        named => {
            let why = "experts are trained and used on the processor".to_owned();
            Err(Error::Device { name: name_of(named), why })
        }
    }
}

fn name_of(device: DeviceName) -> &'static str {
    GPUS.iter().find(|(of, _)| *of == device).map_or("gpu", |(_, name)| name)
}

#[cfg(feature = "gpu")]
mod gpu {
    //! GPUs of a program that knows them.

    use tritrain_dispatch::Engine;
    pub(super) use tritrain_gpu::Gpu;
    use tritrain_gpu::{Choice, GpuEngine, GpuError};

    use super::{Error, Result, name_of};
    use crate::args::DeviceName;
    pub(super) use crate::tiles::ready;

    /// The GPU that was asked for; none where the processor was, or where nothing was and there is no GPU.
    pub(super) fn open(device: DeviceName) -> Result<Option<Gpu>> {
        let named = |gpu: Result<Gpu, GpuError>| {
            gpu.map(Some).map_err(|error| Error::Device { name: name_of(device), why: error.to_string() })
        };
        match device {
            DeviceName::Cpu => Ok(None),
            DeviceName::Auto => Ok(Gpu::any().ok()),
            DeviceName::Gpu => named(Gpu::any()),
            DeviceName::Cuda => named(Gpu::new(Choice::Cuda)),
            DeviceName::Hip => named(Gpu::new(Choice::Hip)),
            DeviceName::Vulkan => named(Gpu::new(Choice::Vulkan)),
            DeviceName::Metal => named(Gpu::new(Choice::Metal)),
            DeviceName::Software => named(Gpu::new(Choice::Software)),
        }
    }

    /// A device in a few words.
    pub(super) fn describe(gpu: &Gpu) -> String {
        gpu.adapter().to_string()
    }

    /// The engine of a GPU.
    pub(super) fn engine(device: DeviceName) -> Result<Result<Box<dyn Engine>, String>> {
        Ok(match open(device)? {
            Some(gpu) => Ok(Box::new(GpuEngine::new(ready(gpu)))),
            None if device == DeviceName::Cpu => Err("--device cpu".to_owned()),
            None => survey(DeviceName::Gpu).and_then(|(name, _)| Err(format!("{name} does not start"))),
        })
    }

    /// What there is of a kind and its tiles, or why there is none.
    pub(super) fn survey(device: DeviceName) -> Result<(String, String), String> {
        match open(device) {
            Ok(Some(gpu)) => {
                let gpu = ready(gpu);
                Ok((describe(&gpu), gpu.tiles().describe()))
            }
            Ok(None) => Err("not a GPU".into()),
            Err(Error::Device { why, .. }) => Err(why),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(not(feature = "gpu"))]
mod gpu {
    //! GPUs of a program that knows none.

    pub(super) use tritrain_backend::Cpu as Gpu;
    use tritrain_dispatch::Engine;

    use super::{Error, Result, name_of};
    use crate::args::DeviceName;

    /// How a program that knows GPUs of a kind is made.
    fn build(device: DeviceName) -> String {
        let feature = match device {
            DeviceName::Cuda | DeviceName::Hip => name_of(device),
            _ => "gpu",
        };
        format!(
            "this program was built without GPUs; build it with `cargo build --release -p tritrain-cli --features {feature}`"
        )
    }

    /// None, unless one was asked for.
    pub(super) fn open(device: DeviceName) -> Result<Option<Gpu>> {
        match device {
            DeviceName::Auto | DeviceName::Cpu => Ok(None),
            named => Err(Error::Device { name: name_of(named), why: build(named) }),
        }
    }

    pub(super) fn describe(backend: &Gpu) -> String {
        super::On::from(backend).name
    }

    pub(super) fn engine(device: DeviceName) -> Result<Result<Box<dyn Engine>, String>> {
        open(device).map(|_| Err(build(device)))
    }

    pub(super) fn ready(backend: Gpu) -> Gpu {
        backend
    }

    pub(super) fn survey(device: DeviceName) -> Result<(String, String), String> {
        Err(build(device))
    }
}

/// The engine for single operations besides those of the processor, or why there is none; what is asked for by name is
/// there or an error.
pub(crate) fn engine(args: &Device) -> Result<Result<Box<dyn Engine>, String>> {
    gpu::engine(args.device)
}

pub(crate) fn run(args: &Devices) -> Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    show::line(&format!("{} {}, {threads} core(s)", std::env::consts::ARCH, std::env::consts::OS))?;
    if args.self_test { test(args, threads) } else { survey(args, threads) }
}

/// What `--device auto` takes.
fn auto(tier: Tier, threads: usize) -> String {
    if let Ok(Some(gpu)) = gpu::open(DeviceName::Auto) {
        return gpu::describe(&gpu);
    }
    format!("cpu, {}, {threads} thread(s)", tier.name())
}

fn survey(args: &Devices, threads: usize) -> Result<ExitCode> {
    let tier = Tier::detect()?;
    let report = devices()?;
    show_processor(&report)?;
    show::line(&format!("  in use: {} (TRITRAIN_TIER chooses)", tier.name()))?;
    show::line("gpu")?;
    let gpus = GPUS.map(|(device, name)| (name, gpu::survey(device)));
    for (name, found) in &gpus {
        match found {
            Ok((device, tiles)) => {
                show::line(&format!("  {name:12} {device}"))?;
                show::line(&format!("  {:12} tiles: {tiles}", ""))?;
            }
            Err(why) => show::line(&format!("  {name:12} not usable: {why}"))?,
        }
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
        let gpus: Vec<_> = gpus
            .iter()
            .map(|(name, found)| {
                json!({
                    "name": name,
                    "device": found.as_ref().ok().map(|(device, _)| device),
                    "tiles": found.as_ref().ok().map(|(_, tiles)| tiles),
                    "unusable": found.as_ref().err(),
                })
            })
            .collect();
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
