//! Rows and centroids as integers, and what their rounding can do to a dot product.
//!
//! With `m` the mean of all rows, let `x' = x - m` and `c' = c - m`, rounded to f32 (u = 2^-24). They are coded
//! as `x' = a·p + r` and `c' = b·q + t`, with integers `p` and `q`: int8, or of twelve bits where a tier has no
//! faster product for less. The nearest centroid has the largest
//!
//! ```text
//! S = (x - m)·(c - m) - |c - m|²/2,    since |x - c|² = |x - m|² - 2·S
//! ```
//!
//! and `v = ab·(p·q) + h` with `h = -|c'|²/2` is off by at most `N·e + g`: with A = |a·p|, R = |r|, T = |t|,
//! C = |c'|, `N = max(A, R)` and `R ≤ ρ·N`,
//!
//! * `x'·c' - ab·(p·q) = a·p·t + r·c'` is at most `A·T + R·C ≤ N·(T + ρ·C)`;
//! * rounding `x'` and `c'` changes their product by at most `2.1·u·(A + R)·C ≤ 4.2·u·N·C`, and `|c'|²/2` by
//!   `1.1·u·C²`;
//! * `ab·(p·q)` is four roundings (one from i32), each at most `1.1·u·N·(C + T)`, and adding `h` and the bound
//!   itself are five more at most, each of `1.1·u·(N·(C + T)·1.1 + N·e + C²/2)`; `h` is one of `u·C²/2`.
//!
//! So `e = (T + ρ·C)·(1 + 2^-20) + 2^-20·(C + T)` and `g = 2^-21·C²` of the largest C hold with room to spare.

use crate::{
    Context, Tier, lanes,
    lines::Lines,
    outer::{Form, Kind, Side, scale},
};

/// Dimensions whose sums of products of int8 fit an i32, the codes of centroids being offset by 128 on some
/// tiers, and those for which twelve bits do.
pub(super) const MAX_DIM: usize = 65_536;
const _: () = assert!(MAX_DIM * 127 * 255 <= i32::MAX as usize);
const MAX_TWELVE: usize = 512;
const _: () = assert!(MAX_TWELVE * 2047 * 2047 <= i32::MAX as usize);

/// Rows of a task that makes codes.
const TASK: usize = 256;
/// Entries that are coded at once.
const PIECE: usize = 64;
/// Sums side by side.
const LANES: usize = 16;

/// Which codes, and how they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    pub(super) kind: Kind,
    pub(super) form: Form,
}

impl Coding {
    /// What the tiles of a tier multiply: int8, or twelve bits where a tier multiplies int16 anyway.
    pub(super) fn of(tier: Tier, dim: usize) -> Coding {
        let wide = matches!(Form::of(tier, Kind::Int8).left, Side::Pairs { .. });
        let kind = if wide && dim <= MAX_TWELVE { Kind::Twelve } else { Kind::Int8 };
        Coding { kind, form: Form::of(tier, kind) }
    }

    /// Twelve bits in pairs, those of a row side by side, on every tier; none for more columns than fit.
    pub(super) fn pairs(dim: usize) -> Option<Coding> {
        let form = Form::of(Tier::SCALAR, Kind::Twelve);
        (dim <= MAX_TWELVE).then_some(Coding { kind: Kind::Twelve, form })
    }
}

/// A bound of a sum of squares of `dim` terms from its value in f32: chains of `PIECE / LANES` terms, one for each
/// piece, and as many sums as there are lanes. Each term and each sum is off by 2^-24 at most.
fn inflate(dim: usize) -> f32 {
    1.0 + (dim / PIECE + 24) as f32 * f32::EPSILON
}

/// What is known of the codes of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    /// `a`
    pub(super) scale: f32,
    /// `N`
    pub(super) norm: f32,
    /// `ρ`
    pub(super) share: f32,
    /// `|x'|²`, at least within `inflate`.
    pub(super) square: f32,
    /// `Σ p`
    pub(super) sum: i32,
}

/// Codes of rows, made once.
#[derive(Debug, Default)]
pub(super) struct RowCodes {
    /// Bytes of a row, in the order of a panel: whole quads, whole tiles where there are such, the rest zero.
    pub(super) stride: usize,
    pub(super) codes: Vec<u8>,
    pub(super) rows: Vec<Row>,
    coding: Option<Coding>,
}

