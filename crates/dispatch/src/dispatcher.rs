//! Chooses an engine for each operation, by what it should take.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tritrain_backend::Tier;
use tritrain_cluster::{Fit, Options, Start};
use tritrain_trit::pack::packed2_len;

use crate::{
    Calibration, Cost, Engine, EngineKind, Metrics, Operation, Quantized, Result, Task, TernaryWeights,
    calibrate::{self, FAR, Present},
    clock::{Clock, Real},
    error::check,
    host::Host,
    metrics::Counts,
    watch::{WRONG, Watch},
};

/// What may be chosen. Among engines that may, measurement decides: none is preferred that is slower by a tenth.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whether the GPU may be taken (`prefer_gpu` of the Python interface).
    pub gpu: bool,
    /// Whether a pool of threads may be taken (`prefer_cpp` there).
    pub parallel: bool,
    /// Whether SIMD on the calling thread may be taken (`prefer_c` there). `scalar` always may.
    pub simd: bool,
    /// Least numbers in the input for the GPU to be considered.
    pub min_size_for_gpu: usize,
    /// Tells of every choice, as an event of `tracing` at level INFO.
    pub verbose: bool,
    /// Runs every operation on each engine that may be taken, for [`Metrics`] to compare; results are of the one
    /// that was chosen.
    pub benchmark_mode: bool,
    /// Threads of the pool; 0 for one per core.
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            gpu: true,
            parallel: true,
            simd: true,
            min_size_for_gpu: 1_000_000,
            verbose: false,
            benchmark_mode: false,
            threads: 0,
        }
    }
}

/// An engine beside a task.
#[derive(Clone, Debug, Serialize)]
pub struct Weighed {
    /// The engine.
    pub engine: EngineKind,
    /// What it runs on; none where there is no such engine.
    pub runs_on: Option<String>,
    /// Seconds it should take; none where it is not considered.
    pub predicted_s: Option<f64>,
    /// Why it is not considered.
    pub excluded: Option<String>,
}

