//! Whole runs on a software device: the same losses and codes as on the processor, checkpoints that move between
//! both, and a device that goes away in the middle.
#![cfg(feature = "wgpu")]

use std::path::Path;

use tritrain_backend::{Backend, Cpu, Memory};
use tritrain_data::{Corpus, Document, Preparation, Source};
use tritrain_files::Disk;
use tritrain_gpu::{Choice, Gpu};
use tritrain_model::{Precision, Sampling, TensorKind, TensorSpec};
use tritrain_optim::{GradientKind, SpikeKind, StorageKind};
use tritrain_train::{Config, Continuation, Error, Event, Fault, Run, Until, Workplace, generate, load};
use tritrain_trit::ternary;

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
    // Small steps, for runs part like any that rounding to eight bits has moved once; see `distance`.
    config.optim.rate /= 32.0;
    config.optim.embedding_rate /= 32.0;
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
    let document = |n| Document {
        domain: "words".into(),
        name: format!("text {n}"),
        text: text(n),
        ..Document::default()
    };
    let source = Source::Memory { name: "words".into(), documents: (0..10).map(document).collect() };
    Preparation::start(&Disk, &source, (&config.data, config.model.context), dir).unwrap().finish().unwrap()
}

/// Trains to the end, or until `stop` steps are behind; losses of the steps, and latent weights of all matrices.
fn train<B: Backend>(
    backend: &B,
    config: &Config,
    dir: &Path,
    stop: Option<u64>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
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
    let model = run.model();
    let matrices =
        model.layout().specs.iter().enumerate().filter(|(_, spec)| spec.kind == TensorKind::Matrix);
    let latent = |(id, spec): (usize, &TensorSpec)| {
        model.values(backend, id).numbers(backend, spec.rows, spec.cols).into_owned()
    };
    (losses, matrices.map(latent).collect())
}

/// Ternary codes of latent weights.
fn codes(latent: &[Vec<f32>]) -> Vec<i8> {
    let code = |w: &Vec<f32>| {
        let scale = ternary::absmean(w).unwrap();
        w.iter().map(|w| ternary::code(*w, scale)).collect::<Vec<i8>>()
    };
    latent.iter().flat_map(code).collect()
}

/// Mean distance of the losses of two runs, relative. Devices agree to the last bits of f32 until one of these moves
/// a number past the middle between two of the 256 levels that it is rounded to; from there on the runs part by what
/// such rounding takes and gives, however small the step, and the same happens on one device whose rate is changed
/// by a millionth.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let far = found.iter().zip(expected).map(|(found, expected)| (found / expected - 1.0).abs());
    far.sum::<f32>() / expected.len() as f32
}

#[track_caller]
fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found / expected - 1.0).abs() <= 1e-3, "step {step}: {found}, on the processor {expected}");
    }
}

/// What a model says after a prompt.
fn said<B: Backend>(backend: &B, dir: &Path) -> String {
    let loaded = load(&Disk, dir).unwrap();
    let model = loaded.model(backend).unwrap();
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
    text
}

#[test]
fn a_run_is_the_same_and_moves_between_devices() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    let [on_cpu, on_gpu, to_gpu, to_cpu] =
        ["cpu", "gpu", "cpu-gpu", "gpu-cpu"].map(|name| dirs.path().join(name));
    let config = config();
    let (expected, latent) = train(&cpu, &config, &on_cpu, None);
    assert!(expected[49] < 0.9 * expected[0], "nothing was learnt: {expected:?}");
    let (found, moved) = train(&gpu, &config, &on_gpu, None);
    close(&found, &expected);
    assert!((found[0] / expected[0] - 1.0).abs() <= 1e-6, "{} and {} before any step", found[0], expected[0]);
    let mut nudged = config.clone();
    nudged.optim.rate *= 1.0 + 2e-6;
    let (itself, _) = train(&cpu, &nudged, &dirs.path().join("nudged"), None);
    let (devices, itself) = (distance(&found, &expected), distance(&itself, &expected));
    assert!(devices <= 3.0 * itself, "devices differ by {devices}, the processor from itself by {itself}");
    let (codes, found) = (codes(&latent), codes(&moved));
    let same = codes.iter().zip(&found).filter(|(a, b)| a == b).count();
    assert!(same as f64 >= 0.999 * codes.len() as f64, "{same} of {} codes are the same", codes.len());
    // The same model on the other device continues in the same words.
    assert_eq!(said(&cpu, &on_gpu), said(&gpu, &on_gpu));
    assert_eq!(said(&gpu, &on_cpu), said(&cpu, &on_cpu));
    // What one device began, the other ends.
    for (first, second, dir) in [(true, false, &to_gpu), (false, true, &to_cpu)] {
        let part = |on_cpu, stop| match on_cpu {
            true => train(&cpu, &config, dir, stop),
            false => train(&gpu, &config, dir, stop),
        };
        let mut losses = part(first, Some(25)).0;
        losses.extend(part(second, None).0);
        close(&losses, &expected);
    }
}

