//! Optimizer loops: gradients become updates in place, updates are applied to weights.

mod adam8;
mod admission;
mod average;
mod momentum;
mod orthogonal;
mod prodigy;

pub use adam8::{BLOCK, adam8};
pub use admission::{Admission, admit, approve};
pub use average::{Average, average};
pub use momentum::{Momentum, momentum, momentum_packed};
pub(crate) use orthogonal::orthogonal_room;
pub use orthogonal::orthogonalize;
pub use prodigy::{Prodigal, Prodigy, prodigy};

use crate::{
    Context, elementwise,
    lanes::{self, LANES},
};

/// Elements of one task.
const CHUNK: usize = 16 * 1024;

/// Coefficients of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Step count from one, for the bias corrections.
    pub step: u64,
    /// Added to the root of the second moment.
    pub eps: f32,
}

impl Adam {
    /// What the moments are multiplied by, against their start at zero.
    fn corrections(&self) -> [f32; 2] {
        let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(self.step as f64))) as f32;
        [self.beta1, self.beta2].map(correction)
    }
}

/// Turns the gradient into the Adam update `m̂ / (√v̂ + ε)` in place and advances both moments.
///
/// # Panics
/// The lengths differ.
pub fn adam(cx: &Context, g: &mut [f32], m: &mut [f32], v: &mut [f32], adam: Adam) {
    assert!(g.len() == m.len() && g.len() == v.len());
    let [c1, c2] = adam.corrections();
    cx.chunks3((g, CHUNK), (m, CHUNK), (v, CHUNK), |_, g, m, v| {
        adam_chunk(cx.tier(), g, m, v, adam.beta1, adam.beta2, c1, c2, adam.eps);
    });
}

tiered! {
    fn adam_chunk(
        g: &mut [f32], m: &mut [f32], v: &mut [f32], beta1: f32, beta2: f32, c1: f32, c2: f32, eps: f32,
    ) {
        let n = g.len();
        let (m, v) = (&mut m[..n], &mut v[..n]);
        for i in 0..n {
            m[i] = beta1 * m[i] + (1.0 - beta1) * g[i];
            v[i] = beta2 * v[i] + (1.0 - beta2) * (g[i] * g[i]);
            g[i] = m[i] * c1 / ((v[i] * c2).sqrt() + eps);
        }
    }
}

/// Coefficients of one factored step.
#[derive(Clone, Copy, Debug)]
pub struct Factored {
    /// Decay of the second-moment factors.
    pub beta2: f32,
    /// Momentum on the update; unused without a momentum buffer.
    pub momentum: f32,
}

/// Rows of one task of [`factored`], and of one partial sum over columns.
pub(crate) const ROWS: usize = 16;
/// Columns whose partial sums one task adds up.
const COLS: usize = 128;
/// Added to squares, so that a row or column without gradient divides by something.
const TINY: f32 = 1e-30;

