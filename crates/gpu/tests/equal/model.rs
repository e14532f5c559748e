//! Operations of the model.

use tritrain_backend::{Backend, Gate, NO_TARGET, Products, Shape, Store, rope_table};

use crate::{Case, Found, Random, compare, get, put, put_tokens};

/// RMSNorm of `rows` rows of `cols`, forward and backward, alone and with int8 rows.
#[derive(Debug)]
struct Norm {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Norm {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let (mut random, len) = (Random::new(self.seed), self.rows * self.cols);
        let (x, gain) = (put(b, &random.normal(len)), put(b, &random.normal(self.cols)));
        let dh = put(b, &random.normal(len));
        let (mut h, mut rstd) = (b.floats(len), b.floats(self.rows));
        b.rmsnorm(&x, &gain, 1e-5, &mut h, &mut rstd);
        let (mut dx, mut d_gain) = (put(b, &random.normal(len)), b.floats(self.cols));
        let mut rows = b.rows(self.rows, self.cols);
        b.rmsnorm_backward(&dh, &x, &gain, &rstd, Store::Add, &mut dx, None, &mut d_gain);
        let added = get(b, &dx);
        b.rmsnorm_backward(&dh, &x, &gain, &rstd, Store::Replace, &mut dx, Some(&mut rows), &mut d_gain);
        vec![
            Found::Close("h", get(b, &h)),
            Found::Close("rstd", get(b, &rstd)),
            Found::Close("dx added", added),
            Found::Close("dx", get(b, &dx)),
            Found::Close("d_gain", get(b, &d_gain)),
        ]
    }
}

/// Biases of rows, and their gradients.
#[derive(Debug)]
struct Bias {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Bias {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let mut random = Random::new(self.seed);
        let (bias, mut x) =
            (put(b, &random.normal(self.cols)), put(b, &random.normal(self.rows * self.cols)));
        b.add_bias(&bias, &mut x);
        let mut d_bias = b.floats(self.cols);
        b.bias_gradient(&x, &mut d_bias);
        vec![Found::Close("x", get(b, &x)), Found::Close("d_bias", get(b, &d_bias))]
    }
}

#[test]
fn biases_are_the_same() {
    compare(&Bias { rows: 1, cols: 1, seed: 1 });
    for seed in 0..40 {
        let mut random = Random::new(seed);
        compare(&Bias { rows: random.size(150), cols: random.size(600), seed });
    }
}

#[test]
fn norms_are_the_same() {
    compare(&Norm { rows: 1, cols: 1, seed: 1 });
    for seed in 0..130 {
        let mut random = Random::new(seed);
        compare(&Norm { rows: random.size(70), cols: random.size(600), seed });
    }
}

/// A ternary matrix and its products.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) seed: u64,
}

impl Case for Linear {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Linear { tokens, outputs, inputs, seed } = *self;
        let mut random = Random::new(seed);
        let (x, dy) = (put(b, &random.normal(tokens * inputs)), put(b, &random.normal(tokens * outputs)));
        let latent = put(b, &random.normal(outputs * inputs));
        let residual = put(b, &random.normal(tokens * outputs));
        let mut w = b.ternary(outputs, inputs, true);
        b.ternarize(&latent, &mut w);
        let (codes, scale) = b.download_ternary(&w);
        let (mut rows, mut dy_rows) = (b.rows(tokens, inputs), b.rows(tokens, outputs));
        b.quantize_rows(&x, &mut rows);
        b.quantize_rows(&dy, &mut dy_rows);
        let (mut y, mut dx) = (b.floats(tokens * outputs), b.floats(tokens * inputs));
        b.ternary_matmul(&rows, &w, None, &mut y);
        let alone = get(b, &y);
        b.ternary_matmul(&rows, &w, Some(&residual), &mut y);
        b.ternary_input_gradient(&dy_rows, &w, &mut dx);
        let mut dw = b.floats(outputs * inputs);
        b.ternary_weight_gradient(&dy, &rows, &mut dw);
        let mut back = b.floats(1);
        assert_eq!(b.dequantize_rows(&rows, &mut back), tokens);
        vec![
            Found::Exact("rows in f32", get(b, &back)),
            Found::Exact("codes", codes.iter().map(|code| f32::from(*code)).collect()),
            Found::Exact("scale", vec![scale]),
            Found::Exact("y", alone),
            Found::Close("y with residual", get(b, &y)),
            Found::Exact("dx", get(b, &dx)),
            Found::Close("dw", get(b, &dw)),
        ]
    }
}

