//! Matrices in few bits, and the step that moves them.

use tritrain_kernels::{
    Context, Floats, Tier,
    descent::{Descent, Pace, REPORT, RowReport, Scratch, Weights, accumulate, descend},
    packed::{Codes, Packed},
    ternary::{Panels, pack},
};
use tritrain_trit::{
    digits,
    format::{Format, step},
    rng::Stream,
    ternary::{self, scale_from_total},
};

const FORMATS: [Format; 7] = [
    Format::Bf16,
    Format::Int8,
    Format::Trits(1),
    Format::Trits(2),
    Format::Trits(3),
    Format::Trits(4),
    Format::Trits(5),
];

fn normal(stream: u32, len: usize, deviation: f32) -> Vec<f32> {
    let random = Stream::new(5, stream, 0);
    (0..len as u64).map(|i| random.normal(i) * deviation).collect()
}

fn unpacked(cx: &Context, packed: &Packed) -> Vec<f32> {
    let [rows, cols] = packed.shape();
    let mut to = vec![0.0; rows * cols];
    packed.get(cx, &mut to);
    to
}

fn descent<'a>(paces: &'a [Pace], clusters: &'a [u8], step: u64) -> Descent<'a> {
    let noise = (Stream::new(9, 1, step), Stream::new(9, 2, step));
    Descent { paces, clusters, decay: 0.1, momentum: 0.8, noise }
}

#[test]
fn rows_are_those_of_the_definition_on_every_tier() {
    for tier in Tier::available() {
        let cx = Context::new(tier, 2).unwrap();
        for (rows, cols) in [(1, 1), (3, 7), (16, 256), (5, 515), (70, 130)] {
            let w = normal(1, rows * cols, 0.02);
            for format in FORMATS {
                let mut packed = Packed::zeros(format, rows, cols, false);
                packed.set(&cx, &w, 3.0);
                let values = unpacked(&cx, &packed);
                if let Format::Trits(n) = format {
                    let mut levels = vec![0; cols];
                    for (r, bytes) in packed.bytes().chunks_exact(format.row_len(cols)).enumerate() {
                        digits::unpack_row(bytes, usize::from(n), &mut levels).unwrap();
                        let step = packed.steps()[0];
                        let expected = levels.iter().map(|level| f32::from(*level) * step);
                        assert!(expected.eq(values[r * cols..][..cols].iter().copied()), "{format:?}");
                    }
                }
                let total = packed.sums().absolute;
                let plain: f64 = values.iter().map(|w| f64::from(w.abs())).sum();
                assert!((total - plain).abs() <= 1e-6 * plain, "{format:?}: {total} {plain}");
                let scale = scale_from_total(total, values.len()).unwrap();
                let mut codes = vec![0; values.len()];
                ternary::quantize(&values, scale, &mut codes);
                let (mut forward, mut backward) = (Panels::zeros(rows, cols), Panels::zeros(cols, rows));
                let source = Codes { latent: &packed, scale };
                pack(&cx, source, (rows, cols), Some(&mut forward), Some(&mut backward));
                assert_eq!(forward.codes(), codes, "{format:?} {rows}×{cols}");
                let mut alone = Panels::zeros(cols, rows);
                pack(&cx, source, (rows, cols), None, Some(&mut alone));
                assert!(alone == backward, "{format:?}");

                let mut again = Packed::zeros(format, rows, cols, false);
                again.restore(&cx, packed.bytes(), &[], packed.steps()).unwrap();
                assert_eq!(unpacked(&cx, &again), values, "{format:?}");
                assert_eq!(again.sums(), packed.sums(), "{format:?}");
            }
        }
    }
}

