//! Measures engines: sizes, arrays of these sizes, and the shortest of several times.
//!
//! Other programs only ever make a time longer. Engines alternate, so that the threads of a pool have gone to sleep
//! when they are called, as between calls of a program.

use tritrain_cluster::{Options, Start};
use tritrain_trit::pack::packed2_len;

use crate::{
    Cost, Engine, EngineKind, Operation, Quantized, Result, Task, TernaryWeights, clock::Clock,
    cost::Measured,
};

/// Seconds that measuring one operation may take: five of them stay under a second.
const BUDGET: f64 = 0.16;
/// A task that would take longer on an engine, in seconds, is left to others; of an engine that is far behind, one
/// that would take a tenth of it.
const LONGEST: f64 = 0.004;
/// Times a task is measured at most.
const ROUNDS: usize = 5;
/// Seconds that the clock should see: shorter tasks are repeated.
const TICK: f64 = 1e-5;
/// Tasks an engine must have been measured on before larger ones are left out.
const LEAST: usize = 4;

/// An engine that takes so many times as long as the fastest is far behind.
pub(crate) const FAR: f64 = 4.0;

/// Engines that there are, by [`EngineKind::index`].
pub(crate) type Present<'a> = [Option<&'a dyn Engine>; 4];

/// The tasks that an operation is measured with, the smallest first.
pub(crate) fn tasks(operation: Operation) -> Vec<Task> {
    const SIZES: [[usize; 3]; 10] = [
        [1, 16, 16],
        [8, 16, 16],
        [8, 64, 64],
        [1, 256, 512],
        [64, 64, 64],
        [16, 256, 128],
        [64, 64, 512],
        [256, 128, 64],
        [64, 512, 256],
        [256, 256, 512],
    ];
    match operation {
        Operation::Quantize => LENGTHS.map(|len| Task::Quantize { len }).into(),
        Operation::Dequantize => LENGTHS.map(|len| Task::Dequantize { len }).into(),
        Operation::Kmeans => {
            let of = |rows, dim, k| Task::Kmeans { rows, dim, k, iterations: 4 };
            [(256, 16), (256, 128), (1024, 16), (1024, 128), (4096, 16), (4096, 128)]
                .iter()
                .flat_map(|(rows, dim)| [4, 16, 64].map(|k| of(*rows, *dim, k)))
                .collect()
        }
        Operation::Matmul => {
            SIZES.map(|[rows, outputs, inputs]| Task::Matmul { rows, outputs, inputs }).into()
        }
        Operation::TernaryMatmul => {
            SIZES.map(|[rows, outputs, inputs]| Task::TernaryMatmul { rows, outputs, inputs }).into()
        }
    }
}

/// Numbers that conversions are measured with.
const LENGTHS: [usize; 7] = [256, 1024, 8192, 65_536, 262_144, 1_048_576, 4_194_304];

/// The tasks that tell whether costs are right: the smallest and one in the middle.
pub(crate) fn spots(operation: Operation) -> [Task; 2] {
    let tasks = tasks(operation);
    [tasks[0], tasks[tasks.len() / 2]]
}

/// Measures an operation on every engine; costs by [`EngineKind::index`].
pub(crate) fn operation(
    operation: Operation,
    engines: &Present<'_>,
    clock: &dyn Clock,
) -> Result<[Option<Cost>; 4]> {
    let until = clock.seconds() + BUDGET;
    let mut measured: [Vec<Measured>; 4] = Default::default();
    for task in tasks(operation) {
        let enough = measured.iter().zip(engines).all(|(of, engine)| engine.is_none() || of.len() >= LEAST);
        if enough && clock.seconds() >= until {
            break;
        }
        let mut chosen = *engines;
        for (engine, measured) in chosen.iter_mut().zip(&measured) {
            let longest = |of: &Measured| {
                let most = if of.seconds > FAR * of.fastest { LONGEST / 10.0 } else { LONGEST };
                of.seconds * task.work() / of.task.work() > most
            };
            if measured.len() >= LEAST && measured.last().is_some_and(longest) {
                *engine = None;
            }
        }
        let (task, seconds) = measure(&task, &chosen, clock, (ROUNDS, until))?;
        let fastest = fastest(&seconds);
        for (measured, seconds) in measured.iter_mut().zip(seconds) {
            measured.extend(seconds.map(|seconds| Measured { task, seconds, fastest }));
        }
    }
    let fit = |kind: EngineKind| engines[kind.index()].map(|_| Cost::fit(&measured[kind.index()]));
    Ok(EngineKind::ALL.map(fit))
}

