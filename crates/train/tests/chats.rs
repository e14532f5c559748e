//! Runs that learn the answers of conversations.

use std::{fs, path::Path};

use tritrain_backend::{Backend, Cpu};
use tritrain_data::{Corpus, Document, PlanKind, Preparation, Source, Split, chat::Message};
use tritrain_files::{Disk, tokens::NO_TARGET_MARK};
use tritrain_model::{Activations, Keep, Precision};
use tritrain_train::{Config, Evaluation, Event, Run, Workplace};

const STEPS: u64 = 240;

fn config() -> Config {
    let mut config = Config::default();
    config.model.layers = 2;
    config.model.heads = 2;
    config.model.kv_heads = 2;
    config.model.ffn = 256;
    config.model.context = 64;
    config.data.vocab = 320;
    config.data.plan = PlanKind::Shuffle;
    config.data.validation = 0.1;
    config.run.batch = 8;
    config.run.steps = STEPS;
    config.run.tokens = 0;
    config.run.eval_tokens = 4096;
    config.run.eval_every = 0;
    config.run.sample_every = 0;
    config.run.checkpoint_every = STEPS / 2;
    config.run.keep = 100;
    config
}

/// Questions of words drawn at random, which nothing predicts; what is answered is always the same.
fn source() -> Source {
    let words = ["one", "two", "red", "blue", "fish", "runs", "after", "the", "old", "river"];
    let document = |n: usize| {
        let mut state = n as u64 + 1;
        let mut word = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words[(state >> 33) as usize % words.len()]
        };
        let question: Vec<&str> = (0..8).map(|_| word()).collect();
        let messages = vec![
            Message::new("user", question.join(" ")),
            Message::new("assistant", "the river is old and red"),
        ];
        Document { domain: "d".into(), name: format!("chat {n}"), text: question.join(" "), messages }
    };
    Source::Memory { name: "chats".into(), documents: (0..400).map(document).collect() }
}

fn corpus(config: &Config, dir: &Path) -> Corpus {
    Preparation::start(&Disk, &source(), (&config.data, config.model.context), dir).unwrap().finish().unwrap()
}

/// The losses of the steps, and the evaluation at the end.
fn finish(mut run: Run<'_, Cpu>, stop_at: Option<u64>) -> (Vec<f32>, Option<Evaluation>) {
    let (mut losses, mut last) = (Vec::new(), None);
    while let Some(event) = run.advance().unwrap() {
        match event {
            Event::Step(report, _) => {
                losses.push(report.loss);
                if stop_at == Some(report.step) {
                    run.stop();
                }
            }
            Event::Evaluated { evaluation, .. } => last = Some(evaluation),
            _ => {}
        }
    }
    (losses, last)
}

#[test]
fn answers_are_learnt_and_questions_are_not() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config();
    for precision in [Precision::Ternary, Precision::F32] {
        config.model.precision = precision;
        let corpus = corpus(&config, root.path());
        let (backend, dir) = (Cpu::new(2).unwrap(), root.path().join(format!("{precision:?}")));
        let workplace = Workplace::start(&Disk, &dir, config.clone()).unwrap();
        let (losses, last) = finish(Run::new(&backend, &Disk, workplace, &corpus).unwrap(), None);
        let last = last.unwrap();
        // The loss of a batch is that of its answers, and all that is learnt: it falls to nothing.
        assert!(losses[0] > 4.0 && losses[STEPS as usize - 1] < 0.1, "{precision:?}: {losses:?}");
        assert!(last.answers && last.loss < 0.1, "{last:?}");
        let mut tokens = vec![0; corpus.len(Split::Validation) as usize];
        corpus.tokens().read_marked(Split::Validation, 0, &mut tokens).unwrap();
        let learnt = tokens.iter().filter(|token| **token < NO_TARGET_MARK).count() as u64;
        assert!(last.tokens > learnt / 2 && last.tokens <= learnt, "{} of {learnt} tokens", last.tokens);
        // Words of questions, of ten that are drawn evenly, were never learnt.
        let mut whole = tokens.clone();
        whole.iter_mut().for_each(|token| *token &= !NO_TARGET_MARK);
        let (inputs, targets) = (&whole[..8 * 64], &whole[1..=8 * 64]);
        let mut run =
            Run::new(&backend, &Disk, Workplace::resume(&Disk, &dir, config.clone()).unwrap(), &corpus);
        let model = run.as_mut().unwrap().model();
        let mut a = Activations::new(&backend, &config.model, 8, 64, Keep::Nothing);
        model.evaluate(&backend, &mut a, inputs, targets);
        let mut by_token = vec![0.0; 8 * 64];
        backend.download(a.losses(), &mut by_token);
        let questions: Vec<f32> = by_token
            .iter()
            .zip(&tokens[1..])
            .filter(|(_, token)| **token >= NO_TARGET_MARK)
            .map(|(loss, _)| *loss)
            .collect();
        let mean = questions.iter().sum::<f32>() / questions.len() as f32;
        assert!(mean > 3.0, "{precision:?}: {mean} nats per token of a question");
    }
}

#[test]
fn runs_on_conversations_have_the_same_bits_however_they_went() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config();
    (config.run.steps, config.run.checkpoint_every, config.run.micro_batch) = (30, 10, 2);
    let corpus = corpus(&config, root.path());
    let run = |name: &str, threads: usize, stop_at: Option<u64>| {
        let (backend, dir) = (Cpu::new(threads).unwrap(), root.path().join(name));
        let workplace = Workplace::resume(&Disk, &dir, config.clone()).unwrap();
        finish(Run::new(&backend, &Disk, workplace, &corpus).unwrap(), stop_at);
        ["step-30/model.safetensors", "step-30/optimizer.safetensors", "metrics.jsonl"]
            .map(|file| fs::read(dir.join(file)).unwrap_or_default())
    };
    let whole = run("whole", 2, None);
    assert!(!whole[0].is_empty() && whole == run("one thread", 1, None));
    run("stopped", 2, Some(17));
    assert!(whole == run("stopped", 1, None));
}
