//! Sums of outer products of integers: `y[o][i] = Σ_t l[t][o] · r[t][i]`, exact in i32.
//!
//! Both factors are rounded by scales that belong to a row (or column) and to a block of [`BLOCK`] of the
//! inner index `t`. Sums of a block are exact; they are scaled when it is done, and blocks are added in f32
//! in order.
//!
//! [`weight_gradient`] is the product that a linear layer needs: the inner index is tokens, gradients and
//! inputs are int8. [`crate::loss`] builds the products of the output head from the same parts.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod form;
#[cfg(any(target_arch = "aarch64", test))]
mod neon;
mod pack;
mod scalar;

use form::Layout;
pub(crate) use form::{Form, Kind, Side, TILE, TILE_ROWS};
pub(crate) use pack::{
    left_room, pack_columns, quantise_columns, quantise_left_rows, quantise_right_rows, right_room,
    round_columns, scale,
};

use crate::{
    Context, Store, Tier,
    lines::Lines,
    tier::{Level, Registers},
    tile::{Base, COLUMNS, Out},
};

/// Inner indices that share a scale, and that one i32 sums.
pub const BLOCK: usize = 512;

/// Rows and columns of the result in a task, and the rows that meet all columns before the next ones do.
fn task(form: Form, rows: usize, columns: usize) -> ((usize, usize), usize) {
    match form.layout {
        // A tile uses what it reads only 32 times: the factors of a task stay in the second cache.
        Layout::Tiles { .. } => ((256, 512), 32),
        // Few rows, so that two threads or more end at about the same time.
        _ if rows < 1536 => ((24, columns), 24),
        _ => ((48, columns), 48),
    }
}

/// The left factor: rows of the result.
#[derive(Debug, Default)]
pub(crate) struct Left {
    rows: usize,
    inner: usize,
    /// `[block][panel of rows]`, each as its [`form::Side`] says.
    values: Lines,
    /// `[block][rows, padded]`.
    scales: Vec<f32>,
    /// Sums over the inner index, likewise, times what the right factor is offset by.
    offsets: Vec<i32>,
}

/// The right factor: columns of the result.
#[derive(Debug, Default)]
pub(crate) struct Right {
    columns: usize,
    inner: usize,
    /// `[block][panel of 16 columns]`, each as its [`form::Side`] says.
    values: Lines,
    /// `[block][columns, padded]`, or none where they are ones.
    scales: Vec<f32>,
}

/// Working memory of [`weight_gradient`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    gradients: Left,
    inputs: Right,
}

/// Bytes of [`Scratch`] for gradients of matrices of these shapes from `tokens` rows.
pub(crate) fn room(tier: Tier, kind: Kind, tokens: usize, shapes: &[[usize; 2]]) -> usize {
    let left = shapes.iter().map(|[rows, _]| left_room(tier, kind, *rows, tokens)).max();
    let right = shapes.iter().map(|[_, cols]| right_room(tier, kind, tokens, *cols, false)).max();
    left.unwrap_or(0) + right.unwrap_or(0)
}

/// `dw = Σ_t (dy[t] · a[t]) ⊗ x[t]`, or that added to `dw`.
///
/// `dy` `[tokens][outputs]` f32, `a` `[tokens]` the scales of the int8 rows `x` `[tokens][inputs]`,
/// `dw` `[outputs][inputs]`. `dy·a` is rounded to int8, with a scale for each output and [`BLOCK`] tokens.
///
/// # Panics
/// The lengths do not fit together.
pub fn weight_gradient(
    cx: &Context,
    dy: &[f32],
    a: &[f32],
    x: &[i8],
    store: Store,
    scratch: &mut Scratch,
    dw: &mut [f32],
) {
    weight_gradient_of(cx, Kind::Int8, dy, a, x, store, scratch, dw);
}

/// [`weight_gradient`] with integers of a given size.
pub(crate) fn weight_gradient_of(
    cx: &Context,
    kind: Kind,
    dy: &[f32],
    a: &[f32],
    x: &[i8],
    store: Store,
    scratch: &mut Scratch,
    dw: &mut [f32],
) {
    let tokens = a.len();
    if tokens == 0 {
        if store == Store::Replace {
            dw.fill(0.0);
        }
        return;
    }
    let (outputs, inputs) = (dy.len() / tokens, x.len() / tokens);
    assert_eq!(dy.len(), tokens * outputs, "dy is not tokens × outputs");
    assert_eq!(x.len(), tokens * inputs, "x is not tokens × inputs");
    assert_eq!(dw.len(), outputs * inputs, "dw is not outputs × inputs");
    if dw.is_empty() {
        return;
    }
    let Scratch { gradients, inputs: right } = scratch;
    quantise_columns(cx, kind, dy, a, outputs, gradients);
    pack_columns(cx, kind, x, inputs, right);
    product(cx, kind, gradients, right, store, dw);
}

