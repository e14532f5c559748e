//! The linear layer in both precisions: the one place where ternary and f32 part ways.

use tritrain_backend::{Backend, Store};

use crate::Model;

/// What a linear layer multiplies: int8 rows in a ternary model, f32 in its twin.
pub(crate) enum Input<B: Backend> {
    Rows(B::Rows),
    Floats(B::Floats),
}

impl<B: Backend> Input<B> {
    /// Room for `rows` × `cols`.
    pub(crate) fn new(backend: &B, ternary: bool, rows: usize, cols: usize) -> Input<B> {
        match ternary {
            true => Input::Rows(backend.rows(rows, cols)),
            false => Input::Floats(backend.floats(rows * cols)),
        }
    }
}

const MIXED: &str =
    "ternary matrices take int8 rows and f32 matrices take floats: both come from one configuration";

impl<B: Backend> Model<B> {
    /// `input = norm(x)` with the gain `gain`, or `x` itself where there is no norm.
    pub(crate) fn normalise(
        &self,
        backend: &B,
        x: &B::Floats,
        gain: Option<usize>,
        input: &mut Input<B>,
        rstd: &mut B::Floats,
    ) {
        let eps = self.config.norm_eps;
        match (input, gain) {
            (Input::Rows(h), Some(id)) => backend.rmsnorm_quantize(x, &self.weights[id], eps, h, rstd),
            (Input::Floats(h), Some(id)) => backend.rmsnorm(x, &self.weights[id], eps, h, rstd),
            (Input::Rows(h), None) => backend.quantize_rows(x, h),
            (Input::Floats(h), None) => backend.copy(x, h),
        }
    }

    /// `y = x·Wᵀ`, or added to `y`, with the matrix `id`.
    pub(crate) fn linear(&self, backend: &B, id: usize, x: &Input<B>, store: Store, y: &mut B::Floats) {
        match (&self.ternary[id], x) {
            (Some(w), Input::Rows(x)) => backend.ternary_matmul(x, w, store, y),
            (None, Input::Floats(x)) => {
                backend.matmul(x, &self.weights[id], self.layout.specs[id].cols, store, y);
            }
            _ => unreachable!("{MIXED}"),
        }
    }

    /// `dx = dy·W` and `dW = dyᵀ·x`; `rows` is room for `dy` as int8 rows.
    pub(crate) fn linear_backward(
        &self,
        backend: &B,
        id: usize,
        dy: &B::Floats,
        rows: &mut B::Rows,
        x: &Input<B>,
        (dx, dw): (&mut B::Floats, &mut B::Floats),
    ) {
        match (&self.ternary[id], x) {
            (Some(w), Input::Rows(x)) => {
                backend.quantize_rows(dy, rows);
                backend.ternary_input_gradient(rows, w, dx);
                backend.ternary_weight_gradient(dy, x, dw);
            }
            (None, Input::Floats(x)) => {
                let inputs = self.layout.specs[id].cols;
                backend.matmul_input_gradient(dy, &self.weights[id], inputs, dx);
                backend.matmul_weight_gradient(dy, x, inputs, dw);
            }
            _ => unreachable!("{MIXED}"),
        }
    }
}