/// Turns the gradient of a matrix into the factored update in place (Adafactor, Shazeer and Stern,
/// 1804.04235): `u = g / √(row·col / mean(row))`, divided by its RMS where that exceeds one, then
/// averaged into `momentum` where there is one.
///
/// `g` `[rows][cols]`, `row` `[rows]`, `col` `[cols]` running means of g²; `momentum` as `g` or empty.
///
/// # Panics
/// The lengths do not fit together.
pub fn factored(
    cx: &Context,
    g: &mut [f32],
    row: &mut [f32],
    col: &mut [f32],
    momentum: &mut [f32],
    with: Factored,
) {
    let (rows, cols) = (row.len(), col.len());
    assert!(g.len() == rows * cols && (momentum.is_empty() || momentum.len() == g.len()));
    let beta2 = with.beta2;
    let blocks = rows.div_ceil(ROWS);
    cx.with_floats(blocks * cols, |partial| {
        partial.fill(0.0);
        {
            let g = &*g;
            cx.chunks2((row, ROWS), (partial, cols), |index, row, partial| {
                for (row, g) in row.iter_mut().zip(g[index * ROWS * cols..].chunks_exact(cols)) {
                    let mean = square_into(cx.tier(), g, partial) / cols as f32;
                    *row = beta2 * *row + (1.0 - beta2) * (mean + TINY);
                }
            });
        }
        let partial = &*partial;
        cx.chunks(col, COLS, |index, col| {
            let mut sums = [0.0; COLS];
            for partial in partial.chunks_exact(cols) {
                for (sum, part) in sums.iter_mut().zip(&partial[index * COLS..][..col.len()]) {
                    *sum += part;
                }
            }
            for (col, sum) in col.iter_mut().zip(sums) {
                *col = beta2 * *col + (1.0 - beta2) * (sum / rows as f32 + TINY);
            }
        });
    });
    let mean_row = (elementwise::sum(cx, row) / rows as f64) as f32;
    cx.with_floats(blocks + cols, |lent| {
        let (squares, factors) = lent.split_at_mut(blocks);
        for (factor, col) in factors.iter_mut().zip(&*col) {
            *factor = 1.0 / col.sqrt();
        }
        // The update is made twice: first for its RMS, which clips it. To read is cheaper than to write.
        let (row, factors) = (&*row, &*factors);
        let factor = |at: usize| (mean_row / row[at]).sqrt();
        {
            let g = &*g;
            cx.chunks(squares, 1, |block, sum| {
                let rows = (block * ROWS..rows).zip(g[block * ROWS * cols..].chunks_exact(cols));
                sum[0] =
                    rows.take(ROWS).map(|(at, g)| scaled_square(cx.tier(), g, factor(at), factors)).sum();
            });
        }
        let total: f64 = squares.iter().copied().map(f64::from).sum();
        let rms = (total / (rows * cols) as f64).sqrt() as f32;
        let clip = if rms > 1.0 { 1.0 / rms } else { 1.0 };
        let part = ROWS * cols;
        if momentum.is_empty() {
            cx.chunks(g, part, |index, g| {
                for (at, g) in (index * ROWS..).zip(g.chunks_exact_mut(cols)) {
                    scale_row(cx.tier(), g, factor(at), factors, clip);
                }
            });
        } else {
            cx.chunks2((g, part), (momentum, part), |index, g, m| {
                let rows = g.chunks_exact_mut(cols).zip(m.chunks_exact_mut(cols));
                for (at, (g, m)) in (index * ROWS..).zip(rows) {
                    average_row(cx.tier(), g, m, factor(at), factors, with.momentum, clip);
                }
            });
        }
    });
}

tiered! {
    /// Adds the squares of a row to the sums over columns and returns their total.
    fn square_into(g: &[f32], sums: &mut [f32]) -> f32 {
        for (sum, g) in sums.iter_mut().zip(g) {
            *sum = g.mul_add(*g, *sum);
        }
        lanes::dot(g, g)
    }
}

tiered! {
    /// Sum of the squares of a row of the update, before it is clipped.
    fn scaled_square(g: &[f32], row: f32, col: &[f32]) -> f32 {
        let mut acc = [0.0; LANES];
        let ((g, g_tail), (col, col_tail)) = (g.as_chunks::<LANES>(), col.as_chunks::<LANES>());
        for (g, col) in g.iter().zip(col) {
            for l in 0..LANES {
                let u = g[l] * row * col[l];
                acc[l] = u.mul_add(u, acc[l]);
            }
        }
        for (acc, (g, col)) in acc.iter_mut().zip(g_tail.iter().zip(col_tail)) {
            let u = g * row * col;
            *acc = u.mul_add(u, *acc);
        }
        lanes::total(acc)
    }
}

tiered! {
    fn scale_row(g: &mut [f32], row: f32, col: &[f32], clip: f32) {
        for (g, col) in g.iter_mut().zip(col) {
            *g = *g * row * col * clip;
        }
    }
}

tiered! {
    fn average_row(g: &mut [f32], m: &mut [f32], row: f32, col: &[f32], momentum: f32, clip: f32) {
        for ((g, m), col) in g.iter_mut().zip(m).zip(col) {
            *m = momentum * *m + (1.0 - momentum) * (*g * row * col * clip);
            *g = *m;
        }
    }
}

/// How far an update moves weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apply {
    /// Learning rate.
    pub rate: f32,
    /// Decoupled weight decay, per unit of learning rate.
    pub decay: f32,
}

/// `w -= rate · (u + decay · w)`.
///
/// # Panics
/// The lengths differ.
pub fn apply(cx: &Context, w: &mut [f32], u: &[f32], with: Apply) {
    assert_eq!(w.len(), u.len());
    let Apply { rate, decay } = with;
    cx.chunks(w, CHUNK, |index, w| apply_chunk(cx.tier(), w, &u[index * CHUNK..], rate, rate * decay));
}

tiered! {
    fn apply_chunk(w: &mut [f32], u: &[f32], rate: f32, decay: f32) {
        for (w, u) in w.iter_mut().zip(u) {
            *w -= rate * u + decay * *w;
        }
    }
}
