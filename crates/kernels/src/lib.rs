//! CPU inner loops: a scalar twin and SIMD tiers behind one dispatch table, and the thread pool.
//!
//! Two kinds of kernels live here.
//!
//! * **Integer** kernels ([`ternary`], [`outer`]) have a scalar twin and hand-written SIMD. Sums are
//!   exact, so any order gives the same bits.
//! * **Float** kernels are one source, written on [`lanes`] of fixed width with `mul_add`, and compiled
//!   once per [`Tier`] by the `tiered!` macro. Rust never contracts or reorders float operations, so
//!   every tier gives the same bits.
//!
//! Work is split among threads by sizes alone. The number of threads never changes a result.

#![expect(unsafe_code, reason = "SIMD instructions; every block states what makes it sound")]

#[macro_use]
mod tier;

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod bias;
pub mod descent;
mod dots;
pub mod elementwise;
pub mod embed;
pub mod gate;
pub mod kmeans;
pub mod lanes;
pub mod limit;
mod lines;
pub mod loss;
pub mod matmul;
#[cfg(any(target_arch = "aarch64", test))]
mod neon;
mod noise;
pub mod norm;
pub mod outer;
pub mod packed;
pub mod quantize;
pub mod room;
pub mod rows;
mod strips;
mod team;
pub mod ternary;
mod tile;
pub mod update;

pub use lines::Floats;
pub use tier::{Context, ContextError, Tier};
pub use tile::Store;