impl RowCodes {
    /// Which codes are there.
    pub(super) fn coding(&self) -> Option<Coding> {
        self.coding
    }

    /// Codes of `x` `[rows][dim]` less `mean`, unless they are there.
    pub(super) fn prepare(&mut self, cx: &Context, x: &[f32], mean: &[f32], coding: Coding) {
        if self.coding.replace(coding) == Some(coding) {
            return;
        }
        let dim = mean.len();
        let (side, bound) = (coding.form.left, coding.kind.left_bound());
        self.stride = side.lane(dim);
        self.rows = vec![Row::default(); x.len() / dim];
        self.codes = vec![0; self.rows.len() * self.stride];
        let stride = self.stride;
        cx.chunks2((&mut self.codes, TASK * stride), (&mut self.rows, TASK), |index, codes, rows| {
            code_rows(cx.tier(), &x[index * TASK * dim..], mean, side, bound, stride, codes, rows);
        });
    }
}

tiered! {
    fn code_rows(
        x: &[f32],
        mean: &[f32],
        side: Side,
        bound: i16,
        stride: usize,
        codes: &mut [u8],
        rows: &mut [Row],
    ) {
        let up = inflate(mean.len());
        for ((x, codes), row) in
            x.chunks_exact(mean.len()).zip(codes.chunks_exact_mut(stride)).zip(rows)
        {
            let coded = code(x, mean, bound, |at, q| match side {
                Side::Pairs { .. } => {
                    for (to, q) in codes[2 * at..].as_chunks_mut::<2>().0.iter_mut().zip(q) {
                        *to = (*q as i16).to_le_bytes();
                    }
                }
                _ => {
                    for (to, q) in codes[at..].iter_mut().zip(q) {
                        *to = *q as u8;
                    }
                }
            });
            // Roots are rounded correctly; products by `up` leave room for them.
            let (coarse, rest) = (coded.coarse.sqrt() * up, coded.rest.sqrt() * up);
            let norm = if coarse > rest { coarse } else { rest };
            *row = Row {
                scale: coded.scale,
                norm,
                share: if norm > 0.0 { rest / norm * up } else { 0.0 },
                square: coded.square,
                sum: coded.sum,
            };
        }
    }
}

/// A vector less the mean, coded.
struct Coded {
    scale: f32,
    /// `|a·p|²`, `|r|²` and `|x'|²` in f32.
    coarse: f32,
    rest: f32,
    square: f32,
    /// `Σ p`
    sum: i32,
}

/// Codes `x - mean`, and gives `put` the index of each piece and its codes, those beyond the end zero.
#[inline(always)]
fn code(x: &[f32], mean: &[f32], bound: i16, mut put: impl FnMut(usize, &[i32; PIECE])) -> Coded {
    let mut largest = [0.0f32; LANES];
    for (x, mean) in x.chunks(PIECE).zip(mean.chunks(PIECE)) {
        for x in less(x, mean).as_chunks::<LANES>().0 {
            for l in 0..LANES {
                largest[l] = if x[l].abs() > largest[l] { x[l].abs() } else { largest[l] };
            }
        }
    }
    let (scale, inverse) = scale(lanes::max_abs(&largest), bound);
    let (mut coarse, mut rest, mut square) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut sum = [0; LANES];
    for (at, (x, mean)) in x.chunks(PIECE).zip(mean.chunks(PIECE)).enumerate() {
        let x = less(x, mean);
        let mut codes = [0; PIECE];
        let (mut coarse_here, mut rest_here, mut square_here) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for (codes, x) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0) {
            for l in 0..LANES {
                // |x·inverse| ≤ bound·(1 + 2^-22), which rounds to at most the bound.
                codes[l] = lanes::round(x[l] * inverse);
                sum[l] += codes[l];
                let near = scale * codes[l] as f32;
                // One rounding, of the rest itself.
                let far = (-scale).mul_add(codes[l] as f32, x[l]);
                coarse_here[l] = near.mul_add(near, coarse_here[l]);
                rest_here[l] = far.mul_add(far, rest_here[l]);
                square_here[l] = x[l].mul_add(x[l], square_here[l]);
            }
        }
        for l in 0..LANES {
            coarse[l] += coarse_here[l];
            rest[l] += rest_here[l];
            square[l] += square_here[l];
        }
        put(at * PIECE, &codes);
    }
    let total = |lanes: [f32; LANES]| lanes.into_iter().sum();
    Coded {
        scale,
        coarse: total(coarse),
        rest: total(rest),
        square: total(square),
        sum: sum.into_iter().sum(),
    }
}

