//! Gradients on their way from the model to the optimizer: where they are kept, added up and measured.

use tritrain_backend::{Apply, Backend, Format, Memory, Weight};
use tritrain_model::{Layout, Sink, TensorKind, TensorSpec};
use tritrain_optim::{GradientKind, Optimizer, Rates, Skip};

/// Places in the buffer that a step reads back.
const LOSS: usize = 0;
const DIRECTION: usize = 1;
/// Products of gradients with weights, before the step and after it.
const BEFORE: usize = 2;
const AFTER: usize = 3;
/// How far relations were from those that are learnt, all passes together.
const RELATIONS: usize = 4;
/// The square of the gradient of the first tensor, then of the others.
const GRADIENTS: usize = 5;

/// Gradients until they are applied.
pub(crate) struct Gradients<B: Memory> {
    /// Where those of matrices are kept: in f32 unless the model is ternary.
    pub(super) kind: GradientKind,
    /// Passes that gradients are the mean of.
    pub(super) passes: usize,
    /// With several passes, by tensor, of tensors that are no matrices: the gradient of the pass at hand.
    pass: Vec<B::Floats>,
    /// Whether this step is compared with what its gradient predicts.
    pub(super) watched: bool,
    /// Gradients as they were, for that: by tensor, and of the matrix at hand; and its weights in f32.
    were: Vec<B::Floats>,
    was: B::Floats,
    unpacked: B::Floats,
    /// By tensor; without numbers for matrices that are kept otherwise.
    floats: Vec<B::Floats>,
    /// The tensors whose gradients lie there.
    own: Vec<usize>,
    /// By tensor, of matrices that are kept in few bits.
    packed: Vec<Option<B::Packed>>,
    /// That of the matrix at hand, where matrices have no place of their own, or one for all passes.
    shared: B::Floats,
    /// Numbers of every matrix, none for other tensors.
    matrices: Vec<Option<usize>>,
    /// The loss, and squares of directions and gradients: the optimizer's guards go by them where they lie.
    statistics: B::Floats,
    /// The same as last read back.
    here: Vec<f32>,
    /// What the gradients of the next step are multiplied by, to disturb it.
    pub(super) fault: f32,
}

impl<B: Memory> Gradients<B> {
    /// Room for gradients that are means of some passes, and for what it takes to watch steps.
    pub(crate) fn new(
        backend: &B,
        layout: &Layout,
        kind: GradientKind,
        (passes, watches): (usize, bool),
    ) -> Gradients<B> {
        let kind = if layout.ternary && layout.adapters.is_empty() { kind } else { GradientKind::F32 };
        // Beside adapters nothing else has gradients; gains have room for those that the model makes on the way.
        let frozen = !layout.adapters.is_empty();
        let is_matrix = |spec: &TensorSpec| spec.kind == TensorKind::Matrix && !frozen;
        let trains = |spec: &TensorSpec| !frozen || spec.kind == TensorKind::Adapter;
        let is_own = |spec: &TensorSpec| trains(spec) && (!is_matrix(spec) || kind == GradientKind::F32);
        let has_room = |spec: &TensorSpec| is_own(spec) || frozen && spec.kind == TensorKind::Norm;
        let specs = &layout.specs;
        let packed = specs.iter().map(|spec| {
            let stored = is_matrix(spec) && kind == GradientKind::Trits;
            stored.then(|| backend.packed(counts(passes), spec.rows, spec.cols, true))
        });
        let several = passes > 1;
        let shares = |spec: &&TensorSpec| is_matrix(spec) && (several || !is_own(spec));
        let largest = specs.iter().filter(shares).map(TensorSpec::len).max();
        let apart = specs
            .iter()
            .map(|spec| if several && !is_matrix(spec) && has_room(spec) { spec.len() } else { 0 });
        let sizes = specs.iter().map(|spec| if has_room(spec) { spec.len() } else { 0 });
        let seen = |len: usize| if watches { len } else { 0 };
        let most = specs.iter().filter(|spec| is_matrix(spec)).map(TensorSpec::len).max().unwrap_or(0);
        let most_shared = if kind == GradientKind::F32 { 0 } else { most };
        Gradients {
            kind,
            passes,
            pass: apart.map(|len| backend.floats(len)).collect(),
            watched: false,
            were: sizes.clone().map(|len| backend.floats(seen(len))).collect(),
            was: backend.floats(seen(most_shared)),
            unpacked: backend.floats(seen(most)),
            floats: sizes.map(|len| backend.floats(len)).collect(),
            own: (0..specs.len()).filter(|id| is_own(&specs[*id])).collect(),
            packed: packed.collect(),
            shared: backend.floats(largest.unwrap_or(0)),
            matrices: specs.iter().map(|spec| is_matrix(spec).then(|| spec.len())).collect(),
            statistics: backend.floats(GRADIENTS + specs.len()),
            here: vec![0.0; GRADIENTS + specs.len()],
            fault: 1.0,
        }
    }
}

