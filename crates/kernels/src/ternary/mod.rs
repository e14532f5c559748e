//! Ternary × int8 matrix products: `y = x · qᵀ` with codes q in {-1, 0, 1}, exact in i32.
//!
//! Codes lie in memory in 2 bits, in panels of `COLUMNS` outputs ordered as the kernels read them. A
//! product of many rows first expands them to a byte per code, then runs register tiles: some rows of `x`
//! against one panel or two. A product of one row reads the 2-bit codes as they are.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(any(target_arch = "aarch64", test))]
mod neon;
mod panels;
mod scalar;

use panels::panel_len;
pub use panels::{Latent, MAX_INPUTS, Panels, Rows, Source, pack};

use crate::{
    Context, Tier,
    lines::Lines,
    tier::{Level, Registers},
    tile::{Base, COLUMNS, Out},
};

/// Inputs that one step of the inner loop consumes.
const STEP: usize = 4;
/// Inputs that one byte of packed codes spans with its neighbours: a group.
const GROUP: usize = 8;
/// Bytes of codes that stay in the second cache.
#[cfg(target_arch = "x86_64")]
const CACHED: usize = 1 << 19;

/// Working memory of [`matmul`], kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A byte per code: `[panel][step of four inputs][16 outputs][4 inputs]`; or the padded row, when
    /// there is one.
    codes: Lines,
    /// What a tile reads lies together, wherever its rows lie: `[panel of rows][step][row][inputs of a
    /// step]`.
    rows: Lines,
    /// Sums of the rows, and what results are scaled with.
    sums: Vec<i32>,
    factors: Vec<f32>,
}

/// Bytes of [`Scratch`] for products of `tokens` rows with matrices of these shapes, both ways.
pub(crate) fn room(tier: Tier, tokens: usize, shapes: &[[usize; 2]]) -> usize {
    let both = shapes.iter().flat_map(|[rows, cols]| [(*rows, *cols), (*cols, *rows)]);
    let (mut codes, mut rows) = (0, 0);
    for (outputs, inputs) in both {
        let plan = Plan::of(tier, (tokens, outputs, inputs));
        codes = codes.max(outputs.next_multiple_of(COLUMNS) * inputs.next_multiple_of(64));
        rows = rows.max(tokens.next_multiple_of(plan.part()) * inputs.next_multiple_of(plan.depth));
    }
    codes + rows + tokens * (size_of::<i32>() + size_of::<f32>())
}

tiered! {
    /// One byte per code: register by register, two registers a step.
    fn expand(packed: &[u8], codes: &mut [u8]) {
        for (bytes, out) in packed.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
            for shift in 0..4 {
                for j in 0..32 {
                    out[32 * shift + j] = bytes[j] >> (2 * shift) & 3;
                }
            }
        }
    }
}

/// The tile of a tier, and what a task takes.
#[derive(Clone, Copy)]
struct Plan {
    /// Rows of a panel.
    width: usize,
    /// Inputs of a step.
    depth: usize,
    /// Panels of codes in a tile.
    panels: usize,
    /// Rows that meet all panels of a task before the next ones do.
    pass: usize,
    /// Rows and columns of a task.
    task: (usize, usize),
}

impl Plan {
    fn of(
        tier: Tier,
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused))] (rows, outputs, inputs): (
            usize,
            usize,
            usize,
        ),
    ) -> Plan {
        // Few rows where a tile is small, so that some threads share a batch evenly.
        let task = if rows < 192 { 12 } else { 48 };
        let plan = |width, panels| Plan { width, depth: STEP, panels, pass: task, task: (task, outputs) };
        match tier.level() {
            Level::Scalar => plan(1, 1),
            #[cfg(any(target_arch = "aarch64", test))]
            Level::Neon => plan(crate::neon::ROWS, 1),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => plan(avx2::ROWS, 1),
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni => plan(avx_vnni::ROWS, 1),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => plan(avx512::ROWS, 2),
            #[cfg(target_arch = "x86_64")]
            Level::Amx => {
                // A tile uses every code only 32 times: codes stay in the second cache while all rows pass
                // by.
                let groups = (outputs * inputs).div_ceil(CACHED);
                let columns = outputs.div_ceil(groups).next_multiple_of(2 * COLUMNS);
                let pass = 2 * crate::amx::ROWS;
                let rows = rows.div_ceil(8).next_multiple_of(pass);
                Plan {
                    width: crate::amx::ROWS,
                    depth: crate::amx::DEPTH,
                    panels: 2,
                    pass,
                    task: (rows, columns),
                }
            }
        }
    }

    /// Rows that are laid out together: whole passes.
    fn part(&self) -> usize {
        self.pass.next_multiple_of(self.width)
    }
}