/// `x - mean`, zeros beyond the end.
#[inline(always)]
fn less(x: &[f32], mean: &[f32]) -> [f32; PIECE] {
    let mut piece = [0.0; PIECE];
    if let (Ok(x), Ok(mean)) = (<&[f32; PIECE]>::try_from(x), <&[f32; PIECE]>::try_from(mean)) {
        for i in 0..PIECE {
            piece[i] = x[i] - mean[i];
        }
    } else {
        for ((piece, x), mean) in piece.iter_mut().zip(x).zip(mean) {
            *piece = x - mean;
        }
    }
    piece
}

/// Centroids of a wide panel of the largest tile; there is room for whole ones.
pub(super) const WIDE: usize = 32;

/// Codes of centroids, made anew whenever they have moved.
#[derive(Debug, Default)]
pub(super) struct CentroidCodes {
    mean: Vec<f32>,
    /// Panels of the right factor.
    pub(super) panels: Lines,
    /// Bytes of one.
    pub(super) panel: usize,
    /// `b`, `h`, `T` and `C` by centroid; those that only fill a panel are infinitely far away.
    pub(super) scales: Vec<f32>,
    pub(super) halves: Vec<f32>,
    pub(super) rests: Vec<f32>,
    pub(super) norms: Vec<f32>,
    /// `g`
    pub(super) gap: f32,
}

impl CentroidCodes {
    pub(super) fn new(mean: Vec<f32>) -> CentroidCodes {
        CentroidCodes { mean, ..CentroidCodes::default() }
    }

    /// What rows and centroids are taken less of.
    pub(super) fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Codes of `centroids` `[k][dim]`.
    pub(super) fn prepare(&mut self, cx: &Context, centroids: &[f32], coding: Coding) {
        let dim = self.mean.len();
        let (form, bound) = (coding.form, coding.kind.right_bound());
        let padded = (centroids.len() / dim).next_multiple_of(WIDE);
        let width = form.right.width();
        self.panel = form.right.panel(dim);
        for list in [&mut self.scales, &mut self.rests, &mut self.norms] {
            list.clear();
            list.resize(padded, 0.0);
        }
        self.halves.clear();
        self.halves.resize(padded, f32::NEG_INFINITY);
        let panels = self.panels.sized(padded / width * self.panel);
        let mut largest = 0.0f32;
        for (at, centroid) in centroids.chunks_exact(dim).enumerate() {
            let panel = &mut panels[at / width * self.panel..][..self.panel];
            let offset = form.offset as i16;
            let lane = at % width;
            let coded =
                code_centroid(cx.tier(), centroid, &self.mean, form.right, bound, lane, offset, panel);
            self.scales[at] = coded.scale;
            let up = inflate(dim);
            self.rests[at] = coded.rest.sqrt() * up;
            self.norms[at] = coded.square.sqrt() * up;
            self.halves[at] = coded.half;
            largest = largest.max(self.norms[at]);
        }
        self.gap = largest * largest * (4.0 * f32::EPSILON);
    }
}

/// A centroid, coded, with `h`.
struct CodedCentroid {
    scale: f32,
    rest: f32,
    square: f32,
    half: f32,
}

tiered! {
    fn code_centroid(
        centroid: &[f32],
        mean: &[f32],
        side: Side,
        bound: i16,
        lane: usize,
        offset: i16,
        panel: &mut [u8],
    ) -> CodedCentroid {
        let quads = side.quads(mean.len());
        let coded = code(centroid, mean, bound, |at, codes| {
            for (quad, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let quad = at / 4 + quad;
                if quad < quads {
                    side.put(panel, lane, quad, four.map(|q| q as i16 + offset));
                }
            }
        });
        let mut square = 0.0f64;
        for (c, m) in centroid.iter().zip(mean) {
            let difference = f64::from(c - m);
            square += difference * difference;
        }
        CodedCentroid { scale: coded.scale, rest: coded.rest, square: coded.square, half: (-0.5 * square) as f32 }
    }
}
