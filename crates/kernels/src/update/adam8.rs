//! AdamW with both moments in 8 bits (after Dettmers et al., 2110.02861).
//!
//! Numbers of a tensor in order, in blocks of 256 with a step each. The first moment has levels from -127 to 127.
//! Of the second its root has levels from 0 to 127, so that both span alike. Levels are linear: the blocks of
//! a matrix lie in one row, where magnitudes are of one order. Rounding is stochastic: to the nearest level, a mean
//! with a long memory would stay where it is. A second moment above zero is never stored as zero.

use tritrain_trit::{
    format::{Format, step},
    rng::Stream,
};

use super::Adam;
use crate::{Context, lanes, noise, packed::Packed, strips::Parts};

/// Numbers that share a step.
pub const BLOCK: usize = 256;
/// Blocks of one task.
const TASK: usize = 64;
/// Blocks of random bits that a block of numbers takes.
const RANDOM: usize = BLOCK / 8;
const LARGEST: f32 = 127.0;

/// [`adam`](super::adam) with moments in 8 bits: `m` and `v` hold int8 `[blocks of g][256]`, a step for each.
/// The update is that of the moments before they are rounded.
///
/// # Panics
/// The sizes or formats do not fit together.
pub fn adam8(cx: &Context, g: &mut [f32], m: &mut Packed, v: &mut Packed, adam: Adam, noise: &Stream) {
    let blocks = g.len().div_ceil(BLOCK);
    for moment in [&*m, &*v] {
        assert!(moment.format() == Format::Int8 && moment.shape() == [blocks, BLOCK], "moments in blocks");
        assert_eq!(moment.steps().len(), blocks, "a step for each block");
    }
    let [c1, c2] = adam.corrections();
    let with = Coefficients { beta1: adam.beta1, beta2: adam.beta2, c1, c2: c2.sqrt(), eps: adam.eps };
    let ((m, m_steps), (v, v_steps)) = (m.parts(), v.parts());
    let g = Parts::new(g, TASK * BLOCK);
    let (m, v) = (Parts::new(m, TASK * BLOCK), Parts::new(v, TASK * BLOCK));
    let (m_steps, v_steps) = (Parts::new(m_steps, TASK), Parts::new(v_steps, TASK));
    cx.tasks(g.count(), |task| {
        // SAFETY: every part goes to one task.
        let (g, m, v) = unsafe { (g.get(task), m.get(task), v.get(task)) };
        // SAFETY: as above.
        let steps = unsafe { m_steps.get(task).iter_mut().zip(v_steps.get(task)) };
        let moments = m.chunks_exact_mut(BLOCK).zip(v.chunks_exact_mut(BLOCK)).zip(steps);
        for (at, (g, ((m, v), (m_step, v_step)))) in g.chunks_mut(BLOCK).zip(moments).enumerate() {
            let mut halves = [0; BLOCK];
            noise::fill(cx.tier(), noise, ((task * TASK + at) * RANDOM) as u64, &mut halves);
            block(cx.tier(), g, m, m_step, v, v_step, &halves, with);
        }
    });
}

#[derive(Clone, Copy)]
struct Coefficients {
    beta1: f32,
    beta2: f32,
    c1: f32,
    c2: f32,
    eps: f32,
}

tiered! {
    /// One block; each half of a random word decides about both moments, a byte for each.
    fn block(
        g: &mut [f32],
        m: &mut [u8],
        m_step: &mut f32,
        v: &mut [u8],
        v_step: &mut f32,
        noise: &[u16; BLOCK],
        with: Coefficients,
    ) {
        let Coefficients { beta1, beta2, c1, c2, eps } = with;
        let n = g.len();
        let (mut mean, mut root) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        for i in 0..n {
            let (x, old) = (g[i], f32::from(v[i]) * *v_step);
            mean[i] = beta1 * (f32::from(m[i].cast_signed()) * *m_step) + (1.0 - beta1) * x;
            root[i] = (beta2 * (old * old) + (1.0 - beta2) * (x * x)).sqrt();
            g[i] = mean[i] * c1 / (root[i] * c2 + eps);
        }
        let mut inverses = [0.0; 2];
        for ((to, values), inverse) in [m_step, v_step].into_iter().zip([&mean, &root]).zip(&mut inverses) {
            *to = step(lanes::max_abs(values) / LARGEST);
            *inverse = if *to > 0.0 { 1.0 / *to } else { 0.0 };
        }
        let mut levels = [[0i32; BLOCK]; 2];
        for i in 0..n {
            let chance = |byte: u16| (f32::from(byte) + 0.5) * (1.0 / 256.0);
            let level = (mean[i] * inverses[0] + chance(noise[i] & 0xff)).floor();
            let level = if level > LARGEST { LARGEST } else { level };
            levels[0][i] = lanes::round(if level < -LARGEST { -LARGEST } else { level });
            let level = (root[i] * inverses[1] + chance(noise[i] >> 8)).floor();
            let level = if level > LARGEST { LARGEST } else { level };
            let least = if root[i] > 0.0 { 1.0 } else { 0.0 };
            levels[1][i] = lanes::round(if level < least { least } else { level });
        }
        for i in 0..n {
            m[i] = (levels[0][i] as i8).cast_unsigned();
            v[i] = levels[1][i] as u8;
        }
    }
}
