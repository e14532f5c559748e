//! What a training step allocates, on all threads: a program of its own, without a test harness.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};
use tritrain_backend::{Backend, Cpu, Tier, Values};
use tritrain_model::{Layout, ModelConfig, Precision, initial_tensor};
use tritrain_optim::{DirectionKind, GradientKind, OptimConfig, Rates, StorageKind};
use tritrain_train::{Config, Learner, Ledger, Setup};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const VOCAB: usize = 300;
const BATCH: usize = 3;
/// More than the 63 jobs that fill a block of the queue by which rayon takes work from outside.
const STEPS: usize = 70;
/// Steps of the f32 model, whose products take most of the time.
const STEPS_F32: usize = 8;

fn model(precision: Precision) -> ModelConfig {
    ModelConfig {
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn: 512,
        context: 40,
        precision,
        ..ModelConfig::default()
    }
}

/// What each of `count` steps allocates, all threads together.
fn steps(
    backend: &Cpu,
    config: &ModelConfig,
    optim: &OptimConfig,
    (recompute, passes): (bool, usize),
    count: usize,
) -> Vec<Stats> {
    let layout = Layout::new(config, VOCAB);
    let weights = |id: usize| Values::Floats(initial_tensor(config, &layout, 1, id).into());
    let setup = Setup { vocab: VOCAB, batch: BATCH, passes, recompute, seed: 1 };
    let mut learner = Learner::new(backend, config, optim, setup, &weights);
    let tokens = |from: usize| {
        (from..from + BATCH * config.context).map(|t| (t * t % VOCAB) as u32).collect::<Vec<_>>()
    };
    let (inputs, targets) = (tokens(0), tokens(1));
    let rates = Rates { matrices: 0.01, embedding: 0.01, radius: f32::INFINITY };
    let mut found = Vec::with_capacity(count);
    backend.run(|| {
        for _ in 0..count {
            if optim.feedback > 0 {
                learner.watch();
            }
            let region = Region::new(COUNTED);
            learner.step(backend, &inputs, &targets, rates).unwrap();
            found.push(region.change());
        }
    });
    found
}

fn settings() -> [OptimConfig; 7] {
    let (f32s, default) = (OptimConfig::default(), OptimConfig::default());
    let low = OptimConfig {
        latent: StorageKind::Trits3,
        gradient: GradientKind::None,
        moment: StorageKind::Trits2,
        radius: 0.05,
        ..OptimConfig::default()
    };
    let (latent, gradient, moment) = (StorageKind::Bf16, GradientKind::Trits, StorageKind::Int8);
    let stored = OptimConfig { latent, gradient, moment, ..OptimConfig::default() };
    let of = |direction| OptimConfig { direction, ..default.clone() };
    let lion = OptimConfig { moment: StorageKind::Int8, ..of(DirectionKind::Lion) };
    // With room to watch steps.
    let (low, lion) = (OptimConfig { feedback: 1, ..low }, OptimConfig { feedback: 1, ..lion });
    [f32s, of(DirectionKind::Adamw), of(DirectionKind::Adamw8), of(DirectionKind::Signum), lion, low, stored]
}

/// Whether blocks are computed again, and the passes of a batch, as far as gradients can add up.
fn ways(optim: &OptimConfig) -> impl Iterator<Item = (bool, usize)> {
    let several = optim.gradient != GradientKind::None;
    [(false, 1), (true, 1), (false, BATCH)].into_iter().filter(move |(_, passes)| *passes == 1 || several)
}

fn main() {
    // All of them live to the end: threads of a pool that is dropped would free their memory under a step.
    let mut backends = Vec::new();
    the_ledger_counts_what_is_allocated(&mut backends);
    a_step_allocates_nothing_after_the_first(&mut backends);
    muon_takes_memory_for_its_products_alone(&mut backends);
}

/// Bytes that are allocated and not freed, a learner and two of its steps long.
fn live(
    backend: &Cpu,
    optim: &OptimConfig,
    model: &ModelConfig,
    (recompute, passes): (bool, usize),
) -> usize {
    let layout = Layout::new(model, VOCAB);
    let region = Region::new(COUNTED);
    let weights = |id: usize| Values::Floats(initial_tensor(model, &layout, 1, id).into());
    let setup = Setup { vocab: VOCAB, batch: BATCH, passes, recompute, seed: 1 };
    let mut learner = Learner::new(backend, model, optim, setup, &weights);
    let tokens: Vec<u32> = (0..BATCH * model.context).map(|t| (t * t % VOCAB) as u32).collect();
    let rates = Rates { matrices: 0.01, embedding: 0.01, radius: f32::INFINITY };
    backend.run(|| {
        for _ in 0..2 {
            if optim.feedback > 0 {
                learner.watch();
            }
            learner.step(backend, &tokens, &tokens, rates).unwrap();
        }
    });
    let Stats { bytes_allocated, bytes_deallocated, .. } = region.change();
    bytes_allocated - bytes_deallocated
}

