//! The last part of an optimizer's step, row by row: momentum, the step, rounding into the format of the weights, and
//! the bound on what was applied (`kernels::descent`).

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::{Descent, Pace, REPORT, Weight};

use super::packed::{
    HALVES, Kind, Layout, RUN, SIDE, chance, half, halved, is_nan, largest_level, matrix_room, mean, measure,
    number, pack_row, place, random_words, to_level, words_of, worth,
};
use crate::{
    Floats, Gpu, Packed,
    blocks::{UNITS, cube_sum, desk, is_open, magnitude},
    launch::{Buffer, arg, cubes, cubes_for, launch, units},
};

/// Numbers of a row of a table: what a level is worth, where codes change, rate, budget and decay.
pub(super) const INFO: usize = 5;
/// Which of them says where codes change: levels beyond it are codes, numbers beyond it of formats without levels.
pub(super) const TURN: usize = 1;
/// Shorter steps that are tried before a row stays where it is.
const TRIES: u32 = 16;

/// Half a step below the least level that is more than half a scale; of all levels where none is.
#[cube]
fn turn_of(scale: f32, worth: f32, largest: f32) -> f32 {
    let mut least = largest + 1.0f32;
    if scale > 0.0f32 && worth > 0.0f32 {
        let half = scale * 0.5f32;
        // A level less than the quotient, which may be off by a rounding.
        let quotient = (half / worth).floor() - 1.0f32;
        if quotient <= largest {
            let mut level = 0.0f32;
            if quotient > 0.0f32 {
                level = quotient;
            }
            while level <= largest && level * worth <= half {
                level += 1.0f32;
            }
            least = level;
        }
    }
    least - 0.5f32
}

/// One unit a row.
#[cube(launch, create_dummy_kernel)]
fn table_kernel(
    steps: &[f32],
    places: &[u32],
    scale: &[f32],
    rms: &[f32],
    paces: &[f32],
    table: &mut [f32],
    cols: usize,
    digits: u32,
    decay: f32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
) {
    let row = ABSOLUTE_POS;
    if row < table.len() / INFO {
        let own = place(places, row, 0, digits, placed).1;
        let worth = worth(steps, row, own, digits, kind, placed);
        let scale = scale[0];
        let mut turn = f32::reinterpret(0x7f80_0000u32.runtime());
        if comptime![kind == Kind::Int8 || kind == Kind::Trits] {
            turn = turn_of(scale, worth, largest_level(own, kind));
        } else if scale > 0.0f32 {
            turn = scale * 0.5f32;
        }
        let pace = if paces.len() == 2 { 0usize.runtime() } else { 2 * row };
        let (rate, radius) = (paces[pace], paces[pace + 1]);
        let bound = radius * rms[0];
        table[row * INFO] = worth;
        table[row * INFO + TURN] = turn;
        table[row * INFO + 2] = rate * rms[0];
        table[row * INFO + 3] = bound * bound * f32::cast_from(cols);
        table[row * INFO + 4] = rate * decay;
    }
}

/// What rows of a matrix are worth and how they move, by row: paces with the cluster of each row, or none where all
/// are of the first.
pub(super) fn row_table(
    gpu: &Gpu,
    of: &Layout,
    scale: &Handle,
    rms: &Handle,
    (paces, clusters): (&[Pace], &[u8]),
    decay: f32,
) -> (Handle, Buffer) {
    let of_row = |pace: &Pace| [pace.rate, pace.radius];
    let by_row: Vec<f32> = match clusters {
        [] => of_row(&paces[0]).into(),
        clusters => clusters.iter().flat_map(|cluster| of_row(&paces[usize::from(*cluster)])).collect(),
    };
    let paces = gpu.put(bytemuck::cast_slice(&by_row));
    let room = gpu.room(of.rows * INFO);
    let table = arg(&room, of.rows * INFO);
    launch!(
        gpu,
        table_kernel,
        cubes_for(of.rows),
        units(),
        of.steps,
        of.places,
        arg(scale, 1),
        arg(rms, 1),
        arg(&paces, by_row.len()),
        table,
        of.cols,
        of.digits,
        decay,
        of.kind,
        of.placed,
    );
    (room, table)
}

/// Where a number with a random half goes, in levels where there are any.
#[cube]
fn moved(w: f32, u: f32, half: u32, keep: f32, rate: f32, largest: f32, #[comptime] kind: Kind) -> f32 {
    let mut to = keep * w - rate * u;
    if comptime![kind == Kind::Bf16] {
        to = halved(to, half);
    }
    if comptime![kind == Kind::Int8 || kind == Kind::Trits] {
        to = to_level(to + chance(half), largest);
    }
    to
}

/// -1, 0 or 1.
#[cube]
fn code(w: f32, turn: f32) -> i32 {
    i32::cast_from(w > turn) - i32::cast_from(w < -turn)
}

