//! How much working memory kernels keep from one training step to the next, by the sizes of a model.

use crate::{Tier, attention, descent, loss, outer, ternary, update};

/// Sizes that working memory depends on.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// How attention sees a batch.
    pub shape: attention::Shape,
    /// Width of the residual stream.
    pub dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the gated activation.
    pub ffn: usize,
    /// Shapes of ternary matrices; none in f32 models.
    pub ternary: Vec<[usize; 2]>,
    /// Shapes of all matrices, the embedding among them.
    pub matrices: Vec<[usize; 2]>,
    /// Shapes of the matrices whose directions are made orthogonal.
    pub orthogonal: Vec<[usize; 2]>,
    /// How the head multiplies.
    pub head: loss::Products,
}

/// Bytes by kernel that a training step of such a model takes on `threads` threads, besides what its operations
/// are given; without what the f32 GEMM takes.
pub fn training(tier: Tier, threads: usize, sizes: &Sizes) -> Vec<(&'static str, usize)> {
    let tokens = sizes.shape.rows();
    let most =
        |of: &dyn Fn([usize; 2]) -> usize| sizes.ternary.iter().map(|shape| of(*shape)).max().unwrap_or(0);
    let widest = most(&|[_, cols]| cols);
    let orthogonal = sizes.orthogonal.iter().map(|[rows, cols]| update::orthogonal_room(*rows, *cols));
    let orthogonal = orthogonal.max().unwrap_or(0);
    let desk = attention::backward_memory(sizes.shape)
        .max(attention::attend_memory(sizes.shape))
        .max(3 * sizes.ffn)
        .max(descent::Desk::len(widest))
        .max(orthogonal);
    let partial = sizes.matrices.iter().map(|[rows, cols]| rows.div_ceil(update::ROWS) * cols);
    let partial = partial.max();
    vec![
        ("ternary products", ternary::room(tier, tokens, &sizes.ternary)),
        ("weight gradients", outer::room(tier, outer::Kind::Int8, tokens, &sizes.ternary)),
        ("output head", loss::room(tier, sizes.head, tokens, sizes.vocab, sizes.dim)),
        ("threads", (threads + 1) * desk * size_of::<f32>()),
        ("sums", partial.unwrap_or(0) * size_of::<f32>() + most(&|[rows, _]| rows) * size_of::<[f64; 2]>()),
    ]
}