#[test]
fn damaged_rows_are_refused() {
    let cx = Context::new(Tier::SCALAR, 1).unwrap();
    for (format, byte) in [(Format::Trits(4), 1), (Format::Int8, 0x80)] {
        let mut packed = Packed::zeros(format, 2, 8, false);
        let (mut bytes, steps) = (packed.bytes().to_vec(), packed.steps().to_vec());
        bytes[9] = byte;
        let error = packed.restore(&cx, &bytes, &[], &steps).unwrap_err();
        assert!(error.contains("row 1"), "{error}");
        assert!(packed.restore(&cx, &bytes[1..], &[], &steps).is_err());
        let bytes = packed.bytes().to_vec();
        assert!(packed.restore(&cx, &bytes, &[], &[0.1]).unwrap_err().contains("step"));
        assert!(packed.restore(&cx, &bytes, &[], &[f32::NAN]).is_err());
    }
    let mut packed = Packed::zeros(Format::Bf16, 1, 2, false);
    assert!(packed.restore(&cx, &[0, 0, 0x80, 0x7f], &[], &[]).unwrap_err().contains("finite"));
    let mut packed = Packed::zeros(Format::Trits(3), 2, 8, false);
    let bytes = packed.bytes().to_vec();
    for (digits, expected) in [
        (&[3][..], "1 numbers of digits for 2 rows"),
        (&[3, 6], "row 1: 6 digits"),
        (&[0, 3], "row 0: 0 digits"),
        (&[3, 4], "rows of 12 bytes, expected 10 at most"),
        (&[2, 3], "10 bytes, expected 9"),
    ] {
        let error = packed.restore(&cx, &bytes, digits, &[0.0]).unwrap_err();
        assert!(error.contains(expected), "{digits:?}: {error}");
    }
    let mut packed = Packed::zeros(Format::Int8, 2, 8, false);
    assert!(packed.restore(&cx, &[0; 16], &[3, 3], &[0.0; 2]).unwrap_err().contains("of digits"));
}

/// Numbers of digits from two to five for rows that take no more bytes than with `even` each.
fn mixed(rows: usize, cols: usize, even: u8, seed: u64) -> Vec<u8> {
    let random = Stream::new(seed, 1, 0);
    let len = |digits: u8| digits::row_len(usize::from(digits), cols);
    let mut left = rows * len(even);
    let row = |row: usize| {
        let rest = (rows - row - 1) * len(2);
        let wanted = 2 + (random.block(row as u64)[0] % 4) as u8;
        let digits = (2..=wanted).rev().find(|digits| len(*digits) + rest <= left).unwrap();
        left -= len(digits);
        digits
    };
    (0..rows).map(row).collect()
}

/// What a level is worth in a row of `digits`, where it is `even.1` in rows of `even.0`.
fn step_of(digits: u8, even: (u8, f32)) -> f32 {
    let [largest, own] = [even.0, digits].map(|digits| f32::from(digits::largest(usize::from(digits))));
    step(even.1 * largest / own)
}

