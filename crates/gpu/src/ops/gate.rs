//! Gated activations. Unlike on a processor, they exist in memory for a while where a norm follows.

use cubecl::prelude::*;
use tritrain_backend::{Gate, Store};

use super::norm;
use crate::{
    Floats, Gpu, Rows,
    launch::{cubes_for, launch, units},
};

#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

#[cube]
fn positive(x: f32) -> f32 {
    // A NaN stays one.
    if x < 0.0f32 { 0.0f32.runtime() } else { x }
}

#[cube(launch, create_dummy_kernel)]
fn activate(gate_up: &[f32], a: &mut [f32], width: usize, #[comptime] silu: bool) {
    if ABSOLUTE_POS < a.len() {
        let start = ABSOLUTE_POS / width * 2 * width + ABSOLUTE_POS % width;
        let g = gate_up[start];
        let u = gate_up[start + width];
        a[ABSOLUTE_POS] = if comptime![silu] { g * sigmoid(g) * u } else { positive(g) * positive(g) * u };
    }
}

#[cube(launch, create_dummy_kernel)]
fn activate_backward(
    gate_up: &[f32],
    da: &[f32],
    d_gate_up: &mut [f32],
    width: usize,
    #[comptime] silu: bool,
) {
    if ABSOLUTE_POS < da.len() {
        let start = ABSOLUTE_POS / width * 2 * width + ABSOLUTE_POS % width;
        let g = gate_up[start];
        let u = gate_up[start + width];
        let slope = da[ABSOLUTE_POS];
        if comptime![silu] {
            let s = sigmoid(g);
            d_gate_up[start + width] = slope * g * s;
            d_gate_up[start] = slope * u * s * (g * (1.0f32 - s) + 1.0f32);
        } else {
            let s = positive(g);
            d_gate_up[start + width] = slope * s * s;
            d_gate_up[start] = slope * u * 2.0f32 * s;
        }
    }
}

pub(crate) fn glu(gpu: &Gpu, gate: Gate, gate_up: &Floats, width: usize, a: &mut Floats) {
    assert_eq!(gate_up.len, 2 * a.len, "lengths of a gate");
    let silu = gate == Gate::Silu;
    launch!(gpu, activate, cubes_for(a.len), units(), gate_up.arg(), a.arg(), width, silu);
}

pub(crate) fn glu_backward(
    gpu: &Gpu,
    gate: Gate,
    gate_up: &Floats,
    da: &Floats,
    width: usize,
    d_gate_up: &mut Floats,
) {
    assert!(gate_up.len == 2 * da.len && d_gate_up.len == gate_up.len, "lengths of a gate");
    launch!(
        gpu,
        activate_backward,
        cubes_for(da.len),
        units(),
        gate_up.arg(),
        da.arg(),
        d_gate_up.arg(),
        width,
        gate == Gate::Silu,
    );
}

/// Room for as many activations as `rows` has codes.
fn activations(gpu: &Gpu, len: usize) -> Floats {
    Floats { handle: gpu.room(len), len, room: len }
}

pub(crate) fn glu_quantize(
    gpu: &Gpu,
    gate: Gate,
    gate_up: &Floats,
    norm: Option<(&Floats, f32)>,
    h: &mut Rows,
    rstd: &mut Floats,
) {
    let mut a = activations(gpu, h.rows * h.cols);
    glu(gpu, gate, gate_up, h.cols, &mut a);
    match norm {
        Some((gain, eps)) => norm::rmsnorm_quantize(gpu, &a, gain, eps, h, rstd),
        None => norm::quantize_rows(gpu, &a, h),
    }
}

pub(crate) fn glu_backward_quantize(
    gpu: &Gpu,
    gate: Gate,
    gate_up: &Floats,
    dh: &Floats,
    norm: Option<(&Floats, &Floats, &mut Floats)>,
    d_gate_up: &mut Floats,
    rows: &mut Rows,
) {
    let width = rows.cols / 2;
    match norm {
        Some((gain, rstd, d_gain)) => {
            let (mut a, mut da) = (activations(gpu, dh.len), activations(gpu, dh.len));
            glu(gpu, gate, gate_up, width, &mut a);
            norm::rmsnorm_backward(gpu, dh, &a, gain, rstd, Store::Replace, &mut da, None, d_gain);
            glu_backward(gpu, gate, gate_up, &da, width, d_gate_up);
        }
        None => glu_backward(gpu, gate, gate_up, dh, width, d_gate_up),
    }
    norm::quantize_rows(gpu, d_gate_up, rows);
}
