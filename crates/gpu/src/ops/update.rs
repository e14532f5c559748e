//! Gradients become updates in place, updates are applied to weights (`kernels::update`).

mod adam8;
mod admission;
mod factored;
mod orthogonal;

use cubecl::prelude::*;
use tritrain_backend::{Adam, Apply, Average, Momentum, Prodigy, Stream};

pub(crate) use adam8::adam8;
pub(crate) use admission::{admit, approve};
pub(crate) use factored::factored;
pub(crate) use orthogonal::orthogonalize;

use super::{buffers::SHARE, packed, packed::sign};
use crate::{
    Floats, Gpu, Packed,
    blocks::{UNITS, cube_sum, desk, is_open},
    launch::{arg, cubes, cubes_for, launch, units},
};

#[cube(launch, create_dummy_kernel)]
fn adam_kernel(
    g: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    gates: &[f32],
    gate: usize,
    beta1: f32,
    beta2: f32,
    new1: f32,
    new2: f32,
    c1: f32,
    c2: f32,
    eps: f32,
) {
    if ABSOLUTE_POS < g.len() && is_open(gates, gate) {
        let x = gates[gate] * g[ABSOLUTE_POS];
        let mean = beta1 * m[ABSOLUTE_POS] + new1 * x;
        let square = beta2 * v[ABSOLUTE_POS] + new2 * (x * x);
        m[ABSOLUTE_POS] = mean;
        v[ABSOLUTE_POS] = square;
        g[ABSOLUTE_POS] = mean * c1 / ((square * c2).sqrt() + eps);
    }
}

#[cube(launch, create_dummy_kernel)]
fn momentum_kernel(
    g: &mut [f32],
    m: &mut [f32],
    gates: &[f32],
    gate: usize,
    kept: f32,
    new: f32,
    seen: f32,
    unseen: f32,
    #[comptime] signs: bool,
) {
    if ABSOLUTE_POS < g.len() && is_open(gates, gate) {
        let (x, old) = (gates[gate] * g[ABSOLUTE_POS], m[ABSOLUTE_POS]);
        let direction = seen * old + unseen * x;
        m[ABSOLUTE_POS] = kept * old + new * x;
        g[ABSOLUTE_POS] = if comptime![signs] { sign(direction) } else { direction };
    }
}

#[cube(launch, create_dummy_kernel)]
fn average_kernel(
    w: &mut [f32],
    z: &[f32],
    x: &mut [f32],
    gates: &[f32],
    gate: usize,
    share: f32,
    kept: f32,
) {
    if ABSOLUTE_POS < w.len() && is_open(gates, gate) {
        let point = z[ABSOLUTE_POS];
        let mean = fma(share, point - x[ABSOLUTE_POS], x[ABSOLUTE_POS]);
        x[ABSOLUTE_POS] = mean;
        w[ABSOLUTE_POS] = fma(kept, mean - point, point);
    }
}

#[cube(launch, create_dummy_kernel)]
fn apply_kernel(w: &mut [f32], u: &[f32], gates: &[f32], gate: usize, rate: f32, decay: f32) {
    if ABSOLUTE_POS < w.len() && is_open(gates, gate) {
        let old = w[ABSOLUTE_POS];
        w[ABSOLUTE_POS] = old - (rate * u[ABSOLUTE_POS] + decay * old);
    }
}

/// One cube a share. `sums` `[2][shares]`: way back to the start along the gradient, and magnitudes of `s`.
#[cube(launch, create_dummy_kernel)]
fn prodigy_kernel(
    g: &mut [f32],
    w: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    s: &mut [f32],
    origin: &[f32],
    sums: &mut [f32],
    gates: &[f32],
    gate: usize,
    beta1: f32,
    beta2: f32,
    root: f32,
    distance: f32,
    weight: f32,
    eps: f32,
) {
    let mut desk = desk();
    let shares = sums.len() / 2;
    if CUBE_POS < shares && is_open(gates, gate) {
        let first = CUBE_POS * SHARE;
        let last = min(first + SHARE, g.len());
        let mut toward = 0.0f32;
        let mut size = 0.0f32;
        let mut i = first + UNIT_POS as usize;
        while i < last {
            let x = gates[gate] * g[i];
            let sum = root * s[i] + weight * x;
            s[i] = sum;
            toward += x * (origin[i] - w[i]);
            size += sum.abs();
            let scaled = distance * x;
            let mean = beta1 * m[i] + (1.0f32 - beta1) * scaled;
            let square = beta2 * v[i] + (1.0f32 - beta2) * (scaled * scaled);
            m[i] = mean;
            v[i] = square;
            g[i] = distance * mean / (square.sqrt() + distance * eps);
            i += UNITS;
        }
        let toward = cube_sum(toward, &mut desk);
        let size = cube_sum(size, &mut desk);
        if UNIT_POS == 0 {
            sums[CUBE_POS] = weight * toward;
            sums[shares + CUBE_POS] = size;
        }
    }
}

