//! From gradients to updated weights: directions, schedules, the guard against bad steps.
