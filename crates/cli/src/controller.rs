//! `tritrain meta-train` and `tritrain bench controller`: the network that steers learning rates.

use std::{path::Path, process::ExitCode};

use serde::Serialize;
use tritrain_backend::Cpu;
use tritrain_data::{Corpus, PlanKind};
use tritrain_files::Disk;
use tritrain_optim::{ControllerKind, DirectionKind, OptimConfig, ScheduleKind};
use tritrain_train::{Check, Config, FOUND, Meta, MetaOptions, Proxy, Signals, losses};

use crate::{
    args::{BenchController, ControllerName, MetaTrain},
    error::Result,
    prepare, show,
};

/// Tokens in the vocabulary of short runs.
const VOCAB: u32 = 512;

pub(crate) fn meta_train(args: &MetaTrain) -> Result<ExitCode> {
    let signals = Signals::watch()?;
    let backends = backends(args.threads)?;
    let mut corpora = Vec::new();
    for (n, path) in args.data.iter().enumerate() {
        let mut config = Config::default();
        config.data.paths = vec![path.display().to_string()];
        (config.data.vocab, config.data.validation) = (VOCAB, 0.05);
        config.data.plan = PlanKind::Shuffle;
        corpora.push(corpus(&config, &args.out.join(format!("text-{n}")))?);
    }
    let options = MetaOptions {
        seed: args.seed,
        pairs: args.pairs.max(1),
        tasks: args.tasks.max(1),
        steps: args.steps.max(1),
    };
    let mut meta = Meta::open(&backends, &Disk, &args.out, &corpora, options)?;
    for (name, check) in ["off", "rule", "network"].into_iter().zip(meta.checks()) {
        show::line(&checked(name, check))?;
    }
    let mut seen = meta.checks()[2].generation;
    while meta.generation() < args.generations {
        let score = meta.advance(&backends)?;
        show::note(&format!("generation {}: {score:.4}", meta.generation()));
        let last = meta.checks()[2];
        if last.generation != seen {
            seen = last.generation;
            show::line(&checked("network", last))?;
        }
        if signals.asked() {
            show::note("stopped; the same command goes on");
            break;
        }
    }
    show::line(&checked("best", meta.checks()[3]))?;
    show::line(&format!("weights: {}", args.out.join(FOUND).display()))?;
    Ok(ExitCode::SUCCESS)
}

/// A check in one line: loss over that of the best fixed rate, in percent.
fn checked(name: &str, check: &Check) -> String {
    let percent = |log: f64| 100.0 * log.exp_m1();
    let parts: Vec<String> = check.by_factor.iter().map(|log| format!("{:6.2}", percent(*log))).collect();
    format!(
        "{name:<8} generation {:>4}: {:6.2} % over the best fixed rate; base rate x 1/16 to x 16: {}",
        check.generation,
        percent(check.score),
        parts.join(" ")
    )
}

/// The name of a contestant; makes `optim`, without a controller, one with it.
fn contestant(name: ControllerName, optim: &mut OptimConfig) -> &'static str {
    let (title, controller) = match name {
        ControllerName::Off => ("off", ControllerKind::Off),
        ControllerName::Rule => ("rule", ControllerKind::Rule),
        ControllerName::Learned => ("learned", ControllerKind::Learned),
        ControllerName::Random => ("random", ControllerKind::Random),
        ControllerName::ScheduleFree => ("schedule-free", ControllerKind::Off),
        ControllerName::Prodigy => ("prodigy", ControllerKind::Off),
    };
    optim.controller = controller;
    if controller == ControllerKind::Off {
        optim.feedback = 0;
    }
    if name == ControllerName::ScheduleFree {
        optim.schedule = ScheduleKind::Free;
    }
    if name == ControllerName::Prodigy {
        optim.direction = DirectionKind::Prodigy;
        (optim.rate, optim.rate_f32) = (1.0, 1.0);
    }
    title
}

const FACTORS: [f32; 5] = [1.0 / 16.0, 0.25, 1.0, 4.0, 16.0];
/// Factors of the fixed rates among which the best is sought.
const FIXED: [f32; 9] = [1.0 / 16.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0];

