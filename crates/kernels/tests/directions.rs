//! Directions with a momentum, moments in 8 bits and orthogonal matrices, beside plain f64 loops.

mod common;

use common::assert_close;
use tritrain_kernels::{
    Context, Tier,
    packed::Packed,
    update::{self, Adam, Average, BLOCK, Momentum, Prodigal, Prodigy},
};
use tritrain_trit::{format::Format, rng::Stream};

fn normal(stream: u32, len: usize) -> Vec<f32> {
    let random = Stream::new(11, stream, 0);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// Runs `kernel` on every tier with 1 and 3 threads; all must give the same bits, and those are returned.
fn same_everywhere(kernel: impl Fn(&Context) -> Vec<f32>) -> Vec<f32> {
    let tiers = Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]);
    let mut results = tiers.map(|(tier, threads)| kernel(&Context::new(tier, threads).unwrap()));
    let first = results.next().unwrap();
    for other in results {
        assert!(first.iter().map(|x| x.to_bits()).eq(other.iter().map(|x| x.to_bits())), "tiers or threads");
    }
    first
}

fn unpacked(cx: &Context, packed: &Packed) -> Vec<f32> {
    let [rows, cols] = packed.shape();
    let mut to = vec![0.0; rows * cols];
    packed.get(cx, &mut to);
    to
}

const LION: Momentum = Momentum { kept: 0.99, seen: 0.9, signs: true };
const SIGNUM: Momentum = Momentum { kept: 0.9, seen: 0.9, signs: true };
const NESTEROV: Momentum = Momentum { kept: 0.9, seen: 0.81, signs: false };

/// What is seen and what is kept, in f64; `m` before.
fn averages(g: &[f32], m: &[f64], with: Momentum) -> (Vec<f64>, Vec<f64>) {
    let mean = |share: f32| {
        let share = f64::from(share);
        g.iter().zip(m).map(|(g, m)| share * m + (1.0 - share) * f64::from(*g)).collect()
    };
    (mean(with.seen), mean(with.kept))
}

fn check_direction(u: &[f32], exact: &[f64], signs: bool, what: &str) {
    if !signs {
        return assert_close(u, exact, 1e-6, what);
    }
    for (u, exact) in u.iter().zip(exact) {
        // Nearer to zero than rounding, either sign is right.
        let right = f64::from(*u) == exact.signum() || exact.abs() < 1e-6 && u.abs() <= 1.0;
        assert!(right, "{what}: {u} for the sign of {exact}");
    }
}

#[test]
fn lion_signum_and_nesterov_equal_their_formulas() {
    const N: usize = 40_003;
    for with in [LION, SIGNUM, NESTEROV] {
        let gradients: Vec<_> = (0..4).map(|step| normal(step, N)).collect();
        let found = same_everywhere(|cx| {
            let mut m = vec![0.0; N];
            let directions = gradients.iter().flat_map(|g| {
                let mut g = g.clone();
                update::momentum(cx, &mut g, &mut m, with);
                g
            });
            let directions: Vec<f32> = directions.collect();
            [directions, m].concat()
        });
        let mut m = vec![0.0; N];
        for (step, g) in gradients.iter().enumerate() {
            let (u, after) = averages(g, &m, with);
            check_direction(&found[step * N..][..N], &u, with.signs, &format!("{with:?}, step {step}"));
            m = after;
        }
        assert_close(&found[gradients.len() * N..], &m, 1e-6, "mean");
    }
}

