//! What one model learns from relations within the queries, keys and values of another (Wang et al. 2020, MiniLMv2,
//! arXiv:2012.15828; for ternary models Wu et al. 2025, BitDistill, arXiv:2510.13998, which takes one block alone).

use tritrain_backend::{Backend, Memory, Shape};

use crate::{Activations, Model};

/// The queries, keys and values of another model, of one block.
pub struct Relations<B: Memory> {
    /// The block.
    pub(crate) layer: usize,
    /// What the mean divergence is multiplied by before it is added to the loss.
    pub(crate) weight: f32,
    /// Those of every pass of a step, `[tokens][qkv]` each, and the pass at hand.
    of: Vec<B::Floats>,
    pass: usize,
    /// Sum of the divergences of all passes.
    sum: B::Floats,
}

impl<B: Memory> Relations<B> {
    /// Room for `passes` passes of `len` numbers.
    pub fn new(backend: &B, (layer, weight): (usize, f32), (passes, len): (usize, usize)) -> Relations<B> {
        let of = (0..passes).map(|_| backend.floats(len)).collect();
        Relations { layer, weight, of, pass: 0, sum: backend.floats(1) }
    }

    /// Those of a pass, to be written; see [`Model::projections`].
    ///
    /// # Panics
    /// There are not as many passes.
    pub fn of_pass(&mut self, pass: usize) -> &mut B::Floats {
        &mut self.of[pass]
    }

    /// Sum of the mean divergences of all passes since [`Relations::begin`], on the device.
    pub fn sum(&self) -> &B::Floats {
        &self.sum
    }
}

impl<B: Backend> Relations<B> {
    /// Says which pass comes next; before the first, nothing has been summed.
    pub fn begin(&mut self, backend: &B, pass: usize) {
        if pass == 0 {
            backend.clear(&mut self.sum);
        }
        self.pass = pass;
    }

    /// Adds the gradient of what block `layer` has to learn to that of its queries, keys and values.
    pub(crate) fn relate(
        &mut self,
        backend: &B,
        layer: usize,
        (qkv, shape): (&B::Floats, Shape),
        d_qkv: &mut B::Floats,
    ) {
        if layer == self.layer {
            backend.relate(qkv, &self.of[self.pass], shape, self.weight, d_qkv, (&mut self.sum, 0));
        }
    }
}

impl<B: Backend> Model<B> {
    /// Queries, keys and values of block `layer`, before their rotation, to `to` `[tokens][qkv]`: of `inputs`
    /// `[batch][time]`.
    ///
    /// # Panics
    /// There is no such block, or the tokens are not as many as the activations were made for.
    pub fn projections(
        &self,
        backend: &B,
        a: &mut Activations<B>,
        inputs: &[u32],
        layer: usize,
        to: &mut B::Floats,
    ) {
        assert!(layer < self.config.layers, "block {layer}");
        backend.upload_tokens(inputs, &mut a.inputs);
        self.forward_to(backend, a, layer);
        let (places, sets) = (a.stream.len(), a.blocks.len());
        let block = &mut a.blocks[layer % sets];
        self.block_projections(backend, layer, &a.stream[layer % places], block);
        backend.copy(&block.qkv, to);
        // As a whole block leaves it.
        block.room_for_gate_up(backend);
    }
}
