//! Every file format, and the only code that writes to disk.
//!
//! | module | owns |
//! |---|---|
//! | [`storage`] | the [`Storage`] trait, the real [`Disk`], [`write_atomic`], [`NewFile`], [`Draft`] |
//! | [`faulty`] | [`FaultyStorage`], the in-memory test double that loses power and runs out of space |
//! | [`checkpoint`] | saving, finding, verifying and pruning checkpoints; the lock of a run |
//! | [`tensors`] | safetensors files |
//! | [`gguf`] | GGUF files, which llama.cpp reads |
//! | [`tokens`] | token shards of a corpus |
//! | [`metrics`] | append-only JSON lines |
//! | [`npy`] | arrays of NumPy |
//!
//! Numbers read from a file are compared with the bytes that are there before anything is sized by
//! them, and nothing here panics on the content of a file.

#[cfg(target_endian = "big")]
compile_error!("the formats are little endian and are read and written without swapping");

pub mod checkpoint;
mod error;
pub mod faulty;
pub mod gguf;
mod lock;
mod map;
pub mod metrics;
pub mod npy;
mod seal;
pub mod storage;
mod sums;
pub mod tensors;
pub mod tokens;

pub use error::{Difference, Error, Result};
pub use faulty::FaultyStorage;
pub use map::{Bytes, give_back_memory, keep_little_memory};
pub use storage::{Disk, Draft, NewFile, Sink, Storage, write_atomic};
pub use sums::{BLOCK, FileSum};

/// Whether `name` is 1 to 63 characters of `[A-Za-z0-9._-]`: the names allowed for tensors and, when
/// they do not start with a dot, for files inside a checkpoint. No separators, no NUL, no `..` tricks.
pub fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
