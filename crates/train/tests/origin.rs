//! Runs that begin with another model, and learn from what it predicts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tritrain_backend::{Cpu, Tier};
use tritrain_data::{Corpus, Document, PlanKind, Preparation, Source};
use tritrain_files::{Disk, Storage, tensors::TensorFile, tokens::Split};
use tritrain_model::{Activations, Keep, Layout, Precision};
use tritrain_train::{
    Config, Error, Event, Ledger, Run, RunConfig, Single, Workplace, evaluate_text, load, merge, options,
};

const STEPS: u64 = 60;

fn config() -> Config {
    let mut config = Config::default();
    config.model.layers = 1;
    config.model.dim = 128;
    config.model.ffn = 192;
    config.model.context = 16;
    config.model.sub_norm = false;
    config.model.precision = Precision::F32;
    config.data.vocab = 280;
    config.data.plan = PlanKind::Shuffle;
    config.data.validation = 0.2;
    config.run.batch = 4;
    config.run.steps = STEPS;
    config.run.tokens = 0;
    config.run.eval_tokens = 128;
    config.run.eval_every = 0;
    config.run.sample_every = 0;
    config.run.checkpoint_every = 10;
    config.run.keep = 100;
    config
}

fn corpus(config: &Config, dir: &Path) -> Corpus {
    let words = ["one", "two", "red", "blue", "fish", "runs", "after", "the", "old", "river"];
    let text = |seed: usize| {
        (0..400).map(|i| words[(i * i * (seed + 3) + i / 7) % 10]).collect::<Vec<_>>().join(" ")
    };
    let document =
        |n| Document { domain: "d".into(), name: format!("text {n}"), text: text(n), ..Document::default() };
    let source = Source::Memory { name: "words".into(), documents: (0..10).map(document).collect() };
    Preparation::start(&Disk, &source, (&config.data, config.model.context), dir).unwrap().finish().unwrap()
}

/// Losses of the steps, and the validation loss at the end.
fn finish(mut run: Run<'_, Cpu>, stop_at: Option<u64>) -> (Vec<f32>, f64) {
    let (mut losses, mut last) = (Vec::new(), f64::NAN);
    while let Some(event) = run.advance().unwrap() {
        match event {
            Event::Step(report, _) => {
                losses.push(report.loss);
                if stop_at == Some(report.step) {
                    run.stop();
                }
            }
            Event::Evaluated { evaluation, .. } => last = evaluation.loss,
            _ => {}
        }
    }
    (losses, last)
}

struct Place {
    root: tempfile::TempDir,
    corpus: Corpus,
    /// A run with the configuration above.
    first: PathBuf,
    losses: Vec<f32>,
    loss: f64,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let corpus = corpus(&config(), root.path());
        let first = root.path().join("first");
        let mut place = Place { root, corpus, first: first.clone(), losses: Vec::new(), loss: 0.0 };
        (place.losses, place.loss) = place.run("first", config(), None);
        // Tokenizers are looked for in the folder of the model and the two above.
        assert!(place.first.join(format!("step-{STEPS}")).exists());
        place
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, name: &str, config: Config, stop_at: Option<u64>) -> (Vec<f32>, f64) {
        let backend = Cpu::new(2).unwrap();
        let workplace = Workplace::resume(&Disk, &self.dir(name), config).unwrap();
        finish(Run::new(&backend, &Disk, workplace, &self.corpus).unwrap(), stop_at)
    }

    /// The configuration of a run that begins with the first one's model.
    fn from(&self) -> Config {
        let mut config = config();
        // The newest step: all 60 are behind it.
        config.run.from = self.first.join(format!("step-{STEPS}")).display().to_string();
        config.run.seed = 7;
        config
    }

    fn metrics(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir(name).join("metrics.jsonl")).unwrap()
    }
}

