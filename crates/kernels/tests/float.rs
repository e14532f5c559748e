//! Float kernels: quantisers equal to `trit` bit for bit, tiers equal to each other, and both close to
//! plain f64 loops.

mod common;

use common::assert_close;
use tritrain_kernels::{
    Context, Tier, bias, elementwise,
    gate::{self, Gate},
    lanes, norm, rows, update,
};
use tritrain_trit::{rng::Stream, rows::quantize_row, ternary};

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let stream = Stream::new(seed, 0, 0);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

/// Every tier on 1 and 3 threads.
fn contexts() -> Vec<Context> {
    let tiers = Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]);
    tiers.map(|(tier, threads)| Context::new(tier, threads).unwrap()).collect()
}

#[test]
fn int8_rows_equal_the_definition_at_every_size() {
    for cx in contexts() {
        for cols in 1..=515 {
            let count = 1 + cols % 37;
            let mut x = noise(cols as u64, cols % 9 + count * cols);
            // Ties, zeros and tiny rows among them.
            for (i, v) in x.iter_mut().enumerate() {
                match i % 7 {
                    0 => *v = (*v * 4.0).round() / 2.0,
                    1 => *v = 0.0,
                    2 if cols % 5 == 0 => *v *= 1e-39,
                    _ => {}
                }
            }
            let x = &x[cols % 9..];
            let (mut codes, mut scales) = (vec![99; x.len()], vec![-1.0; count]);
            rows::quantize(&cx, x, &mut codes, &mut scales);
            for (r, row) in x.chunks_exact(cols).enumerate() {
                let mut expected = vec![0; cols];
                let scale = quantize_row(row, &mut expected).unwrap();
                assert_eq!(scales[r].to_bits(), scale.to_bits(), "scale of row {r} of {cols}");
                assert_eq!(codes[r * cols..][..cols], expected, "row {r} of {cols}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_has_the_scale_nan() {
    for cx in contexts() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 8, 18] {
                let mut x = noise(1, 38);
                x[19 + at] = broken;
                let (mut codes, mut scales) = (vec![9; 38], vec![0.0; 2]);
                rows::quantize(&cx, &x, &mut codes, &mut scales);
                assert!(scales[0].is_finite() && scales[1].is_nan() && codes[19..].iter().all(|c| *c == 0));
            }
        }
    }
}

#[test]
fn the_ternary_scale_equals_the_definition() {
    for cx in contexts() {
        for len in (0..=515).chain([4095, 4096, 4097, 16_383, 16_385, 70_001]) {
            let w = noise(len as u64, len);
            let total = elementwise::sum_abs(&cx, &w);
            let scale = ternary::scale_from_total(total, len).unwrap();
            assert_eq!(scale.to_bits(), ternary::absmean(&w).unwrap().to_bits(), "scale of {len}");
        }
    }
}

/// Distance in units of the last place of the f32 nearest to the exact value.
fn ulps(found: f32, exact: f64) -> f64 {
    let near = exact as f32;
    let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
    (f64::from(found) - exact).abs() / unit
}

#[test]
fn the_exponential_is_within_two_ulp() {
    let mut worst = 0.0f64;
    let steps = 2_000_000;
    for i in 0..=steps {
        let x = (-87.0 + 175.0 * f64::from(i) / f64::from(steps)) as f32;
        worst = worst.max(ulps(lanes::exp(x), f64::from(x).exp()));
    }
    assert!(worst <= 2.0, "{worst} ulp");
    assert_eq!([-88.5, -1e30, f32::NEG_INFINITY].map(lanes::exp), [0.0; 3]);
    assert_eq!([88.8, 1e30, f32::INFINITY].map(lanes::exp), [f32::INFINITY; 3]);
    assert!(lanes::exp(f32::NAN).is_nan() && lanes::exp(0.0) == 1.0);
    assert!(lanes::exp(88.7).is_finite());
}

#[test]
fn rounding_is_to_nearest_even() {
    for i in -4_000_000..4_000_000 {
        let x = i as f32 * 0.25;
        assert_eq!(lanes::round(x), x.round_ties_even() as i32, "{x}");
    }
}

/// Runs `kernel` on every context; all must give the same bits, and those are returned.
fn same_everywhere(kernel: impl Fn(&Context) -> Vec<f32>) -> Vec<f32> {
    let results: Vec<Vec<f32>> = contexts().iter().map(kernel).collect();
    for other in &results[1..] {
        assert!(
            results[0].iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits()),
            "tiers or threads differ"
        );
    }
    results[0].clone()
}

