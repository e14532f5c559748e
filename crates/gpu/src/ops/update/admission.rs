//! Which gradients and directions of a step are taken (`kernels::update::admission`), so that the host need not know
//! before the step is done.

use std::ops::Range;

use cubecl::prelude::*;
use tritrain_backend::Admission;

use crate::{
    Floats, Gpu,
    blocks::magnitude,
    launch::{cubes_for, launch, units},
};

/// Whether a number is finite.
#[cube]
fn is_finite(x: f32) -> bool {
    magnitude(x) < 0x7f80_0000u32
}

/// One unit a tensor.
#[cube(launch, create_dummy_kernel)]
fn admit_kernel(
    statistics: &[f32],
    limits: &[f32],
    gates: &mut [f32],
    loss: usize,
    squares: usize,
    first: usize,
    last: usize,
    share: f32,
    #[comptime] alone: bool,
) {
    let id = first + ABSOLUTE_POS;
    if id < last {
        let mut open = is_finite(statistics[loss]);
        if comptime![!alone] {
            for other in 0..limits.len() / 2 {
                if !is_finite(statistics[squares + other]) {
                    open = false;
                }
            }
        }
        let square = statistics[squares + id];
        let mut gate = 0.0f32;
        if open && is_finite(square) {
            gate = 1.0f32;
            let norm = (square * share).sqrt();
            if norm > limits[2 * id] {
                gate = limits[2 * id + 1] / norm;
            }
        }
        gates[id] = gate;
    }
}

/// One unit a tensor.
#[cube(launch, create_dummy_kernel)]
fn approve_kernel(statistics: &[f32], gates: &mut [f32], at: usize, first: usize, last: usize, factor: f32) {
    let id = first + ABSOLUTE_POS;
    if id < last {
        let mut gate = 0.0f32;
        if gates[id] != 0.0f32 {
            gate = 1.0f32;
        }
        let square = statistics[at];
        // The square first: what is not finite need not stay so on the way through a root.
        if !is_finite(square) || !is_finite(square.sqrt() * factor) {
            gate = 0.0f32;
        }
        gates[gates.len() / 2 + id] = gate;
    }
}

pub(crate) fn admit(gpu: &Gpu, statistics: &Floats, limits: &Floats, with: &Admission, gates: &mut Floats) {
    let Admission { loss, squares, share, alone, tensors: Range { start, end } } = *with;
    let tensors = limits.len / 2;
    assert!(end <= tensors && gates.len == limits.len, "limits and gates of tensors");
    assert!(loss < statistics.len && squares + tensors <= statistics.len, "places of statistics");
    let (statistics, limits, gates) = (statistics.arg(), limits.arg(), gates.arg());
    let count = cubes_for(end - start);
    launch!(
        gpu,
        admit_kernel,
        count,
        units(),
        statistics,
        limits,
        gates,
        loss,
        squares,
        start,
        end,
        share,
        alone,
    );
}

pub(crate) fn approve(
    gpu: &Gpu,
    (statistics, at): (&Floats, usize),
    factor: f32,
    Range { start, end }: Range<usize>,
    gates: &mut Floats,
) {
    assert!(at < statistics.len && end <= gates.len / 2, "a place of statistics, and gates of tensors");
    let (statistics, gates) = (statistics.arg(), gates.arg());
    launch!(gpu, approve_kernel, cubes_for(end - start), units(), statistics, gates, at, start, end, factor);
}
