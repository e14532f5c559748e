//! Choices over engines that take exactly as long as they are told, on a clock that only they move.

use std::sync::{Arc, Mutex};

use tritrain_cluster::{Fit, Options, Start, Stop};

use crate::{
    Calibration, Config, Cost, Dispatcher, Engine, EngineKind, Operation, Quantized, Result, Task,
    TernaryWeights, clock::Clock,
};

/// Seconds, and what engines cost now.
#[derive(Default)]
struct World {
    now: f64,
    costs: [Option<Cost>; 4],
}

type Shared = Arc<Mutex<World>>;

struct Hand(Shared);

impl Clock for Hand {
    fn seconds(&self) -> f64 {
        self.0.lock().unwrap().now
    }
}

struct Fake(Shared, EngineKind);

/// Numbers that the GPU has room for.
const HELD: usize = 1 << 24;

impl Fake {
    fn take(&self, task: Task) {
        let mut world = self.0.lock().unwrap();
        world.now += world.costs[self.1.index()].unwrap().predict(&task);
    }
}

impl Engine for Fake {
    fn describe(&self) -> String {
        "told".into()
    }

    fn refuses(&self, task: &Task) -> Option<String> {
        (self.1 == EngineKind::Gpu && task.size() > HELD).then(|| "no room".into())
    }

    fn quantize(&self, x: &[f32], _: &mut [u8]) -> Result<f32> {
        self.take(Task::Quantize { len: x.len() });
        // Who it was.
        Ok(self.1.index() as f32)
    }

    fn dequantize(&self, _: &[u8], _: f32, out: &mut [f32]) -> Result<()> {
        self.take(Task::Dequantize { len: out.len() });
        Ok(())
    }

    fn kmeans(
        &self,
        _: &[f32],
        (rows, dim): (usize, usize),
        start: Start<'_>,
        options: &Options,
    ) -> Result<Fit> {
        let iterations = options.iterations;
        let Start::Given(centroids) = start else { panic!("calibration gives centroids") };
        self.take(Task::Kmeans { rows, dim, k: centroids.len() / dim, iterations });
        let (labels, centroids, stop) = (Vec::new(), Vec::new(), Stop::Iterations);
        Ok(Fit { labels, centroids, inertia: 0.0, iterations, stop, skipped: 0 })
    }

    fn matmul(&self, _: &[f32], _: &[f32], [rows, outputs, inputs]: [usize; 3], _: &mut [f32]) -> Result<()> {
        self.take(Task::Matmul { rows, outputs, inputs });
        Ok(())
    }

    fn ternary_matmul(&self, x: &[f32], w: &TernaryWeights, _: &mut [f32]) -> Result<()> {
        let (outputs, inputs) = w.shape();
        self.take(Task::TernaryMatmul { rows: x.len() / inputs, outputs, inputs });
        Ok(())
    }
}

const fn cost(fixed: f64, by_work: f64) -> Option<Cost> {
    Some(Cost { fixed, by_work, by_byte: 0.0 })
}

/// Scalar, SIMD, two threads, and a GPU behind a bus.
const USUAL: [Option<Cost>; 4] = [cost(0.0, 4e-9), cost(0.0, 4e-10), cost(1e-5, 2e-10), cost(3e-4, 1e-11)];

fn dispatcher(config: Config, costs: [Option<Cost>; 4], known: Option<Calibration>) -> (Dispatcher, Shared) {
    let world = Arc::new(Mutex::new(World { now: 0.0, costs }));
    let engines = EngineKind::ALL.map(|kind| match costs[kind.index()] {
        Some(_) => Ok(Box::new(Fake(Arc::clone(&world), kind)) as Box<dyn Engine>),
        None => Err("not built".to_owned()),
    });
    let clock = Box::new(Hand(Arc::clone(&world)));
    (Dispatcher::over(config, engines, clock, known).unwrap(), world)
}

fn open() -> Config {
    Config { min_size_for_gpu: 0, ..Config::default() }
}

/// The engine that a call went to.
fn taken(dispatcher: &Dispatcher, len: usize) -> EngineKind {
    EngineKind::ALL[dispatcher.quantize(&vec![0.0; len]).unwrap().scale() as usize]
}

#[test]
fn calibration_takes_less_than_a_second_and_finds_what_engines_cost() {
    let (dispatcher, world) = dispatcher(open(), USUAL, None);
    assert!(world.lock().unwrap().now < 1.0);
    let calibration = dispatcher.calibration();
    for operation in Operation::ALL {
        for kind in EngineKind::ALL {
            let found = calibration.cost(operation, kind).unwrap();
            let expected = USUAL[kind.index()].unwrap();
            for task in crate::calibrate::tasks(operation) {
                let error = found.predict(&task) / expected.predict(&task);
                assert!((error - 1.0).abs() < 1e-6, "{task:?} on {}: {error}", kind.name());
            }
        }
    }
    assert!(dispatcher.is_renewed() && dispatcher.metrics().measuring_seconds > 0.0);
}

