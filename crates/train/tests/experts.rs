//! Mixtures of experts: their parts resume to the same bits, and their predictions are what they say.

use std::{fs, path::Path};

use tritrain_backend::Cpu;
use tritrain_data::{Corpus, Document, Preparation, Source, Split, clusters::Clusters};
use tritrain_files::Disk;
use tritrain_model::{Activations, Generator, Keep, Model};
use tritrain_train::{
    CLUSTERS, Config, Event, Loaded, Mixed, Mixing, Mixture, Next, Part, Predict, Run, Single, Workplace,
    audit, with_topics,
};

const K: usize = 2;
const STEPS: u64 = 30;

fn config() -> Config {
    let mut config = Config::default();
    (config.model.layers, config.model.heads, config.model.kv_heads) = (1, 2, 1);
    (config.model.ffn, config.model.context) = (256, 32);
    (config.data.vocab, config.data.validation, config.data.clusters_k) = (300, 0.2, K as u32);
    (config.run.batch, config.run.steps, config.run.tokens) = (2, STEPS, 0);
    (config.run.experts, config.run.shared) = (K, 0.4);
    (config.run.eval_tokens, config.run.eval_every) = (512, 4);
    config.run.sample_every = 5;
    (config.run.checkpoint_every, config.run.keep) = (3, 1000);
    config
}