#[test]
fn rows_of_mixed_digits_are_those_of_the_definition_on_every_tier() {
    for tier in Tier::available() {
        let cx = Context::new(tier, 2).unwrap();
        for (rows, cols) in [(1, 1), (3, 7), (16, 256), (33, 515), (70, 130)] {
            for (even, seed) in [(3, 1), (4, 2), (5, 3)] {
                let mut packed = Packed::zeros(Format::Trits(even), rows, cols, false);
                packed.set(&cx, &normal(1, rows * cols, 0.02), 3.0);
                let room = packed.bytes().len();
                let uniform = packed.clone();
                // From digits to others, and to others again.
                for digits in [mixed(rows, cols, even, seed), mixed(rows, cols, even, seed + 9)] {
                    let before = unpacked(&cx, &packed);
                    let moved = packed.set_digits(&cx, &digits);
                    let after = unpacked(&cx, &packed);
                    assert!(packed.bytes().len() <= room, "{} of {room} bytes", packed.bytes().len());
                    let (mut at, mut square) = (0, 0.0);
                    for (row, n) in digits.iter().enumerate() {
                        let mut levels = vec![0; cols];
                        let len = digits::row_len(usize::from(*n), cols);
                        let bytes = &packed.bytes()[at..at + len];
                        digits::unpack_row(bytes, usize::from(*n), &mut levels).unwrap();
                        at += len;
                        let step = step_of(*n, (even, packed.steps()[0]));
                        for (col, level) in levels.iter().enumerate() {
                            let (old, new) = (before[row * cols + col], after[row * cols + col]);
                            assert_eq!(f32::from(*level) * step, new, "row {row}");
                            // Half a step, but where the largest level falls short of the old one by rounding.
                            let off = (new - old).abs();
                            assert!(off <= 0.5 * step + 0.01 * old.abs(), "row {row}: {old} became {new}");
                            square += (f64::from(new) - f64::from(old)).powi(2);
                        }
                    }
                    assert_eq!(at, packed.bytes().len());
                    assert!((moved - square).abs() <= 1e-6 * square, "{moved} and {square}");

                    let total = packed.sums().absolute;
                    let scale = scale_from_total(total, after.len()).unwrap();
                    let mut codes = vec![0; after.len()];
                    ternary::quantize(&after, scale, &mut codes);
                    let (mut forward, mut backward) = (Panels::zeros(rows, cols), Panels::zeros(cols, rows));
                    let source = Codes { latent: &packed, scale };
                    pack(&cx, source, (rows, cols), Some(&mut forward), Some(&mut backward));
                    assert_eq!(forward.codes(), codes, "{rows}×{cols}");

                    let mut again = Packed::zeros(Format::Trits(even), rows, cols, false);
                    again.restore(&cx, packed.bytes(), packed.digits(), packed.steps()).unwrap();
                    assert_eq!(unpacked(&cx, &again), after);
                    assert_eq!((again.sums(), again.digits()), (packed.sums(), packed.digits()));
                }
                // With the digits of the format again, it is a matrix like any other.
                packed.set_digits(&cx, &vec![even; rows]);
                assert!(packed.digits().is_empty() && packed.bytes().len() == room);
                // More digits lose nothing that the old number of them could tell.
                let mut wider = Packed::zeros(Format::Trits(5), rows, cols, false);
                let step = step_of(5, (even, uniform.steps()[0]));
                wider.restore(&cx, wider.clone().bytes(), &[], &[step]).unwrap();
                wider.set_digits(&cx, &vec![even; rows]);
                wider.restore(&cx, uniform.bytes(), wider.clone().digits(), &[step]).unwrap();
                let before = unpacked(&cx, &wider);
                wider.set_digits(&cx, &vec![5; rows]);
                wider.set_digits(&cx, &vec![even; rows]);
                assert_eq!(unpacked(&cx, &wider), before);
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows of 35 bytes, expected 30 at most")]
fn digits_without_room_are_refused() {
    let cx = Context::new(Tier::SCALAR, 1).unwrap();
    Packed::zeros(Format::Trits(3), 2, 25, false).set_digits(&cx, &[3, 4]);
}

/// Rows of some digits move as in a matrix in which all rows have as many, if both have the same sums: all other rows
/// are zero here.
#[test]
fn rows_of_mixed_digits_move_as_those_of_even_matrices() {
    let (rows, cols, even) = (40, 130, 3);
    let digits = mixed(rows, cols, even, 4);
    let u = normal(2, rows * cols, 1.0);
    let clusters: Vec<u8> = (0..rows).map(|r| (r % 2) as u8).collect();
    let start = normal(1, rows * cols, 0.02);
    for n in 2..=5 {
        assert!(digits.iter().filter(|digits| **digits == n).count() > 1, "{digits:?}");
        for radius in [f32::INFINITY, 0.05] {
            let paces = [Pace { rate: 0.05, radius }, Pace { rate: 0.2, radius: radius * 0.5 }];
            let mut first: Option<Vec<f32>> = None;
            for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]) {
                let cx = Context::new(tier, threads).unwrap();
                let mut w = start.clone();
                for (row, w) in w.chunks_exact_mut(cols).enumerate() {
                    w.iter_mut().for_each(|w| *w = if digits[row] == n { *w } else { 0.0 });
                }
                let mut one = Packed::zeros(Format::Trits(even), rows, cols, false);
                one.set(&cx, &w, 12.0);
                one.set_digits(&cx, &digits);
                let mut other = Packed::zeros(Format::Trits(n), rows, cols, false);
                let (mut bytes, len) = (other.bytes().to_vec(), Format::Trits(n).row_len(cols));
                let mut at = 0;
                for (row, digits) in digits.iter().enumerate() {
                    let own = Format::Trits(*digits).row_len(cols);
                    if *digits == n {
                        bytes[row * len..][..len].copy_from_slice(&one.bytes()[at..at + own]);
                    }
                    at += own;
                }
                let step = step_of(n, (even, one.steps()[0]));
                other.restore(&cx, &bytes, &[], &[step]).unwrap();
                assert_eq!(unpacked(&cx, &one), unpacked(&cx, &other));
                assert_eq!(one.sums(), other.sums());

                let mut scratch = Scratch::default();
                let [mut reports, mut reports_of_other] = [0; 2].map(|_| vec![0.0; rows * REPORT]);
                let with = descent(&paces, &clusters, 5);
                descend(&cx, Weights::Packed(&mut one), &u, None, &with, &mut reports, &mut scratch);
                let weights = Weights::Packed(&mut other);
                descend(&cx, weights, &u, None, &with, &mut reports_of_other, &mut scratch);
                let (one, other) = (unpacked(&cx, &one), unpacked(&cx, &other));
                let mut seen = Vec::new();
                for row in (0..rows).filter(|row| digits[*row] == n) {
                    let range = row * cols..(row + 1) * cols;
                    assert_eq!(one[range.clone()], other[range.clone()], "{n} digits, row {row}");
                    let report = &reports[row * REPORT..][..REPORT];
                    assert_eq!(report, &reports_of_other[row * REPORT..][..REPORT]);
                    let report = RowReport::read(*report.first_chunk().unwrap());
                    assert!(report.digits == f32::from(n), "{report:?}");
                    assert!(report.applied > 0.0 || radius.is_finite(), "{report:?}");
                    seen.extend_from_slice(&one[range]);
                }
                seen.extend_from_slice(&one);
                assert!(first.get_or_insert_with(|| seen.clone()) == &seen, "{tier:?}, {threads} threads");
            }
        }
    }
}

/// Weights in a format (none: f32) with a momentum (none: without), moved some steps.
fn run(cx: &Context, latent: Option<Format>, moment: Option<Format>, radius: f32, steps: u64) -> Vec<u32> {
    let (rows, cols) = (12, 130);
    let start = normal(1, rows * cols, 0.02);
    let clusters: Vec<u8> = (0..rows).map(|r| (r % 2) as u8).collect();
    let paces = [Pace { rate: 0.05, radius }, Pace { rate: 0.01, radius: radius * 0.5 }];
    let mut floats = Floats::from(&start[..]);
    let mut packed = Packed::zeros(latent.unwrap_or(Format::Bf16), rows, cols, false);
    packed.set(cx, &start, 3.0);
    let mut moment = moment.map(|format| Packed::zeros(format, rows, cols, true));
    let mut scratch = Scratch::default();
    let mut reports = vec![0.0; rows * REPORT];
    let mut all = Vec::new();
    for step in 0..steps {
        let value = |packed: &Packed, floats: &Floats| match latent {
            None => floats.to_vec(),
            Some(_) => unpacked(cx, packed),
        };
        let before = value(&packed, &floats);
        let mean = before.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / before.len() as f64;
        let u = normal(2 + step as u32, rows * cols, 1.0);
        let weights = match latent {
            None => Weights::Floats(&mut floats),
            Some(_) => Weights::Packed(&mut packed),
        };
        let with = descent(&paces, &clusters, step);
        descend(cx, weights, &u, moment.as_mut(), &with, &mut reports, &mut scratch);
        let after = value(&packed, &floats);
        let rows = reports.as_chunks().0.iter().map(|row| RowReport::read(*row));
        for (r, report) in rows.clone().enumerate() {
            let moved = before[r * cols..][..cols].iter().zip(&after[r * cols..][..cols]);
            let moved: f64 = moved.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
            let radius = f64::from(paces[r % 2].radius) * mean.sqrt() * (cols as f64).sqrt();
            assert!(moved.sqrt() <= radius * (1.0 + 1e-9), "{latent:?} step {step}: {moved} {radius}");
            assert!((moved - f64::from(report.applied)).abs() <= 1e-6 * moved, "{moved} {}", report.applied);
        }
        all.extend(after.iter().map(|w| w.to_bits()));
        all.extend(rows.map(|r| (r.flips + 1000.0 * r.zeros) as u32));
    }
    if let Some(moment) = &moment {
        all.extend(unpacked(cx, moment).iter().map(|w| w.to_bits()));
    }
    all
}

#[test]
fn no_row_leaves_its_radius_and_all_threads_and_tiers_agree() {
    let latents = [None].into_iter().chain(FORMATS.into_iter().filter(|f| *f != Format::Trits(1)).map(Some));
    for latent in latents {
        for moment in
            [None, Some(Format::Bf16), Some(Format::Int8), Some(Format::Trits(1)), Some(Format::Trits(2))]
        {
            for radius in [f32::INFINITY, 0.1, 0.01, 1e-4] {
                let expected = run(&Context::new(Tier::SCALAR, 1).unwrap(), latent, moment, radius, 4);
                for tier in Tier::available() {
                    for threads in [1, 3] {
                        let cx = Context::new(tier, threads).unwrap();
                        let found = run(&cx, latent, moment, radius, 4);
                        assert!(found == expected, "{latent:?} {moment:?} {radius} {}", tier.name());
                    }
                }
            }
        }
    }
}

#[test]
fn rounding_moves_weights_by_the_step_on_average() {
    let cx = Context::new(Tier::available().pop().unwrap(), 2).unwrap();
    let (rows, cols) = (64, 512);
    for format in FORMATS.into_iter().skip(1) {
        let mut packed = Packed::zeros(format, rows, cols, false);
        packed.set(&cx, &vec![1.0; rows * cols], 4.0);
        packed.set(&cx, &vec![0.0; rows * cols], 4.0);
        let mut packed = {
            // Steps of a matrix of ones, weights of zero.
            let mut ones = Packed::zeros(format, rows, cols, false);
            ones.set(&cx, &vec![1.0; rows * cols], 4.0);
            let (bytes, steps) = (packed.bytes().to_vec(), ones.steps().to_vec());
            packed.restore(&cx, &bytes, &[], &steps).unwrap();
            packed
        };
        let step = packed.steps()[0];
        let paces = [Pace { rate: 0.3 * step / 1e-3, radius: f32::INFINITY }];
        let u = vec![-1.0; rows * cols];
        let mut reports = vec![0.0; rows * REPORT];
        let with = Descent { decay: 0.0, ..descent(&paces, &[], 1) };
        let weights = Weights::Packed(&mut packed);
        descend(&cx, weights, &u, None, &with, &mut reports, &mut Scratch::default());
        let mean = unpacked(&cx, &packed).iter().sum::<f32>() / (rows * cols) as f32 / step;
        // Three tenths of a level; the deviation of the mean is 0.0025.
        assert!((mean - 0.3).abs() < 0.012, "{format:?}: {mean}");
    }
}

#[test]
fn a_direction_that_is_no_number_moves_nothing() {
    let cx = Context::new(Tier::SCALAR, 1).unwrap();
    for latent in [None, Some(Format::Bf16), Some(Format::Int8), Some(Format::Trits(4))] {
        let start = normal(1, 20, 0.02);
        let mut floats = Floats::from(&start[..]);
        let mut packed = Packed::zeros(latent.unwrap_or(Format::Bf16), 2, 10, false);
        packed.set(&cx, &start, 3.0);
        let before = unpacked(&cx, &packed);
        let mut u = vec![0.5; 20];
        u[3] = f32::NAN;
        let paces = [Pace { rate: 0.1, radius: f32::INFINITY }];
        let weights = match latent {
            None => Weights::Floats(&mut floats),
            Some(_) => Weights::Packed(&mut packed),
        };
        let mut reports = [0.0; 2 * REPORT];
        descend(&cx, weights, &u, None, &descent(&paces, &[], 0), &mut reports, &mut Scratch::default());
        let after = if latent.is_none() { floats.to_vec() } else { unpacked(&cx, &packed) };
        let before = if latent.is_none() { &start } else { &before };
        assert_eq!(after[..10], before[..10], "{latent:?}");
        let [first, second] = [0, 1].map(|row| RowReport::read(reports.as_chunks().0[row]));
        assert!(first.bounded == 1.0 && first.applied == 0.0 && second.bounded == 0.0);
        assert!(after.iter().all(|w| w.is_finite()));
    }
}

#[test]
fn counts_add_up_exactly_and_are_right_in_the_mean() {
    const DRAWS: u64 = 400;
    let (rows, cols, format) = (3, 67, Format::Trits(2));
    let mut gradients: Vec<Vec<f32>> = (0..4).map(|part| normal(part, rows * cols, 0.01)).collect();
    // A row whose first part is zero takes its step from the second.
    gradients[0][cols..2 * cols].fill(0.0);
    let mut first: Option<Vec<Vec<f32>>> = None;
    for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]) {
        let cx = Context::new(tier, threads).unwrap();
        let mut sums = vec![0.0; rows * cols];
        let mut steps = vec![0.0; rows];
        let mut seen = Vec::new();
        for draw in 0..DRAWS {
            let mut counts = Packed::zeros(format, rows, cols, true);
            let mut before = vec![0.0; rows * cols];
            for (part, gradient) in (0..).zip(&gradients) {
                accumulate(&cx, gradient, &Stream::new(draw, 1, part << 32), part == 0, &mut counts);
                let after = unpacked(&cx, &counts);
                let kept = |row: usize| counts.steps()[row];
                for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                    // Nothing, or a step up or down, to the last bit: steps are bf16.
                    let row = at / cols;
                    let moved = if kept(row) > 0.0 { (after - before) / kept(row) } else { 0.0 };
                    assert!([-1.0, 0.0, 1.0].contains(&moved), "part {part}, number {at}: {moved}");
                }
                before = after;
            }
            steps.copy_from_slice(counts.steps());
            sums.iter_mut().zip(&before).for_each(|(sum, x)| *sum += f64::from(*x) / DRAWS as f64);
            seen.push(before);
        }
        for (at, mean) in sums.iter().enumerate() {
            let step = f64::from(steps[at / cols]);
            let part = |gradient: &Vec<f32>| f64::from(gradient[at]).clamp(-step, step);
            let exact: f64 = gradients.iter().map(part).sum();
            // Four draws of a step or none, four hundred times.
            let deviation = step * (gradients.len() as f64 / 4.0 / DRAWS as f64).sqrt();
            assert!((mean - exact).abs() < 6.0 * deviation, "number {at}: {mean} for {exact}");
        }
        assert!(first.get_or_insert_with(|| seen.clone()) == &seen, "{tier:?}, {threads} threads");
    }
}
