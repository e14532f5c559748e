//! The operations that a training step is made of, each on operands of its own.
//!
//! Products are those of the largest matrix of a block, gates and ups: `[2·ffn, dim]`. What an operation
//! must move at least is every operand read once and every result written once, as if nothing were kept
//! in a cache from before.

use tritrain_backend::{
    Apply, Backend, Cpu, Factored, Gate, Int8Rows, Memory, Products, Search, Shape, Store, TernaryMatrix,
};
use tritrain_kernels::{Floats, limit::Kind};
use tritrain_optim::{OptimConfig, Rates};
use tritrain_train::{Learner, Setup};
use tritrain_trit::rng::Stream;

use crate::{BenchError, ModelShape, shape::SEED};

/// An operation with its operands.
pub(crate) struct Work<'a> {
    /// Multiply-adds of one call, by kind.
    pub(crate) macs: Vec<(Kind, f64)>,
    /// Bytes that one call moves at least.
    pub(crate) bytes: usize,
    /// One call.
    pub(crate) call: Box<dyn FnMut() -> Result<(), BenchError> + Send + 'a>,
}

impl<'a> Work<'a> {
    fn new(macs: &[(Kind, usize)], bytes: usize, mut call: impl FnMut() + Send + 'a) -> Work<'a> {
        let macs = macs.iter().map(|(kind, count)| (*kind, *count as f64)).collect();
        let call = Box::new(move || {
            call();
            Ok(())
        });
        Work { macs, bytes, call }
    }
}

/// Makes the operands of an operation.
pub(crate) type Build = for<'a> fn(&'a Cpu, &'a ModelShape) -> Work<'a>;

/// Name of the operation that takes the f32 GEMM, whose instructions are not those of the tier.
pub(crate) const F32_PRODUCT: &str = "f32 product";

/// Every operation, in about the order of a step.
pub(crate) const OPERATIONS: [(&str, Build); 22] = [
    ("embedding", embed),
    ("RMSNorm and int8 rows", rmsnorm),
    ("ternary product", product),
    ("ternary product, one row", product_of_one_row),
    ("attention", attention),
    ("gate, RMSNorm and int8 rows", glu),
    ("head and loss", head_loss),
    ("head and loss, backward", head_loss_backward),
    ("int8 rows", int8_rows),
    ("ternary product, dX", input_gradient),
    ("ternary product, dW", weight_gradient),
    ("the same, backward", glu_backward),
    ("attention, backward", attention_backward),
    ("RMSNorm and int8 rows, backward", rmsnorm_backward),
    ("embedding, backward", embed_backward),
    ("sum of squares", sum_squares),
    ("factored update", factored),
    ("apply", apply),
    ("ternary codes", ternarize),
    ("nearest centroids", nearest),
    (F32_PRODUCT, f32_product),
    ("whole step, one block", step),
];

/// Sizes that operations have in common.
struct Sizes {
    tokens: usize,
    dim: usize,
    ffn: usize,
    /// Outputs of the matrix that is multiplied.
    outputs: usize,
    vocab: usize,
}

impl From<&ModelShape> for Sizes {
    fn from(of: &ModelShape) -> Sizes {
        let (dim, ffn) = (of.model.dim, of.model.ffn);
        Sizes { tokens: of.batch * of.model.context, dim, ffn, outputs: 2 * ffn, vocab: of.vocab }
    }
}

/// Normal numbers of a period that no size divides.
fn floats(len: usize, stream: u32) -> Floats {
    let random = Stream::new(1, stream, 0);
    let period: Vec<f32> = (0..4099).map(|i| random.normal(i)).collect();
    period.into_iter().cycle().take(len).collect()
}

/// An output head as small as a new one: larger logits would leave probabilities too small for normal
/// numbers, which take longer.
fn output_head(len: usize) -> Floats {
    floats(len, 1).iter().map(|weight| 0.02 * weight).collect()
}

fn rows(cpu: &Cpu, count: usize, cols: usize) -> Int8Rows {
    let mut rows = cpu.rows(count, cols);
    cpu.quantize_rows(&floats(count * cols, 2), &mut rows);
    rows
}

fn ternary(cpu: &Cpu, of: &Sizes) -> TernaryMatrix {
    let mut matrix = cpu.ternary(of.outputs, of.dim, true);
    cpu.ternarize(&floats(of.outputs * of.dim, 3), &mut matrix);
    matrix
}

/// Bytes of f32,
const fn f32s(len: usize) -> usize {
    4 * len
}

/// of int8 rows with their scales,
const fn int8s(rows: usize, cols: usize) -> usize {
    rows * cols + 4 * rows
}

/// and of packed codes.
const fn codes(len: usize) -> usize {
    len / 4
}

/// Rows of the embedding that some tokens need.
fn distinct(ids: &[u32]) -> usize {
    ids.iter().collect::<std::collections::BTreeSet<_>>().len()
}

fn embed<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, vocab, .. } = shape.into();
    let (ids, table, mut x) = (shape.tokens(tokens, 0), floats(vocab * dim, 0), cpu.floats(tokens * dim));
    Work::new(&[], f32s(tokens + (distinct(&ids) + tokens) * dim), move || {
        cpu.embed(&ids, &table, dim, &mut x)
    })
}

