//! Matrices that are codes times a scale.
//!
//! Other programs give each projection a scale; here one matrix of q, k and v has one, and one of gate and up. Scores
//! of attention are products of q and k, so both may take the geometric mean of their scales. What v and up lack is a
//! factor of everything behind them, up to `o` and `down`: these two take it, or a sub-norm in between divides by it,
//! but for its epsilon. What is left is the rounding of scales to fp16; scales that are equal and fp16 already, as in
//! our own exports, stay.

use half::f16;
use tritrain_model::ModelConfig;

use super::{Origin, Part, shapes};
use crate::{Result, export::weights::latent};

/// The scale of a matrix that is codes times a scale: 0 where all codes are. `None` for any other one.
fn scale_of(weights: &[f32]) -> Option<f64> {
    let scale = weights.iter().map(|w| w.abs()).find(|w| *w != 0.0).unwrap_or(0.0);
    let same = weights.iter().all(|w| *w == 0.0 || w.abs() == scale);
    (same && scale.is_finite()).then_some(f64::from(scale))
}

/// Whether all matrices of a model are codes times a scale.
pub(super) fn in_all(config: &ModelConfig, origin: &dyn Origin) -> Result<bool> {
    for n in 0..config.layers {
        for (part, shape) in shapes(config) {
            if scale_of(&origin.read(Part::Block(n, part), shape)?).is_none() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Latent weights with the codes of matrices of one magnitude, one behind the other, and this scale.
fn joined(parts: &[&[f32]], scale: f64) -> Vec<f32> {
    let code = |w: &f32| i8::from(*w > 0.0) - i8::from(*w < 0.0);
    let codes: Vec<i8> = parts.iter().flat_map(|part| *part).map(code).collect();
    latent(&codes, scale as f32)
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

/// Latent weights of qkv, o, gate and up, and down from those of q, k, v, o, gate, up and down, all of them codes
/// times a scale; `sub_norm` says whether norms stand before `o` and `down`.
pub(super) fn join(sub_norm: bool, [q, k, v, o, gate, up, down]: [Vec<f32>; 7]) -> [Vec<f32>; 4] {
    let scale = |w: &[f32]| scale_of(w).unwrap_or(0.0);
    let [sq, sk, sv, so] = [&q, &k, &v, &o].map(|w| scale(w));
    let [sg, su, sd] = [&gate, &up, &down].map(|w| scale(w));
    let behind = |own, given| if sub_norm { 1.0 } else { factor(own, given) };
    let heads = rounded(if mean(sq, sk) == 0.0 { sv } else { mean(sq, sk) });
    let inner = rounded(if sg == 0.0 { su } else { sg });
    [
        joined(&[&q, &k, &v], heads),
        joined(&[&o], rounded(so * behind(sv, heads))),
        joined(&[&gate, &up], inner),
        joined(&[&down], rounded(sd * behind(su, inner))),
    ]
}
