//! Whole runs: the same bits on any number of threads and after any interruption.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tritrain_backend::Cpu;
use tritrain_data::{Corpus, Document, PlanKind, Preparation, Source};
use tritrain_files::{Disk, tensors::TensorFile};
use tritrain_model::Precision;
use tritrain_optim::{
    ControllerKind, DigitsKind, DirectionKind, GradientKind, Network, ScheduleKind, StorageKind,
};
use tritrain_train::{
    Config, Error, Event, FOUND, Meta, MetaOptions, Proxy, Run, Workplace, audit, losses, with_topics,
};

const STEPS: u64 = 40;

fn config() -> Config {
    let mut config = Config::default();
    config.model.layers = 1;
    config.model.heads = 2;
    config.model.kv_heads = 1;
    config.model.ffn = 256;
    config.model.context = 16;
    config.data.vocab = 300;
    config.data.plan = PlanKind::Shuffle;
    config.data.validation = 0.2;
    config.run.batch = 2;
    config.run.steps = STEPS;
    config.run.tokens = 0;
    config.run.eval_tokens = 64;
    config.run.eval_every = 7;
    config.run.sample_every = 9;
    config.run.checkpoint_every = 1;
    config.run.keep = 1000;
    config
}

fn source() -> Source {
    let text = |seed: usize| {
        // Two topics.
        let words = match seed % 2 {
            0 => ["one", "two", "red", "blue", "fish", "runs", "after", "the", "old", "river"],
            _ => ["one", "bread", "red", "dough", "oven", "runs", "after", "the", "new", "crust"],
        };
        (0..400).map(|i| words[(i * i * (seed + 3) + i / 7) % words.len()]).collect::<Vec<_>>().join(" ")
    };
    let documents = (0..10)
        .map(|n| Document {
            domain: format!("domain-{}", n % 2),
            name: format!("text {n}"),
            text: text(n),
            ..Document::default()
        })
        .collect();
    Source::Memory { name: "words".into(), documents }
}

fn corpus(config: &Config, dir: &Path) -> Corpus {
    Preparation::start(&Disk, &source(), (&config.data, config.model.context), dir).unwrap().finish().unwrap()
}

/// Advances to the end, or to a stop asked for at `stop_at`.
fn finish(mut run: Run<'_, Cpu>, stop_at: Option<u64>) -> Vec<f32> {
    let mut losses = Vec::new();
    while let Some(event) = run.advance().unwrap() {
        if let Event::Step(report, _) = event {
            losses.push(report.loss);
            if stop_at == Some(report.step) {
                run.stop();
            }
        }
    }
    losses
}

/// Everything that must not depend on how the run came about.
fn result(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let step = format!("step-{STEPS}");
    let files =
        ["model.safetensors", "optimizer.safetensors", "state.json"].map(|name| format!("{step}/{name}"));
    let files = files.into_iter().chain(["metrics.jsonl".to_owned()]);
    files.map(|name| (name.clone(), fs::read(dir.join(&name)).unwrap())).collect()
}