#[test]
fn ternary_products_are_the_same() {
    compare(&Linear { tokens: 1, outputs: 1, inputs: 1, seed: 1 });
    compare(&Linear { tokens: 1030, outputs: 5, inputs: 9, seed: 2 });
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let (tokens, outputs, inputs) = (random.size(140), random.size(200), random.size(300));
        compare(&Linear { tokens, outputs, inputs, seed });
    }
}

#[test]
fn scales_are_the_same_where_a_plain_sum_would_lose_most() {
    /// A weight that hides others from a sum in f32.
    #[derive(Debug)]
    struct Hidden;
    impl Case for Hidden {
        fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
            let mut host = vec![0.0; 101 * 4096];
            host[0] = 1.677e7;
            host[4096..].iter_mut().step_by(4096).for_each(|weight| *weight = 0.5);
            let mut w = b.ternary(101, 4096, false);
            b.ternarize(&put(b, &host), &mut w);
            vec![Found::Exact("scale", vec![b.download_ternary(&w).1])]
        }
    }
    compare(&Hidden);
}

/// Rows of a table and their gradients, where tokens repeat.
#[derive(Debug)]
struct Embedding {
    tokens: usize,
    vocab: usize,
    dim: usize,
    seed: u64,
}

impl Case for Embedding {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Embedding { tokens, vocab, dim, seed } = *self;
        let mut random = Random::new(seed);
        let table = put(b, &random.normal(vocab * dim));
        let dx = put(b, &random.normal(tokens * dim));
        let mut d_table = put(b, &random.normal(vocab * dim));
        let ids = put_tokens(b, &random.below(tokens, vocab));
        let mut x = b.floats(tokens * dim);
        b.embed(&ids, &table, dim, &mut x);
        b.embed_backward(&ids, &dx, dim, &mut d_table);
        // Additions of floats in the same order.
        vec![Found::Exact("x", get(b, &x)), Found::Exact("d_table", get(b, &d_table))]
    }
}

#[test]
fn embeddings_are_the_same() {
    compare(&Embedding { tokens: 1, vocab: 1, dim: 1, seed: 1 });
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let (tokens, vocab, dim) = (random.size(300), random.size(100), random.size(300));
        compare(&Embedding { tokens, vocab, dim, seed });
    }
}

/// The gate, forward and backward, alone and with norm and int8 rows.
#[derive(Debug)]
struct Gated {
    gate: Gate,
    rows: usize,
    width: usize,
    seed: u64,
}

impl Case for Gated {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Gated { gate, rows, width, seed } = *self;
        let (mut random, len) = (Random::new(seed), rows * width);
        let gate_up = put(b, &random.normal(2 * len));
        let (da, gain) = (put(b, &random.normal(len)), put(b, &random.normal(width)));
        let (mut a, mut d_gate_up) = (b.floats(len), b.floats(2 * len));
        b.glu(gate, &gate_up, width, &mut a);
        b.glu_backward(gate, &gate_up, &da, width, &mut d_gate_up);
        let mut found = vec![Found::Close("a", get(b, &a)), Found::Close("d_gate_up", get(b, &d_gate_up))];
        // Rows in int8 are looked at through a product with ones and codes.
        let mut ones = b.ternary(1, width, false);
        b.ternarize(&put(b, &vec![1.0; width]), &mut ones);
        let (mut h, mut rstd, mut y) = (b.rows(rows, width), b.floats(rows), b.floats(rows));
        for norm in [None, Some((&gain, 1e-5))] {
            b.glu_quantize(gate, &gate_up, norm, &mut h, &mut rstd);
            b.ternary_matmul(&h, &ones, None, &mut y);
            found.push(Found::Close("int8 rows", get(b, &y)));
        }
        found.push(Found::Close("rstd", get(b, &rstd)));
        let (mut d_gain, mut d_rows) = (b.floats(width), b.rows(rows, 2 * width));
        let norm = Some((&gain, &rstd, &mut d_gain));
        b.glu_backward_quantize(gate, &gate_up, &da, norm, &mut d_gate_up, &mut d_rows);
        found.push(Found::Close("d_gate_up behind a norm", get(b, &d_gate_up)));
        found.push(Found::Close("d_gain", get(b, &d_gain)));
        b.glu_backward_quantize(gate, &gate_up, &da, None, &mut d_gate_up, &mut d_rows);
        found.push(Found::Close("d_gate_up with rows", get(b, &d_gate_up)));
        found
    }
}

