//! The operations of a model and its optimizer on a GPU, one source for Vulkan, Metal, CUDA and HIP (CubeCL).
//!
//! `Gpu` is the backend: buffers stay on the device, calls are queued, and only what the trait says
//! "waits" does. Without a feature that brings a runtime this crate is empty, and the rest of the program
//! knows no GPU.
//!
//! Integers are packed in u32 words (four int8 or sixteen 2-bit codes), dot products are `dp4a`, sums over rows go
//! through shared memory, and nothing depends on the width of subgroups.
#![cfg(feature = "wgpu")]

mod blocks;
mod device;
#[cfg(feature = "emit")]
mod emit;
mod engine;
mod launch;
mod memory;
mod ops;
#[cfg(feature = "emit")]
mod record;
mod tiles;

pub use device::{Adapter, Choice, Class, Gpu, GpuError};
pub use engine::GpuEngine;
pub use memory::{Floats, Packed, Rows, Ternary, Tokens};
#[cfg(feature = "emit")]
pub use record::{Arithmetic, Launch};
pub use tiles::{Tile, Tiles, Timed, Tuned};
