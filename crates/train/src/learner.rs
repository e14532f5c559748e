//! What learns, without the files around it: a model, its optimizer and the buffers of a step.

use tritrain_backend::{Backend, Format, Memory, Values, Weight};
use tritrain_model::{Activations, Keep, Layout, Model, ModelConfig, Sink, TensorKind, TensorSpec, Use};
use tritrain_optim::{GradientKind, OptimConfig, Optimizer, Parameter, Rates, Report, Role, Skip};

/// Sizes of what learns, and where its random numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Sequences of one context in a batch.
    pub batch: usize,
    /// As [`RunConfig::recompute`](crate::RunConfig::recompute).
    pub recompute: bool,
    /// Of the numbers that rounding draws.
    pub seed: u64,
}

/// A model on a device with everything a training step needs there.
pub struct Learner<B: Backend> {
    pub(crate) model: Model<B>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) activations: Activations<B>,
    gradients: Gradients<B>,
}

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean loss of the batch in nats per token.
    pub loss: f32,
    /// Norm of the gradient, all tensors together.
    pub gradient_norm: f32,
    /// Norm of the direction, all tensors together, before the learning rate.
    pub direction_norm: f32,
    /// What became of the matrices.
    pub report: Report,
}

/// Places in the buffer that a step reads back.
const LOSS: usize = 0;
const GRADIENT: usize = 1;
const DIRECTION: usize = 2;

impl<B: Backend> Learner<B> {
    /// A model with the given weights, one tensor of the layout at a time.
    ///
    /// # Panics
    /// The weights do not have the layout's shapes.
    pub fn new<'a>(
        backend: &B,
        config: &ModelConfig,
        optim: &OptimConfig,
        setup: Setup,
        weights: &dyn Fn(usize) -> Values<'a>,
    ) -> Learner<B> {
        let purpose = match optim.latent.format() {
            Some(format) => Use::Packed(format, optim.range),
            None => Use::Training,
        };
        let model = Model::new(backend, config, setup.vocab, weights, purpose);
        let layout = model.layout();
        let keep = if setup.recompute { Keep::Inputs } else { Keep::Everything };
        let parameters = parameters(layout);
        Learner {
            optimizer: Optimizer::new(backend, optim, parameters, layout.ternary, setup.seed),
            activations: Activations::new(backend, config, setup.batch, config.context, keep),
            gradients: Gradients::new(backend, layout, optim.gradient),
            model,
        }
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// One step on `inputs` and `targets`, `[batch][context]` each. A quantity that is not finite ends it
    /// before any weight changes; where matrices are updated during the backward pass, those behind the first
    /// gradient that is not finite have changed by then.
    ///
    /// After the first one, a step of a ternary model allocates nothing where the loop of steps is inside
    /// [`Backend::run`].
    ///
    /// # Errors
    /// Names that quantity.
    ///
    /// # Panics
    /// The tokens are not as many as a batch holds, or outside the vocabulary.
    pub fn step(
        &mut self,
        backend: &B,
        inputs: &[u32],
        targets: &[u32],
        rates: Rates,
    ) -> Result<Measured, Skip> {
        backend.run(|| self.learn(backend, inputs, targets, rates))
    }

    fn learn(
        &mut self,
        backend: &B,
        inputs: &[u32],
        targets: &[u32],
        rates: Rates,
    ) -> Result<Measured, Skip> {
        let Learner { model, optimizer, activations, gradients } = self;
        backend.clear(&mut gradients.statistics);
        let mut gathering = Gathering { gradients, optimizer, rates };
        model.head_gradients(backend, activations, inputs, targets, &mut gathering);
        backend.sum(activations.losses(), &mut gathering.gradients.statistics, LOSS);
        if gathering.gradients.kind == GradientKind::None {
            // The first matrix moves as soon as its gradient is there.
            finite(gathering.gradients.read(backend)[LOSS], Skip::Loss)?;
            gathering.optimizer.begin(backend);
        }
        model.block_gradients(backend, activations, &mut gathering);
        let loss = self.gradients.finish(backend, &mut self.optimizer, self.model.weights_mut(), rates);
        // Also where the step is left: some matrices may have moved.
        self.model.refresh(backend);
        let loss = loss? / inputs.len() as f32;
        let read = self.gradients.read(backend);
        let (gradient_norm, direction_norm) = (read[GRADIENT].sqrt(), read[DIRECTION].sqrt());
        let report = self.optimizer.reports().iter().fold(Report::default(), Report::with);
        Ok(Measured { loss, gradient_norm, direction_norm, report })
    }

    /// Losses of every token of the last batch, `[batch][context]`, in nats.
    ///
    /// # Panics
    /// `losses` has another length.
    pub fn losses(&self, backend: &B, losses: &mut [f32]) {
        backend.download(self.activations.losses(), losses);
    }
}

/// Gradients until they are applied.
pub(crate) struct Gradients<B: Memory> {
    /// Where those of matrices are kept: in f32 unless the model is ternary.
    kind: GradientKind,
    /// By tensor; without numbers for matrices that are kept otherwise.
    floats: Vec<B::Floats>,
    /// The tensors whose gradients lie there.
    own: Vec<usize>,
    /// By tensor, of matrices that are kept in few bits.
    packed: Vec<Option<B::Packed>>,
    /// That of the matrix at hand, where matrices have no place of their own.
    shared: B::Floats,
    /// Numbers of every matrix, none for other tensors.
    matrices: Vec<Option<usize>>,
    statistics: B::Floats,
}

