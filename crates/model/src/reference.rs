//! The whole decoder in plain f64 loops, forward and hand-written backward.
//!
//! This is the independent twin that the fast path is compared with, tensor by tensor. It shares the
//! configuration and the layout with it and no arithmetic. Everything is row-major, one loop after
//! the other, on one thread; nothing is fused, skipped or reused.
//!
//! Shapes: `n = batch·time` tokens, sequences one after the other. A linear layer has weights
//! `[rows, cols]` (outputs, inputs). Each backward function stands right under its forward function,
//! takes the gradient of the output (`d…`), returns the gradient of the input, and *adds* gradients of
//! parameters into the buffer it is given.

use tritrain_backend::NO_TARGET;

use crate::layout::BlockIds;
use crate::{Gate, Layout, ModelConfig, counted};

/// How the linear layers inside the blocks compute. Norms, attention, embedding and head are plain f64
/// either way. Chosen by the caller, whatever `config.precision` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Weights and inputs as they are; gradients are the exact derivatives.
    Exact,
    /// Weights `s·q` with codes in {-1, 0, 1}; every rounding passes its gradient straight through.
    Ternary {
        /// Round the inputs of each layer to int8 per token.
        round_inputs: bool,
        /// Round the output's gradient in backward: to int8 per token for `dX`, and, times the input's
        /// scale, to int16 per output column for `dW`.
        round_gradients: bool,
    },
}

impl Arithmetic {
    /// All roundings: what the fast path computes for a ternary model.
    pub const TERNARY: Arithmetic = Arithmetic::Ternary { round_inputs: true, round_gradients: true };
}

/// Numbers with one scale per row: entry (r, c) stands for `scales[r]·codes[r, c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// `[rows, cols]`; the numbers themselves where nothing was rounded.
    pub codes: Vec<f64>,
    /// `[rows]`; ones where nothing was rounded.
    pub scales: Vec<f64>,
}

impl Rows {
    /// `x` `[rows, cols]` unrounded.
    pub fn plain(x: &[f64], rows: usize) -> Rows {
        Rows { codes: x.to_vec(), scales: vec![1.0; rows] }
    }

    /// `x` `[rows, cols]` rounded, half to even, to integers in `[-largest, largest]` with the scale
    /// `max|row| / largest`. A row of zeros has scale 0.
    pub fn rounded(x: &[f64], rows: usize, largest: f64) -> Rows {
        let cols = x.len() / rows;
        let (mut codes, mut scales) = (vec![0.0; x.len()], vec![0.0; rows]);
        for r in 0..rows {
            let row = &x[r * cols..][..cols];
            let scale = row.iter().fold(0.0, |max: f64, v| max.max(v.abs())) / largest;
            scales[r] = scale;
            for c in 0..cols {
                codes[r * cols + c] = if scale == 0.0 { 0.0 } else { (row[c] / scale).round_ties_even() };
            }
        }
        Rows { codes, scales }
    }

    /// The inputs `x` `[n, cols]` of a linear layer.
    pub fn input(x: &[f64], n: usize, arithmetic: Arithmetic) -> Rows {
        match arithmetic {
            Arithmetic::Ternary { round_inputs: true, .. } => Rows::rounded(x, n, 127.0),
            _ => Rows::plain(x, n),
        }
    }
}

/// A matrix as a linear layer multiplies it: entry (r, c) stands for `scale·codes[r, c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// `[rows, cols]`: -1, 0, 1, or the weights themselves in exact arithmetic.
    pub codes: Vec<f64>,
    /// One number per matrix; 1 in exact arithmetic.
    pub scale: f64,
}

impl Matrix {
    /// From the latent weights `w` `[rows, cols]`: `scale = f16(mean|w|)`, `code = sign(w)` where
    /// `|w| > scale/2`, else 0.
    pub fn new(w: &[f64], arithmetic: Arithmetic) -> Matrix {
        if arithmetic == Arithmetic::Exact {
            return Matrix { codes: w.to_vec(), scale: 1.0 };
        }
        let mean = w.iter().map(|v| v.abs()).sum::<f64>() / w.len() as f64;
        let scale = half::f16::from_f64(mean).to_f64();
        let code = |&v: &f64| if v.abs() > scale / 2.0 { v.signum() } else { 0.0 };
        Matrix { codes: w.iter().map(code).collect(), scale }
    }
}

