//! The training loop.

mod back;
mod disturbance;
mod event;
mod losses;

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Map, Value, json};
use tritrain_backend::{Backend, Values};
use tritrain_data::{BatchPlan, Corpus, ValidationSet, Window};
use tritrain_files::{
    Storage,
    checkpoint::{self, Checkpoint, Identity},
    metrics::{self, Log},
    write_atomic,
};
use tritrain_model::{Layout, Model, Sampling, TensorKind, counted, initial_tensor};
use tritrain_optim::{Controller, Guard, Skip, Verdict};

use crate::{
    Config, Error, Evaluation, Learner, Measured, Part, Result, Setup, Single, Workplace,
    audit::plan_options,
    error::skip_name,
    evaluate,
    evaluate::only,
    generate::{Continuation, Until, generate},
    load::Base,
    origin::{self, Teacher, bring_chat, origin},
    save::{self, ModelFile, State},
    steering,
};

use disturbance::Faults;
pub(crate) use disturbance::fill_with_noise;
pub use disturbance::{Disturbance, Fault};
pub use event::{Event, RowCluster, StepReport};

/// Of tokens repeated in samples: what CTRL takes (arXiv 1909.05858, section 4.1).
const PENALTY: f32 = 1.2;
/// Tokens in a sample, but no more than the model sees.
const SAMPLE: usize = 60;

/// A training run: all of its state, and the loop in [`Run::advance`].
pub struct Run<'a, B: Backend> {
    backend: &'a B,
    storage: &'a dyn Storage,
    workplace: Workplace,
    corpus: &'a Corpus,
    plan: BatchPlan,
    validation: ValidationSet,
    identity: Identity,
    part: Part,
    learner: Learner<B>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    /// Of the last batch by token, where the text has clusters.
    losses: Vec<f32>,
    state: State,
    /// Step of the checkpoint on disk that equals the state.
    saved: Option<u64>,
    stopping: bool,
    metrics: Log,
    timing: Log,
    /// What goes wrong on purpose.
    faults: Option<Box<Faults<'a>>>,
    /// Whose predictions are targets.
    teacher: Option<Teacher<B>>,
    /// The model that its adapters belong to.
    base: Option<Base>,
}

