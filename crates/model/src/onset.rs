//! Ternary rounding that is turned on little by little, for models that were f32: matrices of
//! `λ·codes + (1 - λ)·latent weights`, with λ on its way to 1.
//!
//! The idea is that of Hugging Face's conversions ("Fine-tuning LLMs to 1.58bit", 2024). Inputs are int8 whatever λ is;
//! gradients of latent weights pass straight through, as always.

use std::sync::PoisonError;

use tritrain_backend::{Apply, Backend, Memory, Weight};

use crate::{Layout, Model, TensorKind};

/// What products with latent weights take, grown to the largest matrix that came by.
pub struct Onset<B: Memory> {
    /// Inputs in f32, or the gradient of the input through latent weights, `[tokens][inputs]`.
    wide: B::Floats,
    /// Outputs of latent weights, `[tokens][outputs]`.
    out: B::Floats,
    /// Latent weights that are stored in few bits, in f32.
    latent: B::Floats,
}

impl<B: Memory> Onset<B> {
    pub(crate) fn new(backend: &B) -> Onset<B> {
        Onset { wide: backend.floats(0), out: backend.floats(0), latent: backend.floats(0) }
    }

    /// What it comes to be in steps of `tokens` tokens, with latent weights in few bits where they are `packed`.
    pub fn grown(backend: &B, layout: &Layout, tokens: usize, packed: bool) -> Onset<B> {
        let matrices = || layout.specs.iter().filter(|spec| spec.kind == TensorKind::Matrix);
        let most = |sizes: &mut dyn Iterator<Item = usize>| backend.floats(sizes.max().unwrap_or(0));
        Onset {
            wide: most(&mut matrices().map(|spec| tokens * spec.cols)),
            out: most(&mut matrices().map(|spec| tokens * spec.rows)),
            latent: most(&mut matrices().map(|spec| if packed { spec.len() } else { 0 })),
        }
    }
}

impl<B: Backend> Model<B> {
    /// The share λ of codes in what matrices multiply by, the rest being their latent weights: 1 unless this says
    /// otherwise. Only a ternary model in training has both.
    ///
    /// # Panics
    /// λ is not from 0 to 1.
    pub fn set_rounding(&mut self, share: f32) {
        assert!((0.0..=1.0).contains(&share), "a share of {share}");
        self.rounding = share;
    }

    /// Runs `product`, `y = x·Wᵀ` with the codes of the matrix `id` plus what it is given, on `residual`; with latent
    /// weights in part, where rounding is not all there.
    pub(crate) fn rounded(
        &self,
        backend: &B,
        id: usize,
        x: &B::Rows,
        (residual, y): (Option<&B::Floats>, &mut B::Floats),
        product: impl FnOnce(Option<&B::Floats>, &mut B::Floats),
    ) {
        if self.rounding == 1.0 {
            return product(residual, y);
        }
        let mut room = self.onset.lock().unwrap_or_else(PoisonError::into_inner);
        let Onset { wide, out, latent } = &mut *room;
        let [outputs, inputs] = [self.layout.specs[id].rows, self.layout.specs[id].cols];
        let tokens = backend.dequantize_rows(x, wide);
        backend.resize(out, tokens * outputs);
        backend.matmul(wide, self.latent(backend, id, latent), inputs, None, out);
        product(None, y);
        self.blend(backend, y, out);
        if let Some(residual) = residual {
            backend.apply(y, residual, Apply { rate: -1.0, decay: 0.0 });
        }
    }

    /// Brings the part of latent weights into `dx`, the gradient of an input through the codes of the matrix `id`.
    pub(crate) fn rounded_backward(
        &self,
        backend: &B,
        id: usize,
        (dy, x): (&B::Floats, &B::Rows),
        dx: &mut B::Floats,
    ) {
        if self.rounding == 1.0 {
            return;
        }
        let mut room = self.onset.lock().unwrap_or_else(PoisonError::into_inner);
        let Onset { wide, latent, .. } = &mut *room;
        // Only to make it as long as `dx`.
        backend.dequantize_rows(x, wide);
        let inputs = self.layout.specs[id].cols;
        backend.matmul_input_gradient(dy, self.latent(backend, id, latent), inputs, wide);
        self.blend(backend, dx, wide);
    }

    /// `y = λ·y + (1 - λ)·latent`.
    fn blend(&self, backend: &B, y: &mut B::Floats, latent: &B::Floats) {
        backend.scale(y, self.rounding);
        backend.apply(y, latent, Apply { rate: self.rounding - 1.0, decay: 0.0 });
    }

    /// Latent weights of the matrix `id` in f32, in `room` where they are stored otherwise.
    fn latent<'m>(&'m self, backend: &B, id: usize, room: &'m mut B::Floats) -> &'m B::Floats {
        let spec = &self.layout.specs[id];
        match &self.weights()[id] {
            Weight::Packed(packed) => {
                backend.resize(room, spec.len());
                backend.unpack(packed, room);
                room
            }
            Weight::Floats(latent) => latent,
        }
    }
}