#[test]
fn prodigy_equals_its_formulas() {
    const N: usize = 40_003;
    let with = Prodigy { beta1: 0.9, beta2: 0.99, distance: 0.3, weight: 1.7, eps: 1e-8 };
    let (w, start) = (normal(8, N), normal(9, N));
    let gradients: Vec<_> = (0..3).map(|step| normal(step, N)).collect();
    let found = same_everywhere(|cx| {
        let (mut m, mut v, mut s, mut all) = (vec![0.0; N], vec![0.0; N], vec![0.0; N], Vec::new());
        for g in &gradients {
            let mut g = g.clone();
            let state = Prodigal { m: &mut m, v: &mut v, s: &mut s, start: &start };
            let sums = update::prodigy(cx, &mut g, &w, state, with);
            all.extend(sums.map(|sum| sum as f32));
            all.extend(g);
        }
        all
    });
    let (beta1, beta2, distance) = (f64::from(with.beta1), f64::from(with.beta2), f64::from(with.distance));
    let (mut m, mut v, mut s) = (vec![0.0; N], vec![0.0; N], vec![0.0; N]);
    for (step, g) in gradients.iter().enumerate() {
        let g: Vec<f64> = g.iter().copied().map(f64::from).collect();
        let (mut sums, mut u) = ([0.0; 2], vec![0.0; N]);
        for i in 0..N {
            s[i] = beta2.sqrt() * s[i] + f64::from(with.weight) * g[i];
            sums[0] += f64::from(with.weight) * g[i] * f64::from(start[i] - w[i]);
            sums[1] += s[i].abs();
            m[i] = beta1 * m[i] + (1.0 - beta1) * distance * g[i];
            v[i] = beta2 * v[i] + (1.0 - beta2) * (distance * g[i]).powi(2);
            u[i] = distance * m[i] / (v[i].sqrt() + distance * 1e-8);
        }
        let found = &found[step * (N + 2)..][..N + 2];
        // Products of both signs nearly cancel: their sum is as exact as their sizes allow.
        let size = (N as f64).sqrt() * f64::from(with.weight);
        assert!((f64::from(found[0]) - sums[0]).abs() < 1e-5 * size, "{} and {}", found[0], sums[0]);
        assert_close(&found[1..2], &sums[1..], 1e-5, "magnitudes");
        assert_close(&found[2..], &u, 1e-5, &format!("step {step}"));
    }
}

#[test]
fn averages_equal_their_formulas() {
    const N: usize = 40_003;
    let (z, before) = (normal(1, N), normal(2, N));
    let found = same_everywhere(|cx| {
        let (mut w, mut x) = (vec![f32::NAN; N], before.clone());
        update::average(cx, &mut w, &z, &mut x, Average { share: 0.25, kept: 0.9 });
        // Without a share for the point nothing moves, to the last bit.
        let mut again = w.clone();
        let mean = x.clone();
        update::average(cx, &mut again, &z, &mut x, Average { share: 0.0, kept: 0.9 });
        assert!(again == w && mean == x);
        [w, x].concat()
    });
    let wide = |x: &[f32]| x.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let (z, before) = (wide(&z), wide(&before));
    let x: Vec<f64> = z.iter().zip(&before).map(|(z, x)| 0.75 * x + 0.25 * z).collect();
    let w: Vec<f64> = z.iter().zip(&x).map(|(z, x)| f64::from(0.9f32) * (x - z) + z).collect();
    assert_close(&found[..N], &w, 1e-6, "weights");
    assert_close(&found[N..], &x, 1e-6, "means");
}

#[test]
fn signs_of_zero_are_zero_and_of_no_number_none() {
    let with = Momentum { kept: 0.0, seen: 0.0, signs: true };
    let found = same_everywhere(|cx| {
        let mut g = vec![0.0, -0.0, 3.0, -1e-40, f32::NEG_INFINITY, f32::NAN];
        update::momentum(cx, &mut g, &mut [0.0; 6], with);
        g
    });
    assert_eq!(found[..5], [0.0, 0.0, 1.0, -1.0, -1.0]);
    assert!(found[5].is_nan());
}