/// `y = lᵀ·r`, or that added to `y`.
///
/// # Panics
/// The factors have different inner lengths, or `y` is not rows × columns.
pub(crate) fn product(cx: &Context, kind: Kind, left: &Left, right: &Right, store: Store, y: &mut [f32]) {
    let (rows, columns, inner) = (left.rows, right.columns, left.inner);
    assert_eq!(inner, right.inner, "inner lengths");
    assert_eq!(y.len(), rows * columns, "y is not rows × columns");
    let form = Form::of(cx.tier(), kind);
    let (task, pass) = task(form, rows, columns);
    let left_panel = form.left.panel(inner.min(BLOCK));
    let right_panel = form.right.panel(inner.min(BLOCK));
    cx.grid(y, columns, task, |(first, column), mut y| {
        let registers = Registers::of(cx.tier());
        let (rows, columns) = (y.rows(), y.columns());
        for block in 0..inner.div_ceil(BLOCK) {
            let panels = block * pack::padded_panels(right.columns) + column / COLUMNS;
            for start in (0..rows).step_by(pass) {
                let rows = start..rows.min(start + pass);
                let row = block * pack::padded_rows(left.rows) + first + start;
                let from = row / form.left.width() * left_panel;
                for panel in (0..columns.div_ceil(COLUMNS)).step_by(form.panels) {
                    let part = panel * COLUMNS..columns.min((panel + form.panels) * COLUMNS);
                    let scales = right.scales.get((panels + panel) * COLUMNS..).unwrap_or_default();
                    let mut out = Out {
                        offsets: &left.offsets[row..row + rows.len()],
                        factors: &left.scales[row..row + rows.len()],
                        column_factors: scales.get(..part.len()).unwrap_or_default(),
                        base: if block > 0 { Base::Itself } else { store.into() },
                        y: y.part(rows.clone(), part),
                    };
                    let factors = Factors {
                        left: &left.values.bytes()[from..],
                        left_panel,
                        right: &right.values.bytes()[(panels + panel) * right_panel..],
                        right_panel,
                        inner: (inner - block * BLOCK).min(BLOCK),
                    };
                    tiles(cx.tier(), &registers, kind, factors, &mut out);
                }
            }
        }
    });
}

/// The factors of some tiles in one block of the inner index.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// From the first row's panel on, panels `left_panel` bytes apart.
    pub(crate) left: &'a [u8],
    pub(crate) left_panel: usize,
    /// From the first column's panel on, likewise.
    pub(crate) right: &'a [u8],
    pub(crate) right_panel: usize,
    /// Inner indices.
    pub(crate) inner: usize,
}

impl<'a> Factors<'a> {
    /// The panel that begins with row `row`, in panels of `width`.
    fn rows(&self, row: usize, width: usize) -> &'a [u8] {
        &self.left[row / width * self.left_panel..][..self.left_panel]
    }

    /// Panel `panel` of the columns.
    fn columns(&self, panel: usize) -> &'a [u8] {
        &self.right[panel * self.right_panel..][..self.right_panel]
    }
}

/// The rows and panels of `out` from one block of the inner index.
pub(crate) fn tiles(
    tier: Tier,
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused))] registers: &Registers,
    kind: Kind,
    factors: Factors<'_>,
    out: &mut Out<'_>,
) {
    let form = Form::of(tier, kind);
    match (form.layout, tier.level()) {
        (_, Level::Scalar) => scalar::tiles(factors, out),
        #[cfg(any(target_arch = "aarch64", test))]
        (layout, Level::Neon) => neon::tiles(tier, layout, factors, out),
        #[cfg(target_arch = "x86_64")]
        (Layout::Pairs, Level::Avx2 | Level::AvxVnni) => {
            avx2::tiles(tier, factors, out);
        }
        #[cfg(target_arch = "x86_64")]
        (Layout::Quads, Level::AvxVnni) => avx_vnni::tiles(tier, factors, out),
        #[cfg(target_arch = "x86_64")]
        (Layout::Pairs, _) => avx512::pairs(tier, factors, out),
        #[cfg(target_arch = "x86_64")]
        (Layout::Quads, _) => avx512::quads(tier, factors, out),
        #[cfg(target_arch = "x86_64")]
        (Layout::Tiles { .. }, _) => amx::tiles(tier, registers, kind, factors, out),
    }
}

#[cfg(test)]
mod tests {
    //! Every tier against plain loops over the quantised operands, at all sizes and offsets.
    use super::*;

