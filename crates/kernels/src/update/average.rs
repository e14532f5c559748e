//! Weights that are a running average of where steps lead.

use super::CHUNK;
use crate::Context;

/// Shares of one step of [`average`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Average {
    /// Of the newest point in the average.
    pub share: f32,
    /// Of the average in the weights.
    pub kept: f32,
}

/// `x += share · (z − x)`, `w = z + kept · (x − z)`: the average of the points `z` and the weights between both
/// (Schedule-Free, Defazio et al., 2405.15682, equations 1 and 3).
///
/// # Panics
/// The lengths differ.
pub fn average(cx: &Context, w: &mut [f32], z: &[f32], x: &mut [f32], with: Average) {
    assert!(w.len() == z.len() && w.len() == x.len());
    cx.chunks2((w, CHUNK), (x, CHUNK), |index, w, x| {
        average_chunk(cx.tier(), w, &z[index * CHUNK..], x, with.share, with.kept);
    });
}

tiered! {
    fn average_chunk(w: &mut [f32], z: &[f32], x: &mut [f32], share: f32, kept: f32) {
        for ((w, z), x) in w.iter_mut().zip(z).zip(x) {
            *x = share.mul_add(z - *x, *x);
            *w = kept.mul_add(*x - z, *z);
        }
    }
}
