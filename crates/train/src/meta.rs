//! Meta-training: evolution strategies over the weights of the learned controller.
//!
//! A generation draws some tasks and some directions ε. Networks `mean ± σ·ε` steer all of the tasks, with the
//! same batches and initial weights; the score of each is the mean log of the loss at the end, so that tasks
//! weigh alike whatever their losses are. Scores become centred ranks, and the mean moves along
//! `Σ (rank₊ - rank₋) ε` (Salimans et al., 1703.03864). Every few generations the mean itself steers a fixed set
//! of tasks; the best mean so far is what is kept.
//!
//! All draws are functions of seed and generation, and the state is saved after each: a call goes on where the
//! one before stopped, and ends in the same weights however often that happens, on any number of threads.

mod tasks;

use std::path::Path;

use serde::{Deserialize, Serialize};
use tritrain_backend::{Backend, Stream};
use tritrain_data::Corpus;
use tritrain_files::{Storage, write_atomic};
use tritrain_optim::{ControllerKind, INPUTS, Network, WEIGHTS};

use crate::{Error, Proxy, Result, losses};

use tasks::Task;
pub use tasks::WRONG;

const STATE: &str = "meta.json";
/// The best weights so far, for `optim.controller_weights`.
pub const FOUND: &str = "controller.json";

/// Standard deviation of the networks of a generation around their mean.
const SIGMA: f32 = 0.2;
/// Length of a step of the mean, per unit of mean rank difference.
const STEP: f32 = 0.5;
/// Generations between two checks of the mean.
const CHECK_EVERY: u64 = 5;
/// Tasks of a check, each with every one of the factors below.
const CHECKS: usize = 3;
const FACTORS: [f32; 5] = [1.0 / 16.0, 0.25, 1.0, 4.0, 16.0];
/// Fixed rates among which the best is sought: powers of two from 1/16 to 16.
const FIXED: std::ops::RangeInclusive<i32> = -4..=4;

/// Purposes of random numbers.
const EPSILON: u32 = u32::from_be_bytes(*b"epsi");
const TASKS: u32 = u32::from_be_bytes(*b"task");
const START: u32 = u32::from_be_bytes(*b"strt");

/// What decides where meta-training goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetaOptions {
    /// Seed of all draws.
    pub seed: u64,
    /// Pairs of networks in a generation.
    pub pairs: usize,
    /// Tasks of a generation.
    pub tasks: usize,
    /// Steps of the shortest task; the longest has three times as many.
    pub steps: u64,
}

/// Mean log of the final loss over that of the best fixed rate, over the tasks of a check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// After this many generations.
    pub generation: u64,
    /// Of all tasks.
    pub score: f64,
    /// By factor of the base rate: 1/16, 1/4, 1, 4, 16.
    pub by_factor: Vec<f64>,
}

/// Where meta-training stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: String,
    options: MetaOptions,
    /// Hashes of the corpora.
    corpora: Vec<String>,
    generation: u64,
    mean: Network,
    /// Log losses of the best fixed rate of each task of a check.
    fixed: Vec<f64>,
    /// What fixed base rates and the rule do in a check.
    off: Check,
    rule: Check,
    checks: Vec<Check>,
    best: Network,
}

/// Meta-training in a folder.
#[derive(Debug)]
pub struct Meta<'a> {
    storage: &'a dyn Storage,
    dir: &'a Path,
    corpora: &'a [Corpus],
    state: State,
}