fn embed_backward<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, vocab, .. } = shape.into();
    let (ids, dx, mut d_table) = (shape.tokens(tokens, 0), floats(tokens * dim, 0), cpu.floats(vocab * dim));
    Work::new(&[], f32s(tokens + (tokens + 2 * distinct(&ids)) * dim), move || {
        cpu.embed_backward(&ids, &dx, dim, &mut d_table);
    })
}

fn rmsnorm<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, .. } = shape.into();
    let (x, gain, eps) = (floats(tokens * dim, 0), floats(dim, 1), shape.model.norm_eps);
    let (mut h, mut rstd) = (cpu.rows(tokens, dim), cpu.floats(tokens));
    Work::new(&[], f32s(tokens * dim + dim + tokens) + int8s(tokens, dim), move || {
        cpu.rmsnorm_quantize(&x, &gain, eps, &mut h, &mut rstd);
    })
}

fn rmsnorm_backward<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, .. } = shape.into();
    let (dh, x, gain) = (floats(tokens * dim, 0), floats(tokens * dim, 1), floats(dim, 2));
    let (rstd, mut dx, mut d_gain) =
        (std::iter::repeat_n(1.0, tokens).collect::<Floats>(), cpu.floats(tokens * dim), cpu.floats(dim));
    let (mut rows, bytes) = (cpu.rows(tokens, dim), f32s(4 * tokens * dim + tokens + 2 * dim));
    Work::new(&[], bytes + int8s(tokens, dim), move || {
        cpu.rmsnorm_backward(&dh, &x, &gain, &rstd, Store::Add, &mut dx, Some(&mut rows), &mut d_gain);
    })
}

fn product_of<'a>(cpu: &'a Cpu, shape: &'a ModelShape, tokens: usize) -> Work<'a> {
    let of @ Sizes { dim, outputs, .. } = &shape.into();
    let (x, w, mut y) = (rows(cpu, tokens, *dim), ternary(cpu, of), cpu.floats(tokens * outputs));
    let bytes = int8s(tokens, *dim) + codes(outputs * dim) + f32s(tokens * outputs);
    Work::new(&[(Kind::Int8, tokens * outputs * dim)], bytes, move || {
        cpu.ternary_matmul(&x, &w, None, &mut y);
    })
}

fn product<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    product_of(cpu, shape, Sizes::from(shape).tokens)
}

fn product_of_one_row<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    product_of(cpu, shape, 1)
}

fn input_gradient<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let of @ Sizes { tokens, dim, outputs, .. } = &shape.into();
    let (dy, w, mut dx) = (rows(cpu, *tokens, *outputs), ternary(cpu, of), cpu.floats(tokens * dim));
    let bytes = int8s(*tokens, *outputs) + codes(outputs * dim) + f32s(tokens * dim);
    Work::new(&[(Kind::Int8, tokens * outputs * dim)], bytes, move || {
        cpu.ternary_input_gradient(&dy, &w, &mut dx);
    })
}

fn weight_gradient<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, outputs, .. } = shape.into();
    let (dy, x, mut dw) = (floats(tokens * outputs, 0), rows(cpu, tokens, dim), cpu.floats(outputs * dim));
    let bytes = f32s(tokens * outputs + outputs * dim) + int8s(tokens, dim);
    Work::new(&[(Kind::Int8, tokens * outputs * dim)], bytes, move || {
        cpu.ternary_weight_gradient(&dy, &x, &mut dw);
    })
}

fn f32_product<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, outputs, .. } = shape.into();
    let (x, w, mut y) = (floats(tokens * dim, 0), floats(outputs * dim, 1), cpu.floats(tokens * outputs));
    let bytes = f32s(tokens * dim + outputs * dim + tokens * outputs);
    Work::new(&[(Kind::F32, tokens * outputs * dim)], bytes, move || {
        cpu.matmul(&x, &w, dim, None, &mut y);
    })
}