impl<B: Memory> Gradients<B> {
    pub(crate) fn new(backend: &B, layout: &Layout, kind: GradientKind) -> Gradients<B> {
        let kind = if layout.ternary { kind } else { GradientKind::F32 };
        let is_matrix = |spec: &TensorSpec| spec.kind == TensorKind::Matrix;
        let is_own = |spec: &TensorSpec| !is_matrix(spec) || kind == GradientKind::F32;
        let specs = &layout.specs;
        let packed = specs.iter().map(|spec| {
            let stored = is_matrix(spec) && kind == GradientKind::Trits;
            stored.then(|| backend.packed(Format::Trits(1), spec.rows, spec.cols, true))
        });
        let largest = specs.iter().filter(|spec| !is_own(spec)).map(TensorSpec::len).max();
        let sizes = specs.iter().map(|spec| if is_own(spec) { spec.len() } else { 0 });
        Gradients {
            kind,
            floats: sizes.map(|len| backend.floats(len)).collect(),
            own: (0..specs.len()).filter(|id| is_own(&specs[*id])).collect(),
            packed: packed.collect(),
            shared: backend.floats(largest.unwrap_or(0)),
            matrices: specs.iter().map(|spec| is_matrix(spec).then(|| spec.len())).collect(),
            statistics: backend.floats(3),
        }
    }
}

impl<B: Backend> Gradients<B> {
    fn read(&self, backend: &B) -> [f32; 3] {
        let mut read = [0.0; 3];
        backend.download(&self.statistics, &mut read);
        read
    }

    /// Directs and applies the matrix `id`, whose gradient is the shared one; not where it is not finite.
    fn move_shared(
        &mut self,
        backend: &B,
        optimizer: &mut Optimizer<B>,
        id: usize,
        weight: &mut Weight<B>,
        rates: Rates,
    ) {
        optimizer.direct(backend, id, &mut self.shared);
        backend.add_sum_squares(&self.shared, &mut self.statistics, DIRECTION);
        if finite(self.read(backend)[DIRECTION] * rates.matrices, Skip::UpdateNorm).is_ok() {
            optimizer.apply(backend, id, weight, &self.shared, rates);
        }
    }

    /// Applies what is left of a step, and gives the sum of the losses.
    fn finish(
        &mut self,
        backend: &B,
        optimizer: &mut Optimizer<B>,
        weights: &mut [Weight<B>],
        rates: Rates,
    ) -> Result<f32, Skip> {
        for &id in &self.own {
            backend.add_sum_squares(&self.floats[id], &mut self.statistics, GRADIENT);
        }
        let read = self.read(backend);
        finite(read[LOSS], Skip::Loss)?;
        finite(read[GRADIENT].sqrt(), Skip::GradientNorm)?;
        if self.kind != GradientKind::None {
            optimizer.begin(backend);
        }
        for (id, weight) in weights.iter_mut().enumerate() {
            if let (Some(packed), Some(len)) = (&self.packed[id], self.matrices[id]) {
                backend.resize(&mut self.shared, len);
                backend.unpack(packed, &mut self.shared);
                self.move_shared(backend, optimizer, id, weight, rates);
            }
        }
        for &id in &self.own {
            optimizer.direct(backend, id, &mut self.floats[id]);
            backend.add_sum_squares(&self.floats[id], &mut self.statistics, DIRECTION);
        }
        let direction = self.read(backend)[DIRECTION].sqrt();
        finite(direction * rates.matrices.max(rates.embedding), Skip::UpdateNorm)?;
        for &id in &self.own {
            optimizer.apply(backend, id, &mut weights[id], &self.floats[id], rates);
        }
        Ok(read[LOSS])
    }
}

/// Gradients on their way from the model.
struct Gathering<'a, B: Backend> {
    gradients: &'a mut Gradients<B>,
    optimizer: &'a mut Optimizer<B>,
    rates: Rates,
}

impl<B: Backend> Sink<B> for Gathering<'_, B> {
    fn buffer(&mut self, backend: &B, id: usize) -> &mut B::Floats {
        let gradients = &mut *self.gradients;
        match gradients.matrices[id] {
            Some(len) if gradients.kind != GradientKind::F32 => {
                backend.resize(&mut gradients.shared, len);
                &mut gradients.shared
            }
            _ => &mut gradients.floats[id],
        }
    }

    fn complete(&mut self, backend: &B, id: usize, weight: &mut Weight<B>) {
        let Gathering { gradients, optimizer, rates } = self;
        if gradients.kind == GradientKind::F32 {
            return;
        }
        backend.add_sum_squares(&gradients.shared, &mut gradients.statistics, GRADIENT);
        if let Some(packed) = &mut gradients.packed[id] {
            backend.round(&gradients.shared, &optimizer.gradient_noise(id), packed);
        } else if gradients.read(backend)[GRADIENT].is_finite() {
            gradients.move_shared(backend, optimizer, id, weight, *rates);
        }
    }
}

fn finite(value: f32, what: Skip) -> Result<(), Skip> {
    if value.is_finite() { Ok(()) } else { Err(what) }
}

pub(crate) fn parameters(layout: &Layout) -> Vec<Parameter> {
    let role = |kind| match kind {
        TensorKind::Matrix => Role::Matrix,
        TensorKind::Embedding => Role::Embedding,
        TensorKind::Norm => Role::Gain,
    };
    let specs = layout.specs.iter();
    specs
        .map(|spec| Parameter {
            name: spec.name.clone(),
            rows: spec.rows,
            cols: spec.cols,
            role: role(spec.kind),
        })
        .collect()
}
