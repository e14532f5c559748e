//! `tritrain bench quality`: what each way to store weights, gradients and state costs in loss.

use serde::Serialize;
use tritrain_train::{Curve, pearson};

use crate::{
    args::BenchRuns,
    error::Result,
    memory, plot,
    runs::{RunLog, Runs, mean},
    show,
};

/// Ways to train the same model: name, and what they set beside the defaults. Rates are the best of a few that were
/// tried on a million tokens; of the f32 twins, Muon did best.
pub(crate) const SETTINGS: [(&str, &[&str]); 8] = [
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
/// Of the default, and of the setting with three digits of latent and two of momentum.
pub(crate) const DEFAULT: usize = 4;
pub(crate) const TRITS: usize = 6;

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
pub(crate) fn bench(args: &BenchRuns) -> Result<()> {
    let runs = Runs::open(args)?;
    let mut logs: Vec<Vec<RunLog>> = SETTINGS.iter().map(|_| Vec::new()).collect();
    for seed in runs.seeds() {
        for ((name, set), logs) in SETTINGS.iter().zip(&mut logs) {
            let Some(log) = runs.log(name, set, seed, None)? else { return Ok(()) };
            logs.push(log);
        }
    }
    let finals = |logs: &[RunLog]| -> Vec<f64> { logs.iter().map(RunLog::loss).collect() };
    let of = |at: usize| mean(&finals(&logs[at]));
    let over = |loss: f64, twin: usize| 100.0 * (loss / of(twin) - 1.0);
    let r = |a: &RunLog, b: &RunLog| pearson(&a.curve.losses, &b.curve.losses);
    let mut rows = Vec::new();
    for ((name, set), found) in SETTINGS.iter().zip(&logs) {
        let config = runs.config(set, 1)?;
        let losses = finals(found);
        let vocab = runs.corpus.tokenizer().vocab_size() as usize;
        let bits = memory::ledger(&config, vocab, (runs.backend.tier(), runs.backend.threads()))?
            .ternary_bits_per_parameter;
        rows.push(Row {
            name,
            set: set.to_vec(),
            bits_per_parameter: bits,
            over_twin_percent: over(mean(&losses), TWIN),
            over_adamw_percent: over(mean(&losses), ADAMW),
            pearson_r: found.iter().zip(&logs[TWIN]).map(|(a, b)| r(a, b)).collect(),
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
        .zip(&logs)
        .filter_map(|((name, _), logs)| Some((*name, &logs.first()?.curve)))
        .collect();
    plot::curves(&path, &drawn, "training and validation loss, seed 1")?;
    show::line(&format!("plot: {}", path.display()))?;
    if args.json {
        show::json(&serde_json::json!({ "seeds": runs.seeds().collect::<Vec<_>>(), "rows": rows }))?;
    }
    Ok(())
}