/// `y = x·Wᵀ`: x `[n, cols]`, W `[rows, cols]`, y `[n, rows]`.
pub fn linear(x: &Rows, w: &Matrix) -> Vec<f64> {
    let n = x.scales.len();
    let cols = x.codes.len() / n;
    let rows = w.codes.len() / cols;
    let mut y = vec![0.0; n * rows];
    for t in 0..n {
        for r in 0..rows {
            let mut sum = 0.0;
            for c in 0..cols {
                sum += x.codes[t * cols + c] * w.codes[r * cols + c];
            }
            y[t * rows + r] = w.scale * x.scales[t] * sum;
        }
    }
    y
}

/// `dx = dy·W` `[n, cols]` and `dw += dyᵀ·x` `[rows, cols]` from dy `[n, rows]`, straight through the
/// roundings of `x` and `w`.
pub fn linear_backward(dy: &[f64], x: &Rows, w: &Matrix, arithmetic: Arithmetic, dw: &mut [f64]) -> Vec<f64> {
    let n = x.scales.len();
    let cols = x.codes.len() / n;
    let rows = w.codes.len() / cols;

    // dY times the input's scale, turned so that a row is one output over all tokens: [rows, n].
    let mut scaled = vec![0.0; rows * n];
    for t in 0..n {
        for r in 0..rows {
            scaled[r * n + t] = dy[t * rows + r] * x.scales[t];
        }
    }
    let round = matches!(arithmetic, Arithmetic::Ternary { round_gradients: true, .. });
    let (dy, scaled) = if round {
        (Rows::rounded(dy, n, 127.0), Rows::rounded(&scaled, rows, 32767.0))
    } else {
        (Rows::plain(dy, n), Rows::plain(&scaled, rows))
    };

    let mut dx = vec![0.0; n * cols];
    for t in 0..n {
        for c in 0..cols {
            let mut sum = 0.0;
            for r in 0..rows {
                sum += dy.codes[t * rows + r] * w.codes[r * cols + c];
            }
            dx[t * cols + c] = w.scale * dy.scales[t] * sum;
        }
    }
    for r in 0..rows {
        for c in 0..cols {
            let mut sum = 0.0;
            for t in 0..n {
                sum += scaled.codes[r * n + t] * x.codes[t * cols + c];
            }
            dw[r * cols + c] += scaled.scales[r] * sum;
        }
    }
    dx
}

/// RMSNorm: `y_j = gain_j·x_j / sqrt(mean(x²) + eps)` per row; x, y `[n, width]`, gain `[width]`.
pub fn norm(x: &[f64], gain: &[f64], eps: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(gain.len()) {
        let r = inverse_rms(row, eps);
        for j in 0..gain.len() {
            y.push(gain[j] * row[j] * r);
        }
    }
    y
}

/// With `r = 1/sqrt(mean(x²) + eps)` and `dr/dx_j = -r³·x_j/width`:
/// `dgain_j += dy_j·x_j·r` and `dx_j = r·gain_j·dy_j - r³·x_j·mean_i(gain_i·dy_i·x_i)`.
pub fn norm_backward(dy: &[f64], x: &[f64], gain: &[f64], eps: f64, dgain: &mut [f64]) -> Vec<f64> {
    let width = gain.len();
    let mut dx = Vec::with_capacity(x.len());
    for (row, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let r = inverse_rms(row, eps);
        let mut mean = 0.0;
        for j in 0..width {
            mean += gain[j] * dy[j] * row[j] / width as f64;
        }
        for j in 0..width {
            dgain[j] += dy[j] * row[j] * r;
            dx.push(r * gain[j] * dy[j] - r * r * r * row[j] * mean);
        }
    }
    dx
}

fn inverse_rms(row: &[f64], eps: f64) -> f64 {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    1.0 / (mean + eps).sqrt()
}

