//! Parts of a run: the shared start on all text, and an expert for each cluster of it.
//!
//! Cluster branch-train-merge (Gururangan et al., arXiv 2303.14177): one model learns from all text, copies of
//! it go on, each with the text of one cluster alone, and [`Mixture`](crate::Mixture) mixes what they predict.

use std::path::Path;

use tritrain_data::{BatchPlan, Corpus, Split};
use tritrain_files::{
    Storage,
    checkpoint::{self, Checkpoint},
};

use crate::{Config, Error, Result, audit::plan_options, run::validation};

/// Folder of the shared start below that of the run.
pub(crate) const SHARED: &str = "shared";

/// Some steps of a run, on all of the text or on that of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its folder below that of the run; of a run without parts, nothing.
    pub name: String,
    /// The one cluster whose text it takes.
    pub cluster: Option<u32>,
    /// Steps behind when it begins: those of the shared start.
    pub first: u64,
    /// Steps behind when it ends.
    pub last: u64,
    /// The step of the schedule at which it ends, and the steps of the whole schedule.
    pub(crate) schedule: (u64, u64),
}

impl Part {
    /// A run without parts.
    ///
    /// # Errors
    /// [`Error::Config`] when nothing ends the run.
    pub fn whole(config: &Config) -> Result<Part> {
        let steps = config.steps()?;
        Ok(Part { name: String::new(), cluster: None, first: 0, last: steps, schedule: (steps, steps) })
    }

    /// The shared start and the experts of a run with `run.experts`, in the order in which they are trained.
    /// All their steps together are those of the run. Experts share those behind the start by the tokens of
    /// their clusters, each at least one, and each goes through what is left of the schedule.
    ///
    /// # Errors
    /// [`Error::Experts`] when there is another number of clusters, or there are too few steps.
    pub fn all(config: &Config, corpus: &Corpus) -> Result<Vec<Part>> {
        let totals = corpus.labels().map(|labels| labels.totals(Split::Train)).unwrap_or_default();
        let (k, steps) = (config.run.experts, config.steps()?);
        if totals.len() != k {
            let expected = format!("as many clusters as run.experts = {k}");
            return Err(Error::Experts { expected, found: totals.len().to_string() });
        }
        let shared = (f64::from(config.run.shared) * steps as f64).round() as u64;
        let Some(left) = steps.checked_sub(shared.max(1)).filter(|left| *left >= k as u64) else {
            let expected = format!("a step for each of {k} experts behind those of the shared start");
            return Err(Error::Experts {
                expected,
                found: format!("{steps} steps, {shared} of them shared"),
            });
        };
        let first = steps - left;
        let start =
            Part { name: SHARED.into(), cluster: None, first: 0, last: first, schedule: (first, steps) };
        let experts = divide(left, &totals).into_iter().enumerate().map(|(cluster, own)| Part {
            name: format!("expert-{cluster}"),
            cluster: Some(cluster as u32),
            first,
            last: first + own,
            schedule: (steps, steps),
        });
        Ok(std::iter::once(start).chain(experts).collect())
    }

    /// Whether the shared start of the run in `dir` has a checkpoint.
    ///
    /// # Errors
    /// [`Error::Files`]; checkpoints are there and none is sound.
    pub fn begun(storage: &dyn Storage, dir: &Path) -> Result<bool> {
        let dir = dir.join(SHARED);
        Ok(storage.exists(&dir)? && checkpoint::newest(storage, &dir)?.is_some())
    }

    /// The checkpoint at the end of this part of the run in `dir`, where it has come that far.
    ///
    /// # Errors
    /// As [`Part::begun`].
    pub fn end(&self, storage: &dyn Storage, dir: &Path) -> Result<Option<Checkpoint>> {
        let newest = checkpoint::newest(storage, &dir.join(&self.name))?;
        Ok(newest.filter(|checkpoint| checkpoint.step == self.last))
    }

    /// Whether there is text to train and to measure it on.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check(&self, config: &Config, corpus: &Corpus) -> Result<()> {
        validation(config, corpus, self)?;
        BatchPlan::new(corpus, &plan_options(config, self))?;
        Ok(())
    }

    /// The step of the schedule for a step of this part, and the steps of the schedule.
    pub(crate) fn scheduled(&self, step: u64) -> (u64, u64) {
        let (end, steps) = self.schedule;
        let (behind, own) = (step.saturating_sub(self.first), (self.last - self.first).max(1));
        let there = u128::from(behind) * u128::from(end - self.first) / u128::from(own);
        (self.first + there as u64, steps)
    }

    /// Identity of the text that it learns from.
    pub(crate) fn data(&self, corpus: &Corpus) -> String {
        match self.cluster {
            None => corpus.hash().to_owned(),
            Some(cluster) => format!("{}, cluster {cluster}", corpus.hash()),
        }
    }
}

/// `steps` by weight, each share at least 1: by largest remainders, the first of equals. There are as many
/// steps as weights.
fn divide(steps: u64, weights: &[u64]) -> Vec<u64> {
    let (spare, all) = (steps - weights.len() as u64, weights.iter().sum::<u64>().max(1));
    let part = |weight: u64| u128::from(spare) * u128::from(weight);
    let mut shares: Vec<u64> =
        weights.iter().map(|&weight| 1 + (part(weight) / u128::from(all)) as u64).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(part(weights[at]) % u128::from(all)), at));
    let rest = steps - shares.iter().sum::<u64>();
    for at in order.into_iter().cycle().take(rest as usize) {
        shares[at] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_divided_by_hand() {
        assert_eq!(divide(10, &[1, 1]), [5, 5]);
        assert_eq!(divide(4, &[1, 0, 100, 3]), [1, 1, 1, 1]);
        // 8 to spare: 0.8, 5.6, 1.6, the largest remainders first.
        assert_eq!(divide(11, &[10, 70, 20]), [2, 7, 2]);
        assert_eq!(divide(5, &[0, 0]), [3, 2]);
    }

    #[test]
    fn an_expert_goes_through_what_is_left_of_the_schedule() {
        let part = |first, last, schedule| Part { name: String::new(), cluster: None, first, last, schedule };
        let expert = part(400, 430, (1000, 1000));
        assert_eq!([400, 401, 415, 429].map(|step| expert.scheduled(step).0), [400, 420, 700, 980]);
        let start = part(0, 400, (400, 1000));
        assert_eq!([0, 17, 399].map(|step| start.scheduled(step)), [(0, 1000), (17, 1000), (399, 1000)]);
    }
}
