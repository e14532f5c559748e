//! Which gradients of a step are taken, and which directions: decided where the statistics lie.

use std::ops::Range;

/// Where the statistics of a step say what admission goes by.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Place of the loss. Where it is not finite, no gradient is taken.
    pub loss: usize,
    /// Place of the squared norm of the gradient of the first tensor; the others follow.
    pub squares: usize,
    /// What these are multiplied by.
    pub share: f32,
    /// Whether a gradient that is not finite is left by itself; otherwise none is taken then.
    pub alone: bool,
    /// Tensors that are decided about.
    pub tensors: Range<usize>,
}

/// Decides about the gradients of some tensors: `gates[id]` is 1 where one is taken, 0 where it is not, and what it is
/// multiplied by where its norm is above the limit. `limits` has that limit and the norm that such a gradient is
/// scaled to, of each tensor `[tensors][2]`.
///
/// # Panics
/// A place is outside its list.
pub fn admit(statistics: &[f32], limits: &[f32], with: &Admission, gates: &mut [f32]) {
    let all = &statistics[with.squares..][..limits.len() / 2];
    let open =
        statistics[with.loss].is_finite() && (with.alone || all.iter().all(|square| square.is_finite()));
    for id in with.tensors.clone() {
        let norm = (all[id] * with.share).sqrt();
        let [limit, usual] = [limits[2 * id], limits[2 * id + 1]];
        gates[id] = match open && norm.is_finite() {
            false => 0.0,
            true if norm > limit => usual / norm,
            true => 1.0,
        };
    }
}

/// Decides about the directions of some tensors whose gradients `gates` has, in its second half: 1 for those of gradients
/// that are taken, where the root of `square`, times `factor`, is finite; otherwise 0.
///
/// # Panics
/// A tensor is outside the list.
pub fn approve(square: f32, factor: f32, tensors: Range<usize>, gates: &mut [f32]) {
    let (gradients, directions) = gates.split_at_mut(gates.len() / 2);
    let open = (square.sqrt() * factor).is_finite();
    for id in tensors {
        directions[id] = if open && gradients[id] != 0.0 { 1.0 } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(statistics: &[f32], with: &Admission) -> [f32; 3] {
        // A limit of two and a usual norm of one; then one whose spikes are left; then one without a limit.
        let (limits, mut gates) = ([2.0, 1.0, 2.0, 0.0, f32::MAX, 1.0], [0.5; 6]);
        admit(statistics, &limits, with, &mut gates);
        assert_eq!(gates[3..], [0.5; 3], "the others are as they were");
        [gates[0], gates[1], gates[2]]
    }

    #[test]
    fn gradients_are_taken_scaled_or_left() {
        let with = Admission { loss: 0, squares: 1, share: 1.0, alone: true, tensors: 0..3 };
        assert_eq!(gates(&[5.0, 4.0, 4.0, 1e30], &with), [1.0; 3]);
        assert_eq!(gates(&[5.0, 16.0, 16.0, 16.0], &with), [0.25, 0.0, 1.0]);
        assert_eq!(gates(&[5.0, 16.0, 16.0, 16.0], &Admission { share: 0.25, ..with.clone() }), [1.0; 3]);
        for broken in [f32::NAN, f32::INFINITY] {
            assert_eq!(gates(&[5.0, broken, 1.0, 0.0], &with), [0.0, 1.0, 1.0]);
            assert_eq!(
                gates(&[5.0, broken, 1.0, 0.0], &Admission { alone: false, ..with.clone() }),
                [0.0; 3]
            );
            assert_eq!(gates(&[broken, 1.0, 1.0, 1.0], &with), [0.0; 3]);
        }
    }

    #[test]
    fn directions_are_taken_where_their_norm_is_finite() {
        let mut gates = [0.25, 0.0, 1.0, 7.0, 7.0, 7.0];
        approve(4.0, 1.0, 0..2, &mut gates);
        assert_eq!(gates, [0.25, 0.0, 1.0, 1.0, 0.0, 7.0]);
        for (square, factor) in [(f32::NAN, 1.0), (f32::INFINITY, 0.0), (f32::MAX, 1e30)] {
            approve(square, factor, 0..3, &mut gates);
            assert_eq!(gates[3..], [0.0; 3]);
        }
    }
}