/// One cube a row; `new` is room for a matrix.
#[cube(launch, create_dummy_kernel)]
fn descend_kernel(
    words: &mut [u32],
    places: &[u32],
    table: &[f32],
    direction: &[f32],
    new: &mut [f32],
    reports: &mut [f32],
    gates: &[f32],
    gate: usize,
    cols: usize,
    row_words: usize,
    digits: u32,
    key_low: u32,
    key_high: u32,
    tensor: u32,
    time: u32,
    #[comptime] kind: Kind,
    #[comptime] placed: bool,
) {
    let mut desk = desk();
    let row = CUBE_POS;
    if row < reports.len() / REPORT && is_open(gates, gate) {
        let unit = UNIT_POS as usize;
        let (start, own) = place(places, row, row_words, digits, placed);
        let first = row * cols;
        let worth = table[row * INFO];
        let turn = table[row * INFO + TURN];
        let (rate, budget, decay) = (table[row * INFO + 2], table[row * INFO + 3], table[row * INFO + 4]);
        let largest = largest_level(own, kind);
        let mut directions = 0.0f32;
        let mut weights = 0.0f32;
        let mut zeros_before = 0.0f32;
        let mut i = unit;
        while i < cols {
            let u = direction[first + i];
            let w = number(&*words, start, cols, i, own, kind);
            directions += u * u;
            weights += w * w;
            zeros_before += f32::cast_from(code(w, turn) == 0);
            i += UNITS;
        }
        let directions = cube_sum(directions, &mut desk);
        let weights = cube_sum(weights, &mut desk) * worth * worth;
        // A row of f32 that nothing bounds and whose direction is finite moves, whatever comes of it.
        let mut free = false;
        if comptime![kind == Kind::Floats] {
            free = u32::reinterpret(budget) == 0x7f80_0000u32 && magnitude(directions) < 0x7f80_0000u32;
        }
        let mut share = 1.0f32;
        let mut stays = false;
        let mut bounded = 0.0f32;
        let mut applied = 0.0f32;
        let mut flips = 0.0f32;
        let mut zeros = 0.0f32;
        let mut attempt = 0u32;
        let mut going = true;
        while going {
            let keep = 1.0f32 - decay * share;
            let mut by = rate * share;
            if comptime![kind == Kind::Int8 || kind == Kind::Trits] {
                by = if worth > 0.0f32 { by / worth } else { 0.0f32.runtime() };
            }
            let mut sum = 0.0f32;
            flips = 0.0f32;
            zeros = 0.0f32;
            let mut at = unit;
            while at < cols.div_ceil(RUN) * SIDE {
                let random = random_words(row, cols, at, key_low, key_high, tensor, time);
                #[unroll]
                for h in 0..HALVES {
                    let col = at / SIDE * RUN + h * SIDE + at % SIDE;
                    if col < cols {
                        let w = number(&*words, start, cols, col, own, kind);
                        let to = moved(w, direction[first + col], half(&random, h), keep, by, largest, kind);
                        let after = code(to, turn);
                        sum += (to - w) * (to - w);
                        flips += f32::cast_from(code(w, turn) != after);
                        zeros += f32::cast_from(after == 0);
                        new[first + col] = to;
                    }
                }
                at += UNITS;
            }
            applied = cube_sum(sum, &mut desk) * worth * worth;
            if free || (!is_nan(applied) && applied <= budget) {
                going = false;
            } else {
                bounded = 1.0f32;
                if attempt == TRIES {
                    stays = true;
                    applied = 0.0f32;
                    going = false;
                } else {
                    // Steps of levels are mostly of one: their number, not their length, goes with the share.
                    let mut excess = budget / applied;
                    if comptime![kind == Kind::Floats] {
                        excess = excess.sqrt();
                    }
                    if is_nan(excess) || excess > 1.0f32 {
                        excess = 1.0f32;
                    }
                    share *= excess * 0.99f32;
                }
                attempt += 1u32;
            }
        }
        sync_storage();
        if stays {
            flips = 0.0f32;
            zeros = zeros_before;
        } else {
            pack_row(&*new, first, words, start, cols, own, kind);
        }
        let flips = cube_sum(flips, &mut desk);
        let zeros = cube_sum(zeros, &mut desk);
        if unit == 0 {
            let to = row * REPORT;
            reports[to] = applied;
            reports[to + 1] = directions;
            reports[to + 2] = weights;
            reports[to + 3] = flips;
            reports[to + 4] = zeros;
            reports[to + 5] = bounded;
            reports[to + 6] = f32::cast_from(own);
        }
    }
}

pub(crate) fn descend(
    gpu: &Gpu,
    w: &mut Weight<Gpu>,
    u: &Floats,
    moment: Option<&mut Packed>,
    with: &Descent<'_>,
    reports: &mut Floats,
) {
    let rows = reports.len / REPORT;
    let cols = u.len / rows.max(1);
    assert_eq!(u.len, rows * cols, "one report for every row");
    assert!(with.clusters.is_empty() || with.clusters.len() == rows, "one cluster for every row");
    assert!(moment.as_ref().is_none_or(|m| [m.rows, m.cols] == [rows, cols]), "momentum and direction");
    if u.len == 0 {
        return;
    }
    let of = match w {
        Weight::Floats(w) => {
            assert_eq!(w.len, u.len, "weights and direction");
            Layout::floats(w, rows, cols)
        }
        Weight::Packed(w) => {
            assert_eq!([w.rows, w.cols], [rows, cols], "weights and direction");
            w.layout()
        }
    };
    let scale = gpu.room(1);
    let rms = measure(gpu, &of, &scale);
    let (_table, table) = row_table(gpu, &of, &scale, &rms, (with.paces, with.clusters), with.decay);
    let mean = moment.and_then(|m| mean(gpu, u, with.momentum, &with.noise.1, m));
    let direction = mean.as_ref().unwrap_or(&u.handle);
    let (_room, new) = matrix_room(gpu, rows, cols);
    let Layout { words, places, placed, row_words, digits, kind, .. } = of;
    let [low, high, tensor, time] = words_of(&with.noise.0);
    let (gates, gate) = gpu.gate();
    launch!(
        gpu,
        descend_kernel,
        cubes(rows),
        units(),
        words,
        places,
        table,
        arg(direction, u.len),
        new,
        reports.arg(),
        gates,
        gate,
        cols,
        row_words,
        digits,
        low,
        high,
        tensor,
        time,
        kind,
        placed,
    );
}
