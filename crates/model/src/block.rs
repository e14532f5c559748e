//! One transformer block, forward and right under it backward.

use tritrain_backend::{Backend, Shape, Store};

use crate::{
    Activations, Model, Sink,
    activations::{BlockBuffers, WITHOUT_GRADIENTS},
    linear::{Gated, Input},
};

impl<B: Backend> Model<B> {
    /// Block `layer` on `x`, both `[tokens][dim]`; the residual stream goes to `out`. `attend` turns
    /// queries, keys and values into `buffers.attended`.
    pub(crate) fn block_forward(
        &self,
        backend: &B,
        layer: usize,
        x: &B::Floats,
        buffers: &mut BlockBuffers<B>,
        gated: &mut Gated<B>,
        attend: impl FnOnce(&B::Floats, &mut B::Floats, &mut B::Floats),
        out: &mut B::Floats,
    ) {
        self.block_activations(backend, layer, x, buffers, gated, attend);
        self.block_output(backend, layer, buffers, out);
    }

    /// The last product of a block, after [`Model::block_activations`]: its input is read by nothing any more.
    pub(crate) fn block_output(
        &self,
        backend: &B,
        layer: usize,
        from: &BlockBuffers<B>,
        out: &mut B::Floats,
    ) {
        self.linear(backend, self.layout.blocks[layer].down, &from.down_in, Some(&from.mid), out);
    }

    /// [`Model::block_forward`] up to the input of the last matrix: all that backward reads.
    pub(crate) fn block_activations(
        &self,
        backend: &B,
        layer: usize,
        x: &B::Floats,
        buffers: &mut BlockBuffers<B>,
        gated: &mut Gated<B>,
        attend: impl FnOnce(&B::Floats, &mut B::Floats, &mut B::Floats),
    ) {
        let ids = &self.layout.blocks[layer];
        self.block_projections(backend, layer, x, buffers);
        let f = buffers;
        attend(&f.qkv, &mut f.attended, &mut f.lse);
        self.normalise(backend, &f.attended, ids.attn_sub_norm, &mut f.o_in, &mut f.o_rstd);
        self.linear(backend, ids.o, &f.o_in, Some(x), &mut f.mid);

        self.normalise(backend, &f.mid, Some(ids.ffn_norm), &mut f.ffn_in, &mut f.ffn_rstd);
        f.room_for_gate_up(backend);
        self.linear(backend, ids.gate_up, &f.ffn_in, None, &mut f.gate_up);
        self.gate(backend, &f.gate_up, ids.ffn_sub_norm, gated, &mut f.down_in, &mut f.down_rstd);
    }

    /// [`Model::block_forward`] up to queries, keys and values.
    pub(crate) fn block_projections(
        &self,
        backend: &B,
        layer: usize,
        x: &B::Floats,
        buffers: &mut BlockBuffers<B>,
    ) {
        let (ids, f) = (&self.layout.blocks[layer], buffers);
        self.normalise(backend, x, Some(ids.attn_norm), &mut f.attn_in, &mut f.attn_rstd);
        f.room_for_qkv(backend);
        self.linear(backend, ids.qkv, &f.attn_in, None, &mut f.qkv);
        if let Some(id) = ids.qkv_bias {
            backend.add_bias(self.floats(id), &mut f.qkv);
        }
    }

    /// Root mean squares of what goes into `o` and into `down` of each block, over the tokens of the last batch of an
    /// f32 model.
    ///
    /// # Panics
    /// The activations do not keep everything, or are those of a ternary model.
    pub fn inner_rms(&self, backend: &B, a: &Activations<B>) -> Vec<[f32; 2]> {
        assert_eq!(a.blocks.len(), self.config.layers, "activations of every block");
        let lens =
            [self.config.heads * self.config.head_dim(), self.config.ffn].map(|width| width * a.tokens());
        let rms = |block: &BlockBuffers<B>| {
            let Input::Floats(gated) = &block.down_in else { panic!("activations of an f32 model") };
            let (mut sums, mut here) = (backend.floats(2), [0.0; 2]);
            backend.add_sum_squares(&block.attended, &mut sums, 0);
            backend.add_sum_squares(gated, &mut sums, 1);
            backend.download(&sums, &mut here);
            [0, 1].map(|at| (here[at] / lens[at] as f32).sqrt())
        };
        a.blocks.iter().map(rms).collect()
    }