#[test]
fn gates_are_the_same() {
    for gate in [Gate::Silu, Gate::Relu2] {
        // A norm of one number is its sign, and has no gradient to compare.
        compare(&Gated { gate, rows: 1, width: 2, seed: 1 });
        for seed in 0..60 {
            let mut random = Random::new(seed);
            compare(&Gated { gate, rows: random.size(70), width: 1 + random.size(300), seed });
        }
    }
}

/// Products of f32 matrices.
#[derive(Debug)]
pub(crate) struct Dense {
    pub(crate) tokens: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) seed: u64,
}

impl Case for Dense {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Dense { tokens, outputs, inputs, seed } = *self;
        let mut random = Random::new(seed);
        let (x, dy) = (put(b, &random.normal(tokens * inputs)), put(b, &random.normal(tokens * outputs)));
        let w = put(b, &random.normal(outputs * inputs));
        let mut y = b.floats(tokens * outputs);
        b.matmul(&x, &w, inputs, Some(&dy), &mut y);
        let residual = get(b, &y);
        b.matmul(&x, &w, inputs, None, &mut y);
        let (mut dx, mut dw) = (b.floats(tokens * inputs), b.floats(outputs * inputs));
        b.matmul_input_gradient(&dy, &w, inputs, &mut dx);
        b.matmul_weight_gradient(&dy, &x, inputs, &mut dw);
        vec![
            Found::Close("y with residual", residual),
            Found::Close("y", get(b, &y)),
            Found::Close("dx", get(b, &dx)),
            Found::Close("dw", get(b, &dw)),
        ]
    }
}

#[test]
fn f32_products_are_the_same() {
    compare(&Dense { tokens: 1, outputs: 1, inputs: 1, seed: 1 });
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let (tokens, outputs, inputs) = (random.size(100), random.size(100), random.size(100));
        compare(&Dense { tokens, outputs, inputs, seed });
    }
}

/// Attention, forward and backward.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) shape: Shape,
    pub(crate) seed: u64,
}

impl Case for Attention {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Attention { shape, seed } = *self;
        let mut random = Random::new(seed);
        let qkv = put(b, &random.normal(shape.rows() * shape.qkv_width()));
        let d_out = put(b, &random.normal(shape.rows() * shape.out_width()));
        let table = put(b, &rope_table(shape.time, shape.head_dim, 10_000.0));
        let mut out = b.floats(shape.rows() * shape.out_width());
        let mut lse = b.floats(shape.rows() * shape.heads);
        b.attention(&qkv, &table, shape, &mut out, &mut lse);
        let mut d_qkv = b.floats(shape.rows() * shape.qkv_width());
        b.attention_backward(&qkv, (&out, &lse), &d_out, &table, shape, &mut d_qkv);
        vec![
            Found::Close("out", get(b, &out)),
            Found::Close("lse", get(b, &lse)),
            Found::Close("d_qkv", get(b, &d_qkv)),
        ]
    }
}

#[test]
fn attention_is_the_same() {
    let one = Shape { batch: 1, time: 1, heads: 1, kv_heads: 1, head_dim: 2 };
    compare(&Attention { shape: one, seed: 1 });
    for seed in 0..48 {
        let mut random = Random::new(seed);
        let (batch, time, kv_heads) = (random.size(3), random.size(70), random.size(3));
        let heads = kv_heads * random.size(3);
        let head_dim = 2 * random.size([20, 32, 64, 80][seed as usize % 4]);
        let shape = Shape { batch, time, heads, kv_heads, head_dim };
        compare(&Attention { shape, seed });
    }
}

/// Relations within queries, keys and values.
#[derive(Debug)]
struct Related {
    shape: Shape,
    seed: u64,
}

