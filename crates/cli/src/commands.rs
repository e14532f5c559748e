//! The commands, one function each.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use serde_json::json;
use tritrain_backend::{Backend, Cpu};
use tritrain_bench::peak_memory;
use tritrain_data::{
    Corpus, Source,
    clusters::Clusters,
    tasks::{Task, tasks},
};
use tritrain_files::{Disk, Storage, give_back_memory};
use tritrain_model::{Activations, Keep, Layout, Precision, TensorKind};
use tritrain_train::{
    Audit, CLUSTERS, Comparison, Config, Curve, Evaluation, Event, Loaded, Mixture, Run, STOPPED, Signals,
    Single, Workplace, archive, evaluate_tasks, evaluate_text, import, load, windows_at_once,
};

use crate::{
    args::{self, Args, Command},
    bench, cluster, controller, devices,
    devices::On,
    error::{Error, Result},
    experts, export, generate, inspect, memory, merge, plot, prepare, show,
};

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args.command.unwrap_or_else(|| Command::Train(args::Train::default())) {
        Command::Train(args) => train(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Eval(args) => eval(&args),
        Command::Import(args) => bring_in(&args),
        Command::Archive(args) => put_away(&args),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Verify(args) => export::verify(&args),
        Command::Compare(args) => compare(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Audit(args) => audit(&args),
        Command::Bench(args) => bench::run(&args),
        Command::MetaTrain(args) => controller::meta_train(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Config => show::line(Config::annotated().trim_end()).map(|()| ExitCode::SUCCESS),
    }
}

/// Sequences evaluated at once.
pub(crate) const BATCH: usize = 4;

/// How a run ended.
pub(crate) struct Outcome {
    pub(crate) curve: Curve,
    sample: Option<String>,
    pub(crate) steps: u64,
    pub(crate) stopped: bool,
}

fn train(args: &args::Train) -> Result<ExitCode> {
    devices::check(&args.device)?;
    let signals = Signals::watch()?;
    let dir = prepare::out(&args.setup);
    let origin = args.from.as_deref().map(|path| (path, args.lora.unwrap_or(0)));
    let config = prepare::config(&args.setup, args.resume.then_some(&*dir), args.experts, origin)?;
    if config.run.experts > 0 {
        devices::only_processor(&args.device)?;
        return experts::train(args, &dir, config, &signals);
    }
    let workplace = match args.resume {
        true => Workplace::resume(&Disk, &dir, config)?,
        false => Workplace::start(&Disk, &dir, config)?,
    };
    let config = workplace.config().clone();
    let corpus = prepare::corpus(&Disk, &config, &dir, workplace.step().is_some())?;
    let training = Training { workplace, corpus: &corpus, signals: &signals };
    let outcome = devices::work(&args.device, config.run.threads, training)?;
    let Some(evaluation) = outcome.curve.last.as_ref().filter(|_| !outcome.stopped) else {
        return stopped(&dir, outcome.steps);
    };
    finish(&dir, evaluation, &outcome)?;
    if args.setup.json {
        show::json(&json!({
            "loss": evaluation.loss,
            "bits_per_byte": evaluation.bits_per_byte,
            "perplexity": evaluation.perplexity,
            "steps": outcome.steps,
            "run": dir,
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A run on some device.
struct Training<'a> {
    workplace: Workplace,
    corpus: &'a Corpus,
    signals: &'a Signals,
}

impl devices::Work for Training<'_> {
    type Output = Outcome;

    fn on<B: Backend>(self, backend: &B, device: &On) -> Result<Outcome> {
        let Training { workplace, corpus, signals } = self;
        backend.run(|| drive(device, || Run::new(backend, &Disk, workplace, corpus), signals))
    }
}

/// Runs to the end or to a signal, showing what happens. For a thread of the pool, so that no step has to
/// be handed over to it.
pub(crate) fn drive<'a, B: Backend + 'a>(
    device: &On,
    run: impl FnOnce() -> tritrain_train::Result<Run<'a, B>>,
    signals: &Signals,
) -> Result<Outcome> {
    give_back_memory();
    peak_memory::forget();
    let mut run = run()?;
    show::note(&header(&device.name, &run));
    let (start, steps) = run.progress();
    let tokens = run.config().run.batch * run.config().model.context;
    let mut progress = show::Progress::new("training", steps, start);
    let mut outcome = Outcome { curve: Curve::default(), sample: None, steps, stopped: false };
    while let Some(event) = run.advance()? {
        match event {
            Event::Step(report, seconds) => {
                progress.step(&report, tokens, seconds);
                outcome.curve.losses.push(report.loss);
            }
            Event::Skipped { step, what } => {
                progress
                    .note(&format!("step {step} skipped: {what} was not finite; the weights are unchanged"));
            }
            Event::NoAnswer { step } => {
                progress
                    .note(&format!("step {step} skipped: no answer in its batch; the weights are unchanged"));
            }
            Event::WentBack { from, step, rates } => {
                progress.note(&format!(
                    "step {from}: too many spikes; back at step {step}, learning rates times {rates}"
                ));
            }
            Event::Evaluated { step, evaluation } => {
                progress.note(&format!("step {step}: validation {}", show::evaluation(&evaluation)));
                outcome.curve.evaluations.push((step, evaluation.loss));
                outcome.curve.last = Some(evaluation);
            }
            Event::Sampled { step, text } => {
                if step < steps {
                    progress.note(&format!("step {step}, a sample:\n{}", show::sample(&text).join("\n")));
                }
                outcome.sample = Some(text);
            }
            Event::Saved { step, path } => progress.note(&format!("step {step} saved in {}", path.display())),
        }
        if signals.asked() && !outcome.stopped {
            outcome.stopped = true;
            run.stop();
        }
    }
    progress.clear();
    if outcome.curve.last.is_none() && !outcome.stopped {
        show::note("the run was complete already");
        outcome.curve.last = Some(run.validate()?);
    }
    outcome.steps = run.progress().0;
    if let (Some(peak), Some(processor)) = (peak_memory::bytes(), device.processor) {
        let expected = memory::ledger(run.config(), run.model().vocab(), processor)?.bytes;
        show::note(&format!(
            "memory: {} MiB at most, {} expected (see `{} memory`)",
            memory::mib(peak),
            memory::mib(expected),
            show::program()
        ));
    }
    Ok(outcome)
}

fn header<B: Backend>(device: &str, run: &Run<'_, B>) -> String {
    let config = &run.config().model;
    let layout = run.model().layout();
    let matrices: usize =
        layout.specs.iter().filter(|spec| spec.kind == TensorKind::Matrix).map(|spec| spec.len()).sum();
    let kind = if layout.ternary { "ternary" } else { "f32" };
    let (done, steps) = run.progress();
    let from = if done > 0 { format!(", going on at step {done}") } else { String::new() };
    format!(
        "model: {} layers × {}, {} parameters, {} of them in {kind} matrices\ntraining: {steps} steps of {} tokens{from}, on {device}",
        config.layers,
        config.dim,
        show::short(layout.parameters() as u64),
        show::short(matrices as u64),
        run.config().run.batch * config.context,
    )
}

pub(crate) fn stopped(dir: &Path, step: u64) -> Result<ExitCode> {
    show::note(&format!("stopped at step {step}; go on with"));
    show::note(&format!("  {} train --out {} --resume", show::program(), dir.display()));
    Ok(ExitCode::from(u8::try_from(STOPPED).unwrap_or(1)))
}

fn finish(dir: &Path, evaluation: &Evaluation, outcome: &Outcome) -> Result<()> {
    show::line(&format!("validation loss: {}", show::evaluation(evaluation)))?;
    for line in show::domains(evaluation) {
        show::line(&line)?;
    }
    if let Some(text) = &outcome.sample {
        show::line("a sample:")?;
        for line in show::sample(text) {
            show::line(&line)?;
        }
    }
    let (program, dir) = (show::program(), dir.display());
    show::line(&format!("the run lies in {dir}; next:"))?;
    show::line(&format!("  {program} generate {dir} --prompt \"The model\""))?;
    show::line(&format!("  {program} inspect {dir}"))?;
    show::line(&format!("  {program} train --data YOUR_TEXT --out runs/mine    # files or folders of text"))
}

/// The clusters of the run that a model belongs to: beside the model, or in one of the two folders above, as
/// its tokenizer.
pub(crate) fn topics<'t>(loaded: &'t Loaded) -> Result<Option<Clusters<'t>>> {
    for dir in loaded.path.ancestors().skip(1).take(3) {
        let path = dir.join(CLUSTERS);
        if Disk.exists(&path)? {
            return Ok(Some(Clusters::open(&Disk, &path, Some(&loaded.tokenizer))?));
        }
    }
    Ok(None)
}

fn audit(args: &args::Audit) -> Result<ExitCode> {
    let audits = tritrain_train::audit(&Disk, &args.run)?;
    for (name, audit) in &audits {
        if !name.is_empty() {
            show::line(&format!("{name}:"))?;
        }
        show_audit(audit)?;
    }
    if args.json {
        match &audits[..] {
            [(name, audit)] if name.is_empty() => show::json(audit)?,
            _ => show::json(&audits.iter().map(|(name, audit)| (name, audit)).collect::<BTreeMap<_, _>>())?,
        }
    }
    let kept = audits.iter().all(|(_, audit)| audit.kept());
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::from(5) })
}

fn show_audit(audit: &Audit) -> Result<()> {
    let percent = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
    let [whole, partly, never] = audit.documents;
    show::line(&format!(
        "{} steps, {:.2} epochs: {:.2} % of {} training tokens were predicted, each {} to {} times",
        audit.steps,
        audit.epochs,
        percent(audit.predicted, audit.tokens),
        show::short(audit.tokens),
        audit.times.0,
        audit.times.1,
    ))?;
    show::line(&format!(
        "documents: {} seen whole, {} in part, {} not at all",
        show::thousands(whole),
        show::thousands(partly),
        show::thousands(never)
    ))?;
    if audit.left_out.0 > 0 {
        let (documents, tokens) = audit.left_out;
        let (documents, tokens) = (show::thousands(documents), show::short(tokens));
        show::line(&format!("of these, {documents} with {tokens} tokens are near-duplicates and left out"))?;
    }
    for (cluster, part) in audit.clusters.iter().enumerate() {
        let (text, seen) = (100.0 * part.text, 100.0 * part.seen);
        show::line(&format!(
            "  cluster {cluster:>3}: {text:5.1} % of the text, {seen:5.1} % of what was seen"
        ))?;
    }
    match audit.first_differing {
        None => show::line("every step took what the plan says"),
        Some(step) => show::line(&format!(
            "{} steps, the first of them {step}, took something else than the plan says",
            audit.differing
        )),
    }
}

fn eval(args: &args::Eval) -> Result<ExitCode> {
    devices::check(&args.device)?;
    let mixing = experts::mixing(&args.mixing)?;
    if let Some(mixture) = Mixture::load(&Disk, &args.model)? {
        devices::only_processor(&args.device)?;
        return experts::eval(args, &mixture, mixing);
    }
    // What is wrong with the tasks is found before a model takes its time.
    let tasks = args.tasks.as_ref().map(|path| tasks(&Disk, path)).transpose()?;
    let loaded = load(&Disk, &args.model)?;
    loaded.notes.iter().for_each(|note| show::note(note));
    let context = context(args, loaded.config.context)?;
    devices::work(
        &args.device,
        args.threads,
        Evaluating { args, loaded: &loaded, tasks: tasks.as_deref(), context },
    )
}

/// A model that is evaluated on some device.
struct Evaluating<'a> {
    args: &'a args::Eval,
    loaded: &'a Loaded,
    tasks: Option<&'a [Task]>,
    context: usize,
}

