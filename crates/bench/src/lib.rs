//! What the kernels, a training step and generation take on this machine.
//!
//! Everything is measured as the median of several runs, limits as the best of several, and ratios come
//! from runs that alternate: on a shared machine a time alone says little.

mod backends;
mod choices;
mod devices;
mod gemm;
mod generate;
mod limits;
mod operations;
pub mod peak_memory;
mod self_test;
mod shape;
mod signal;
mod step;
mod time;
mod work;

pub use backends::{Arrays, BackendReport, BackendsReport, backends};
pub use choices::{Choice, ChoicesReport, choices};
pub use devices::{Common, DevicesReport, Speed, TierReport, devices};
pub use gemm::{GemmReport, gemm};
pub use generate::{GenerateReport, generate};
pub use limits::Limits;
pub use operations::{OperationReport, OperationsReport, operation_names, operations};
pub use self_test::{KernelCheck, self_test};
pub use shape::{BenchError, ModelShape};
pub use signal::{Draws, LayerSignal, signal};
pub use step::{Operation, StepReport, step};
