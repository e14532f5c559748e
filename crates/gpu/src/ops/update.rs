//! update.

#![allow(unused)]
use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};
use std::borrow::Cow;
use tritrain_backend::*;

pub(crate) fn adam(gpu: &Gpu, g: &mut Floats, m: &mut Floats, v: &mut Floats, with: Adam) {
    todo!()
}

pub(crate) fn adam8(gpu: &Gpu, g: &mut Floats, m: &mut Packed, v: &mut Packed, with: Adam, noise: &Stream) {
    todo!()
}

pub(crate) fn momentum(gpu: &Gpu, g: &mut Floats, m: &mut Floats, with: Momentum) {
    todo!()
}

pub(crate) fn momentum_packed(gpu: &Gpu, g: &mut Floats, m: &mut Packed, with: Momentum, noise: &Stream) {
    todo!()
}

pub(crate) fn orthogonalize(gpu: &Gpu, x: &mut Floats, rows: usize, rms: f32) {
    todo!()
}

pub(crate) fn factored(
    gpu: &Gpu,
    g: &mut Floats,
    row: &mut Floats,
    col: &mut Floats,
    momentum: &mut Floats,
    with: Factored,
) {
    todo!()
}

pub(crate) fn prodigy(
    gpu: &Gpu,
    g: &mut Floats,
    w: &Floats,
    state: &mut [Floats; 4],
    with: Prodigy,
    sums: (&mut Floats, usize),
) {
    todo!()
}

pub(crate) fn average(gpu: &Gpu, w: &mut Floats, z: &Floats, x: &mut Floats, with: Average) {
    todo!()
}

pub(crate) fn apply(gpu: &Gpu, w: &mut Floats, u: &Floats, with: Apply) {
    todo!()
}
