//! The ternary arithmetic: each rounding by itself and all together.

use tritrain_model::reference::{Arithmetic, Matrix, Rows, linear, linear_backward, norm};
use tritrain_model::{Gate, ModelConfig, TensorKind};

use crate::case::*;

#[test]
fn rounding_by_hand() {
    // Mean |w| = 1.15625, a number of f16; the dead zone ends at exactly 0.578125.
    let w = [0.578125, -0.578126, 2.0, -1.468749];
    let matrix = Matrix::new(&w, Arithmetic::TERNARY);
    assert_eq!((matrix.scale, matrix.codes), (1.15625, vec![0.0, -1.0, 1.0, -1.0]));
    // Mean 0.1 is rounded to the nearest f16, 1638·2⁻¹⁴.
    assert_eq!(Matrix::new(&[0.1], Arithmetic::TERNARY).scale, 1638.0 / 16384.0);
    let zero = Matrix::new(&[0.0, -0.0], Arithmetic::TERNARY);
    assert_eq!((zero.scale, zero.codes), (0.0, vec![0.0, 0.0]));

    // Half to even, a scale per row, zeros stay zeros.
    let x = [254.0, 1.0, 3.0, -5.0, 0.0, 0.0, 0.0, 0.0];
    let rows = Rows::rounded(&x, 2, 127.0);
    assert_eq!(rows.scales, [2.0, 0.0]);
    assert_eq!(rows.codes, [127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// What each linear layer is given: int8 rows of the norm in front of it, or of its raw input without
/// sub-norms.
#[test]
fn layers_see_rounded_norms() {
    for seed in 0..40 {
        let case = Case::random(seed);
        let n = case.tokens.len();
        let normed = |x: &[f64], name: &str| {
            let gain = case.layout.specs.iter().position(|spec| spec.name == name);
            gain.map_or(x.to_vec(), |id| norm(x, &case.params[id], f64::from(case.config.norm_eps)))
        };
        let trace = case.trace(&case.params, Arithmetic::TERNARY);
        for (i, block) in trace.blocks.iter().enumerate() {
            for (input, x, name) in [
                (&block.qkv_in, &block.x, "attn_norm"),
                (&block.o_in, &block.attention, "attn_sub_norm"),
                (&block.gate_up_in, &block.middle, "ffn_norm"),
                (&block.down_in, &block.gated, "ffn_sub_norm"),
            ] {
                let expected = Rows::rounded(&normed(x, &format!("layers.{i}.{name}")), n, 127.0);
                assert_eq!(*input, expected, "input behind layers.{i}.{name}");
            }
        }
        assert_eq!(trace.y, normed(&trace.x, "norm"));
    }
}

/// Backward roundings of one layer with two tokens, three inputs and two outputs, number by number.
#[test]
fn rounded_gradients_by_hand() {
    let x = Rows { codes: vec![127.0, 3.0, -2.0, 1.0, -127.0, 5.0], scales: vec![0.5, 0.25] };
    let w = Matrix { codes: vec![1.0, 0.0, -1.0, 1.0, 1.0, 0.0], scale: 0.75 };
    // Token 0: scale 2, codes (127, 1). Token 1: scale 1, codes (0, -127): 0.4 is rounded away.
    let dy = [254.0, 2.9, 0.4, -127.0];
    let mut dw = vec![100.0; 6];
    let dx = linear_backward(&dy, &x, &w, Arithmetic::TERNARY, &mut dw);
    close(
        &dx,
        &[0.75 * 2.0 * 128.0, 0.75 * 2.0, 0.75 * 2.0 * -127.0, 0.75 * -127.0, 0.75 * -127.0, 0.0],
        1e-14,
    );
    // Output 0: dy·a = (127, 0.1), scale 127/32767, codes (32767, round(25.8) = 26).
    // Output 1: dy·a = (1.45, -31.75), scale 31.75/32767, codes (round(1496.4) = 1496, -32767).
    let (s0, s1) = (127.0 / 32767.0, 31.75 / 32767.0);
    let mut expected = Vec::new();
    for c in 0..3 {
        expected.push(100.0 + s0 * (32767.0 * x.codes[c] + 26.0 * x.codes[3 + c]));
    }
    for c in 0..3 {
        expected.push(100.0 + s1 * (1496.0 * x.codes[c] - 32767.0 * x.codes[3 + c]));
    }
    close(&dw, &expected, 1e-13);
}

/// Straight through: with codes and rounding offsets held constant a layer is
/// `y(x, w) = (x + δx)·(w + δw)ᵀ`, and without backward rounding its gradients are the derivatives of that.
#[test]
fn layer_gradients_are_differences_of_the_surrogate() {
    let mut random = Random(13);
    let mut worst = 0.0f64;
    for _ in 0..50 {
        let (n, cols, rows) = (random.range(1, 5), random.range(1, 9), random.range(1, 9));
        let (x, w, dy) = (random.normals(n * cols), random.normals(rows * cols), random.normals(n * rows));
        let (input, matrix) = (Rows::input(&x, n, FORWARD_TERNARY), Matrix::new(&w, FORWARD_TERNARY));
        let offset_x: Vec<f64> =
            (0..n * cols).map(|i| input.scales[i / cols] * input.codes[i] - x[i]).collect();
        let offset_w: Vec<f64> = matrix.codes.iter().zip(&w).map(|(q, w)| matrix.scale * q - w).collect();
        let functional = |x: &[f64], w: &[f64]| {
            let x: Vec<f64> = x.iter().zip(&offset_x).map(|(x, o)| x + o).collect();
            let w: Vec<f64> = w.iter().zip(&offset_w).map(|(w, o)| w + o).collect();
            dot(&linear(&Rows::plain(&x, n), &Matrix::new(&w, Arithmetic::Exact)), &dy)
        };
        let value = dot(&linear(&input, &matrix), &dy);
        assert!((value - functional(&x, &w)).abs() <= 1e-12 * length(&dy));

        let mut dw = vec![0.0; w.len()];
        let dx = linear_backward(&dy, &input, &matrix, FORWARD_TERNARY, &mut dw);
        for (gradient, of_w) in [(&dw, true), (&dx, false)] {
            for at in 0..gradient.len() {
                let moved = |step: f64| {
                    let (mut x, mut w) = (x.clone(), w.clone());
                    *(if of_w { &mut w[at] } else { &mut x[at] }) += step;
                    functional(&x, &w)
                };
                // Linear in each, so one wide step has no truncation error.
                let difference = (moved(1.0) - moved(-1.0)) / 2.0;
                let size = gradient[at].abs().max(difference.abs()).max(1e-3 * length(gradient));
                if size > 0.0 {
                    worst = worst.max((gradient[at] - difference).abs() / size);
                }
            }
        }
    }
    assert!(worst <= 1e-11, "{worst:e}");
}

/// Without roundings a ternary model is the exact model at the weights `s·q`, gradients included.
#[test]
fn ternary_without_roundings_is_exact_at_the_ternary_weights() {
    for seed in 0..40 {
        let mut case = Case::random(seed);
        let ternary = case.gradients(PLAIN_TERNARY);
        for (spec, values) in case.layout.specs.iter().zip(&mut case.params) {
            if spec.kind == TensorKind::Matrix {
                let matrix = Matrix::new(values, PLAIN_TERNARY);
                *values = matrix.codes.iter().map(|q| matrix.scale * q).collect();
            }
        }
        for (exact, ternary) in case.gradients(Arithmetic::Exact).iter().zip(&ternary) {
            let difference: Vec<f64> = exact.iter().zip(ternary).map(|(e, t)| e - t).collect();
            assert!(
                length(&difference) <= 1e-10 * length(exact),
                "{} {}",
                length(&difference),
                length(exact)
            );
        }
    }
}

/// Each rounding moves a layer by at most half a step per number, and moves it at all.
#[test]
fn roundings_stay_within_half_a_step() {
    let mut random = Random(17);
    let (n, cols, rows) = (6, 16, 12);
    for _ in 0..20 {
        let (x, w, dy) = (random.normals(n * cols), random.normals(rows * cols), random.normals(n * rows));
        let input = Rows::input(&x, n, Arithmetic::TERNARY);
        for i in 0..n * cols {
            let (code, scale) = (input.codes[i], input.scales[i / cols]);
            assert!(code.fract() == 0.0 && code.abs() <= 127.0);
            assert!((scale * code - x[i]).abs() <= scale * 0.5000001);
        }
        let matrix = Matrix::new(&w, Arithmetic::TERNARY);
        let (mut plain_dw, mut dw) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        let plain_dx = linear_backward(&dy, &input, &matrix, FORWARD_TERNARY, &mut plain_dw);
        let dx = linear_backward(&dy, &input, &matrix, Arithmetic::TERNARY, &mut dw);
        assert!(dx != plain_dx && dw != plain_dw);
        for t in 0..n {
            let step = dy[t * rows..][..rows].iter().fold(0.0, |m: f64, v| m.max(v.abs())) / 127.0;
            for c in 0..cols {
                let codes: f64 = (0..rows).map(|r| matrix.codes[r * cols + c].abs()).sum();
                let moved = (dx[t * cols + c] - plain_dx[t * cols + c]).abs();
                assert!(moved <= 0.5000001 * step * matrix.scale * codes);
            }
        }
        for r in 0..rows {
            let step =
                (0..n).fold(0.0, |m: f64, t| m.max((dy[t * rows + r] * input.scales[t]).abs())) / 32767.0;
            for c in 0..cols {
                let codes: f64 = (0..n).map(|t| input.codes[t * cols + c].abs()).sum();
                assert!((dw[r * cols + c] - plain_dw[r * cols + c]).abs() <= 0.5000001 * step * codes);
            }
        }
    }
}

/// At a width that trains, int8 inputs and rounded gradients leave the gradients where they were.
#[test]
fn rounded_model_stays_near_the_unrounded_one() {
    for (gate, sub_norm) in [(Gate::Silu, true), (Gate::Relu2, true), (Gate::Silu, false)] {
        let config = ModelConfig {
            dim: 256,
            layers: 2,
            ffn: 256,
            kv_heads: 2,
            gate,
            sub_norm,
            ..ModelConfig::default()
        };
        let case = Case::new(config, 50, 2, 8, &mut Random(19));
        let plain = case.gradients(PLAIN_TERNARY);
        for arithmetic in [FORWARD_TERNARY, Arithmetic::TERNARY] {
            for ((spec, plain), rounded) in
                case.layout.specs.iter().zip(&plain).zip(case.gradients(arithmetic))
            {
                let cosine = dot(plain, &rounded) / length(plain) / length(&rounded);
                let ratio = length(&rounded) / length(plain);
                assert!(cosine > 0.99 && (ratio - 1.0).abs() < 0.02, "{}: {cosine} {ratio}", spec.name);
            }
        }
    }
}