impl Case for Related {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Related { shape, seed } = *self;
        let (mut random, len) = (Random::new(seed), shape.rows() * shape.qkv_width());
        let [qkv, of] = [(); 2].map(|()| put(b, &random.normal(len)));
        let (mut d_qkv, mut sums) = (b.floats(len), put(b, &[0.0, 1.0]));
        b.relate(&qkv, &of, shape, 3.0, &mut d_qkv, (&mut sums, 1));
        vec![Found::Close("d_qkv", get(b, &d_qkv)), Found::Close("sums", get(b, &sums))]
    }
}

#[test]
fn relations_are_the_same() {
    for seed in 0..24 {
        let mut random = Random::new(seed);
        let (batch, time, kv_heads) = (random.size(3), random.size(300), random.size(3));
        let (heads, head_dim) = (kv_heads * random.size(3), 2 * random.size(32));
        compare(&Related { shape: Shape { batch, time, heads, kv_heads, head_dim }, seed });
    }
}

/// Prompts of two sequences into caches, and tokens after them, together.
#[derive(Debug)]
struct Decoding {
    prompt: usize,
    tokens: usize,
    shape: Shape,
    seed: u64,
}

impl Case for Decoding {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Decoding { prompt, tokens, shape, seed } = *self;
        let mut random = Random::new(seed);
        let table = put(b, &rope_table(prompt + 1 + tokens, shape.head_dim, 10_000.0));
        let mut caches = [b.cache(), b.cache()];
        let mut found = Vec::new();
        for _ in 0..2 {
            for (longer, cache) in caches.iter_mut().enumerate() {
                b.forget(cache);
                let shape = Shape { batch: 1, time: prompt + longer, ..shape };
                let qkv = put(b, &random.normal(shape.rows() * shape.qkv_width()));
                b.remember(&qkv, &table, shape, cache);
            }
            for _ in 0..tokens {
                let qkv = put(b, &random.normal(2 * shape.qkv_width()));
                let mut out = b.floats(2 * shape.out_width());
                b.attention_decode(&qkv, &table, shape, &mut caches, &mut out);
                found.push(Found::Close("out", get(b, &out)));
            }
        }
        found
    }
}

#[test]
fn decoding_is_the_same() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let (prompt, tokens, kv_heads) = (random.size(130), random.size(5), random.size(3));
        let (heads, head_dim) = (kv_heads * random.size(3), 2 * random.size(40));
        let shape = Shape { batch: 2, time: 1, heads, kv_heads, head_dim };
        compare(&Decoding { prompt, tokens, shape, seed });
    }
}

/// The output head and its cross entropy.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) tokens: usize,
    pub(crate) vocab: usize,
    pub(crate) dim: usize,
    pub(crate) products: Products,
    pub(crate) seed: u64,
}

impl Case for Head {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Head { tokens, vocab, dim, products, seed } = *self;
        let mut random = Random::new(seed);
        let hidden = put(b, &random.normal(tokens * dim));
        let weights: Vec<f32> = random.normal(vocab * dim).iter().map(|x| 0.2 * x).collect();
        let head = put(b, &weights);
        let mut targets = random.below(tokens, vocab);
        // Those of every fourth case are no targets here and there.
        if seed % 4 == 2 {
            targets.iter_mut().step_by(3).for_each(|target| *target = NO_TARGET);
        }
        let targets = put_tokens(b, &targets);
        let mut losses = b.floats(tokens);
        b.head_loss(&hidden, &head, &targets, (dim, products), &mut losses);
        let forward = get(b, &losses);
        let (mut d_hidden, mut d_head) = (b.floats(tokens * dim), put(b, &random.normal(vocab * dim)));
        b.head_loss_backward(
            &hidden,
            &head,
            &targets,
            (dim, products),
            1.0 / tokens as f32,
            &mut losses,
            &mut d_hidden,
            Some(&mut d_head),
        );
        let mut logits = b.floats(tokens * vocab);
        b.head_logits(&hidden, &head, dim, &mut logits);
        let plain = get(b, &logits);
        let mut rows = b.rows(vocab, dim);
        b.quantize_rows(&head, &mut rows);
        b.head_logits_int8(&hidden, &rows, &mut logits);
        vec![
            Found::Close("losses", forward),
            Found::Close("losses with gradients", get(b, &losses)),
            Found::Close("d_hidden", get(b, &d_hidden)),
            Found::Close("d_head", get(b, &d_head)),
            Found::Close("logits", plain),
            Found::Exact("logits of int8 rows", get(b, &logits)),
        ]
    }
}