impl<B: Backend> Gradients<B> {
    /// Begins a step.
    pub(super) fn begin(&mut self, backend: &B) {
        backend.clear(&mut self.statistics);
    }

    /// Sum of the losses of all tokens, as read.
    pub(super) fn loss(&self) -> f32 {
        self.here[LOSS]
    }

    /// What the step takes off the loss by the gradient, as read.
    pub(super) fn predicted(&self) -> f64 {
        f64::from(self.here[BEFORE]) - f64::from(self.here[AFTER])
    }

    /// Norm of all directions that were read.
    pub(super) fn direction_norm(&self) -> f32 {
        self.here[DIRECTION].sqrt()
    }

    /// Waits for the statistics.
    pub(super) fn read(&mut self, backend: &B) {
        backend.download(&self.statistics, &mut self.here);
        self.take();
    }

    /// The statistics, to be read together with other buffers; they are [taken](Gradients::take) after that.
    pub(super) fn reading(&mut self) -> (&B::Floats, &mut [f32]) {
        (&self.statistics, &mut self.here)
    }

    /// Takes statistics as they were read.
    pub(super) fn take(&mut self) {
        if self.passes > 1 {
            // Squares of each pass were added up: their mean stands for that of the mean gradient.
            let squares =
                self.here[GRADIENTS..].iter_mut().zip(&self.packed).filter(|(_, packed)| packed.is_some());
            squares.for_each(|(square, _)| *square /= self.passes as f32);
        }
    }

    /// Adds the losses of the tokens of a pass to those before.
    pub(super) fn add_losses(&mut self, backend: &B, losses: &B::Floats) {
        backend.add_sum(losses, &mut self.statistics, LOSS);
    }

    /// Adds the divergences of all passes.
    pub(super) fn add_relations(&mut self, backend: &B, sum: &B::Floats) {
        backend.add_sum(sum, &mut self.statistics, RELATIONS);
    }

    /// Mean divergence over passes, as read.
    pub(super) fn relations(&self) -> f32 {
        self.here[RELATIONS] / self.passes as f32
    }

    /// `mean += part / passes` for a gradient of pass `pass`.
    fn add(&mut self, backend: &B, pass: usize, id: usize, is_matrix: bool) {
        let (mean, part) = (&mut self.floats[id], if is_matrix { &self.shared } else { &self.pass[id] });
        if pass == 0 {
            backend.clear(mean);
        }
        backend.apply(mean, part, Apply { rate: -1.0 / self.passes as f32, decay: 0.0 });
    }

    /// Takes what a pass leaves of gradients of tensors that are no matrices.
    pub(super) fn gather(&mut self, backend: &B, pass: usize) {
        if self.passes > 1 {
            for at in 0..self.own.len() {
                let id = self.own[at];
                if self.matrices[id].is_none() {
                    self.add(backend, pass, id, false);
                }
            }
        }
    }