fn assert_same(a: &Path, b: &Path, what: &str) {
    for ((name, a), (_, b)) in result(a).iter().zip(&result(b)) {
        assert!(a == b, "{what}: {name} differs");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

struct Whole {
    root: tempfile::TempDir,
    corpus: Corpus,
    config: Config,
    dir: PathBuf,
    losses: Vec<f32>,
}

/// An uninterrupted run that keeps every checkpoint.
fn whole(precision: Precision) -> Whole {
    let mut config = config();
    config.model.precision = precision;
    whole_of(config)
}

fn whole_of(config: Config) -> Whole {
    let root = tempfile::tempdir().unwrap();
    let corpus = corpus(&config, root.path());
    let dir = root.path().join("whole");
    let workplace = Workplace::start(&Disk, &dir, config.clone()).unwrap();
    let backend = Cpu::new(2).unwrap();
    let losses = finish(Run::new(&backend, &Disk, workplace, &corpus).unwrap(), None);
    assert_eq!(losses.len() as u64, STEPS);
    Whole { root, corpus, config, dir, losses }
}

/// Goes on from a copy of a checkpoint of step `k`, which must end as the uninterrupted run did.
fn check_resuming(whole: &Whole, backend: &Cpu, k: u64) {
    let dir = whole.root.path().join(format!("from-{k}"));
    copy(&whole.dir.join(format!("step-{k}")), &dir.join(format!("step-{k}")));
    fs::copy(whole.dir.join("metrics.jsonl"), dir.join("metrics.jsonl")).unwrap();
    let mut config = whole.config.clone();
    config.run.checkpoint_every = 0;
    fs::write(dir.join("config.toml"), config.to_toml()).unwrap();
    let workplace = Workplace::resume(&Disk, &dir, config).unwrap();
    assert_eq!(workplace.step(), Some(k));
    let losses = finish(Run::new(backend, &Disk, workplace, &whole.corpus).unwrap(), None);
    assert_eq!(losses, whole.losses[k as usize..], "losses after step {k}");
    let [model, optimizer, _, metrics] = &result(&dir)[..] else { unreachable!() };
    let expected = result(&whole.dir);
    for (found, expected) in [(model, &expected[0]), (optimizer, &expected[1]), (metrics, &expected[3])] {
        assert!(found == expected, "{} after resuming at step {k}", found.0);
    }
    fs::remove_dir_all(dir).unwrap();
}

/// Runs on other numbers of threads, which must end as `whole` did.
fn check_threads(whole: &Whole, what: &str) {
    for threads in [1, 3, 8] {
        let dir = whole.root.path().join(format!("threads-{threads}"));
        let workplace = Workplace::start(&Disk, &dir, whole.config.clone()).unwrap();
        let backend = Cpu::new(threads).unwrap();
        finish(Run::new(&backend, &Disk, workplace, &whole.corpus).unwrap(), None);
        assert_same(&dir, &whole.dir, &format!("{threads} threads, {what}"));
        fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn resuming_from_every_step_equals_the_uninterrupted_run() {
    let whole = whole(Precision::Ternary);
    let backend = Cpu::new(2).unwrap();
    for k in 1..STEPS {
        check_resuming(&whole, &backend, k);
    }
}

/// The loss fell, and the run is the same on other threads and after interruptions.
fn check_learning(whole: &Whole, what: &str) {
    let learnt = whole.losses[0] - whole.losses[STEPS as usize - 1];
    assert!(learnt > 0.5, "{what}: the loss fell by {learnt}");
    check_threads(whole, what);
    let backend = Cpu::new(2).unwrap();
    for k in [1, 13, STEPS - 1] {
        check_resuming(whole, &backend, k);
    }
}

#[test]
fn runs_in_few_bits_resume_and_do_not_depend_on_threads() {
    use {GradientKind as G, StorageKind as S};
    let settings = [
        (S::Trits4, G::None, S::F32, 0.0, 0.0),
        (S::Trits3, G::None, S::Trits2, 0.8, 0.02),
        (S::Int8, G::Trits, S::Bf16, 0.5, 0.0),
        (S::Bf16, G::F32, S::Int8, 0.9, 0.01),
        (S::F32, G::None, S::F32, 0.5, 0.01),
    ];
    for (latent, gradient, moment, momentum, radius) in settings {
        let mut config = config();
        (config.optim.latent, config.optim.gradient, config.optim.moment) = (latent, gradient, moment);
        (config.optim.momentum, config.optim.radius) = (momentum, radius);
        // Found anew after 16 updates and 32.
        config.optim.clusters = if radius > 0.0 { 3 } else { 1 };
        let whole = whole_of(config);
        let what = format!("{latent:?} {gradient:?} {moment:?}");
        check_learning(&whole, &what);
    }
}

/// Digits by cluster: as even ones until clusters are found, then otherwise, in no more bytes; and the run goes on with
/// them.
#[test]
fn digits_by_cluster_resume_and_change_what_is_learnt() {
    for (latent, direction) in
        [(StorageKind::Trits3, DirectionKind::Factored), (StorageKind::Trits4, DirectionKind::Muon)]
    {
        let mut config = config();
        (config.optim.latent, config.optim.direction) = (latent, direction);
        (config.optim.gradient, config.optim.clusters) = (GradientKind::None, 8);
        let even = whole_of(config.clone());
        config.optim.digits = DigitsKind::Clusters;
        let whole = whole_of(config);
        assert_eq!(whole.losses[..17], even.losses[..17], "{latent:?}: clusters are found after 16 updates");
        assert_ne!(whole.losses, even.losses, "{latent:?}");
        check_learning(&whole, &format!("digits by cluster, {latent:?}"));
        let backend = Cpu::new(2).unwrap();
        for k in [16, 17, 33] {
            check_resuming(&whole, &backend, k);
        }
        let log = fs::read_to_string(whole.dir.join("metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let records: Vec<_> = records.filter(|record| record["loss"].is_number()).collect();
        let rounded = records.iter().filter(|record| record["rounded"].is_number());
        let rounded: Vec<u64> = rounded.map(|record| record["step"].as_u64().unwrap()).collect();
        assert_eq!(rounded, [17, 33], "{latent:?}");
        let digits = |step: usize| {
            let clusters = records[step - 1]["row_clusters"].as_array().unwrap().iter();
            clusters.filter_map(|cluster| cluster["digits"].as_f64()).collect::<Vec<f64>>()
        };
        let same = digits(17);
        assert!(same.iter().all(|digits| *digits == same[0]) && !same.is_empty(), "{latent:?}: {same:?}");
        for step in [18, 34] {
            let found = digits(step);
            assert!(found.iter().any(|digits| *digits != same[0]), "{latent:?}, step {step}: {found:?}");
        }
        let bytes = |whole: &Whole| {
            let path = whole.dir.join(format!("step-{STEPS}/model.safetensors"));
            let file = TensorFile::parse(&path, fs::read(&path).unwrap().into()).unwrap();
            let named: Vec<_> =
                file.metadata().keys().filter_map(|key| key.strip_prefix("tritrain.format.")).collect();
            assert!(named.len() > 3);
            named.iter().map(|name| file.get(name).unwrap().data.len()).collect::<Vec<usize>>()
        };
        let (found, room) = (bytes(&whole), bytes(&even));
        assert!(
            found.iter().zip(&room).all(|(found, room)| found <= room),
            "{latent:?}: {found:?} of {room:?}"
        );
    }
}

/// Biases are learnt, in a step and in passes.
#[test]
fn biases_are_learnt_and_resume() {
    for micro_batch in [0, 1] {
        let mut config = config();
        (config.model.sub_norm, config.model.qkv_bias, config.run.micro_batch) = (false, true, micro_batch);
        let whole = whole_of(config);
        check_threads(&whole, "biases");
        check_resuming(&whole, &Cpu::new(2).unwrap(), 13);
        let path = whole.dir.join(format!("step-{STEPS}/model.safetensors"));
        let file = TensorFile::parse(&path, fs::read(&path).unwrap().into()).unwrap();
        let biases = file.f32("layers.0.qkv_bias", &[512]).unwrap();
        // Two heads of queries, one of keys and of values: all move from zero.
        assert!(biases.iter().filter(|bias| **bias != 0.0).count() > 500, "{biases:?}");
    }
}

/// Rounding that is turned on over a third of the run, with latent weights in f32 and in trits.
#[test]
fn rounding_is_turned_on_step_by_step() {
    for latent in [StorageKind::F32, StorageKind::Trits3] {
        let mut config = config();
        (config.optim.latent, config.run.recompute) = (latent, latent == StorageKind::Trits3);
        let at_once = whole_of(config.clone());
        config.run.lambda_warmup = 0.34;
        let whole = whole_of(config);
        check_threads(&whole, "lambda");
        let backend = Cpu::new(2).unwrap();
        for k in [5, 30] {
            check_resuming(&whole, &backend, k);
        }
        // The first step is that of latent weights, and its validation that of codes.
        assert!((whole.losses[0] - at_once.losses[0]).abs() > 1e-4, "{latent:?}");
        let log = fs::read_to_string(whole.dir.join("metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let losses: Vec<f64> = records.filter_map(|r| r["validation_loss"].as_f64()).collect();
        assert!(losses.len() > 5 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    }
}

/// Controllers move rate and radius, and go on where they were: the weights of a network come from the
/// checkpoint, not from the file, which is gone by then.
#[test]
fn controlled_runs_resume_and_do_not_depend_on_threads() {
    let weights = tempfile::tempdir().unwrap();
    let path = weights.path().join("weights.json");
    let numbers: Vec<f32> = (0..146).map(|i| (i * i % 29) as f32 / 14.0 - 1.0).collect();
    for kind in [ControllerKind::Rule, ControllerKind::Random, ControllerKind::Learned] {
        let mut config = config();
        (config.optim.controller, config.optim.radius, config.optim.feedback) = (kind, 0.01, 3);
        if kind == ControllerKind::Learned {
            config.optim.controller_weights = path.display().to_string();
            fs::write(&path, serde_json::json!({ "weights": numbers }).to_string()).unwrap();
        }
        let whole = whole_of(config);
        check_threads(&whole, &format!("{kind:?}"));
        if kind == ControllerKind::Learned {
            fs::remove_file(&path).unwrap();
        }
        let backend = Cpu::new(2).unwrap();
        for k in [1, 13, STEPS - 1] {
            check_resuming(&whole, &backend, k);
        }
        let log = fs::read_to_string(whole.dir.join("metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let moved: Vec<f64> = records.filter_map(|r| r["log_multiplier"].as_f64()).collect();
        assert!(moved.len() as u64 == STEPS && moved[0] == 0.0, "{kind:?}: {moved:?}");
        assert!(moved.iter().any(|m| m.abs() > 0.02), "{kind:?}: {moved:?}");
    }
}

/// A short run in memory ends as the run of the same configuration in a directory does.
#[test]
fn a_proxy_ends_as_its_run_does() {
    for kind in [ControllerKind::Off, ControllerKind::Learned] {
        let mut config = config();
        (config.optim.controller, config.optim.rate) = (kind, 0.1);
        let Whole { corpus, config, dir, .. } = &whole_of(config);
        let log = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        let mut records =
            log.lines().rev().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let last = records.find_map(|record| record["validation_loss"].as_f64()).unwrap();
        let proxy = Proxy { corpus, config: config.clone(), network: None };
        let backends = [1, 2].map(|threads| Cpu::new(threads).unwrap());
        assert_eq!(losses(&backends, &[proxy.clone(), proxy.clone(), proxy]).unwrap(), [last; 3], "{kind:?}");
    }
}

/// Meta-training that was stopped goes on to the same weights, on any number of threads.
#[test]
fn meta_training_resumes_and_does_not_depend_on_threads() {
    let root = tempfile::tempdir().unwrap();
    let corpora = [corpus(&config(), root.path())];
    let options = MetaOptions { seed: 5, pairs: 2, tasks: 2, steps: 2 };
    let backends = [0; 3].map(|_| Cpu::new(1).unwrap());
    let advance = |backends: &[Cpu], name: &str, generations: usize| {
        let dir = root.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        let mut meta = Meta::open(backends, &Disk, &dir, &corpora, options.clone()).unwrap();
        (0..generations).for_each(|_| assert!(meta.advance(backends).unwrap().is_finite()));
        ["meta.json", FOUND].map(|name| fs::read(dir.join(name)).unwrap())
    };
    let start = advance(&backends, "whole", 0);
    let whole = advance(&backends, "whole", 2);
    assert!(start != whole);
    advance(&backends[..1], "stopped", 1);
    assert!(advance(&backends[..2], "stopped", 1) == whole);
    let network = Network::parse(&String::from_utf8_lossy(&whole[1])).unwrap();
    assert_eq!(network.weights().len(), 146);
    let other = MetaOptions { seed: 6, ..options.clone() };
    let error = Meta::open(&backends, &Disk, &root.path().join("whole"), &corpora, other).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("seed: 5"), "{error}");
}

#[test]
fn weights_that_are_none_are_refused() {
    let mut config = config();
    config.optim.controller = ControllerKind::Learned;
    let root = tempfile::tempdir().unwrap();
    let corpus = corpus(&config, root.path());
    let path = root.path().join("weights.json");
    fs::write(&path, "{\"weights\": [1.0]}").unwrap();
    config.optim.controller_weights = path.display().to_string();
    let backend = Cpu::new(1).unwrap();
    let workplace = Workplace::start(&Disk, &root.path().join("run"), config).unwrap();
    let error = Run::new(&backend, &Disk, workplace, &corpus).err().unwrap();
    assert!(error.to_string().contains("1 weights, expected 146"), "{error}");
    assert_eq!(error.exit_code(), 4);
}

#[test]
fn every_direction_resumes_and_does_not_depend_on_threads() {
    use {DirectionKind as D, GradientKind as G, StorageKind as S};
    let settings = [
        (D::Adamw8, S::F32, S::F32, G::F32),
        (D::Adamw8, S::Trits3, S::F32, G::None),
        (D::Lion, S::F32, S::F32, G::F32),
        (D::Lion, S::Int8, S::Trits3, G::None),
        (D::Signum, S::F32, S::Int8, G::Trits),
        (D::Muon, S::F32, S::F32, G::F32),
        (D::Muon, S::Trits4, S::Bf16, G::None),
        (D::Prodigy, S::F32, S::F32, G::F32),
        (D::Prodigy, S::F32, S::F32, G::None),
    ];
    for (direction, latent, moment, gradient) in settings {
        let mut config = config();
        // Some gradients are clipped after the first 25 steps.
        (config.optim.direction, config.optim.spike_z) = (direction, 1.0);
        (config.optim.latent, config.optim.moment, config.optim.gradient) = (latent, moment, gradient);
        if direction == D::Prodigy {
            config.optim.rate = 1.0;
        }
        let whole = whole_of(config);
        let what = format!("{direction:?} {latent:?} {moment:?} {gradient:?}");
        let log = fs::read_to_string(whole.dir.join("metrics.jsonl")).unwrap();
        let clipped = log.matches("\"clipped\":").count() - log.matches("\"clipped\":0.0").count();
        assert!((1..10).contains(&clipped), "{what}: clipped in {clipped} steps");
        check_learning(&whole, &what);
    }
}

#[test]
fn averaged_weights_resume_and_are_what_is_saved() {
    for (direction, gradient) in
        [(DirectionKind::Factored, GradientKind::None), (DirectionKind::Adamw, GradientKind::F32)]
    {
        let mut config = config();
        (config.optim.schedule, config.optim.spike_z) = (ScheduleKind::Free, 1.0);
        (config.optim.direction, config.optim.gradient) = (direction, gradient);
        check_learning(&whole_of(config), &format!("averages of {direction:?}"));
    }
}

#[test]
fn runs_in_passes_resume_and_do_not_depend_on_threads() {
    for gradient in [GradientKind::F32, GradientKind::Trits] {
        let mut config = config();
        (config.optim.gradient, config.optim.latent) = (gradient, StorageKind::Int8);
        config.run.micro_batch = 1;
        assert!(config.run.passes() > 1, "a batch of {}", config.run.batch);
        check_learning(&whole_of(config), &format!("passes, {gradient:?}"));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    for precision in [Precision::Ternary, Precision::F32] {
        check_threads(&whole(precision), &format!("{precision:?}"));
    }
}

#[test]
fn recomputation_changes_nothing_and_may_begin_at_any_checkpoint() {
    for precision in [Precision::Ternary, Precision::F32] {
        let mut config = config();
        config.model.precision = precision;
        config.model.layers = 3;
        let whole = whole_of(config.clone());
        config.run.recompute = true;
        let backend = Cpu::new(2).unwrap();
        for from in [None, Some(13)] {
            let dir = whole.root.path().join(format!("recomputed-{from:?}"));
            let workplace = match from {
                None => Workplace::start(&Disk, &dir, config.clone()),
                Some(step) => {
                    let step = format!("step-{step}");
                    copy(&whole.dir.join(&step), &dir.join(&step));
                    fs::copy(whole.dir.join("metrics.jsonl"), dir.join("metrics.jsonl")).unwrap();
                    fs::write(dir.join("config.toml"), whole.config.to_toml()).unwrap();
                    Workplace::resume(&Disk, &dir, config.clone())
                }
            };
            let workplace = workplace.unwrap();
            assert_eq!(workplace.step(), from);
            assert!(workplace.config().run.recompute);
            finish(Run::new(&backend, &Disk, workplace, &whole.corpus).unwrap(), None);
            assert_same(&dir, &whole.dir, &format!("recomputed from {from:?}, {precision:?}"));
        }
    }
}

#[test]
fn a_stop_saves_and_what_follows_is_the_same() {
    let whole = whole(Precision::Ternary);
    let backend = Cpu::new(2).unwrap();
    let dir = whole.root.path().join("stopped");
    let start = |resume: bool| {
        let claim = if resume { Workplace::resume } else { Workplace::start };
        Run::new(&backend, &Disk, claim(&Disk, &dir, whole.config.clone()).unwrap(), &whole.corpus).unwrap()
    };
    // At 14 an evaluation is due, at 18 a sample: the stop comes before either.
    finish(start(false), Some(14));
    assert!(dir.join("step-14").exists() && !dir.join("step-15").exists());
    finish(start(true), Some(18));
    finish(start(true), None);
    assert_same(&dir, &whole.dir, "stopped twice");
}

/// The state file says what it should, and parts of two checkpoints are refused together.
#[test]
fn a_checkpoint_is_one_moment() {
    let whole = whole(Precision::Ternary);
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(whole.dir.join("step-20/state.json")).unwrap()).unwrap();
    assert_eq!(state["step"], 20);
    assert_eq!(state["updates"], 20);
    assert_eq!(state["evaluated"][0], 14);
    assert_eq!(state["sampled"], 18);
    let log = fs::read_to_string(whole.dir.join("metrics.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses =
        records.filter(|r| r["step"].as_u64() <= Some(20)).filter_map(|r| r["validation_loss"].as_f64());
    let least = losses.fold(f64::INFINITY, f64::min);
    assert_eq!(state["best"][1].as_f64(), Some(least), "the best of the evaluations so far");
    assert_eq!(state["guard"], serde_json::json!({ "in_a_row": 0, "skipped": 0 }));
    for part in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let dir = whole.root.path().join(format!("mixed-{part}"));
        copy(&whole.dir.join("step-20"), &dir.join("step-20"));
        fs::copy(whole.dir.join("step-19").join(part), dir.join("step-20").join(part)).unwrap();
        fs::write(dir.join("config.toml"), whole.config.to_toml()).unwrap();
        let error = Workplace::resume(&Disk, &dir, whole.config.clone()).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{error}");
    }
}

#[test]
fn a_run_is_never_overwritten_or_resumed_as_another() {
    let whole = whole(Precision::Ternary);
    let before = result(&whole.dir);
    let error = Workplace::start(&Disk, &whole.dir, whole.config.clone()).unwrap_err();
    assert!(matches!(error, Error::Exists { step: STEPS, .. }), "{error}");
    assert_eq!(error.exit_code(), 2);

    let mut other = whole.config.clone();
    other.optim.rate = 0.002;
    let error = Workplace::resume(&Disk, &whole.dir, other).unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("optim.rate is 0.002 and was 0.019"), "{error}");

    let held = Workplace::resume(&Disk, &whole.dir, whole.config.clone()).unwrap();
    let error = Workplace::resume(&Disk, &whole.dir, whole.config.clone()).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(held);
    assert!(before == result(&whole.dir), "a refused run changed something");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    let whole = whole(Precision::Ternary);
    let newest = whole.dir.join(format!("step-{STEPS}/model.safetensors"));
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let workplace = Workplace::resume(&Disk, &whole.dir, whole.config.clone()).unwrap();
    assert_eq!(workplace.step(), Some(STEPS - 1));
}

/// A run whose batches follow what it learns: stopped anywhere, it goes on the same, and an audit finds it
/// in its log.
#[test]
fn an_adaptive_run_resumes_and_can_be_audited() {
    let mut config = config();
    config.data.plan = PlanKind::Adaptive;
    config.data.clusters_k = 3;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("whole");
    let backend = Cpu::new(2).unwrap();
    let corpus =
        with_topics(&backend, &Disk, &source(), &config.data, &dir, corpus(&config, &dir), |_, _, _| ());
    let corpus = corpus.unwrap();
    assert!(corpus.labels().unwrap().k() > 1);
    let workplace = Workplace::start(&Disk, &dir, config.clone()).unwrap();
    let losses = finish(Run::new(&backend, &Disk, workplace, &corpus).unwrap(), None);
    for k in [1, 13, STEPS - 1] {
        let from = root.path().join(format!("from-{k}"));
        copy(&dir.join(format!("step-{k}")), &from.join(format!("step-{k}")));
        for name in ["metrics.jsonl", "config.toml"] {
            fs::copy(dir.join(name), from.join(name)).unwrap();
        }
        let workplace = Workplace::resume(&Disk, &from, config.clone()).unwrap();
        let found = finish(Run::new(&backend, &Disk, workplace, &corpus).unwrap(), None);
        assert_eq!(found, losses[k as usize..], "losses after step {k}");
        assert_same(&from, &dir, "resumed");
    }
    let found = audit(&Disk, &dir).unwrap().remove(0).1;
    assert!(found.kept() && found.steps == STEPS, "{found:?}");
    assert_eq!(found.clusters.iter().map(|c| c.windows).sum::<u64>(), STEPS * config.run.batch as u64);
    // A log that says something else is found out.
    let log = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let line = log.lines().nth(20).unwrap();
    let (before, after) = line.split_once("\"clusters\":{").unwrap();
    let forged = format!("{before}\"clusters\":{{\"99\":1.0,{after}");
    fs::write(dir.join("metrics.jsonl"), log.replace(line, &forged)).unwrap();
    let found = audit(&Disk, &dir).unwrap().remove(0).1;
    assert!(!found.kept() && found.first_differing.is_some(), "{found:?}");
    // The clusters belong to the data of a run.
    let plain = self::corpus(&config, &root.path().join("plain"));
    let workplace = Workplace::resume(&Disk, &root.path().join("from-1"), config.clone());
    let mut shuffled = config.clone();
    shuffled.data.plan = PlanKind::Shuffle;
    assert!(plain.hash() != corpus.hash() && workplace.is_ok() && shuffled.hash() != config.hash());
}