/// The rows of `out` against the panels in `codes`, one byte per code, at most as many as a tile takes.
fn tiles(
    tier: Tier,
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused))] registers: &Registers,
    x: &[u8],
    steps: usize,
    codes: &[u8],
    out: &mut Out<'_>,
) {
    match tier.level() {
        Level::Scalar => scalar::tiles(x, steps, codes, out),
        #[cfg(any(target_arch = "aarch64", test))]
        Level::Neon => neon::tiles(tier, x, steps, codes, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::tiles(tier, x, steps, codes, out),
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => avx_vnni::tiles(tier, x, steps, codes, out),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::tiles(tier, x, steps, codes, out),
        #[cfg(target_arch = "x86_64")]
        Level::Amx => amx::tiles(tier, registers, x, steps, codes, out),
    }
}

/// Rows of `inputs` values in panels; what is missing of the last step is zero. Returns nothing but the
/// sums of the rows, in `sums`.
fn pack_rows(tier: Tier, x: &[i8], inputs: usize, plan: Plan, panels: &mut [u8], sums: &mut [i32]) {
    match plan.depth {
        STEP => pack_rows_in::<STEP>(tier, x, inputs, plan, panels, sums),
        _ => pack_rows_in::<64>(tier, x, inputs, plan, panels, sums),
    }
}

fn pack_rows_in<const DEPTH: usize>(
    tier: Tier,
    x: &[i8],
    inputs: usize,
    plan: Plan,
    panels: &mut [u8],
    sums: &mut [i32],
) {
    let panel = inputs.div_ceil(DEPTH) * DEPTH * plan.width;
    let (steps, _) = panels.as_chunks_mut::<DEPTH>();
    for (index, (row, sum)) in x.chunks_exact(inputs).zip(sums).enumerate() {
        let to = &mut steps[index / plan.width * (panel / DEPTH)..][..panel / DEPTH];
        *sum = pack_row(tier, row, &mut to[index % plan.width..], plan.width);
    }
}

/// Copies a row to every `width`th step; returns its sum.
fn pack_row<const DEPTH: usize>(tier: Tier, row: &[i8], to: &mut [[u8; DEPTH]], width: usize) -> i32 {
    let row: &[u8] = bytemuck::cast_slice(row);
    let mut to = to.iter_mut().step_by(width);
    let (whole, rest) = row.as_chunks::<DEPTH>();
    for (from, to) in whole.iter().zip(&mut to) {
        *to = *from;
    }
    if let (false, Some(to)) = (rest.is_empty(), to.next()) {
        *to = [0; DEPTH];
        to[..rest.len()].copy_from_slice(rest);
    }
    sum_row(tier, bytemuck::cast_slice(row))
}

tiered! {
    fn sum_row(row: &[i8]) -> i32 {
        row_sum(row)
    }
}

#[inline(always)]
fn row_sum(row: &[i8]) -> i32 {
    row.iter().map(|v| i32::from(*v)).sum()
}

/// `y[r][o] = scale · scales[r] · Σ_k x[r][k] · code[o][k]`, plus `residual[r][o]` where there is one.
///
/// `x` is row-major `[rows][inputs]` with values in [-127, 127], `scales` `[rows]`, `y` and `residual`
/// `[rows][outputs]`.
///
/// # Panics
/// The lengths do not fit together.
pub fn matmul(
    cx: &Context,
    x: &[i8],
    scales: &[f32],
    w: &Panels,
    scale: f32,
    residual: Option<&[f32]>,
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    let (inputs, outputs, rows) = (w.inputs, w.outputs, scales.len());
    assert_eq!(x.len(), rows * inputs, "x is not rows × inputs");
    assert_eq!(y.len(), rows * outputs, "y is not rows × outputs");
    assert!(residual.is_none_or(|x| x.len() == y.len()), "residual and y");
    if y.is_empty() {
        return;
    }
    if inputs == 0 {
        match residual {
            Some(x) => y.copy_from_slice(x),
            None => y.fill(0.0),
        }
        return;
    }
    let base = residual.map_or(Base::Nothing, Base::Matrix);
    if rows == 1 {
        return vector(cx, x, scales[0] * scale, w, base, scratch, y);
    }
    // Whole steps of every tier; what is beyond the inputs meets zeros.
    let expanded = inputs.next_multiple_of(64) * COLUMNS;
    let codes = scratch.codes.sized(outputs.div_ceil(COLUMNS) * expanded);
    cx.chunks(codes, expanded, |panel, codes| {
        expand(cx.tier(), &w.bytes[panel * panel_len(inputs)..][..panel_len(inputs)], codes);
    });
    let codes = &*codes;
    let plan = Plan::of(cx.tier(), (rows, outputs, inputs));
    let packed = lay_out(
        cx,
        x,
        scales,
        inputs,
        (plan, scale),
        &mut scratch.rows,
        &mut scratch.sums,
        &mut scratch.factors,
    );
    cx.grid(y, outputs, plan.task, |(first, column), mut y| {
        let registers = Registers::of(cx.tier());
        let (count, columns) = (y.rows(), y.columns());
        for row in (0..count).step_by(plan.pass) {
            let rows = row..count.min(row + plan.pass);
            let at = first + row..first + rows.end;
            let x = &packed.rows[at.start * packed.row..];
            for panel in (0..columns.div_ceil(COLUMNS)).step_by(plan.panels) {
                let part = panel * COLUMNS..columns.min((panel + plan.panels) * COLUMNS);
                let codes = &codes[(column / COLUMNS + panel) * expanded..];
                let codes = &codes[..part.len().div_ceil(COLUMNS) * expanded];
                let mut out = Out {
                    y: y.part(rows.clone(), part),
                    offsets: &packed.sums[at.clone()],
                    factors: &packed.factors[at.clone()],
                    column_factors: &[],
                    base,
                };
                tiles(cx.tier(), &registers, x, packed.row / plan.depth, codes, &mut out);
            }
        }
    });
}

/// Rows as [`lay_out`] leaves them.
struct Packed<'a> {
    rows: &'a [u8],
    /// Bytes of a row.
    row: usize,
    sums: &'a [i32],
    factors: &'a [f32],
}

