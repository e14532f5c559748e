//! The decoder: configuration, forward, hand-written backward, generation with a KV cache, and its f64 reference.

mod config;
mod layout;
pub mod reference;

pub use config::{ConfigError, Gate, ModelConfig, Precision};
pub use layout::{Layout, TensorKind, TensorSpec};