#[test]
fn a_run_goes_on_where_the_other_model_ended() {
    let place = Place::new();
    let untrained = place.losses[0];
    let (losses, _) = place.run("on", place.from(), None);
    assert!(
        f64::from(losses[0]) < place.loss + 0.3,
        "{} at once, {} validated before",
        losses[0],
        place.loss
    );
    assert!(losses[0] + 1.0 < untrained, "{} is no better than {untrained}", losses[0]);

    // Sub-norms that are added give back in the mean what they divide by.
    let mut normed = place.from();
    normed.model.sub_norm = true;
    let (losses, _) = place.run("normed", normed, Some(1));
    assert!(f64::from(losses[0]) < place.loss + 0.3, "{} with sub-norms, {} without", losses[0], place.loss);
    let (backend, time) = (Cpu::new(1).unwrap(), config().model.context);
    let model = load(&Disk, &place.first).unwrap().model(&backend).unwrap();
    let mut tokens = vec![0; 4 * time];
    place.corpus.tokens().read(Split::Train, 0, &mut tokens).unwrap();
    let mut activations = Activations::new(&backend, model.config(), 4, time, Keep::Everything);
    model.evaluate(&backend, &mut activations, &tokens, &tokens);
    let saved = place.dir("normed/step-1/model.safetensors");
    let saved = TensorFile::parse(&saved, Disk.map(&saved).unwrap()).unwrap();
    let names = [("attn", config().model.dim), ("ffn", config().model.ffn)];
    for ((name, len), rms) in names.into_iter().zip(model.inner_rms(&backend, &activations)[0]) {
        let gains = saved.f32(&format!("layers.0.{name}_sub_norm"), &[len]).unwrap();
        // One step has moved them.
        assert!(gains.iter().all(|gain| (gain - rms).abs() < 0.002), "{name}: {rms} and {gains:?}");
    }

    // As a ternary model, with sub-norms and without, it begins worse than it was and ahead of one that begins anew.
    for (name, sub_norm) in [("plain", false), ("norms", true)] {
        let ternary = |mut config: Config| {
            (config.model.precision, config.model.sub_norm) = (Precision::Ternary, sub_norm);
            config
        };
        let (losses, loss) = place.run(name, ternary(place.from()), None);
        let anew = Config { run: RunConfig { seed: 7, ..config().run }, ..config() };
        let (anew, _) = place.run(&format!("anew-{name}"), ternary(anew), None);
        let sum = |losses: &[f32]| losses[..10].iter().sum::<f32>();
        assert!(sum(&losses) < sum(&anew), "{losses:?}, anew {anew:?}");
        assert!(loss < f64::from(losses[0]), "{loss} after {losses:?}");
    }
}

#[test]
fn a_teacher_gives_targets_and_its_predictions_are_kept() {
    let place = Place::new();
    let taught = |share: f32| {
        let mut config = place.from();
        (config.model.precision, config.run.teach) = (Precision::Ternary, share);
        config
    };
    let (whole, loss) = place.run("taught", taught(0.75), None);
    let (untaught, _) = place.run("untaught", taught(0.0), None);
    assert_ne!(whole, untaught);
    let kept = |name: &str| fs::read_dir(place.dir(name).join("teacher")).map_or(0, |files| files.count());
    assert!(kept("taught") > 0 && kept("untaught") == 0);
    assert!(loss < place.loss + 0.5, "{loss} after {} of the teacher", place.loss);
    let sizes = options(&Disk, &place.first).unwrap();
    let bytes = |share, teacher| Ledger::new(&taught(share), 280, (Tier::SCALAR, 1), teacher).bytes;
    let weights = 4 * Layout::new(&sizes, 280).parameters();
    assert!(bytes(0.75, Some(&sizes)) - bytes(0.75, None) > weights);
    assert_eq!(bytes(0.0, Some(&sizes)), bytes(0.0, None));

    // Stopped and gone on with, from kept predictions and without them, it is the same run.
    place.run("again", taught(0.75), Some(25));
    fs::remove_dir_all(place.dir("again/teacher")).unwrap();
    place.run("again", taught(0.75), None);
    assert!(place.metrics("again") == place.metrics("taught"));
    fs::create_dir_all(place.dir("copied")).unwrap();
    fs::create_dir(place.dir("copied/teacher")).unwrap();
    for file in fs::read_dir(place.dir("taught/teacher")).unwrap() {
        let path = file.unwrap().path();
        fs::copy(&path, place.dir("copied/teacher").join(path.file_name().unwrap())).unwrap();
    }
    let before = kept("copied");
    place.run("copied", taught(0.75), None);
    assert!(place.metrics("copied") == place.metrics("taught"));
    assert_eq!(kept("copied"), before, "nothing was predicted again");
}

