//! One transformer block, forward and right under it backward.

use tritrain_backend::{Backend, Shape, Store};

use crate::{
    Activations, Gate, Model,
    activations::{BlockBuffers, WITHOUT_GRADIENTS},
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
        gated: &mut B::Floats,
        attend: impl FnOnce(&B::Floats, &mut B::Floats, &mut B::Floats),
        out: &mut B::Floats,
    ) {
        self.block_activations(backend, layer, x, buffers, gated, attend);
        backend.copy(&buffers.mid, out);
        self.linear(backend, self.layout.blocks[layer].down, &buffers.down_in, Store::Add, out);
    }

    /// [`Model::block_forward`] up to the input of the last matrix: all that backward reads.
    fn block_activations(
        &self,
        backend: &B,
        layer: usize,
        x: &B::Floats,
        buffers: &mut BlockBuffers<B>,
        gated: &mut B::Floats,
        attend: impl FnOnce(&B::Floats, &mut B::Floats, &mut B::Floats),
    ) {
        let ids = &self.layout.blocks[layer];
        let f = buffers;
        self.normalise(backend, x, Some(ids.attn_norm), &mut f.attn_in, &mut f.attn_rstd);
        self.linear(backend, ids.qkv, &f.attn_in, Store::Replace, &mut f.qkv);
        attend(&f.qkv, &mut f.attended, &mut f.lse);
        self.normalise(backend, &f.attended, ids.attn_sub_norm, &mut f.o_in, &mut f.o_rstd);
        backend.copy(x, &mut f.mid);
        self.linear(backend, ids.o, &f.o_in, Store::Add, &mut f.mid);

        self.normalise(backend, &f.mid, Some(ids.ffn_norm), &mut f.ffn_in, &mut f.ffn_rstd);
        self.linear(backend, ids.gate_up, &f.ffn_in, Store::Replace, &mut f.gate_up);
        backend.glu(self.gate(), &f.gate_up, self.config.ffn, gated);
        self.normalise(backend, gated, ids.ffn_sub_norm, &mut f.down_in, &mut f.down_rstd);
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
        if layer + 1 == self.config.layers {
            return;
        }
        match &mut a.blocks[..] {
            [shared] => {
                let attend = self.attend(backend, a.shape);
                self.block_activations(backend, layer, &a.stream[layer], shared, &mut a.gated, attend);
            }
            blocks if self.layout.blocks[layer].ffn_sub_norm.is_some() => {
                backend.glu(self.gate(), &blocks[layer].gate_up, self.config.ffn, &mut a.gated);
            }
            _ => {}
        }
    }

    /// The same block backward: `dx` among the backward buffers of `a`, the gradient of its output, becomes
    /// that of its input; gradients of its parameters go to `grads`.
    pub(crate) fn block_backward(
        &self,
        backend: &B,
        layer: usize,
        a: &mut Activations<B>,
        grads: &mut [B::Floats],
    ) {
        self.recompute(backend, layer, a);
        let ids = &self.layout.blocks[layer];
        let (f, x, gated, shape) = (&a.blocks[layer % a.blocks.len()], &a.stream[layer], &a.gated, a.shape);
        let b = a.back.as_mut().expect(WITHOUT_GRADIENTS);
        let gain = |id: usize| &self.weights[id];

        let down = (&mut b.d_ffn, &mut grads[ids.down]);
        self.linear_backward(backend, ids.down, &b.dx, &mut b.rows_dim, &f.down_in, down);
        let d_gated = match ids.ffn_sub_norm {
            Some(id) => {
                let (dx, d_gain) = (&mut b.d_gated, &mut grads[id]);
                backend.rmsnorm_backward(&b.d_ffn, gated, gain(id), &f.down_rstd, Store::Replace, dx, d_gain);
                &b.d_gated
            }
            None => &b.d_ffn,
        };
        backend.glu_backward(self.gate(), &f.gate_up, d_gated, self.config.ffn, &mut b.d_gate_up);
        let gate_up = (&mut b.d_dim, &mut grads[ids.gate_up]);
        self.linear_backward(backend, ids.gate_up, &b.d_gate_up, &mut b.rows_gate_up, &f.ffn_in, gate_up);
        let (id, d_gain) = (ids.ffn_norm, &mut grads[ids.ffn_norm]);
        backend.rmsnorm_backward(&b.d_dim, &f.mid, gain(id), &f.ffn_rstd, Store::Add, &mut b.dx, d_gain);

        let o = (&mut b.d_inner, &mut grads[ids.o]);
        self.linear_backward(backend, ids.o, &b.dx, &mut b.rows_dim, &f.o_in, o);
        let d_attended = match ids.attn_sub_norm {
            Some(id) => {
                let (dx, d_gain) = (&mut b.d_attended, &mut grads[id]);
                backend.rmsnorm_backward(
                    &b.d_inner,
                    &f.attended,
                    gain(id),
                    &f.o_rstd,
                    Store::Replace,
                    dx,
                    d_gain,
                );
                &b.d_attended
            }
            None => &b.d_inner,
        };
        let results = (&f.attended, &f.lse);
        backend.attention_backward(&f.qkv, results, d_attended, &self.rope, shape, &mut b.d_qkv);
        let qkv = (&mut b.d_dim, &mut grads[ids.qkv]);
        self.linear_backward(backend, ids.qkv, &b.d_qkv, &mut b.rows_qkv, &f.attn_in, qkv);
        let (id, d_gain) = (ids.attn_norm, &mut grads[ids.attn_norm]);
        backend.rmsnorm_backward(&b.d_dim, x, gain(id), &f.attn_rstd, Store::Add, &mut b.dx, d_gain);
    }

    fn gate(&self) -> tritrain_backend::Gate {
        match self.config.gate {
            Gate::Silu => tritrain_backend::Gate::Silu,
            Gate::Relu2 => tritrain_backend::Gate::Relu2,
        }
    }
}