#[test]
fn a_step_waits_once_whatever_keeps_its_gradients() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    let few = [GradientKind::None, GradientKind::Trits, GradientKind::F32].map(Some);
    for gradient in few.into_iter().chain([None]) {
        let mut config = config();
        (config.run.steps, config.run.eval_every, config.run.checkpoint_every) = (4, 0, 0);
        match gradient {
            Some(gradient) => (config.optim.latent, config.optim.gradient) = (StorageKind::Trits4, gradient),
            None => config.model.precision = Precision::F32,
        }
        let dir = |name: &str| dirs.path().join(format!("{name} {gradient:?}"));
        let (expected, _) = train(&cpu, &config, &dir("cpu"), None);
        let corpus = corpus(&config, &dir("gpu"));
        let workplace = Workplace::resume(&Disk, &dir("gpu"), config.clone()).unwrap();
        let mut run = Run::new(&gpu, &Disk, workplace, &corpus).unwrap();
        let mut losses = Vec::new();
        loop {
            let before = gpu.waits();
            let Some(event) = run.advance().unwrap() else { break };
            if let Event::Step(report, _) = event {
                losses.push(report.loss);
                assert_eq!(gpu.waits() - before, 1, "waits in a step with gradients in {gradient:?}");
            }
        }
        close(&losses, &expected);
    }
}

#[test]
fn guards_on_the_device_do_as_on_the_processor() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    let faults = |step: u64, _| match step {
        3 | 7 => Some(Fault::Gradient(1e3)),
        4 => Some(Fault::Gradient(f32::NAN)),
        5 => Some(Fault::Noise),
        _ => None,
    };
    for (gradient, spike) in [
        (GradientKind::F32, SpikeKind::Clip),
        (GradientKind::F32, SpikeKind::Off),
        (GradientKind::Trits, SpikeKind::Skip),
        (GradientKind::None, SpikeKind::Clip),
    ] {
        let mut config = config();
        (config.run.steps, config.run.eval_every, config.run.checkpoint_every) = (9, 0, 0);
        (config.optim.gradient, config.optim.spike) = (gradient, spike);
        let dir = |name: &str| dirs.path().join(format!("{name} {gradient:?} {spike:?}"));
        fn disturbed<B: Backend>(
            backend: &B,
            (config, dir): (&Config, &Path),
            faults: impl Fn(u64, u32) -> Option<Fault>,
        ) -> (Vec<f32>, Vec<f32>) {
            let corpus = corpus(config, dir);
            let workplace = Workplace::resume(&Disk, dir, config.clone()).unwrap();
            let mut run = Run::new(backend, &Disk, workplace, &corpus).unwrap().disturbed(faults);
            let (mut losses, mut clipped) = (Vec::new(), Vec::new());
            while let Some(event) = run.advance().unwrap() {
                match event {
                    Event::Step(report, _) => {
                        losses.push(report.loss);
                        clipped.push(report.clipped);
                    }
                    Event::Skipped { step, .. } => clipped.push(-(step as f32)),
                    _ => (),
                }
            }
            (losses, clipped)
        }
        let (expected, clipped) = disturbed(&cpu, (&config, &dir("cpu")), faults);
        let (found, found_clipped) = disturbed(&gpu, (&config, &dir("gpu")), faults);
        assert_eq!(found_clipped, clipped, "{gradient:?} {spike:?}");
        assert!(clipped.contains(&-5.0), "all gradients were broken in step 5: {clipped:?}");
        let most = clipped.iter().copied().fold(0.0, f32::max);
        assert!((most > 0.9) == (spike != SpikeKind::Off), "{clipped:?}");
        // What a thousandfold gradient did where nothing guards is no longer comparable.
        let comparable = if spike == SpikeKind::Off { 4 } else { found.len() };
        close(&found[..comparable], &expected[..comparable]);
    }
}

