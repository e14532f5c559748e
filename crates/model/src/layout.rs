//! The names, shapes and order of a model's parameters.

use std::collections::BTreeMap;

use crate::{ModelConfig, Precision};

/// What a parameter is, which decides how it is initialised, updated and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// Token embedding or untied head: f32.
    Embedding,
    /// Gain of an RMSNorm: f32, starts at one.
    Norm,
    /// What a linear layer adds to each of its outputs: f32, starts at zero.
    Bias,
    /// Matrix of a linear layer inside a block: ternary, or f32 in the twin.
    Matrix,
    /// One of the two factors of a low-rank adapter beside such a matrix: f32.
    Adapter,
}

/// One parameter tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in checkpoints, gradients and logs.
    pub name: String,
    /// What it is.
    pub kind: TensorKind,
    /// Outputs; 1 for gains.
    pub rows: usize,
    /// Inputs; 1 for biases.
    pub cols: usize,
}

impl TensorKind {
    /// How `rows` × `cols` numbers are stored: gains and biases as vectors.
    pub fn shape(self, rows: usize, cols: usize) -> Vec<usize> {
        match self {
            TensorKind::Norm | TensorKind::Bias => vec![rows * cols],
            TensorKind::Embedding | TensorKind::Matrix | TensorKind::Adapter => vec![rows, cols],
        }
    }
}

impl TensorSpec {
    /// How its numbers are stored.
    pub fn shape(&self) -> Vec<usize> {
        self.kind.shape(self.rows, self.cols)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether the tensor holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where one block's parameters lie in [`Layout::specs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockIds {
    /// Gain of the norm in front of attention.
    pub attn_norm: usize,
    /// Query, key and value projections, one matrix.
    pub qkv: usize,
    /// What is added to queries, keys and values, when the model has biases.
    pub qkv_bias: Option<usize>,
    /// Gain of the norm in front of `o`, when the model has sub-norms.
    pub attn_sub_norm: Option<usize>,
    /// Attention output projection.
    pub o: usize,
    /// Gain of the norm in front of the feed-forward block.
    pub ffn_norm: usize,
    /// Gate and up projections, one matrix.
    pub gate_up: usize,
    /// Gain of the norm in front of `down`, when the model has sub-norms.
    pub ffn_sub_norm: Option<usize>,
    /// Feed-forward output projection.
    pub down: usize,
}

/// All parameters of a model in their fixed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tensors.
    pub specs: Vec<TensorSpec>,
    /// Index of the token embedding.
    pub embedding: usize,
    /// Indices of each block's tensors.
    pub blocks: Vec<BlockIds>,
    /// Index of the final norm's gain.
    pub norm: usize,
    /// Index of the output head: the embedding itself when tied.
    pub head: usize,
    /// Whether `Matrix` tensors are ternary.
    pub ternary: bool,
    /// By matrix, with adapters: the tensors `a` `[rank][inputs]` and `b` `[outputs][rank]` whose product is added to
    /// it. They come after all other tensors, and they alone are trained.
    pub adapters: BTreeMap<usize, [usize; 2]>,
}

impl Layout {
    /// The parameters of `config` with a vocabulary of `vocab` tokens.
    pub fn new(config: &ModelConfig, vocab: usize) -> Layout {
        let (dim, ffn, inner) = (config.dim, config.ffn, config.heads * config.head_dim());
        let mut specs = Vec::new();
        let mut add = |name: String, kind, rows, cols| {
            specs.push(TensorSpec { name, kind, rows, cols });
            specs.len() - 1
        };
        let embedding = add("embedding".into(), TensorKind::Embedding, vocab, dim);
        let blocks = (0..config.layers)
            .map(|n| {
                let mut gain =
                    |part: &str, width| add(format!("layers.{n}.{part}"), TensorKind::Norm, 1, width);
                let (attn_norm, ffn_norm) = (gain("attn_norm", dim), gain("ffn_norm", dim));
                let attn_sub_norm = config.sub_norm.then(|| gain("attn_sub_norm", inner));
                let ffn_sub_norm = config.sub_norm.then(|| gain("ffn_sub_norm", ffn));
                let qkv_bias = config
                    .qkv_bias
                    .then(|| add(format!("layers.{n}.qkv_bias"), TensorKind::Bias, config.qkv_rows(), 1));
                let mut matrix = |part: &str, rows, cols| {
                    add(format!("layers.{n}.{part}"), TensorKind::Matrix, rows, cols)
                };
                BlockIds {
                    attn_norm,
                    attn_sub_norm,
                    ffn_norm,
                    ffn_sub_norm,
                    qkv: matrix("qkv", config.qkv_rows(), dim),
                    qkv_bias,
                    o: matrix("o", dim, inner),
                    gate_up: matrix("gate_up", 2 * ffn, dim),
                    down: matrix("down", dim, ffn),
                }
            })
            .collect();
        let norm = add("norm".into(), TensorKind::Norm, 1, dim);
        let head =
            if config.tied { embedding } else { add("head".into(), TensorKind::Embedding, vocab, dim) };
        let (rank, mut adapters) = (config.lora, BTreeMap::new());
        for id in 0..if rank > 0 { specs.len() } else { 0 } {
            let TensorSpec { name, kind, rows, cols } = specs[id].clone();
            if kind == TensorKind::Matrix {
                let factors = [("lora_a", rank, cols), ("lora_b", rows, rank)];
                let factors = factors.map(|(factor, rows, cols)| {
                    let (name, kind) = (format!("{name}.{factor}"), TensorKind::Adapter);
                    specs.push(TensorSpec { name, kind, rows, cols });
                    specs.len() - 1
                });
                adapters.insert(id, factors);
            }
        }
        let ternary = config.precision == Precision::Ternary;
        Layout { specs, embedding, blocks, norm, head, ternary, adapters }
    }

    /// Whether tensor `id` is trained: where there are adapters, nothing else is.
    pub fn trains(&self, id: usize) -> bool {
        self.adapters.is_empty() || self.specs[id].kind == TensorKind::Adapter
    }

    /// Total number of parameters.
    pub fn parameters(&self) -> usize {
        self.specs.iter().map(TensorSpec::len).sum()
    }
}
