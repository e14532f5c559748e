//! Shares of clusters that follow how fast each is being learnt.
//!
//! Online data mixing by multiplicative weights: the share of a cluster is that of its windows times a
//! weight between [`LEAST`] and its inverse. After every step the weight of a cluster whose loss falls
//! faster than the others', as a part of that loss, grows, and that of one that stands still shrinks. All
//! of it is a function of the losses, so a checkpoint that keeps it resumes to the same batches.

use serde::{Deserialize, Serialize};
use tritrain_trit::rng::Stream;

use super::order::shuffled;
use crate::{Error, Result};

/// The purpose of the random numbers drawn here.
const DRAW: u32 = u32::from_be_bytes(*b"draw");

/// The smallest weight.
const LEAST: f64 = 0.25;
/// How much one step moves the logarithm of a weight.
const RATE: f64 = 0.02;
/// How much of a weight's logarithm a step forgets.
const FORGET: f64 = 0.001;
/// How much of a new loss the fast and the slow mean take up.
const FAST: f64 = 0.1;
const SLOW: f64 = 0.02;

/// The state of an adaptive plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixer {
    clusters: Vec<Cluster>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    /// Windows seen.
    seen: u64,
    /// Logarithm of the weight.
    score: f64,
    /// Running means of the loss, of few and of many batches.
    fast: f64,
    slow: f64,
    /// Batches with a window of it.
    batches: u64,
}

impl Mixer {
    pub(super) fn new(k: usize) -> Mixer {
        Mixer { clusters: vec![Cluster::default(); k] }
    }

    /// Whether it belongs to a plan of `k` clusters.
    pub(super) fn check(&self, k: usize) -> Result<()> {
        if self.clusters.len() == k {
            return Ok(());
        }
        let (expected, found) = (format!("{k} clusters"), self.clusters.len().to_string());
        Err(Error::Shape { what: "mixer", expected, found })
    }

    /// Share of each cluster in the next batch, from how many windows it has.
    pub fn shares(&self, sizes: &[u64]) -> Vec<f64> {
        let weighted = self.clusters.iter().zip(sizes).map(|(c, &size)| size as f64 * libm::exp(c.score));
        let weighted: Vec<f64> = weighted.collect();
        let sum: f64 = weighted.iter().sum();
        weighted.into_iter().map(|share| share / sum).collect()
    }

    /// Draws a batch: its places are spread evenly over the shares (systematic sampling), and each takes
    /// the next window of its cluster.
    pub(super) fn draw(&mut self, members: &[Vec<u64>], (seed, step): (u64, u64), batch: usize) -> Vec<u64> {
        let sizes: Vec<u64> = members.iter().map(|members| members.len() as u64).collect();
        let shares = self.shares(&sizes);
        let phase = f64::from(Stream::new(seed, DRAW, step).uniform(0));
        let (mut cluster, mut end) = (0, shares.first().copied().unwrap_or(1.0));
        let mut drawn = Vec::with_capacity(batch);
        for slot in 0..batch {
            let place = (slot as f64 + phase) / batch as f64;
            while (place >= end || sizes.get(cluster) == Some(&0)) && cluster + 1 < shares.len() {
                cluster += 1;
                end += shares[cluster];
            }
            // Rounding may lead past the last cluster that has a window.
            while sizes.get(cluster) == Some(&0) && cluster > 0 {
                cluster -= 1;
            }
            let (Some(state), Some(members)) = (self.clusters.get_mut(cluster), members.get(cluster)) else {
                break;
            };
            let (pass, index) = (state.seen / sizes[cluster].max(1), state.seen % sizes[cluster].max(1));
            let index = shuffled(seed, 0, cluster, pass, sizes[cluster]).at(index);
            drawn.extend(members.get(index as usize));
            state.seen += 1;
        }
        drawn
    }

    /// Takes up the mean loss of each cluster in a batch.
    pub fn learn(&mut self, losses: impl IntoIterator<Item = (u32, f64)>) {
        for (cluster, loss) in losses {
            let Some(state) = self.clusters.get_mut(cluster as usize).filter(|_| loss.is_finite()) else {
                continue;
            };
            if state.batches == 0 {
                (state.fast, state.slow) = (loss, loss);
            } else {
                state.fast += FAST * (loss - state.fast);
                state.slow += SLOW * (loss - state.slow);
            }
            state.batches += 1;
        }
        // How much of its loss each has lost lately.
        let known = |c: &Cluster| (c.batches > 0 && c.slow > 0.0).then(|| (c.slow - c.fast) / c.slow);
        let gains: Vec<Option<f64>> = self.clusters.iter().map(known).collect();
        let count = gains.iter().flatten().count().max(1) as f64;
        let mean = gains.iter().flatten().sum::<f64>() / count;
        let spread = gains.iter().flatten().map(|gain| (gain - mean).abs()).sum::<f64>() / count;
        let most = -libm::log(LEAST);
        for (state, gain) in self.clusters.iter_mut().zip(gains) {
            let ahead =
                gain.filter(|_| spread > 0.0).map_or(0.0, |gain| ((gain - mean) / spread).clamp(-2.0, 2.0));
            state.score = ((1.0 - FORGET) * state.score + RATE * ahead).clamp(-most, most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Vec<u64>> {
        vec![(0..60).collect(), Vec::new(), (60..100).collect()]
    }

    #[test]
    fn it_begins_with_the_shares_of_the_windows() {
        let mut mixer = Mixer::new(3);
        let mut drawn = Vec::new();
        for step in 0..10 {
            drawn.extend(mixer.draw(&members(), (5, step), 10));
        }
        drawn.sort_unstable();
        assert_eq!(drawn, (0..100).collect::<Vec<_>>(), "each window once in a pass");
    }

    #[test]
    fn what_is_learnt_faster_is_seen_more() {
        let mut mixer = Mixer::new(3);
        for step in 0..300 {
            mixer.learn([(0, 5.0), (2, 5.0 - 0.01 * f64::from(step))]);
        }
        let shares = mixer.shares(&[60, 0, 40]);
        assert!(shares[2] > 0.7 && shares[0] > 0.05 && shares[1] == 0.0, "{shares:?}");
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // Numbers that are none change nothing.
        let before = mixer.clone();
        mixer.learn([(7, 1.0)]);
        mixer.learn([(0, f64::NAN)]);
        assert_eq!(before.clusters[0].batches, mixer.clusters[0].batches);
    }

    #[test]
    fn a_copy_goes_on_the_same() {
        let mut mixer = Mixer::new(3);
        for step in 0..20 {
            mixer.draw(&members(), (5, step), 7);
            mixer.learn([(0, 3.0 - 0.1 * step as f64), (2, 4.0)]);
        }
        let text = serde_json::to_string(&mixer).unwrap();
        let mut copy: Mixer = serde_json::from_str(&text).unwrap();
        assert_eq!(copy, mixer);
        assert_eq!(copy.draw(&members(), (5, 20), 7), mixer.draw(&members(), (5, 20), 7));
    }
}