#[test]
fn a_momentum_in_few_bits_is_the_mean_but_for_its_rounding() {
    let (rows, cols) = (7, 130);
    let formats = [Format::Bf16, Format::Int8, Format::Trits(1), Format::Trits(2), Format::Trits(5)];
    for (format, with) in formats.into_iter().flat_map(|f| [LION, SIGNUM, NESTEROV].map(|w| (f, w))) {
        let what = format!("{format:?} {with:?}");
        let reach = match format {
            Format::Trits(1) => 0.8,
            Format::Trits(2) => 1.5,
            _ => 2.5,
        };
        // Bf16 has no largest number; levels reach as far as a normal number of this many does.
        let gradients: Vec<_> = (0..3).map(|step| normal(step, rows * cols)).collect();
        same_everywhere(|cx| {
            let mut m = Packed::zeros(format, rows, cols, true);
            let mut all = Vec::new();
            for (step, g) in gradients.iter().enumerate() {
                let before: Vec<f64> = unpacked(cx, &m).into_iter().map(f64::from).collect();
                let (u, mean) = averages(g, &before, with);
                // The same from every random stream but for the rounding, which is right in the mean.
                let mut sums = vec![0.0; rows * cols];
                const DRAWS: u64 = 64;
                for draw in 0..DRAWS {
                    let (mut g, mut m) = (g.clone(), m.clone());
                    update::momentum_packed(cx, &mut g, &mut m, with, &Stream::new(3, 1, draw));
                    check_direction(&g, &u, with.signs, &what);
                    for (sum, m) in sums.iter_mut().zip(unpacked(cx, &m)) {
                        *sum += f64::from(m) / DRAWS as f64;
                    }
                }
                for (row, (sums, mean)) in sums.chunks(cols).zip(mean.chunks(cols)).enumerate() {
                    let size = (mean.iter().map(|m| m * m).sum::<f64>() / cols as f64).sqrt();
                    let level = match format {
                        Format::Bf16 => size / 64.0,
                        Format::Int8 => 4.0 * size / 127.0,
                        _ => reach * size / f64::from(format.largest().unwrap()),
                    };
                    // Rows of trits end there; their step is a bf16.
                    let trits = matches!(format, Format::Trits(_));
                    let end = if trits { reach * size } else { f64::INFINITY };
                    for (found, mean) in sums.iter().zip(mean) {
                        let beyond = if mean.abs() > 0.99 * end { end / 256.0 } else { 0.0 };
                        let error = (found - mean.clamp(-end, end)).abs();
                        // Four deviations of a mean of fair roundings, each at most half a level.
                        let most = level * (0.02 + 4.0 * 0.5 / (DRAWS as f64).sqrt()) + beyond;
                        assert!(error <= most, "{what}, row {row}: {found} for {mean}, {level}");
                    }
                }
                let mut g = g.clone();
                update::momentum_packed(cx, &mut g, &mut m, with, &Stream::new(3, 1, step as u64));
                all.extend(g);
                all.extend(unpacked(cx, &m));
            }
            all
        });
    }
}

