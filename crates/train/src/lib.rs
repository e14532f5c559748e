//! Run state, the training loop, checkpoint policy, metrics and signals.
