//! The model on the CPU backend against its f64 reference, tensor by tensor.

use tritrain_backend::{Backend, Cpu, Format, Memory, NO_TARGET, Tier};
use tritrain_model::{
    Activations, Gate, Generator, Keep, Layout, Model, ModelConfig, Precision, Relations, TensorKind, Use,
    counted, initial_weights,
    reference::{Arithmetic, Reference},
};
use tritrain_trit::rng::Stream;

const VOCAB: usize = 37;

/// A model with its batch, away from initial symmetry: gains vary and residual outputs are large.
struct Case {
    config: ModelConfig,
    layout: Layout,
    weights: Vec<Vec<f32>>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    batch: usize,
    time: usize,
    purpose: Use,
    /// Share of codes in ternary matrices.
    rounding: f32,
}

impl Case {
    fn new(config: ModelConfig, batch: usize, time: usize, seed: u64) -> Case {
        config.check().unwrap();
        let layout = Layout::new(&config, VOCAB);
        let mut weights = initial_weights(&config, &layout, seed);
        for (id, (tensor, spec)) in weights.iter_mut().zip(&layout.specs).enumerate() {
            let stream = Stream::new(seed, 1000 + id as u32, 1);
            for (index, w) in tensor.iter_mut().enumerate() {
                if matches!(spec.kind, TensorKind::Norm | TensorKind::Bias) {
                    *w += 0.3 * stream.normal(index as u64);
                } else if id == layout.embedding || id == layout.head {
                    *w *= 20.0;
                } else if spec.kind == TensorKind::Adapter {
                    // Both factors: what they add is about a half of what matrices give.
                    *w = 0.7 * stream.normal(index as u64) / (spec.cols as f32).sqrt();
                }
            }
        }
        let stream = Stream::new(seed, 9999, 0);
        let token = |index: usize| stream.bits(index as u64) % VOCAB as u32;
        let n = batch * time;
        let (inputs, targets) = ((0..n).map(token).collect(), (n..2 * n).map(token).collect());
        let purpose = if config.lora > 0 { Use::Adapters } else { Use::Training };
        Case { config, layout, weights, inputs, targets, batch, time, purpose, rounding: 1.0 }
    }

    fn fast(&self, backend: &Cpu) -> (Vec<f32>, Vec<Vec<f32>>) {
        self.keeping(backend, Keep::Everything)
    }

    fn keeping(&self, backend: &Cpu, keep: Keep) -> (Vec<f32>, Vec<Vec<f32>>) {
        let mut model =
            Model::new(backend, &self.config, VOCAB, &|id| (&self.weights[id]).into(), self.purpose);
        model.set_rounding(self.rounding);
        let mut a = Activations::new(backend, &self.config, self.batch, self.time, keep);
        let mut grads: Vec<_> = self.layout.specs.iter().map(|s| backend.floats(s.len())).collect();
        // Twice: whatever a first pass leaves in the buffers must not reach the second.
        for _ in 0..2 {
            model.gradients(backend, &mut a, &self.inputs, &self.targets, &mut grads[..]);
        }
        let mut losses = vec![0.0; a.tokens()];
        backend.download(a.losses(), &mut losses);
        let trained = losses.clone();
        model.evaluate(backend, &mut a, &self.inputs, &self.targets);
        backend.download(a.losses(), &mut losses);
        assert_eq!(losses, trained, "evaluation and training forward differ");
        (losses, grads.iter().map(|grad| grad.to_vec()).collect())
    }

    fn reference(&self, arithmetic: Arithmetic) -> (f64, Vec<Vec<f64>>) {
        let wide: Vec<Vec<f64>> =
            self.weights.iter().map(|w| w.iter().map(|v| f64::from(*v)).collect()).collect();
        let (config, layout, rounding) = (&self.config, &self.layout, f64::from(self.rounding));
        let reference = Reference { config, layout, vocab: VOCAB, rounding };
        reference.loss_and_gradients(&wide, &self.inputs, &self.targets, self.batch, self.time, arithmetic)
    }

