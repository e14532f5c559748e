//! The parameters on a device, and the passes over a batch.

use tritrain_backend::{Backend, Products, Store, rope_table};

use crate::{Activations, Layout, ModelConfig, Precision, TensorKind, activations::WITHOUT_GRADIENTS};

/// A model on a device: f32 weights in [`Layout`] order (the latent weights, for ternary matrices) and
/// the codes made from them.
pub struct Model<B: Backend> {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    pub(crate) vocab: usize,
    pub(crate) weights: Vec<B::Floats>,
    pub(crate) ternary: Vec<Option<B::Ternary>>,
    pub(crate) rope: B::Floats,
}

impl<B: Backend> Model<B> {
    /// Puts `weights`, one vector per tensor of the layout, on the device; `gradients` when the model
    /// will be trained.
    ///
    /// # Panics
    /// The weights do not have the layout's shapes.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        vocab: usize,
        weights: &[Vec<f32>],
        gradients: bool,
    ) -> Model<B> {
        let layout = Layout::new(config, vocab);
        assert_eq!(weights.len(), layout.specs.len());
        let on_device = layout.specs.iter().zip(weights).map(|(spec, host)| {
            let mut buffer = backend.floats(spec.len());
            backend.upload(host, &mut buffer);
            buffer
        });
        let weights = on_device.collect();
        let ternary = layout.specs.iter().map(|spec| {
            let is_ternary = layout.ternary && spec.kind == TensorKind::Matrix;
            is_ternary.then(|| backend.ternary(spec.rows, spec.cols, gradients))
        });
        let ternary = ternary.collect();
        let table = rope_table(config.context, config.head_dim(), config.rope_theta);
        let mut rope = backend.floats(table.len());
        backend.upload(&table, &mut rope);
        let mut model = Model { config: config.clone(), layout, vocab, weights, ternary, rope };
        model.refresh(backend);
        model
    }

    /// Makes the ternary codes anew after the weights changed.
    pub fn refresh(&mut self, backend: &B) {
        for (latent, codes) in self.weights.iter().zip(&mut self.ternary) {
            if let Some(codes) = codes {
                backend.ternarize(latent, codes);
            }
        }
    }

    /// The options the model was made with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Names and shapes of the parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Tokens in the vocabulary.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The weights on the device, in layout order.
    pub fn weights(&self) -> &[B::Floats] {
        &self.weights
    }

    /// The weights, to be updated; call [`Model::refresh`] afterwards.
    pub fn weights_mut(&mut self) -> &mut [B::Floats] {
        &mut self.weights
    }

    /// One weight tensor, copied to the host.
    pub fn download(&self, backend: &B, id: usize) -> Vec<f32> {
        let mut host = vec![0.0; self.layout.specs[id].len()];
        backend.download(&self.weights[id], &mut host);
        host
    }

    /// The codes and scale of matrix `id`, `[rows][cols]`, when the model is ternary.
    pub fn codes(&self, backend: &B, id: usize) -> Option<(Vec<i8>, f32)> {
        self.ternary[id].as_ref().map(|codes| backend.download_ternary(codes))
    }

    /// Losses of a batch into [`Activations::losses`]: `inputs` and `targets` `[batch][time]`.
    ///
    /// # Panics
    /// The tokens are not as many as the activations were made for, or outside the vocabulary.
    pub fn evaluate(&self, backend: &B, a: &mut Activations<B>, inputs: &[u32], targets: &[u32]) {
        backend.run(|| {
            self.forward(backend, a, inputs, targets);
            let (head, with) = (&self.weights[self.layout.head], self.head_products());
            backend.head_loss(&a.hidden, head, &a.targets, with, &mut a.losses);
        });
    }

    /// Losses as [`Model::evaluate`], and the gradients of their mean into `grads`, in layout order.
    ///
    /// # Panics
    /// As [`Model::evaluate`]; and when the activations keep nothing.
    pub fn gradients(
        &self,
        backend: &B,
        a: &mut Activations<B>,
        inputs: &[u32],
        targets: &[u32],
        grads: &mut [B::Floats],
    ) {
        self.forward(backend, a, inputs, targets);
        let (layout, dim) = (&self.layout, self.config.dim);
        let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);
        backend.clear(&mut grads[layout.embedding]);
        if layout.head != layout.embedding {
            backend.clear(&mut grads[layout.head]);
        }
        let (head, d_head) = (&self.weights[layout.head], &mut grads[layout.head]);
        let with = self.head_products();
        backend.head_loss_backward(&a.hidden, head, &a.targets, with, &mut a.losses, &mut b.d_dim, d_head);
        let (of, d_gain) = ((&a.stream[self.config.layers], &a.rstd), &mut grads[layout.norm]);
        self.normalise_backward(backend, &b.d_dim, of, layout.norm, Store::Replace, &mut b.dx, d_gain);
        for layer in (0..self.config.layers).rev() {
            self.block_backward(backend, layer, a, grads);
        }
        let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);
        backend.embed_backward(&a.inputs, &b.dx.floats, dim, &mut grads[layout.embedding]);
    }

    /// Width of the hidden states, and how the head multiplies them.
    fn head_products(&self) -> (usize, Products) {
        let products = match self.config.precision {
            Precision::Ternary => Products::Int16,
            Precision::F32 => Products::F32,
        };
        (self.config.dim, products)
    }

    /// Everything up to the normalised hidden states.
    fn forward(&self, backend: &B, a: &mut Activations<B>, inputs: &[u32], targets: &[u32]) {
        backend.upload_tokens(inputs, &mut a.inputs);
        backend.upload_tokens(targets, &mut a.targets);
        let (places, sets) = (a.stream.len(), a.blocks.len());
        let embedding = &self.weights[self.layout.embedding];
        backend.embed(&a.inputs, embedding, self.config.dim, &mut a.stream[0]);
        for layer in 0..self.config.layers {
            let pair = [layer % places, (layer + 1) % places];
            let [x, out] = a.stream.get_disjoint_mut(pair).expect("the stream has two places at least");
            let attend = self.attend(backend, a.shape);
            self.block_forward(backend, layer, x, &mut a.blocks[layer % sets], &mut a.gated, attend, out);
        }
        let (gain, eps) = (&self.weights[self.layout.norm], self.config.norm_eps);
        let x = &a.stream[self.config.layers % places];
        backend.rmsnorm(x, gain, eps, &mut a.hidden, &mut a.rstd);
    }
}