/// What one controller did with one base rate.
#[derive(Serialize)]
struct Row {
    controller: &'static str,
    /// Factor of the configured rates.
    factor: f32,
    /// Final validation loss over that of the best fixed rate of the same seed, in percent, by seed.
    over_best_percent: Vec<f64>,
}

/// What `bench controller --json` prints.
#[derive(Serialize)]
struct Contest<'a> {
    /// Final validation losses of fixed rates, in nats per token: by seed, then by power of two from 1/16 to 16.
    fixed_losses: Vec<&'a [f64]>,
    rows: Vec<Row>,
}

pub(crate) fn bench(args: &BenchController) -> Result<()> {
    let mut base = Config::resolve(None, &args.set)?;
    base.data.paths = args.data.iter().map(|path| path.display().to_string()).collect();
    let backends = backends(args.threads)?;
    let corpus = corpus(&base, &args.out)?;
    base.optim.controller = ControllerKind::Off;
    let weights = std::mem::take(&mut base.optim.controller_weights);
    let proxy = |seed: u64, name: ControllerName, factor: f32| {
        let mut config = base.clone();
        config.run.seed = seed;
        contestant(name, &mut config.optim);
        config.optim.rate *= factor;
        config.optim.rate_f32 *= factor;
        config.optim.embedding_rate *= factor;
        if name == ControllerName::Learned {
            config.optim.controller_weights.clone_from(&weights);
        }
        Proxy { corpus: &corpus, config, network: None }
    };
    let seeds = 1..=args.seeds.max(1);
    let fixed = seeds.clone().flat_map(|seed| FIXED.map(|factor| proxy(seed, ControllerName::Off, factor)));
    let fixed = losses(&backends, &fixed.collect::<Vec<_>>())?;
    let fixed: Vec<&[f64]> = fixed.chunks_exact(FIXED.len()).collect();
    let least = |losses: &&[f64]| losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best: Vec<f64> = fixed.iter().map(least).collect();
    for (seed, losses) in seeds.clone().zip(&fixed) {
        let losses: Vec<String> = losses.iter().map(|loss| format!("{loss:.4}")).collect();
        show::line(&format!("seed {seed}, fixed rates x 1/16 to x 16: {}", losses.join(" ")))?;
    }
    let mut rows = Vec::new();
    show::line("percent over the best fixed rate, mean (largest) over seeds, by factor of the base rate:")?;
    show::line(&format!("{:14}{:>16}{:>16}{:>16}{:>16}{:>16}", "", "1/16", "1/4", "1", "4", "16"))?;
    for &name in &args.controllers {
        let mut config = base.clone();
        let title = contestant(name, &mut config.optim);
        if let Err(error) = config.check() {
            show::note(&format!("{title} is left out: {error}"));
            continue;
        }
        let found = if name == ControllerName::Off {
            // Every other fixed rate is one of the factors.
            (0..FACTORS.len()).flat_map(|at| fixed.iter().map(move |losses| losses[2 * at])).collect()
        } else {
            let of = |factor: &f32| seeds.clone().map(|seed| proxy(seed, name, *factor)).collect::<Vec<_>>();
            losses(&backends, &FACTORS.iter().flat_map(of).collect::<Vec<_>>())?
        };
        let mut line = format!("{title:14}");
        for (factor, found) in FACTORS.into_iter().zip(found.chunks_exact(best.len())) {
            let over: Vec<f64> =
                found.iter().zip(&best).map(|(loss, best)| 100.0 * (loss / best - 1.0)).collect();
            let mean = over.iter().sum::<f64>() / over.len() as f64;
            let most = over.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            line += &format!("{:>16}", format!("{mean:.2} ({most:.2})"));
            rows.push(Row { controller: title, factor, over_best_percent: over });
        }
        show::line(&line)?;
    }
    if args.json { show::json(&Contest { fixed_losses: fixed, rows }) } else { Ok(()) }
}

/// One backend of one thread for each run that goes on side by side.
fn backends(threads: usize) -> Result<Vec<Cpu>> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    Ok((0..threads).map(|_| Cpu::new(1)).collect::<Result<_, _>>()?)
}

fn corpus(config: &Config, dir: &Path) -> Result<Corpus> {
    let _lock = tritrain_files::checkpoint::lock(dir)?;
    prepare::corpus(&Disk, config, dir, false)
}
