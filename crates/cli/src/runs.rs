//! Benches of many runs in one folder, which share text and tokens: those that are complete are not made again.

use std::path::Path;

use serde_json::Value;
use tritrain_backend::{Backend, Cpu};
use tritrain_data::Corpus;
use tritrain_files::{Disk, Storage};
use tritrain_train::{Config, Curve, Disturbance, Run, Signals, Workplace};

use crate::{
    args::BenchRuns,
    commands::drive,
    devices::On,
    error::{Error, Result},
    prepare, show,
};

/// What all runs of a bench have in common.
pub(crate) struct Runs<'a> {
    args: &'a BenchRuns,
    signals: Signals,
    pub(crate) backend: Cpu,
    pub(crate) corpus: Corpus,
}

/// What a run logged. Steps that were taken again after a setback count once.
#[derive(Debug, Default)]
pub(crate) struct RunLog {
    pub(crate) curve: Curve,
    /// Tensors whose gradient was clipped or left, as a share of all tensors, summed over steps.
    pub(crate) clipped: f64,
    /// Steps whose loss, gradient or update was not finite.
    pub(crate) skipped: u64,
    /// How often the run went back.
    pub(crate) setbacks: u64,
    /// Faults that were put into it.
    pub(crate) faults: u64,
    /// Whether all weights were finite in each evaluation of a disturbed run, the last of which is after the last
    /// step.
    pub(crate) finite: bool,
    /// The step in which too many steps had not been finite.
    pub(crate) broke_off: Option<u64>,
}

impl Runs<'_> {
    /// Prepares the text in the folder of the runs.
    pub(crate) fn open(args: &BenchRuns) -> Result<Runs<'_>> {
        let signals = Signals::watch()?;
        let base = configured(args, &[], 1)?;
        let backend = Cpu::new(base.run.threads)?;
        let corpus = {
            let _lock = tritrain_files::checkpoint::lock(&args.out)?;
            let trained = Disk.exists(&args.out.join("tokenizer.json"))?;
            prepare::corpus(&Disk, &base, &args.out, trained)?
        };
        Ok(Runs { args, signals, backend, corpus })
    }

    /// From 1 on.
    pub(crate) fn seeds(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.args.seeds.max(1)
    }

    /// The configuration that `set` makes of the defaults, and what all runs have set.
    pub(crate) fn config(&self, set: &[&str], seed: u64) -> Result<Config> {
        configured(self.args, set, seed)
    }

    /// Makes the run of that name and seed, or what is left of it; `None` where a signal stopped it. A disturbed run
    /// that breaks off is a result, and any other an error.
    pub(crate) fn log(
        &self,
        name: &str,
        set: &[&str],
        seed: u64,
        disturbance: Option<Disturbance>,
    ) -> Result<Option<RunLog>> {
        let dir = self.args.out.join(format!("{}-{seed}", name.replace([' ', ','], "-").replace("--", "-")));
        show::note(&format!("{name}, seed {seed}: {}", dir.display()));
        let workplace = Workplace::resume(&Disk, &dir, self.config(set, seed)?)?;
        let run = || {
            let run = Run::new(&self.backend, &Disk, workplace, &self.corpus)?;
            Ok(match disturbance {
                Some(disturbance) => run.disturbed(move |step, setbacks| disturbance.fault(step, setbacks)),
                None => run,
            })
        };
        let broke_off = match self.backend.run(|| drive(&On::from(&self.backend), run, &self.signals)) {
            Ok(outcome) if outcome.stopped => {
                show::note("stopped; the same command goes on");
                return Ok(None);
            }
            Ok(_) => None,
            Err(Error::Train(error @ tritrain_train::Error::Numeric { step, .. }))
                if disturbance.is_some() =>
            {
                show::note(&error.to_string());
                Some(step)
            }
            Err(error) => return Err(error),
        };
        Ok(Some(RunLog { broke_off, ..read(&dir.join("metrics.jsonl"))? }))
    }
}

fn configured(args: &BenchRuns, set: &[&str], seed: u64) -> Result<Config> {
    let all = set.iter().map(|set| (*set).to_owned()).chain(args.set.iter().cloned());
    let mut config = Config::resolve(None, &all.collect::<Vec<String>>())?;
    config.data.paths = args.data.iter().map(|path| path.display().to_string()).collect();
    config.run.seed = seed;
    Ok(config)
}

impl RunLog {
    /// Validation loss at the end in nats per token; NaN where the run broke off.
    pub(crate) fn loss(&self) -> f64 {
        let last = self.curve.evaluations.last().filter(|_| self.broke_off.is_none());
        last.map_or(f64::NAN, |(_, loss)| *loss)
    }
}

/// The mean of some losses.
pub(crate) fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

/// Reads the log of a run. Losses that are not finite are NaN.
fn read(path: &Path) -> Result<RunLog> {
    let bytes = Disk.read(path)?;
    let mut log = RunLog { finite: true, ..RunLog::default() };
    for line in String::from_utf8_lossy(&bytes).lines() {
        let record: Value = serde_json::from_str(line)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source: source.into() })?;
        // JSON has no NaN and no infinity: null stands for them.
        let number = |key: &str| record.get(key).map(|value| value.as_f64().unwrap_or(f64::NAN));
        if let Some(loss) = number("loss") {
            log.curve.losses.push(loss as f32);
            log.clipped += number("clipped").unwrap_or(0.0);
        }
        if let (Some(loss), Some(step)) = (number("validation_loss"), record["step"].as_u64()) {
            log.curve.evaluations.push((step, loss));
            log.finite &= record.get("finite") != Some(&Value::Bool(false));
        }
        let has = |key: &str| u64::from(record.get(key).is_some());
        (log.skipped, log.faults) = (log.skipped + has("skipped"), log.faults + has("fault"));
        log.setbacks = log.setbacks.max(record.get("setback").and_then(Value::as_u64).unwrap_or(0));
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("metrics.jsonl");
        let lines = [
            r#"{"step":1,"fault":"noise"}"#,
            r#"{"step":1,"loss":2.0,"clipped":0.5}"#,
            r#"{"step":1,"validation_loss":3.0,"finite":true}"#,
            r#"{"step":2,"fault":{"gradient":null}}"#,
            r#"{"step":2,"skipped":"gradient_norm"}"#,
            r#"{"step":2,"setback":1,"from":60,"rates":0.5}"#,
            r#"{"step":3,"loss":1.0,"clipped":0.25}"#,
            r#"{"step":3,"validation_loss":null,"finite":false}"#,
        ];
        let log = |lines: &[&str]| {
            std::fs::write(&path, lines.join("\n")).unwrap();
            read(&path).unwrap()
        };
        let whole = log(&lines);
        assert_eq!((whole.clipped, whole.skipped, whole.setbacks, whole.faults), (0.75, 1, 1, 2));
        assert_eq!(whole.curve.losses, [2.0, 1.0]);
        assert!(!whole.finite && whole.loss().is_nan(), "{whole:?}");
        let first = log(&lines[..5]);
        assert!(first.finite && first.loss() == 3.0, "{first:?}");
        assert!(RunLog { broke_off: Some(5), ..first }.loss().is_nan());
    }
}