    /// Numbers in -1..1.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        }
    }

    /// Rounds some values by the scale of their block; returns the scale.
    fn round(values: &[f32], bound: i16) -> (Vec<i64>, f32) {
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let bound = f32::from(bound);
        let integer = |v: &f32| (v * (bound / largest)).round_ties_even() as i64;
        (values.iter().map(|v| if largest > 0.0 { integer(v) } else { 0 }).collect(), largest / bound)
    }

    fn check(
        tier: Tier,
        kind: Kind,
        (tokens, outputs, inputs): (usize, usize, usize),
        offset: usize,
        extreme: bool,
    ) {
        let mut random = Random((tokens * 1_000_003 + outputs * 1009 + inputs) as u64);
        let cx = Context::new(tier, 2).unwrap();
        let dy: Vec<f32> =
            (0..offset + tokens * outputs).map(|_| if extreme { -1.0 } else { random.next() }).collect();
        let x: Vec<i8> = (0..offset + tokens * inputs)
            .map(|_| if extreme { -127 } else { (random.next() * 127.0) as i8 })
            .collect();
        let a: Vec<f32> = (0..tokens).map(|_| if extreme { 1.0 } else { random.next() }).collect();
        let (dy, x) = (&dy[offset..], &x[offset..]);
        let mut scratch = Scratch::default();
        let mut dw = vec![0.5; outputs * inputs];
        weight_gradient_of(&cx, kind, dy, &a, x, Store::Add, &mut scratch, &mut dw);
        for o in 0..outputs {
            let folded: Vec<f32> = (0..tokens).map(|t| dy[t * outputs + o] * a[t]).collect();
            let blocks: Vec<_> = folded.chunks(BLOCK).map(|block| round(block, kind.left_bound())).collect();
            for i in 0..inputs {
                let mut expected = 0.5;
                for (block, (q, scale)) in blocks.iter().enumerate() {
                    let column = x[block * BLOCK * inputs..].iter().skip(i).step_by(inputs);
                    let sum: i64 = q.iter().zip(column).map(|(q, x)| q * i64::from(*x)).sum();
                    expected += i32::try_from(sum).unwrap() as f32 * scale;
                }
                let found = dw[o * inputs + i];
                assert_eq!(found, expected, "{kind:?} {tokens}×{outputs}×{inputs} at ({o}, {i})");
            }
        }
    }

    #[test]
    fn every_tier_is_exact_at_every_size_and_offset() {
        for tier in Tier::tested() {
            for kind in [Kind::Int8, Kind::Int16] {
                for tokens in 0..=515 {
                    check(tier, kind, (tokens, 1 + tokens % 14, 1 + tokens % 35), tokens % 7, false);
                }
                for outputs in 1..=515 {
                    check(tier, kind, (1 + outputs % 5, outputs, 1 + outputs % 18), outputs % 3, false);
                }
                for inputs in 1..=515 {
                    check(tier, kind, (1 + inputs % 6, 1 + inputs % 8, inputs), inputs % 9, false);
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_fit() {
        for tier in Tier::tested() {
            for kind in [Kind::Int8, Kind::Int16] {
                for tokens in [511, 512, 513, 1024, 1025, 2048] {
                    check(tier, kind, (tokens, 7, 17), 0, true);
                }
            }
        }
    }

    #[test]
    fn rows_by_rows_are_exact_on_every_tier() {
        for tier in Tier::tested() {
            let cx = Context::new(tier, 2).unwrap();
            let (mut left, mut right) = (Left::default(), Right::default());
            let sizes = (1..=131).chain([511, 512, 513, 1025]);
            for (rows, columns, inner) in sizes.map(|n| (1 + n % 37, 1 + n % 41, n)) {
                let mut random = Random(inner as u64);
                let x: Vec<f32> = (0..rows * inner).map(|_| random.next()).collect();
                let w: Vec<f32> = (0..columns * inner).map(|_| random.next()).collect();
                quantise_left_rows(&cx, Kind::Twelve, &x, &[], inner, &mut left);
                quantise_right_rows(&cx, Kind::Twelve, &w, inner, &mut right);
                let mut y = vec![0.0; rows * columns];
                product(&cx, Kind::Twelve, &left, &right, Store::Replace, &mut y);
                for (r, x) in x.chunks_exact(inner).enumerate() {
                    for (c, w) in w.chunks_exact(inner).enumerate() {
                        let mut expected = 0.0;
                        for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
                            let ((x, scale), (w, scale_w)) = (round(x, 2047), round(w, 2047));
                            let sum: i64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                            expected += i32::try_from(sum).unwrap() as f32 * scale * scale_w;
                        }
                        assert_eq!(y[r * columns + c], expected, "{rows}×{columns}×{inner} at ({r}, {c})");
                    }
                }
            }
        }
    }
}
