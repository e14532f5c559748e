//! What a tensor's direction keeps between updates, and how it turns a gradient.

use tritrain_backend::{ADAM_BLOCK, Adam, Backend, Factored, Format, Memory, Momentum, Stream};

use crate::{DirectionKind, OptimConfig, Parameter, Part, Role};

/// Added to the root of Adam's second moment.
const ADAM_EPS: f32 = 1e-8;

/// Root mean square of the direction of Muon, about that of the factored one with its default momentum, so that
/// a rate means the same.
const MUON_RMS: f32 = 0.5;

/// Moments of a tensor, besides a momentum.
enum State<B: Memory> {
    /// As a gain has under every direction.
    Adam {
        m: B::Floats,
        v: B::Floats,
    },
    Adam8 {
        m: B::Packed,
        v: B::Packed,
    },
    Factored {
        row: B::Floats,
        col: B::Floats,
    },
    /// The momentum is all: Lion, Signum, Muon.
    Mean,
}

/// A momentum.
enum Moment<B: Memory> {
    None,
    Floats(B::Floats),
    Packed(B::Packed),
}

/// What a tensor's direction keeps between updates.
pub(crate) struct Slot<B: Memory> {
    kind: DirectionKind,
    state: State<B>,
    moment: Moment<B>,
    /// The momentum that is given where there is none in f32.
    nothing: B::Floats,
}

/// A part of the state, to be restored.
pub(crate) enum PartMut<'a, B: Memory> {
    Floats(&'a mut B::Floats),
    Packed(&'a mut B::Packed),
}

impl<B: Memory> Slot<B> {
    /// Zeros for a tensor; matrices are `ternary` or not.
    pub(crate) fn new(backend: &B, config: &OptimConfig, parameter: &Parameter, ternary: bool) -> Slot<B> {
        let Parameter { rows, cols, role, .. } = *parameter;
        let len = rows * cols;
        let kind = match (role, config.direction) {
            (_, DirectionKind::Prodigy) => DirectionKind::Prodigy,
            (Role::Gain, _) => DirectionKind::Adamw,
            (Role::Embedding, DirectionKind::Muon) => DirectionKind::Factored,
            (_, direction) => direction,
        };
        let moment = || match config.moment.format().filter(|_| ternary && role == Role::Matrix) {
            Some(format) => Moment::Packed(backend.packed(format, rows, cols, true)),
            None => Moment::Floats(backend.floats(len)),
        };
        let eight = || backend.packed(Format::Int8, len.div_ceil(ADAM_BLOCK), ADAM_BLOCK, true);
        let (state, moment) = match kind {
            _ if role == Role::Frozen => (State::Mean, Moment::None),
            DirectionKind::Adamw => {
                (State::Adam { m: backend.floats(len), v: backend.floats(len) }, Moment::None)
            }
            DirectionKind::Adamw8 => (State::Adam8 { m: eight(), v: eight() }, Moment::None),
            DirectionKind::Factored => {
                let state = State::Factored { row: backend.floats(rows), col: backend.floats(cols) };
                (state, if config.momentum > 0.0 { moment() } else { Moment::None })
            }
            DirectionKind::Lion | DirectionKind::Signum | DirectionKind::Muon => (State::Mean, moment()),
            // What it keeps is for all tensors together.
            DirectionKind::Prodigy => (State::Mean, Moment::None),
        };
        Slot { kind, state, moment, nothing: backend.floats(0) }
    }
}

impl<B: Backend> Slot<B> {
    /// Turns a gradient of `rows` rows into the direction of update `step` (from one), in place.
    pub(crate) fn direct(
        &mut self,
        backend: &B,
        config: &OptimConfig,
        rows: usize,
        (step, noise): (u64, Stream),
        grad: &mut B::Floats,
    ) {
        let OptimConfig { beta1, beta2, .. } = *config;
        let adam = Adam { beta1, beta2, step, eps: ADAM_EPS };
        match &mut self.state {
            State::Adam { m, v } => backend.adam(grad, m, v, adam),
            State::Adam8 { m, v } => backend.adam8(grad, m, v, adam, &noise),
            State::Factored { row, col } => {
                // Adafactor's decay, 1 - t^-0.8 (1804.04235, section 7.2), up to the configured memory.
                let beta2 = (1.0 - (step as f64).powf(-0.8)).min(f64::from(beta2)) as f32;
                let momentum = match &mut self.moment {
                    Moment::Floats(momentum) => momentum,
                    Moment::None | Moment::Packed(_) => &mut self.nothing,
                };
                backend.factored(grad, row, col, momentum, Factored { beta2, momentum: config.momentum });
            }
            State::Mean => {
                let with = match self.kind {
                    DirectionKind::Lion => Momentum { kept: beta2, seen: beta1, signs: true },
                    DirectionKind::Signum => Momentum { kept: beta1, seen: beta1, signs: true },
                    _ => Momentum { kept: beta1, seen: beta1 * beta1, signs: false },
                };
                match &mut self.moment {
                    Moment::Floats(moment) => backend.momentum(grad, moment, with),
                    Moment::Packed(moment) => backend.momentum_packed(grad, moment, with, &noise),
                    Moment::None => {}
                }
                if self.kind == DirectionKind::Muon {
                    backend.orthogonalize(grad, rows, MUON_RMS);
                }
            }
        }
    }

    /// The momentum that is averaged while weights move: that of the factored direction in few bits.
    pub(crate) fn late_moment(&mut self) -> Option<&mut B::Packed> {
        match (&self.state, &mut self.moment) {
            (State::Factored { .. }, Moment::Packed(moment)) => Some(moment),
            _ => None,
        }
    }

    /// Parts of the state of a tensor `[rows][cols]`: name, shape, place.
    pub(crate) fn parts(&self, rows: usize, cols: usize) -> Vec<(&'static str, [usize; 2], Part<'_, B>)> {
        let blocks = [(rows * cols).div_ceil(ADAM_BLOCK), ADAM_BLOCK];
        let mut parts = match &self.state {
            State::Adam { m, v } => {
                vec![("m", [rows, cols], Part::Floats(m)), ("v", [rows, cols], Part::Floats(v))]
            }
            State::Adam8 { m, v } => vec![("m", blocks, Part::Packed(m)), ("v", blocks, Part::Packed(v))],
            State::Factored { row, col } => {
                vec![("row", [rows, 1], Part::Floats(row)), ("col", [1, cols], Part::Floats(col))]
            }
            State::Mean => Vec::new(),
        };
        match &self.moment {
            Moment::Floats(moment) => parts.push(("momentum", [rows, cols], Part::Floats(moment))),
            Moment::Packed(moment) => parts.push(("momentum", [rows, cols], Part::Packed(moment))),
            Moment::None => {}
        }
        parts
    }

    /// The places of [`Slot::parts`], in the same order.
    pub(crate) fn places(&mut self) -> Vec<PartMut<'_, B>> {
        let mut places = match &mut self.state {
            State::Adam { m, v } => vec![PartMut::Floats(m), PartMut::Floats(v)],
            State::Adam8 { m, v } => vec![PartMut::Packed(m), PartMut::Packed(v)],
            State::Factored { row, col } => vec![PartMut::Floats(row), PartMut::Floats(col)],
            State::Mean => Vec::new(),
        };
        match &mut self.moment {
            Moment::Floats(moment) => places.push(PartMut::Floats(moment)),
            Moment::Packed(moment) => places.push(PartMut::Packed(moment)),
            Moment::None => {}
        }
        places
    }
}