/// Rotary positions, in place, on the q and k heads of qkv `[n, (heads + 2·kv_heads)·hd]`: entries i and
/// i + hd/2 of a head turn by `position·theta^(-2i/hd)`; positions count from 0 in each sequence.
pub fn rope(qkv: &mut [f64], config: &ModelConfig, time: usize) {
    rotate(qkv, config, time, 1.0);
}

/// The rotation is orthogonal, so its derivative turns back by the same angle.
pub fn rope_backward(dqkv: &mut [f64], config: &ModelConfig, time: usize) {
    rotate(dqkv, config, time, -1.0);
}

fn rotate(qkv: &mut [f64], config: &ModelConfig, time: usize, direction: f64) {
    let hd = config.head_dim();
    let theta = f64::from(config.rope_theta);
    for (t, row) in qkv.chunks_mut(config.qkv_rows()).enumerate() {
        let position = (t % time) as f64;
        for head in row.chunks_mut(hd).take(config.heads + config.kv_heads) {
            for i in 0..hd / 2 {
                let angle = direction * position * theta.powf(-2.0 * i as f64 / hd as f64);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (head[i], head[i + hd / 2]);
                head[i] = a * cos - b * sin;
                head[i + hd / 2] = a * sin + b * cos;
            }
        }
    }
}

/// Where the query of (token, head) and the key and value it uses start inside qkv.
struct Heads {
    hd: usize,
    row: usize,
    group: usize,
    k: usize,
    v: usize,
}

impl Heads {
    fn new(config: &ModelConfig) -> Heads {
        let hd = config.head_dim();
        let k = config.heads * hd;
        Heads {
            hd,
            row: config.qkv_rows(),
            group: config.heads / config.kv_heads,
            k,
            v: k + config.kv_heads * hd,
        }
    }

    fn q(&self, token: usize, head: usize) -> usize {
        token * self.row + head * self.hd
    }

    fn k(&self, token: usize, head: usize) -> usize {
        token * self.row + self.k + head / self.group * self.hd
    }

    fn v(&self, token: usize, head: usize) -> usize {
        token * self.row + self.v + head / self.group * self.hd
    }
}

/// Causal softmax attention: qkv `[n, (heads + 2·kv_heads)·hd]` after rope; returns the probabilities
/// `[batch, heads, time, time]` (zero above the diagonal) and the outputs `[n, heads·hd]`.
pub fn attention(qkv: &[f64], config: &ModelConfig, batch: usize, time: usize) -> (Vec<f64>, Vec<f64>) {
    let (heads, at) = (config.heads, Heads::new(config));
    let scale = 1.0 / (at.hd as f64).sqrt();
    let mut probabilities = vec![0.0; batch * heads * time * time];
    let mut out = vec![0.0; batch * time * heads * at.hd];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..time {
                let token = b * time + t;
                let p = &mut probabilities[((b * heads + h) * time + t) * time..][..=t];
                for s in 0..=t {
                    for i in 0..at.hd {
                        p[s] += scale * qkv[at.q(token, h) + i] * qkv[at.k(b * time + s, h) + i];
                    }
                }
                softmax(p);
                for s in 0..=t {
                    for i in 0..at.hd {
                        out[(token * heads + h) * at.hd + i] += p[s] * qkv[at.v(b * time + s, h) + i];
                    }
                }
            }
        }
    }
    (probabilities, out)
}

/// dqkv `[n, (heads + 2·kv_heads)·hd]` from dout `[n, heads·hd]`. With scores z and `dp_s = dout·v_s`:
/// `dv_s += p_s·dout`, `dz_s = p_s·(dp_s - Σ p·dp)`, `dq += dz_s·scale·k_s`, `dk_s += dz_s·scale·q`.
pub fn attention_backward(
    dout: &[f64],
    qkv: &[f64],
    probabilities: &[f64],
    config: &ModelConfig,
    batch: usize,
    time: usize,
) -> Vec<f64> {
    let (heads, at) = (config.heads, Heads::new(config));
    let scale = 1.0 / (at.hd as f64).sqrt();
    let mut dqkv = vec![0.0; qkv.len()];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..time {
                let token = b * time + t;
                let p = &probabilities[((b * heads + h) * time + t) * time..][..=t];
                let dout = &dout[(token * heads + h) * at.hd..][..at.hd];
                let mut dp = vec![0.0; t + 1];
                for s in 0..=t {
                    let v = at.v(b * time + s, h);
                    for i in 0..at.hd {
                        dp[s] += dout[i] * qkv[v + i];
                        dqkv[v + i] += p[s] * dout[i];
                    }
                }
                let mut mean = 0.0;
                for s in 0..=t {
                    mean += p[s] * dp[s];
                }
                for s in 0..=t {
                    let dz = p[s] * (dp[s] - mean);
                    let (q, k) = (at.q(token, h), at.k(b * time + s, h));
                    for i in 0..at.hd {
                        dqkv[q + i] += dz * scale * qkv[k + i];
                        dqkv[k + i] += dz * scale * qkv[q + i];
                    }
                }
            }
        }
    }
    dqkv
}