impl<'a> Meta<'a> {
    /// Begins in `dir`, or goes on with what lies there. Corpora are made with small vocabularies and lent.
    ///
    /// # Errors
    /// What lies there has other options or corpora; a corpus is too short; the disk.
    pub fn open<B: Backend + Sync>(
        backends: &[B],
        storage: &'a dyn Storage,
        dir: &'a Path,
        corpora: &'a [Corpus],
        options: MetaOptions,
    ) -> Result<Meta<'a>> {
        let (path, version) = (dir.join(STATE), env!("CARGO_PKG_VERSION").to_owned());
        let hashes: Vec<String> = corpora.iter().map(|corpus| corpus.hash().to_owned()).collect();
        if storage.exists(&path)? {
            let state: State = serde_json::from_slice(&storage.read(&path)?).map_err(|error| {
                content(&path, "the state of a meta-training of this version", error.to_string())
            })?;
            if (&state.options, &state.corpora, &state.version) != (&options, &hashes, &version) {
                let expected = format!("{options:?} and text {hashes:?}, by version {version}");
                let found = format!("{:?} and text {:?}, by {}", state.options, state.corpora, state.version);
                return Err(content(&path, &expected, found));
            }
            return Ok(Meta { storage, dir, corpora, state });
        }
        let mean = start(options.seed);
        let none = Check { generation: 0, score: 0.0, by_factor: Vec::new() };
        let mut state = State {
            version,
            options,
            corpora: hashes,
            generation: 0,
            best: mean.clone(),
            mean,
            fixed: Vec::new(),
            off: none.clone(),
            rule: none,
            checks: Vec::new(),
        };
        let tasks = check_tasks(&state.options, corpora);
        let grid: Vec<Proxy<'_>> =
            tasks.iter().flat_map(|task| FIXED.map(|power| task.proxy(2f32.powi(power), None))).collect();
        let logs = logs(backends, &grid)?;
        let by_task = logs.chunks_exact(FIXED.count());
        state.fixed =
            by_task.clone().map(|logs| logs.iter().copied().fold(f64::INFINITY, f64::min)).collect();
        // Every other power of two is a factor of a check.
        let off: Vec<f64> = by_task.flat_map(|logs| logs.iter().copied().step_by(2)).collect();
        state.off = state.compare(&off);
        let mut ruled = checks(&tasks, None);
        ruled.iter_mut().for_each(|proxy| proxy.config.optim.controller = ControllerKind::Rule);
        state.rule = state.compare(&self::logs(backends, &ruled)?);
        let mut meta = Meta { storage, dir, corpora, state };
        meta.check(backends)?;
        meta.save()?;
        Ok(meta)
    }

    /// Generations behind.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// What schedule alone, the rule and the mean network do in a check: the last, and the best so far.
    pub fn checks(&self) -> [&Check; 4] {
        let State { off, rule, checks, .. } = &self.state;
        let best = checks.iter().min_by(|a, b| a.score.total_cmp(&b.score));
        [off, rule, checks.last().unwrap_or(off), best.unwrap_or(off)]
    }

    /// One generation, and the state saved. The mean score of its networks, in log nats per token.
    ///
    /// # Errors
    /// The text or the disk.
    pub fn advance<B: Backend + Sync>(&mut self, backends: &[B]) -> Result<f64> {
        let MetaOptions { seed, pairs, tasks, steps } = self.state.options;
        let generation = self.state.generation;
        let stream = Stream::new(seed, TASKS, generation + 1);
        let tasks: Vec<Task<'_>> =
            (0..tasks).map(|index| Task::draw(&stream, (index, tasks), steps, self.corpora)).collect();
        let noise = Stream::new(seed, EPSILON, generation);
        let epsilon = |pair: usize| (0..WEIGHTS).map(move |i| noise.normal((pair * WEIGHTS + i) as u64));
        let mean = self.state.mean.weights();
        let mut proxies = Vec::new();
        for pair in 0..pairs {
            for sign in [SIGMA, -SIGMA] {
                let weights = mean.iter().zip(epsilon(pair)).map(|(mean, noise)| mean + sign * noise);
                let network = network(weights.collect(), self.dir)?;
                proxies.extend(tasks.iter().map(|task| task.proxy(task.wrong, Some(network.clone()))));
            }
        }
        let logs = logs(backends, &proxies)?;
        let scores: Vec<f64> = logs
            .chunks_exact(tasks.len())
            .map(|logs| logs.iter().sum::<f64>() / tasks.len() as f64)
            .collect();
        let ranks = ranks(&scores);
        let mut mean = mean.to_vec();
        for (pair, ranks) in ranks.as_chunks::<2>().0.iter().enumerate() {
            let share = STEP * (ranks[0] - ranks[1]) / (2.0 * pairs as f32);
            mean.iter_mut().zip(epsilon(pair)).for_each(|(mean, noise)| *mean += share * noise);
        }
        self.state.mean = network(mean, self.dir)?;
        self.state.generation += 1;
        if self.state.generation.is_multiple_of(CHECK_EVERY) {
            self.check(backends)?;
        }
        self.save()?;
        Ok(scores.iter().sum::<f64>() / scores.len().max(1) as f64)
    }

    fn check<B: Backend + Sync>(&mut self, backends: &[B]) -> Result<()> {
        let tasks = check_tasks(&self.state.options, self.corpora);
        let logs = logs(backends, &checks(&tasks, Some(&self.state.mean)))?;
        let check = self.state.compare(&logs);
        if self.state.checks.iter().all(|before| check.score < before.score) {
            self.state.best = self.state.mean.clone();
        }
        self.state.checks.push(check);
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let State { version, options, corpora, generation, best, .. } = &self.state;
        let [off, rule, _, found] = self.checks();
        let provenance = serde_json::json!({
            "version": version, "options": options, "corpora": corpora, "generations": generation,
            "sigma": SIGMA, "step": STEP, "family": tasks::family(), "off": off, "rule": rule, "best": found,
        });
        self.write(FOUND, &Found { weights: best, provenance })?;
        self.write(STATE, &self.state)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.dir.join(name);
        let text = serde_json::to_vec_pretty(value)
            .map_err(|error| content(&path, "numbers that JSON can hold", error.to_string()))?;
        Ok(write_atomic(self.storage, &path, &text)?)
    }
}