fn int8_rows<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, outputs, .. } = shape.into();
    let (x, mut to) = (floats(tokens * outputs, 0), cpu.rows(tokens, outputs));
    Work::new(&[], f32s(tokens * outputs) + int8s(tokens, outputs), move || cpu.quantize_rows(&x, &mut to))
}

/// Operands of attention: shape, table, q with k and v, result and logarithms of its sums.
type Attention = (Shape, Floats, Floats, Floats, Floats);

fn attention_operands(cpu: &Cpu, of: &ModelShape) -> Attention {
    let model = &of.model;
    let (heads, kv_heads, head_dim) = (model.heads, model.kv_heads, model.head_dim());
    let shape = Shape { batch: of.batch, time: model.context, heads, kv_heads, head_dim };
    let table = tritrain_backend::rope_table(model.context, head_dim, model.rope_theta);
    let qkv = floats(shape.rows() * shape.qkv_width(), 0);
    let (out, lse) = (cpu.floats(shape.rows() * shape.out_width()), cpu.floats(shape.rows() * heads));
    (shape, Floats::from(&table[..]), qkv, out, lse)
}

/// Multiply-adds of one product of causal attention: every query with itself and the keys before.
fn causal(of: &ModelShape) -> usize {
    of.batch * of.model.dim * (of.model.context * (of.model.context + 1) / 2)
}

fn attention<'a>(cpu: &'a Cpu, of: &'a ModelShape) -> Work<'a> {
    let (shape, table, qkv, mut out, mut lse) = attention_operands(cpu, of);
    let bytes = f32s(qkv.len() + table.len() + out.len() + lse.len());
    Work::new(&[(Kind::F32, 2 * causal(of))], bytes, move || {
        cpu.attention(&qkv, &table, shape, &mut out, &mut lse);
    })
}

fn attention_backward<'a>(cpu: &'a Cpu, of: &'a ModelShape) -> Work<'a> {
    let (shape, table, qkv, mut out, mut lse) = attention_operands(cpu, of);
    cpu.attention(&qkv, &table, shape, &mut out, &mut lse);
    let (d_out, mut d_qkv) = (floats(out.len(), 1), cpu.floats(qkv.len()));
    let bytes = f32s(2 * qkv.len() + table.len() + 2 * out.len() + lse.len());
    Work::new(&[(Kind::F32, 5 * causal(of))], bytes, move || {
        cpu.attention_backward(&qkv, (&out, &lse), &d_out, &table, shape, &mut d_qkv);
    })
}

fn glu<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, ffn, .. } = shape.into();
    let (gate_up, gain, eps) = (floats(2 * tokens * ffn, 0), floats(ffn, 1), shape.model.norm_eps);
    let (mut h, mut rstd) = (cpu.rows(tokens, ffn), cpu.floats(tokens));
    Work::new(&[], f32s(2 * tokens * ffn + ffn + tokens) + int8s(tokens, ffn), move || {
        cpu.glu_quantize(Gate::Silu, &gate_up, Some((&gain, eps)), &mut h, &mut rstd);
    })
}

fn glu_backward<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, ffn, .. } = shape.into();
    let (gate_up, dh, gain) = (floats(2 * tokens * ffn, 0), floats(tokens * ffn, 1), floats(ffn, 2));
    let (rstd, mut d_gain) = (std::iter::repeat_n(1.0, tokens).collect::<Floats>(), cpu.floats(ffn));
    let (mut d_gate_up, mut rows) = (cpu.floats(2 * tokens * ffn), cpu.rows(tokens, 2 * ffn));
    let bytes = f32s(5 * tokens * ffn + tokens + 2 * ffn) + int8s(tokens, 2 * ffn);
    Work::new(&[], bytes, move || {
        let norm = Some((&gain, &rstd, &mut d_gain));
        cpu.glu_backward_quantize(Gate::Silu, &gate_up, &dh, norm, &mut d_gate_up, &mut rows);
    })
}

fn head_loss<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, vocab, .. } = shape.into();
    let (hidden, head) = (floats(tokens * dim, 0), output_head(vocab * dim));
    let (targets, mut losses) = (shape.tokens(tokens, 1), cpu.floats(tokens));
    let bytes = f32s(tokens * dim + vocab * dim + 2 * tokens);
    Work::new(&[(Kind::Int16, tokens * dim * vocab)], bytes, move || {
        cpu.head_loss(&hidden, &head, &targets, (dim, Products::Int16), &mut losses);
    })
}