/// Two topics, one of them twice as long.
fn source() -> Source {
    let text = |n: usize| {
        let words = match n % 3 {
            0 => ["bread", "flour", "oven", "yeast", "crust", "dough"],
            _ => ["sail", "mast", "harbour", "tide", "anchor", "deck"],
        };
        (0..120)
            .map(|i| words[(i * 7919 + i * i * 31 + n * i * i * i) / 5 % words.len()])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let documents = (0..30).map(|n| Document {
        domain: "words".into(),
        name: format!("text {n}"),
        text: text(n),
        ..Document::default()
    });
    Source::Memory { name: "words".into(), documents: documents.collect() }
}

fn corpus(config: &Config, dir: &Path) -> Corpus {
    let backend = Cpu::new(1).unwrap();
    let corpus = Preparation::start(&Disk, &source(), (&config.data, config.model.context), dir)
        .unwrap()
        .finish()
        .unwrap();
    with_topics(&backend, &Disk, &source(), &config.data, dir, corpus, |_, _, _| ()).unwrap()
}

/// Trains all parts; each that `stop_at` steps belong to is stopped there and begun again.
fn train(dir: &Path, config: &Config, corpus: &Corpus, stop_at: &[u64], threads: usize) -> Vec<Part> {
    let backend = Cpu::new(threads).unwrap();
    let parts = Part::all(config, corpus).unwrap();
    let mut shared = None;
    for part in &parts {
        for stop in
            stop_at.iter().copied().filter(|at| (part.first..part.last).contains(at)).map(Some).chain([None])
        {
            let workplace = Workplace::resume(&Disk, &dir.join(&part.name), config.clone()).unwrap();
            let mut run = Run::of(&backend, &Disk, workplace, corpus, part.clone(), shared.as_ref()).unwrap();
            if stop == Some(run.progress().0) {
                run.stop();
            }
            while let Some(event) = run.advance().unwrap() {
                if matches!(event, Event::Step(ref report, _) if stop == Some(report.step)) {
                    run.stop();
                }
            }
        }
        let end = part.end(&Disk, dir).unwrap();
        assert!(end.is_some(), "{} came to its end", part.name);
        shared = shared.or(end);
    }
    let names: Vec<String> = (0..K).map(|k| format!("topic {k}")).collect();
    Mixture::save(&Disk, dir, &parts, &names, corpus).unwrap();
    parts
}

struct Trained {
    dir: tempfile::TempDir,
    config: Config,
    corpus: Corpus,
    parts: Vec<Part>,
}

fn trained() -> Trained {
    let (dir, config) = (tempfile::tempdir().unwrap(), config());
    let corpus = corpus(&config, dir.path());
    fs::write(dir.path().join("config.toml"), config.to_toml()).unwrap();
    let parts = train(dir.path(), &config, &corpus, &[], 2);
    Trained { dir, config, corpus, parts }
}

#[test]
fn stopped_parts_end_with_the_same_bits() {
    let Trained { dir, config, corpus, parts } = trained();
    let own: u64 = parts.iter().map(|part| part.last - part.first).sum();
    assert_eq!((own, parts.len(), parts[0].last), (STEPS, K + 1, 12));
    // Steps behind the start are shared by tokens.
    let totals = corpus.labels().unwrap().totals(Split::Train);
    let more = usize::from(totals[1] > totals[0]);
    let (share, all) = (totals[more] as f64, totals.iter().sum::<u64>() as f64);
    let expected = 18.0 * share / all;
    assert!(((parts[1 + more].last - 12) as f64 - expected).abs() < 1.0, "{totals:?}");
    let again = tempfile::tempdir().unwrap();
    train(again.path(), &config, &corpus, &[7, 12, 14, 17, 20], 1);
    for part in &parts {
        let step = format!("{}/step-{}", part.name, part.last);
        let files =
            ["model.safetensors", "optimizer.safetensors", "state.json"].map(|f| format!("{step}/{f}"));
        for file in files.into_iter().chain([format!("{}/metrics.jsonl", part.name)]) {
            let [a, b] = [dir.path(), again.path()].map(|dir| fs::read(dir.join(&file)).unwrap());
            assert!(a == b, "{file} differs");
        }
    }
    let audits = audit(&Disk, dir.path()).unwrap();
    let steps: Vec<_> =
        audits.iter().map(|(name, audit)| (name.as_str(), audit.steps, audit.kept())).collect();
    let own = |at: usize| parts[at].last - parts[at].first;
    assert_eq!(steps, [("shared", 12, true), ("expert-0", own(1), true), ("expert-1", own(2), true)]);
    for (cluster, (_, audit)) in audits.iter().skip(1).enumerate() {
        assert_eq!(
            audit.clusters[cluster].windows,
            own(cluster + 1) * config.run.batch as u64,
            "its text alone"
        );
    }
    // An expert begins with the shared start of its own run only.
    let mut other = config.clone();
    other.run.seed = 2;
    let place = Workplace::start(&Disk, &again.path().join("other"), other).unwrap();
    let shared = parts[0].end(&Disk, dir.path()).unwrap();
    let backend = Cpu::new(1).unwrap();
    let refused = Run::of(&backend, &Disk, place, &corpus, parts[1].clone(), shared.as_ref());
    assert_eq!(refused.err().map(|error| error.exit_code()), Some(5));
    let error = Workplace::start(&Disk, dir.path(), config).unwrap_err();
    assert!(error.to_string().contains("already holds a run"), "{error}");
}

#[test]
fn too_few_clusters_or_steps_are_an_error() {
    let (dir, mut config) = (tempfile::tempdir().unwrap(), config());
    let corpus = corpus(&config, dir.path());
    config.run.steps = K as u64;
    let error = Part::all(&config, &corpus).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("a step for each of 2"), "{error}");
    config.run.experts = 3;
    let error = Part::all(&config, &corpus).unwrap_err();
    assert!(error.to_string().contains("run.experts = 3, found 2"), "{error}");
    assert!(config.check().unwrap_err().to_string().contains("data.clusters_k = 2"));
}

/// Tokens of two rows, with an end of text in the middle of each.
fn rows(corpus: &Corpus) -> (Vec<u32>, Vec<u32>) {
    let time = 32;
    let encode = |text: &str| corpus.tokenizer().encode(text).unwrap();
    let row = |a: &str, b: &str| {
        let mut tokens = encode(&a.repeat(4));
        tokens.truncate(13);
        tokens.push(corpus.tokenizer().eos());
        tokens.extend(encode(&b.repeat(20)));
        tokens.truncate(time + 1);
        tokens
    };
    let rows = [row("bread oven dough ", "tide anchor deck "), row("sail mast tide ", "flour yeast crust ")];
    let inputs = rows.iter().flat_map(|row| row[..time].to_vec()).collect();
    (inputs, rows.iter().flat_map(|row| row[1..].to_vec()).collect())
}

