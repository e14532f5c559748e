//! How many bytes activations hold: a program of its own, without a test harness.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tritrain_backend::Cpu;
use tritrain_model::{Activations, Keep, ModelConfig, Precision};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that activations of `batch` × 8 tokens take, measured.
fn taken(backend: &Cpu, config: &ModelConfig, batch: usize, keep: Keep) -> usize {
    let region = Region::new(COUNTED);
    let activations = Activations::new(backend, config, batch, 8, keep);
    let change = region.change();
    drop(activations);
    change.bytes_allocated - change.bytes_deallocated
}

/// Bytes per token, as the sizes of the tensors give them.
fn expected(config: &ModelConfig, keep: Keep) -> usize {
    let (dim, ffn, inner) = (config.dim, config.ffn, config.heads * config.head_dim());
    let ternary = config.precision == Precision::Ternary;
    // Int8 and a scale, or f32.
    let input = |width: usize| if ternary { width + 4 } else { 4 * width };
    let (qkv, gate_up) = (config.qkv_rows(), 2 * ffn);
    let inputs = input(dim) + input(inner) + input(dim) + input(ffn);
    // Four reciprocal root mean squares, the log-sum-exps, and the stream between the halves.
    // Without a backward pass the widest two take turns.
    let wide = if keep == Keep::Nothing { qkv.max(gate_up) } else { qkv + gate_up };
    let block = inputs + 4 * (wide + inner + config.heads + 4 + dim);
    let (blocks, stream) = match keep {
        Keep::Everything => (config.layers, config.layers + 1),
        Keep::Inputs => (1, config.layers + 1),
        Keep::Nothing => (1, 2),
    };
    // Hidden states, their root mean square, loss, two tokens; in f32 the gated activation and its gradient.
    let once = 4 * (dim + 1 + 1 + 2 + if ternary { 0 } else { 2 * ffn });
    let rows = if ternary { dim + qkv + gate_up + 3 * 4 } else { 0 };
    let back = 4 * (2 * dim + 2 * inner + qkv + ffn + gate_up) + rows;
    blocks * block + stream * 4 * dim + once + if keep == Keep::Nothing { 0 } else { back }
}

fn main() {
    activations_take_what_their_shapes_say();
}

fn activations_take_what_their_shapes_say() {
    let backend = Cpu::new(1).unwrap();
    let grouped = ModelConfig { layers: 6, heads: 8, kv_heads: 2, ffn: 768, ..ModelConfig::default() };
    for config in
        [ModelConfig::default(), grouped.clone(), ModelConfig { precision: Precision::F32, ..grouped }]
    {
        let [everything, inputs, nothing] = [Keep::Everything, Keep::Inputs, Keep::Nothing].map(|keep| {
            // Between two sizes of batch nothing but the tensors differs.
            let per_token = (taken(&backend, &config, 5, keep) - taken(&backend, &config, 1, keep)) / (4 * 8);
            assert_eq!(per_token, expected(&config, keep), "{keep:?} of {config:?}");
            per_token
        });
        assert!(nothing < inputs && inputs < everything);
    }
}