fn softmax(z: &mut [f64]) {
    let max = z.iter().fold(f64::NEG_INFINITY, |max, &v| max.max(v));
    let sum: f64 = z.iter().map(|v| (v - max).exp()).sum();
    for v in z {
        *v = (*v - max).exp() / sum;
    }
}

fn sigmoid(g: f64) -> f64 {
    1.0 / (1.0 + (-g).exp())
}

/// `act(gate)·up`: gate_up `[n, 2·ffn]` (gate, then up), result `[n, ffn]`.
pub fn gated(gate_up: &[f64], gate: Gate, ffn: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks(2 * ffn) {
        for j in 0..ffn {
            let (g, up) = (row[j], row[ffn + j]);
            let act = match gate {
                Gate::Silu => g * sigmoid(g),
                Gate::Relu2 => g.max(0.0) * g.max(0.0),
            };
            out.push(act * up);
        }
    }
    out
}

/// dgate_up `[n, 2·ffn]` from dout `[n, ffn]`. `silu' = σ·(1 + g·(1 - σ))`, `(max(g, 0)²)' = 2·max(g, 0)`.
pub fn gated_backward(dout: &[f64], gate_up: &[f64], gate: Gate, ffn: usize) -> Vec<f64> {
    let mut dgate_up = vec![0.0; gate_up.len()];
    for (t, row) in gate_up.chunks(2 * ffn).enumerate() {
        for j in 0..ffn {
            let (g, up) = (row[j], row[ffn + j]);
            let (act, slope) = match gate {
                Gate::Silu => (g * sigmoid(g), sigmoid(g) * (1.0 + g * (1.0 - sigmoid(g)))),
                Gate::Relu2 => (g.max(0.0) * g.max(0.0), 2.0 * g.max(0.0)),
            };
            dgate_up[t * 2 * ffn + j] = dout[t * ffn + j] * up * slope;
            dgate_up[t * 2 * ffn + ffn + j] = dout[t * ffn + j] * act;
        }
    }
    dgate_up
}

/// Mean over targets of `-ln softmax(logits)[target]`, in nats: logits `[n, vocab]`, targets `[n]`, of which
/// [`NO_TARGET`] are left out; 0 without any.
pub fn cross_entropy(logits: &[f64], targets: &[u32]) -> f64 {
    let n = counted(targets);
    let mut loss = 0.0;
    for (row, &target) in logits.chunks(logits.len() / targets.len()).zip(targets) {
        if target == NO_TARGET {
            continue;
        }
        let max = row.iter().fold(f64::NEG_INFINITY, |max, &v| max.max(v));
        let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
        loss += (sum.ln() + max - row[target as usize]) / n as f64;
    }
    loss
}

/// dlogits `[n, vocab]`: `(softmax(logits) - [j = target]) / targets`, 0 without a target.
pub fn cross_entropy_backward(logits: &[f64], targets: &[u32]) -> Vec<f64> {
    let n = counted(targets);
    let mut dlogits = logits.to_vec();
    for (row, &target) in dlogits.chunks_mut(logits.len() / targets.len()).zip(targets) {
        if target == NO_TARGET {
            row.fill(0.0);
            continue;
        }
        softmax(row);
        row[target as usize] -= 1.0;
        for v in row {
            *v /= n as f64;
        }
    }
    dlogits
}