#[test]
fn losses_are_those_of_the_mixed_probabilities() {
    let Trained { dir, corpus, .. } = trained();
    let backend = Cpu::new(2).unwrap();
    let mixture = Mixture::load(&Disk, dir.path()).unwrap().unwrap();
    let clusters = Clusters::open(&Disk, &dir.path().join(CLUSTERS), None).unwrap();
    let (inputs, targets) = rows(&corpus);
    let of = |loaded: &Loaded| {
        let model = loaded.model(&backend).unwrap();
        let mut a = Activations::new(&backend, &loaded.config, 2, 32, Keep::Nothing);
        Single::new(&backend, &model, &mut a).losses(&inputs, &targets).unwrap().remove(0)
    };
    let experts: Vec<Vec<f32>> = mixture.experts.iter().map(of).collect();
    for mixing in
        [Mixing::default(), Mixing { temperature: 2.0, nearest: 0 }, Mixing { temperature: 2.0, nearest: 1 }]
    {
        let mut mixed = Mixed::new(&backend, &mixture, mixture.weights(&clusters, mixing)).unwrap();
        let found = mixed.losses(2).losses(&inputs, &targets).unwrap();
        assert_eq!(found[2], of(&mixture.shared), "the shared start");
        let mut weights = mixture.weights(&clusters, mixing);
        let mut changes = 0;
        for row in 0..2 {
            let mut log_weights = Vec::new();
            for at in 0..32 {
                let past = &inputs[row * 32..=row * 32 + at];
                // At the first token, every eighth from there on, and where a document has ended.
                if at % 8 == 0 || at == 13 {
                    log_weights = weights.of(past).unwrap();
                    let sum: f64 = log_weights.iter().map(|weight| weight.exp()).sum();
                    assert!((sum - 1.0).abs() < 1e-12);
                    changes += 1;
                }
                let token = row * 32 + at;
                let probability: f64 =
                    (0..K).map(|k| log_weights[k].exp() * (-f64::from(experts[k][token])).exp()).sum();
                assert!((f64::from(found[0][token]) + probability.ln()).abs() < 1e-5, "{token}");
                let nearest = usize::from(log_weights[1] > log_weights[0]);
                assert_eq!(found[1][token], experts[nearest][token]);
                if mixing.nearest == 1 {
                    assert!((found[0][token] - found[1][token]).abs() < 1e-5);
                }
            }
        }
        assert_eq!(changes, 10);
    }
    // The text decides: behind the end of text, the other topic.
    let mut weights = mixture.weights(&clusters, Mixing::default());
    let [before, after] = [13, 32].map(|len| weights.of(&inputs[..len]).unwrap());
    assert!((before[0] > before[1]) != (after[0] > after[1]), "{before:?} {after:?}");
    // Without text, the shares.
    let totals = corpus.labels().unwrap().totals(Split::Train);
    let share = totals[0] as f64 / totals.iter().sum::<u64>() as f64;
    assert!((weights.of(&[corpus.tokenizer().eos()]).unwrap()[0].exp() - share).abs() < 1e-12);
}

