//! Initial weights, a function of the seed.

use tritrain_trit::rng::Stream;

use crate::{Layout, ModelConfig, TensorKind};

/// Standard deviation of initial embeddings.
const EMBEDDING_STD: f32 = 0.02;

/// Gains of one; embeddings normal with deviation 0.02; matrices normal with deviation `1/√inputs`,
/// those that write to the residual stream divided by `√(2·layers)` (Radford et al., GPT-2, 2.3).
pub fn initial_weights(config: &ModelConfig, layout: &Layout, seed: u64) -> Vec<Vec<f32>> {
    let residual: Vec<usize> = layout.blocks.iter().flat_map(|block| [block.o, block.down]).collect();
    let tensors = layout.specs.iter().enumerate().map(|(id, spec)| {
        let std = match spec.kind {
            TensorKind::Norm => return vec![1.0; spec.len()],
            TensorKind::Embedding => EMBEDDING_STD,
            TensorKind::Matrix if residual.contains(&id) => {
                1.0 / ((spec.cols * 2 * config.layers) as f32).sqrt()
            }
            TensorKind::Matrix => 1.0 / (spec.cols as f32).sqrt(),
        };
        let stream = Stream::new(seed, id as u32, 0);
        (0..spec.len() as u64).map(|index| std * stream.normal(index)).collect()
    });
    tensors.collect()
}
