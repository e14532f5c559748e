//! From gradients to updated weights: directions, schedules, the guard against bad steps.

mod config;

pub use config::{DirectionKind, OptimConfig, ScheduleKind};