/// What comes later changes no loss: neither the targets of a token nor those behind it choose the experts.
#[test]
fn no_target_reaches_the_weights() {
    let Trained { dir, corpus, .. } = trained();
    let backend = Cpu::new(1).unwrap();
    let mixture = Mixture::load(&Disk, dir.path()).unwrap().unwrap();
    let clusters = mixture.clusters(&Disk).unwrap();
    let mut mixed = Mixed::new(&backend, &mixture, mixture.weights(&clusters, Mixing::default())).unwrap();
    let (inputs, targets) = rows(&corpus);
    let before = mixed.losses(2).losses(&inputs, &targets).unwrap();
    let other = corpus.tokenizer().encode(&"crust harbour ".repeat(40)).unwrap();
    for cut in 1..32 {
        // The row goes on otherwise from `cut` on; the target before it is the first to change.
        let (mut inputs, mut targets) = (inputs.clone(), targets.clone());
        inputs[cut..32].copy_from_slice(&other[..32 - cut]);
        targets[cut - 1..32].copy_from_slice(&other[..33 - cut]);
        let after = mixed.losses(2).losses(&inputs, &targets).unwrap();
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before[..cut - 1], after[..cut - 1], "cut at {cut}");
            assert_eq!(before[32..], after[32..], "the other row");
        }
    }
    // The same inputs with other targets: the nearest expert is the same one.
    let swapped: Vec<u32> = targets.iter().map(|token| (token + 7) % 280).collect();
    let model_losses = |targets: &[u32]| {
        let of = |loaded: &Loaded| {
            let model = loaded.model(&backend).unwrap();
            let mut a = Activations::new(&backend, &loaded.config, 2, 32, Keep::Nothing);
            Single::new(&backend, &model, &mut a).losses(&inputs, targets).unwrap().remove(0)
        };
        mixture.experts.iter().map(of).collect::<Vec<_>>()
    };
    let choice = |targets: &[u32], mixed: &mut Mixed<'_, Cpu>| -> Vec<Option<usize>> {
        let (found, experts) = (mixed.losses(2).losses(&inputs, targets).unwrap(), model_losses(targets));
        (0..64).map(|token| (0..K).find(|&k| experts[k][token] == found[1][token])).collect()
    };
    let [a, b] = [&targets, &swapped].map(|targets| choice(targets, &mut mixed));
    assert!(a == b && a.iter().all(Option::is_some), "{a:?} {b:?}");
}

#[test]
fn generation_mixes_the_distributions_of_the_experts() {
    let Trained { dir, corpus, .. } = trained();
    let backend = Cpu::new(2).unwrap();
    let mixture = Mixture::load(&Disk, dir.path()).unwrap().unwrap();
    let clusters = mixture.clusters(&Disk).unwrap();
    let models: Vec<Model<Cpu>> =
        mixture.experts.iter().map(|loaded| loaded.model(&backend).unwrap()).collect();
    let mut mixed = Mixed::new(&backend, &mixture, mixture.weights(&clusters, Mixing::default())).unwrap();
    let mut weights = mixture.weights(&clusters, Mixing::default());
    let mut past = vec![corpus.tokenizer().eos()];
    past.extend(corpus.tokenizer().encode("bread oven dough tide").unwrap());
    let mut generators: Vec<_> =
        models.iter().map(|model| Generator::new(model, &backend, &past).unwrap()).collect();
    let mut next = mixed.continuation(&past).unwrap();
    let mut log_weights = weights.of(&past).unwrap();
    for (step, token) in
        corpus.tokenizer().encode("anchor deck harbour flour").unwrap().into_iter().enumerate()
    {
        if step > 0 && past.len() % 8 == 1 {
            log_weights = weights.of(&past).unwrap();
        }
        let divisor =
            |logits: &[f32]| -> f64 { logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() };
        let mean: f64 = (0..K).map(|k| log_weights[k].exp() * divisor(generators[k].logits())).sum();
        assert!((divisor(next.logits()) - mean).abs() < 1e-4);
        for (candidate, found) in next.logits().iter().enumerate() {
            let of = |k: usize| {
                let logits = generators[k].logits();
                (log_weights[k] + f64::from(logits[candidate]) - divisor(logits)).exp()
            };
            let expected: f64 = (0..K).map(of).sum();
            assert!((f64::from(*found) - mean - expected.ln()).abs() < 1e-4, "{candidate} at {step}");
        }
        next.push(token).unwrap();
        for (generator, model) in generators.iter_mut().zip(&models) {
            generator.push(model, &backend, token);
        }
        past.push(token);
    }
}

#[test]
fn a_mixture_that_does_not_fit_is_refused() {
    let Trained { dir, .. } = trained();
    let path = dir.path().join("mixture.json");
    let sound = fs::read_to_string(&path).unwrap();
    assert!(Mixture::load(&Disk, &dir.path().join("shared")).unwrap().is_none());
    for (from, to, part) in [
        ("\"format\": 1", "\"format\": 2", "format 1"),
        ("\"share\"", "\"sharing\"", "a mixture of this version"),
        ("\"share\": 0", "\"share\": 7", "shares from 0 to 1"),
        ("\"expert-1\"", "\"expert-9\"", "expert-9"),
    ] {
        fs::write(&path, sound.replace(from, to)).unwrap();
        let error = Mixture::load(&Disk, dir.path()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}