impl<'a, B: Backend> Run<'a, B> {
    /// Builds the model of a claimed run directory, from its checkpoint where it has one.
    ///
    /// # Errors
    /// The corpus is too short, the checkpoint belongs to another configuration, tokenizer or corpus, or
    /// the directory cannot be written.
    pub fn new(
        backend: &'a B,
        storage: &'a dyn Storage,
        workplace: Workplace,
        corpus: &'a Corpus,
    ) -> Result<Run<'a, B>> {
        let part = Part::whole(workplace.config())?;
        Run::of(backend, storage, workplace, corpus, part, None)
    }

    /// The same for a part of a run: an expert without a checkpoint begins with that of the `shared` start.
    ///
    /// # Errors
    /// As [`Run::new`]; the cluster has no text for training or validation.
    pub fn of(
        backend: &'a B,
        storage: &'a dyn Storage,
        workplace: Workplace,
        corpus: &'a Corpus,
        part: Part,
        shared: Option<&Checkpoint>,
    ) -> Result<Run<'a, B>> {
        let config = workplace.config().clone();
        let (batch, context) = (config.run.batch, config.model.context);
        corpus.check(context)?;
        let plan = BatchPlan::new(corpus, &plan_options(&config, &part))?;
        let validation = validation(&config, corpus, &part)?;
        let vocab = corpus.tokenizer().vocab_size() as usize;
        let identity = Identity {
            config: config.hash(),
            tokenizer: corpus.tokenizer().hash().to_owned(),
            data: part.data(corpus),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if let Some(checkpoint) = &workplace.checkpoint {
            // A newer program may go on with an older checkpoint: formats carry their own version.
            checkpoint.require(&identity, &["version"])?;
        } else if let Some(shared) = shared {
            shared.require(&Identity { data: corpus.hash().to_owned(), ..identity.clone() }, &["version"])?;
        }
        let parent = workplace.checkpoint.as_ref().or(shared);
        let saved = parent.map(|checkpoint| save::restore_model(storage, checkpoint)).transpose()?;
        let (layout, seed) = (Layout::new(&config.model, vocab), config.run.seed);
        let goes_on = saved.is_some() && !config.run.has_teacher() && config.model.lora == 0;
        let from = if goes_on { None } else { origin(storage, &config, &identity.tokenizer)? };
        let base = from.as_ref().filter(|_| config.model.lora > 0);
        let base = base.map(|from| Base::of(storage, from)).transpose()?;
        if let (Some(saved), Some(base)) = (saved.as_ref().map(ModelFile::base).transpose()?.flatten(), &base)
        {
            saved.check(base)?;
        }
        let new = from.as_ref().filter(|_| saved.is_none());
        let gains = origin::gains(backend, new, &config.model, corpus)?;
        let weights = |id: usize| match (&saved, &from) {
            (Some(saved), _) if layout.trains(id) => saved.values(id),
            (_, Some(from)) if layout.specs[id].kind != TensorKind::Adapter => {
                origin::weights(from, &gains, &layout, id)
            }
            _ => Values::Floats(initial_tensor(&config.model, &layout, seed, id).into()),
        };
        let (passes, recompute) = (config.run.passes(), config.run.recompute);
        let setup = Setup { vocab, batch, passes, recompute, seed };
        let mut learner = Learner::new(backend, &config.model, &config.optim, setup, &weights);
        let teacher = match &from {
            Some(from) if config.run.has_teacher() => {
                Some(Teacher::new(backend, storage, from, &config, &mut learner)?)
            }
            _ => None,
        };
        if let Some(from) = &from {
            bring_chat(storage, from, workplace.dir())?;
        }
        let mut state = match parent {
            Some(checkpoint) => save::restore_state(backend, storage, checkpoint, &mut learner.optimizer)?,
            None => {
                let controller = steering::controller(storage, &config.optim, seed)?;
                State { mixer: plan.mixer(), controller, ..State::default() }
            }
        };
        if workplace.checkpoint.is_none() {
            // What the shared start has measured is not the expert's.
            (state.evaluated, state.sampled, state.best) = (None, None, None);
            state.mixer = plan.mixer();
        }
        let (metrics, timing) = open_logs(storage, &workplace, &state)?;
        let mut losses = Vec::new();
        if corpus.labels().is_some() {
            losses.resize(batch * context, 0.0);
            learner.read_losses();
        }
        let run = Run {
            backend,
            storage,
            corpus,
            plan,
            validation,
            identity,
            part,
            learner,
            inputs: vec![0; batch * context],
            targets: vec![0; batch * context],
            losses,
            saved: workplace.step(),
            stopping: false,
            state,
            workplace,
            metrics,
            timing,
            faults: None,
            teacher,
            base,
        };
        // Its buffers may be more than the device holds.
        run.sound()?;
        Ok(run)
    }

    /// The same run with faults in its steps, by the number of the step from 0 and how often the run went back
    /// before: to measure guards. It logs every fault, and at each evaluation whether all weights are finite. Faults
    /// are no part of what is saved: a run that goes on is disturbed again.
    #[must_use]
    pub fn disturbed(mut self, faults: impl Fn(u64, u32) -> Option<Fault> + 'a) -> Run<'a, B> {
        self.faults = Some(Box::new(faults));
        self
    }

    /// Does the next thing that is due: evaluate, sample, save, or a training step. `None` at the end. The
    /// loop around it belongs inside [`Backend::run`].
    ///
    /// # Errors
    /// The disk; [`Error::Numeric`] when too many steps in a row are not finite; [`Error::Device`] when the device
    /// failed, and nothing has been saved since it did.
    pub fn advance(&mut self) -> Result<Option<Event>> {
        let event = self.next()?;
        self.sound()?;
        Ok(event)
    }

    /// Whether the device works.
    fn sound(&self) -> Result<()> {
        match self.backend.fault() {
            Some(reason) => Err(Error::Device { step: self.state.step, reason }),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> Result<Option<Event>> {
        let (step, run) = (self.state.step, &self.config().run);
        let Part { first, last, .. } = self.part;
        let due = |every: u64| step == last || (every > 0 && step > first && step.is_multiple_of(every));
        if self.stopping {
            return if self.saved == Some(step) { Ok(None) } else { self.save().map(Some) };
        }
        if due(run.eval_every) && self.state.evaluated.map(|(at, _)| at) != Some(step) {
            return self.evaluate().map(Some);
        }
        if due(run.sample_every) && self.state.sampled != Some(step) {
            return self.sample().map(Some);
        }
        if due(run.checkpoint_every) && self.saved != Some(step) {
            return self.save().map(Some);
        }
        if step == last {
            return Ok(None);
        }
        self.step().map(Some)
    }

    /// Makes the next [`Run::advance`] save, and the one after it end.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        self.workplace.config()
    }

    /// The run's directory.
    pub fn dir(&self) -> &std::path::Path {
        self.workplace.dir()
    }

    /// Steps behind and steps in all, those of the shared start included.
    pub fn progress(&self) -> (u64, u64) {
        (self.state.step, self.part.last)
    }

    /// Passes over the training text so far.
    pub fn epoch(&self) -> f64 {
        self.plan.epoch(self.state.step - self.part.first)
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model<B> {
        &self.learner.model
    }

    fn step(&mut self) -> Result<Event> {
        let started = Instant::now();
        let step = self.state.step;
        let (ternary, at) = (self.model().layout().ternary, self.part.scheduled(step));
        let (optim, slower) = (&self.workplace.config().optim, self.state.setbacks.share());
        let controller = self.state.controller.as_ref();
        let rates = steering::steer(optim, ternary, at, slower, controller, &mut self.learner.optimizer);
        let decision = controller.map(Controller::mean);
        let every = optim.feedback;
        let planning = Instant::now();
        let windows = self.plan.windows_of(step - self.part.first, self.state.mixer.as_mut())?;
        self.plan.read(self.corpus, &windows, &mut self.inputs, &mut self.targets)?;
        let mut planned = planning.elapsed();
        self.state.step += 1;
        self.disturb(step)?;
        if counted(&self.targets) == 0 {
            // Nothing to learn from, and nothing that says how the run goes.
            let step = self.state.step;
            self.metrics.append(&json!({ "step": step, "skipped": "no_answer" }))?;
            return Ok(Event::NoAnswer { step });
        }
        if every > 0 && step.is_multiple_of(every) {
            self.learner.watch();
        }
        self.learner.round_by(self.workplace.config().run.lambda(at));
        if let Some(teacher) = &mut self.teacher {
            let place = (self.storage, self.workplace.dir());
            let relations = self.learner.relations();
            self.backend.run(|| {
                if let Some(relations) = relations {
                    teacher.relate(self.backend, &self.inputs, relations);
                }
                teacher.teach(self.backend, place, step, &self.inputs, &mut self.targets)
            })?;
        }
        let measured = self.learner.step(self.backend, &self.inputs, &self.targets, rates);
        self.state.updates = self.learner.optimizer.updates();
        let measured = match measured {
            Ok(measured) => measured,
            Err(what) => return self.skip(what),
        };
        self.state.guard.taken();
        if let Some(controller) = &mut self.state.controller {
            let optim = &self.workplace.config().optim;
            steering::observe(controller, optim, at, slower, rates, &measured, &self.learner.optimizer);
        }
        let Measured { loss, gradient_norm, direction_norm, relations, report, reduction, rounded } =
            measured;

        let tokens = self.state.step * self.inputs.len() as u64;
        let (step, rate) = (self.state.step, rates.matrices);
        let planning = Instant::now();
        let (cluster, clusters) = self.by_cluster(&windows);
        if let Some(mixer) = &mut self.state.mixer {
            mixer.learn(clusters.iter().map(|(cluster, loss)| (*cluster, f64::from(*loss))));
        }
        planned += planning.elapsed();
        let (update, bounded) = (report.relative() as f32, report.bounded_share() as f32);
        let clipped = report.clipped_share() as f32;
        let flips = ternary.then_some(report.flip_rate() as f32);
        let row_clusters = match self.learner.optimizer.reports() {
            [_] => Vec::new(),
            reports => reports.iter().map(RowCluster::new).collect(),
        };
        let report = StepReport {
            step,
            loss,
            rate,
            gradient_norm,
            direction_norm,
            relations,
            log_multiplier: decision.map(|decision| decision.log_multiplier as f32),
            log_radius: decision.map(|decision| decision.log_radius as f32),
            predicted: reduction.map(|reduction| reduction.predicted as f32),
            reduction: reduction.map(|reduction| reduction.actual as f32),
            update,
            bounded,
            clipped,
            flips,
            row_clusters,
            rounded,
            tokens,
            cluster,
            clusters,
        };
        self.metrics.append(&report)?;
        let (seconds, plan) = (started.elapsed().as_secs_f64(), planned.as_secs_f64());
        let rate = self.inputs.len() as f64 / seconds;
        let took = json!({ "step": step, "seconds": seconds, "plan_seconds": plan, "tokens_per_s": rate });
        self.timing.append(&took)?;
        let again = self.state.setbacks.step(report.loss, f64::from(report.clipped));
        if again && self.learner.optimizer.guards() {
            return self.go_back();
        }
        Ok(Event::Step(report, seconds))
    }

    /// Puts the fault of step `step` into its batch or its gradients, if it has one.
    fn disturb(&mut self, step: u64) -> Result<()> {
        let fault = self.faults.as_ref().and_then(|faults| faults(step, self.state.setbacks.times));
        let Some(fault) = fault else { return Ok(()) };
        match fault {
            Fault::Noise => {
                let (seed, context) = (self.config().run.seed, self.config().model.context);
                let vocab = self.model().vocab();
                fill_with_noise((seed, step), vocab, context, &mut self.inputs, &mut self.targets);
            }
            Fault::Gradient(factor) => self.learner.disturb(factor),
        }
        Ok(self.metrics.append(&json!({ "step": step + 1, "fault": fault }))?)
    }

    /// The commonest cluster of a batch, and the mean loss of each.
    fn by_cluster(&mut self, windows: &[Window]) -> (Option<u32>, BTreeMap<u32, f32>) {
        if self.losses.is_empty() {
            return (None, BTreeMap::new());
        }
        self.learner.losses(self.backend, &mut self.losses);
        losses::by_cluster(windows, &self.losses, &self.targets)
    }

    /// Logs a step that was not finite; an error when there were too many.
    fn skip(&mut self, what: Skip) -> Result<Event> {
        let step = self.state.step;
        let verdict = self.state.guard.skipped(what, step);
        self.metrics.append(&json!({ "step": step, "skipped": what }))?;
        let what = skip_name(what);
        match verdict {
            Verdict::Skip(_) => Ok(Event::Skipped { step, what }),
            Verdict::Stop(_) => {
                let Guard { skipped, in_a_row } = self.state.guard;
                Err(Error::Numeric { step, what, skipped, in_a_row })
            }
        }
    }

    /// The validation loss of the model as it stands; changes nothing and logs nothing.
    ///
    /// # Errors
    /// The token shards cannot be read.
    pub fn validate(&mut self) -> Result<Evaluation> {
        self.learner.rest(self.backend);
        let Learner { model, activations, .. } = &mut self.learner;
        let mut single = Single::new(self.backend, model, activations);
        evaluate(&mut single, self.corpus, &self.validation).map(only)
    }

    fn evaluate(&mut self) -> Result<Event> {
        let step = self.state.step;
        let evaluation = self.validate()?;
        let domains: Map<String, Value> =
            evaluation.domains.iter().map(|domain| (domain.domain.clone(), json!(domain.loss))).collect();
        let mut record = json!({
            "step": step,
            "validation_loss": evaluation.loss,
            "bits_per_byte": evaluation.bits_per_byte,
            "domains": domains,
        });
        if evaluation.answers {
            record["answers"] = true.into();
        }
        if !evaluation.clusters.is_empty() {
            let by_cluster = evaluation.clusters.iter().map(|c| (c.cluster.to_string(), json!(c.loss)));
            record["clusters"] = by_cluster.collect::<Map<String, Value>>().into();
        }
        if self.faults.is_some() {
            record["finite"] = self.learner.finite(self.backend).into();
        }
        self.metrics.append(&record)?;
        self.state.evaluated = Some((step, evaluation.loss));
        Ok(Event::Evaluated { step, evaluation })
    }

    fn sample(&mut self) -> Result<Event> {
        self.learner.rest(self.backend);
        let (step, config) = (self.state.step, self.config());
        // Small models easily fall into repeating one token.
        let sampling = Sampling { repetition_penalty: PENALTY, seed: config.run.seed, ..Sampling::default() };
        let tokenizer = self.corpus.tokenizer();
        let prompt = [tokenizer.eos()];
        let mut text = String::new();
        let mut next = Continuation::new(self.backend, &self.learner.model, &prompt)?;
        let emit = |piece: &str| {
            text.push_str(piece);
            true
        };
        let until = Until::tokens(SAMPLE.min(config.model.context));
        self.backend.run_awake(|| generate(&mut next, tokenizer, &sampling, until, emit))?;
        self.state.sampled = Some(step);
        Ok(Event::Sampled { step, text })
    }

    fn save(&mut self) -> Result<Event> {
        let step = self.state.step;
        if let Some((at, loss)) = self.state.evaluated
            && at == step
            && self.state.best.is_none_or(|(_, best)| loss < best)
        {
            self.state.best = Some((step, loss));
        }
        self.metrics.sync()?;
        self.learner.rest(self.backend);
        self.state.spikes = Some(self.learner.optimizer.spikes().clone());
        let what = (&self.learner.model, &self.learner.optimizer, &self.state);
        let belongs = (&self.identity, self.base.as_ref());
        let path = save::save(self.backend, self.storage, &self.workplace.dir, what, belongs)?;
        self.saved = Some(step);
        let best = self.state.best.map(|(step, _)| step);
        if let Some(best) = best {
            let name = format!("step-{best}\n");
            write_atomic(self.storage, &self.workplace.dir.join("best"), name.as_bytes())?;
        }
        checkpoint::prune(self.storage, &self.workplace.dir, self.config().run.keep, best.as_slice())?;
        Ok(Event::Saved { step, path })
    }
}

/// The windows that a part is measured on.
pub(crate) fn validation(config: &Config, corpus: &Corpus, part: &Part) -> Result<ValidationSet> {
    let all = ValidationSet::new(corpus, config.model.context, config.run.eval_tokens)?;
    Ok(match part.cluster {
        None => all,
        Some(cluster) => all.only(corpus, cluster)?,
    })
}

/// Opens the logs, cut back to the state: what is done again is logged again.
fn open_logs(storage: &dyn Storage, workplace: &Workplace, state: &State) -> Result<(Log, Log)> {
    let path = workplace.dir.join("metrics.jsonl");
    metrics::truncate_after(storage, &path, |record| {
        let step = record.get("step").and_then(Value::as_u64).unwrap_or(u64::MAX);
        if let Some(times) = record.get("setback").and_then(Value::as_u64) {
            return step <= state.step && times <= u64::from(state.setbacks.times);
        }
        let evaluated = state.evaluated.map(|(at, _)| at) == Some(step);
        step < state.step || step == state.step && (evaluated || record.get("validation_loss").is_none())
    })?;
    Ok((Log::open(storage, &path)?, Log::open(storage, &workplace.dir.join("timing.jsonl"))?))
}

#[cfg(test)]
mod tests;
