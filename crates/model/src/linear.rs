//! The linear layer in both precisions, with what makes its input and the gradient of its output: the one
//! place where ternary and f32 part ways.

use tritrain_backend::{Backend, Gate, Memory, Sides, Store};

use crate::{Model, Sink};

/// What a linear layer multiplies: int8 rows in a ternary model, f32 in its twin.
pub(crate) enum Input<B: Memory> {
    Rows(B::Rows),
    Floats(B::Floats),
}

impl<B: Memory> Input<B> {
    /// Room for `rows` × `cols`.
    pub(crate) fn new(backend: &B, ternary: bool, rows: usize, cols: usize) -> Input<B> {
        match ternary {
            true => Input::Rows(backend.rows(rows, cols)),
            false => Input::Floats(backend.floats(rows * cols)),
        }
    }
}

/// Gradient of what a linear layer gives; in a ternary model also as int8 rows.
pub(crate) struct Gradient<B: Memory> {
    pub(crate) floats: B::Floats,
    rows: Option<B::Rows>,
}

impl<B: Memory> Gradient<B> {
    /// Room for `rows` × `cols`.
    pub(crate) fn new(backend: &B, ternary: bool, rows: usize, cols: usize) -> Gradient<B> {
        Gradient { floats: backend.floats(rows * cols), rows: ternary.then(|| backend.rows(rows, cols)) }
    }
}

impl<B: Backend> Gradient<B> {
    /// Makes the rows from the floats.
    pub(crate) fn round(&mut self, backend: &B) {
        if let Some(rows) = &mut self.rows {
            backend.quantize_rows(&self.floats, rows);
        }
    }
}

/// Room for a gated activation and its gradient, which exist in f32 models only.
pub(crate) struct Gated<B: Memory> {
    a: B::Floats,
    d_a: B::Floats,
}

impl<B: Memory> Gated<B> {
    /// Room for `rows` × `cols`.
    pub(crate) fn new(backend: &B, ternary: bool, rows: usize, cols: usize) -> Gated<B> {
        let len = if ternary { 0 } else { rows * cols };
        Gated { a: backend.floats(len), d_a: backend.floats(len) }
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
            (Input::Rows(h), Some(id)) => backend.rmsnorm_quantize(x, self.floats(id), eps, h, rstd),
            (Input::Floats(h), Some(id)) => backend.rmsnorm(x, self.floats(id), eps, h, rstd),
            (Input::Rows(h), None) => backend.quantize_rows(x, h),
            (Input::Floats(h), None) => backend.copy(x, h),
        }
    }

    /// Gradients of [`Model::normalise`] with the gain `id`.
    pub(crate) fn normalise_backward(
        &self,
        backend: &B,
        dh: &B::Floats,
        (x, rstd): (&B::Floats, &B::Floats),
        id: usize,
        store: Store,
        dx: &mut Gradient<B>,
        d_gain: &mut B::Floats,
    ) {
        let Gradient { floats, rows } = dx;
        backend.rmsnorm_backward(dh, x, self.floats(id), rstd, store, floats, rows.as_mut(), d_gain);
    }

    /// `input = norm(act(gate) · up)` with the gain `gain`, or without a norm.
    pub(crate) fn gate(
        &self,
        backend: &B,
        gate_up: &B::Floats,
        gain: Option<usize>,
        gated: &mut Gated<B>,
        input: &mut Input<B>,
        rstd: &mut B::Floats,
    ) {
        match input {
            Input::Rows(h) => {
                let norm = gain.map(|id| (self.floats(id), self.config.norm_eps));
                backend.glu_quantize(self.gate_kind(), gate_up, norm, h, rstd);
            }
            Input::Floats(_) => {
                backend.glu(self.gate_kind(), gate_up, self.config.ffn, &mut gated.a);
                self.normalise(backend, &gated.a, gain, input, rstd);
            }
        }
    }

    /// Gradients of [`Model::gate`], from that of its result.
    pub(crate) fn gate_backward<S: Sink<B> + ?Sized>(
        &self,
        backend: &B,
        dh: &B::Floats,
        (gate_up, rstd): (&B::Floats, &B::Floats),
        gain: Option<usize>,
        gated: &mut Gated<B>,
        d_gate_up: &mut Gradient<B>,
        sink: &mut S,
    ) {
        let (gate, width) = (self.gate_kind(), self.config.ffn);
        let norm = gain.map(|id| (self.floats(id), rstd, sink.buffer(backend, id)));
        let floats = &mut d_gate_up.floats;
        match (&mut d_gate_up.rows, norm) {
            (Some(rows), norm) => backend.glu_backward_quantize(gate, gate_up, dh, norm, floats, rows),
            (None, Some((gain, rstd, d_gain))) => {
                let Gated { a, d_a } = gated;
                backend.glu(gate, gate_up, width, a);
                backend.rmsnorm_backward(dh, a, gain, rstd, Store::Replace, d_a, None, d_gain);
                backend.glu_backward(gate, gate_up, d_a, width, floats);
            }
            (None, None) => backend.glu_backward(gate, gate_up, dh, width, floats),
        }
    }

    /// `y = x·Wᵀ` with the matrix `id`, plus `residual`.
    pub(crate) fn linear(
        &self,
        backend: &B,
        id: usize,
        x: &Input<B>,
        residual: Option<&B::Floats>,
        y: &mut B::Floats,
    ) {
        match x {
            Input::Rows(x) => {
                let product = |residual: Option<&B::Floats>, y: &mut B::Floats| {
                    let product = |w: &B::Ternary| backend.ternary_matmul(x, w, residual, y);
                    self.with_codes(backend, id, Sides::Forward, product).expect(MIXED);
                };
                self.adapted(backend, id, x, (residual, y), |residual, y| {
                    self.rounded(backend, id, x, (residual, y), product);
                });
                self.expect_after(backend, id);
            }
            Input::Floats(x) => {
                backend.matmul(x, self.floats(id), self.layout.specs[id].cols, residual, y);
            }
        }
    }

    /// `dx = dy·W` and `dW = dyᵀ·x`, which completes the gradient of the matrix, where it is trained.
    pub(crate) fn linear_backward<S: Sink<B> + ?Sized>(
        &mut self,
        backend: &B,
        id: usize,
        dy: &Gradient<B>,
        x: &Input<B>,
        dx: &mut B::Floats,
        sink: &mut S,
    ) {
        match (x, &dy.rows) {
            (Input::Rows(x), Some(rows)) => {
                let product = |w: &B::Ternary| backend.ternary_input_gradient(rows, w, dx);
                self.with_codes(backend, id, Sides::Backward, product).expect(MIXED);
                self.rounded_backward(backend, id, (&dy.floats, x), dx);
                self.adapted_backward(backend, id, (&dy.floats, x), dx, sink);
                if self.layout.trains(id) {
                    backend.ternary_weight_gradient(&dy.floats, x, sink.buffer(backend, id));
                }
            }
            (Input::Floats(x), None) => {
                let inputs = self.layout.specs[id].cols;
                backend.matmul_input_gradient(&dy.floats, self.floats(id), inputs, dx);
                backend.matmul_weight_gradient(&dy.floats, x, inputs, sink.buffer(backend, id));
            }
            _ => unreachable!("{MIXED}"),
        }
        if self.layout.trains(id) {
            self.complete(backend, id, sink);
        }
    }

    fn gate_kind(&self) -> Gate {
        match self.config.gate {
            crate::Gate::Silu => Gate::Silu,
            crate::Gate::Relu2 => Gate::Relu2,
        }
    }
}