#[test]
fn adam_in_eight_bits_equals_its_formula() {
    for len in [1, 255, 256, 20_000, 64 * BLOCK + 3] {
        let blocks = len.div_ceil(BLOCK);
        let zeros = || Packed::zeros(Format::Int8, blocks, BLOCK, true);
        // Rows whose magnitudes are far apart, and some without any gradient.
        let scale = |i: usize| if i.is_multiple_of(13) { 0.0 } else { 10f32.powi((i / 300 % 7) as i32 - 3) };
        let gradient =
            |step: u32| normal(step, len).into_iter().enumerate().map(|(i, g)| g * scale(i)).collect();
        let gradients: Vec<Vec<f32>> = (0..6).map(gradient).collect();
        same_everywhere(|cx| {
            let (mut m, mut v) = (zeros(), zeros());
            let mut all = Vec::new();
            for (step, g) in gradients.iter().enumerate() {
                let (old_m, old_root) = (unpacked(cx, &m), unpacked(cx, &v));
                let adam = Adam { beta1: 0.9, beta2: 0.99, step: step as u64 + 1, eps: 1e-8 };
                let mut u = g.clone();
                update::adam8(cx, &mut u, &mut m, &mut v, adam, &Stream::new(3, 1, step as u64));
                let (new_m, new_root) = (unpacked(cx, &m), unpacked(cx, &v));
                let correction = |beta: f64| 1.0 - beta.powi(step as i32 + 1);
                for i in 0..len {
                    let (g, old) = (f64::from(g[i]), f64::from(old_m[i]));
                    let mean = 0.9 * old + 0.1 * g;
                    let root = (0.99 * f64::from(old_root[i]).powi(2) + 0.01 * g * g).sqrt();
                    let below = root / correction(0.99).sqrt() + 1e-8;
                    let exact = mean / correction(0.9) / below;
                    // The mean is a sum that may cancel: its error is relative to the terms.
                    let terms = (0.9 * old.abs() + 0.1 * g.abs()) / correction(0.9) / below;
                    assert!((f64::from(u[i]) - exact).abs() <= 4e-6 * terms, "{} for {exact} at {i}", u[i]);
                    let (m_step, v_step) = (m.steps()[i / BLOCK], v.steps()[i / BLOCK]);
                    assert!((f64::from(new_m[i]) - mean).abs() <= 1.3 * f64::from(m_step), "mean at {i}");
                    assert!((f64::from(new_root[i]) - root).abs() <= 1.3 * f64::from(v_step), "root at {i}");
                    assert!((new_root[i] > 0.0) == (root > 0.0), "root at {i}: {} for {root}", new_root[i]);
                }
                assert!(new_m[len..].iter().chain(&new_root[len..]).all(|x| *x == 0.0), "behind the end");
                all.extend(u);
                all.extend(new_m);
                all.extend(new_root);
            }
            all
        });
    }
}

/// Moments far below one level a step still move, in the mean: what rounding to the nearest would not do.
#[test]
fn adam_in_eight_bits_has_a_long_memory() {
    let cx = Context::new(Tier::SCALAR, 1).unwrap();
    let zeros = || Packed::zeros(Format::Int8, 1, BLOCK, true);
    let (mut m, mut v) = (zeros(), zeros());
    let (mut square, mut root) = (0.0f64, 0.0);
    let steps = 400;
    for step in 1..=steps {
        // One number keeps the step of the block; the gradient of all others ends after a while.
        let size = if step <= 100 { 0.5 } else { 0.0 };
        let mut g = vec![size; BLOCK];
        g[0] = 1.0;
        let adam = Adam { beta1: 0.9, beta2: 0.995, step, eps: 1e-8 };
        update::adam8(&cx, &mut g, &mut m, &mut v, adam, &Stream::new(3, 1, step));
        square = 0.995 * square + 0.005 * f64::from(size * size);
        root = unpacked(&cx, &v)[1..].iter().map(|x| f64::from(*x)).sum::<f64>() / (BLOCK - 1) as f64;
    }
    let exact = square.sqrt();
    assert!((root - exact).abs() <= 0.03 * exact, "{root} for {exact}");
}

type Matrix = Vec<Vec<f64>>;

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let entry = |row: &Vec<f64>, c: usize| row.iter().zip(b).map(|(x, b)| x * b[c]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|c| entry(row, c)).collect()).collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|c| a.iter().map(|row| row[c]).collect()).collect()
}

/// A reflection, which is orthogonal.
fn reflection(stream: u32, n: usize) -> Matrix {
    let v: Vec<f64> = normal(stream, n).into_iter().map(f64::from).collect();
    let square: f64 = v.iter().map(|x| x * x).sum();
    let entry = |r: usize, c: usize| f64::from(u8::from(r == c)) - 2.0 * v[r] * v[c] / square;
    (0..n).map(|r| (0..n).map(|c| entry(r, c)).collect()).collect()
}

