//! Directions: what turns one gradient per tensor into one update per tensor.

use std::{borrow::Cow, ops::Range};

use tritrain_backend::{
    Admission, Apply, Backend, Descent, Format, Memory, Pace, REPORT, Stream, Values, Weight,
};

use crate::{
    DigitsKind, DirectionKind, OptimConfig, Report, ScheduleKind, SpikeKind, Spikes, Steer,
    average::Averages,
    clusters::Clusters,
    direction::{PartMut, Slot},
    prodigy::Distances,
};

/// Learning rate of gains, as a share of that of matrices. Larger shares trained worse.
const GAIN_SHARE: f32 = 1.0 / 16.0;

/// Learning rates of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of matrices, as a share of the root mean square of each.
    pub matrices: f32,
    /// Of embedding and head.
    pub embedding: f32,
    /// Trust region of matrices, see [`OptimConfig::radius`]; infinite for none.
    pub radius: f32,
}

/// What a tensor is to the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Matrix inside a block: the configured direction, a rate relative to its weights, weight decay.
    Matrix,
    /// Embedding, head or adapter: the same direction, an absolute rate of its own.
    Embedding,
    /// Gain of a norm: AdamW without decay, whatever the direction.
    Gain,
    /// It is not updated and has no state.
    Frozen,
}

/// One tensor to update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name, for the state's tensors.
    pub name: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// What it is.
    pub role: Role,
}