/// Lays rows out for tiles, with their sums and the factors of their results.
fn lay_out<'a>(
    cx: &Context,
    x: &[i8],
    scales: &[f32],
    inputs: usize,
    (plan, scale): (Plan, f32),
    rows: &'a mut Lines,
    sums: &'a mut Vec<i32>,
    factors: &'a mut Vec<f32>,
) -> Packed<'a> {
    let row = inputs.next_multiple_of(plan.depth);
    let part = plan.part();
    // Whole tiles; what is beyond the last row meets nothing that is stored.
    let bytes = rows.sized(scales.len().next_multiple_of(part) * row);
    sums.resize(scales.len(), 0);
    factors.resize(scales.len(), 0.0);
    cx.chunks3((&mut *bytes, part * row), (sums, part), (factors, part), |index, bytes, sums, factors| {
        let (first, count) = (index * part, sums.len());
        pack_rows(cx.tier(), &x[first * inputs..][..count * inputs], inputs, plan, bytes, sums);
        for (factor, row) in factors.iter_mut().zip(&scales[first..]) {
            *factor = scale * row;
        }
    });
    Packed { rows: bytes, row, sums, factors }
}

/// Says that `w` is what a product of one row reads next; see [`Context::run_awake`].
pub fn expect(cx: &Context, w: &Panels) {
    cx.expect(&w.bytes);
}