    /// Attention within the sequences of a batch.
    pub(crate) fn attend(
        &self,
        backend: &B,
        shape: Shape,
    ) -> impl Fn(&B::Floats, &mut B::Floats, &mut B::Floats) {
        move |qkv, attended, lse| backend.attention(qkv, &self.rope, shape, attended, lse)
    }

    /// Computes again what the backward pass of block `layer` reads and forward did not keep. Of the last
    /// block everything is there: forward ended with it.
    fn recompute(&self, backend: &B, layer: usize, a: &mut Activations<B>) {
        if let ([shared], true) = (&mut a.blocks[..], layer + 1 < self.config.layers) {
            let attend = self.attend(backend, a.shape);
            self.block_activations(backend, layer, &a.stream[layer], shared, &mut a.gated, attend);
        }
    }

    /// The same block backward: `dx` among the backward buffers of `a`, the gradient of its output, becomes
    /// that of its input; gradients of its parameters go to `sink`.
    pub(crate) fn block_backward<S: Sink<B> + ?Sized>(
        &mut self,
        backend: &B,
        layer: usize,
        a: &mut Activations<B>,
        sink: &mut S,
    ) {
        self.recompute(backend, layer, a);
        let ids = self.layout.blocks[layer];
        let (f, x, shape) = (&a.blocks[layer % a.blocks.len()], &a.stream[layer], a.shape);
        let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);

        self.linear_backward(backend, ids.down, &b.dx, &f.down_in, &mut b.d_ffn, sink);
        let (of, gated) = ((&f.gate_up, &f.down_rstd), &mut a.gated);
        self.gate_backward(backend, &b.d_ffn, of, ids.ffn_sub_norm, gated, &mut b.d_gate_up, sink);
        self.linear_backward(backend, ids.gate_up, &b.d_gate_up, &f.ffn_in, &mut b.d_dim, sink);
        let (of, d_gain) = ((&f.mid, &f.ffn_rstd), sink.buffer(backend, ids.ffn_norm));
        self.normalise_backward(backend, &b.d_dim, of, ids.ffn_norm, Store::Add, &mut b.dx, d_gain);

        self.linear_backward(backend, ids.o, &b.dx, &f.o_in, &mut b.d_inner, sink);
        let d_attended = match ids.attn_sub_norm {
            Some(id) => {
                let (gain, dx, d_gain) = (self.floats(id), &mut b.d_attended, sink.buffer(backend, id));
                let (dh, x, store) = (&b.d_inner, &f.attended, Store::Replace);
                backend.rmsnorm_backward(dh, x, gain, &f.o_rstd, store, dx, None, d_gain);
                &b.d_attended
            }
            None => &b.d_inner,
        };
        let results = (&f.attended, &f.lse);
        backend.attention_backward(&f.qkv, results, d_attended, &self.rope, shape, &mut b.d_qkv.floats);
        if let Some(relations) = &mut a.relations {
            relations.relate(backend, layer, (&f.qkv, shape), &mut b.d_qkv.floats);
        }
        if let Some(id) = ids.qkv_bias.filter(|id| self.layout.trains(*id)) {
            backend.bias_gradient(&b.d_qkv.floats, sink.buffer(backend, id));
        }
        b.d_qkv.round(backend);
        self.linear_backward(backend, ids.qkv, &b.d_qkv, &f.attn_in, &mut b.d_dim, sink);
        let (of, d_gain) = ((x, &f.attn_rstd), sink.buffer(backend, ids.attn_norm));
        self.normalise_backward(backend, &b.d_dim, of, ids.attn_norm, Store::Add, &mut b.dx, d_gain);
    }
}
