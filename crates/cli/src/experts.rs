//! Mixtures of experts: trained, evaluated, continued.

use std::{path::Path, process::ExitCode, time::Instant};

use serde_json::json;
use tritrain_backend::{Backend, Cpu};
use tritrain_data::{Source, ValidationSet, clusters::Clusters};
use tritrain_files::Disk;
use tritrain_train::{
    CLUSTERS, Config, Evaluation, Mixed, Mixing, Mixture, Part, Run, Signals, WAYS, Workplace, evaluate,
    evaluate_text,
};

use crate::{
    args,
    commands::{self, BATCH},
    devices::On,
    error::{Error, Result},
    generate::{self, Asked, Took},
    prepare, show,
};

/// Trains the shared start and the experts one after the other, each a run in a folder of its own, and
/// measures the mixture.
pub(crate) fn train(args: &args::Train, dir: &Path, config: Config, signals: &Signals) -> Result<ExitCode> {
    let claim = if args.resume { Workplace::resume } else { Workplace::start };
    let whole = claim(&Disk, dir, config.clone())?;
    let backend = Cpu::new(config.run.threads)?;
    let begun = Part::begun(&Disk, dir)?;
    let corpus = prepare::corpus(&Disk, &config, dir, begun)?;
    let parts = Part::all(&config, &corpus)?;
    // What an expert lacks is found before the shared start takes its time.
    for part in &parts {
        part.check(&config, &corpus)?;
    }
    let clusters = Clusters::open(&Disk, &dir.join(CLUSTERS), Some(corpus.tokenizer()))?;
    let mut shared = None;
    for part in parts.clone() {
        let steps = part.last - part.first;
        let of = part.cluster.and_then(|cluster| clusters.names().get(cluster as usize));
        let of = of.map_or_else(|| "all text".into(), |name| format!("cluster {name}"));
        show::note(&format!("{}: {steps} steps on {of}", part.name));
        let at = dir.join(&part.name);
        let run = || {
            let workplace = Workplace::resume(&Disk, &at, config.clone())?;
            Run::of(&backend, &Disk, workplace, &corpus, part.clone(), shared.as_ref())
        };
        let outcome = backend.run(|| commands::drive(&On::from(&backend), run, signals))?;
        if outcome.stopped {
            return commands::stopped(dir, outcome.steps);
        }
        if shared.is_none() {
            shared = part.end(&Disk, dir)?;
        }
    }
    Mixture::save(&Disk, dir, &parts, clusters.names(), &corpus)?;
    drop(whole);
    let Some(mixture) = Mixture::load(&Disk, dir)? else { unreachable!("it was saved above") };
    let set = ValidationSet::new(&corpus, config.model.context, config.run.eval_tokens)?;
    let mut mixed = Mixed::new(&backend, &mixture, mixture.weights(&clusters, Mixing::default()))?;
    let evaluations = evaluate(&mut mixed.losses(BATCH), &corpus, &set)?;
    show_ways(&evaluations, &clusters)?;
    let (program, dir) = (show::program(), dir.display());
    show::line(&format!("the mixture lies in {dir}; next:"))?;
    show::line(&format!("  {program} generate {dir} --prompt \"The model\""))?;
    show::line(&format!("  {program} eval {dir} --data YOUR_TEXT"))?;
    if args.setup.json {
        let mut result = report(&evaluations);
        result["run"] = json!(dir.to_string());
        show::json(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the arguments say.
pub(crate) fn mixing(args: &args::Mixing) -> Result<Mixing> {
    let temperature = args.expert_temperature;
    if !(temperature > 0.0 && temperature.is_finite()) {
        let (option, found) = ("expert-temperature", temperature.to_string());
        return Err(Error::Usage { option, found, expected: "a number above 0" });
    }
    Ok(Mixing { temperature, nearest: args.nearest })
}

pub(crate) fn generate(args: &args::Generate, mixture: &Mixture, mixing: Mixing) -> Result<ExitCode> {
    let one = |found: usize| Error::Usage {
        option: "prompt",
        found: format!("({found} times)"),
        expected: "one prompt: a mixture continues one text at a time",
    };
    if args.prompt.len() > 1 || (args.chat && args.prompt.is_empty()) {
        return Err(one(args.prompt.len()));
    }
    let clusters = mixture.clusters(&Disk)?;
    let backend = Cpu::new(args.threads)?;
    let started = Instant::now();
    let asked = Asked::new(args, &mixture.shared, started)?;
    let prompt = asked.prompt()?;
    let mut mixed = Mixed::new(&backend, mixture, mixture.weights(&clusters, mixing))?;
    let load = started.elapsed();
    let mut next = mixed.continuation(&prompt)?;
    let took = Took { load, prompt: started.elapsed() - load, tokens: prompt.len() };
    backend.run_awake(|| generate::write(&asked, Some(&clusters), (&mut next, took)))
}

pub(crate) fn eval(args: &args::Eval, mixture: &Mixture, mixing: Mixing) -> Result<ExitCode> {
    if args.tasks.is_some() || args.context.is_some() {
        let (option, expected) =
            ("tasks or --context", "a single model: a mixture is evaluated on --data alone");
        return Err(Error::Usage { option, found: "of a mixture".into(), expected });
    }
    let clusters = mixture.clusters(&Disk)?;
    let backend = Cpu::new(args.threads)?;
    let mut mixed = Mixed::new(&backend, mixture, mixture.weights(&clusters, mixing))?;
    let (of, source) = ((&mixture.shared, Some(&clusters)), Source::Paths(args.data.clone()));
    let evaluations = evaluate_text(&mut mixed.losses(BATCH), of, (&Disk, &source), args.max_tokens)?;
    show_ways(&evaluations, &clusters)?;
    if args.json {
        show::json(&report(&evaluations))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Every way to predict in a line; the mixture by domain and cluster.
fn show_ways(evaluations: &[Evaluation], clusters: &Clusters<'_>) -> Result<()> {
    for (way, evaluation) in WAYS.iter().zip(evaluations) {
        show::line(&format!("{way}: {}", show::evaluation(evaluation)))?;
    }
    match evaluations.first() {
        Some(mixture) => commands::show_parts(mixture, Some(clusters)),
        None => Ok(()),
    }
}

/// The evaluation of the mixture, and beside it those of the others by name.
fn report(evaluations: &[Evaluation]) -> serde_json::Value {
    let mut result = json!(evaluations.first());
    for (way, evaluation) in WAYS.iter().zip(evaluations).skip(1) {
        result[way.replace(' ', "_")] = json!(evaluation);
    }
    result
}