/// What one block computed on the way forward.
#[derive(Clone, Debug)]
pub struct BlockTrace {
    /// Residual stream entering the block `[n, dim]`.
    pub x: Vec<f64>,
    /// Input of `qkv` `[n, dim]`.
    pub qkv_in: Rows,
    /// Queries, keys and values after rope `[n, (heads + 2·kv_heads)·hd]`.
    pub qkv: Vec<f64>,
    /// Attention probabilities `[batch, heads, time, time]`.
    pub probabilities: Vec<f64>,
    /// Attention outputs `[n, heads·hd]`.
    pub attention: Vec<f64>,
    /// Input of `o` `[n, heads·hd]`.
    pub o_in: Rows,
    /// Residual stream between attention and feed-forward `[n, dim]`.
    pub middle: Vec<f64>,
    /// Input of `gate_up` `[n, dim]`.
    pub gate_up_in: Rows,
    /// Gate and up projections `[n, 2·ffn]`.
    pub gate_up: Vec<f64>,
    /// `act(gate)·up` `[n, ffn]`.
    pub gated: Vec<f64>,
    /// Input of `down` `[n, ffn]`.
    pub down_in: Rows,
}

/// What the model computed on the way forward.
#[derive(Clone, Debug)]
pub struct Trace {
    /// One per block.
    pub blocks: Vec<BlockTrace>,
    /// Residual stream after the last block `[n, dim]`.
    pub x: Vec<f64>,
    /// Input of the head `[n, dim]`.
    pub y: Vec<f64>,
    /// `[n, vocab]`.
    pub logits: Vec<f64>,
}

/// The model. `params` and gradients are in the order of [`Layout::specs`].
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// What the model is made of.
    pub config: &'a ModelConfig,
    /// `Layout::new(config, vocab)`.
    pub layout: &'a Layout,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Share of the codes in what ternary matrices multiply by, the rest being the weights as they are.
    pub rounding: f64,
}

