//! Device memory of a forward and backward pass, made once per run.

use tritrain_backend::{Backend, Memory, Shape};

use crate::{
    ModelConfig, Precision, Relations,
    linear::{Gated, Gradient, Input},
};

/// What a forward pass leaves for a backward pass. Gradients have the same bits either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there is no backward pass.
    Nothing,
    /// The input of every block; what the block made of it is computed again.
    Inputs,
    /// Everything, but for what costs little to compute again.
    Everything,
}

/// What one block computes and its backward pass needs, besides its input. All buffers have one row per
/// token.
pub(crate) struct BlockBuffers<B: Memory> {
    pub(crate) attn_in: Input<B>,
    pub(crate) attn_rstd: B::Floats,
    /// Queries, keys and values, before their rotation.
    pub(crate) qkv: B::Floats,
    pub(crate) attended: B::Floats,
    pub(crate) lse: B::Floats,
    pub(crate) o_in: Input<B>,
    pub(crate) o_rstd: B::Floats,
    /// Residual stream between attention and the feed-forward part, `[dim]`.
    pub(crate) mid: B::Floats,
    pub(crate) ffn_in: Input<B>,
    pub(crate) ffn_rstd: B::Floats,
    /// Without a backward pass it has the same room as `qkv`, in turn: then that one is empty between blocks.
    pub(crate) gate_up: B::Floats,
    pub(crate) down_in: Input<B>,
    pub(crate) down_rstd: B::Floats,
    /// Lengths of `qkv` and `gate_up` where they take turns.
    turns: Option<[usize; 2]>,
}

impl<B: Backend> BlockBuffers<B> {
    /// Gives `qkv` its room, at the beginning of a block.
    pub(crate) fn room_for_qkv(&mut self, backend: &B) {
        if let Some([len, _]) = self.turns {
            std::mem::swap(&mut self.qkv, &mut self.gate_up);
            backend.resize(&mut self.qkv, len);
        }
    }

    /// Gives `gate_up` its room, when nothing reads `qkv` any more.
    pub(crate) fn room_for_gate_up(&mut self, backend: &B) {
        if let Some([_, len]) = self.turns {
            std::mem::swap(&mut self.qkv, &mut self.gate_up);
            backend.resize(&mut self.gate_up, len);
        }
    }
}

impl<B: Memory> BlockBuffers<B> {
    pub(crate) fn new(backend: &B, config: &ModelConfig, tokens: usize, keep: Keep) -> BlockBuffers<B> {
        let ternary = config.precision == Precision::Ternary;
        let inner = config.heads * config.head_dim();
        let floats = |width: usize| backend.floats(tokens * width);
        let input = |width: usize| Input::new(backend, ternary, tokens, width);
        let lens = [config.qkv_rows(), 2 * config.ffn].map(|width| tokens * width);
        let turns = (keep == Keep::Nothing).then_some(lens);
        let [qkv, gate_up] = if turns.is_some() { [0, lens[0].max(lens[1])] } else { lens };
        BlockBuffers {
            attn_in: input(config.dim),
            attn_rstd: floats(1),
            qkv: backend.floats(qkv),
            attended: floats(inner),
            lse: floats(config.heads),
            o_in: input(inner),
            o_rstd: floats(1),
            mid: floats(config.dim),
            ffn_in: input(config.dim),
            ffn_rstd: floats(1),
            gate_up: backend.floats(gate_up),
            down_in: input(config.ffn),
            down_rstd: floats(1),
            turns,
        }
    }
}

pub(crate) const WITHOUT_GRADIENTS: &str = "activations of Keep::Nothing have no gradients";

/// Room for gradients on their way back, shared by all blocks.
pub(crate) struct BackwardBuffers<B: Memory> {
    /// Gradient of the residual stream.
    pub(crate) dx: Gradient<B>,
    pub(crate) d_dim: B::Floats,
    pub(crate) d_inner: B::Floats,
    pub(crate) d_attended: B::Floats,
    pub(crate) d_qkv: Gradient<B>,
    pub(crate) d_ffn: B::Floats,
    pub(crate) d_gate_up: Gradient<B>,
}

/// All activations of a batch of `shape.batch` sequences of `shape.time` tokens.
pub struct Activations<B: Memory> {
    pub(crate) shape: Shape,
    pub(crate) inputs: B::Tokens,
    pub(crate) targets: B::Tokens,
    /// The residual stream, `[dim]`, before every block and behind the last; or two places, used in turn.
    pub(crate) stream: Vec<B::Floats>,
    /// One for every block, or one that blocks use in turn.
    pub(crate) blocks: Vec<BlockBuffers<B>>,
    /// The gated activation of the block at hand.
    pub(crate) gated: Gated<B>,
    pub(crate) rstd: B::Floats,
    pub(crate) hidden: B::Floats,
    pub(crate) losses: B::Floats,
    pub(crate) back: Option<BackwardBuffers<B>>,
    /// What the queries, keys and values of a block learn besides, if anything.
    pub relations: Option<Relations<B>>,
}

impl<B: Memory> Activations<B> {
    /// Room for batches of `batch` × `time` tokens.
    pub fn new(backend: &B, config: &ModelConfig, batch: usize, time: usize, keep: Keep) -> Activations<B> {
        let tokens = batch * time;
        let inner = config.heads * config.head_dim();
        let floats = |width: usize| backend.floats(tokens * width);
        let ternary = config.precision == Precision::Ternary;
        let gradient = |width: usize| Gradient::new(backend, ternary, tokens, width);
        let back = (keep != Keep::Nothing).then(|| BackwardBuffers {
            dx: gradient(config.dim),
            d_dim: floats(config.dim),
            d_inner: floats(inner),
            d_attended: floats(inner),
            d_qkv: gradient(config.qkv_rows()),
            d_ffn: floats(config.ffn),
            d_gate_up: gradient(2 * config.ffn),
        });
        let blocks = if keep == Keep::Everything { config.layers } else { 1 };
        let stream = if keep == Keep::Nothing { 2 } else { config.layers + 1 };
        Activations {
            shape: config.attention(batch, time),
            inputs: backend.tokens(tokens),
            targets: backend.tokens(tokens),
            stream: (0..stream).map(|_| floats(config.dim)).collect(),
            blocks: (0..blocks).map(|_| BlockBuffers::new(backend, config, tokens, keep)).collect(),
            gated: Gated::new(backend, ternary, tokens, config.ffn),
            rstd: floats(1),
            hidden: floats(config.dim),
            losses: floats(1),
            back,
            relations: None,
        }
    }

    /// Tokens in a batch.
    pub fn tokens(&self) -> usize {
        self.shape.batch * self.shape.time
    }

    /// Sequences in a batch.
    pub fn batch(&self) -> usize {
        self.shape.batch
    }

    /// Cross entropy of every token of the last batch, in nats, on the device.
    pub fn losses(&self) -> &B::Floats {
        &self.losses
    }
}
