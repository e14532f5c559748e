//! Batches that go through the model in several passes: gradients add up to those of one pass. And what gradients
//! predict of a step.

use tritrain_backend::{Cpu, NO_TARGET, Values};
use tritrain_model::{Layout, ModelConfig, Precision, initial_tensor};
use tritrain_optim::{DirectionKind, GradientKind, OptimConfig, Rates, Reduction, StorageKind};
use tritrain_train::{Learner, Measured, Setup};

const VOCAB: usize = 64;
const BATCH: usize = 8;
const STEPS: usize = 40;

/// What the steps of a run measure, and the losses of the tokens of the last batch.
fn run(
    precision: Precision,
    direction: DirectionKind,
    gradient: GradientKind,
    passes: usize,
) -> (Vec<Measured>, Vec<f32>) {
    run_on(precision, direction, gradient, passes, |_| true)
}

/// The same with targets where `counts` says so.
fn run_on(
    precision: Precision,
    direction: DirectionKind,
    gradient: GradientKind,
    passes: usize,
    counts: impl Fn(usize) -> bool,
) -> (Vec<Measured>, Vec<f32>) {
    let shape =
        ModelConfig { layers: 2, heads: 4, kv_heads: 4, ffn: 256, context: 32, ..ModelConfig::default() };
    let model = ModelConfig { precision, ..shape };
    let optim = OptimConfig { direction, gradient, ..OptimConfig::default() };
    let backend = Cpu::new(1).unwrap();
    let layout = Layout::new(&model, VOCAB);
    let weights = |id: usize| Values::Floats(initial_tensor(&model, &layout, 1, id).into());
    let setup = Setup { vocab: VOCAB, batch: BATCH, passes, recompute: false, seed: 1 };
    let mut learner = Learner::new(&backend, &model, &optim, setup, &weights);
    let count = BATCH * model.context;
    let token = |at: usize| ((at * at * 7 + at / 3) % VOCAB) as u32;
    let rates = Rates { matrices: 0.01, embedding: 0.01, radius: f32::INFINITY };
    let step = |step: usize| {
        let [inputs, mut targets] = [0, 1]
            .map(|ahead| (0..count).map(|at| token(at + ahead + step % 3 * count)).collect::<Vec<u32>>());
        let left_out = targets.iter_mut().enumerate().filter(|(at, _)| !counts(*at));
        left_out.for_each(|(_, target)| *target = NO_TARGET);
        learner.step(&backend, &inputs, &targets, rates).unwrap()
    };
    let measured = (0..STEPS).map(step).collect();
    let mut losses = vec![0.0; count];
    learner.losses(&backend, &mut losses);
    (measured, losses)
}

fn close(a: f32, b: f32, share: f32, what: &str) {
    assert!((a - b).abs() <= share * a.abs().max(b.abs()), "{what}: {a} and {b}");
}

#[test]
fn passes_of_the_twin_are_one_pass_but_for_rounding() {
    let (precision, gradient) = (Precision::F32, GradientKind::F32);
    let (whole, losses) = run(precision, DirectionKind::Adamw, gradient, 1);
    for passes in [2, 8] {
        let (found, by_token) = run(precision, DirectionKind::Adamw, gradient, passes);
        for (step, (a, b)) in whole.iter().zip(&found).take(5).enumerate() {
            let what = format!("step {step}, {passes} passes");
            close(a.loss, b.loss, 1e-5, &what);
            close(a.gradient_norm, b.gradient_norm, 1e-3, &what);
            close(a.direction_norm, b.direction_norm, 1e-3, &what);
        }
        let mean = |losses: &[f32]| losses.iter().sum::<f32>() / losses.len() as f32;
        close(mean(&losses), mean(&by_token), 0.02, "losses by token");
        close(mean(&by_token), found[STEPS - 1].loss, 1e-5, "their mean");
    }
}

/// Of the first of eight sequences every fourth position counts, of the second none, of the others more and more: the
/// mean is over all that count, in whatever pass they are.
#[test]
fn targets_count_alike_in_any_pass() {
    let (precision, gradient) = (Precision::F32, GradientKind::F32);
    let counts = |at: usize| match at / 32 {
        0 => at.is_multiple_of(4),
        1 => false,
        sequence => at % 8 < sequence,
    };
    let (whole, losses) = run_on(precision, DirectionKind::Adamw, gradient, 1, counts);
    let targets = (0..losses.len()).filter(|at| counts(*at)).count() as f32;
    close(losses.iter().sum::<f32>() / targets, whole[STEPS - 1].loss, 1e-5, "the mean of what counts");
    assert!(losses.iter().enumerate().all(|(at, loss)| counts(at) || *loss == 0.0));
    for passes in [2, 8] {
        let (found, _) = run_on(precision, DirectionKind::Adamw, gradient, passes, counts);
        for (step, (a, b)) in whole.iter().zip(&found).take(5).enumerate() {
            let what = format!("step {step}, {passes} passes");
            close(a.loss, b.loss, if step == 0 { 1e-6 } else { 1e-4 }, &what);
            close(a.gradient_norm, b.gradient_norm, 2e-3, &what);
            close(a.direction_norm, b.direction_norm, 2e-3, &what);
        }
    }
    // A batch without any target moves nothing that a gradient moves, and breaks nothing.
    for gradient in [GradientKind::F32, GradientKind::Trits] {
        let (empty, _) = run_on(Precision::Ternary, DirectionKind::Factored, gradient, 2, |_| false);
        assert!(empty.iter().all(|step| step.loss == 0.0 && step.gradient_norm == 0.0), "{gradient:?}");
    }
}