/// What would be chosen, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// What is to be done.
    pub task: Task,
    /// The engine that would do it.
    pub chosen: EngineKind,
    /// All engines.
    pub weighed: Vec<Weighed>,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.task, self.chosen.name())?;
        for of in &self.weighed {
            let name = of.engine.name();
            match (of.predicted_s, &of.excluded) {
                (Some(seconds), _) => write!(f, "; {name} {:.1} µs", seconds * 1e6)?,
                (None, Some(why)) => write!(f, "; {name} not: {why}")?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// Iterations that a fit is taken for before it is known how many it needs.
const ITERATIONS: usize = 10;

/// Times that a task of an audit is measured.
const AUDIT: usize = 3;

/// How many times as fast another engine must promise to be than SIMD on the calling thread: predictions are not
/// finer, and other threads have other work.
const GAIN: f64 = 1.1;

/// Costs of an operation, by [`EngineKind::index`].
type Costs = [Option<Cost>; 4];

/// What changes while it works.
struct State {
    calibration: Calibration,
    /// The same by [`Operation`].
    costs: [Costs; 5],
    watches: [Watch; 5],
    counts: Counts,
    renewed: bool,
}

/// Does single operations on the engine that should be fastest.
///
/// Costs come from a [`Calibration`] or are measured when it is made, in less than a second. Adopted ones are
/// compared with a measurement of two small tasks before their first use, all again after two hundred times as long
/// in calls, sooner where calls take twice or half of what was predicted; what is wrong by more than two is measured
/// anew. It may be called from any thread.
pub struct Dispatcher {
    config: Config,
    engines: [Result<Box<dyn Engine>, String>; 4],
    clock: Box<dyn Clock>,
    state: Mutex<State>,
    /// Held by the one that measures.
    measuring: Mutex<()>,
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher over the processor and `gpu`, or the reason why there is none. `known` is what
    /// [`Dispatcher::calibration`] gave once; if it is of another machine or version, or absent, all is measured now.
    ///
    /// # Errors
    /// Threads cannot be started, or the GPU fails while it is measured.
    pub fn new(
        config: Config,
        gpu: Result<Box<dyn Engine>, String>,
        known: Option<Calibration>,
    ) -> Result<Dispatcher> {
        let engines = engines(config.threads, gpu)?;
        Dispatcher::over(config, engines, Box::new(Real::new()), known)
    }

    pub(crate) fn over(
        config: Config,
        engines: [Result<Box<dyn Engine>, String>; 4],
        clock: Box<dyn Clock>,
        known: Option<Calibration>,
    ) -> Result<Dispatcher> {
        let machine = machine(&engines);
        let present: Vec<EngineKind> =
            EngineKind::ALL.into_iter().filter(|kind| engines[kind.index()].is_ok()).collect();
        let known = known.filter(|known| match known.foreign(&machine, &present) {
            Some(why) => {
                tracing::info!("the calibration is measured anew: {why}");
                false
            }
            None => true,
        });
        let renewed = known.is_none();
        let empty = Calibration {
            version: Calibration::VERSION,
            machine,
            costs: Operation::ALL.map(|op| (op, [].into())).into(),
        };
        let calibration = known.unwrap_or(empty);
        let costs = Operation::ALL.map(|op| EngineKind::ALL.map(|engine| calibration.cost(op, engine)));
        let state =
            State { calibration, costs, watches: Default::default(), counts: Counts::default(), renewed };
        let dispatcher =
            Dispatcher { config, engines, clock, state: Mutex::new(state), measuring: Mutex::default() };
        if renewed {
            Operation::ALL.into_iter().try_for_each(|operation| dispatcher.calibrate(operation))?;
        }
        Ok(dispatcher)
    }

    /// The costs in use, to be kept for next time.
    pub fn calibration(&self) -> Calibration {
        self.state().calibration.clone()
    }

    /// Whether costs are others than those it was made with.
    pub fn is_renewed(&self) -> bool {
        self.state().renewed
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Metrics {
        self.state().counts.metrics()
    }

    /// The engines, or why there is none of a kind.
    pub fn engines(&self) -> [Result<&dyn Engine, &str>; 4] {
        self.engines.each_ref().map(|engine| engine.as_deref().map_err(String::as_str))
    }

    /// What would be chosen for a task, and why; nothing is done.
    pub fn explain(&self, task: &Task) -> Decision {
        let costs = self.costs(task.operation());
        let (chosen, _) = self.choose(task, &costs);
        let weighed = EngineKind::ALL.map(|engine| {
            let runs_on = self.engines[engine.index()].as_ref().ok().map(|engine| engine.describe());
            match self.weigh(task, engine, &costs) {
                Ok(seconds) => Weighed { engine, runs_on, predicted_s: Some(seconds), excluded: None },
                Err(why) => {
                    Weighed { engine, runs_on, predicted_s: None, excluded: Some(self.reason(why, engine)) }
                }
            }
        });
        Decision { task: *task, chosen, weighed: weighed.into() }
    }

    /// Seconds of a task on each engine, measured now, whatever the configuration excludes: the shortest of `rounds`,
    /// which alternate. Engines that take more than four times as long as the fastest are measured once. A fit of
    /// k-means may have fewer iterations, as the task returned says.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn measure(&self, task: &Task, rounds: usize) -> Result<(Task, Vec<(EngineKind, f64)>)> {
        let _measuring = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = self.present();
        let measure = |present: &Present<'_>, rounds| {
            calibrate::measure(task, present, &*self.clock, (rounds, f64::INFINITY))
        };
        let mut seconds = measure(&present, 1)?.1;
        let far = FAR * calibrate::fastest(&seconds);
        for (engine, seconds) in present.iter_mut().zip(&seconds) {
            *engine = engine.filter(|_| seconds.is_some_and(|seconds| seconds <= far));
        }
        let (done, again) = measure(&present, rounds)?;
        for (seconds, more) in seconds.iter_mut().zip(again) {
            *seconds = more.or(*seconds);
        }
        let pairs = EngineKind::ALL.into_iter().zip(seconds);
        Ok((done, pairs.filter_map(|(kind, seconds)| Some((kind, seconds?))).collect()))
    }

    /// Ternary codes of `x`, and their scale.
    ///
    /// # Errors
    /// A number is not finite, or the mean magnitude beyond fp16.
    pub fn quantize(&self, x: &[f32]) -> Result<Quantized> {
        let mut codes = vec![0; packed2_len(x.len())];
        let task = Task::Quantize { len: x.len() };
        let scale = self.run(task, |engine| engine.quantize(x, &mut codes), |_| task)?;
        Ok(Quantized { codes, scale, len: x.len() })
    }

    /// Writes what codes stand for into `out`, of their number.
    ///
    /// # Errors
    /// A field is no code, or `out` has another length.
    pub fn dequantize(&self, from: &Quantized, out: &mut [f32]) -> Result<()> {
        check("out", out.len(), &[from.len])?;
        let task = Task::Dequantize { len: from.len };
        self.run(task, |engine| engine.dequantize(&from.codes, from.scale, out), |()| task)
    }

    /// Clusters the rows of `x` `[rows][dim]`. Labels are the same on every engine.
    ///
    /// # Errors
    /// The length of `x` is no multiple of `dim`, or what makes clustering impossible.
    pub fn kmeans(&self, x: &[f32], dim: usize, start: Start<'_>, options: &Options) -> Result<Fit> {
        let rows = x.len() / dim.max(1);
        if dim > 0 {
            check("the rows", x.len(), &[rows, dim])?;
        }
        let k = match start {
            Start::Seeded(k) => k,
            Start::Given(centroids) => centroids.len() / dim.max(1),
        };
        let task = |iterations| Task::Kmeans { rows, dim, k, iterations };
        self.run(
            task(options.iterations.min(ITERATIONS)),
            |engine| engine.kmeans(x, (rows, dim), start, options),
            |fit| task(fit.iterations),
        )
    }

    /// `y = x·wᵀ`; `x` `[rows][inputs]`, `w` `[outputs][inputs]`, `y` `[rows][outputs]`. Engines differ in the order of
    /// sums.
    ///
    /// # Errors
    /// The lengths do not fit the sizes, or the GPU failed.
    pub fn matmul(
        &self,
        x: &[f32],
        w: &[f32],
        [rows, outputs, inputs]: [usize; 3],
        y: &mut [f32],
    ) -> Result<()> {
        check("x", x.len(), &[rows, inputs])?;
        check("w", w.len(), &[outputs, inputs])?;
        check("y", y.len(), &[rows, outputs])?;
        if inputs == 0 {
            y.fill(0.0);
            return Ok(());
        }
        let task = Task::Matmul { rows, outputs, inputs };
        self.run(task, |engine| engine.matmul(x, w, [rows, outputs, inputs], y), |()| task)
    }

    /// `y = q(x)·wᵀ` with each row of `x` `[rows][inputs]` rounded to int8; the same bits on every engine of the
    /// processor. `y` `[rows][outputs]`.
    ///
    /// # Errors
    /// The lengths do not fit the weights, or the GPU failed.
    pub fn ternary_matmul(&self, x: &[f32], w: &TernaryWeights, y: &mut [f32]) -> Result<()> {
        let (rows, (outputs, inputs)) = (w.rows(x, y)?, w.shape());
        if inputs == 0 {
            y.fill(0.0);
            return Ok(());
        }
        let task = Task::TernaryMatmul { rows, outputs, inputs };
        self.run(task, |engine| engine.ternary_matmul(x, w, y), |()| task)
    }

    /// Chooses, works and remembers. `done` says from the result what was done in the end.
    fn run<R>(
        &self,
        task: Task,
        mut work: impl FnMut(&dyn Engine) -> Result<R>,
        done: impl Fn(&R) -> Task,
    ) -> Result<R> {
        let (costs, due) = {
            let state = self.state();
            let operation = task.operation() as usize;
            (state.costs[operation], state.watches[operation].is_due())
        };
        let costs = if due { self.audit(task.operation())? } else { costs };
        let (chosen, predicted) = self.choose(&task, &costs);
        if self.config.verbose {
            tracing::info!(?task, engine = chosen.name(), predicted_us = predicted * 1e6, "chosen");
        }
        if self.config.benchmark_mode {
            for kind in EngineKind::ALL.into_iter().filter(|kind| *kind != chosen) {
                if self.weigh(&task, kind, &costs).is_ok() {
                    self.timed(kind, &mut work, &done)?;
                }
            }
        }
        let result = self.timed(chosen, &mut work, &done)?;
        self.state().counts.called();
        Ok(result)
    }

    /// Works on one engine and remembers what it took.
    fn timed<R>(
        &self,
        kind: EngineKind,
        work: &mut impl FnMut(&dyn Engine) -> Result<R>,
        done: &impl Fn(&R) -> Task,
    ) -> Result<R> {
        let Ok(engine) = &self.engines[kind.index()] else {
            unreachable!("only engines that exist are chosen")
        };
        let started = self.clock.seconds();
        let result = work(&**engine)?;
        let seconds = self.clock.seconds() - started;
        let task = done(&result);
        let operation = task.operation() as usize;
        let mut state = self.state();
        let predicted = state.costs[operation][kind.index()].map_or(0.0, |cost| cost.predict(&task));
        // How much of a fit bounds settle depends on the rows.
        let comparable = task.operation() != Operation::Kmeans;
        state.watches[operation].saw(kind, predicted, seconds, comparable);
        state.counts.ran(&task, kind, seconds);
        Ok(result)
    }

    /// The engine that should be fastest, and what it should take; where that is no more than [`GAIN`], one that
    /// needs less of the machine.
    fn choose(&self, task: &Task, costs: &Costs) -> (EngineKind, f64) {
        let mut best = (EngineKind::Scalar, f64::INFINITY);
        for kind in [EngineKind::Simd, EngineKind::Scalar, EngineKind::Parallel, EngineKind::Gpu] {
            if let Ok(seconds) = self.weigh(task, kind, costs)
                && seconds * GAIN < best.1
            {
                best = (kind, seconds);
            }
        }
        best
    }

    /// What an engine should take for a task, or why it is not considered.
    fn weigh(&self, task: &Task, kind: EngineKind, costs: &Costs) -> Result<f64, Why> {
        let Ok(engine) = &self.engines[kind.index()] else { return Err(Why::Absent) };
        let (allowed, option) = match kind {
            EngineKind::Scalar => (true, ""),
            EngineKind::Simd => (self.config.simd, "simd"),
            EngineKind::Parallel => (self.config.parallel, "parallel"),
            EngineKind::Gpu => (self.config.gpu, "gpu"),
        };
        if !allowed {
            return Err(Why::Configured(option));
        }
        if kind == EngineKind::Gpu && task.size() < self.config.min_size_for_gpu {
            return Err(Why::Small(task.size()));
        }
        if let Some(reason) = engine.refuses(task) {
            return Err(Why::Refused(reason));
        }
        costs[kind.index()].map(|cost| cost.predict(task)).ok_or(Why::Unmeasured)
    }

    fn reason(&self, why: Why, kind: EngineKind) -> String {
        match why {
            Why::Absent => self.engines[kind.index()].as_ref().err().cloned().unwrap_or_default(),
            Why::Configured(option) => format!("{option} is false in the configuration"),
            Why::Small(size) => {
                format!("{size} numbers, fewer than min_size_for_gpu ({})", self.config.min_size_for_gpu)
            }
            Why::Refused(reason) => reason,
            Why::Unmeasured => "it has not been measured".into(),
        }
    }

    /// Compares the costs of an operation with a measurement, and measures anew what is wrong. The costs then.
    fn audit(&self, operation: Operation) -> Result<Costs> {
        let Ok(measuring) = self.measuring.try_lock() else { return Ok(self.costs(operation)) };
        let started = self.clock.seconds();
        let costs = self.costs(operation);
        let mut wrong = false;
        for task in calibrate::spots(operation) {
            let (task, seconds) =
                calibrate::measure(&task, &self.present(), &*self.clock, (AUDIT, f64::INFINITY))?;
            let far = FAR * calibrate::fastest(&seconds);
            for (seconds, cost) in seconds.iter().zip(&costs) {
                let (Some(seconds), Some(cost)) = (*seconds, cost) else { continue };
                let predicted = cost.predict(&task);
                // How far behind an engine is changes no choice.
                let counts = seconds < far || predicted < far;
                wrong |= counts && !(1.0 / WRONG..=WRONG).contains(&(predicted / seconds));
            }
        }
        drop(measuring);
        let took = self.clock.seconds() - started;
        {
            let mut state = self.state();
            state.counts.audits += 1;
            state.counts.measuring_seconds += took;
            state.watches[operation as usize] = Watch::measured(took);
        }
        if wrong {
            tracing::info!("{} takes other times than predicted and is measured anew", operation.name());
            self.calibrate(operation)?;
            self.state().counts.repairs += 1;
        }
        Ok(self.costs(operation))
    }

    /// Measures an operation on every engine.
    fn calibrate(&self, operation: Operation) -> Result<()> {
        let _measuring = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        let started = self.clock.seconds();
        let found = calibrate::operation(operation, &self.present(), &*self.clock)?;
        let took = self.clock.seconds() - started;
        let mut state = self.state();
        state.costs[operation as usize] = found;
        let costs = EngineKind::ALL.into_iter().zip(found).filter_map(|(kind, cost)| Some((kind, cost?)));
        state.calibration.costs.insert(operation, costs.collect());
        state.watches[operation as usize] = Watch::measured(took);
        state.counts.measuring_seconds += took;
        state.renewed = true;
        Ok(())
    }

    fn costs(&self, operation: Operation) -> Costs {
        self.state().costs[operation as usize]
    }

    fn present(&self) -> Present<'_> {
        self.engines.each_ref().map(|engine| engine.as_deref().ok())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an engine is not considered.
#[derive(Clone, Debug)]
enum Why {
    Absent,
    Configured(&'static str),
    Small(usize),
    Refused(String),
    Unmeasured,
}

/// The engines of this machine.
fn engines(
    threads: usize,
    gpu: Result<Box<dyn Engine>, String>,
) -> Result<[Result<Box<dyn Engine>, String>; 4]> {
    let tier = Tier::detect()?;
    let boxed = |host: Host| -> Result<Box<dyn Engine>, String> { Ok(Box::new(host)) };
    let simd = match tier {
        Tier::SCALAR => Err("the only tier in use is scalar (see `tritrain devices`)".to_owned()),
        _ => boxed(Host::new(tier, 1)?),
    };
    let pool = Host::new(tier, threads)?;
    let parallel = match pool.threads() {
        1 => Err("one thread alone".to_owned()),
        _ => boxed(pool),
    };
    Ok([boxed(Host::new(Tier::SCALAR, 1)?), simd, parallel, gpu])
}

/// What costs depend on, in one line.
fn machine(engines: &[Result<Box<dyn Engine>, String>; 4]) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let engines: Vec<String> = EngineKind::ALL
        .into_iter()
        .zip(engines)
        .filter_map(|(kind, engine)| Some(format!("{}: {}", kind.name(), engine.as_ref().ok()?.describe())))
        .collect();
    format!(
        "{name}, {}, tritrain {}; {}",
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION"),
        engines.join("; ")
    )
}
