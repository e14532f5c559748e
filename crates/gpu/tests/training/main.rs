//! Whole runs on a software device: the same losses and codes as on the processor, checkpoints that move between
//! both, and a device that goes away in the middle.
#![cfg(feature = "wgpu")]

use std::path::Path;

use tritrain_backend::{Backend, Cpu};
use tritrain_data::{Corpus, Document, Preparation, Source};
use tritrain_files::Disk;
use tritrain_gpu::{Choice, Gpu};
use tritrain_model::{Precision, Sampling, TensorKind};
use tritrain_train::{Config, Continuation, Error, Event, Run, Until, Workplace, generate, load};

const STEPS: u64 = 50;

fn config() -> Config {
    let mut config = Config::default();
    config.model.layers = 2;
    config.model.heads = 4;
    config.model.kv_heads = 2;
    config.model.ffn = 256;
    config.model.context = 32;
    config.data.vocab = 300;
    config.data.plan = tritrain_data::PlanKind::Shuffle;
    config.data.validation = 0.2;
    config.run.batch = 4;
    config.run.steps = STEPS;
    config.run.tokens = 0;
    config.run.eval_tokens = 64;
    config.run.eval_every = 25;
    config.run.sample_every = 0;
    config.run.checkpoint_every = 25;
    config.run.keep = 10;
    config
}

fn corpus(config: &Config, dir: &Path) -> Corpus {
    let words = ["one", "two", "red", "blue", "fish", "runs", "after", "the", "old", "river"];
    let text = |seed: usize| {
        (0..400).map(|i| words[(i * i * (seed + 3) + i / 7) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    let document = |n| Document { domain: "words".into(), name: format!("text {n}"), text: text(n) };
    let source = Source::Memory { name: "words".into(), documents: (0..10).map(document).collect() };
    Preparation::start(&Disk, &source, &config.data, dir).unwrap().finish().unwrap()
}

/// Trains to the end, or until `stop` steps are behind; losses of the steps.
fn train<B: Backend>(backend: &B, config: &Config, dir: &Path, stop: Option<u64>) -> Vec<f32> {
    let corpus = corpus(config, dir);
    let workplace = Workplace::resume(&Disk, dir, config.clone()).unwrap();
    let mut run = Run::new(backend, &Disk, workplace, &corpus).unwrap();
    let mut losses = Vec::new();
    while let Some(event) = run.advance().unwrap() {
        if let Event::Step(report, _) = event {
            losses.push(report.loss);
            if stop == Some(report.step) {
                run.stop();
            }
        }
    }
    losses
}

#[track_caller]
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found / expected - 1.0).abs() <= 1e-3, "step {step}: {found}, on the processor {expected}");
    }
}

/// Codes of all ternary matrices of a model, and what it says after a prompt.
fn codes_and_text<B: Backend>(backend: &B, dir: &Path) -> (Vec<i8>, String) {
    let loaded = load(&Disk, dir).unwrap();
    let model = loaded.model(backend);
    let mut codes = Vec::new();
    for (id, spec) in model.layout().specs.iter().enumerate() {
        if spec.kind == TensorKind::Matrix {
            let values = model.values(backend, id);
            let numbers = values.numbers(backend, spec.rows, spec.cols);
            let mut w = backend.ternary(spec.rows, spec.cols, false);
            let mut floats = backend.floats(numbers.len());
            backend.upload(&numbers, &mut floats);
            backend.ternarize(&floats, &mut w);
            codes.extend(backend.download_ternary(&w).0);
        }
    }
    let mut prompt = vec![loaded.tokenizer.eos()];
    prompt.extend(loaded.tokenizer.encode("the old").unwrap());
    let mut next = Continuation::new(backend, &model, &prompt).unwrap();
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut text = String::new();
    generate(&mut next, &loaded.tokenizer, &sampling, Until::tokens(12), |piece| {
        text.push_str(piece);
        true
    })
    .unwrap();
    (codes, text)
}

