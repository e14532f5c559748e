//! From gradients to updated weights: directions, schedules, the controller, the guard against bad steps.

mod average;
mod clusters;
mod config;
mod controller;
mod digits;
mod direction;
mod guard;
mod optimizer;
mod prodigy;
mod report;
mod schedule;
mod setback;
mod spike;

pub use clusters::Steer;
pub use config::{
    ConfigError, ControllerKind, DigitsKind, DirectionKind, GradientKind, OptimConfig, ScheduleKind,
    SpikeKind, StorageKind,
};
pub use controller::{
    Controller, Decision, INPUTS, Network, NetworkError, OUTPUTS, RATIO, Reduction, Signals, WEIGHTS,
};
pub use guard::{Guard, Skip, Verdict};
pub use optimizer::{Optimizer, Parameter, Part, Rates, Role, StateError};
pub use report::Report;
pub use schedule::rate_at;
pub use setback::{Setbacks, WINDOW as SETBACK_WINDOW};
pub use spike::Spikes;
