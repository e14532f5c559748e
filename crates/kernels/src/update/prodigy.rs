//! Adam with a step in proportion to a distance, and what that distance is estimated from.

use super::CHUNK;
use crate::{Context, lanes, lanes::LANES};

/// Coefficients of one step of [`prodigy`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prodigy {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment; its root is that of the sums.
    pub beta2: f32,
    /// Estimated distance to the solution.
    pub distance: f32,
    /// Weight of this gradient in the sums.
    pub weight: f32,
    /// Added to the root of the second moment, times the distance.
    pub eps: f32,
}

/// What Prodigy keeps of a tensor, as long as its gradient.
pub struct Prodigal<'a> {
    /// Mean of gradients times distance.
    pub m: &'a mut [f32],
    /// Mean of their squares.
    pub v: &'a mut [f32],
    /// Weighted sum of gradients.
    pub s: &'a mut [f32],
    /// The weights at the start.
    pub start: &'a [f32],
}

/// Turns the gradient at `w` into the update of Prodigy in place (Mishchenko and Defazio, 2306.06101, algorithm 4):
/// `u = d · m / (√v + d·ε)` with `m` and `v` of `d·g`. Returns `weight · ⟨g, start − w⟩` and `‖s‖₁`, where
/// `s = √β₂ · s + weight · g`.
///
/// # Panics
/// The lengths differ.
pub fn prodigy(cx: &Context, g: &mut [f32], w: &[f32], state: Prodigal<'_>, with: Prodigy) -> [f64; 2] {
    let Prodigal { m, v, s, start } = state;
    let n = g.len();
    assert!([w.len(), m.len(), v.len(), s.len(), start.len()].iter().all(|len| *len == n));
    let tasks = n.div_ceil(CHUNK);
    cx.with_floats(2 * tasks, |sums| {
        cx.chunks2((sums, 2), (s, CHUNK), |index, sums, s| {
            let at = index * CHUNK..index * CHUNK + s.len();
            let [g, w, start] = [&*g, w, start].map(|x| &x[at.clone()]);
            let [toward, size] = sums_chunk(cx.tier(), g, w, start, s, with.beta2.sqrt(), with.weight);
            sums.copy_from_slice(&[with.weight * toward, size]);
        });
        cx.chunks3((g, CHUNK), (m, CHUNK), (v, CHUNK), |_, g, m, v| {
            step_chunk(cx.tier(), g, m, v, with.beta1, with.beta2, with.distance, with.eps);
        });
        [0, 1].map(|which| sums.as_chunks::<2>().0.iter().map(|sums| f64::from(sums[which])).sum())
    })
}

tiered! {
    fn sums_chunk(g: &[f32], w: &[f32], start: &[f32], s: &mut [f32], kept: f32, weight: f32) -> [f32; 2] {
        let (mut toward, mut size) = ([0.0; LANES], [0.0; LANES]);
        for (i, ((s, g), (w, start))) in s.iter_mut().zip(g).zip(w.iter().zip(start)).enumerate() {
            *s = kept * *s + weight * g;
            toward[i % LANES] = g.mul_add(start - w, toward[i % LANES]);
            size[i % LANES] += s.abs();
        }
        [lanes::total(toward), lanes::total(size)]
    }
}

tiered! {
    fn step_chunk(g: &mut [f32], m: &mut [f32], v: &mut [f32], beta1: f32, beta2: f32, distance: f32, eps: f32) {
        for ((g, m), v) in g.iter_mut().zip(m).zip(v) {
            let scaled = distance * *g;
            *m = beta1 * *m + (1.0 - beta1) * scaled;
            *v = beta2 * *v + (1.0 - beta2) * (scaled * scaled);
            *g = distance * *m / (v.sqrt() + distance * eps);
        }
    }
}
