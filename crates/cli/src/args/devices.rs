//! Arguments about devices and single operations.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, ValueEnum, PartialEq, Eq)]
pub(crate) enum DeviceName {
    /// A GPU where this program has one to use, else the processor; never a software device.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU of any kind.
    Gpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An AMD GPU through HIP.
    Hip,
    /// A GPU through Vulkan.
    Vulkan,
    /// A GPU of Apple.
    Metal,
    /// A GPU that the processor imitates, for tests.
    Software,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Device {
    /// What to compute on; what was asked for and is not there is an error.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    pub(crate) device: DeviceName,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Devices {
    /// Compare every kernel of every instruction tier with the portable one, bit for bit, instead of measuring.
    #[arg(long)]
    pub(crate) self_test: bool,
    /// Random cases of the self-test, in all.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) cases: u64,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchBackends {
    #[command(flatten)]
    pub(crate) device: Device,
    /// Take the arrays from this folder, as bench/peers/backends.py writes them, instead of random ones.
    #[arg(long, value_name = "DIR")]
    pub(crate) arrays: Option<PathBuf>,
    /// Measurements behind each median.
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// Threads of the parallel engine; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchDispatcher {
    #[command(flatten)]
    pub(crate) device: Device,
    /// Random operations.
    #[arg(long, default_value_t = 200)]
    pub(crate) count: usize,
    /// Seed of their sizes.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Threads of the parallel engine; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}
