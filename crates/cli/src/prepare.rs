//! From arguments to a claimed run directory and a corpus.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tritrain_backend::{Backend, Cpu};
use tritrain_data::{Corpus, LeftOut, Preparation, Source, clusters::Clusters};
use tritrain_files::{Disk, Storage, tokens::Split};
use tritrain_train::{CLUSTERS, Config, load, with_topics};

use crate::{
    args::Setup,
    error::{Error, Result},
    show,
};

/// The text inside the program: the project's own sources and documentation.
pub(crate) static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/corpus.jsonl.zst"));

/// The configuration that file and arguments give, later ones first: `--data`, `--set`, file, default.
/// When the run in `resumed` goes on and no file is named, its own configuration is the file. Experts need as
/// many clusters.
///
/// Fails before anything is written when the text it names is not there.
pub(crate) fn config(
    setup: &Setup,
    resumed: Option<&Path>,
    experts: Option<usize>,
    from: Option<(&Path, usize)>,
) -> Result<Config> {
    let saved = resumed.map(|dir| dir.join("config.toml")).filter(|path| path.exists());
    let experts = experts.map(|k| format!("run.experts={k}"));
    let from = from.map(origin).transpose()?.unwrap_or_default();
    let sets: Vec<&String> = from.iter().chain(&setup.set).chain(&experts).collect();
    let mut config = configured(setup.config.as_deref().or(saved.as_deref()), &sets)?;
    if config.run.experts > 0 && config.data.clusters.is_empty() && config.data.clusters_k == 0 {
        config.set(&format!("data.clusters_k={}", config.run.experts))?;
    }
    if !setup.data.is_empty() {
        config.data.paths = setup.data.iter().map(|path| path.display().to_string()).collect();
    }
    Source::new(&config.data, EMBEDDED).open()?;
    Ok(config)
}

/// Options of a run that begins with the model at `path`: its sizes and its tokenizer, and a rank of adapters.
fn origin((path, lora): (&Path, usize)) -> Result<Vec<String>> {
    let loaded = load(&Disk, path)?;
    loaded.without_adapters()?;
    let options = serde_json::to_value(&loaded.config).unwrap_or_default();
    let model = options.as_object().into_iter().flatten().map(|(key, value)| format!("model.{key}={value}"));
    // As TOML, whatever characters they have.
    let text = |path: &Path| serde_json::Value::from(path.display().to_string());
    let (from, tokenizer) = (text(path), text(loaded.tokenizer_path()?));
    let beside =
        [format!("model.lora={lora}"), format!("run.from={from}"), format!("data.tokenizer={tokenizer}")];
    Ok(model.chain(beside).collect())
}

/// The configuration of a file, or the default one, with some options set.
pub(crate) fn configured(file: Option<&Path>, set: &[impl AsRef<str>]) -> Result<Config> {
    let file = match file {
        Some(path) => {
            let read = fs::read_to_string(path);
            Some((
                read.map_err(|source| Error::Read { path: path.to_path_buf(), source })?,
                path.display().to_string(),
            ))
        }
        None => None,
    };
    let file = file.as_ref().map(|(text, origin)| (text.as_str(), origin.as_str()));
    Ok(Config::resolve(file, set)?)
}

/// The folder of the run: the one asked for, or the next free `runs/N`.
pub(crate) fn out(setup: &Setup) -> PathBuf {
    setup.out.clone().unwrap_or_else(|| {
        let free = (1..).map(|n| Path::new("runs").join(n.to_string())).find(|path| !path.exists());
        free.unwrap_or_else(|| PathBuf::from("runs"))
    })
}

/// Makes or finds the tokens of `config.data` in `dir`, with a progress bar.
///
/// Where a model was `trained` and its tokenizer lies beside it, neither is made anew: they must agree
/// with the text. (The runs of a comparison have theirs one folder up, and make their own to go on.)
pub(crate) fn corpus(storage: &dyn Storage, config: &Config, dir: &Path, trained: bool) -> Result<Corpus> {
    let source = Source::new(&config.data, EMBEDDED);
    let keep = trained && storage.exists(&dir.join("tokenizer.json"))?;
    let start = if keep { Preparation::resume } else { Preparation::start };
    let mut preparation = start(storage, &source, (&config.data, config.model.context), dir)?;
    let mut bar = None;
    while let Some(progress) = preparation.advance()? {
        let (stage, bar) = bar.get_or_insert_with(|| {
            (progress.stage, show::Progress::new(show::stage(progress.stage), progress.total, 0))
        });
        if *stage != progress.stage {
            bar.clear();
            *stage = progress.stage;
            *bar = show::Progress::new(show::stage(progress.stage), progress.total, 0);
        }
        bar.bytes(progress.done);
    }
    if let Some((_, bar)) = bar {
        bar.clear();
    }
    let corpus = preparation.finish()?;
    let mut bar: Option<(&str, show::Progress)> = None;
    // One of its own: what its kernels keep from call to call is no part of a run.
    let backend = Cpu::new(config.run.threads)?;
    let corpus = backend.run(|| {
        with_topics(&backend, storage, &source, &config.data, dir, corpus, |pass, done, total| {
            if bar.as_ref().is_none_or(|(known, _)| *known != pass) {
                if let Some((_, bar)) = &bar {
                    bar.clear();
                }
                bar = Some((pass, show::Progress::new(pass, total, 0)));
            }
            if let Some((_, bar)) = &bar {
                bar.bytes(done);
            }
        })
    })?;
    if let Some((_, bar)) = &bar {
        bar.clear();
    }
    drop(backend);
    show::note(&format!(
        "data: {} training and {} validation tokens, vocabulary {}",
        show::short(corpus.len(Split::Train)),
        show::short(corpus.len(Split::Validation)),
        corpus.tokenizer().vocab_size(),
    ));
    if let Some(labels) = corpus.labels().filter(|labels| labels.k() > 1) {
        let topics = Clusters::open(storage, &dir.join(CLUSTERS), Some(corpus.tokenizer()))?;
        let totals = labels.totals(Split::Train);
        let named = topics.names().iter().zip(totals);
        let parts: Vec<String> =
            named.map(|(name, tokens)| format!("{name} ({})", show::short(tokens))).collect();
        show::note(&format!("{} clusters: {}", labels.k(), parts.join(", ")));
    }
    if config.data.duplicates > 0.0 {
        show_left_out(&LeftOut::open(storage, dir)?);
    }
    Ok(corpus)
}

/// What training leaves out.
fn show_left_out(report: &LeftOut) {
    let LeftOut { documents, tokens, cosine, resemblance, examples } = report;
    show::note(&format!(
        "near-duplicates (cosine {cosine}, {resemblance} of their shingles): {} of {} documents are left out, {} of {} tokens",
        show::thousands(documents.0),
        show::thousands(documents.1),
        show::short(tokens.0),
        show::short(tokens.1),
    ));
    for example in examples.iter().take(3) {
        let opening: String = example.opening.chars().take(50).collect();
        show::note(&format!("  {} for {}: {opening}", example.dropped, example.kept));
    }
}