/// [`matmul`] of one row: the outputs are split instead, and nothing is expanded.
fn vector(
    cx: &Context,
    x: &[i8],
    factor: f32,
    w: &Panels,
    base: Base<'_>,
    scratch: &mut Scratch,
    y: &mut [f32],
) {
    let sum = sum_row(cx.tier(), x);
    let padded = &mut scratch.codes.sized(x.len())[..x.len().next_multiple_of(GROUP)];
    padded[..x.len()].copy_from_slice(bytemuck::cast_slice(x));
    padded[x.len()..].fill(0);
    let x = &*padded;
    let outputs = y.len();
    // Sixteen tasks or so, in whole panels.
    let task = outputs.div_ceil(16).next_multiple_of(COLUMNS);
    cx.grid(y, outputs, (1, task), |(_, column), mut y| {
        for start in (0..y.columns()).step_by(COLUMNS) {
            let panel = (column + start) / COLUMNS;
            let packed = &w.bytes[panel * panel_len(w.inputs)..][..panel_len(w.inputs)];
            let part = start..y.columns().min(start + COLUMNS);
            let (offsets, factors) = (&[sum], &[factor]);
            let mut out = Out { y: y.part(0..1, part), offsets, factors, column_factors: &[], base };
            match cx.tier().level() {
                Level::Scalar => scalar::panel(x, packed, &mut out),
                #[cfg(any(target_arch = "aarch64", test))]
                Level::Neon => neon::panel(cx.tier(), x, packed, &mut out),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::panel(cx.tier(), x, packed, &mut out),
                #[cfg(target_arch = "x86_64")]
                Level::AvxVnni => avx_vnni::panel(cx.tier(), x, packed, &mut out),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Amx => avx512::panel(cx.tier(), x, packed, &mut out),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    //! Every tier against a product over the codes themselves, at all sizes and offsets.
    use super::*;

    fn noise(seed: &mut u64) -> u64 {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    fn check(
        tier: Tier,
        rows: usize,
        outputs: usize,
        inputs: usize,
        offset: usize,
        seed: u64,
        extreme: bool,
    ) {
        let mut seed = seed;
        let cx = Context::new(tier, 2).unwrap();
        let mut random = |low: i64, high: i64| (low + (noise(&mut seed) as i64) % (high - low + 1)) as i8;
        let storage: Vec<i8> =
            (0..offset + rows * inputs).map(|_| if extreme { 127 } else { random(-127, 127) }).collect();
        let x = &storage[offset..];
        let codes: Vec<i8> = (0..outputs * inputs).map(|_| if extreme { 1 } else { random(-1, 1) }).collect();
        let mut panels = Panels::zeros(outputs, inputs);
        let source = Rows { elements: &codes[..], cols: inputs };
        pack(&cx, source, (outputs, inputs), Some(&mut panels), None);
        let residual = vec![1.0; rows * outputs];
        let mut y = vec![f32::NAN; rows * outputs];
        let mut scratch = Scratch::default();
        matmul(&cx, x, &vec![1.0; rows], &panels, 1.0, Some(&residual), &mut scratch, &mut y);
        for r in 0..rows {
            for o in 0..outputs {
                let exact: i32 = (0..inputs)
                    .map(|k| i32::from(x[r * inputs + k]) * i32::from(codes[o * inputs + k]))
                    .sum();
                assert_eq!(y[r * outputs + o], exact as f32 + 1.0, "{rows}×{outputs}×{inputs} at ({r}, {o})");
            }
        }
    }

    #[test]
    fn every_tier_is_exact_at_every_size_and_offset() {
        for tier in Tier::tested() {
            for inputs in 0..=515 {
                check(tier, 1 + inputs % 13, 1 + inputs % 35, inputs, inputs % 33, inputs as u64, false);
            }
            for outputs in 1..=515 {
                check(tier, 1 + outputs % 7, outputs, 1 + outputs % 19, outputs % 5, outputs as u64, false);
            }
            for rows in (0..=515).step_by(5).chain([95, 96, 97, 191, 192, 193]) {
                check(tier, rows, 17, 9, rows % 31, rows as u64, false);
            }
        }
    }

    #[test]
    fn extreme_sums_do_not_saturate() {
        for tier in Tier::tested() {
            for inputs in [255, 256, 257, 511, 512, 1024, 4096] {
                check(tier, 7, 18, inputs, 0, 0, true);
            }
        }
    }
}
