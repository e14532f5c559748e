//! What proxies of meta-training are drawn from: sizes, text, storage, seeds and wrong learning rates.

use tritrain_backend::Stream;
use tritrain_data::{Corpus, PlanKind};
use tritrain_optim::{GradientKind, Network, StorageKind};

use crate::{Config, Proxy};

/// Base rates are wrong by up to this factor either way.
pub const WRONG: f32 = 16.0;

/// What sizes are chosen among, each entry with the same chance.
const LAYERS: [usize; 4] = [1, 1, 1, 2];
const FFN: [usize; 2] = [256, 512];
const CONTEXT: [usize; 3] = [64, 64, 128];
const TOKENS_PER_STEP: [usize; 3] = [128, 128, 256];
/// The longest task over the shortest.
const LONGEST: f64 = 3.0;
/// Share of the tasks in four trits, without stored gradients.
const TRITS: f64 = 0.3;
/// Share of the tasks without a radius, and the radius of the others.
const UNBOUNDED: f64 = 0.5;
const RADIUS: f32 = 0.04;

/// The family of tasks in words and numbers, for the provenance of what is learnt from them.
pub(super) fn family() -> serde_json::Value {
    serde_json::json!({
        "dim": Config::default().model.dim, "layers": LAYERS, "ffn": FFN, "context": CONTEXT,
        "tokens_per_step": TOKENS_PER_STEP, "longest_over_shortest": LONGEST,
        "share_in_trits4": TRITS, "share_without_radius": UNBOUNDED, "radius": RADIUS, "wrong_up_to": WRONG,
    })
}

/// A run to be controlled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    corpus: &'a Corpus,
    layers: usize,
    ffn: usize,
    context: usize,
    batch: usize,
    steps: u64,
    /// Four trits of latent weight and no stored gradient, instead of f32.
    trits: bool,
    radius: f32,
    seed: u64,
    /// Factor of the default rates of matrices and embedding.
    pub(super) wrong: f32,
}

impl<'a> Task<'a> {
    /// The `index`-th of `count` tasks that `stream` draws, of `steps` to [`LONGEST`] times as many; together they cover
    /// the range of wrong rates evenly.
    pub(super) fn draw(
        stream: &Stream,
        (index, count): (usize, usize),
        steps: u64,
        corpora: &'a [Corpus],
    ) -> Task<'a> {
        let uniform = |which: u64| f64::from(stream.uniform(index as u64 * 16 + which));
        let choose = |which: u64, of: &[usize]| of[(uniform(which) * of.len() as f64) as usize % of.len()];
        let context = choose(0, &CONTEXT);
        let place = (index as f64 + uniform(1)) / count.max(1) as f64;
        Task {
            corpus: &corpora[(uniform(2) * corpora.len() as f64) as usize % corpora.len()],
            layers: choose(3, &LAYERS),
            ffn: choose(4, &FFN),
            context,
            batch: choose(5, &TOKENS_PER_STEP) / context,
            steps: (steps as f64 * LONGEST.powf(uniform(6))) as u64,
            trits: uniform(7) < TRITS,
            radius: if uniform(8) < UNBOUNDED { 0.0 } else { RADIUS },
            seed: u64::from(stream.bits(index as u64 * 16 + 9)),
            wrong: WRONG.powf((2.0 * place - 1.0) as f32),
        }
    }

    /// The proxy, with rates wrong by `wrong`.
    pub(super) fn proxy(&self, wrong: f32, network: Option<Network>) -> Proxy<'a> {
        let mut config = Config::default();
        // Clusters have no part in what a controller learns.
        config.data.plan = PlanKind::Shuffle;
        let model = &mut config.model;
        (model.layers, model.ffn, model.context) = (self.layers, self.ffn, self.context);
        let run = &mut config.run;
        (run.batch, run.steps, run.tokens, run.seed) = (self.batch, self.steps, 0, self.seed);
        run.eval_tokens = 2048;
        let optim = &mut config.optim;
        optim.rate *= wrong;
        optim.embedding_rate *= wrong;
        optim.radius = self.radius;
        if self.trits {
            (optim.latent, optim.gradient) = (StorageKind::Trits4, GradientKind::None);
        }
        Proxy { corpus: self.corpus, config, network }
    }
}
