//! Going back to an earlier checkpoint, when clipping spikes did not help.

use serde_json::json;
use tritrain_backend::Backend;
use tritrain_files::checkpoint;
use tritrain_optim::SETBACK_WINDOW;

use super::{Event, Run, open_logs};
use crate::{Result, save};

impl<B: Backend> Run<'_, B> {
    /// Goes back to the newest checkpoint from before the steps that were looked back on (else the oldest there
    /// is), with half the rates from there on. Without a checkpoint the run goes on where it is, as slow.
    ///
    /// Later checkpoints are removed first: wherever this is cut short, a resumed run comes to the same steps and
    /// goes back again.
    pub(super) fn go_back(&mut self) -> Result<Event> {
        let from = self.state.step;
        let setbacks = self.state.setbacks.again();
        let before = from.saturating_sub(SETBACK_WINDOW);
        let dir = self.workplace.dir.clone();
        if let Some(checkpoint) = checkpoint::before(self.storage, &dir, before)? {
            checkpoint::discard_after(self.storage, &dir, checkpoint.step)?;
            let saved = save::restore_model(self.storage, &checkpoint)?;
            self.learner.model.restore(self.backend, &|id| saved.values(id));
            let optimizer = &mut self.learner.optimizer;
            self.state = save::restore_state(self.backend, self.storage, &checkpoint, optimizer)?;
            self.saved = Some(checkpoint.step);
            (self.metrics, self.timing) = open_logs(self.storage, &self.workplace, &self.state)?;
        }
        self.state.setbacks = setbacks;
        let (step, times, rates) = (self.state.step, setbacks.times, setbacks.share());
        self.metrics.append(&json!({ "step": step, "setback": times, "from": from, "rates": rates }))?;
        Ok(Event::WentBack { from, step, rates })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tritrain_backend::{Cpu, Values};
    use tritrain_files::Disk;
    use tritrain_optim::ControllerKind;

    use super::super::tests::tiny;
    use super::*;
    use crate::{Config, Fault, Workplace};

    fn records(run: &Run<'_, Cpu>) -> Vec<Value> {
        let log = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn weights(run: &Run<'_, Cpu>, backend: &Cpu) -> Vec<Values<'static>> {
        let own = |values: Values<'_>| match values {
            other @ (Values::Floats(_) | Values::Halves(_) | Values::Codes(..)) => {
                Values::Floats(other.host().into_owned().into())
            }
            Values::Packed(stored) => Values::Floats(
                // As bytes: equal rows are equal numbers.
                stored.bytes.iter().map(|byte| f32::from(*byte)).collect::<Vec<_>>().into(),
            ),
        };
        (0..run.model().layout().specs.len()).map(|id| own(run.model().values(backend, id))).collect()
    }

    /// From step `first` on every second gradient is far too large, until the run goes back.
    fn until_back(first: u64) -> impl Fn(u64, u32) -> Option<Fault> {
        move |step, setbacks| {
            (setbacks == 0 && step >= first && step % 2 == 1).then_some(Fault::Gradient(1e8))
        }
    }

    fn finish(run: &mut Run<'_, Cpu>, mut seen: impl FnMut(&Run<'_, Cpu>, &Event)) {
        while let Some(event) = run.advance().unwrap() {
            seen(run, &event);
        }
    }

    fn check(config: &Config, corpus: &tritrain_data::Corpus, dir: &std::path::Path) {
        let backend = Cpu::new(1).unwrap();
        let workplace = Workplace::start(&Disk, dir, config.clone()).unwrap();
        let mut run = Run::new(&backend, &Disk, workplace, corpus).unwrap().disturbed(until_back(77));
        let (mut saved, mut rates, mut back) = (None, Vec::new(), None);
        finish(&mut run, |run, event| match event {
            Event::Saved { step: 40, .. } => _ = saved.get_or_insert_with(|| weights(run, &backend)),
            Event::WentBack { from, step, rates } => {
                assert_eq!((*step, *rates), (40, 0.5));
                assert!((91..100).contains(from), "{from}");
                assert!(saved == Some(weights(run, &backend)), "the weights of step 40");
                assert!(run.dir().join("step-40").exists() && !run.dir().join("step-80").exists());
                assert_eq!(records(run).last().unwrap()["setback"], 1);
                back = Some(*from);
            }
            Event::Step(report, _) => rates.push((report.step, report.rate)),
            _ => {}
        });
        assert!(back.is_some(), "it went back");
        let twice: Vec<f32> = rates.iter().filter(|(at, _)| *at == 70).map(|(_, rate)| *rate).collect();
        // A controller goes on from where it was, and does not make up for it.
        let wander = if config.optim.controller == ControllerKind::Off { 0.0 } else { 0.05 };
        let [before, after] = twice[..] else { panic!("step 70 was taken twice: {twice:?}") };
        assert!((after / before - 0.5).abs() <= wander, "{twice:?}");
        // Every step is logged once, in order.
        let log = records(&run);
        let steps = log.iter().filter(|record| record.get("loss").is_some());
        assert!(steps.map(|record| record["step"].as_u64().unwrap()).eq(1..=120));
        assert_eq!(log.iter().filter(|record| record.get("setback").is_some()).count(), 1);
        let whole = (weights(&run, &backend), std::fs::read(dir.join("metrics.jsonl")).unwrap());
        drop(run);
        // The checkpoints after it keep what happened.
        std::fs::remove_dir_all(dir.join("step-120")).unwrap();
        let workplace = Workplace::resume(&Disk, dir, config.clone()).unwrap();
        assert_eq!(workplace.step(), Some(100));
        let mut run = Run::new(&backend, &Disk, workplace, corpus).unwrap().disturbed(until_back(77));
        finish(&mut run, |_, _| ());
        assert!(whole == (weights(&run, &backend), std::fs::read(dir.join("metrics.jsonl")).unwrap()));
        // At the step it went back to, nothing had happened yet.
        drop(run);
        for step in [60, 80, 100, 120] {
            std::fs::remove_dir_all(dir.join(format!("step-{step}"))).unwrap();
        }
        let workplace = Workplace::resume(&Disk, dir, config.clone()).unwrap();
        let run = Run::new(&backend, &Disk, workplace, corpus).unwrap();
        assert!(records(&run).iter().all(|record| record.get("setback").is_none()));
    }

    #[test]
    fn a_run_with_too_many_spikes_goes_back_and_goes_on_at_half_the_rate() {
        let root = tempfile::tempdir().unwrap();
        let (mut config, corpus) = tiny(root.path());
        (config.run.steps, config.run.checkpoint_every, config.run.keep) = (120, 20, 100);
        check(&config, &corpus, &root.path().join("f32"));
        config.optim.latent = tritrain_optim::StorageKind::Trits4;
        config.optim.gradient = tritrain_optim::GradientKind::None;
        check(&config, &corpus, &root.path().join("trits"));
        config.optim.controller = ControllerKind::Rule;
        check(&config, &corpus, &root.path().join("controlled"));
    }

    #[test]
    fn without_a_checkpoint_it_goes_on_at_half_the_rate() {
        let root = tempfile::tempdir().unwrap();
        let (config, corpus) = tiny(root.path());
        let backend = Cpu::new(1).unwrap();
        let workplace = Workplace::start(&Disk, &root.path().join("run"), config).unwrap();
        let mut run = Run::new(&backend, &Disk, workplace, &corpus).unwrap().disturbed(until_back(30));
        let mut back = None;
        finish(&mut run, |_, event| {
            if let Event::WentBack { from, step, rates } = event {
                back = Some((*from == *step, *rates));
            }
        });
        assert_eq!(back, Some((true, 0.5)));
        assert_eq!(run.progress().0, 50);
    }
}
