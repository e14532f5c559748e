//! Where gradients go.

use tritrain_backend::{Backend, Weight};

/// Where gradients go, one tensor after another.
pub trait Sink<B: Backend> {
    /// The place for the gradient of tensor `id`: of a matrix until it is complete, of others until all are.
    fn buffer(&mut self, backend: &B, id: usize) -> &mut B::Floats;

    /// Takes the gradient of the matrix `id`, which nothing reads any more, nor the matrix itself.
    fn complete(&mut self, backend: &B, id: usize, weight: &mut Weight<B>);
}

/// A buffer for each tensor.
impl<B: Backend> Sink<B> for [B::Floats] {
    fn buffer(&mut self, _: &B, id: usize) -> &mut B::Floats {
        &mut self[id]
    }

    fn complete(&mut self, _: &B, _: usize, _: &mut Weight<B>) {}
}