#[test]
fn relations_of_another_model_are_learnt() {
    let place = Place::new();
    let relating = |relations: f32, micro_batch: usize| {
        let mut config = place.from();
        (config.model.precision, config.run.relations) = (Precision::Ternary, relations);
        config.run.micro_batch = micro_batch;
        config
    };
    let divergences = |name: &str| -> Vec<f64> {
        let log = String::from_utf8(place.metrics(name)).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.filter_map(|record| record["relations"].as_f64()).collect()
    };
    for micro_batch in [0, 1] {
        let [related, hardly] = [("related", 30.0), ("hardly", 1e-6)].map(|(name, weight)| {
            let name = format!("{name}-{micro_batch}");
            place.run(&name, relating(weight, micro_batch), None);
            let of = divergences(&name);
            assert_eq!(of.len(), STEPS as usize);
            of
        });
        // The same at first, and then less far.
        assert!(related[0] > 0.0 && (related[0] / hardly[0] - 1.0).abs() < 1e-5, "{related:?} {hardly:?}");
        let end = |of: &[f64]| of[of.len() - 10..].iter().sum::<f64>() / 10.0;
        assert!(end(&related) < 0.7 * end(&hardly), "{related:?} {hardly:?}");
    }
    assert_eq!(
        fs::read_dir(place.dir("related-0/teacher")).map_or(0, |files| files.count()),
        0,
        "no predictions"
    );
    let again = || relating(30.0, 0);
    place.run("again", again(), Some(25));
    place.run("again", again(), None);
    assert!(place.metrics("again") == place.metrics("related-0"));
    let sizes = options(&Disk, &place.first).unwrap();
    let bytes = |weight, teacher| Ledger::new(&relating(weight, 0), 280, (Tier::SCALAR, 1), teacher).bytes;
    let weights = 4 * Layout::new(&sizes, 280).parameters();
    assert!(bytes(30.0, Some(&sizes)) - bytes(30.0, None) > weights);
}

/// A ternary model and the configuration of a run that trains adapters beside it.
fn adapting(place: &Place) -> (PathBuf, Config) {
    let mut config = config();
    config.model.precision = Precision::Ternary;
    place.run("base", config.clone(), None);
    let base = place.dir(&format!("base/step-{STEPS}"));
    (config.run.from, config.run.seed, config.model.lora) = (base.display().to_string(), 7, 4);
    config.optim.embedding_rate = 0.02;
    (base, config)
}

#[test]
fn adapters_learn_beside_a_model_that_stays_as_it_is() {
    let place = Place::new();
    let (base, config) = adapting(&place);
    let before = fs::read(base.join("model.safetensors")).unwrap();
    let (losses, _) = place.run("adapters", config.clone(), None);
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    assert!(mean(&losses[50..]) < mean(&losses[..10]), "{losses:?}");
    assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), before);
    // They alone are saved: two factors for each of four matrices.
    let path = place.dir(&format!("adapters/step-{STEPS}/model.safetensors"));
    let saved = TensorFile::parse(&path, Disk.map(&path).unwrap()).unwrap();
    assert!(saved.names().count() == 8 && saved.names().all(|name| name.contains("lora")));

    // Stopped and gone on with, it is the same run; passes of two sequences are almost the same.
    place.run("again", config.clone(), Some(25));
    place.run("again", config.clone(), None);
    assert!(place.metrics("again") == place.metrics("adapters"));
    let again = place.dir(&format!("again/step-{STEPS}/model.safetensors"));
    assert!(fs::read(again).unwrap() == fs::read(&path).unwrap());
    let mut passes = config.clone();
    passes.run.micro_batch = 2;
    let (close, _) = place.run("passes", passes, None);
    assert!(losses.iter().zip(&close).all(|(a, b)| (a - b).abs() < 0.05), "{losses:?}, {close:?}");

    // One model of both: its file is a model like any other.
    let backend = Cpu::new(2).unwrap();
    let loaded = load(&Disk, &path).unwrap();
    let documents =
        vec![Document { text: "the old river runs after red fish ".repeat(40), ..Document::default() }];
    let source = Source::Memory { name: "words".into(), documents };
    let merged = merge(&backend, &Disk, &loaded, (&source, 0), &place.dir("merged")).unwrap();
    assert_eq!(merged.merged.len(), 2, "its latent weights are known");
    let least = merged.merged.iter().map(|(_, of)| of.loss).fold(f64::INFINITY, f64::min);
    assert!(merged.merged.iter().any(|(way, of)| *way == merged.way && of.loss == least));
    assert!(merged.changed > 0.0 && merged.changed < 0.5, "{}", merged.changed);
    let whole = load(&Disk, &merged.path).unwrap();
    assert!(whole.base().is_none() && whole.config.lora == 0);
    let mut activations = Activations::new(&backend, &whole.config, 1, 16, Keep::Nothing);
    let model = whole.model(&backend).unwrap();
    let mut single = Single::new(&backend, &model, &mut activations);
    let found = evaluate_text(&mut single, (&whole, None), (&Disk, &source), 0).unwrap();
    assert_eq!(found[0].loss, least);
    let twice = merge(&backend, &Disk, &loaded, (&source, 0), &place.dir("merged")).unwrap_err();
    assert!(twice.to_string().contains("choose another --out"), "{twice}");
    let plain = merge(&backend, &Disk, &whole, (&source, 0), &place.dir("more")).unwrap_err();
    assert!(plain.to_string().contains("expected adapters"), "{plain}");

    // Another model in its place, and none.
    fs::copy(place.dir("base/step-10/model.safetensors"), base.join("model.safetensors")).unwrap();
    fs::remove_file(base.join("manifest.json")).unwrap();
    let changed = load(&Disk, &path).unwrap_err();
    assert!(changed.to_string().contains("which the adapters were trained beside"), "{changed}");
    fs::copy(&path, base.join("model.safetensors")).unwrap();
    let itself = load(&Disk, &path).unwrap_err();
    assert!(itself.to_string().contains("holds adapters"), "{itself}");
    fs::remove_dir_all(place.dir("base")).unwrap();
    let gone = load(&Disk, &path).unwrap_err();
    assert!(gone.to_string().contains("nothing at"), "{gone}");
}