    /// Loss and every gradient within the tolerances, as ‖difference‖ / ‖reference‖.
    fn check(&self, arithmetic: Arithmetic, loss_tolerance: f64, tolerance: f64) {
        let backend = Cpu::new(2).unwrap();
        let (losses, grads) = self.fast(&backend);
        let (loss, reference) = self.reference(arithmetic);
        let mean = losses.iter().map(|l| f64::from(*l)).sum::<f64>() / counted(&self.targets) as f64;
        let error = (mean - loss).abs() / loss;
        assert!(error <= loss_tolerance, "loss {mean}, reference {loss}: {error:e} in {:?}", self.config);
        let gradients = self.layout.specs.iter().zip(&grads).zip(&reference).enumerate();
        for (_, ((spec, fast), reference)) in gradients.filter(|(id, _)| self.layout.trains(*id)) {
            let norm = reference.iter().map(|v| v * v).sum::<f64>().sqrt();
            let difference =
                fast.iter().zip(reference).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
            let error = difference / norm;
            assert!(error <= tolerance, "{}: {error:e} of {norm:e} in {:?}", spec.name, self.config);
        }
    }
}

fn small(precision: Precision) -> Vec<Case> {
    let base = ModelConfig {
        dim: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn: 256,
        context: 64,
        precision,
        ..ModelConfig::default()
    };
    vec![
        Case::new(base.clone(), 2, 33, 1),
        Case::new(ModelConfig { gate: Gate::Relu2, ..base.clone() }, 1, 64, 2),
        Case::new(ModelConfig { sub_norm: false, tied: false, qkv_bias: true, ..base.clone() }, 3, 17, 3),
        Case::new(ModelConfig { kv_heads: 4, heads: 4, layers: 1, ..base.clone() }, 2, 1, 4),
        // Rows of 64 · 3 and 64 · 5.
        Case::new(ModelConfig { dim: 192, heads: 3, kv_heads: 1, ffn: 320, ..base.clone() }, 2, 19, 5),
        Case::new(
            ModelConfig { dim: 192, heads: 3, kv_heads: 3, ffn: 64, sub_norm: false, ..base },
            1,
            31,
            6,
        ),
    ]
}

/// The same cases, with a target at a third of all positions and at none of the first sequence.
fn masked(precision: Precision) -> Vec<Case> {
    let mut cases = small(precision);
    for case in &mut cases {
        let skipped = if case.batch > 1 { case.time } else { 0 };
        for (at, target) in case.targets.iter_mut().enumerate() {
            if at < skipped || (at % 3 != 1 && at + 1 < case.batch * case.time) {
                *target = NO_TARGET;
            }
        }
    }
    cases
}

#[test]
fn gradients_of_some_targets_equal_the_reference() {
    for case in masked(Precision::F32) {
        case.check(Arithmetic::Exact, 1e-6, 2e-5);
    }
    for case in masked(Precision::Ternary) {
        case.check(Arithmetic::TERNARY, 2e-3, 3e-2);
    }
}

#[test]
fn f32_gradients_equal_the_reference() {
    for case in small(Precision::F32) {
        case.check(Arithmetic::Exact, 1e-6, 2e-5);
    }
}

/// Integer arithmetic adds no error of its own: what remains is rounding that f32 norms tip over to
/// the neighbouring int8 code, a few in ten thousand.
#[test]
fn ternary_gradients_equal_the_reference_with_the_same_roundings() {
    for case in small(Precision::Ternary) {
        case.check(Arithmetic::TERNARY, 2e-3, 3e-2);
    }
}

#[test]
fn rounding_that_is_turned_on_in_part_equals_the_reference() {
    let rounded = small(Precision::Ternary).remove(2).fast(&Cpu::new(1).unwrap());
    for rounding in [0.0, 0.3, 1.0] {
        for mut case in small(Precision::Ternary) {
            case.rounding = rounding;
            case.check(Arithmetic::TERNARY, 2e-3, 3e-2);
        }
        let mut case = small(Precision::Ternary).remove(2);
        case.rounding = rounding;
        let found = case.fast(&Cpu::new(1).unwrap());
        assert!((found == rounded) == (rounding == 1.0), "{rounding}");
        let backend = Cpu::new(3).unwrap();
        assert!(found == case.fast(&backend) && found == case.keeping(&backend, Keep::Inputs), "{rounding}");
        // Latent weights that are packed without loss: the same model.
        case.weights.iter_mut().zip(&case.layout.specs).for_each(|(weights, spec)| {
            if spec.kind == TensorKind::Matrix {
                weights.iter_mut().for_each(|w| *w = half::bf16::from_f32(*w).to_f32());
            }
        });
        let plain = case.fast(&backend);
        case.purpose = Use::Packed(Format::Bf16, 1.0);
        assert!(plain == case.fast(&backend), "{rounding}");
    }
}