#[test]
fn a_run_is_the_same_and_moves_between_devices() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    let [on_cpu, on_gpu, to_gpu, to_cpu] =
        ["cpu", "gpu", "cpu-gpu", "gpu-cpu"].map(|name| dirs.path().join(name));
    let config = config();
    let expected = train(&cpu, &config, &on_cpu, None);
    assert!(expected[49] < 0.8 * expected[0], "nothing was learnt: {expected:?}");
    let before = gpu.waits();
    close(&train(&gpu, &config, &on_gpu, None), &expected);
    let waits = gpu.waits() - before;
    println!("{waits} waits of the host in {STEPS} steps, evaluations and checkpoints included");
    let (codes, text) = codes_and_text(&cpu, &on_cpu);
    let (found, said) = codes_and_text(&gpu, &on_gpu);
    let same = codes.iter().zip(&found).filter(|(a, b)| a == b).count();
    assert!(same as f64 >= 0.999 * codes.len() as f64, "{same} of {} codes are the same", codes.len());
    // The same model on the other device continues in the same words.
    assert_eq!(codes_and_text(&cpu, &on_gpu).1, said);
    assert_eq!(codes_and_text(&gpu, &on_cpu).1, text);
    // What one device began, the other ends.
    for (first, second, dir) in [(true, false, &to_gpu), (false, true, &to_cpu)] {
        let part = |on_cpu, stop| match on_cpu {
            true => train(&cpu, &config, dir, stop),
            false => train(&gpu, &config, dir, stop),
        };
        let mut losses = part(first, Some(25));
        losses.extend(part(second, None));
        close(&losses, &expected);
    }
}

#[test]
fn a_step_waits_three_times_and_weights_in_few_bits_train_as_well() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    for precision in [Precision::Ternary, Precision::F32] {
        let mut config = config();
        config.model.precision = precision;
        (config.run.steps, config.run.eval_every, config.run.checkpoint_every) = (6, 0, 0);
        if precision == Precision::Ternary {
            config.optim.latent = tritrain_optim::StorageKind::Trits4;
            config.optim.gradient = tritrain_optim::GradientKind::Trits;
        }
        let dir = |name: &str| dirs.path().join(format!("{name} {precision:?}"));
        let expected = train(&cpu, &config, &dir("cpu"), None);
        let corpus = corpus(&config, &dir("gpu"));
        let workplace = Workplace::resume(&Disk, &dir("gpu"), config.clone()).unwrap();
        let mut run = Run::new(&gpu, &Disk, workplace, &corpus).unwrap();
        let mut losses = Vec::new();
        loop {
            let before = gpu.waits();
            let Some(event) = run.advance().unwrap() else { break };
            if let Event::Step(report, _) = event {
                losses.push(report.loss);
                let waits = gpu.waits() - before;
                // Gradients of matrices kept in few bits are looked at one by one.
                assert!(precision == Precision::Ternary || waits == 3, "{waits} waits in a step");
            }
        }
        close(&losses, &expected);
    }
}

#[test]
fn a_device_that_goes_away_ends_the_run_with_its_checkpoint_sound() {
    // A process of its own: the device is lost to all that use it.
    if std::env::var_os("TRITRAIN_LOSE_DEVICE").is_none() {
        let this = "a_device_that_goes_away_ends_the_run_with_its_checkpoint_sound";
        let program = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(program);
        let child = child.args([this, "--exact", "--nocapture"]).env("TRITRAIN_LOSE_DEVICE", "1");
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let gpu = Gpu::new(Choice::Software).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (config, dir) = (config(), dir.path().join("run"));
    train(&gpu, &config, &dir, Some(25));
    let corpus = corpus(&config, &dir);
    let workplace = Workplace::resume(&Disk, &dir, config.clone()).unwrap();
    let mut run = Run::new(&gpu, &Disk, workplace, &corpus).unwrap();
    let mut lost = None;
    for step in 0.. {
        if step == 3 {
            gpu.lose();
        }
        match run.advance() {
            Ok(Some(_)) if step < 20 => (),
            Ok(_) => break,
            Err(error) => {
                lost = Some(error);
                break;
            }
        }
    }
    drop(run);
    let Some(error @ Error::Device { .. }) = lost else { panic!("{lost:?}") };
    assert_eq!(error.exit_code(), 6);
    let cpu = Cpu::new(1).unwrap();
    let losses = train(&cpu, &config, &dir, None);
    assert_eq!(losses.len(), 25, "it goes on from the checkpoint");
}
