//! The whole model in plain f64 loops, forward and backward.