fn the_ledger_counts_what_is_allocated(backends: &mut Vec<Cpu>) {
    let model = ModelConfig { dim: 512, ffn: 2048, layers: 4, ..model(Precision::Ternary) };
    let muon = OptimConfig { direction: DirectionKind::Muon, ..OptimConfig::default() };
    for optim in settings().into_iter().chain([muon]) {
        for (recompute, passes) in ways(&optim) {
            for threads in [1, 3] {
                let backend = Cpu::new(threads).unwrap();
                let mut config = Config { model: model.clone(), optim: optim.clone(), ..Config::default() };
                (config.run.batch, config.run.recompute) = (BATCH, recompute);
                config.run.micro_batch = BATCH / passes;
                let ledger = Ledger::new(&config, VOCAB, (Tier::detect().unwrap(), threads), None);
                let found = live(&backend, &optim, &model, (recompute, passes));
                let counted = ledger.of_the_run();
                let off = counted as f64 / found as f64 - 1.0;
                let OptimConfig { direction, latent, gradient, .. } = optim;
                let what =
                    format!("{direction:?} {latent:?} {gradient:?}, recompute {recompute}, {passes} passes");
                println!(
                    "{what}, {threads} threads: {counted} bytes in the ledger, {found} found, {off:+.4}"
                );
                // The ledger leaves out what the `gemm` crate keeps for each thread.
                let kept = if direction == DirectionKind::Muon { threads as f64 * 2.5e6 } else { 0.0 };
                let least = -0.01 - kept / found as f64;
                assert!((least..0.01).contains(&off), "{:#?}", ledger.classes);
                backends.push(backend);
            }
        }
    }
}

fn a_step_allocates_nothing_after_the_first(backends: &mut Vec<Cpu>) {
    for threads in [1, 2, 3] {
        for optim in settings() {
            for way @ (recompute, passes) in ways(&optim) {
                let OptimConfig { direction, latent, gradient, .. } = optim;
                let what = format!(
                    "{threads} threads, {direction:?} {latent:?} {gradient:?}, recompute {recompute}, \
                     {passes} passes"
                );
                // A backend of its own: the first step finds no working memory.
                let backend = Cpu::new(threads).unwrap();
                let found = steps(&backend, &model(Precision::Ternary), &optim, way, STEPS);
                assert!(found[0].allocations > 10, "the counter does not count: {:?}", found[0]);
                for (step, stats) in found.iter().enumerate().skip(1) {
                    assert_eq!(*stats, Stats::default(), "ternary step {step}, {what}");
                }
                if passes == 1 && optim.feedback == 0 {
                    f32_products_alone_allocate(&backend, &optim, recompute, &what);
                }
                backends.push(backend);
            }
        }
    }
}

/// The `gemm` crate takes memory for packed operands in each call, and working memory once per thread.
fn f32_products_alone_allocate(backend: &Cpu, optim: &OptimConfig, recompute: bool, what: &str) {
    let config = model(Precision::F32);
    let found = steps(backend, &config, optim, (recompute, 1), STEPS_F32);
    // Four matrices a block and the head, three products each; of all blocks but the last, three again.
    let again = if recompute { 3 * (config.layers - 1) } else { 0 };
    check_products(&found, 3 * (4 * config.layers + 1) + again, backend, &format!("f32, {what}"));
}

fn check_products(found: &[Stats], products: usize, backend: &Cpu, what: &str) {
    /// Calls of the crate for one product, and allocations in a call, at most.
    const CALLS: usize = 4;
    const IN_A_CALL: usize = 2;
    let mut kept = 0;
    for (step, stats) in found.iter().enumerate().skip(1) {
        let most = IN_A_CALL * CALLS * products + backend.threads();
        assert!(stats.allocations <= most, "{what}, step {step}: {stats:?}, at most {most}");
        assert_eq!(stats.reallocations, 0, "{what}, step {step}");
        kept += stats.allocations - stats.deallocations;
    }
    assert!(kept <= backend.threads(), "{what}: {kept} allocations were kept");
}

fn muon_takes_memory_for_its_products_alone(backends: &mut Vec<Cpu>) {
    let optim = OptimConfig { direction: DirectionKind::Muon, ..OptimConfig::default() };
    for threads in [1, 3] {
        let (backend, config) = (Cpu::new(threads).unwrap(), model(Precision::Ternary));
        let found = steps(&backend, &config, &optim, (false, 1), STEPS_F32);
        // Of each of four matrices a block, four products in each of five iterations but two, and one for each side.
        check_products(&found, 4 * config.layers * 19, &backend, &format!("muon, {threads} threads"));
        backends.push(backend);
    }
}
