//! From gradients to updated weights: directions, schedules, the controller, the guard against bad steps.

mod config;
mod controller;
mod guard;
mod optimizer;
mod report;
mod schedule;

pub use config::{
    ConfigError, ControllerKind, DirectionKind, GradientKind, OptimConfig, ScheduleKind, StorageKind,
};
pub use controller::{Controller, Decision, INPUTS, Network, NetworkError, OUTPUTS, RATIO, Signals, WEIGHTS};
pub use guard::{Guard, Skip, Verdict};
pub use optimizer::{Optimizer, Parameter, Part, Rates, Role, StateError};
pub use report::Report;
pub use schedule::rate_at;
