//! Matrices that are codes times a scale.
//!
//! Other programs give each projection a scale; here one matrix of q, k and v has one, and one of gate and up. Scores
//! of attention are products of q and k, so both may take the geometric mean of their scales. What v and up lack is a
//! factor of everything behind them, up to `o` and `down`: these two take it, or a sub-norm in between divides by it,
//! but for its epsilon. Biases follow what they are added to. What is left is the rounding of scales to fp16; scales that are equal and fp16 already, as in
//! our own exports, stay.

use half::f16;
use tritrain_model::ModelConfig;

use super::{Origin, Part, shapes};
use crate::Result;

/// The scale of a matrix that is codes times a scale: 0 where all codes are. `None` for any other one.
pub(super) fn scale_of(weights: &[f32]) -> Option<f64> {
    let scale = weights.iter().map(|w| w.abs()).find(|w| *w != 0.0).unwrap_or(0.0);
    let same = weights.iter().all(|w| *w == 0.0 || w.abs() == scale);
    (same && scale.is_finite()).then_some(f64::from(scale))
}

/// The codes of such a matrix.
pub(super) fn codes_of(weights: &[f32]) -> impl Iterator<Item = i8> {
    weights.iter().map(|w| i8::from(*w > 0.0) - i8::from(*w < 0.0))
}

/// What a block becomes.
#[derive(Debug)]
pub(super) struct Scales {
    /// Scales of qkv, o, gate and up, and down: fp16 numbers.
    pub(super) matrices: [f32; 4],
    /// What biases of q, k and v are multiplied by.
    pub(super) biases: [f32; 3],
}

/// The scales of every block; `None` unless all matrices are codes times a scale.
pub(super) fn scales(config: &ModelConfig, origin: &impl Origin) -> Result<Option<Vec<Scales>>> {
    let mut all = Vec::new();
    for n in 0..config.layers {
        let mut scales = [0.0; 7];
        for (scale, (part, shape)) in scales.iter_mut().zip(shapes(config)) {
            match origin.scale(Part::Block(n, part), shape)? {
                Some(found) => *scale = found,
                None => return Ok(None),
            }
        }
        let matrices = join(config.sub_norm, scales);
        all.push(Scales {
            matrices: matrices.map(|scale| scale as f32),
            biases: [0, 1, 2].map(|part| factor(matrices[0], scales[part]) as f32),
        });
    }
    Ok(Some(all))
}

/// The nearest fp16 number.
fn rounded(scale: f64) -> f64 {
    f16::from_f64(scale).to_f64()
}

/// What two scales become together: a matrix of zeros takes any.
fn mean(a: f64, b: f64) -> f64 {
    match (a == 0.0, b == 0.0) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => a,
        _ => (a * b).sqrt(),
    }
}

/// A factor that one matrix lacks.
fn factor(own: f64, given: f64) -> f64 {
    if own == 0.0 || given == 0.0 { 1.0 } else { own / given }
}

/// The scales of qkv, o, gate and up, and down, fp16 numbers, from those of q, k, v, o, gate, up and down; `sub_norm`
/// says whether norms stand before `o` and `down`.
fn join(sub_norm: bool, [sq, sk, sv, so, sg, su, sd]: [f64; 7]) -> [f64; 4] {
    let behind = |own, given| if sub_norm { 1.0 } else { factor(own, given) };
    let heads = rounded(if mean(sq, sk) == 0.0 { sv } else { mean(sq, sk) });
    let inner = rounded(if sg == 0.0 { su } else { sg });
    [heads, rounded(so * behind(sv, heads)), inner, rounded(sd * behind(su, inner))]
}
