//! Every operation on a software device against the processor: integers bit for bit, floats within a normalised mean
//! square error of 1e-6.
#![cfg(feature = "wgpu")]

mod clusters;
mod engine;
mod guards;
mod model;
mod optimizer;
mod tiles;

use std::sync::OnceLock;

use tritrain_backend::{Backend, Cpu, Stream};
use tritrain_gpu::{Choice, Gpu};

/// Largest normalised mean square error of floats.
const NMSE: f64 = 1e-6;

/// The software device. Without one these tests fail: they are not left out quietly.
fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| gpu_of(Choice::Software))
}

/// A backend of its own on that device.
fn gpu_of(choice: Choice) -> Gpu {
    let gpu = Gpu::new(choice).unwrap();
    assert_eq!(gpu.adapter().api, "Vulkan", "{:?}", gpu.adapter());
    // Where CUDA sources of all kernels that these tests launch are to be written.
    #[cfg(feature = "emit")]
    if let Some(folder) = std::env::var_os("TRITRAIN_CUDA_SOURCES") {
        std::fs::create_dir_all(&folder).unwrap();
        return gpu.emitting(folder);
    }
    gpu
}

/// The processor.
fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| Cpu::new(1).unwrap())
}

/// Random numbers of a test.
struct Random {
    stream: Stream,
    at: u64,
}

impl Random {
    fn new(seed: u64) -> Random {
        Random { stream: Stream::new(seed, 0, 0), at: 0 }
    }

    /// A whole number from 1 to `most`.
    fn size(&mut self, most: usize) -> usize {
        self.at += 1;
        1 + self.stream.bits(self.at) as usize % most
    }

    /// Normal numbers.
    fn normal(&mut self, len: usize) -> Vec<f32> {
        self.at += len as u64;
        (0..len as u64).map(|i| self.stream.normal(self.at - i)).collect()
    }

    /// Whole numbers below `end`.
    fn below(&mut self, len: usize, end: usize) -> Vec<u32> {
        (0..len).map(|_| (self.size(end) - 1) as u32).collect()
    }
}

/// Host numbers on a device.
fn put<B: Backend>(backend: &B, host: &[f32]) -> B::Floats {
    let mut floats = backend.floats(host.len());
    backend.upload(host, &mut floats);
    floats
}

/// Token ids on a device.
fn put_tokens<B: Backend>(backend: &B, host: &[u32]) -> B::Tokens {
    let mut tokens = backend.tokens(host.len());
    backend.upload_tokens(host, &mut tokens);
    tokens
}

/// What an operation gives.
enum Found {
    /// Integers, and floats that come of them alone: the same on both devices.
    Exact(&'static str, Vec<f32>),
    /// Floats.
    Close(&'static str, Vec<f32>),
}

/// Calls of operations with given operands.
trait Case: std::fmt::Debug {
    /// What they give on a device.
    fn run<B: Backend>(&self, backend: &B) -> Vec<Found>;
}

/// Numbers of a buffer.
fn get<B: Backend>(backend: &B, floats: &B::Floats) -> Vec<f32> {
    backend.host(floats).into_owned()
}

/// Asserts that a case gives the same on both devices.
#[track_caller]
fn compare(case: &impl Case) {
    compare_on(gpu(), case);
}

/// Asserts that a case gives the same on a backend and on the processor.
#[track_caller]
fn compare_on(gpu: &Gpu, case: &impl Case) {
    for (found, expected) in case.run(gpu).into_iter().zip(case.run(cpu())) {
        match (found, expected) {
            (Found::Exact(what, found), Found::Exact(_, expected)) => {
                assert_eq!(found.len(), expected.len(), "{what} of {case:?}");
                let same = |(f, e): (&f32, &f32)| f.to_bits() == e.to_bits() || f == e;
                let first = found.iter().zip(&expected).position(|pair| !same(pair));
                assert!(
                    first.is_none(),
                    "{what} of {case:?} at {first:?}: {:?}",
                    first.map(|at| (found[at], expected[at]))
                );
            }
            (Found::Close(what, found), Found::Close(_, expected)) => {
                assert_eq!(found.len(), expected.len(), "{what} of {case:?}");
                let square = |x: f64| x * x;
                let pairs = || found.iter().zip(&expected).map(|(f, e)| (f64::from(*f), f64::from(*e)));
                let error: f64 = pairs().map(|(f, e)| square(f - e)).sum();
                let size: f64 = pairs().map(|(_, e)| square(e)).sum();
                assert!(
                    error <= NMSE * size,
                    "{what} of {case:?}: normalised mean square error {}",
                    error / size
                );
            }
            _ => panic!("{case:?} gives results of different kinds"),
        }
    }
}