/// Singular vectors stay, singular values go through three quintics.
#[test]
fn an_orthogonal_direction_has_the_singular_vectors_of_the_matrix() {
    // Singular values that fall slowly, and ones that fall to 1e-7.
    let shapes = [(1, 1), (1, 9), (24, 24), (16, 70), (60, 16), (33, 1)];
    for ((rows, cols), steep) in shapes.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let side = rows.min(cols);
        let (left, right) = (reflection(1, rows), reflection(2, cols));
        let values: Vec<f64> = (0..side)
            .map(|i| if steep { 3.0 * 0.5f64.powi(i as i32) } else { 3.0 / (1.0 + i as f64) })
            .collect();
        let of_values = |values: &[f64]| {
            let entry = |r: usize, c: usize| if r == c { values[r] } else { 0.0 };
            let middle = (0..rows).map(|r| (0..cols).map(|c| entry(r, c)).collect()).collect();
            product(&product(&left, &middle), &transposed(&right)).concat()
        };
        let x: Vec<f32> = of_values(&values).into_iter().map(|x| x as f32).collect();
        let found = same_everywhere(|cx| {
            let mut x = x.clone();
            update::orthogonalize(cx, &mut x, rows, 0.5);
            x
        });
        let norm = values.iter().map(|s| s * s).sum::<f64>().sqrt();
        let scale = 0.5 * (rows.max(cols) as f64).sqrt();
        let end = |value: f64| {
            let steps = [
                [8.09336851, -23.62043033, 17.44615175],
                [3.63658555, -2.72192675, 0.53654629],
                [2.66129999, -1.97715452, 0.45261641],
            ];
            steps.iter().fold(value, |s, [a, b, c]| a * s + b * s.powi(3) + c * s.powi(5))
        };
        let ends: Vec<f64> = values.iter().map(|s| end(s / norm)).collect();
        assert!(steep || ends.iter().all(|end| (0.73..1.27).contains(end)), "{ends:?}");
        // Quintics are steep at one, and there they pass on what dividing by the norm rounds off.
        let passed_on = values.iter().zip(&ends).fold(0.0f64, |most, (value, found)| {
            most.max((end(value / norm * (1.0 + f64::from(f32::EPSILON))) - found).abs())
        });
        let ends: Vec<f64> = ends.into_iter().map(|end| end * scale).collect();
        // What is small in the square of the matrix has the rounding of what is large.
        let tolerance = if steep { 1e-3 } else { 2e-5 + passed_on };
        assert_close(&found, &of_values(&ends), tolerance, &format!("{rows}×{cols}"));
    }
}

#[test]
fn blocks_of_rows_are_matrices_by_themselves() {
    for (rows, cols) in [(128, 40), (150, 100), (65, 7)] {
        let x = normal(3, rows * cols);
        let found = same_everywhere(|cx| {
            let mut x = x.clone();
            update::orthogonalize(cx, &mut x, rows, 0.5);
            x
        });
        let apart = same_everywhere(|cx| {
            let mut x = x.clone();
            for block in x.chunks_mut(64 * cols) {
                let rows = block.len() / cols;
                update::orthogonalize(cx, block, rows, 0.5);
            }
            x
        });
        assert!(found == apart, "{rows} × {cols}");
    }
}

#[test]
fn a_matrix_of_zeros_stays_one_and_what_is_no_number_shows() {
    let found = same_everywhere(|cx| {
        let (mut zeros, mut broken) = (vec![0.0; 6 * 4], vec![1.0; 6 * 4]);
        broken[7] = f32::NAN;
        update::orthogonalize(cx, &mut zeros, 6, 1.0);
        update::orthogonalize(cx, &mut broken, 6, 1.0);
        assert!(broken.iter().any(|x| x.is_nan()));
        zeros
    });
    assert!(found.iter().all(|x| *x == 0.0), "{found:?}");
}