/// Why a saved state does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A tensor of the state is missing.
    #[error("the optimizer state lacks {name}; it was saved with another [optim] direction or momentum")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another size.
    #[error("the optimizer state's {name} holds {found} numbers, expected {expected}")]
    Length {
        /// Name of the tensor.
        name: String,
        /// Elements found.
        found: usize,
        /// Elements expected.
        expected: usize,
    },
    /// A tensor in few bits is damaged, or is stored in another format.
    #[error("the optimizer state's {name}: {reason}")]
    Stored {
        /// Name of the tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// A tensor of the state on its device.
pub enum Part<'a, B: Memory> {
    /// f32.
    Floats(&'a B::Floats),
    /// Few bits.
    Packed(&'a B::Packed),
    /// f32 on the host.
    Host(Vec<f32>),
}

/// The state of every tensor's direction.
pub struct Optimizer<B: Memory> {
    config: OptimConfig,
    parameters: Vec<Parameter>,
    slots: Vec<Slot<B>>,
    /// Of Prodigy.
    distances: Option<Distances<B>>,
    /// Of the free schedule.
    averages: Option<Averages<B>>,
    spikes: Spikes,
    /// By tensor, the largest norm of a gradient that is no spike, and what a spike is scaled to.
    limits: B::Floats,
    limits_here: Vec<f32>,
    /// What became of each gradient, and then of each direction: see [`Backend::admit`].
    gates: B::Floats,
    gates_here: Vec<f32>,
    seed: u64,
    /// Updates begun, for bias corrections, decay of the second moments and random numbers.
    updates: u64,
    /// Of the spike guard.
    admitted: Report,
    clusters: Clusters,
    /// By cluster, with room for the paces that come of it.
    steers: Vec<Steer>,
    paces: Vec<Pace>,
    /// Squares of the rows of a matrix, where they are measured: one for all, or, where work is queued, one for each.
    squares: Vec<B::Floats>,
    /// Reports of the rows of a matrix, likewise.
    reports: Vec<B::Floats>,
    /// Matrices whose reports have not been read, in the order in which they moved.
    moved: Vec<usize>,
}

/// Streams of random numbers, besides those of initial weights: of tensor `id` the stream `WHICH | id`.
const WEIGHT_NOISE: u32 = 1 << 30;
const MOMENT_NOISE: u32 = 1 << 31;
const GRADIENT_NOISE: u32 = WEIGHT_NOISE | MOMENT_NOISE;

impl<B: Memory> Optimizer<B> {
    /// Zero state for `parameters`, whose matrices are `ternary` or not. Rounding draws from `seed`.
    pub fn new(
        backend: &B,
        config: &OptimConfig,
        parameters: Vec<Parameter>,
        ternary: bool,
        seed: u64,
    ) -> Optimizer<B> {
        let mut config = config.clone();
        let averages = (config.schedule == ScheduleKind::Free).then(|| {
            // The mean of points takes the place of that of gradients.
            let kept = std::mem::replace(&mut config.beta1, 0.0);
            config.momentum = 0.0;
            Averages::new(backend, &parameters, kept)
        });
        let prodigy = config.direction == DirectionKind::Prodigy;
        let slots = parameters.iter().map(|parameter| Slot::new(backend, &config, parameter, ternary));
        let slots = slots.collect();
        let rows = |parameter: &Parameter| if parameter.role == Role::Matrix { parameter.rows } else { 0 };
        let most = parameters.iter().map(rows).max().unwrap_or(0);
        let apart = parameters.iter().filter(|_| backend.queues()).map(rows);
        let rows = apart.chain((!backend.queues()).then_some(most));
        let squares = rows.clone().map(|rows| if config.clusters > 1 { rows } else { 0 });
        let clusters = Clusters::new(&parameters, config.clusters);
        let count = parameters.len();
        Optimizer {
            slots,
            distances: prodigy.then(|| Distances::new(backend, &parameters)),
            averages,
            spikes: Spikes::new(count),
            limits: backend.floats(2 * count),
            limits_here: vec![0.0; 2 * count],
            gates: backend.floats(2 * count),
            gates_here: vec![0.0; 2 * count],
            seed,
            updates: 0,
            admitted: Report::default(),
            steers: vec![Steer::default(); clusters.count()],
            paces: Vec::with_capacity(clusters.count()),
            clusters,
            squares: squares.map(|rows| backend.floats(rows)).collect(),
            reports: rows.map(|rows| backend.floats(rows * REPORT)).collect(),
            moved: Vec::with_capacity(count),
            parameters,
            config,
        }
    }
}

impl<B: Backend> Optimizer<B> {
    /// Updates begun so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Begins an update: every tensor is then directed and applied, once each, in any order, and the update
    /// [ends](Optimizer::end). Those that nobody [judges](Optimizer::admit) move in any case.
    pub fn begin(&mut self, backend: &B) {
        let even = match self.config.latent.format() {
            Some(Format::Trits(even)) if self.config.digits == DigitsKind::Clusters => Some(even),
            _ => None,
        };
        self.clusters.begin(backend, self.updates, (&self.parameters, even));
        self.admitted = Report::default();
        self.updates += 1;
        for (id, limit) in self.limits_here.as_chunks_mut().0.iter_mut().enumerate() {
            *limit = self.spikes.limit(&self.config, id);
        }
        backend.upload(&self.limits_here, &mut self.limits);
        self.gates_here.fill(1.0);
        backend.upload(&self.gates_here, &mut self.gates);
        if let Some(distances) = &mut self.distances {
            distances.begin(backend, &self.config, self.updates == 1);
        }
    }

    /// Reads what the update did, together with other buffers: a device is waited for once.
    pub fn settle<'a>(&mut self, backend: &B, others: impl Iterator<Item = (&'a B::Floats, &'a mut [f32])>)
    where
        B::Floats: 'a,
    {
        let Optimizer { reports, squares, moved, clusters, parameters, updates, gates, gates_here, .. } =
            self;
        let (parameters, measured) = (&*parameters, clusters.measures(*updates));
        let room = |each: usize| -> Vec<Vec<f32>> {
            moved.iter().map(|id| vec![0.0; parameters[*id].rows * each]).collect()
        };
        let (mut reported, mut squared) = (room(REPORT), room(usize::from(measured)));
        let new = moved.iter().map(|id| &reports[*id]).zip(reported.iter_mut().map(|here| &mut here[..]));
        let new_squares =
            moved.iter().map(|id| &squares[*id]).zip(squared.iter_mut().map(|here| &mut here[..]));
        let new = new.chain(new_squares.filter(|_| measured)).chain([(&*gates, &mut gates_here[..])]);
        // Borrowed no longer than the reports.
        let others = others.map(|(device, here)| (device, &mut here[..]));
        backend.download_each(new.chain(others));
        for ((id, reports), squares) in moved.drain(..).zip(&reported).zip(&squared) {
            let cols = parameters[id].cols;
            if measured {
                clusters.gradient(id, squares, gates_here[id], cols);
            }
            if gates_here[parameters.len() + id] != 0.0 {
                clusters.applied(id, reports, cols, measured);
            }
        }
    }

    /// Ends an update: where digits of rows were suggested when it began, packed matrices among `weights` take them,
    /// each number rounded to the nearest level. Returns the norm of what that changed, a share of the norm of the
    /// weights of matrices before the update. It is no part of the step, and the trust region does not bound it.
    pub fn end(&mut self, backend: &B, weights: &mut [Weight<B>]) -> Option<f32> {
        if !self.moved.is_empty() {
            // The update was left before it was settled.
            self.settle(backend, std::iter::empty());
        }
        let mut moved = None;
        for (id, weight) in weights.iter_mut().enumerate() {
            if let (Weight::Packed(packed), Some(digits)) = (weight, self.clusters.digits(id)) {
                *moved.get_or_insert(0.0) += backend.set_digits(packed, digits);
            }
        }
        self.clusters.taken();
        let norm = self.report().weights;
        moved.map(|moved: f64| if norm > 0.0 { (moved / norm).sqrt() as f32 } else { 0.0 })
    }

    /// Makes `weights` those to train with; whether that changed any.
    pub fn wake(&mut self, backend: &B, weights: &mut [Weight<B>]) -> bool {
        let first = self.updates == 0;
        self.averages.as_mut().is_some_and(|averages| averages.wake(backend, first, weights))
    }

    /// Makes `weights` those to use and to save, as long as no update begins; whether that changed any.
    pub fn rest(&mut self, backend: &B, weights: &mut [Weight<B>]) -> bool {
        self.averages.as_mut().is_some_and(|averages| averages.rest(backend, weights))
    }

    /// What [`Optimizer::admit`] and [`Optimizer::apply`] did since the update began, as far as it was
    /// [read](Optimizer::settle).
    pub fn report(&self) -> Report {
        self.reports().iter().fold(self.admitted, Report::with)
    }

    /// What [`Optimizer::apply`] did to matrices, by cluster of rows.
    pub fn reports(&self) -> &[Report] {
        self.clusters.reports()
    }

    /// How the rows of each cluster move.
    pub fn steers(&self) -> &[Steer] {
        &self.steers
    }

    /// How the rows of each cluster move from now on.
    ///
    /// # Panics
    /// There are more or fewer of them than clusters.
    pub fn steer(&mut self, by_cluster: &[Steer]) {
        self.steers.copy_from_slice(by_cluster);
    }

    /// Random numbers for storing the gradient of tensor `id` in few bits, in one of the passes of a step.
    pub fn gradient_noise(&self, id: usize, pass: usize) -> Stream {
        Stream::new(self.seed, GRADIENT_NOISE | id as u32, self.updates + ((pass as u64) << 32))
    }

    /// Whether a gradient that is not finite concerns its tensor alone.
    pub fn guards(&self) -> bool {
        self.config.spike != SpikeKind::Off
    }

    /// Decides which of some `tensors` move in this update, and by how much gradients that are spikes are to be scaled:
    /// by the `statistics` of the step, which has their squares multiplied by `share`.
    pub fn admit(
        &mut self,
        backend: &B,
        statistics: &B::Floats,
        (loss, squares, share): (usize, usize, f32),
        tensors: Range<usize>,
    ) {
        let with = Admission { loss, squares, share, alone: self.guards(), tensors };
        backend.admit(statistics, &self.limits, &with, &mut self.gates);
    }

    /// Decides whether some `tensors` take the step that they are directed to: not where the norm of all directions,
    /// the root of `statistics[at]`, is not finite, times `rate`.
    pub fn approve(
        &mut self,
        backend: &B,
        statistics: (&B::Floats, usize),
        rate: f32,
        tensors: Range<usize>,
    ) {
        backend.approve(statistics, rate, tensors, &mut self.gates);
    }

    /// Does `work` where tensor `id` has a direction; see [`Backend::when`].
    pub fn when_admitted(&self, backend: &B, id: usize, work: impl FnOnce(&B)) {
        backend.when(&self.gates, id, work);
    }

    /// Does `work` where tensor `id` takes its step; see [`Backend::when`].
    pub fn when_approved(&self, backend: &B, id: usize, work: impl FnOnce(&B)) {
        backend.when(&self.gates, self.parameters.len() + id, work);
    }

    /// Notes what became of the gradients of the update, by their norms, when it is [settled](Optimizer::settle).
    pub fn admitted(&mut self, norm: impl Fn(usize) -> f32) {
        for (id, parameter) in self.parameters.iter().enumerate() {
            if parameter.role != Role::Frozen {
                let whole = self.gates_here[id] == 1.0;
                self.admitted.tensors += 1.0;
                self.admitted.clipped += f64::from(!whole);
                self.spikes.take(&self.config, id, norm(id), whole);
            }
        }
    }

    /// The state of the spike guard, for a checkpoint.
    pub fn spikes(&self) -> &Spikes {
        &self.spikes
    }

    /// Takes the state of the spike guard from a checkpoint.
    ///
    /// # Errors
    /// It belongs to another number of tensors.
    pub fn restore_spikes(&mut self, spikes: Spikes) -> Result<(), StateError> {
        let (expected, found) = (self.spikes.len(), spikes.len());
        if expected != found {
            return Err(StateError::Length { name: "spikes".into(), found, expected });
        }
        self.spikes = spikes;
        Ok(())
    }

    /// Turns the gradient of tensor `id` at `weight` into its direction, in place.
    ///
    /// # Panics
    /// There is no such tensor, or no update began.
    pub fn direct(&mut self, backend: &B, id: usize, weight: &Weight<B>, grad: &mut B::Floats, rates: Rates) {
        let step = self.updates;
        assert!(step > 0, "an update begins before its directions");
        let Optimizer { parameters, clusters, slots, distances, gates, squares, config, .. } = self;
        let parameter = &parameters[id];
        if parameter.role == Role::Matrix && clusters.measures(step) {
            let squares = &mut squares[if backend.queues() { id } else { 0 }];
            backend.resize(squares, parameter.rows);
            backend.square_sums(grad, squares);
            if !backend.queues() {
                clusters.gradient(id, &backend.host(squares), backend.host(gates)[id], parameter.cols);
            }
        }
        if let (Some(distances), true) = (&mut *distances, step == 1) {
            distances.start(backend, id, weight);
        }
        let noise = Stream::new(self.seed, MOMENT_NOISE | id as u32, step);
        backend.when_scaled(gates, id, grad, |backend, grad| match distances {
            Some(distances) => distances.direct(backend, config, (id, weight), rates.matrices, grad),
            None => slots[id].direct(backend, config, parameter.rows, (step, noise), grad),
        });
    }

    /// Moves tensor `id` against its direction.
    ///
    /// # Panics
    /// There is no such tensor, or the sizes do not fit together.
    pub fn apply(
        &mut self,
        backend: &B,
        id: usize,
        weight: &mut Weight<B>,
        direction: &B::Floats,
        rates: Rates,
    ) {
        let update = (self.updates, rates.matrices);
        // While a point moves, it is where the weights are.
        match self.averages.take() {
            Some(mut averages) => {
                averages.follow(id, weight, update, |point| self.step(backend, id, point, direction, rates));
                self.when_approved(backend, id, |backend| averages.average(backend, id, weight));
                self.averages = Some(averages);
            }
            None => self.step(backend, id, weight, direction, rates),
        }
    }

    fn step(&mut self, backend: &B, id: usize, weight: &mut Weight<B>, direction: &B::Floats, rates: Rates) {
        let (parameter, decay) = (&self.parameters[id], self.config.weight_decay);
        let with = match parameter.role {
            _ if self.distances.is_some() => {
                let decay = if parameter.role == Role::Gain { 0.0 } else { decay };
                Apply { rate: rates.matrices, decay }
            }
            Role::Matrix => {
                let pace = |steer: &Steer| Pace {
                    rate: rates.matrices * steer.rate,
                    radius: rates.radius * steer.radius,
                };
                self.paces.clear();
                self.paces.extend(self.steers.iter().map(pace));
                let stream = |which: u32| Stream::new(self.seed, which | id as u32, self.updates);
                let noise = (stream(WEIGHT_NOISE), stream(MOMENT_NOISE));
                let momentum = self.config.momentum;
                let clusters = self.clusters.labels(id);
                let with = Descent { paces: &self.paces, clusters, decay, momentum, noise };
                let measured = self.clusters.measures(self.updates);
                let (queues, len) = (backend.queues(), parameter.rows * REPORT);
                let reports = &mut self.reports[if queues { id } else { 0 }];
                backend.resize(reports, len);
                let at = self.parameters.len() + id;
                let moment = self.slots[id].late_moment();
                let descend = |backend: &B| backend.descend(weight, direction, moment, &with, reports);
                backend.when(&self.gates, at, descend);
                if queues {
                    self.moved.push(id);
                } else if backend.host(&self.gates)[at] != 0.0 {
                    self.clusters.applied(id, &backend.host(reports), parameter.cols, measured);
                }
                return;
            }
            Role::Embedding => Apply { rate: rates.embedding, decay },
            Role::Gain => Apply { rate: rates.matrices * GAIN_SHARE, decay: 0.0 },
            Role::Frozen => return,
        };
        self.when_approved(backend, id, |backend| backend.apply(weight.floats_mut(), direction, with));
    }

    /// Parts of the state that belong to no direction of a tensor.
    fn shared_parts(&self) -> Vec<(String, [usize; 2], Part<'_, B>)> {
        let distances = self.distances.as_ref().map(|distances| distances.parts(&self.parameters));
        let averages = self.averages.as_ref().map(|averages| averages.parts(&self.parameters));
        distances.into_iter().chain(averages).flatten().collect()
    }

    /// Names, shapes and places of the state, for a checkpoint; at rest.
    pub fn state(&self) -> Vec<(String, [usize; 2], Part<'_, B>)> {
        let tensors = self.parameters.iter().zip(&self.slots).flat_map(|(parameter, slot)| {
            let parts = slot.parts(parameter.rows, parameter.cols);
            parts.into_iter().map(|(part, shape, place)| (format!("{}.{part}", parameter.name), shape, place))
        });
        let clusters = self.clusters.state().into_iter();
        let clusters = clusters.map(|(name, shape, values)| (name.to_owned(), shape, Part::Host(values)));
        tensors.chain(self.shared_parts()).chain(clusters).collect()
    }

    /// Restores a state after `updates` updates; `read` gives the tensor of a name.
    ///
    /// # Errors
    /// A tensor is missing, is stored otherwise or has another size; the state is then partly restored and not
    /// to be used.
    pub fn restore<'a>(
        &mut self,
        backend: &B,
        updates: u64,
        read: impl Fn(&str) -> Option<Values<'a>>,
    ) -> Result<(), StateError> {
        self.updates = updates;
        for (parameter, slot) in self.parameters.iter().zip(&mut self.slots) {
            let named = |(part, [rows, cols], _): (&str, [usize; 2], _)| {
                (format!("{}.{part}", parameter.name), rows * cols)
            };
            let names: Vec<_> = slot.parts(parameter.rows, parameter.cols).into_iter().map(named).collect();
            for ((name, expected), place) in names.into_iter().zip(slot.places()) {
                match (read(&name), place) {
                    (found @ Some(Values::Floats(_)), PartMut::Floats(buffer)) => {
                        backend.upload(&floats(found, name, expected)?, buffer);
                    }
                    (Some(Values::Packed(stored)), PartMut::Packed(moment)) => backend
                        .restore(&stored, moment)
                        .map_err(|reason| StateError::Stored { name, reason })?,
                    _ => return Err(StateError::Missing { name }),
                }
            }
        }
        let named = self.shared_parts().into_iter().map(|(name, [rows, cols], _)| (name, rows * cols));
        let named: Vec<_> = named.collect();
        let places = self.distances.iter_mut().flat_map(Distances::places);
        let places = places.chain(self.averages.iter_mut().flat_map(Averages::places));
        for ((name, expected), place) in named.into_iter().zip(places) {
            let found = read(&name);
            backend.upload(&floats(found, name, expected)?, place);
        }
        for (name, [rows, cols], _) in self.clusters.state() {
            let host = floats(read(name), name.to_owned(), rows * cols)?;
            self.clusters.restore(name, &host);
        }
        Ok(())
    }
}

/// The numbers of a tensor of the state that has `expected` of them in f32.
fn floats(found: Option<Values<'_>>, name: String, expected: usize) -> Result<Cow<'_, [f32]>, StateError> {
    match found {
        Some(Values::Floats(host)) if host.len() == expected => Ok(host),
        Some(Values::Floats(host)) => Err(StateError::Length { name, found: host.len(), expected }),
        Some(_) | None => Err(StateError::Missing { name }),
    }
}
