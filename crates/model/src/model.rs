//! The parameters on a device, and the passes over a batch.

use std::sync::{Mutex, PoisonError};

use tritrain_backend::{
    Backend, Format, Lent, NO_TARGET, Products, Sides, Store, Values, Weight, rope_table,
};

use crate::{
    Activations, Layout, ModelConfig, Sink, TensorKind, activations::WITHOUT_GRADIENTS, adapter::Adapting,
    onset::Onset,
};

/// How many targets there are: positions with [`NO_TARGET`] are none.
pub fn counted(targets: &[u32]) -> usize {
    targets.iter().filter(|target| **target != NO_TARGET).count()
}

/// What a model is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Use {
    /// Evaluation and generation: of a ternary matrix only its codes are kept.
    Inference,
    /// Generation alone: the same, and of the tables of a ternary model nothing in f32 where they are fp16. Rows of the
    /// embedding are looked up where they lie, and the head is int8.
    Generation,
    /// Training, with f32 latent weights and codes beside them.
    Training,
    /// Training with latent weights in few bits, of this range ([`Backend::upload_packed`]). Codes exist for
    /// one matrix of each shape at a time, made anew for every product.
    Packed(Format, f32),
    /// Training of adapters alone: of a ternary matrix only its codes are kept.
    Adapters,
}

/// Codes of a matrix.
enum Codes<B: Backend> {
    /// There are none: the tensor is no ternary matrix.
    None,
    /// Of latent weights beside them.
    Kept(B::Ternary),
    /// All that there is of the matrix.
    Alone(B::Ternary),
    /// Made from packed latent weights where they are needed, in this place of [`Model::shared`].
    Shared(usize),
}

/// Codes of a matrix for products forward.
fn forward_codes<B: Backend>(backend: &B, values: &Values<'_>, (rows, cols): (usize, usize)) -> B::Ternary {
    let mut codes = backend.ternary(rows, cols, false);
    match values {
        Values::Packed(stored) => {
            let packed = values.packed(backend, (rows, cols), stored.format, 1.0);
            backend.ternarize_packed(&packed, &mut codes, Sides::Forward);
        }
        Values::Codes(all, scale) => backend.upload_ternary(all, *scale, &mut codes),
        Values::Floats(_) | Values::Halves(_) => {
            backend.ternarize(&values.floats(backend, rows, cols), &mut codes);
        }
    }
    codes
}

/// A model on a device: weights in [`Layout`] order (the latent weights, for ternary matrices) and the codes
/// made from them.
pub struct Model<B: Backend> {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    pub(crate) vocab: usize,
    weights: Vec<Weight<B>>,
    codes: Vec<Codes<B>>,
    /// Room for codes, by shape.
    shared: Vec<([usize; 2], Mutex<B::Ternary>)>,
    /// The embedding where it lies, in a model for generation.
    table: Option<Lent>,
    /// The head for one token at a time, in a model for generation.
    pub(crate) head_rows: Option<B::Rows>,
    /// What products with adapters take, one matrix at a time.
    pub(crate) adapting: Mutex<Adapting<B>>,
    /// The share of codes in what ternary matrices multiply by, and what products with the rest take.
    pub(crate) rounding: f32,
    pub(crate) onset: Mutex<Onset<B>>,
    pub(crate) rope: B::Floats,
}