impl Reference<'_> {
    /// Logits `[batch·time, vocab]` of tokens `[batch·time]`.
    pub fn logits(
        &self,
        params: &[Vec<f64>],
        tokens: &[u32],
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> Vec<f64> {
        self.forward(params, tokens, batch, time, arithmetic).logits
    }

    /// Mean cross entropy of `targets` `[batch·time]` in nats, as [`cross_entropy`].
    pub fn loss(
        &self,
        params: &[Vec<f64>],
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> f64 {
        cross_entropy(&self.logits(params, tokens, batch, time, arithmetic), targets)
    }

    /// The loss and one gradient per parameter tensor. A tied head adds into the embedding's gradient.
    pub fn loss_and_gradients(
        &self,
        params: &[Vec<f64>],
        tokens: &[u32],
        targets: &[u32],
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> (f64, Vec<Vec<f64>>) {
        let trace = self.forward(params, tokens, batch, time, arithmetic);
        let gradients = self.backward(params, tokens, targets, &trace, batch, time, arithmetic);
        (cross_entropy(&trace.logits, targets), gradients)
    }

    /// tokens `[batch·time]` to logits, keeping what backward needs.
    ///
    /// # Panics
    /// When the parameters do not have the layout's sizes or there are not `batch·time` tokens.
    pub fn forward(
        &self,
        params: &[Vec<f64>],
        tokens: &[u32],
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> Trace {
        assert_eq!(tokens.len(), batch * time);
        assert!(params.iter().map(Vec::len).eq(self.layout.specs.iter().map(|spec| spec.len())));
        assert_eq!(params[self.layout.head].len(), self.vocab * self.config.dim);
        let (layout, dim, eps) = (self.layout, self.config.dim, f64::from(self.config.norm_eps));

        let mut x = Vec::new();
        for &token in tokens {
            x.extend_from_slice(&params[layout.embedding][token as usize * dim..][..dim]);
        }
        let mut blocks = Vec::new();
        for ids in &layout.blocks {
            let (trace, out) = self.block(ids, params, x, batch, time, arithmetic);
            blocks.push(trace);
            x = out;
        }
        let y = norm(&x, &params[layout.norm], eps);
        let head = Matrix::new(&params[layout.head], Arithmetic::Exact);
        let logits = linear(&Rows::plain(&y, tokens.len()), &head);
        Trace { blocks, x, y, logits }
    }

    /// The gradients of the mean cross entropy of `targets` from the trace of [`Reference::forward`].
    pub fn backward(
        &self,
        params: &[Vec<f64>],
        tokens: &[u32],
        targets: &[u32],
        trace: &Trace,
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> Vec<Vec<f64>> {
        let (layout, dim, eps) = (self.layout, self.config.dim, f64::from(self.config.norm_eps));
        let mut gradients: Vec<Vec<f64>> = params.iter().map(|p| vec![0.0; p.len()]).collect();

        let dlogits = cross_entropy_backward(&trace.logits, targets);
        let head = Matrix::new(&params[layout.head], Arithmetic::Exact);
        let y = Rows::plain(&trace.y, tokens.len());
        let dy = linear_backward(&dlogits, &y, &head, Arithmetic::Exact, &mut gradients[layout.head]);
        let mut dx = norm_backward(&dy, &trace.x, &params[layout.norm], eps, &mut gradients[layout.norm]);
        for (ids, block) in layout.blocks.iter().zip(&trace.blocks).rev() {
            dx = self.block_backward(ids, params, block, dx, batch, time, arithmetic, &mut gradients);
        }
        for (t, &token) in tokens.iter().enumerate() {
            add(&mut gradients[layout.embedding][token as usize * dim..][..dim], &dx[t * dim..][..dim]);
        }
        gradients
    }

    /// `y = x·Wᵀ` with the matrix `id`, and with its adapter `+ (x·Aᵀ)·Bᵀ`.
    fn linear(&self, params: &[Vec<f64>], x: &Rows, id: usize, arithmetic: Arithmetic) -> Vec<f64> {
        let mut y = linear(x, &Matrix::new(&params[id], arithmetic));
        if self.rounding < 1.0 {
            blend(&mut y, &linear(x, &Matrix::new(&params[id], Arithmetic::Exact)), self.rounding);
        }
        if let Some([a, b]) = self.layout.adapters.get(&id) {
            let [a, b] = [a, b].map(|id| Matrix::new(&params[*id], Arithmetic::Exact));
            let low = Rows::plain(&linear(x, &a), x.scales.len());
            add(&mut y, &linear(&low, &b));
        }
        y
    }

    fn linear_backward(
        &self,
        params: &[Vec<f64>],
        dy: &[f64],
        x: &Rows,
        id: usize,
        arithmetic: Arithmetic,
        gradients: &mut [Vec<f64>],
    ) -> Vec<f64> {
        let matrix = Matrix::new(&params[id], arithmetic);
        let mut dx = linear_backward(dy, x, &matrix, arithmetic, &mut gradients[id]);
        if self.rounding < 1.0 {
            // The gradient of the weights is the same, whatever their share.
            let (latent, mut unused) = (Matrix::new(&params[id], Arithmetic::Exact), params[id].clone());
            let through = linear_backward(dy, x, &latent, Arithmetic::Exact, &mut unused);
            blend(&mut dx, &through, self.rounding);
        }
        if let Some(&[id_a, id_b]) = self.layout.adapters.get(&id) {
            let [a, b] = [id_a, id_b].map(|id| Matrix::new(&params[id], Arithmetic::Exact));
            let low = Rows::plain(&linear(x, &a), x.scales.len());
            let d_low = linear_backward(dy, &low, &b, Arithmetic::Exact, &mut gradients[id_b]);
            add(&mut dx, &linear_backward(&d_low, x, &a, Arithmetic::Exact, &mut gradients[id_a]));
        }
        dx
    }

    /// One block: x `[n, dim]` to x `[n, dim]`.
    fn block(
        &self,
        ids: &BlockIds,
        params: &[Vec<f64>],
        x: Vec<f64>,
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
    ) -> (BlockTrace, Vec<f64>) {
        let (config, n, eps) = (self.config, batch * time, f64::from(self.config.norm_eps));
        let linear = |x: &Rows, id: usize| self.linear(params, x, id, arithmetic);
        let input = |x: &[f64]| Rows::input(x, n, arithmetic);

        let qkv_in = input(&norm(&x, &params[ids.attn_norm], eps));
        let mut qkv = linear(&qkv_in, ids.qkv);
        if let Some(id) = ids.qkv_bias {
            qkv.chunks_exact_mut(config.qkv_rows()).for_each(|row| add(row, &params[id]));
        }
        rope(&mut qkv, config, time);
        let (probabilities, attention) = attention(&qkv, config, batch, time);
        let o_in = match ids.attn_sub_norm {
            Some(gain) => input(&norm(&attention, &params[gain], eps)),
            None => input(&attention),
        };
        let mut middle = linear(&o_in, ids.o);
        add(&mut middle, &x);

        let gate_up_in = input(&norm(&middle, &params[ids.ffn_norm], eps));
        let gate_up = linear(&gate_up_in, ids.gate_up);
        let gated = gated(&gate_up, config.gate, config.ffn);
        let down_in = match ids.ffn_sub_norm {
            Some(gain) => input(&norm(&gated, &params[gain], eps)),
            None => input(&gated),
        };
        let mut out = linear(&down_in, ids.down);
        add(&mut out, &middle);
        let trace = BlockTrace {
            x,
            qkv_in,
            qkv,
            probabilities,
            attention,
            o_in,
            middle,
            gate_up_in,
            gate_up,
            gated,
            down_in,
        };
        (trace, out)
    }

    /// dx `[n, dim]` of the block's input from dout `[n, dim]`. Each residual sum passes its gradient
    /// on twice: along the stream and into the branch.
    fn block_backward(
        &self,
        ids: &BlockIds,
        params: &[Vec<f64>],
        trace: &BlockTrace,
        dout: Vec<f64>,
        batch: usize,
        time: usize,
        arithmetic: Arithmetic,
        gradients: &mut [Vec<f64>],
    ) -> Vec<f64> {
        let (config, eps) = (self.config, f64::from(self.config.norm_eps));
        let linear_backward = |dy: &[f64], x: &Rows, id: usize, gradients: &mut [Vec<f64>]| {
            self.linear_backward(params, dy, x, id, arithmetic, gradients)
        };
        let norm_backward = |dy: &[f64], x: &[f64], id: usize, gradients: &mut [Vec<f64>]| {
            norm_backward(dy, x, &params[id], eps, &mut gradients[id])
        };

        let mut dgated = linear_backward(&dout, &trace.down_in, ids.down, gradients);
        if let Some(gain) = ids.ffn_sub_norm {
            dgated = norm_backward(&dgated, &trace.gated, gain, gradients);
        }
        let dgate_up = gated_backward(&dgated, &trace.gate_up, config.gate, config.ffn);
        let dh = linear_backward(&dgate_up, &trace.gate_up_in, ids.gate_up, gradients);
        let mut dmiddle = norm_backward(&dh, &trace.middle, ids.ffn_norm, gradients);
        add(&mut dmiddle, &dout);

        let mut dattention = linear_backward(&dmiddle, &trace.o_in, ids.o, gradients);
        if let Some(gain) = ids.attn_sub_norm {
            dattention = norm_backward(&dattention, &trace.attention, gain, gradients);
        }
        let mut dqkv = attention_backward(&dattention, &trace.qkv, &trace.probabilities, config, batch, time);
        rope_backward(&mut dqkv, config, time);
        if let Some(id) = ids.qkv_bias {
            dqkv.chunks_exact(config.qkv_rows()).for_each(|row| add(&mut gradients[id], row));
        }
        let dh = linear_backward(&dqkv, &trace.qkv_in, ids.qkv, gradients);
        let mut dx = norm_backward(&dh, &trace.x, ids.attn_norm, gradients);
        add(&mut dx, &dmiddle);
        dx
    }
}

/// `to = share·to + (1 - share)·rest`.
fn blend(to: &mut [f64], rest: &[f64], share: f64) {
    for (a, b) in to.iter_mut().zip(rest) {
        *a = share * *a + (1.0 - share) * b;
    }
}

fn add(to: &mut [f64], from: &[f64]) {
    for (a, b) in to.iter_mut().zip(from) {
        *a += b;
    }
}
