//! Which tokens are in which batch.

mod mixer;
mod order;

use std::sync::Arc;

use tritrain_files::tokens::{NO_TARGET_MARK, Split};
use tritrain_trit::NO_TARGET;
use tritrain_trit::rng::{Permutation, Stream};

pub use mixer::Mixer;
use order::{Order, Quotas, shuffled};

use crate::labels::most;
use crate::{Corpus, Error, Labels, PlanKind, Result};

/// The purpose of the random numbers drawn here, apart from those of tensors.
const SHIFT: u32 = u32::from_be_bytes(*b"shft");

/// The order of training: windows of `context + 1` tokens that overlap by one, so that in an epoch of
/// most plans every token but the first is predicted once. Windows run across documents: several conversations share
/// one, and what is behind its end is in the next.
///
/// Each epoch lays its windows from another offset below `context`, so that no two epochs see the same
/// windows; for that, up to `2·context` tokens are left out at the ends. The adaptive plan and those of one
/// cluster have one grid of windows. A window belongs to the cluster of most of its tokens.
///
/// A batch is a function of the step, and with the adaptive plan of its [`Mixer`]: a run that goes on
/// needs nothing else.
#[derive(Clone, Debug)]
pub struct BatchPlan {
    kind: PlanKind,
    seed: u64,
    batch: usize,
    context: usize,
    /// Windows of the grid, and of an epoch of this plan.
    grid: u64,
    windows: u64,
    shifts: u64,
    repeat: u32,
    labels: Option<Arc<Labels>>,
    /// What windows are laid over where that is not the split as it lies (another order, or without
    /// near-duplicates): stretches of it, with the tokens before each.
    stretches: Vec<Stretch>,
    /// The one cluster that windows are taken from, and its windows.
    only: Option<(u32, Vec<u64>)>,
    /// The order of an epoch, kept while that lasts.
    order: Option<(u64, Order)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    before: u64,
    start: u64,
    tokens: u64,
}

/// A window of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First token, in the order that the plan lays tokens out in.
    pub start: u64,
    /// Its cluster, where there are any.
    pub cluster: Option<u32>,
}

/// What a plan is made of besides the corpus.
#[derive(Clone, Debug)]
pub struct PlanOptions {
    /// Which plan.
    pub kind: PlanKind,
    /// Windows of this cluster alone, shuffled anew for every pass over them, whatever the kind.
    pub only: Option<u32>,
    /// Times that the balanced plan shows a window in an epoch, at most.
    pub repeat: u32,
    /// Seed of all choices.
    pub seed: u64,
    /// Windows of a batch.
    pub batch: usize,
    /// Tokens that a window predicts.
    pub context: usize,
}

