//! Single operations on whichever backend measurement says is fastest.
//!
//! A training step stays on one backend. A single operation (quantise an array, cluster rows, multiply) may go to any
//! of four *engines*: `scalar` and `simd` on the calling thread, `parallel` on a pool of threads, `gpu` where there is
//! one. A [`Dispatcher`] predicts what each would take with a [`Cost`] (fixed, by unit of work, by byte), takes the
//! least, measures what it took, and measures anew where predictions err.
//!
//! A [`Calibration`] can be kept: whoever has a disk writes it down and hands it over next time.

mod calibrate;
mod clock;
mod cost;
mod dispatcher;
mod engine;
mod error;
mod host;
mod metrics;
mod task;
mod watch;
mod weights;

pub use cost::{Calibration, Cost};
pub use dispatcher::{Config, Decision, Dispatcher, Weighed};
pub use engine::{Engine, EngineKind};
pub use error::Error;
pub use metrics::{Metrics, Usage};
pub use task::{Operation, Task};
pub use weights::{Quantized, TernaryWeights};

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;
