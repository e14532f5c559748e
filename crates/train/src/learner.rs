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
const DIRECTION: usize = 1;
/// The square of the gradient of the first tensor, then of the others.
const GRADIENTS: usize = 2;

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
    /// gradient that is not finite have changed by then. With a spike guard, a gradient that is not finite only
    /// leaves its tensor as it is, unless all of them are.
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
            gathering.gradients.read(backend);
            finite(gathering.gradients.here[LOSS], Skip::Loss)?;
            gathering.optimizer.begin(backend);
        }
        model.block_gradients(backend, activations, &mut gathering);
        let loss = self.gradients.finish(backend, &mut self.optimizer, self.model.weights_mut(), rates);
        // Also where the step is left: some matrices may have moved.
        self.model.refresh(backend);
        let loss = loss? / inputs.len() as f32;
        self.gradients.read(backend);
        let gradient_norm = self.gradients.norm(self.optimizer.guards());
        let direction_norm = self.gradients.here[DIRECTION].sqrt();
        Ok(Measured { loss, gradient_norm, direction_norm, report: self.optimizer.report() })
    }

    /// Multiplies the gradients of the steps to come.
    #[cfg(test)]
    pub(crate) fn disturb(&mut self, factor: f32) {
        self.gradients.fault = factor;
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
    /// Tensors that stay as they are in this step.
    left: Vec<bool>,
    /// The loss, and squares of directions and gradients.
    statistics: B::Floats,
    /// The same as last read back.
    here: Vec<f32>,
    /// What tests multiply the gradients of the next step by.
    #[cfg(test)]
    fault: f32,
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
            left: vec![false; specs.len()],
            statistics: backend.floats(GRADIENTS + specs.len()),
            here: vec![0.0; GRADIENTS + specs.len()],
            #[cfg(test)]
            fault: 1.0,
        }
    }
}

impl<B: Backend> Gradients<B> {
    /// Waits for the statistics.
    fn read(&mut self, backend: &B) {
        backend.download(&self.statistics, &mut self.here);
    }

    /// Norm of all gradients that were read; with `finite`, of the finite ones, if there are any.
    fn norm(&self, finite: bool) -> f32 {
        let squares = self.here[GRADIENTS..].iter().map(|square| f64::from(*square));
        let all: f64 = squares.clone().sum();
        if all.is_finite() || !finite || squares.clone().all(|square| !square.is_finite()) {
            return all.sqrt() as f32;
        }
        squares.filter(|square| square.is_finite()).sum::<f64>().sqrt() as f32
    }

