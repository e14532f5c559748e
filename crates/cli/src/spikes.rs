//! `tritrain bench spikes`: what faults cost in loss, with the spike guard and without.

use serde::Serialize;
use tritrain_model::Layout;
use tritrain_train::{Curve, Disturbance};

use crate::{
    args::BenchRuns,
    error::Result,
    plot,
    quality::{self, SETTINGS},
    runs::{RunLog, Runs, mean},
    show,
};

/// Places in [`SETTINGS`] of those that are disturbed: the default, and few bits throughout.
const DISTURBED: [usize; 2] = [quality::DEFAULT, quality::TRITS];
/// Shares of steps with faults: noise, gradients a thousand times too large, and none that is NaN.
const FAULTS: Disturbance = Disturbance { seed: 0, noise: 0.01, scaled: 0.01, broken: 0.0 };
/// Share of steps with gradients of NaN. More than one in a hundred would end the run.
const BROKEN: f32 = 0.0025;

/// Ways to run a setting: name, `optim.spike`, and faults. The first is what the others are compared with.
const WAYS: [(&str, &str, Disturbance); 6] = [
    ("undisturbed, guard off", "optim.spike=off", Disturbance { noise: 0.0, scaled: 0.0, ..FAULTS }),
    ("undisturbed, clip", "optim.spike=clip", Disturbance { noise: 0.0, scaled: 0.0, ..FAULTS }),
    ("disturbed, guard off", "optim.spike=off", FAULTS),
    ("disturbed, clip", "optim.spike=clip", FAULTS),
    ("disturbed, skip", "optim.spike=skip", FAULTS),
    ("disturbed and NaN, clip", "optim.spike=clip", Disturbance { broken: BROKEN, ..FAULTS }),
];

/// What became of a setting in one of the ways. By seed, but for names.
#[derive(Debug, Serialize)]
struct Row {
    setting: &'static str,
    way: &'static str,
    /// Final validation loss in nats per token; null where it is not finite or the run broke off.
    losses: Vec<f64>,
    /// The same over that of the undisturbed run without guard, in percent.
    over_undisturbed_percent: Vec<f64>,
    /// Faults put into steps.
    faults: Vec<u64>,
    /// Gradients of tensors that were clipped or left, over all steps.
    tensors_clipped: Vec<u64>,
    /// Steps that changed nothing because a quantity was not finite.
    steps_skipped: Vec<u64>,
    /// How often the run went back to a checkpoint.
    setbacks: Vec<u64>,
    /// Whether every weight was finite at every evaluation, the one at the end included.
    finite: Vec<bool>,
    /// The step that ended the run early: too many were not finite.
    broke_off: Vec<Option<u64>>,
}

/// Trains both settings in every way with every seed, as far as that has not been done in the same folder.
pub(crate) fn bench(args: &BenchRuns) -> Result<()> {
    let runs = Runs::open(args)?;
    let mut rows = Vec::new();
    let mut logs: Vec<Vec<Vec<RunLog>>> = DISTURBED.map(|_| WAYS.map(|_| Vec::new()).into()).into();
    for seed in runs.seeds() {
        for (setting, logs) in DISTURBED.into_iter().zip(&mut logs) {
            let (name, set) = SETTINGS[setting];
            for ((way, guard, faults), logs) in WAYS.into_iter().zip(logs) {
                let set = [set, &[guard]].concat();
                let faults = Disturbance { seed, ..faults };
                let Some(log) = runs.log(&format!("{name}, {way}"), &set, seed, Some(faults))? else {
                    return Ok(());
                };
                logs.push(log);
            }
        }
    }
    for (setting, logs) in DISTURBED.into_iter().zip(&logs) {
        let config = runs.config(SETTINGS[setting].1, 1)?;
        let vocab = runs.corpus.tokenizer().vocab_size() as usize;
        let tensors = Layout::new(&config.model, vocab).specs.len();
        let undisturbed: Vec<f64> = logs[0].iter().map(RunLog::loss).collect();
        let of = WAYS.iter().zip(logs);
        rows.extend(of.map(|((way, ..), logs)| row((SETTINGS[setting].0, way), logs, &undisturbed, tensors)));
    }
    table(&rows)?;
    for (setting, logs) in DISTURBED.into_iter().zip(&logs) {
        let name = SETTINGS[setting].0;
        let path =
            args.out.join(format!("spikes-{}.svg", if setting == quality::TRITS { "trits" } else { "f32" }));
        let drawn: Vec<(&str, &Curve)> =
            WAYS.iter().zip(logs).map(|((way, ..), logs)| (*way, &logs[0].curve)).collect();
        plot::curves(&path, &drawn, &format!("{name}, seed 1"))?;
        show::line(&format!("plot: {}", path.display()))?;
    }
    if args.json {
        show::json(&serde_json::json!({ "seeds": runs.seeds().collect::<Vec<_>>(), "rows": rows }))?;
    }
    Ok(())
}

fn row(
    (setting, way): (&'static str, &'static str),
    logs: &[RunLog],
    undisturbed: &[f64],
    tensors: usize,
) -> Row {
    let losses: Vec<f64> = logs.iter().map(RunLog::loss).collect();
    let over = |(loss, without): (&f64, &f64)| 100.0 * (loss / without - 1.0);
    let count = |of: fn(&RunLog) -> u64| logs.iter().map(of).collect();
    Row {
        setting,
        way,
        over_undisturbed_percent: losses.iter().zip(undisturbed).map(over).collect(),
        losses,
        faults: count(|log| log.faults),
        tensors_clipped: logs.iter().map(|log| (log.clipped * tensors as f64).round() as u64).collect(),
        steps_skipped: count(|log| log.skipped),
        setbacks: count(|log| log.setbacks),
        finite: logs.iter().map(|log| log.finite).collect(),
        broke_off: logs.iter().map(|log| log.broke_off).collect(),
    }
}

/// Means of losses over seeds, and sums of what is counted.
fn table(rows: &[Row]) -> Result<()> {
    let mut setting = "";
    for row in rows {
        if row.setting != setting {
            setting = row.setting;
            show::line(&format!(
                "{setting:34}{:>12}{:>18}{:>8}{:>9}{:>9}{:>10}{:>8}",
                "nats/token", "over undisturbed", "faults", "clipped", "skipped", "setbacks", "finite"
            ))?;
        }
        let sum = |of: &[u64]| of.iter().sum::<u64>();
        let (faults, clipped) = (sum(&row.faults), sum(&row.tensors_clipped));
        let (skipped, setbacks) = (sum(&row.steps_skipped), sum(&row.setbacks));
        let finite = if row.finite.iter().all(|finite| *finite) { "yes" } else { "no" };
        let broke_off = match row.broke_off.iter().flatten().next() {
            Some(step) => format!("  broke off at step {step}"),
            None => String::new(),
        };
        show::line(&format!(
            "  {:32}{:>12.4}{:>16.2} %{faults:>8}{clipped:>9}{skipped:>9}{setbacks:>10}{finite:>8}{broke_off}",
            row.way,
            mean(&row.losses),
            mean(&row.over_undisturbed_percent),
        ))?;
    }
    Ok(())
}