#[test]
fn heads_are_the_same() {
    for products in [Products::F32, Products::Int16] {
        // Two words at least: the loss of one is zero.
        compare(&Head { tokens: 1, vocab: 2, dim: 1, products, seed: 1 });
        compare(&Head { tokens: 530, vocab: 40, dim: 20, products, seed: 2 });
        compare(&Head { tokens: 9, vocab: 1100, dim: 520, products, seed: 3 });
        for seed in 0..30 {
            let mut random = Random::new(seed);
            let (tokens, vocab, dim) = (random.size(60), 1 + random.size(200), random.size(100));
            compare(&Head { tokens, vocab, dim, products, seed });
        }
    }
}

/// Sums, moves and other work on whole buffers.
#[derive(Debug)]
struct Buffers {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Buffers {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let (mut random, len) = (Random::new(self.seed), self.rows * self.cols);
        let (x, y) = (put(b, &random.normal(len)), put(b, &random.normal(len)));
        let mut out = put(b, &[1.0, 2.0, 3.0]);
        b.add_sum(&x, &mut out, 0);
        b.add_sum_squares(&x, &mut out, 1);
        b.add_dot(&x, &y, &mut out, 2);
        let mut squares = b.floats(self.rows);
        b.square_sums(&x, &mut squares);
        let largest = b.max_abs(&x);
        let mut z = b.floats(len);
        b.copy(&x, &mut z);
        b.scale(&mut z, 0.3);
        let scaled = get(b, &z);
        b.resize(&mut z, len + 5);
        let larger = get(b, &z)[..len].to_vec();
        b.resize(&mut z, 1);
        b.clear(&mut z);
        vec![
            Found::Close("sums", get(b, &out)[1..].to_vec()),
            // What cancels has no size of its own.
            Found::Close("sum", vec![get(b, &out)[0] + 10.0 * (len as f32).sqrt()]),
            Found::Close("sums of rows", get(b, &squares)),
            Found::Exact("largest", vec![largest]),
            Found::Exact("scaled", scaled),
            Found::Exact("resized", larger),
            Found::Exact("cleared", get(b, &z)),
        ]
    }
}

#[test]
fn work_on_whole_buffers_is_the_same() {
    compare(&Buffers { rows: 1, cols: 1, seed: 1 });
    compare(&Buffers { rows: 3, cols: 5000, seed: 2 });
    for seed in 0..80 {
        let mut random = Random::new(seed);
        compare(&Buffers { rows: random.size(100), cols: random.size(100), seed });
    }
}

#[test]
fn numbers_that_are_none_go_where_the_processor_lets_them_go() {
    #[derive(Debug)]
    struct Broken;
    impl Case for Broken {
        fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
            let mut host = vec![1.0; 3 * 40];
            (host[5], host[50], host[100]) = (f32::NAN, f32::INFINITY, 2.0);
            let x = put(b, &host);
            let (mut w, mut rows) = (b.ternary(3, 40, true), b.rows(3, 40));
            b.ternarize(&x, &mut w);
            let (codes, scale) = b.download_ternary(&w);
            b.quantize_rows(&x, &mut rows);
            let mut ones = b.ternary(2, 40, false);
            b.ternarize(&put(b, &[1.0; 80]), &mut ones);
            let mut y = b.floats(6);
            b.ternary_matmul(&rows, &ones, None, &mut y);
            let is_nan = get(b, &y).iter().map(|y| f32::from(y.is_nan())).collect();
            vec![
                Found::Exact("codes", codes.iter().map(|code| f32::from(*code)).collect()),
                Found::Exact("scale is no number", vec![f32::from(scale.is_nan())]),
                Found::Exact("rows that are none", is_nan),
                Found::Exact("largest is none", vec![f32::from(b.max_abs(&x).is_nan())]),
            ]
        }
    }
    compare(&Broken);
}
