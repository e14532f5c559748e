//! Faults that are put into a run on purpose, to measure what it makes of them.

use serde::Serialize;
use tritrain_backend::Stream;

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its batch is noise: tokens drawn uniformly from the vocabulary, each the target of the one before.
    Noise,
    /// The gradients of all tensors are multiplied by this; NaN breaks them.
    Gradient(f32),
}

/// A fault for a step, if any, by its number from 0 and how often the run went back before.
pub(super) type Faults<'a> = dyn Fn(u64, u32) -> Option<Fault> + 'a;

/// Faults by chance, as shares of all steps. A step has one at most.
///
/// What happens to a step is a function of seed, step and setbacks, all of which a checkpoint knows: a resumed run
/// meets the same faults. Noise lies in the text and does not look at setbacks: a step that is taken again has the
/// same batch. What happens to a gradient is of the moment, and is drawn anew after a setback; else a run that went
/// back because of it would meet it again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Disturbance {
    /// Of all draws.
    pub seed: u64,
    /// Steps whose batch is [`Fault::Noise`].
    pub noise: f32,
    /// Of the others, those whose gradients are [a thousand times](Disturbance::FACTOR) too large.
    pub scaled: f32,
    /// Of the same, those whose gradients are NaN.
    pub broken: f32,
}

/// Purposes of random numbers.
const FAULTS: u32 = u32::from_be_bytes(*b"flts");
const NOISE: u32 = u32::from_be_bytes(*b"nois");

impl Disturbance {
    /// What the gradients of [`Disturbance::scaled`] steps are multiplied by.
    pub const FACTOR: f32 = 1e3;

    /// The fault of step `step` (from 0) after `setbacks` setbacks.
    pub fn fault(&self, step: u64, setbacks: u32) -> Option<Fault> {
        let draws = Stream::new(self.seed, FAULTS, step);
        if draws.uniform(0) < self.noise {
            return Some(Fault::Noise);
        }
        let draw = draws.uniform(1 + u64::from(setbacks));
        if draw < self.scaled {
            Some(Fault::Gradient(Disturbance::FACTOR))
        } else if draw < self.scaled + self.broken {
            Some(Fault::Gradient(f32::NAN))
        } else {
            None
        }
    }
}

