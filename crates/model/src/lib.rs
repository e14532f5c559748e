//! The decoder: configuration, forward, hand-written backward, generation with a KV cache, and its f64 reference.

mod activations;
mod adapter;
mod block;
mod config;
mod generate;
mod init;
mod layout;
mod linear;
mod model;
mod onset;
pub mod reference;
mod relations;
mod sample;
mod sink;

pub use activations::{Activations, Keep};
pub use adapter::Adapting;
pub use config::{ConfigError, Gate, ModelConfig, Precision};
pub use generate::{Generator, PromptError};
pub use init::{initial_tensor, initial_weights};
pub use layout::{BlockIds, Layout, TensorKind, TensorSpec};
pub use model::{Model, Use, counted};
pub use onset::Onset;
pub use relations::Relations;
pub use sample::{Sampling, sample};
pub use sink::Sink;