/// One cube: the two sums.
#[cube(launch, create_dummy_kernel)]
fn prodigy_sums(sums: &[f32], out: &mut [f32], gates: &[f32], gate: usize, at: usize) {
    let mut desk = desk();
    let shares = sums.len() / 2;
    let mut toward = 0.0f32;
    let mut size = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < shares {
        toward += sums[i];
        size += sums[shares + i];
        i += UNITS;
    }
    let toward = cube_sum(toward, &mut desk);
    let size = cube_sum(size, &mut desk);
    if UNIT_POS == 0 && is_open(gates, gate) {
        out[at] = toward;
        out[at + 1] = size;
    }
}

/// What moments are multiplied by, against their start at zero.
fn corrections(adam: Adam) -> [f32; 2] {
    [adam.beta1, adam.beta2].map(|beta| (1.0 / (1.0 - f64::from(beta).powf(adam.step as f64))) as f32)
}

pub(crate) fn adam(gpu: &Gpu, g: &mut Floats, m: &mut Floats, v: &mut Floats, with: Adam) {
    assert!(g.len == m.len && g.len == v.len, "lengths of moments");
    let ([c1, c2], Adam { beta1, beta2, eps, .. }) = (corrections(with), with);
    let (new1, new2) = (1.0 - beta1, 1.0 - beta2);
    let (count, g, m, v) = (cubes_for(g.len), g.arg(), m.arg(), v.arg());
    let (gates, gate) = gpu.gate();
    launch!(gpu, adam_kernel, count, units(), g, m, v, gates, gate, beta1, beta2, new1, new2, c1, c2, eps);
}

pub(crate) fn momentum(gpu: &Gpu, g: &mut Floats, m: &mut Floats, with: Momentum) {
    assert_eq!(g.len, m.len, "lengths of a mean");
    let Momentum { kept, seen, signs } = with;
    let (count, g, m) = (cubes_for(g.len), g.arg(), m.arg());
    let ((gates, gate), new, unseen) = (gpu.gate(), 1.0 - kept, 1.0 - seen);
    launch!(gpu, momentum_kernel, count, units(), g, m, gates, gate, kept, new, seen, unseen, signs);
}

pub(crate) fn momentum_packed(gpu: &Gpu, g: &mut Floats, m: &mut Packed, with: Momentum, noise: &Stream) {
    packed::momentum(gpu, g, m, with, noise);
}

pub(crate) fn prodigy(
    gpu: &Gpu,
    g: &mut Floats,
    w: &Floats,
    [m, v, s, start]: &mut [Floats; 4],
    with: Prodigy,
    (sums, at): (&mut Floats, usize),
) {
    assert!([w.len, m.len, v.len, s.len, start.len].iter().all(|len| *len == g.len), "lengths of a state");
    assert!(at + 2 <= sums.len, "room for two sums");
    // Of nothing the sums are zero.
    let shares = g.len.div_ceil(SHARE).max(1);
    let parts = gpu.zeros(2 * shares);
    let parts = arg(&parts, 2 * shares);
    let Prodigy { beta1, beta2, distance, weight, eps } = with;
    let (gates, gate) = gpu.gate();
    if g.len > 0 {
        launch!(
            gpu,
            prodigy_kernel,
            cubes(shares),
            units(),
            g.arg(),
            w.arg(),
            m.arg(),
            v.arg(),
            s.arg(),
            start.arg(),
            parts,
            gates,
            gate,
            beta1,
            beta2,
            beta2.sqrt(),
            distance,
            weight,
            eps,
        );
    }
    launch!(gpu, prodigy_sums, cubes(1), units(), parts, sums.arg(), gates, gate, at);
}

pub(crate) fn average(gpu: &Gpu, w: &mut Floats, z: &Floats, x: &mut Floats, with: Average) {
    assert!(w.len == z.len && w.len == x.len, "lengths of an average");
    let (count, w, z, x) = (cubes_for(w.len), w.arg(), z.arg(), x.arg());
    let (gates, gate) = gpu.gate();
    launch!(gpu, average_kernel, count, units(), w, z, x, gates, gate, with.share, with.kept);
}

pub(crate) fn apply(gpu: &Gpu, w: &mut Floats, u: &Floats, with: Apply) {
    assert_eq!(w.len, u.len, "weights and update");
    let (count, w, u) = (cubes_for(w.len), w.arg(), u.arg());
    let (gates, gate) = gpu.gate();
    launch!(gpu, apply_kernel, count, units(), w, u, gates, gate, with.rate, with.rate * with.decay);
}
