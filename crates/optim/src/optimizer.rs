//! Directions: what turns one gradient per tensor into one update per tensor.

use tritrain_backend::{Adam, Apply, Backend, Factored};

use crate::{DirectionKind, OptimConfig};

/// Added to the root of Adam's second moment.
const ADAM_EPS: f32 = 1e-8;

/// Learning rate of gains, as a share of that of matrices. Larger shares trained worse.
const GAIN_SHARE: f32 = 1.0 / 16.0;

/// Learning rates of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of matrices, as a share of the root mean square of each.
    pub matrices: f32,
    /// Of embedding and head.
    pub embedding: f32,
}

/// What a tensor is to the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Matrix inside a block: the configured direction, a rate relative to its weights, weight decay.
    Matrix,
    /// Embedding or head: the same direction, an absolute rate of its own.
    Embedding,
    /// Gain of a norm: AdamW without decay, whatever the direction.
    Gain,
}

/// One tensor to update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name, for the state's tensors.
    pub name: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// What it is.
    pub role: Role,
}

/// Why a saved state does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A tensor of the state is missing.
    #[error("the optimizer state lacks {name}; it was saved with another [optim] direction or momentum")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another size.
    #[error("the optimizer state's {name} holds {found} numbers, expected {expected}")]
    Length {
        /// Name of the tensor.
        name: String,
        /// Elements found.
        found: usize,
        /// Elements expected.
        expected: usize,
    },
}

enum State<B: Backend> {
    Adam { m: B::Floats, v: B::Floats },
    Factored { row: B::Floats, col: B::Floats, momentum: B::Floats },
}

/// The state of every tensor's direction.
pub struct Optimizer<B: Backend> {
    config: OptimConfig,
    parameters: Vec<Parameter>,
    states: Vec<State<B>>,
    /// Updates made, for bias corrections and decay of the second moments.
    updates: u64,
}

impl<B: Backend> Optimizer<B> {
    /// Zero state for `parameters`.
    pub fn new(backend: &B, config: &OptimConfig, parameters: Vec<Parameter>) -> Optimizer<B> {
        let states = parameters.iter().map(|parameter| {
            let len = parameter.rows * parameter.cols;
            match (parameter.role, config.direction) {
                (Role::Gain, _) | (_, DirectionKind::Adamw) => {
                    State::Adam { m: backend.floats(len), v: backend.floats(len) }
                }
                (_, DirectionKind::Factored) => State::Factored {
                    row: backend.floats(parameter.rows),
                    col: backend.floats(parameter.cols),
                    momentum: backend.floats(if config.momentum > 0.0 { len } else { 0 }),
                },
            }
        });
        let states = states.collect();
        Optimizer { config: config.clone(), parameters, states, updates: 0 }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Turns every gradient into a direction, in place.
    ///
    /// # Panics
    /// `grads` are not one per parameter.
    pub fn direct(&mut self, backend: &B, grads: &mut [B::Floats]) {
        assert_eq!(grads.len(), self.states.len());
        self.updates += 1;
        let step = self.updates;
        // Adafactor's decay, 1 - t^-0.8 (1804.04235, section 7.2), up to the configured memory.
        let beta2 = (1.0 - (step as f64).powf(-0.8)).min(f64::from(self.config.beta2)) as f32;
        for (state, grad) in self.states.iter_mut().zip(grads) {
            match state {
                State::Adam { m, v } => {
                    let (beta1, beta2) = (self.config.beta1, self.config.beta2);
                    backend.adam(grad, m, v, Adam { beta1, beta2, step, eps: ADAM_EPS });
                }
                State::Factored { row, col, momentum } => {
                    backend.factored(
                        grad,
                        row,
                        col,
                        momentum,
                        Factored { beta2, momentum: self.config.momentum },
                    );
                }
            }
        }
    }

    /// Moves every weight against its direction.
    ///
    /// # Panics
    /// `weights` or `directions` are not one per parameter.
    pub fn apply(&self, backend: &B, weights: &mut [B::Floats], directions: &[B::Floats], rates: Rates) {
        assert!(weights.len() == self.parameters.len() && directions.len() == weights.len());
        let decay = self.config.weight_decay;
        for ((parameter, weight), direction) in self.parameters.iter().zip(weights).zip(directions) {
            let with = match parameter.role {
                Role::Matrix => Apply { rate: rates.matrices, decay, relative: true },
                Role::Embedding => Apply { rate: rates.embedding, decay, relative: false },
                Role::Gain => Apply { rate: rates.matrices * GAIN_SHARE, decay: 0.0, relative: false },
            };
            backend.apply(weight, direction, with);
        }
    }

    /// Names, shapes and buffers of the state, for a checkpoint.
    pub fn state(&self) -> Vec<(String, [usize; 2], &B::Floats)> {
        let tensors = self.parameters.iter().zip(&self.states).flat_map(|(parameter, state)| {
            let (rows, cols) = (parameter.rows, parameter.cols);
            let parts = match state {
                State::Adam { m, v } => vec![("m", [rows, cols], m), ("v", [rows, cols], v)],
                State::Factored { row, col, momentum } => {
                    let mut parts = vec![("row", [rows, 1], row), ("col", [1, cols], col)];
                    if self.config.momentum > 0.0 {
                        parts.push(("momentum", [rows, cols], momentum));
                    }
                    parts
                }
            };
            parts
                .into_iter()
                .map(|(part, shape, buffer)| (format!("{}.{part}", parameter.name), shape, buffer))
        });
        tensors.collect()
    }

    /// Restores a state after `updates` updates; `read` gives the tensor of a name.
    ///
    /// # Errors
    /// A tensor is missing or has another size; the state is then partly restored and not to be used.
    pub fn restore<'a>(
        &mut self,
        backend: &B,
        updates: u64,
        read: impl Fn(&str) -> Option<&'a [f32]>,
    ) -> Result<(), StateError> {
        self.updates = updates;
        let with_momentum = self.config.momentum > 0.0;
        for (parameter, state) in self.parameters.iter().zip(&mut self.states) {
            let (rows, cols) = (parameter.rows, parameter.cols);
            let parts: Vec<(&str, usize, &mut B::Floats)> = match state {
                State::Adam { m, v } => vec![("m", rows * cols, m), ("v", rows * cols, v)],
                State::Factored { row, col, momentum } => {
                    let mut parts = vec![("row", rows, row), ("col", cols, col)];
                    if with_momentum {
                        parts.push(("momentum", rows * cols, momentum));
                    }
                    parts
                }
            };
            for (part, expected, buffer) in parts {
                let name = format!("{}.{part}", parameter.name);
                let Some(host) = read(&name) else {
                    return Err(StateError::Missing { name });
                };
                if host.len() != expected {
                    return Err(StateError::Length { name, found: host.len(), expected });
                }
                backend.upload(host, buffer);
            }
        }
        Ok(())
    }
}