/// Along its gradient, the divergence of relations changes as the gradient says.
#[test]
fn relations_have_the_gradient_of_their_divergence() {
    let backend = Cpu::new(2).unwrap();
    let base = small(Precision::F32).remove(2).config;
    for (layer, keep) in [(0, Keep::Everything), (1, Keep::Everything), (1, Keep::Inputs)] {
        let [mut case, other] = [7, 8].map(|seed| Case::new(base.clone(), 2, 17, seed));
        let model = |case: &Case| {
            let weights = |id: usize| (&case.weights[id]).into();
            Model::<Cpu>::new(&backend, &case.config, VOCAB, &weights, Use::Training)
        };
        let relations = |case: &Case, weight: f32| {
            let mut a = Activations::new(&backend, &case.config, case.batch, case.time, keep);
            let len = a.tokens() * case.config.qkv_rows();
            let mut relations = Relations::new(&backend, (layer, weight), (1, len));
            let mut theirs = Activations::new(&backend, &case.config, case.batch, case.time, Keep::Nothing);
            for _ in 0..2 {
                let to = relations.of_pass(0);
                model(&other).projections(&backend, &mut theirs, &case.inputs, layer, to);
            }
            relations.begin(&backend, 0);
            a.relations = Some(relations);
            let mut grads: Vec<_> = case.layout.specs.iter().map(|s| backend.floats(s.len())).collect();
            model(case).gradients(&backend, &mut a, &case.inputs, &case.targets, &mut grads[..]);
            let sum = f64::from(a.relations.as_ref().unwrap().sum()[0]);
            (sum, grads.iter().map(|grad| grad.to_vec()).collect::<Vec<_>>())
        };
        // Of the loss alone, and with relations: the difference is theirs.
        let ((before, plain), (_, with)) = (relations(&case, 0.0), relations(&case, 64.0));
        let gradient: Vec<Vec<f32>> = with
            .iter()
            .zip(&plain)
            .map(|(with, plain)| with.iter().zip(plain).map(|(a, b)| (a - b) / 64.0).collect())
            .collect();
        let square: f64 = gradient.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
        assert!(before > 0.01 && square > 0.0, "{before} {square}");
        let behind = case.layout.blocks[layer].o;
        assert!(gradient[behind].iter().all(|g| *g == 0.0), "the matrix behind it has nothing to do with it");
        let step = 0.02 * before / square;
        let weights = case.weights.clone();
        let [more, less] = [step, -step].map(|step| {
            for ((to, from), gradient) in case.weights.iter_mut().zip(&weights).zip(&gradient) {
                for ((to, from), g) in to.iter_mut().zip(from).zip(gradient) {
                    *to = (f64::from(*from) + step * f64::from(*g)) as f32;
                }
            }
            relations(&case, 0.0).0
        });
        let found = (more - less) / (2.0 * step);
        assert!((found / square - 1.0).abs() < 0.02, "{found} for {square} in block {layer}");
    }
}

/// Cases of ternary models with adapters beside their matrices.
fn adapted() -> Vec<Case> {
    let base = ModelConfig { lora: 8, ..small(Precision::Ternary)[0].config.clone() };
    vec![
        Case::new(base.clone(), 2, 33, 1),
        Case::new(ModelConfig { lora: 1, gate: Gate::Relu2, ..base.clone() }, 1, 64, 2),
        Case::new(ModelConfig { lora: 5, sub_norm: false, tied: false, qkv_bias: true, ..base }, 3, 17, 3),
    ]
}

#[test]
fn gradients_of_adapters_equal_the_reference() {
    for case in adapted() {
        case.check(Arithmetic::TERNARY, 2e-3, 3e-2);
        // Nothing else has any.
        let (_, gradients) = case.fast(&Cpu::new(2).unwrap());
        for (spec, gradient) in case.layout.specs.iter().zip(gradients) {
            let zero = matches!(spec.kind, TensorKind::Matrix | TensorKind::Embedding);
            assert!(!zero || gradient.iter().all(|g| *g == 0.0), "{}", spec.name);
        }
    }
}

