//! Operations of the model.

use tritrain_backend::{Backend, Store};

use crate::{Case, Found, Random, compare, get, put, put_tokens};

/// RMSNorm of `rows` rows of `cols`, forward and backward, alone and with int8 rows.
#[derive(Debug)]
struct Norm {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Norm {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let (mut random, len) = (Random::new(self.seed), self.rows * self.cols);
        let (x, gain) = (put(b, &random.normal(len)), put(b, &random.normal(self.cols)));
        let dh = put(b, &random.normal(len));
        let (mut h, mut rstd) = (b.floats(len), b.floats(self.rows));
        b.rmsnorm(&x, &gain, 1e-5, &mut h, &mut rstd);
        let (mut dx, mut d_gain) = (put(b, &random.normal(len)), b.floats(self.cols));
        let mut rows = b.rows(self.rows, self.cols);
        b.rmsnorm_backward(&dh, &x, &gain, &rstd, Store::Add, &mut dx, None, &mut d_gain);
        let added = get(b, &dx);
        b.rmsnorm_backward(&dh, &x, &gain, &rstd, Store::Replace, &mut dx, Some(&mut rows), &mut d_gain);
        vec![
            Found::Close("h", get(b, &h)),
            Found::Close("rstd", get(b, &rstd)),
            Found::Close("dx added", added),
            Found::Close("dx", get(b, &dx)),
            Found::Close("d_gain", get(b, &d_gain)),
        ]
    }
}

#[test]
fn norms_are_the_same() {
    compare(&Norm { rows: 1, cols: 1, seed: 1 });
    for seed in 0..40 {
        let mut random = Random::new(seed);
        compare(&Norm { rows: random.size(70), cols: random.size(600), seed });
    }
}

/// A ternary matrix and its products.
#[derive(Debug)]
struct Linear {
    tokens: usize,
    outputs: usize,
    inputs: usize,
    seed: u64,
}

impl Case for Linear {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Linear { tokens, outputs, inputs, seed } = *self;
        let mut random = Random::new(seed);
        let (x, dy) = (put(b, &random.normal(tokens * inputs)), put(b, &random.normal(tokens * outputs)));
        let latent = put(b, &random.normal(outputs * inputs));
        let residual = put(b, &random.normal(tokens * outputs));
        let mut w = b.ternary(outputs, inputs, true);
        b.ternarize(&latent, &mut w);
        let (codes, scale) = b.download_ternary(&w);
        let (mut rows, mut dy_rows) = (b.rows(tokens, inputs), b.rows(tokens, outputs));
        b.quantize_rows(&x, &mut rows);
        b.quantize_rows(&dy, &mut dy_rows);
        let (mut y, mut dx) = (b.floats(tokens * outputs), b.floats(tokens * inputs));
        b.ternary_matmul(&rows, &w, None, &mut y);
        let alone = get(b, &y);
        b.ternary_matmul(&rows, &w, Some(&residual), &mut y);
        b.ternary_input_gradient(&dy_rows, &w, &mut dx);
        let mut dw = b.floats(outputs * inputs);
        b.ternary_weight_gradient(&dy, &rows, &mut dw);
        vec![
            Found::Exact("codes", codes.iter().map(|code| f32::from(*code)).collect()),
            Found::Exact("scale", vec![scale]),
            Found::Exact("y", alone),
            Found::Close("y with residual", get(b, &y)),
            Found::Exact("dx", get(b, &dx)),
            Found::Close("dw", get(b, &dw)),
        ]
    }
}

#[test]
fn ternary_products_are_the_same() {
    compare(&Linear { tokens: 1, outputs: 1, inputs: 1, seed: 1 });
    compare(&Linear { tokens: 1030, outputs: 5, inputs: 9, seed: 2 });
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (tokens, outputs, inputs) = (random.size(140), random.size(200), random.size(300));
        compare(&Linear { tokens, outputs, inputs, seed });
    }
}