#[test]
fn adam_equals_its_formula() {
    const N: usize = 40_003;
    let (g, m, v) = (noise(1, N), noise(2, N), noise(3, N).iter().map(|x| x * x).collect::<Vec<_>>());
    let adam = update::Adam { beta1: 0.9, beta2: 0.99, step: 7, eps: 1e-8 };
    let found = same_everywhere(|cx| {
        let (mut g, mut m, mut v) = (g.clone(), m.clone(), v.clone());
        update::adam(cx, &mut g, &mut m, &mut v, adam);
        [g, m, v].concat()
    });
    // The first moment is a sum that may cancel: its error, and the update's, is relative to the terms.
    for i in 0..N {
        let (g, m, v) = (f64::from(g[i]), f64::from(m[i]), f64::from(v[i]));
        let (terms, square) = (0.9 * m.abs() + 0.1 * g.abs(), 0.99 * v + 0.01 * g * g);
        let mean = 0.9 * m + 0.1 * g;
        let scale = 1.0 / (1.0 - 0.9f64.powi(7)) / ((square / (1.0 - 0.99f64.powi(7))).sqrt() + 1e-8);
        let expected = [(mean * scale, terms * scale), (mean, terms), (square, square)];
        for (part, (exact, size)) in expected.into_iter().enumerate() {
            let found = f64::from(found[part * N + i]);
            assert!((found - exact).abs() <= 4e-6 * size, "{found} for {exact} at {i}, part {part}");
        }
    }
}

#[test]
fn the_factored_direction_equals_its_formula() {
    for (rows, cols, momentum) in [(1, 1, 0.8), (37, 19, 0.8), (64, 256, 0.0), (100, 33, 0.5)] {
        let (g, m) = (noise(1, rows * cols), noise(2, rows * cols));
        let positive = |seed, n| noise(seed, n).iter().map(|x| x * x + 0.1).collect::<Vec<f32>>();
        let (row, col) = (positive(3, rows), positive(4, cols));
        let with = update::Factored { beta2: 0.9, momentum };
        let found = same_everywhere(|cx| {
            let (mut g, mut row, mut col) = (g.clone(), row.clone(), col.clone());
            let mut m = if momentum > 0.0 { m.clone() } else { Vec::new() };
            update::factored(cx, &mut g, &mut row, &mut col, &mut m, with);
            [g, row, col].concat()
        });
        let at = |r: usize, c: usize| f64::from(g[r * cols + c]);
        let row: Vec<f64> = (0..rows)
            .map(|r| {
                0.9 * f64::from(row[r]) + 0.1 * (0..cols).map(|c| at(r, c).powi(2)).sum::<f64>() / cols as f64
            })
            .collect();
        let col: Vec<f64> = (0..cols)
            .map(|c| {
                0.9 * f64::from(col[c]) + 0.1 * (0..rows).map(|r| at(r, c).powi(2)).sum::<f64>() / rows as f64
            })
            .collect();
        let mean = row.iter().sum::<f64>() / rows as f64;
        let mut u: Vec<f64> = (0..rows * cols)
            .map(|i| at(i / cols, i % cols) / (row[i / cols] * col[i % cols] / mean).sqrt())
            .collect();
        let rms = (u.iter().map(|u| u * u).sum::<f64>() / u.len() as f64).sqrt();
        for (u, m) in u.iter_mut().zip(&m) {
            *u /= rms.max(1.0);
            if momentum > 0.0 {
                *u = f64::from(momentum) * f64::from(*m) + (1.0 - f64::from(momentum)) * *u;
            }
        }
        assert_close(&found[..rows * cols], &u, 1e-5, "direction");
        assert_close(&found[rows * cols..][..rows], &row, 1e-5, "row");
        assert_close(&found[rows * cols + rows..], &col, 1e-5, "col");
    }
}

#[test]
fn a_gradient_of_zero_gives_a_direction_of_zero() {
    let found = same_everywhere(|cx| {
        let (mut g, mut row, mut col) = (vec![0.0; 6 * 5], vec![0.0; 6], vec![0.0; 5]);
        update::factored(
            cx,
            &mut g,
            &mut row,
            &mut col,
            &mut [],
            update::Factored { beta2: 0.0, momentum: 0.0 },
        );
        g
    });
    assert!(found.iter().all(|u| *u == 0.0), "{found:?}");
}

