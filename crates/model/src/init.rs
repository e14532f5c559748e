//! Initial weights, a function of the seed.

use tritrain_trit::rng::Stream;

use crate::{Layout, ModelConfig, TensorKind};

/// Standard deviation of initial embeddings.
const EMBEDDING_STD: f32 = 0.02;

/// The tensors of [`initial_tensor`], in layout order.
pub fn initial_weights(config: &ModelConfig, layout: &Layout, seed: u64) -> Vec<Vec<f32>> {
    (0..layout.specs.len()).map(|id| initial_tensor(config, layout, seed, id)).collect()
}

/// Tensor `id` of the layout: gains of one; biases of zero; embeddings normal with deviation 0.02; matrices normal with
/// deviation `1/√inputs`, those that write to the residual stream divided by `√(2·layers)` (Radford et al.,
/// GPT-2, 2.3); of adapters the first factor as a matrix, the second zero, so that they begin with no effect (Hu et
/// al. 2021, arXiv:2106.09685, 4.1).
///
/// # Panics
/// The layout has no such tensor.
pub fn initial_tensor(config: &ModelConfig, layout: &Layout, seed: u64, id: usize) -> Vec<f32> {
    let spec = &layout.specs[id];
    let residual = layout.blocks.iter().any(|block| id == block.o || id == block.down);
    let std = match spec.kind {
        TensorKind::Norm => return vec![1.0; spec.len()],
        TensorKind::Bias => return vec![0.0; spec.len()],
        TensorKind::Embedding => EMBEDDING_STD,
        TensorKind::Matrix if residual => 1.0 / ((spec.cols * 2 * config.layers) as f32).sqrt(),
        TensorKind::Adapter if layout.adapters.values().any(|[_, b]| *b == id) => {
            return vec![0.0; spec.len()];
        }
        TensorKind::Matrix | TensorKind::Adapter => 1.0 / (spec.cols as f32).sqrt(),
    };
    let stream = Stream::new(seed, id as u32, 0);
    (0..spec.len() as u64).map(|index| std * stream.normal(index)).collect()
}
