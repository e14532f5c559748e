//! From gradients to updated weights: directions, schedules, the guard against bad steps.

mod config;
mod guard;
mod optimizer;
mod schedule;

pub use config::{DirectionKind, OptimConfig, ScheduleKind};
pub use guard::{Guard, Skip, Verdict};
pub use optimizer::{Optimizer, Parameter, Rates, Role, StateError};
pub use schedule::rate_at;