impl BatchPlan {
    /// The plan of a corpus, which has clusters for every kind but [`PlanKind::Shuffle`].
    ///
    /// # Errors
    /// [`Error::Short`] when the training split holds no window; [`Error::Shape`] when `batch` or
    /// `context` is zero or there are no clusters for a plan that needs them; [`Error::NoWindow`] of the only
    /// cluster.
    pub fn new(corpus: &Corpus, options: &PlanOptions) -> Result<Self> {
        let &PlanOptions { kind, only, repeat, seed, batch, context } = options;
        let labels = corpus.labels().cloned();
        for (what, value) in [("sequences in a batch", batch), ("context", context)] {
            if value == 0 {
                return Err(Error::Shape { what, expected: "at least 1".into(), found: "0".into() });
            }
        }
        if labels.is_none() && (kind != PlanKind::Shuffle || only.is_some()) {
            let (what, expected) = ("clusters of a plan", "some for any plan but shuffle".into());
            return Err(Error::Shape { what, expected, found: format!("none for {kind:?}") });
        }
        corpus.check(context)?;
        let stretches = match &labels {
            Some(labels) if kind == PlanKind::Ordered && only.is_none() => {
                stretches(corpus, labels.order().iter().copied(), labels.dropped())?
            }
            Some(labels) if !labels.dropped().is_empty() => {
                let documents = corpus.tokens().manifest().train.documents;
                stretches(corpus, 0..documents as u32, labels.dropped())?
            }
            _ => Vec::new(),
        };
        let left = stretches.last().map(|stretch| stretch.before + stretch.tokens);
        let (len, step) = (left.unwrap_or_else(|| corpus.len(Split::Train)), context as u64);
        if len <= step {
            let hint = "add text, raise data.duplicates or lower model.context";
            return Err(Error::Short { split: "training", tokens: len, context, hint });
        }
        // The last window of an epoch ends at shift + windows·context + 1 <= len.
        let windows = ((len - step) / step).max(1);
        let fixed = kind == PlanKind::Adaptive || only.is_some();
        let shifts = if fixed { 1 } else { (len - windows * step).min(step) };
        let grid = windows;
        let windows = match kind {
            // Whole batches; fewer windows than a batch are repeated.
            PlanKind::Homogeneous => (grid / batch as u64).max(1) * batch as u64,
            _ => grid,
        };
        let mut plan = BatchPlan {
            kind,
            seed,
            batch,
            context,
            grid,
            windows,
            shifts,
            repeat,
            labels,
            stretches,
            only: None,
            order: None,
        };
        if let Some(cluster) = only {
            let of_it = |&index: &u64| plan.window(0, index).cluster == Some(cluster);
            let members: Vec<u64> = (0..grid).filter(of_it).collect();
            if members.is_empty() {
                let hint = "take fewer clusters, or add text";
                return Err(Error::NoWindow { cluster, split: "training", hint });
            }
            plan.windows = members.len() as u64;
            plan.only = Some((cluster, members));
        }
        Ok(plan)
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Epochs behind after this many steps.
    pub fn epoch(&self, step: u64) -> f64 {
        step as f64 * self.batch as f64 / self.windows as f64
    }

    /// The mixer to begin with, of the adaptive plan.
    pub fn mixer(&self) -> Option<Mixer> {
        let adaptive = self.kind == PlanKind::Adaptive && self.only.is_none();
        let labels = self.labels.as_ref().filter(|_| adaptive)?;
        Some(Mixer::new(labels.k()))
    }

    /// The windows of a step. The mixer, which the adaptive plan alone has, counts them as seen.
    ///
    /// # Errors
    /// [`Error::Shape`] for a step beyond all numbers, or a mixer of another plan.
    pub fn windows_of(&mut self, step: u64, mixer: Option<&mut Mixer>) -> Result<Vec<Window>> {
        let batch = self.batch as u64;
        let first = step.checked_mul(batch).filter(|first| first.checked_add(batch).is_some());
        let first = first.ok_or_else(|| Error::Shape {
            what: "step",
            expected: "fewer than 2^64 windows".into(),
            found: step.to_string(),
        })?;
        match (self.kind, mixer) {
            _ if self.only.is_some() => Ok((first..first + batch).map(|k| self.at(k)).collect()),
            (PlanKind::Adaptive, Some(mixer)) => {
                let (seed, size) = (self.seed, self.batch);
                let members = self.order(0).members();
                mixer.check(members.len())?;
                let drawn = mixer.draw(members, (seed, step), size);
                Ok(drawn.into_iter().map(|index| self.window(0, index)).collect())
            }
            (PlanKind::Adaptive, None) => {
                let (what, expected) = ("mixer", "that of the adaptive plan".into());
                Err(Error::Shape { what, expected, found: "none".into() })
            }
            _ => Ok((first..first + batch).map(|k| self.at(k)).collect()),
        }
    }

    /// The `k`-th window of training.
    fn at(&mut self, k: u64) -> Window {
        let (epoch, place) = (k / self.windows, k % self.windows);
        if let Some((cluster, members)) = &self.only {
            let place = shuffled(self.seed, 0, *cluster as usize, epoch, self.windows).at(place);
            return self.window(0, members.get(place as usize).copied().unwrap_or_default());
        }
        let index = match self.kind {
            PlanKind::Shuffle | PlanKind::Ordered => Permutation::new(self.seed, epoch, self.grid).at(place),
            _ => self.order(epoch).at(place),
        };
        self.window(epoch, index)
    }

    fn window(&self, epoch: u64, index: u64) -> Window {
        let start = self.start(epoch, index);
        Window { start, cluster: self.labels.as_deref().map(|labels| self.cluster(labels, start)) }
    }

    /// Where window `index` of the grid of an epoch begins.
    fn start(&self, epoch: u64, index: u64) -> u64 {
        let random = u64::from(Stream::new(self.seed, SHIFT, epoch).bits(0));
        ((random * self.shifts) >> 32) + index * self.context as u64
    }

    fn cluster(&self, labels: &Labels, start: u64) -> u32 {
        let mut counts = vec![0; labels.k()];
        for (start, len) in self.parts(start, self.context as u64 + 1) {
            labels.count(Split::Train, start, len, &mut counts);
        }
        most(&counts)
    }

    /// The order of an epoch, made where it is not the one at hand.
    fn order(&mut self, epoch: u64) -> &Order {
        if self.order.as_ref().is_none_or(|(at, _)| *at != epoch) {
            let mut members = vec![Vec::new(); self.labels.as_ref().map_or(1, |labels| labels.k())];
            for index in 0..self.grid {
                let cluster = self.window(epoch, index).cluster.unwrap_or_default();
                if let Some(members) = members.get_mut(cluster as usize) {
                    members.push(index);
                }
            }
            let (repeat, batch) = (u64::from(self.repeat), self.batch as u64);
            let order = match self.kind {
                PlanKind::Balanced => {
                    Order::mixed(self.seed, epoch, members, &Quotas::balanced(repeat, self.grid))
                }
                PlanKind::Homogeneous => Order::homogeneous(self.seed, epoch, members, batch, self.windows),
                PlanKind::Adaptive => Order::of(members),
                _ => Order::mixed(self.seed, epoch, members, &Quotas::all()),
            };
            self.order = Some((epoch, order));
        }
        let order = self.order.as_ref().map(|(_, order)| order);
        order.expect("an order") // cannot fail: it was made above
    }

    /// The stretches of the split that tokens of the plan lie in.
    fn parts(&self, start: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let plain = self.stretches.is_empty().then_some((start, len));
        let first = self.stretches.partition_point(|stretch| stretch.before + stretch.tokens <= start);
        let end = start + len;
        let parts = self.stretches.iter().skip(first).take_while(move |stretch| stretch.before < end);
        let parts = parts.map(move |stretch| {
            let from = start.max(stretch.before);
            let to = end.min(stretch.before + stretch.tokens);
            (stretch.start + (from - stretch.before), to - from)
        });
        plain.into_iter().chain(parts)
    }

    /// Stretches `(first token, tokens)` of the training split that the window reads, in order.
    pub fn tokens_of(&self, window: Window) -> Vec<(u64, u64)> {
        self.parts(window.start, self.context as u64 + 1).collect()
    }

    /// Fills in the batch of some windows: `inputs` and `targets`, both `[batch, context]`, targets one
    /// token ahead, [`NO_TARGET`] where that token is not learnt.
    ///
    /// # Errors
    /// [`Error::Shape`] when a slice has another length; [`Error::Files`] for a damaged shard.
    pub fn read(
        &self,
        corpus: &Corpus,
        windows: &[Window],
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<()> {
        check_len("inputs", inputs, windows.len() * self.context)?;
        check_len("targets", targets, windows.len() * self.context)?;
        let mut tokens = vec![0; self.context + 1];
        let rows = inputs.chunks_exact_mut(self.context).zip(targets.chunks_exact_mut(self.context));
        for (window, (input, target)) in windows.iter().zip(rows) {
            let mut rest = &mut tokens[..];
            for (start, len) in self.parts(window.start, self.context as u64 + 1) {
                let (now, later) = rest.split_at_mut(len as usize);
                corpus.tokens().read_marked(Split::Train, start, now)?;
                rest = later;
            }
            copy_window(&tokens, input, target);
        }
        Ok(())
    }
}

/// The training documents in an order, without those that are `dropped`, as stretches of the split.
fn stretches(corpus: &Corpus, order: impl Iterator<Item = u32>, dropped: &[u32]) -> Result<Vec<Stretch>> {
    let documents = corpus.tokens().documents(Split::Train);
    let places = documents.map(|document| document.map(|d| (d.start, d.tokens)));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut before = 0;
    for document in order.filter(|document| dropped.binary_search(document).is_err()) {
        let Some(&(start, tokens)) = places.get(document as usize) else { continue };
        match stretches.last_mut() {
            Some(last) if last.start + last.tokens == start => last.tokens += tokens,
            _ => stretches.push(Stretch { before, start, tokens }),
        }
        before += tokens;
    }
    Ok(stretches)
}

/// A window of `context + 1` tokens, with marks, as inputs and targets.
pub(crate) fn copy_window(window: &[u32], input: &mut [u32], target: &mut [u32]) {
    input.iter_mut().zip(window).for_each(|(to, from)| *to = from & !NO_TARGET_MARK);
    let target_of = |token: u32| if token < NO_TARGET_MARK { token } else { NO_TARGET };
    target.iter_mut().zip(window.iter().skip(1)).for_each(|(to, from)| *to = target_of(*from));
}

pub(crate) fn check_len(what: &'static str, slice: &[u32], expected: usize) -> Result<()> {
    if slice.len() == expected {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{expected} tokens"), found: slice.len().to_string() })
}