#[test]
fn norms_and_gates_are_the_same_bits_everywhere() {
    for cols in [1, 7, 8, 31, 256, 515] {
        let rows = 70;
        let (x, gain, d) = (noise(1, rows * cols), noise(2, cols), noise(3, rows * cols));
        same_everywhere(|cx| {
            let (mut h, mut rstd) = (vec![0.0; x.len()], vec![0.0; rows]);
            norm::forward(cx, &x, &gain, 1e-5, &mut h, &mut rstd);
            let (mut dx, mut d_gain) = (d.clone(), vec![0.0; cols]);
            let (mut dx_codes, mut dx_scales) = (vec![0; x.len()], vec![0.0; rows]);
            let to = Some((&mut dx_codes[..], &mut dx_scales[..]));
            norm::backward(cx, &d, &x, &gain, &rstd, true, &mut dx, &mut d_gain, to);
            let (mut alone, mut alone_scales) = (vec![0; x.len()], vec![0.0; rows]);
            rows::quantize(cx, &dx, &mut alone, &mut alone_scales);
            assert!(dx_codes == alone && dx_scales == alone_scales, "rows of the gradient");
            let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; rows]);
            norm::forward_quantize(cx, &x, &gain, 1e-5, &mut codes, &mut scales, &mut rstd);
            let (mut alone, mut alone_scales) = (vec![0; x.len()], vec![0.0; rows]);
            rows::quantize(cx, &h, &mut alone, &mut alone_scales);
            assert!(
                codes == alone && scales == alone_scales,
                "the fused norm differs from norm and quantiser"
            );
            [h, rstd, dx, d_gain, scales].concat()
        });
    }
}

/// What fused gates give, and the operations they are made of.
fn gates(cx: &Context, kind: Gate, cols: usize, gain: Option<&[f32]>) -> Vec<f32> {
    let rows = 70;
    let (gate_up, dh) = (noise(4, rows * 2 * cols), noise(5, rows * cols));
    let (mut a, mut rstd) = (vec![0.0; rows * cols], vec![0.0; rows]);
    gate::forward(cx, kind, &gate_up, cols, &mut a);
    let (mut codes, mut scales) = (vec![0; a.len()], vec![0.0; rows]);
    let (mut da, mut d_gain) = (dh.clone(), vec![0.0; gain.map_or(0, <[f32]>::len)]);
    match gain {
        Some(gain) => {
            norm::forward_quantize(cx, &a, gain, 1e-5, &mut codes, &mut scales, &mut rstd);
            norm::backward(cx, &dh, &a, gain, &rstd, false, &mut da, &mut d_gain, None);
        }
        None => rows::quantize(cx, &a, &mut codes, &mut scales),
    }
    let mut d_gate_up = vec![0.0; gate_up.len()];
    gate::backward(cx, kind, &gate_up, &da, cols, &mut d_gate_up);
    let (mut d_codes, mut d_scales) = (vec![0; gate_up.len()], vec![0.0; rows]);
    rows::quantize(cx, &d_gate_up, &mut d_codes, &mut d_scales);

    let (mut fused_codes, mut fused_scales, mut fused_rstd) =
        (vec![0; a.len()], vec![0.0; rows], vec![0.0; rows]);
    let norm = gain.map(|gain| (gain, 1e-5));
    gate::forward_quantize(cx, kind, &gate_up, norm, &mut fused_codes, &mut fused_scales, &mut fused_rstd);
    assert!(fused_codes == codes && fused_scales == scales && fused_rstd == rstd, "forward, {cols} columns");
    let (mut fused, mut fused_d_gain) = (vec![f32::NAN; gate_up.len()], vec![f32::NAN; d_gain.len()]);
    let (mut fused_codes, mut fused_scales) = (vec![0; gate_up.len()], vec![0.0; rows]);
    let norm = gain.map(|gain| gate::NormBackward { gain, rstd: &rstd, d_gain: &mut fused_d_gain });
    gate::backward_quantize(cx, kind, &gate_up, &dh, norm, &mut fused, &mut fused_codes, &mut fused_scales);
    assert!(fused == d_gate_up && fused_d_gain == d_gain, "backward, {cols} columns");
    assert!(fused_codes == d_codes && fused_scales == d_scales, "rows of the gradient, {cols} columns");
    [a, rstd, scales, d_gate_up, d_gain].concat()
}

#[test]
fn fused_gates_are_the_operations_they_are_made_of() {
    for cols in [1, 7, 8, 31, 256, 515] {
        let gain = noise(2, cols);
        for kind in [Gate::Silu, Gate::Relu2] {
            for gain in [Some(&gain[..]), None] {
                same_everywhere(|cx| gates(cx, kind, cols, gain));
            }
        }
    }
}

#[test]
fn biases_are_added_and_their_gradients_are_sums_in_order() {
    for cx in contexts() {
        for (rows, cols) in [(1, 1), (3, 7), (64, 256), (65, 257), (130, 1000)] {
            let (b, x) = (noise(1, cols), noise(2, rows * cols));
            let mut y = x.clone();
            bias::add(&cx, &b, &mut y);
            let mut sums = vec![9.0; cols];
            bias::gradient(&cx, &x, &mut sums);
            let mut expected = vec![0.0f32; cols];
            for (at, x) in x.iter().enumerate() {
                assert_eq!(y[at], x + b[at % cols], "{at} of {rows} × {cols}");
                expected[at % cols] += x;
            }
            assert_eq!(sums, expected, "{rows} × {cols}");
        }
    }
}