/// The least of some seconds.
pub(crate) fn fastest(seconds: &[Option<f64>; 4]) -> f64 {
    seconds.iter().flatten().copied().fold(f64::INFINITY, f64::min)
}

/// The shortest seconds of a task on each of these engines, measured so many times or until a moment, at least once;
/// and the task with the iterations that it had.
pub(crate) fn measure(
    task: &Task,
    engines: &Present<'_>,
    clock: &dyn Clock,
    (rounds, until): (usize, f64),
) -> Result<(Task, [Option<f64>; 4])> {
    let mut arrays = Arrays::of(task)?;
    let mut repeats = [1; 4];
    let mut shortest = [None::<f64>; 4];
    // The first time only warms up, and tells how often to repeat.
    for round in 0..=rounds {
        if round > 1 && clock.seconds() >= until {
            break;
        }
        for (at, engine) in engines.iter().enumerate() {
            let Some(engine) = engine else { continue };
            let started = clock.seconds();
            for _ in 0..repeats[at] {
                arrays.run(task, *engine)?;
            }
            let seconds = (clock.seconds() - started) / f64::from(repeats[at]);
            if round == 0 {
                repeats[at] = (TICK / seconds.max(1e-9)).ceil().clamp(1.0, 1000.0) as u32;
            } else {
                shortest[at] = Some(shortest[at].map_or(seconds, |least| least.min(seconds)));
            }
        }
    }
    // A fit may have come to rest before.
    let done = match *task {
        Task::Kmeans { rows, dim, k, .. } => Task::Kmeans { rows, dim, k, iterations: arrays.iterations },
        task => task,
    };
    Ok((done, shortest))
}

/// What a task reads and writes.
struct Arrays {
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    codes: Vec<u8>,
    weights: Option<TernaryWeights>,
    /// Those of the last fit.
    iterations: usize,
}

/// Numbers from -1 to 1 that look like chance: the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn numbers(len: usize) -> Vec<f32> {
    let number = |i: u64| {
        let mut z = i.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 32) as i32 as f32 / i32::MAX as f32
    };
    (0..len as u64).map(number).collect()
}

/// The field of code 0, four times.
const ZEROS: u8 = 0b01_01_01_01;

impl Arrays {
    fn of(task: &Task) -> Result<Arrays> {
        let (mut x, mut w, mut y) = (Vec::new(), Vec::new(), Vec::new());
        let (mut codes, mut weights) = (Vec::new(), None);
        match *task {
            Task::Quantize { len } => {
                x = numbers(len);
                codes = vec![ZEROS; packed2_len(len)];
            }
            Task::Dequantize { len } => {
                y = vec![0.0; len];
                codes = vec![ZEROS; packed2_len(len)];
            }
            Task::Kmeans { rows, dim, k, .. } => {
                x = numbers(rows * dim);
                w = x[..k * dim].to_vec();
            }
            Task::Matmul { rows, outputs, inputs } => {
                (x, w, y) = (numbers(rows * inputs), numbers(outputs * inputs), vec![0.0; rows * outputs]);
            }
            Task::TernaryMatmul { rows, outputs, inputs } => {
                (x, y) = (numbers(rows * inputs), vec![0.0; rows * outputs]);
                let len = outputs * inputs;
                let codes = Quantized::new(vec![ZEROS; packed2_len(len)], 1.0, len)?;
                weights = Some(TernaryWeights::new(codes, outputs, inputs)?);
            }
        }
        Ok(Arrays { x, w, y, codes, weights, iterations: 0 })
    }

    fn run(&mut self, task: &Task, engine: &dyn Engine) -> Result<()> {
        match (task, &self.weights) {
            (Task::Quantize { .. }, _) => engine.quantize(&self.x, &mut self.codes).map(drop),
            (Task::Dequantize { .. }, _) => engine.dequantize(&self.codes, 1.0, &mut self.y),
            (Task::Kmeans { rows, dim, iterations, .. }, _) => {
                let options = Options { iterations: *iterations, tolerance: 0.0, ..Options::default() };
                let fit = engine.kmeans(&self.x, (*rows, *dim), Start::Given(&self.w), &options)?;
                self.iterations = fit.iterations;
                Ok(())
            }
            (Task::Matmul { rows, outputs, inputs }, _) => {
                engine.matmul(&self.x, &self.w, [*rows, *outputs, *inputs], &mut self.y)
            }
            (Task::TernaryMatmul { .. }, Some(weights)) => {
                engine.ternary_matmul(&self.x, weights, &mut self.y)
            }
            (Task::TernaryMatmul { .. }, None) => Ok(()),
        }
    }
}
