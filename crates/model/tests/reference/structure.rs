//! Known values and symmetries of the architecture.

use tritrain_model::reference::{Arithmetic, attention, gated, norm, rope};
use tritrain_model::{Gate, ModelConfig, Precision};

use crate::case::*;

/// One block, one token, numbers chosen so that each norm divides by a whole number.
fn tiny() -> Case {
    let config = ModelConfig {
        dim: 2,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        ffn: 1,
        context: 1,
        gate: Gate::Relu2,
        sub_norm: false,
        qkv_bias: false,
        tied: false,
        precision: Precision::F32,
        lora: 0,
        rope_theta: 10_000.0,
        norm_eps: 0.0,
    };
    let mut case = Case::new(config, 3, 1, 1, &mut Random(0));
    (case.tokens, case.targets) = (vec![1], vec![0]);
    for (spec, values) in case.layout.specs.iter().zip(&mut case.params) {
        *values = match spec.name.as_str() {
            "embedding" => vec![9.0, 9.0, 1.0, 1.0, 9.0, 9.0],
            "layers.0.qkv" => vec![0.3, -0.7, 2.0, 5.0, -1.1, 0.4, 0.6, 0.9, 1.0, 0.0, 0.0, -2.0],
            "layers.0.o" => vec![2.0, -2.0, 4.0, 2.0],
            "layers.0.gate_up" => vec![1.0, 3.0, 5.0, -10.0],
            "layers.0.down" => vec![-0.4, 0.3],
            "head" => vec![0.0, 0.0, 5.0, 0.0, 0.0, 5.0],
            _ => vec![1.0, 1.0],
        };
    }
    case
}

#[test]
fn one_token_by_hand() {
    let case = tiny();
    let trace = case.trace(&case.params, Arithmetic::Exact);
    let block = &trace.blocks[0];
    close(&block.probabilities, &[1.0], 0.0);
    close(&block.attention, &[1.0, -2.0], 1e-15); // one token attends to itself: v
    close(&block.middle, &[7.0, 1.0], 1e-15); // (1, 1) + (6, 0), rms 5
    close(&block.gate_up, &[2.0, 5.0], 1e-15); // from (1.4, 0.2)
    close(&block.gated, &[20.0], 1e-15); // 2²·5
    close(&trace.x, &[-1.0, 7.0], 1e-14); // (7, 1) + 20·(-0.4, 0.3), rms 5
    close(&trace.logits, &[0.0, -1.0, 7.0], 1e-14);

    let (one, two) = ((-1.0f64).exp(), 7.0f64.exp());
    let all = 1.0 + one + two;
    let reference = case.reference();
    let (loss, gradients) =
        reference.loss_and_gradients(&case.params, &case.tokens, &case.targets, 1, 1, Arithmetic::Exact);
    close(&[loss], &[all.ln()], 1e-14);
    // Head: (p - target)·yᵀ with y = (-0.2, 1.4). Final gain: yᵀ·headᵀ·(p - target).
    let d = [1.0 / all - 1.0, one / all, two / all];
    let head: Vec<f64> = d.iter().flat_map(|d| [-0.2 * d, 1.4 * d]).collect();
    close(&gradients[case.layout.head], &head, 1e-14);
    close(&gradients[case.layout.norm], &[-0.2 * 5.0 * d[1], 1.4 * 5.0 * d[2]], 1e-14);
    // Through the last norm, r = 1/5: dx = (gain·dy - y·mean(gain·dy·y))/5, and down sees 20·dx.
    let dy = [5.0 * d[1], 5.0 * d[2]];
    let mean = (dy[0] * -0.2 + dy[1] * 1.4) / 2.0;
    let dx = [(dy[0] + 0.2 * mean) / 5.0, (dy[1] - 1.4 * mean) / 5.0];
    let down = case.layout.specs.iter().position(|spec| spec.name == "layers.0.down").unwrap();
    close(&gradients[down], &[20.0 * dx[0], 20.0 * dx[1]], 1e-13);
}

#[test]
fn uniform_logits_cost_ln_vocab() {
    for seed in 0..10 {
        let mut case = Case::random(seed);
        case.params[case.layout.norm].fill(0.0);
        for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
            let (params, tokens, targets) = (&case.params, &case.tokens, &case.targets);
            let loss = case.reference().loss(params, tokens, targets, case.batch, case.time, arithmetic);
            close(&[loss], &[(case.vocab as f64).ln()], 1e-14);
        }
    }
}

#[test]
fn norm_gate_and_attention_by_hand() {
    // Mean square 17, with eps 25; the second row is eps alone.
    close(&norm(&[3.0, 5.0, 0.0, 0.0], &[10.0, -1.0], 8.0), &[6.0, -1.0, 0.0, 0.0], 1e-15);

    let ln3 = 3.0f64.ln(); // sigmoid(ln 3) = 3/4
    close(&gated(&[ln3, -ln3, 2.0, 8.0], Gate::Silu, 2), &[1.5 * ln3, -2.0 * ln3], 1e-15);
    close(&gated(&[3.0, -3.0, 2.0, 8.0], Gate::Relu2, 2), &[18.0, 0.0], 0.0);

    // One head of width 2, two tokens; the scores of the second are 0 and ln 3 after the 1/sqrt(2).
    let config = ModelConfig { heads: 1, kv_heads: 1, dim: 2, ..ModelConfig::default() };
    let qkv = [5.0, 5.0, 0.0, 4.0, 1.0, 2.0, 2f64.sqrt(), 0.0, ln3, 0.0, 5.0, -2.0];
    let (p, out) = attention(&qkv, &config, 1, 2);
    close(&p, &[1.0, 0.0, 0.25, 0.75], 1e-15);
    close(&out, &[1.0, 2.0, 4.0, -1.0], 1e-15);
}