#[test]
fn an_engine_is_not_asked_for_what_it_refuses() {
    let (dispatcher, _) = dispatcher(open(), USUAL, None);
    let decision = |len| dispatcher.explain(&Task::Quantize { len });
    assert_eq!(decision(HELD).chosen, EngineKind::Gpu);
    let refused = decision(HELD + 1);
    assert_eq!(refused.chosen, EngineKind::Parallel);
    assert_eq!(refused.weighed[3].excluded.as_deref(), Some("no room"));
    assert_eq!(taken(&dispatcher, HELD + 1), EngineKind::Parallel);
}

#[test]
fn the_engine_that_takes_least_is_chosen_at_every_size() {
    let (dispatcher, _) = dispatcher(open(), USUAL, None);
    // At none of these sizes is a choice closer than a tenth.
    for len in (4..24).map(|power| 1usize << power) {
        let task = Task::Quantize { len };
        let least = EngineKind::ALL
            .into_iter()
            .min_by(|a, b| {
                let [a, b] = [a, b].map(|kind| USUAL[kind.index()].unwrap().predict(&task));
                a.total_cmp(&b)
            })
            .unwrap();
        assert_eq!(dispatcher.explain(&task).chosen, least, "{len}");
        assert_eq!(taken(&dispatcher, len), least, "{len}");
    }
    let seen: Vec<EngineKind> = dispatcher.metrics().backend_summary().iter().map(|of| of.engine).collect();
    assert_eq!(seen, [EngineKind::Simd, EngineKind::Parallel, EngineKind::Gpu]);
}

#[test]
fn for_less_than_a_tenth_no_other_thread_is_taken() {
    for (by_work, expected) in [(0.95e-9, EngineKind::Simd), (0.9e-9, EngineKind::Parallel)] {
        let costs = [cost(0.0, 2e-9), cost(0.0, 1e-9), cost(0.0, by_work), None];
        let (dispatcher, _) = dispatcher(open(), costs, None);
        assert_eq!(taken(&dispatcher, 1 << 18), expected);
    }
}

#[test]
fn what_the_configuration_excludes_is_not_taken_and_explained() {
    let large = Task::Quantize { len: 1 << 23 };
    let chosen = |config: Config| dispatcher(config, USUAL, None).0.explain(&large);
    assert_eq!(chosen(open()).chosen, EngineKind::Gpu);
    let no_gpu = chosen(Config { gpu: false, ..open() });
    assert_eq!(no_gpu.chosen, EngineKind::Parallel);
    assert!(no_gpu.to_string().contains("gpu not: gpu is false in the configuration"), "{no_gpu}");
    assert_eq!(chosen(Config { gpu: false, parallel: false, ..open() }).chosen, EngineKind::Simd);
    let none = Config { gpu: false, parallel: false, simd: false, ..open() };
    assert_eq!(chosen(none).chosen, EngineKind::Scalar);
    let small = chosen(Config { min_size_for_gpu: (1 << 23) + 1, ..open() });
    assert_eq!(small.chosen, EngineKind::Parallel);
    assert!(small.to_string().contains("fewer than min_size_for_gpu"), "{small}");
    let (absent, _) = dispatcher(open(), [USUAL[0], USUAL[1], None, None], None);
    let decision = absent.explain(&large);
    assert_eq!(decision.chosen, EngineKind::Simd);
    assert!(decision.to_string().contains("parallel not: not built"), "{decision}");
    assert_eq!(absent.metrics().total_operations, 0, "explaining does nothing");
}

#[test]
fn benchmark_mode_runs_every_engine_and_returns_what_the_chosen_one_made() {
    let (dispatcher, _) = dispatcher(Config { benchmark_mode: true, ..open() }, USUAL, None);
    assert_eq!(taken(&dispatcher, 1 << 23), EngineKind::Gpu);
    let metrics = dispatcher.metrics();
    assert_eq!(metrics.total_operations, 1);
    let counted: Vec<u64> = metrics.backend_summary().iter().map(|of| of.operations).collect();
    assert_eq!(counted, [1, 1, 1, 1]);
}

/// `calibration` with the costs of an engine, for all operations, multiplied.
fn poisoned(mut calibration: Calibration, kind: EngineKind, factor: f64) -> Calibration {
    for costs in calibration.costs.values_mut() {
        let cost = costs.get_mut(&kind).unwrap();
        *cost = Cost {
            fixed: cost.fixed * factor,
            by_work: cost.by_work * factor,
            by_byte: cost.by_byte * factor,
        };
    }
    calibration
}