/// The file of the weights found.
#[derive(Serialize)]
struct Found<'a> {
    weights: &'a Network,
    provenance: serde_json::Value,
}

impl State {
    /// Scores of log losses, by task and factor.
    fn compare(&self, logs: &[f64]) -> Check {
        let mut by_factor = vec![0.0; FACTORS.len()];
        for (logs, fixed) in logs.chunks_exact(FACTORS.len()).zip(&self.fixed) {
            for (sum, log) in by_factor.iter_mut().zip(logs) {
                *sum += (log - fixed) / CHECKS as f64;
            }
        }
        let score = by_factor.iter().sum::<f64>() / FACTORS.len() as f64;
        Check { generation: self.generation, score, by_factor }
    }
}

/// The tasks of every check: of the same family as those of generations, drawn by no generation.
fn check_tasks<'a>(options: &MetaOptions, corpora: &'a [Corpus]) -> Vec<Task<'a>> {
    let stream = Stream::new(options.seed, TASKS, 0);
    (0..CHECKS).map(|index| Task::draw(&stream, (index, CHECKS), options.steps, corpora)).collect()
}

fn checks<'a>(tasks: &[Task<'a>], network: Option<&Network>) -> Vec<Proxy<'a>> {
    let all = tasks.iter().flat_map(|task| FACTORS.map(|factor| task.proxy(factor, network.cloned())));
    all.collect()
}

fn logs<B: Backend + Sync>(backends: &[B], proxies: &[Proxy<'_>]) -> Result<Vec<f64>> {
    Ok(losses(backends, proxies)?.into_iter().map(f64::ln).collect())
}

/// Ranks of scores, from 0.5 for the least to -0.5 for the largest.
fn ranks(scores: &[f64]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    let last = scores.len().saturating_sub(1).max(1) as f32;
    let mut ranks = vec![0.0; scores.len()];
    for (place, index) in order.into_iter().enumerate() {
        ranks[index] = 0.5 - place as f32 / last;
    }
    ranks
}

/// Where the mean begins: the first two hidden units answer the cluster's input as the rule does, the others
/// look in random directions and are not listened to yet.
fn start(seed: u64) -> Network {
    let random = Stream::new(seed, START, 0);
    let mut weights = vec![0.0; WEIGHTS];
    let hidden = weights.len() / (INPUTS + 1 + 2);
    for (i, weight) in weights[..INPUTS * hidden].iter_mut().enumerate() {
        *weight = match i / INPUTS {
            0 | 1 => 0.0,
            _ => 0.4 * random.normal(i as u64),
        };
    }
    (weights[2], weights[INPUTS + 2]) = (1.0, -1.0);
    let second = (INPUTS + 1) * hidden;
    (weights[second], weights[second + 1]) = (-0.7, 0.7);
    Network::try_from(weights).expect("146 finite weights") // cannot fail: they were made above
}

fn network(weights: Vec<f32>, dir: &Path) -> Result<Network> {
    Network::try_from(weights)
        .map_err(|error| content(&dir.join(STATE), "146 finite weights", error.to_string()))
}

fn content(path: &Path, expected: &str, found: String) -> Error {
    Error::Content { path: path.to_path_buf(), expected: expected.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_centred_and_the_least_is_best() {
        assert_eq!(ranks(&[3.0, 1.0, 2.0]), [-0.5, 0.5, 0.0]);
        assert_eq!(ranks(&[1.0, 1.0]), [0.5, -0.5]);
        assert_eq!(ranks(&[f64::INFINITY, 1.0, f64::NAN]), [0.0, 0.5, -0.5]);
    }

    #[test]
    fn the_first_network_does_what_the_rule_does() {
        let network = start(3);
        assert_eq!(network.outputs(&[0.3, -1.0, 0.0, 0.7, 0.1, 0.5]), [0.0, 0.0]);
        for cluster in [-1.5, -0.2, 0.4, 2.0] {
            let [rate, radius] = network.outputs(&[1.0, 0.5, cluster, -1.0, 0.0, -1.0]);
            assert!(radius == 0.0 && (rate - (-0.7 * cluster).tanh()).abs() < 1e-6, "{cluster}: {rate}");
        }
    }
}
