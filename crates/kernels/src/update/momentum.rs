//! A running mean of gradients, and what of it is the direction: Lion, Signum, and what Muon starts from.

use tritrain_trit::{format::Format, rng::Stream};

use super::CHUNK;
use crate::{
    Context,
    descent::{self, Desk},
    noise,
    packed::{Packed, load},
    strips::Parts,
};

/// How a mean of gradients moves, and what of it is the direction.
///
/// Lion (Chen et al., 2302.06675) keeps more than it looks at; Signum (Bernstein et al., 1802.04434) keeps what
/// it looks at; Nesterov's momentum with decay β is `kept` β and `seen` β².
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Momentum {
    /// Share of the past in the mean that is kept.
    pub kept: f32,
    /// Share of the past in the direction.
    pub seen: f32,
    /// Whether the direction is signs alone.
    pub signs: bool,
}

/// `u = seen · m + (1 - seen) · g`, its signs if so asked, in place of `g`; then `m = kept · m + (1 - kept) · g`.
///
/// # Panics
/// The lengths differ.
pub fn momentum(cx: &Context, g: &mut [f32], m: &mut [f32], with: Momentum) {
    assert_eq!(g.len(), m.len());
    cx.chunks2((g, CHUNK), (m, CHUNK), |_, g, m| {
        average(cx.tier(), g, m, with.kept, with.seen);
        if with.signs {
            take_signs(cx.tier(), g);
        }
    });
}

/// Standard deviations that the mean reaches to in few digits. Of one or two, less than for what has to be right on
/// average: the noise of rounding grows with the reach, and costs Muon more than cutting off large entries.
fn range(format: Format) -> f64 {
    match format {
        Format::Trits(1) => 0.8,
        Format::Trits(2) => 1.5,
        _ => descent::MOMENT_RANGE,
    }
}

/// [`momentum`] with a mean in few bits, rounded by chance; one or two digits reach to 0.8 and 1.5 standard
/// deviations of a row, others as far as those of [`descent::round`].
///
/// # Panics
/// The sizes differ.
pub fn momentum_packed(cx: &Context, g: &mut [f32], m: &mut Packed, with: Momentum, noise: &Stream) {
    let [rows, cols] = m.shape();
    assert_eq!(g.len(), rows * cols);
    if g.is_empty() {
        return;
    }
    let (format, len) = (m.format(), m.row_len());
    let (bytes, steps) = m.parts();
    let by_row = steps.len().div_ceil(rows);
    let (g, bytes, steps) = (Parts::new(g, cols), Parts::new(bytes, len), Parts::new(steps, by_row));
    cx.each(rows, Desk::len(cols), |row, desk| {
        // SAFETY: every part goes to one task.
        let (g, bytes, step) = unsafe { (g.get(row), bytes.get(row), steps.get(row)) };
        let tier = cx.tier();
        let mut desk = Desk::new(desk, cols);
        noise::fill(tier, noise, descent::first_block(row, cols), desk.noise);
        load(tier, format, bytes, desk.old, desk.levels);
        let before = step.first().copied().unwrap_or(1.0);
        descent::mix(tier, desk.old, before * with.kept, g, 1.0 - with.kept, desk.direction);
        mix_in_place(tier, g, 1.0 - with.seen, desk.old, before * with.seen);
        if with.signs {
            take_signs(tier, g);
        }
        descent::keep(tier, format, range(format), bytes, step, &mut desk);
    });
}

tiered! {
    fn average(g: &mut [f32], m: &mut [f32], kept: f32, seen: f32) {
        for (g, m) in g.iter_mut().zip(m) {
            let u = seen * *m + (1.0 - seen) * *g;
            *m = kept * *m + (1.0 - kept) * *g;
            *g = u;
        }
    }
}

tiered! {
    fn mix_in_place(g: &mut [f32], a: f32, m: &[f32], b: f32) {
        for (g, m) in g.iter_mut().zip(m) {
            *g = b * m + a * *g;
        }
    }
}

tiered! {
    /// Signs; zeros, and what is no number, as they are.
    fn take_signs(x: &mut [f32]) {
        for x in x {
            let one = f32::from_bits(x.to_bits() & 0x8000_0000 | 0x3f80_0000);
            let other = x.is_nan() || *x == 0.0;
            *x = if other { *x } else { one };
        }
    }
}