#[test]
fn a_right_calibration_is_adopted_and_a_wrong_one_is_repaired_before_use() {
    let right = dispatcher(open(), USUAL, None).0.calibration();
    let (adopting, _) = dispatcher(open(), USUAL, Some(right.clone()));
    assert_eq!(taken(&adopting, 1 << 16), EngineKind::Parallel);
    assert_eq!((adopting.metrics().audits, adopting.metrics().repairs), (1, 0));
    assert!(!adopting.is_renewed() && adopting.calibration() == right);
    // An engine that looks better than it is would be taken; one that looks worse would never be looked at again.
    for (kind, factor) in [(EngineKind::Scalar, 1e-4), (EngineKind::Parallel, 1e3), (EngineKind::Simd, 1e-2)]
    {
        let wrong = poisoned(right.clone(), kind, factor);
        let (repairing, _) = dispatcher(open(), USUAL, Some(wrong.clone()));
        let before = repairing.explain(&Task::Quantize { len: 1 << 16 }).chosen;
        assert_ne!(before, EngineKind::Parallel, "{factor} on {} changes nothing", kind.name());
        assert_eq!(taken(&repairing, 1 << 16), EngineKind::Parallel);
        assert_eq!(repairing.metrics().repairs, 1);
        let repaired = repairing.calibration();
        assert!(repairing.is_renewed());
        let expected = right.cost(Operation::Quantize, kind).unwrap();
        let found = repaired.cost(Operation::Quantize, kind).unwrap();
        assert!((found.by_work / expected.by_work - 1.0).abs() < 1e-6, "{found:?}");
        // What was not used is not looked at yet.
        assert_eq!(repaired.cost(Operation::Matmul, kind), wrong.cost(Operation::Matmul, kind));
    }
}

#[test]
fn a_machine_that_changes_is_noticed_while_it_works() {
    let (dispatcher, world) = dispatcher(open(), USUAL, None);
    let len = 1 << 18;
    assert_eq!(taken(&dispatcher, len), EngineKind::Parallel);
    // Somebody else takes the other core: two threads are slower than one.
    world.lock().unwrap().costs[EngineKind::Parallel.index()] = cost(1e-5, 1e-9);
    let noticed = (1..100_000).find(|_| taken(&dispatcher, len) == EngineKind::Simd).unwrap();
    assert!(noticed > 8, "a few calls prove nothing");
    assert_eq!(dispatcher.metrics().repairs, 1);
    // And gives it back: now nothing that is used has changed, and an audit in passing finds out.
    world.lock().unwrap().costs[EngineKind::Parallel.index()] = cost(1e-5, 2e-10);
    assert!((1..1_000_000).any(|_| taken(&dispatcher, len) == EngineKind::Parallel));
    assert_eq!(dispatcher.metrics().repairs, 2);
    let metrics = dispatcher.metrics();
    let share = metrics.measuring_seconds / metrics.total_seconds;
    assert!(share < 0.2, "{share} of the time went into measuring");
}

#[test]
fn a_calibration_of_another_machine_is_measured_anew() {
    let mut known = dispatcher(open(), USUAL, None).0.calibration();
    known.machine.push('!');
    let (renewed, _) = dispatcher(open(), USUAL, Some(known.clone()));
    assert!(renewed.is_renewed() && renewed.calibration().machine != known.machine);
    let known =
        Calibration { version: Calibration::VERSION + 1, machine: renewed.calibration().machine, ..known };
    assert!(dispatcher(open(), USUAL, Some(known)).0.is_renewed());
}

#[test]
fn codes_and_scales_from_elsewhere_are_checked() {
    let message = |result: Result<Quantized>| result.unwrap_err().to_string();
    assert!(message(Quantized::new(vec![0; 2], 1.0, 9)).contains("expected 3"));
    assert!(message(Quantized::new(vec![0x55; 3], f32::NAN, 9)).contains("NaN"));
    assert!(message(Quantized::new(vec![0x55; 3], -1.0, 9)).contains("-1"));
    let quantized = |byte| Quantized::new(vec![byte; 3], 1.0, 12).unwrap();
    assert!(TernaryWeights::new(quantized(0x55), 3, 4).is_ok());
    let wrong = TernaryWeights::new(quantized(0x55), 3, 5).unwrap_err().to_string();
    assert!(wrong.contains("expected 15") && wrong.contains("found 12"), "{wrong}");
    let broken = TernaryWeights::new(quantized(0xff), 3, 4).unwrap_err().to_string();
    assert!(broken.contains("packed byte 0"), "{broken}");
    let huge = TernaryWeights::new(quantized(0x55), usize::MAX, 2).unwrap_err().to_string();
    assert!(huge.contains("18446744073709551615 × 2"), "{huge}");
}