/// Makes `inputs` and `targets`, `[batch][context]` each, the noise of step `step`, tokens below `vocab`.
pub(crate) fn fill_with_noise(
    (seed, step): (u64, u64),
    vocab: usize,
    context: usize,
    inputs: &mut [u32],
    targets: &mut [u32],
) {
    let draws = Stream::new(seed, NOISE, step);
    let sequences = inputs.chunks_exact_mut(context).zip(targets.chunks_exact_mut(context));
    for (sequence, (inputs, targets)) in sequences.enumerate() {
        let first = (sequence * (context + 1)) as u64;
        let token = |at: usize| (f64::from(draws.uniform(first + at as u64)) * vocab as f64) as u32;
        for at in 0..context {
            (inputs[at], targets[at]) = (token(at), token(at + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tritrain_backend::Cpu;
    use tritrain_data::Corpus;
    use tritrain_files::Disk;

    use super::super::tests::tiny;
    use super::*;
    use crate::{Config, Event, Run, Workplace};

    const HALF: Disturbance = Disturbance { seed: 3, noise: 0.2, scaled: 0.2, broken: 0.05 };

    #[test]
    fn faults_have_their_shares_and_only_those_of_gradients_are_drawn_anew_after_a_setback() {
        let some = Disturbance { seed: 1, noise: 0.01, scaled: 0.01, broken: 0.005 };
        let all = |times: u32| (0..100_000).map(move |step| some.fault(step, times)).collect::<Vec<_>>();
        let (first, second) = (all(0), all(1));
        let count = |kind: &dyn Fn(&Fault) -> bool| first.iter().flatten().filter(|of| kind(of)).count();
        let broken = |of: &Fault| matches!(of, Fault::Gradient(factor) if factor.is_nan());
        // Four standard deviations.
        assert!(count(&|of| *of == Fault::Noise).abs_diff(1000) < 126);
        assert!(count(&|of| *of == Fault::Gradient(1e3)).abs_diff(990) < 126);
        assert!(count(&broken).abs_diff(495) < 90);
        let noise = |all: &[Option<Fault>]| -> Vec<usize> {
            (0..all.len()).filter(|step| all[*step] == Some(Fault::Noise)).collect()
        };
        assert_eq!(noise(&first), noise(&second));
        let pairs = first.iter().zip(&second);
        let both = pairs.filter(|(a, b)| [a, b].iter().all(|of| **of == &Some(Fault::Gradient(1e3)))).count();
        assert!(both < 40, "{both} of about 1000 gradients are hit again");
        let other = Disturbance { seed: 2, ..some };
        assert!((0..1000).any(|step| other.fault(step, 0) != some.fault(step, 0)));
        assert!((0..1000).all(|step| Disturbance::default().fault(step, 0).is_none()));
    }

    fn start<'a>(
        backend: &'a Cpu,
        dir: &std::path::Path,
        (config, corpus): (&Config, &'a Corpus),
        faults: impl Fn(u64, u32) -> Option<Fault> + 'a,
    ) -> Run<'a, Cpu> {
        let workplace = Workplace::resume(&Disk, dir, config.clone()).unwrap();
        Run::new(backend, &Disk, workplace, corpus).unwrap().disturbed(faults)
    }

    fn records(dir: &std::path::Path) -> Vec<Value> {
        let log = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_batch_of_noise_takes_the_place_of_text_for_one_step() {
        let root = tempfile::tempdir().unwrap();
        let (config, corpus) = tiny(root.path());
        let backend = Cpu::new(1).unwrap();
        let of = (&config, &corpus);
        let noise = |step, _| (step == 3).then_some(Fault::Noise);
        let mut disturbed = start(&backend, &root.path().join("noise"), of, noise);
        let mut sound = start(&backend, &root.path().join("sound"), of, |_, _| None);
        for step in 0..5 {
            let event = disturbed.advance().unwrap();
            assert!(matches!(event, Some(Event::Step(..))) && sound.advance().unwrap().is_some());
            assert_eq!(disturbed.inputs == sound.inputs, step != 3, "step {step}");
            assert_eq!(disturbed.targets == sound.targets, step != 3, "step {step}");
            let context = config.model.context;
            let sequences = disturbed.inputs.chunks(context).zip(disturbed.targets.chunks(context));
            assert!(sequences.into_iter().all(|(inputs, targets)| inputs[1..] == targets[..context - 1]));
            if step == 3 {
                let mut seen = disturbed.inputs.clone();
                seen.sort_unstable();
                seen.dedup();
                let (all, vocab) = (disturbed.inputs.len(), corpus.tokenizer().vocab_size());
                assert!(seen.len() > all * 4 / 5, "{} of {all} tokens differ", seen.len());
                assert!(
                    seen.iter().all(|token| *token < vocab) && seen.iter().any(|token| *token > vocab / 2)
                );
            }
        }
        let faults = records(disturbed.dir()).into_iter().filter(|record| record.get("fault").is_some());
        let expected = serde_json::json!({ "step": 4, "fault": "noise" });
        assert!(faults.eq([expected]), "one record, of the fourth step");
    }

    #[test]
    fn a_resumed_run_meets_the_same_faults() {
        let root = tempfile::tempdir().unwrap();
        let (config, corpus) = tiny(root.path());
        let backend = Cpu::new(1).unwrap();
        let dirs = ["whole", "resumed", "sound"].map(|name| root.path().join(name));
        let run = |dir, faults: Disturbance, until: u64| {
            let mut run =
                start(&backend, dir, (&config, &corpus), move |step, times| faults.fault(step, times));
            while run.advance().unwrap().is_some() {
                if run.progress().0 == until {
                    run.stop();
                }
            }
        };
        run(&dirs[0], HALF, u64::MAX);
        run(&dirs[1], HALF, 20);
        run(&dirs[1], HALF, u64::MAX);
        run(&dirs[2], Disturbance::default(), u64::MAX);
        let whole = records(&dirs[0]);
        assert!(whole == records(&dirs[1]), "the log");
        let weights = |dir: &std::path::Path| std::fs::read(dir.join("step-50/model.safetensors")).unwrap();
        assert!(weights(&dirs[0]) == weights(&dirs[1]) && weights(&dirs[0]) != weights(&dirs[2]));
        // What was logged is what was asked for, and broken gradients skip their step.
        let logged = whole.iter().filter_map(|record| Some((record["step"].as_u64()?, record.get("fault")?)));
        let asked = (0..50).filter_map(|step| Some((step + 1, serde_json::json!(HALF.fault(step, 0)?))));
        assert!(logged.map(|(step, fault)| (step, fault.clone())).eq(asked));
        let skipped = whole.iter().filter(|record| record.get("skipped").is_some()).count();
        let broken = |step: &u64| matches!(HALF.fault(*step, 0), Some(Fault::Gradient(by)) if by.is_nan());
        assert_eq!(skipped, (0..50).filter(broken).count());
        assert!(skipped > 0, "one at least");
        let evaluations = whole.iter().filter(|record| record.get("validation_loss").is_some());
        assert!(evaluations.map(|record| &record["finite"]).eq([&Value::Bool(true)]));
    }
}
