//! `tritrain bench quality`: what each way to store weights, gradients and state costs in loss.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use tritrain_backend::{Backend, Cpu};
use tritrain_files::{Disk, Storage};
use tritrain_train::{Config, Curve, Run, Signals, Workplace, pearson};

use crate::{
    args::BenchQuality,
    commands::drive,
    error::{Error, Result},
    memory, plot, prepare, show,
};

/// Ways to train the same model: name, and what they set beside the defaults. Rates are the best of a few that were
/// tried on a million tokens; of the f32 twins, Muon did best.
const SETTINGS: [(&str, &[&str]); 8] = [
    ("f32 twin, Muon", &["model.precision=f32", "optim.direction=muon", "optim.rate_f32=0.02"]),
    (
        "f32 twin, AdamW",
        &[
            "model.precision=f32",
            "optim.direction=adamw",
            "optim.rate_f32=0.02",
            "optim.embedding_rate=0.008",
        ],
    ),
    ("f32 twin, factored", &["model.precision=f32"]),
    ("f32 latent, Muon", &["optim.direction=muon", "optim.rate=0.04"]),
    ("f32 latent, factored", &[]),
    (
        "int8 latent, 1 trit of momentum",
        &[
            "optim.direction=muon",
            "optim.latent=int8",
            "optim.gradient=none",
            "optim.moment=trits1",
            "optim.beta1=0.8",
            "optim.rate=0.12",
        ],
    ),
    (
        "3 trits of latent, 2 of momentum",
        &[
            "optim.direction=muon",
            "optim.latent=trits3",
            "optim.gradient=none",
            "optim.moment=trits2",
            "optim.beta1=0.8",
            "optim.rate=0.12",
            "optim.range=3",
        ],
    ),
    (
        "3 trits of latent, 1 of momentum",
        &[
            "optim.direction=muon",
            "optim.latent=trits3",
            "optim.gradient=none",
            "optim.moment=trits1",
            "optim.beta1=0.8",
            "optim.rate=0.16",
            "optim.range=3",
        ],
    ),
];
/// Places in [`SETTINGS`] of the best twin and of that under AdamW.
const TWIN: usize = 0;
const ADAMW: usize = 1;

/// What became of a setting.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    set: Vec<&'static str>,
    /// Codes, latent weights, kept gradients and state of the matrices.
    bits_per_parameter: f64,
    /// Final validation loss in nats per token, by seed.
    losses: Vec<f64>,
    /// Mean loss over that of the best twin, in percent.
    over_twin_percent: f64,
    /// The same over the twin under AdamW.
    over_adamw_percent: f64,
    /// Correlation of the training losses with those of the best twin, by seed.
    pearson_r: Vec<f64>,
}

/// Trains every setting with every seed, as far as that has not been done in the same folder.
pub(crate) fn bench(args: &BenchQuality) -> Result<()> {
    let signals = Signals::watch()?;
    let seeds: Vec<u64> = (1..=args.seeds.max(1)).collect();
    let configured = |set: &[&str], seed: u64| -> Result<Config> {
        let all = set.iter().map(|set| (*set).to_owned()).chain(args.set.iter().cloned());
        let mut config = Config::resolve(None, &all.collect::<Vec<String>>())?;
        config.data.paths = args.data.iter().map(|path| path.display().to_string()).collect();
        config.run.seed = seed;
        Ok(config)
    };
    let base = configured(&[], 1)?;
    let backend = Cpu::new(base.run.threads)?;
    let corpus = {
        let _lock = tritrain_files::checkpoint::lock(&args.out)?;
        prepare::corpus(&Disk, &base, &args.out, Disk.exists(&args.out.join("tokenizer.json"))?)?
    };
    let mut curves: Vec<Vec<Curve>> = SETTINGS.iter().map(|_| Vec::new()).collect();
    for &seed in &seeds {
        for ((name, set), curves) in SETTINGS.iter().zip(&mut curves) {
            let dir = args.out.join(format!("{}-{seed}", name.replace([' ', ','], "-").replace("--", "-")));
            show::note(&format!("{name}, seed {seed}: {}", dir.display()));
            let workplace = Workplace::resume(&Disk, &dir, configured(set, seed)?)?;
            let run = || Run::new(&backend, &Disk, workplace, &corpus);
            if backend.run(|| drive(&backend, run, &signals))?.stopped {
                show::note("stopped; the same command goes on");
                return Ok(());
            }
            curves.push(curve(&dir.join("metrics.jsonl"))?);
        }
    }
    let finals = |curves: &[Curve]| -> Vec<f64> {
        curves.iter().filter_map(|curve| curve.evaluations.last().map(|(_, loss)| *loss)).collect()
    };
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let of = |at: usize| mean(&finals(&curves[at]));
    let over = |loss: f64, twin: usize| 100.0 * (loss / of(twin) - 1.0);
    let mut rows = Vec::new();
    for ((name, set), found) in SETTINGS.iter().zip(&curves) {
        let config = configured(set, 1)?;
        let losses = finals(found);
        let vocab = corpus.tokenizer().vocab_size() as usize;
        let bits = memory::ledger(&config, vocab, &backend).ternary_bits_per_parameter;
        rows.push(Row {
            name,
            set: set.to_vec(),
            bits_per_parameter: bits,
            over_twin_percent: over(mean(&losses), TWIN),
            over_adamw_percent: over(mean(&losses), ADAMW),
            pearson_r: found.iter().zip(&curves[TWIN]).map(|(a, b)| pearson(&a.losses, &b.losses)).collect(),
            losses,
        });
    }
    show::line(&format!(
        "{:34}{:>8}{:>12}{:>12}{:>12}{:>10}",
        "", "bits", "nats/token", "over twin", "over AdamW", "r"
    ))?;
    for row in &rows {
        show::line(&format!(
            "{:34}{:>8.2}{:>12.4}{:>10.2} %{:>10.2} %{:>10.4}",
            row.name,
            row.bits_per_parameter,
            mean(&row.losses),
            row.over_twin_percent,
            row.over_adamw_percent,
            mean(&row.pearson_r)
        ))?;
    }
    let path = args.out.join("quality.svg");
    let drawn: Vec<(&str, &Curve)> = SETTINGS
        .iter()
        .zip(&curves)
        .filter_map(|((name, _), curves)| Some((*name, curves.first()?)))
        .collect();
    plot::curves(&path, &drawn, "training and validation loss, seed 1")?;
    show::line(&format!("plot: {}", path.display()))?;
    if args.json {
        show::json(&serde_json::json!({ "seeds": seeds, "rows": rows }))?;
    }
    Ok(())
}

/// The curve that a run logged.
fn curve(path: &Path) -> Result<Curve> {
    let bytes = Disk.read(path)?;
    let mut curve = Curve::default();
    for line in String::from_utf8_lossy(&bytes).lines() {
        let record: Value = serde_json::from_str(line)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source: source.into() })?;
        let number = |key: &str| record.get(key).and_then(Value::as_f64);
        if let Some(loss) = number("loss") {
            curve.losses.push(loss as f32);
        }
        if let (Some(loss), Some(step)) = (number("validation_loss"), record["step"].as_u64()) {
            curve.evaluations.push((step, loss));
        }
    }
    Ok(curve)
}
