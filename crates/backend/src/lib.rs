//! The Backend trait, the operations a model and an optimizer need, and its CPU implementation.
