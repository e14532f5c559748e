//! A step that is not finite changes nothing, and too many of them end the run.
use tritrain_backend::Cpu;
use tritrain_data::{Document, Preparation, Source};
use tritrain_files::Disk;
use tritrain_optim::GradientKind;

use super::*;

pub(super) fn tiny(dir: &std::path::Path) -> (Config, Corpus) {
    let mut config = Config::default();
    (config.model.layers, config.model.ffn, config.model.context) = (1, 256, 16);
    (config.data.vocab, config.data.validation) = (280, 0.2);
    config.data.plan = tritrain_data::PlanKind::Shuffle;
    (config.run.batch, config.run.steps, config.run.tokens) = (2, 50, 0);
    (config.run.eval_every, config.run.sample_every, config.run.checkpoint_every) = (0, 0, 0);
    let text = "a text that is repeated and repeated, ".repeat(60);
    let document = |n: usize| Document {
        domain: "d".into(),
        name: n.to_string(),
        text: format!("{n} {text}"),
        ..Document::default()
    };
    let source = Source::Memory { name: "memory".into(), documents: (0..5).map(document).collect() };
    let corpus = Preparation::start(&Disk, &source, (&config.data, config.model.context), dir)
        .unwrap()
        .finish()
        .unwrap();
    (config, corpus)
}

fn numbers(model: &Model<Cpu>, backend: &Cpu, id: usize) -> Vec<f32> {
    let spec = &model.layout().specs[id];
    model.values(backend, id).numbers(backend, spec.rows, spec.cols).into_owned()
}

#[test]
fn a_step_that_is_not_finite_changes_no_weight() {
    for gradient in [GradientKind::F32, GradientKind::Trits, GradientKind::None] {
        check_guard(gradient);
    }
}

fn check_guard(gradient: GradientKind) {
    let root = tempfile::tempdir().unwrap();
    let (mut config, corpus) = tiny(root.path());
    config.optim.gradient = gradient;
    let backend = Cpu::new(1).unwrap();
    let workplace = Workplace::start(&Disk, &root.path().join("run"), config).unwrap();
    let mut run = Run::new(&backend, &Disk, workplace, &corpus).unwrap();
    assert!(matches!(run.advance().unwrap(), Some(Event::Step(..))));
    // A broken number in each kind of tensor: it reaches the loss, and nothing else may move.
    let layout = run.model().layout().clone();
    for id in [layout.embedding, layout.norm, layout.blocks[0].attn_norm] {
        for broken in [f32::NAN, f32::INFINITY] {
            let sound = numbers(&run.learner.model, &backend, id);
            let mut weights = sound.clone();
            weights.fill(broken);
            backend.upload(&weights, run.learner.model.weights_mut()[id].floats_mut());
            run.learner.model.refresh(&backend);
            let before: Vec<_> =
                (0..layout.specs.len()).map(|id| numbers(&run.learner.model, &backend, id)).collect();
            let step = run.progress().0;
            let event = run.advance().unwrap();
            assert!(matches!(event, Some(Event::Skipped { what: "the loss", .. })), "{event:?}");
            assert_eq!(run.progress().0, step + 1, "the batch is behind");
            for (id, before) in before.iter().enumerate() {
                let after = numbers(&run.learner.model, &backend, id);
                let same = after.iter().zip(before).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} moved", layout.specs[id].name);
            }
            backend.upload(&sound, run.learner.model.weights_mut()[id].floats_mut());
            run.learner.model.refresh(&backend);
            assert!(matches!(run.advance().unwrap(), Some(Event::Step(..))), "the guard works on");
        }
    }
    assert_eq!(run.state.guard.skipped, 6);
}

#[test]
fn endless_skipping_is_a_numeric_stop() {
    let root = tempfile::tempdir().unwrap();
    let (config, corpus) = tiny(root.path());
    let backend = Cpu::new(1).unwrap();
    let workplace = Workplace::start(&Disk, &root.path().join("run"), config).unwrap();
    let mut run = Run::new(&backend, &Disk, workplace, &corpus).unwrap();
    let norm = run.learner.model.layout().norm;
    let broken = vec![f32::NAN; run.learner.model.layout().specs[norm].len()];
    backend.upload(&broken, run.learner.model.weights_mut()[norm].floats_mut());
    for _ in 0..8 {
        assert!(matches!(run.advance().unwrap(), Some(Event::Skipped { .. })));
    }
    let error = run.advance().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("9 in a row"), "{error}");
}