    /// Norm of all gradients that were read; with `finite`, of the finite ones, if there are any.
    pub(super) fn norm(&self, finite: bool) -> f32 {
        let squares = self.here[GRADIENTS..].iter().map(|square| f64::from(*square));
        let all: f64 = squares.clone().sum();
        if all.is_finite() || !finite || squares.clone().all(|square| !square.is_finite()) {
            return all.sqrt() as f32;
        }
        squares.filter(|square| square.is_finite()).sum::<f64>().sqrt() as f32
    }

    /// Directs and applies the matrix `id`, whose gradient is the shared one, as far as guards let it.
    fn move_shared(
        &mut self,
        backend: &B,
        optimizer: &mut Optimizer<B>,
        id: usize,
        weight: &mut Weight<B>,
        rates: Rates,
    ) {
        // Squares of each pass were added up: their mean stands for that of the mean gradient.
        let share = if self.packed[id].is_some() { 1.0 / self.passes as f32 } else { 1.0 };
        optimizer.admit(backend, &self.statistics, (LOSS, GRADIENTS, share), id..id + 1);
        if self.watched {
            backend.resize(&mut self.was, self.matrices[id].unwrap_or_default());
            backend.copy(&self.shared, &mut self.was);
            optimizer
                .when_admitted(backend, id, |backend| self.multiply(backend, (id, true), weight, BEFORE));
        }
        optimizer.direct(backend, id, weight, &mut self.shared, rates);
        let statistics = &mut self.statistics;
        let add = |backend: &B| backend.add_sum_squares(&self.shared, statistics, DIRECTION);
        optimizer.when_admitted(backend, id, add);
        optimizer.approve(backend, (&self.statistics, DIRECTION), rates.matrices, id..id + 1);
        optimizer.apply(backend, id, weight, &self.shared, rates);
        if self.watched {
            optimizer.when_approved(backend, id, |backend| self.multiply(backend, (id, true), weight, AFTER));
        }
    }

    /// Adds the product of the gradient of tensor `id`, as it was, with its weights to the statistics.
    fn multiply(&mut self, backend: &B, (id, is_shared): (usize, bool), weight: &Weight<B>, at: usize) {
        let was = if is_shared { &self.was } else { &self.were[id] };
        let weight = match weight {
            Weight::Floats(floats) => floats,
            Weight::Packed(packed) => {
                backend.resize(&mut self.unpacked, self.matrices[id].unwrap_or_default());
                backend.unpack(packed, &mut self.unpacked);
                &self.unpacked
            }
        };
        backend.add_dot(was, weight, &mut self.statistics, at);
    }

    /// Applies what is left of a step, as far as guards let it.
    pub(super) fn finish(
        &mut self,
        backend: &B,
        optimizer: &mut Optimizer<B>,
        weights: &mut [Weight<B>],
        rates: Rates,
    ) {
        for &id in &self.own {
            disturb(backend, &mut self.floats[id], self.fault);
            backend.add_sum_squares(&self.floats[id], &mut self.statistics, GRADIENTS + id);
        }
        if self.kind != GradientKind::None {
            optimizer.begin(backend);
        }
        let all = 0..weights.len();
        optimizer.admit(backend, &self.statistics, (LOSS, GRADIENTS, 1.0), all.clone());
        for (id, weight) in weights.iter_mut().enumerate() {
            if let (Some(packed), Some(len)) = (&self.packed[id], self.matrices[id]) {
                backend.resize(&mut self.shared, len);
                backend.unpack(packed, &mut self.shared);
                if self.passes > 1 {
                    backend.scale(&mut self.shared, 1.0 / self.passes as f32);
                }
                self.move_shared(backend, optimizer, id, weight, rates);
            }
        }
        for at in 0..self.own.len() {
            let id = self.own[at];
            if self.watched {
                backend.copy(&self.floats[id], &mut self.were[id]);
                let weight = &weights[id];
                optimizer.when_admitted(backend, id, |backend| {
                    self.multiply(backend, (id, false), weight, BEFORE)
                });
            }
            optimizer.direct(backend, id, &weights[id], &mut self.floats[id], rates);
            let (direction, statistics) = (&self.floats[id], &mut self.statistics);
            let add = |backend: &B| backend.add_sum_squares(direction, statistics, DIRECTION);
            optimizer.when_admitted(backend, id, add);
        }
        let rate = rates.matrices.max(rates.embedding);
        optimizer.approve(backend, (&self.statistics, DIRECTION), rate, all);
        for at in 0..self.own.len() {
            let id = self.own[at];
            optimizer.apply(backend, id, &mut weights[id], &self.floats[id], rates);
            if self.watched {
                let weight = &weights[id];
                optimizer
                    .when_approved(backend, id, |backend| self.multiply(backend, (id, false), weight, AFTER));
            }
        }
    }