fn head_loss_backward<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, vocab, .. } = shape.into();
    let (hidden, head) = (floats(tokens * dim, 0), output_head(vocab * dim));
    let (targets, mut losses) = (shape.tokens(tokens, 1), cpu.floats(tokens));
    let (mut d_hidden, mut d_head) = (cpu.floats(tokens * dim), cpu.floats(vocab * dim));
    let bytes = f32s(2 * tokens * dim + 3 * vocab * dim + 2 * tokens);
    Work::new(&[(Kind::Int16, 3 * tokens * dim * vocab)], bytes, move || {
        let (with, mean, hidden) = ((dim, Products::Int16), 1.0 / tokens as f32, &hidden);
        cpu.head_loss_backward(
            hidden,
            &head,
            &targets,
            with,
            mean,
            &mut losses,
            &mut d_hidden,
            Some(&mut d_head),
        );
    })
}

fn sum_squares<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { dim, outputs, .. } = shape.into();
    let (x, mut sum) = (floats(outputs * dim, 0), cpu.floats(1));
    Work::new(&[], f32s(outputs * dim), move || cpu.add_sum_squares(&x, &mut sum, 0))
}

fn factored<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { dim, outputs, .. } = shape.into();
    let (mut g, mut momentum) = (floats(outputs * dim, 0), cpu.floats(outputs * dim));
    let (mut row, mut col) = (cpu.floats(outputs), cpu.floats(dim));
    let optim = OptimConfig::default();
    let with = Factored { beta2: optim.beta2, momentum: optim.momentum };
    Work::new(&[], f32s(4 * outputs * dim + 2 * (outputs + dim)), move || {
        cpu.factored(&mut g, &mut row, &mut col, &mut momentum, with);
    })
}

fn apply<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { dim, outputs, .. } = shape.into();
    let (mut w, u) = (floats(outputs * dim, 0), floats(outputs * dim, 1));
    // So slow that thousands of calls in one direction stay finite.
    let with = Apply { rate: 1e-6, decay: OptimConfig::default().weight_decay };
    Work::new(&[], f32s(3 * outputs * dim), move || cpu.apply(&mut w, &u, with))
}

fn ternarize<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let of @ Sizes { dim, outputs, .. } = &shape.into();
    let (latent, mut w) = (floats(outputs * dim, 0), ternary(cpu, of));
    // Packed twice: for the forward product and for the gradient of its input.
    Work::new(&[], f32s(outputs * dim) + 2 * codes(outputs * dim), move || cpu.ternarize(&latent, &mut w))
}

/// Centroids that rows are compared with.
const CENTROIDS: usize = 256;

/// An iteration of k-means without its sums. The codes of rows are there from the call before, as in a fit.
fn nearest<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, .. } = shape.into();
    let (x, centroids) = (floats(tokens * dim, 0), floats(CENTROIDS * dim, 4));
    let mut clusters = cpu.clusters(&x, dim);
    // Labels and two bounds are written.
    let bytes = int8s(tokens, dim) + f32s(CENTROIDS * dim + 3 * tokens);
    Work::new(&[(Kind::Int8, tokens * dim * CENTROIDS)], bytes, move || {
        cpu.assign(&x, &centroids, Search::Screen, &mut clusters);
    })
}

/// A step of the model. At least every weight and its momentum are
/// read and written.
fn step<'a>(cpu: &'a Cpu, shape: &'a ModelShape) -> Work<'a> {
    let Sizes { tokens, dim, ffn, vocab, .. } = shape.into();
    let model = &shape.model;
    let optim = OptimConfig::default();
    let setup = Setup { vocab, batch: shape.batch, passes: 1, recompute: false, seed: SEED };
    let mut learner = Learner::new(cpu, model, &optim, setup, &|id| shape.weights(id));
    let (inputs, targets) = (shape.tokens(tokens, 0), shape.tokens(tokens, 1));
    let rates = Rates { matrices: optim.rate, embedding: optim.embedding_rate, radius: optim.bound() };
    let block = (model.qkv_rows() + dim + 3 * ffn) * dim;
    let (matrices, head) = (model.layers * tokens * block, tokens * vocab * dim);
    let macs = [
        (Kind::Int8, 2 * matrices),
        (Kind::Int16, matrices + 3 * head),
        (Kind::F32, 7 * model.layers * causal(shape)),
    ];
    let mut step = 0;
    let call = Box::new(move || {
        step += 1;
        let outcome = learner.step(cpu, &inputs, &targets, rates);
        outcome.map(|_| ()).map_err(|what| BenchError::Step { step, what })
    });
    Work { call, ..Work::new(&macs, f32s(4 * shape.parameters()), || ()) }
}