    /// Directs and applies the matrix `id`, whose gradient is the shared one and its norm read; not where it is
    /// not finite.
    fn move_shared(
        &mut self,
        backend: &B,
        optimizer: &mut Optimizer<B>,
        id: usize,
        weight: &mut Weight<B>,
        rates: Rates,
    ) {
        if !optimizer.admit(backend, id, self.here[GRADIENTS + id].sqrt(), &mut self.shared) {
            return;
        }
        optimizer.direct(backend, id, &mut self.shared);
        backend.add_sum_squares(&self.shared, &mut self.statistics, DIRECTION);
        self.read(backend);
        if finite(self.here[DIRECTION] * rates.matrices, Skip::UpdateNorm).is_ok() {
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
            #[cfg(test)]
            backend.scale(&mut self.floats[id], self.fault);
            backend.add_sum_squares(&self.floats[id], &mut self.statistics, GRADIENTS + id);
        }
        self.read(backend);
        let loss = self.here[LOSS];
        finite(loss, Skip::Loss)?;
        finite(self.norm(optimizer.guards()), Skip::GradientNorm)?;
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
            let norm = self.here[GRADIENTS + id].sqrt();
            self.left[id] = !optimizer.admit(backend, id, norm, &mut self.floats[id]);
            if !self.left[id] {
                optimizer.direct(backend, id, &mut self.floats[id]);
                backend.add_sum_squares(&self.floats[id], &mut self.statistics, DIRECTION);
            }
        }
        self.read(backend);
        let direction = self.here[DIRECTION].sqrt();
        finite(direction * rates.matrices.max(rates.embedding), Skip::UpdateNorm)?;
        for &id in &self.own {
            if !self.left[id] {
                optimizer.apply(backend, id, &mut weights[id], &self.floats[id], rates);
            }
        }
        Ok(loss)
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
        #[cfg(test)]
        backend.scale(&mut gradients.shared, gradients.fault);
        backend.add_sum_squares(&gradients.shared, &mut gradients.statistics, GRADIENTS + id);
        if let Some(packed) = &mut gradients.packed[id] {
            backend.round(&gradients.shared, &optimizer.gradient_noise(id), packed);
            return;
        }
        gradients.read(backend);
        if gradients.norm(optimizer.guards()).is_finite() {
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

#[cfg(test)]
mod tests {
    //! The spike guard, on faults that are put into the gradients.
    use tritrain_backend::{Cpu, Stream};
    use tritrain_model::initial_tensor;
    use tritrain_optim::{SpikeKind, StorageKind};

    use super::*;

    const VOCAB: usize = 64;
    const BATCH: usize = 4;
    const STEPS: u64 = 400;

    /// What happens to a step.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        None,
        Noise,
        Gradient(f32),
    }

    fn learner(backend: &Cpu, config: &ModelConfig, optim: &OptimConfig) -> Learner<Cpu> {
        let layout = Layout::new(config, VOCAB);
        let weights = |id: usize| Values::Floats(initial_tensor(config, &layout, 1, id).into());
        let setup = Setup { vocab: VOCAB, batch: BATCH, recompute: false, seed: 1 };
        Learner::new(backend, config, optim, setup, &weights)
    }

    /// A chain of tokens, each the next of the one before in four of five cases; or noise.
    fn tokens(step: u64, count: usize, noise: bool) -> Vec<u32> {
        let random = Stream::new(7, 1, step);
        let mut last = 0;
        let next = (0..count as u64).map(|at| {
            let [draw, free, ..] = random.block(at);
            last = if noise || draw % 5 == 0 { free % VOCAB as u32 } else { (last * 5 + 3) % VOCAB as u32 };
            last
        });
        next.collect()
    }

    /// Mean loss of the last steps, and the largest share of tensors that was clipped.
    fn run(optim: &OptimConfig, fault: impl Fn(u64) -> Fault) -> (f64, f64) {
        let config =
            ModelConfig { layers: 1, heads: 4, kv_heads: 4, ffn: 256, context: 32, ..ModelConfig::default() };
        let backend = Cpu::new(1).unwrap();
        let mut learner = learner(&backend, &config, optim);
        let (mut last, mut clipped) = (0.0, 0.0f64);
        const LAST: u64 = 40;
        for step in 0..STEPS {
            let fault = fault(step);
            let all = tokens(step, BATCH * config.context + 1, fault == Fault::Noise);
            learner.disturb(if let Fault::Gradient(factor) = fault { factor } else { 1.0 });
            let share = 1.0 - step as f32 / STEPS as f32;
            let rates =
                Rates { matrices: optim.rate * share, embedding: 4e-3 * share, radius: f32::INFINITY };
            let (inputs, targets) = (&all[..all.len() - 1], &all[1..]);
            match learner.step(&backend, inputs, targets, rates) {
                Ok(measured) => {
                    clipped = clipped.max(measured.report.clipped_share());
                    last += if step >= STEPS - LAST { f64::from(measured.loss) / LAST as f64 } else { 0.0 };
                }
                Err(skip) => assert!(skip == Skip::GradientNorm && !matches!(fault, Fault::None)),
            }
        }
        for id in 0..learner.model.layout().specs.len() {
            let spec = &learner.model.layout().specs[id];
            let values = learner.model.values(&backend, id);
            let finite = values.numbers(&backend, spec.rows, spec.cols).iter().all(|w| w.is_finite());
            assert!(finite, "{}", spec.name);
        }
        (last, clipped)
    }

    /// One batch of a hundred is noise, and as many gradients are a thousand times too large.
    fn faults(step: u64) -> Fault {
        match step {
            60 | 150 | 230 | 310 => Fault::Noise,
            45 | 120 | 200 | 330 => Fault::Gradient(1e3),
            _ => Fault::None,
        }
    }

    #[test]
    fn clipped_spikes_cost_less_than_a_hundredth_of_the_loss() {
        let low = OptimConfig {
            latent: StorageKind::Trits4,
            gradient: GradientKind::None,
            ..OptimConfig::default()
        };
        for optim in [OptimConfig::default(), low] {
            let of = |spike| OptimConfig { spike, ..optim.clone() };
            let (undisturbed, _) = run(&of(SpikeKind::Off), |_| Fault::None);
            let (unguarded, _) = run(&of(SpikeKind::Off), faults);
            for spike in [SpikeKind::Clip, SpikeKind::Skip] {
                let (loss, clipped) = run(&of(spike), faults);
                println!("{spike:?}: {undisturbed} undisturbed, {loss} guarded, {unguarded} unguarded");
                assert!(loss < 1.01 * undisturbed, "{spike:?}: {loss}, undisturbed {undisturbed}");
                assert!(loss < unguarded, "{spike:?}: {loss}, unguarded {unguarded}");
                assert!(clipped > 0.9, "{clipped} of the tensors at most");
            }
        }
    }

    #[test]
    fn gradients_that_are_not_finite_move_nothing() {
        for gradient in [GradientKind::F32, GradientKind::Trits, GradientKind::None] {
            let optim = OptimConfig { gradient, ..OptimConfig::default() };
            let broken = |step| if step % 50 == 30 { Fault::Gradient(f32::NAN) } else { Fault::None };
            let (loss, _) = run(&optim, broken);
            let (undisturbed, _) = run(&optim, |_| Fault::None);
            assert!(loss < 1.01 * undisturbed, "{gradient:?}: {loss}, undisturbed {undisturbed}");
        }
    }
}