#[test]
fn adapters_train_on_the_device_as_on_the_processor() {
    let (cpu, gpu) = (Cpu::new(1).unwrap(), Gpu::new(Choice::Software).unwrap());
    let dirs = tempfile::tempdir().unwrap();
    let mut config = config();
    (config.run.steps, config.run.eval_every, config.run.checkpoint_every) = (8, 0, 0);
    let base = dirs.path().join("base");
    train(&cpu, &config, &base, None);
    (config.run.from, config.model.lora) = (base.display().to_string(), 4);
    let dir = |name: &str| dirs.path().join(name);
    let (expected, _) = train(&cpu, &config, &dir("cpu"), None);
    let (found, _) = train(&gpu, &config, &dir("gpu"), None);
    close(&found, &expected);
    assert_ne!(expected.first(), expected.last());
    assert_eq!(said(&cpu, &dir("gpu")), said(&gpu, &dir("gpu")));
}

#[test]
fn a_device_that_goes_away_ends_the_run_with_its_checkpoint_sound() {
    // The device is lost to all that use it.
    if is_alone("a_device_that_goes_away_ends_the_run_with_its_checkpoint_sound") {
        fails_and_goes_on(Gpu::lose, "");
    }
}

#[test]
fn a_device_without_memory_ends_the_run_with_its_checkpoint_sound() {
    // Memory is taken from all that use the device.
    if is_alone("a_device_without_memory_ends_the_run_with_its_checkpoint_sound") {
        fails_and_goes_on(Gpu::fill, "out of device memory");
        let (gpu, mut found) = (Gpu::new(Choice::Software).unwrap(), [0.0; 2]);
        let mut x = gpu.floats(2);
        gpu.upload(&[1.0, 2.0], &mut x);
        gpu.download(&x, &mut found);
        assert_eq!((gpu.fault(), found), (None, [1.0, 2.0]), "memory that was given back is there again");
    }
}

#[test]
fn a_model_that_no_buffer_of_the_device_holds_is_refused_before_its_first_step() {
    let gpu = Gpu::new(Choice::Software).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (mut config, dir) = (config(), dir.path().join("run"));
    // A matrix just beyond 128 MiB.
    (config.model.ffn, config.model.layers) = (65_600, 1);
    let corpus = corpus(&config, &dir);
    let workplace = Workplace::resume(&Disk, &dir, config.clone()).unwrap();
    let Err(error) = Run::new(&gpu, &Disk, workplace, &corpus) else { panic!("it has no room") };
    let words = error.to_string();
    assert!(words.contains("134348800 bytes") && words.contains("at most 134217728"), "{words}");
    assert_eq!(error.exit_code(), 6);
}

/// Whether this process has the device for itself: else the test of this name is run in one that has, with 16 GiB of
/// memory at most.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "TRITRAIN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = std::process::Command::new("sh");
    child.args(["-c", "ulimit -v 16777216 && exec \"$0\" \"$@\""]);
    child.arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]);
    let output = child.env(ALONE, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    false
}

/// Trains to a checkpoint and on, until something happens to the device; that ends the run with an error that says
/// `words`, and the processor goes on from the checkpoint.
fn fails_and_goes_on<R>(happens: impl Fn(&Gpu) -> R, words: &str) {
    let gpu = Gpu::new(Choice::Software).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (config, dir) = (config(), dir.path().join("run"));
    train(&gpu, &config, &dir, Some(5));
    let corpus = corpus(&config, &dir);
    let workplace = Workplace::resume(&Disk, &dir, config.clone()).unwrap();
    let mut run = Run::new(&gpu, &Disk, workplace, &corpus).unwrap();
    let (mut lost, mut kept) = (None, None);
    for step in 0.. {
        if step == 3 {
            kept = Some(happens(&gpu));
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
    drop((run, kept));
    let Some(error @ Error::Device { .. }) = lost else { panic!("{lost:?}") };
    assert!(error.exit_code() == 6 && error.to_string().contains(words), "{error}");
    let cpu = Cpu::new(1).unwrap();
    let (losses, _) = train(&cpu, &config, &dir, None);
    assert_eq!(losses.len(), 45, "it goes on from the checkpoint");
}
