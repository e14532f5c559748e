//! Tests of the formats, and of what happens to them when disks misbehave.

mod checkpoints;
mod common;
mod disk;
mod faults;
mod gguf;
mod metrics;
mod npy;
mod prune;
mod tensors;
mod tokens;