    /// What the guards made of the step, by what was read.
    ///
    /// # Errors
    /// Names what is not finite.
    pub(super) fn judge(&self, optimizer: &mut Optimizer<B>, rates: Rates) -> Result<(), Skip> {
        finite(self.loss(), Skip::Loss)?;
        finite(self.norm(optimizer.guards()), Skip::GradientNorm)?;
        optimizer.admitted(|id| self.here[GRADIENTS + id].sqrt());
        finite(self.direction_norm() * rates.matrices.max(rates.embedding), Skip::UpdateNorm)
    }
}

/// Gradients on their way from the model.
pub(super) struct Gathering<'a, B: Backend> {
    pub(super) gradients: &'a mut Gradients<B>,
    pub(super) optimizer: &'a mut Optimizer<B>,
    pub(super) rates: Rates,
    pub(super) pass: usize,
}

impl<B: Backend> Sink<B> for Gathering<'_, B> {
    fn buffer(&mut self, backend: &B, id: usize) -> &mut B::Floats {
        let gradients = &mut *self.gradients;
        match gradients.matrices[id] {
            Some(len) if gradients.kind != GradientKind::F32 || gradients.passes > 1 => {
                backend.resize(&mut gradients.shared, len);
                &mut gradients.shared
            }
            None if gradients.passes > 1 => &mut gradients.pass[id],
            _ => &mut gradients.floats[id],
        }
    }

    fn complete(&mut self, backend: &B, id: usize, weight: &mut Weight<B>) {
        let Gathering { gradients, optimizer, rates, pass } = self;
        let several = gradients.passes > 1;
        if gradients.kind == GradientKind::F32 {
            if several {
                gradients.add(backend, *pass, id, true);
            }
            return;
        }
        disturb(backend, &mut gradients.shared, gradients.fault);
        backend.add_sum_squares(&gradients.shared, &mut gradients.statistics, GRADIENTS + id);
        if let Some(packed) = &mut gradients.packed[id] {
            let noise = optimizer.gradient_noise(id, *pass);
            backend.accumulate(&gradients.shared, &noise, *pass == 0, packed);
            return;
        }
        gradients.move_shared(backend, optimizer, id, weight, *rates);
    }
}

/// Passes whose gradients can be counted in digits.
pub(crate) const MOST_PASSES: usize = 121;

/// Digits that count as many steps up or down.
fn counts(passes: usize) -> Format {
    let enough = (1..5).find(|digits| 3usize.pow(*digits) > 2 * passes);
    Format::Trits(enough.unwrap_or(5) as u8)
}

/// Multiplies a gradient where its step is disturbed.
fn disturb<B: Backend>(backend: &B, gradient: &mut B::Floats, factor: f32) {
    if factor != 1.0 {
        backend.scale(gradient, factor);
    }
}

fn finite(value: f32, what: Skip) -> Result<(), Skip> {
    if value.is_finite() { Ok(()) } else { Err(what) }
}