impl devices::Work for Evaluating<'_> {
    type Output = ExitCode;

    fn on<B: Backend>(self, backend: &B, _: &On) -> Result<ExitCode> {
        let Evaluating { args, loaded, tasks, context } = self;
        let model = loaded.model(backend)?;
        if !args.data.is_empty() {
            let batch = windows_at_once(context);
            let mut a = Activations::new(backend, &loaded.config, batch, context, Keep::Nothing);
            let source = Source::Paths(args.data.clone());
            let topics = topics(loaded)?;
            let of = (loaded, topics.as_ref());
            let mut single = Single::new(backend, &model, &mut a);
            let evaluations = evaluate_text(&mut single, of, (&Disk, &source), args.max_tokens)?;
            for evaluation in &evaluations {
                show::line(&format!("{}: {}", loaded.path.display(), show::evaluation(evaluation)))?;
                show_parts(evaluation, topics.as_ref())?;
                if args.json && tasks.is_none() {
                    show::json(evaluation)?;
                }
            }
        }
        if let Some(tasks) = tasks {
            let report = evaluate_tasks((backend, &model), &loaded.tokenizer, tasks, context)?;
            show::tasks(&report)?;
            if args.json {
                show::json(&report)?;
            }
        }
        devices::sound(backend)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn bring_in(args: &args::Import) -> Result<ExitCode> {
    let imported = import(&Disk, &args.path, &args.out, args.context)?;
    let (config, vocab) = (&imported.config, imported.vocab);
    for note in &imported.notes {
        show::note(note);
    }
    let parameters = Layout::new(config, vocab).parameters() as u64;
    let kind = if config.precision == Precision::Ternary { "ternary" } else { "f32" };
    show::line(&format!(
        "{}: {} layers × {}, {} parameters, {kind} matrices, {} tokens",
        imported.path.display(),
        config.layers,
        config.dim,
        show::short(parameters),
        show::thousands(vocab as u64)
    ))?;
    if args.json {
        let (path, notes) = (&imported.path, &imported.notes);
        show::json(
            &json!({"path": path, "model": config, "vocab": vocab, "parameters": parameters, "notes": notes}),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn put_away(args: &args::Archive) -> Result<ExitCode> {
    let loaded = load(&Disk, &args.model)?;
    let archived = archive(&Cpu::new(0)?, &Disk, &loaded, &args.out)?;
    let tokenizer = args.out.with_file_name("tokenizer.json");
    if !Disk.exists(&tokenizer)? {
        loaded.tokenizer.save(&Disk, &tokenizer)?;
    }
    show::line(&format!(
        "{}: {} bytes, {:.4} bits per ternary weight (largest {:.4}), {:.2} times smaller than in f32, {:.0} million weights a second read back",
        args.out.display(),
        show::thousands(archived.bytes),
        archived.bits_per_weight,
        archived.largest_bits_per_weight,
        archived.bytes_in_f32 as f64 / archived.bytes as f64,
        archived.weights_per_s / 1e6,
    ))?;
    if args.json {
        show::json(&archived)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tokens of a sequence that is evaluated.
fn context(args: &args::Eval, most: usize) -> Result<usize> {
    let context = args.context.unwrap_or(most);
    if !(1..=most).contains(&context) {
        let expected = "a number from 1 to the model's context";
        return Err(Error::Usage { option: "context", found: context.to_string(), expected });
    }
    Ok(context)
}

/// An evaluation by domain and by cluster.
pub(crate) fn show_parts(evaluation: &Evaluation, topics: Option<&Clusters<'_>>) -> Result<()> {
    for line in show::domains(evaluation) {
        show::line(&line)?;
    }
    for part in topics.map(|_| &evaluation.clusters[..]).unwrap_or_default() {
        let name = topics.and_then(|topics| topics.names().get(part.cluster as usize));
        let (tokens, name) = (show::thousands(part.tokens), name.map_or("", String::as_str));
        show::line(&format!("  cluster {:>3} {:>9.4} {tokens:>10}  {name}", part.cluster, part.loss))?;
    }
    Ok(())
}

fn compare(args: &args::Compare) -> Result<ExitCode> {
    let signals = Signals::watch()?;
    let dir = prepare::out(&args.setup);
    let base = prepare::config(&args.setup, None, None, None)?;
    // Both places are claimed before the work begins.
    let claim = |name: &'static str, precision| -> Result<(&str, Workplace)> {
        let mut config = base.clone();
        config.model.precision = precision;
        config.model.check().map_err(|error| Error::Usage {
            option: "set",
            found: error.to_string(),
            expected: "a model that can be ternary",
        })?;
        Ok((name, Workplace::start(&Disk, &dir.join(name), config)?))
    };
    // The folder itself first: its tokens and tokenizer must not be those of a run that lies there.
    let _whole = Workplace::start(&Disk, &dir, base.clone())?;
    let places = [claim("ternary", Precision::Ternary)?, claim("f32", Precision::F32)?];
    let backend = Cpu::new(base.run.threads)?;
    let device = On::from(&backend);
    let corpus = prepare::corpus(&Disk, &base, &dir, false)?;
    let mut curves = Vec::new();
    for (name, workplace) in places {
        show::note(&format!("{name}:"));
        let outcome =
            backend.run(|| drive(&device, || Run::new(&backend, &Disk, workplace, &corpus), &signals))?;
        if outcome.stopped {
            return stopped(&dir.join(name), outcome.steps);
        }
        curves.push(outcome.curve);
    }
    let [ternary, f32] = &curves[..] else { unreachable!("two runs, two curves") };
    let Some(comparison) = Comparison::new(ternary, f32) else {
        unreachable!("every run ends with an evaluation")
    };
    let path = dir.join("compare.svg");
    let caption = format!("gap {:.2} %, r = {:.5}", comparison.gap_percent, comparison.pearson_r);
    plot::curves(&path, &[("ternary", ternary), ("f32 twin", f32)], &caption)?;
    show::line(&format!(
        "ternary {:.4} nats per token, f32 twin {:.4}",
        comparison.ternary_loss, comparison.f32_loss
    ))?;
    show::line(&format!(
        "gap {:.2} %, correlation of the loss curves r = {:.5}",
        comparison.gap_percent, comparison.pearson_r
    ))?;
    show::line(&format!("plot: {}", path.display()))?;
    if args.setup.json {
        show::json(&comparison)?;
    }
    Ok(ExitCode::SUCCESS)
}