impl<B: Backend> Model<B> {
    /// Puts weights on the device, which `weights` gives for each tensor of the layout in order.
    ///
    /// # Panics
    /// The weights do not have the layout's shapes, or are packed in another format than they are used in.
    pub fn new<'a>(
        backend: &B,
        config: &ModelConfig,
        vocab: usize,
        weights: &dyn Fn(usize) -> Values<'a>,
        purpose: Use,
    ) -> Model<B> {
        let layout = Layout::new(config, vocab);
        let table = rope_table(config.context, config.head_dim(), config.rope_theta);
        let mut rope = backend.floats(table.len());
        backend.upload(&table, &mut rope);
        let mut model = Model {
            config: config.clone(),
            layout,
            vocab,
            weights: Vec::new(),
            codes: Vec::new(),
            shared: Vec::new(),
            adapting: Mutex::new(Adapting::new(backend)),
            rounding: 1.0,
            onset: Mutex::new(Onset::new(backend)),
            table: None,
            head_rows: None,
            rope,
        };
        for id in 0..model.layout.specs.len() {
            model.add(backend, id, weights(id), purpose);
        }
        model
    }

    fn add(&mut self, backend: &B, id: usize, values: Values<'_>, purpose: Use) {
        let (rows, cols, kind) = {
            let spec = &self.layout.specs[id];
            (spec.rows, spec.cols, spec.kind)
        };
        if let (Use::Generation, true, Values::Halves(table)) = (purpose, self.layout.ternary, &values) {
            if id == self.layout.head {
                let mut head = backend.rows(rows, cols);
                backend.quantize_halves(table, &mut head);
                self.head_rows = Some(head);
            }
            if id == self.layout.embedding {
                self.table = Some(table.clone());
            }
            self.weights.push(Weight::Floats(backend.floats(0)));
            self.codes.push(Codes::None);
            return;
        }
        if !self.layout.ternary || kind != TensorKind::Matrix {
            let floats = values.floats(backend, rows, cols);
            self.weights.push(Weight::Floats(floats));
            self.codes.push(Codes::None);
            return;
        }
        let (weight, codes) = match purpose {
            Use::Inference | Use::Generation => {
                let codes = forward_codes(backend, &values, (rows, cols));
                (Weight::Floats(backend.floats(0)), Codes::Alone(codes))
            }
            Use::Adapters => {
                // The codes that inference has, in both layouts.
                let (found, scale) = backend.download_ternary(&forward_codes(backend, &values, (rows, cols)));
                let latent = Values::Codes(found.into(), scale).floats(backend, rows, cols);
                let mut codes = backend.ternary(rows, cols, true);
                backend.ternarize(&latent, &mut codes);
                (Weight::Floats(backend.floats(0)), Codes::Alone(codes))
            }
            Use::Training => {
                let latent = values.floats(backend, rows, cols);
                let mut codes = backend.ternary(rows, cols, true);
                backend.ternarize(&latent, &mut codes);
                (Weight::Floats(latent), Codes::Kept(codes))
            }
            Use::Packed(format, range) => {
                let place = self.shared.iter().position(|(shape, _)| *shape == [rows, cols]);
                let place = place.unwrap_or_else(|| {
                    self.shared.push(([rows, cols], Mutex::new(backend.ternary(rows, cols, true))));
                    self.shared.len() - 1
                });
                let packed = values.packed(backend, (rows, cols), format, range);
                (Weight::Packed(packed), Codes::Shared(place))
            }
        };
        self.weights.push(weight);
        self.codes.push(codes);
    }

    /// Makes the ternary codes anew after the weights changed.
    pub fn refresh(&mut self, backend: &B) {
        for (latent, codes) in self.weights.iter().zip(&mut self.codes) {
            if let Codes::Kept(codes) = codes {
                backend.ternarize(latent.floats(), codes);
            }
        }
    }

    /// Runs `work` with the codes of matrix `id` for products of one side; not at all where it has none.
    pub(crate) fn with_codes<R>(
        &self,
        backend: &B,
        id: usize,
        sides: Sides,
        work: impl FnOnce(&B::Ternary) -> R,
    ) -> Option<R> {
        match &self.codes[id] {
            Codes::None => None,
            Codes::Kept(codes) | Codes::Alone(codes) => Some(work(codes)),
            Codes::Shared(place) => {
                let mut codes = self.shared[*place].1.lock().unwrap_or_else(PoisonError::into_inner);
                if let Weight::Packed(latent) = &self.weights[id] {
                    backend.ternarize_packed(latent, &mut codes, sides);
                }
                Some(work(&codes))
            }
        }
    }

    /// Says that the first ternary matrix behind tensor `id` is multiplied next.
    pub(crate) fn expect_after(&self, backend: &B, id: usize) {
        match self.codes[id + 1..].iter().find(|codes| !matches!(codes, Codes::None)) {
            Some(Codes::Kept(codes) | Codes::Alone(codes)) => backend.expect(codes),
            Some(Codes::Shared(_) | Codes::None) | None => {}
        }
    }

    /// An f32 tensor: an embedding, a gain, or a matrix of the f32 twin.
    pub(crate) fn floats(&self, id: usize) -> &B::Floats {
        self.weights[id].floats()
    }

    /// `x[t] = embedding[tokens[t]]`; `room` is for the tokens on the device.
    pub(crate) fn embed(&self, backend: &B, tokens: &[u32], room: &mut B::Tokens, x: &mut B::Floats) {
        match &self.table {
            Some(table) => backend.upload(&table.rows(tokens, self.config.dim), x),
            None => {
                backend.upload_tokens(tokens, room);
                backend.embed(room, self.floats(self.layout.embedding), self.config.dim, x);
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
    pub fn weights(&self) -> &[Weight<B>] {
        &self.weights
    }

    /// The weights, to be updated; call [`Model::refresh`] afterwards.
    pub fn weights_mut(&mut self) -> &mut [Weight<B>] {
        &mut self.weights
    }

    /// Replaces the weights of a model in training, those that are trained.
    ///
    /// # Panics
    /// A tensor has another shape or is stored in another format.
    pub fn restore<'a>(&mut self, backend: &B, weights: &dyn Fn(usize) -> Values<'a>) {
        let tensors = self.weights.iter_mut().zip(&self.layout.specs).enumerate();
        for (id, (weight, spec)) in tensors.filter(|(id, _)| self.layout.trains(*id)) {
            weights(id).restore(backend, (spec.rows, spec.cols), weight);
        }
        self.refresh(backend);
    }

    /// One weight tensor as it is stored; of ternary matrices made for inference, nothing.
    pub fn values<'m>(&'m self, backend: &B, id: usize) -> Values<'m> {
        match &self.weights[id] {
            Weight::Packed(packed) => Values::Packed(backend.stored(packed)),
            Weight::Floats(floats) => Values::Floats(backend.host(floats)),
        }
    }

    /// The codes and scale of matrix `id`, `[rows][cols]`, when the model is ternary.
    pub fn codes(&self, backend: &B, id: usize) -> Option<(Vec<i8>, f32)> {
        self.with_codes(backend, id, Sides::Forward, |codes| backend.download_ternary(codes))
    }

    /// Losses of a batch into [`Activations::losses`]: `inputs` and `targets` `[batch][time]`; 0 where the target is
    /// [`NO_TARGET`].
    ///
    /// # Panics
    /// The tokens are not as many as the activations were made for, or outside the vocabulary; or the model is for
    /// generation alone.
    pub fn evaluate(&self, backend: &B, a: &mut Activations<B>, inputs: &[u32], targets: &[u32]) {
        backend.run(|| {
            self.forward(backend, a, inputs, targets);
            let (head, with) = (self.floats(self.layout.head), self.head_products());
            backend.head_loss(&a.hidden, head, &a.targets, with, &mut a.losses);
        });
    }

    /// Logits of a batch, `[batch][time][vocab]`, by the head as it is stored: f32, whatever the blocks are.
    ///
    /// # Panics
    /// As [`Model::evaluate`]; or `logits` has another length.
    pub fn logits(&self, backend: &B, a: &mut Activations<B>, inputs: &[u32], logits: &mut B::Floats) {
        backend.run(|| {
            self.forward(backend, a, inputs, inputs);
            backend.head_logits(&a.hidden, self.floats(self.layout.head), self.config.dim, logits);
        });
    }

    /// [`Model::logits`] of the positions in turn, as many at a time as `part` has room for: hidden states and logits.
    ///
    /// # Panics
    /// As [`Model::evaluate`]; or the batch is no whole number of parts.
    pub fn logits_in_parts(
        &self,
        backend: &B,
        a: &mut Activations<B>,
        inputs: &[u32],
        (part, logits): (&mut B::Floats, &mut B::Floats),
        rows: usize,
        mut take: impl FnMut(&[f32]) + Send,
    ) {
        backend.run(|| {
            self.forward(backend, a, inputs, inputs);
            let (head, dim) = (self.floats(self.layout.head), self.config.dim);
            for hidden in backend.host(&a.hidden).chunks(rows * dim) {
                backend.upload(hidden, part);
                backend.head_logits(part, head, dim, logits);
                take(&backend.host(logits));
            }
        });
    }

    /// Losses as [`Model::evaluate`], and the gradients of `weight` times their sum, to `sink`: first half, up to the
    /// blocks.
    ///
    /// # Panics
    /// As [`Model::evaluate`]; and when the activations keep nothing.
    pub fn head_gradients<S: Sink<B> + ?Sized>(
        &self,
        backend: &B,
        a: &mut Activations<B>,
        inputs: &[u32],
        (targets, weight): (&[u32], f32),
        sink: &mut S,
    ) {
        self.forward(backend, a, inputs, targets);
        let layout = &self.layout;
        let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);
        let tables = if layout.head == layout.embedding { 0..1 } else { 0..2 };
        for id in [layout.embedding, layout.head][tables].iter().filter(|id| layout.trains(**id)) {
            backend.clear(sink.buffer(backend, *id));
        }
        let (head, with) = (self.floats(layout.head), self.head_products());
        let d_head = layout.trains(layout.head).then(|| sink.buffer(backend, layout.head));
        backend.head_loss_backward(
            &a.hidden,
            head,
            &a.targets,
            with,
            weight,
            &mut a.losses,
            &mut b.d_dim,
            d_head,
        );
        let of = (&a.stream[self.config.layers], &a.rstd);
        let d_gain = sink.buffer(backend, layout.norm);
        self.normalise_backward(backend, &b.d_dim, of, layout.norm, Store::Replace, &mut b.dx, d_gain);
    }

    /// The second half: gradients of the blocks, last to first, and of the embedding. The sink may change a
    /// matrix when its gradient is complete.
    ///
    /// # Panics
    /// The activations keep nothing.
    pub fn block_gradients<S: Sink<B> + ?Sized>(
        &mut self,
        backend: &B,
        a: &mut Activations<B>,
        sink: &mut S,
    ) {
        for layer in (0..self.config.layers).rev() {
            self.block_backward(backend, layer, a, sink);
        }
        if self.layout.trains(self.layout.embedding) {
            let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);
            let d_embedding = sink.buffer(backend, self.layout.embedding);
            backend.embed_backward(&a.inputs, &b.dx.floats, self.config.dim, d_embedding);
        }
    }

    /// Both halves, of the mean loss over all targets.
    ///
    /// # Panics
    /// As they do.
    pub fn gradients<S: Sink<B> + ?Sized>(
        &mut self,
        backend: &B,
        a: &mut Activations<B>,
        inputs: &[u32],
        targets: &[u32],
        sink: &mut S,
    ) {
        let weight = 1.0 / counted(targets).max(1) as f32;
        self.head_gradients(backend, a, inputs, (targets, weight), sink);
        self.block_gradients(backend, a, sink);
    }

    /// Hands the matrix `id`, whose gradient is complete, to the sink.
    pub(crate) fn complete<S: Sink<B> + ?Sized>(&mut self, backend: &B, id: usize, sink: &mut S) {
        sink.complete(backend, id, &mut self.weights[id]);
    }

    /// Width of the hidden states, and how the head multiplies them.
    fn head_products(&self) -> (usize, Products) {
        (self.config.dim, self.config.head_products())
    }

    /// Everything up to the normalised hidden states.
    fn forward(&self, backend: &B, a: &mut Activations<B>, inputs: &[u32], targets: &[u32]) {
        backend.upload_tokens(inputs, &mut a.inputs);
        backend.upload_tokens(targets, &mut a.targets);
        self.forward_to(backend, a, self.config.layers);
        let last = self.config.layers % a.stream.len();
        self.last_norm(backend, &a.stream[last], &mut a.hidden, &mut a.rstd);
    }

    /// The embedding of the inputs, which are there, and the first `layers` blocks.
    pub(crate) fn forward_to(&self, backend: &B, a: &mut Activations<B>, layers: usize) {
        let (places, sets) = (a.stream.len(), a.blocks.len());
        let embedding = self.floats(self.layout.embedding);
        backend.embed(&a.inputs, embedding, self.config.dim, &mut a.stream[0]);
        for layer in 0..layers {
            let pair = [layer % places, (layer + 1) % places];
            let [x, out] = a.stream.get_disjoint_mut(pair).expect("the stream has two places at least");
            let attend = self.attend(backend, a.shape);
            self.block_forward(backend, layer, x, &mut a.blocks[layer % sets], &mut a.gated, attend, out);
        }
    }

    /// The norm behind the last block.
    pub(crate) fn last_norm(&self, backend: &B, x: &B::Floats, hidden: &mut B::Floats, rstd: &mut B::Floats) {
        backend.rmsnorm(x, self.floats(self.layout.norm), self.config.norm_eps, hidden, rstd);
    }
}