#[test]
fn ternary_models_learn_alike_in_passes() {
    for gradient in [GradientKind::F32, GradientKind::Trits] {
        let (whole, _) = run(Precision::Ternary, DirectionKind::Factored, gradient, 1);
        let (found, _) = run(Precision::Ternary, DirectionKind::Factored, gradient, 4);
        let what = format!("{gradient:?}");
        close(whole[0].loss, found[0].loss, 1e-4, &what);
        let (before, after, in_passes) = (whole[0].loss, whole[STEPS - 1].loss, found[STEPS - 1].loss);
        assert!(after < 0.8 * before, "{what}: {before} to {after}");
        // Four times as many draws for the same gradient: no worse.
        assert!(in_passes < before - 0.9 * (before - after), "{what}: {after} and {in_passes}");
    }
}

#[test]
#[should_panic(expected = "tokens of a batch")]
fn a_batch_that_is_no_whole_number_of_passes_is_refused() {
    run(Precision::F32, DirectionKind::Adamw, GradientKind::F32, 3);
}

/// Small steps take off the loss what their gradients predict, where these are those of the loss: in f32. Straight
/// through the rounding they are not, but what is measured is what the next step finds.
#[test]
fn small_steps_keep_what_gradients_promise() {
    use {GradientKind as G, StorageKind as S};
    let cases = [
        (Precision::F32, S::F32, G::F32, 1, Some(0.05)),
        (Precision::F32, S::F32, G::F32, 4, Some(0.05)),
        (Precision::Ternary, S::F32, G::F32, 2, None),
        (Precision::Ternary, S::Trits5, G::Trits, 2, None),
        (Precision::Ternary, S::Int8, G::None, 1, None),
    ];
    for (precision, latent, gradient, passes, share) in cases {
        let what = format!("{precision:?} {latent:?} {gradient:?}, {passes} passes");
        let shape =
            ModelConfig { layers: 2, heads: 4, kv_heads: 4, ffn: 256, context: 32, ..ModelConfig::default() };
        let model = ModelConfig { precision, ..shape };
        let optim = OptimConfig { latent, gradient, feedback: 1, momentum: 0.0, ..OptimConfig::default() };
        let backend = Cpu::new(1).unwrap();
        let layout = Layout::new(&model, VOCAB);
        let weights = |id: usize| Values::Floats(initial_tensor(&model, &layout, 1, id).into());
        let setup = Setup { vocab: VOCAB, batch: BATCH, passes, recompute: false, seed: 1 };
        let mut learner = Learner::new(&backend, &model, &optim, setup, &weights);
        let tokens = |from: usize| {
            (from..from + BATCH * model.context).map(|at| (at * at * 7 % VOCAB) as u32).collect::<Vec<_>>()
        };
        let rates = Rates { matrices: 1e-4, embedding: 1e-4, radius: f32::INFINITY };
        for step in 0..4 {
            let before = learner.step(&backend, &tokens(0), &tokens(1), rates).unwrap();
            assert_eq!(before.reduction, None, "{what}: nobody asked");
            learner.watch();
            let found = learner.step(&backend, &tokens(0), &tokens(1), rates).unwrap();
            let mut by_token = vec![0.0; BATCH * model.context];
            learner.losses(&backend, &mut by_token);
            let mean = by_token.iter().sum::<f32>() / by_token.len() as f32;
            close(mean, found.loss, 1e-5, &format!("{what}: losses are those before the step"));
            let next = learner.step(&backend, &tokens(0), &tokens(1), rates).unwrap();
            let Reduction { predicted, actual } = found.reduction.unwrap();
            let seen = f64::from(found.loss) - f64::from(next.loss);
            assert!((actual - seen).abs() < 2e-6, "{what}, step {step}: {actual} and {seen}");
            assert!(predicted > 0.0, "{what}, step {step}: {predicted}");
            let off = (actual / predicted - 1.0).abs();
            assert!(share.is_none_or(|share| off < share), "{what}, step {step}: {actual} of {predicted}");
        }
    }
}
