//! Low-rank adapters beside ternary matrices (LoRA; Hu et al. 2021, arXiv:2106.09685): `y = x·Wᵀ + (x·Aᵀ)·Bᵀ`.
//!
//! `W` stays as it is; `A` `[rank][inputs]` and `B` `[outputs][rank]` are f32 and see the same rounded inputs. In
//! backward they see the gradient of the output as it is, before it is rounded for the product with `W`.

use std::sync::PoisonError;

use tritrain_backend::{Apply, Backend, Memory};

use crate::{Layout, Model, Sink};

/// What products with adapters take, grown to the largest matrix that came by.
pub struct Adapting<B: Memory> {
    /// Inputs in f32, `[tokens][inputs]`; in backward then the gradient of the input that comes through the adapter.
    wide: B::Floats,
    /// Outputs of the adapter and what they are added to, `[tokens][outputs]`.
    out: B::Floats,
    /// `x·Aᵀ` and its gradient, `[tokens][rank]`.
    low: B::Floats,
    d_low: B::Floats,
}

impl<B: Memory> Adapting<B> {
    pub(crate) fn new(backend: &B) -> Adapting<B> {
        let none = || backend.floats(0);
        Adapting { wide: none(), out: none(), low: none(), d_low: none() }
    }

    /// What it comes to be in steps of `tokens` tokens.
    pub fn grown(backend: &B, layout: &Layout, tokens: usize) -> Adapting<B> {
        let room = |of: fn(&Layout, usize, &[usize; 2]) -> usize| {
            let widths = layout.adapters.iter().map(|(id, factors)| of(layout, *id, factors));
            backend.floats(tokens * widths.max().unwrap_or(0))
        };
        Adapting {
            wide: room(|layout, id, _| layout.specs[id].cols),
            out: room(|layout, id, _| layout.specs[id].rows),
            low: room(|layout, _, [a, _]| layout.specs[*a].rows),
            d_low: room(|layout, _, [a, _]| layout.specs[*a].rows),
        }
    }
}

impl<B: Backend> Model<B> {
    /// Runs `product`, `y = x·Wᵀ` with the matrix `id` plus what it is given, on `residual` and what the adapter of the
    /// matrix makes of `x`.
    pub(crate) fn adapted(
        &self,
        backend: &B,
        id: usize,
        x: &B::Rows,
        (residual, y): (Option<&B::Floats>, &mut B::Floats),
        product: impl FnOnce(Option<&B::Floats>, &mut B::Floats),
    ) {
        let Some([a, b]) = self.layout.adapters.get(&id) else { return product(residual, y) };
        let mut room = self.adapting.lock().unwrap_or_else(PoisonError::into_inner);
        let Adapting { wide, out, low, .. } = &mut *room;
        let tokens = self.reduced(backend, id, x, wide, low);
        let [outputs, rank] = [self.layout.specs[id].rows, self.layout.specs[*a].rows];
        backend.resize(out, tokens * outputs);
        backend.matmul(low, self.floats(*b), rank, residual, out);
        product(Some(out), y);
    }

    /// `low = x·Aᵀ` of the adapter of matrix `id`, with `x` in f32 in `wide`; returns the number of tokens.
    fn reduced(
        &self,
        backend: &B,
        id: usize,
        x: &B::Rows,
        wide: &mut B::Floats,
        low: &mut B::Floats,
    ) -> usize {
        let [a, _] = self.layout.adapters[&id];
        let [rank, inputs] = [self.layout.specs[a].rows, self.layout.specs[a].cols];
        let tokens = backend.dequantize_rows(x, wide);
        backend.resize(low, tokens * rank);
        backend.matmul(wide, self.floats(a), inputs, None, low);
        tokens
    }

    /// Gradients of the adapter of matrix `id`, to `sink`, and of its input, added to `dx`.
    pub(crate) fn adapted_backward<S: Sink<B> + ?Sized>(
        &self,
        backend: &B,
        id: usize,
        (dy, x): (&B::Floats, &B::Rows),
        dx: &mut B::Floats,
        sink: &mut S,
    ) {
        let Some([a, b]) = self.layout.adapters.get(&id) else { return };
        let [rank, inputs] = [self.layout.specs[*a].rows, self.layout.specs[*a].cols];
        let mut room = self.adapting.lock().unwrap_or_else(PoisonError::into_inner);
        let Adapting { wide, low, d_low, .. } = &mut *room;
        let tokens = self.reduced(backend, id, x, wide, low);
        backend.matmul_weight_gradient(dy, low, rank, sink.buffer(backend, *b));
        backend.resize(d_low, tokens * rank);
        backend.matmul_input_gradient(dy, self.floats(*b), rank, d_low);
        backend.matmul_weight_gradient(d_low, wide, inputs, sink.buffer(backend, *a));
        backend.matmul_input_gradient(d_low, self.floats(*a), inputs, wide);
        backend.apply(dx, wide, Apply { rate: -1.0, decay: 0.0 });
    }
}