/// Both arithmetics round per token, so earlier logits keep every bit.
#[test]
fn later_tokens_and_other_sequences_do_not_change_earlier_logits() {
    for seed in 0..40 {
        let case = Case::random(seed);
        for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
            let logits = case.logits(&case.tokens, arithmetic);
            for changed in 0..case.tokens.len() {
                let mut tokens = case.tokens.clone();
                tokens[changed] = (tokens[changed] + 1) % case.vocab as u32;
                let other = case.logits(&tokens, arithmetic);
                for t in 0..tokens.len() {
                    let row = t * case.vocab..(t + 1) * case.vocab;
                    let same_sequence = t / case.time == changed / case.time;
                    if !same_sequence || t < changed {
                        assert_eq!(logits[row.clone()], other[row], "token {t} saw token {changed}");
                    } else if t == changed && arithmetic == Arithmetic::Exact {
                        assert_ne!(logits[row.clone()], other[row], "token {t} did not see itself");
                    }
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_equal_the_sequences_alone() {
    for seed in 0..40 {
        let case = Case::random(seed);
        let together = case.logits(&case.tokens, Arithmetic::TERNARY);
        let mut alone = Vec::new();
        for tokens in case.tokens.chunks(case.time) {
            alone.extend(case.reference().logits(&case.params, tokens, 1, case.time, Arithmetic::TERNARY));
        }
        assert_eq!(together, alone);
    }
}

/// Scores depend on the distance between positions, values do not turn, and the pairs are the halves.
#[test]
fn rope_is_relative() {
    let mut random = Random(7);
    let config = ModelConfig { dim: 12, heads: 2, kv_heads: 1, rope_theta: 100.0, ..ModelConfig::default() };
    let (time, hd, row) = (9, config.head_dim(), config.qkv_rows());
    let token = random.normals(row);
    let mut qkv = token.repeat(2 * time); // two sequences of the same token
    rope(&mut qkv, &config, time);
    let q = |t: usize, h: usize| &qkv[t * row + h * hd..][..hd];
    let k = |t: usize| &qkv[t * row + 2 * hd..][..hd];
    for h in 0..2 {
        for t in 0..time {
            for s in 0..time {
                let (later, earlier) = if t >= s { (t - s, 0) } else { (0, s - t) };
                let (found, expected) = (dot(q(t, h), k(s)), dot(q(later, h), k(earlier)));
                close(&[found], &[expected], 1e-13);
            }
        }
        assert!((dot(q(1, h), k(0)) - dot(q(0, h), k(0))).abs() > 1e-3);
    }
    assert_eq!(qkv[..row], token, "position 0 does not turn");
    assert_eq!(qkv[time * row..][..row], token, "each sequence starts at position 0");
    for t in 0..2 * time {
        assert_eq!(qkv[t * row + 3 * hd..][..hd], token[3 * hd..]);
    }
    // Position 2, pair i = 1 of a head of 6: entries 1 and 4 turn by 2·100^(-2/6).
    let (sin, cos) = (2.0 * 100f64.powf(-1.0 / 3.0)).sin_cos();
    close(&[q(2, 1)[1]], &[token[hd + 1] * cos - token[hd + 4] * sin], 1e-14);
    close(&[q(2, 1)[4]], &[token[hd + 1] * sin + token[hd + 4] * cos], 1e-14);
}

/// Grouped queries are plain attention whose key and value rows are repeated.
#[test]
fn grouped_heads_equal_repeated_heads() {
    let mut random = Random(11);
    let grouped = ModelConfig {
        dim: 24,
        heads: 6,
        kv_heads: 2,
        precision: Precision::F32,
        lora: 0,
        ffn: 5,
        layers: 2,
        ..ModelConfig::default()
    };
    let full = ModelConfig { kv_heads: 6, ..grouped.clone() };
    let case = Case::new(grouped, 7, 2, 4, &mut random);
    let mut twin = Case::new(full, 7, 2, 4, &mut random);
    twin.params.clone_from(&case.params);
    let (dim, hd) = (24, 4);
    for (spec, values) in case.layout.specs.iter().zip(&mut twin.params) {
        if spec.name.ends_with(".qkv") {
            let q = values[..6 * hd * dim].to_vec();
            let kv = values[6 * hd * dim..].chunks(hd * dim).flat_map(|head| head.repeat(3));
            *values = q.into_iter().chain(kv).collect();
        }
    }
    let expected = case.logits(&case.tokens, Arithmetic::Exact);
    assert_eq!(twin.logits(&case.tokens, Arithmetic::Exact), expected);
}

#[test]
fn tied_gradient_is_the_sum_of_embedding_and_head() {
    for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
        for seed in 0..40 {
            let tied = Case::random(seed);
            if !tied.config.tied {
                continue;
            }
            let config = ModelConfig { tied: false, ..tied.config.clone() };
            let mut untied = Case::new(config, tied.vocab, tied.batch, tied.time, &mut Random(seed));
            untied.params = tied.params.clone();
            untied.params.insert(untied.layout.head, tied.params[tied.layout.embedding].clone());
            (untied.tokens, untied.targets) = (tied.tokens.clone(), tied.targets.clone());
            let (together, mut apart) = (tied.gradients(arithmetic), untied.gradients(arithmetic));
            let head = apart.remove(untied.layout.head);
            for (e, h) in apart[untied.layout.embedding].iter_mut().zip(head) {
                *e += h;
            }
            for (t, a) in together.iter().zip(&apart) {
                close(t, a, 1e-13);
            }
        }
    }
}