#[test]
fn adapters_are_for_whole_ternary_models() {
    let place = Place::new();
    let (_, config) = adapting(&place);
    let backend = Cpu::new(1).unwrap();
    let refused = |config: Config, part: &str| {
        let dir = tempfile::tempdir().unwrap();
        let workplace = Workplace::start(&Disk, dir.path(), config).unwrap();
        let error = Run::new(&backend, &Disk, workplace, &place.corpus).err().unwrap();
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    };
    let mut f32 = config.clone();
    f32.run.from = place.first.join(format!("step-{STEPS}")).display().to_string();
    refused(f32, "a ternary model of the same sizes, for adapters");
    let mut normed = config.clone();
    normed.model.sub_norm = true;
    refused(normed, "a ternary model of the same sizes, for adapters");
    place.run("adapters", config.clone(), Some(5));
    let mut twice = config.clone();
    twice.run.from = place.dir("adapters").display().to_string();
    refused(twice, "tritrain merge");
    let mut wrong = config.clone();
    wrong.run.from.clear();
    assert!(wrong.check().unwrap_err().to_string().contains("there is no model to adapt"));
    let mut wrong = config.clone();
    wrong.optim.radius = 0.1;
    assert!(wrong.check().unwrap_err().to_string().contains("matrices stay as they are"));
    let mut wrong = config;
    wrong.model.precision = Precision::F32;
    assert!(wrong.check().unwrap_err().to_string().contains("adapters are for ternary matrices"));
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let place = Place::new();
    let backend = Cpu::new(1).unwrap();
    let refused = |change: &dyn Fn(&mut Config), part: &str| {
        let mut config = place.from();
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        let workplace = Workplace::start(&Disk, dir.path(), config).unwrap();
        let error = Run::new(&backend, &Disk, workplace, &place.corpus).err().unwrap();
        assert!(error.to_string().contains(part), "{part:?} in {error}");
        error
    };
    refused(&|config| config.model.layers = 2, "a model of the same sizes");
    refused(&|config| config.model.rope_theta = 500.0, "a model of the same sizes");
    refused(&|config| config.model.context = 32, "a context that is no shorter");
    let nothing = refused(&|config| config.run.from = "nowhere".into(), "nowhere is no model");
    assert!(matches!(nothing, Error::NoModel { .. }));
    let mut alone = config();
    alone.run.teach = 0.5;
    assert!(alone.check().unwrap_err().to_string().contains("nobody teaches without run.from"));
}