#[test]
fn adapters_change_no_bit_with_threads_and_what_is_kept_and_generate() {
    for case in adapted() {
        let one = case.fast(&Cpu::new(1).unwrap());
        let backend = Cpu::new(3).unwrap();
        assert!(one == case.fast(&backend) && one == case.keeping(&backend, Keep::Inputs));
        let model =
            Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
        let mut generator = Generator::new(&model, &backend, &case.inputs[..5]).unwrap();
        let (mut errors, mut sum) = (0.0, 0.0);
        for position in 4..case.time {
            let logits = generator.logits();
            let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            let loss = total.ln() - f64::from(logits[case.targets[position] as usize]);
            let error = (loss - f64::from(one.0[position])).abs();
            (errors, sum) = (errors + error, sum + loss);
            if position + 1 < case.time {
                generator.push(&model, &backend, case.inputs[position + 1]);
            }
        }
        // Caches are int8, and an adapter of rank one makes outliers.
        assert!(errors < 4e-2 * sum, "{errors} of {sum} nats");
    }
}

#[test]
fn any_number_of_threads_and_any_tier_give_the_same_bits() {
    for precision in [Precision::Ternary, Precision::F32] {
        let cases = small(precision);
        for case in [&cases[0], &cases[4], &cases[5]] {
            let (losses, grads) = case.fast(&Cpu::with_tier(Tier::SCALAR, 1).unwrap());
            for tier in Tier::available() {
                for threads in [1, 2, 3, 8] {
                    let (others, other_grads) = case.fast(&Cpu::with_tier(tier, threads).unwrap());
                    assert!(losses == others && grads == other_grads, "{} on {threads} threads", tier.name());
                }
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn what_is_kept_changes_no_bit() {
    let deep = ModelConfig {
        layers: 4,
        heads: 4,
        kv_heads: 1,
        ffn: 512,
        context: 32,
        gate: Gate::Relu2,
        sub_norm: false,
        ..ModelConfig::default()
    };
    for precision in [Precision::Ternary, Precision::F32] {
        let config = ModelConfig { precision, ..deep.clone() };
        let cases = [
            Case::new(ModelConfig { sub_norm: true, ..config.clone() }, 2, 31, 6),
            Case::new(config, 1, 32, 7),
        ];
        for case in cases.into_iter().chain(small(precision)) {
            let backend = Cpu::new(2).unwrap();
            let (losses, grads) = case.fast(&backend);
            let (again, again_grads) = case.keeping(&backend, Keep::Inputs);
            assert_eq!(bits(&losses), bits(&again), "{:?}", case.config);
            for ((spec, a), b) in case.layout.specs.iter().zip(&grads).zip(&again_grads) {
                assert!(bits(a) == bits(b), "{} in {:?}", spec.name, case.config);
            }
            let model =
                Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
            let mut a = Activations::new(&backend, &case.config, case.batch, case.time, Keep::Nothing);
            model.evaluate(&backend, &mut a, &case.inputs, &case.targets);
            assert_eq!(bits(a.losses()), bits(&losses), "evaluation alone of {:?}", case.config);
        }
    }
}

#[test]
fn generation_sees_what_training_saw() {
    for precision in [Precision::Ternary, Precision::F32] {
        let case = &small(precision)[1];
        let backend = Cpu::new(2).unwrap();
        let (losses, _) = case.fast(&backend);
        let model =
            Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
        for prompt in [1, 5, 20] {
            let mut generator = Generator::new(&model, &backend, &case.inputs[..prompt]).unwrap();
            for position in prompt - 1..case.time {
                let logits = generator.logits();
                let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                let loss = total.ln() - f64::from(logits[case.targets[position] as usize]);
                let error = (loss - f64::from(losses[position])).abs();
                assert!(error < 2e-2 * loss.max(1.0), "position {position} of {precision:?}: {error}");
                if position + 1 < case.time {
                    generator.push(&model, &backend, case.inputs[position + 1]);
                }
            }
        }
    }
}

/// Caches grow while tokens are made, and keep what they hold.
#[test]
fn a_long_sequence_is_remembered() {
    let config = ModelConfig { dim: 256, layers: 2, ffn: 256, context: 150, ..ModelConfig::default() };
    let case = Case::new(config, 1, 150, 6);
    let backend = Cpu::new(2).unwrap();
    let (losses, _) = case.fast(&backend);
    let model = Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
    let mut generator = Generator::new(&model, &backend, &case.inputs[..1]).unwrap();
    for position in 0..150 {
        let logits = generator.logits();
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let loss = total.ln() - f64::from(logits[case.targets[position] as usize]);
        let error = (loss - f64::from(losses[position])).abs();
        assert!(error < 2e-2 * loss.max(1.0), "position {position}: {error}");
        if position < 149 {
            generator.push(&model, &backend, case.inputs[position + 1]);
        }
    }
}

#[test]
fn generation_goes_on_past_the_context() {
    let config = ModelConfig { dim: 256, layers: 1, ffn: 256, context: 8, ..ModelConfig::default() };
    let case = Case::new(config, 1, 8, 5);
    let backend = Cpu::new(1).unwrap();
    let model = Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
    let mut long = Generator::new(&model, &backend, &case.inputs).unwrap();
    long.push(&model, &backend, 7);
    let mut kept = case.inputs[4..].to_vec();
    kept.push(7);
    let short = Generator::new(&model, &backend, &kept).unwrap();
    assert_eq!(long.logits(), short.logits(), "the later half and the new token, read anew");
    for token in 0..30 {
        long.push(&model, &backend, token);
    }
    let prompt = vec![1; 100];
    assert_eq!(
        Generator::new(&model, &backend, &prompt).unwrap().logits(),
        Generator::new(&model, &backend, &prompt[..8]).unwrap().logits(),
        "a prompt longer than the context keeps its end"
    );
}

/// Also where one of them ends, and where one is longer than the context.
#[test]
fn sequences_together_are_what_they_are_alone() {
    let config = ModelConfig {
        dim: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        ffn: 512,
        context: 12,
        ..ModelConfig::default()
    };
    let case = Case::new(config, 1, 12, 8);
    let backend = Cpu::new(2).unwrap();
    let model = Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
    let prompts = [&case.inputs[..1], &case.inputs[3..12], &case.inputs[2..4], &case.inputs[..5]];
    let mut together = Generator::of_all(&model, &backend, &prompts).unwrap();
    let mut alone: Vec<_> =
        prompts.iter().map(|prompt| Generator::new(&model, &backend, prompt).unwrap()).collect();
    for step in 0..14 {
        let apart: Vec<u32> = alone.iter().flat_map(|one| bits(one.logits())).collect();
        assert_eq!(bits(together.logits()), apart, "step {step}");
        if step == 6 {
            together.retain(&model, &backend, |sequence| sequence != 2);
            alone.remove(2);
            let apart: Vec<u32> = alone.iter().flat_map(|one| bits(one.logits())).collect();
            assert_eq!(bits(together.logits()), apart, "without the third");
        }
        let tokens: Vec<u32> = (0..alone.len()).map(|n| (step * 7 + n * 5) as u32 % VOCAB as u32).collect();
        together.push_all(&model, &backend, &tokens);
        alone.iter_mut().zip(&tokens).for_each(|(one, token)| one.push(&model, &backend, *token));
    }
}

#[test]
fn bad_prompts_are_errors() {
    let case = &small(Precision::Ternary)[3];
    let backend = Cpu::new(1).unwrap();
    let model = Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), Use::Inference);
    let error = |prompt: &[u32]| Generator::new(&model, &backend, prompt).err().unwrap().to_string();
    assert_eq!(error(&[]), "the prompt holds no tokens; start it with the end-of-text token");
    assert_eq!(error(&[1, 99]), "token 99 at position 1 of the prompt: the model has 37 tokens");
}

#[test]
fn packed_latent_weights_give_the_gradients_of_the_same_numbers() {
    let backend = Cpu::new(2).unwrap();
    let config =
        ModelConfig { dim: 256, layers: 2, heads: 4, kv_heads: 2, ffn: 256, ..ModelConfig::default() };
    let mut case = Case::new(config, 2, 9, 3);
    case.purpose = Use::Packed(Format::Bf16, 1.0);
    for keep in [Keep::Everything, Keep::Inputs] {
        let packed = case.keeping(&backend, keep);
        // The numbers that the packed model holds, as f32.
        let model = Model::new(&backend, &case.config, VOCAB, &|id| (&case.weights[id]).into(), case.purpose);
        let numbers =
            |id: usize, rows, cols| model.values(&backend, id).numbers(&backend, rows, cols).into_owned();
        let specs = case.layout.specs.iter().enumerate();
        let rounded: Vec<Vec<f32>> = specs.map(|(id, spec)| numbers(id, spec.rows, spec.cols)).collect();
        let floats =
            Case { weights: rounded, purpose: Use::Training, ..Case::new(case.config.clone(), 2, 9, 3) };
        assert!(packed == floats.keeping(&backend, keep), "{keep:?}");
    }
}
