//! The Backend trait, the operations a model and an optimizer need, and its CPU implementation.
//!
//! A training step is a list of calls on device buffers. Nothing returns a value to the host except
//! [`Backend::download`], so a GPU can queue a whole step and be waited for once.

use std::{borrow::Cow, ops::Range};

mod cpu;
mod profile;
mod tally;
mod weight;

pub use cpu::{Cpu, CpuError, Int8Rows, TernaryMatrix};
pub use profile::Spent;
pub use tally::Tally;
pub use tritrain_kernels::{
    Store, Tier,
    attention::{Shape, rope_table},
    descent::{Descent, Pace, REPORT, RowReport},
    gate::Gate,
    kmeans::{Assigned, Search},
    loss::Products,
    room::{Sizes, training as working_memory},
    update::{Adam, Admission, Apply, Average, BLOCK as ADAM_BLOCK, Factored, Momentum, Prodigy},
};
use tritrain_trit::ternary::latent;
pub use tritrain_trit::{NO_TARGET, format::Format, rng::Stream};
pub use weight::{Lent, Sides, Stored, Values, Weight, by_row, digits_room};

/// Memory of a device. A [`Backend`] has it; a [`Tally`] only counts how much it would be.
pub trait Memory: Send + Sync {
    /// Buffer of f32.
    type Floats: Send + Sync;
    /// Buffer of token ids.
    type Tokens: Send + Sync;
    /// Int8 rows, `[rows][cols]`, with one f32 scale each.
    type Rows: Send + Sync;
    /// Ternary codes, `[outputs][inputs]`, with one scale, packed for this device.
    type Ternary: Send + Sync;
    /// A matrix in few bits: latent weights or moments.
    type Packed: Send + Sync;

    /// Whether work is queued, so that to read a buffer is to wait for all of it.
    fn queues(&self) -> bool {
        false
    }

    /// `len` zeros.
    fn floats(&self, len: usize) -> Self::Floats;
    /// Room for `len` token ids.
    fn tokens(&self, len: usize) -> Self::Tokens;
    /// Room for int8 rows.
    fn rows(&self, rows: usize, cols: usize) -> Self::Rows;
    /// Room for a ternary matrix; `gradient` when [`Backend::ternary_input_gradient`] will be called.
    fn ternary(&self, outputs: usize, inputs: usize, gradient: bool) -> Self::Ternary;

    /// A matrix of zeros in few bits; `by_row` gives each row a step of its own where the format has steps.
    fn packed(&self, format: Format, rows: usize, cols: usize, by_row: bool) -> Self::Packed;
}

/// Device buffers and the operations on them.
///
/// Matrices are row-major; a buffer's length is part of its type of use, and operations panic when
/// lengths do not fit together: shapes are the caller's business, checked before any buffer is made.
/// "tokens" below is the number of rows of activations, batch × time.
pub trait Backend: Memory {
    /// Rows that are being clustered: labels, and what the search for the nearest centroid keeps.
    type Clusters: Send + Sync;
    /// Keys and values of one sequence so far, by head.
    type Cache: Send + Sync;

    /// Runs `work`, many calls of this backend, from wherever they cost least. Inside such work it costs
    /// nothing; elsewhere a thread is changed, and memory taken now and then: a loop goes inside as a whole.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// [`Backend::run`] of many short operations in a row, such as those of one token.
    fn run_awake<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.run(work)
    }

    /// Makes a buffer one of `len` floats, without new memory where it had as many before. The first ones are as they
    /// were, further ones unknown.
    fn resize(&self, buffer: &mut Self::Floats, len: usize);

    /// Rounds host floats `[rows][cols]` to the nearest numbers that `to` can hold: levels reach to `range`
    /// times the mean magnitude, of the matrix or of each row as `to` has steps.
    fn upload_packed(&self, from: &[f32], range: f32, to: &mut Self::Packed);
    /// Rounds a matrix by chance, so that the mean is right: levels reach to 2.5 standard deviations of a row, in
    /// int8 to its largest number (TernGrad, 1705.07878, with a scale by rows).
    fn round(&self, from: &Self::Floats, noise: &Stream, to: &mut Self::Packed);
    /// Adds a matrix, rounded by chance to a step up or down or none, to counts of these steps; the `first` one makes
    /// counts zero, and steps 2.5 standard deviations of its rows.
    fn accumulate(&self, from: &Self::Floats, noise: &Stream, first: bool, to: &mut Self::Packed);
    /// `to = from`, as f32.
    fn unpack(&self, from: &Self::Packed, to: &mut Self::Floats);
    /// Waits, then copies the numbers of a packed matrix to the host.
    fn download_packed(&self, from: &Self::Packed, to: &mut [f32]);
    /// Waits; a packed matrix as it is stored.
    fn stored<'a>(&self, from: &'a Self::Packed) -> Stored<'a>;
    /// Waits; gives each row of balanced ternary latent weights a number of digits, rounding its numbers to the nearest
    /// of its new levels, which reach as far as before. The rows take no more bytes than with the digits of the
    /// format. Returns `‖Δw‖²`.
    fn set_digits(&self, w: &mut Self::Packed, digits: &[u8]) -> f64;
    /// Takes a packed matrix as [`Backend::stored`] gave it.
    ///
    /// # Errors
    /// What is wrong with it; `to` is then as it was.
    fn restore(&self, from: &Stored<'_>, to: &mut Self::Packed) -> Result<(), String>;
    /// Copies host floats into a buffer of the same length.
    fn upload(&self, from: &[f32], to: &mut Self::Floats);
    /// Copies fp16 numbers of the host, little endian, into a buffer of as many floats.
    fn upload_halves(&self, from: &[u8], to: &mut Self::Floats) {
        self.upload(&weight::halves(from).collect::<Vec<_>>(), to);
    }
    /// Takes ternary codes `[outputs][inputs]` and their scale, an fp16 number, for products forward.
    fn upload_ternary(&self, codes: &[i8], scale: f32, to: &mut Self::Ternary) {
        let mut buffer = self.floats(codes.len());
        self.upload(&latent(codes, scale), &mut buffer);
        self.ternarize(&buffer, to);
    }
    /// Copies host token ids into a buffer of the same length.
    fn upload_tokens(&self, from: &[u32], to: &mut Self::Tokens);
    /// Waits, then gives the numbers of a buffer, as they are where the host can read them.
    fn host<'a>(&self, from: &'a Self::Floats) -> Cow<'a, [f32]>;
    /// Waits for everything queued, then copies a buffer to the host.
    fn download(&self, from: &Self::Floats, to: &mut [f32]);
    /// [`Backend::download`] of several buffers, for which a device is waited for once.
    fn download_each<'a>(&self, each: impl Iterator<Item = (&'a Self::Floats, &'a mut [f32])>)
    where
        Self: Sized,
        Self::Floats: 'a,
    {
        for (from, to) in each {
            self.download(from, to);
        }
    }
    /// What went wrong on the device, if anything did: numbers read since then are not to be used.
    fn fault(&self) -> Option<String> {
        None
    }
    /// Waits, then gives the codes, `[outputs][inputs]` in {-1, 0, 1}, and the scale.
    fn download_ternary(&self, from: &Self::Ternary) -> (Vec<i8>, f32);
    /// `to = from`, same length.
    fn copy(&self, from: &Self::Floats, to: &mut Self::Floats);
    /// `to = 0`.
    fn clear(&self, to: &mut Self::Floats);

    /// `x[t] = table[tokens[t]]`; `table` `[vocab][dim]`, `x` `[tokens][dim]`.
    fn embed(&self, tokens: &Self::Tokens, table: &Self::Floats, dim: usize, x: &mut Self::Floats);
    /// `d_table[tokens[t]] += dx[t]`.
    fn embed_backward(
        &self,
        tokens: &Self::Tokens,
        dx: &Self::Floats,
        dim: usize,
        d_table: &mut Self::Floats,
    );

    /// `h = gain · x / rms(x)` by rows; `rstd` `[tokens]` for the backward pass.
    fn rmsnorm(
        &self,
        x: &Self::Floats,
        gain: &Self::Floats,
        eps: f32,
        h: &mut Self::Floats,
        rstd: &mut Self::Floats,
    );
    /// [`Backend::rmsnorm`] with the result quantised to int8 by rows.
    fn rmsnorm_quantize(
        &self,
        x: &Self::Floats,
        gain: &Self::Floats,
        eps: f32,
        h: &mut Self::Rows,
        rstd: &mut Self::Floats,
    );
    /// Gradients of RMSNorm; rounding passes straight through. `dx` is replaced or added to, `d_gain`
    /// replaced; `rows` are those of `dx` as it is then, in int8.
    fn rmsnorm_backward(
        &self,
        dh: &Self::Floats,
        x: &Self::Floats,
        gain: &Self::Floats,
        rstd: &Self::Floats,
        store: Store,
        dx: &mut Self::Floats,
        rows: Option<&mut Self::Rows>,
        d_gain: &mut Self::Floats,
    );
    /// Int8 rows: `scale = max|x| / 127`, round half to even.
    fn quantize_rows(&self, x: &Self::Floats, rows: &mut Self::Rows);
    /// [`Backend::quantize_rows`] of fp16 numbers of the host, little endian.
    fn quantize_halves(&self, from: &[u8], rows: &mut Self::Rows) {
        let mut x = self.floats(from.len() / 2);
        self.upload_halves(from, &mut x);
        self.quantize_rows(&x, rows);
    }
    /// What int8 rows stand for, `scale · code`: `x` is made as long as they are. Returns how many there are.
    fn dequantize_rows(&self, rows: &Self::Rows, x: &mut Self::Floats) -> usize;

    /// `y = x·wᵀ`, plus `residual`, of the size of `y`; `x` `[tokens][inputs]`, `w` `[outputs][inputs]`.
    fn matmul(
        &self,
        x: &Self::Floats,
        w: &Self::Floats,
        inputs: usize,
        residual: Option<&Self::Floats>,
        y: &mut Self::Floats,
    );
    /// `dx = dy·w`.
    fn matmul_input_gradient(
        &self,
        dy: &Self::Floats,
        w: &Self::Floats,
        inputs: usize,
        dx: &mut Self::Floats,
    );
    /// `dw = dyᵀ·x`.
    fn matmul_weight_gradient(
        &self,
        dy: &Self::Floats,
        x: &Self::Floats,
        inputs: usize,
        dw: &mut Self::Floats,
    );

    /// Codes and fp16 scale of latent weights: `scale = fp16(mean|w|)`, `code = sign(w)` where
    /// `|w| > scale/2`. Weights that are not finite give the scale NaN.
    fn ternarize(&self, latent: &Self::Floats, w: &mut Self::Ternary);
    /// [`Backend::ternarize`] of latent weights in few bits, for the products that come next.
    fn ternarize_packed(&self, latent: &Self::Packed, w: &mut Self::Ternary, sides: Sides);
    /// `y = x·wᵀ`, exact in i32 before the scales, plus `residual`, of the size of `y`.
    fn ternary_matmul(
        &self,
        x: &Self::Rows,
        w: &Self::Ternary,
        residual: Option<&Self::Floats>,
        y: &mut Self::Floats,
    );
    /// Says that `w` is what the next product multiplies, which a backend may use to fetch it from memory.
    fn expect(&self, w: &Self::Ternary) {
        let _ = w;
    }
    /// `dx = dy·w`, with `dy` int8 by rows.
    fn ternary_input_gradient(&self, dy: &Self::Rows, w: &Self::Ternary, dx: &mut Self::Floats);
    /// `dw = (dy · scales of x)ᵀ · codes of x`, with the first factor int16 by output column.
    fn ternary_weight_gradient(&self, dy: &Self::Floats, x: &Self::Rows, dw: &mut Self::Floats);

    /// `x[t] += bias`; `x` `[tokens][outputs]`.
    fn add_bias(&self, bias: &Self::Floats, x: &mut Self::Floats);
    /// `d_bias = Σ dy[t]`, the gradient of [`Backend::add_bias`].
    fn bias_gradient(&self, dy: &Self::Floats, d_bias: &mut Self::Floats);

    /// Causal attention over `qkv`, whose q and k are rotated by the rows of `table` on the way; `lse`
    /// `[batch][time][heads]` for the backward pass.
    fn attention(
        &self,
        qkv: &Self::Floats,
        table: &Self::Floats,
        shape: Shape,
        out: &mut Self::Floats,
        lse: &mut Self::Floats,
    );
    /// Gradient of [`Backend::attention`], written to `d_qkv`; `results` are its `out` and `lse`.
    fn attention_backward(
        &self,
        qkv: &Self::Floats,
        results: (&Self::Floats, &Self::Floats),
        d_out: &Self::Floats,
        table: &Self::Floats,
        shape: Shape,
        d_qkv: &mut Self::Floats,
    );
    /// Adds `weight` times the gradient of a divergence to `d_qkv`, and the divergence to `sum[at]`: how far relations
    /// within queries, keys and values of `qkv` are from those of `of`, in the mean; see the kernel `relate`.
    fn relate(
        &self,
        qkv: &Self::Floats,
        of: &Self::Floats,
        shape: Shape,
        weight: f32,
        d_qkv: &mut Self::Floats,
        sum: (&mut Self::Floats, usize),
    );
    /// A cache without positions.
    fn cache(&self) -> Self::Cache;
    /// Forgets all positions.
    fn forget(&self, cache: &mut Self::Cache);
    /// Appends rotated keys, and values, of new tokens of one sequence to its cache.
    fn remember(&self, qkv: &Self::Floats, table: &Self::Floats, shape: Shape, cache: &mut Self::Cache);
    /// Attention of one new token of each of `shape.batch` sequences, which goes into their caches first.
    fn attention_decode(
        &self,
        qkv: &Self::Floats,
        table: &Self::Floats,
        shape: Shape,
        caches: &mut [Self::Cache],
        out: &mut Self::Floats,
    );

    /// `a = act(gate) · up`; `gate_up` `[tokens][gate, up]`, `a` `[tokens][width]`.
    fn glu(&self, gate: Gate, gate_up: &Self::Floats, width: usize, a: &mut Self::Floats);
    /// Gradient of [`Backend::glu`], written to `d_gate_up`.
    fn glu_backward(
        &self,
        gate: Gate,
        gate_up: &Self::Floats,
        da: &Self::Floats,
        width: usize,
        d_gate_up: &mut Self::Floats,
    );

    /// [`Backend::glu`], then [`Backend::rmsnorm`] with a gain and epsilon where there is one, as int8 rows;
    /// the activation itself is kept nowhere.
    fn glu_quantize(
        &self,
        gate: Gate,
        gate_up: &Self::Floats,
        norm: Option<(&Self::Floats, f32)>,
        h: &mut Self::Rows,
        rstd: &mut Self::Floats,
    );
    /// Gradients of [`Backend::glu_quantize`], from that of its result; rounding passes straight through.
    /// `norm` is gain, `rstd` and the gain's gradient, written; `d_gate_up` is also given as int8 rows.
    fn glu_backward_quantize(
        &self,
        gate: Gate,
        gate_up: &Self::Floats,
        dh: &Self::Floats,
        norm: Option<(&Self::Floats, &Self::Floats, &mut Self::Floats)>,
        d_gate_up: &mut Self::Floats,
        rows: &mut Self::Rows,
    );

    /// Cross entropy of `softmax(hidden·headᵀ)` in nats per token, into `losses` `[tokens]`; `with` is the
    /// width of `hidden` and how the head multiplies. A target is a token, or [`NO_TARGET`]: its loss is 0.
    fn head_loss(
        &self,
        hidden: &Self::Floats,
        head: &Self::Floats,
        targets: &Self::Tokens,
        with: (usize, Products),
        losses: &mut Self::Floats,
    );
    /// [`Backend::head_loss`], and the gradients of `weight` times the sum of losses: `d_hidden` replaced, `d_head`
    /// added to, where it is wanted. One over the number of targets as `weight` makes it their mean.
    fn head_loss_backward(
        &self,
        hidden: &Self::Floats,
        head: &Self::Floats,
        targets: &Self::Tokens,
        with: (usize, Products),
        weight: f32,
        losses: &mut Self::Floats,
        d_hidden: &mut Self::Floats,
        d_head: Option<&mut Self::Floats>,
    );
    /// `logits = hidden·headᵀ`, `[rows][vocab]`.
    fn head_logits(&self, hidden: &Self::Floats, head: &Self::Floats, dim: usize, logits: &mut Self::Floats);
    /// [`Backend::head_logits`] with the head as int8 rows.
    fn head_logits_int8(&self, hidden: &Self::Floats, head: &Self::Rows, logits: &mut Self::Floats);

    /// `out[at] += Σ x`.
    fn add_sum(&self, x: &Self::Floats, out: &mut Self::Floats, at: usize);
    /// `out[at] += Σ x²`.
    fn add_sum_squares(&self, x: &Self::Floats, out: &mut Self::Floats, at: usize);

    /// `out[at] += Σ x·y`.
    fn add_dot(&self, x: &Self::Floats, y: &Self::Floats, out: &mut Self::Floats, at: usize);

    /// `out[r] = Σ x[r]²`; `x` `[rows][cols]`, `out` `[rows]`.
    fn square_sums(&self, x: &Self::Floats, out: &mut Self::Floats);

    /// Decides which gradients of some tensors are taken, by the statistics of a step and limits of norms
    /// `[tensors][2]`: into the first half of `gates` `[2][tensors]`.
    fn admit(
        &self,
        statistics: &Self::Floats,
        limits: &Self::Floats,
        with: &Admission,
        gates: &mut Self::Floats,
    );
    /// Decides which of their directions are taken, 1 or 0, into the second half: none where the root of
    /// `statistics[at]`, times `factor`, is not finite.
    fn approve(
        &self,
        statistics: (&Self::Floats, usize),
        factor: f32,
        tensors: Range<usize>,
        gates: &mut Self::Floats,
    );
    /// Runs `work` where `gates[at]` is not zero. Where work is queued it runs in any case, on a backend whose device
    /// finds out: sums, states, moments, points and weights that `work` would change stay as they were where the gate
    /// is zero, while what becomes of gradients and reports is unknown.
    fn when(&self, gates: &Self::Floats, at: usize, work: impl FnOnce(&Self))
    where
        Self: Sized;
    /// [`Backend::when`] for one operation, which turns gradient `g` into a direction: `g` is multiplied by the gate.
    fn when_scaled(
        &self,
        gates: &Self::Floats,
        at: usize,
        g: &mut Self::Floats,
        work: impl FnOnce(&Self, &mut Self::Floats),
    ) where
        Self: Sized;

    /// Turns a gradient into the Adam update in place and advances the moments.
    fn adam(&self, g: &mut Self::Floats, m: &mut Self::Floats, v: &mut Self::Floats, with: Adam);
    /// [`Backend::adam`] with moments in int8, `[blocks of g][ADAM_BLOCK]` with a step each, rounded by chance.
    fn adam8(
        &self,
        g: &mut Self::Floats,
        m: &mut Self::Packed,
        v: &mut Self::Packed,
        with: Adam,
        noise: &Stream,
    );
    /// Turns a gradient into what a running mean of gradients `m` sees in it, and moves the mean.
    fn momentum(&self, g: &mut Self::Floats, m: &mut Self::Floats, with: Momentum);
    /// [`Backend::momentum`] with the mean of a matrix in few bits, rounded by chance.
    fn momentum_packed(&self, g: &mut Self::Floats, m: &mut Self::Packed, with: Momentum, noise: &Stream);
    /// Draws the singular values of a matrix of `rows` rows towards one, and gives its entries a root mean square of
    /// about `rms`; see the kernel.
    fn orthogonalize(&self, x: &mut Self::Floats, rows: usize, rms: f32);
    /// Turns the gradient of a matrix into the factored update in place and advances its state;
    /// `row` `[rows]`, `col` `[cols]`, `momentum` as `g`, or empty for none.
    fn factored(
        &self,
        g: &mut Self::Floats,
        row: &mut Self::Floats,
        col: &mut Self::Floats,
        momentum: &mut Self::Floats,
        with: Factored,
    );
    /// Turns a gradient at `w` into the update of Prodigy in place; `state` is its two moments, the sum of gradients
    /// and the weights at the start. `sums[at]` becomes the product of the gradient with the way back to the
    /// start, `sums[at + 1]` the sum of magnitudes of the third.
    fn prodigy(
        &self,
        g: &mut Self::Floats,
        w: &Self::Floats,
        state: &mut [Self::Floats; 4],
        with: Prodigy,
        sums: (&mut Self::Floats, usize),
    );
    /// `x += share · (z − x)`, `w = z + kept · (x − z)`.
    fn average(&self, w: &mut Self::Floats, z: &Self::Floats, x: &mut Self::Floats, with: Average);
    /// `w -= rate · (u + decay · w)`.
    fn apply(&self, w: &mut Self::Floats, u: &Self::Floats, with: Apply);
    /// Moves a matrix against the direction `u`, row by row, rounded into its format and within its trust
    /// region; see the kernel `descent`. `moment` keeps a momentum of `u`; `reports` `[rows][REPORT]`.
    fn descend(
        &self,
        w: &mut Weight<Self>,
        u: &Self::Floats,
        moment: Option<&mut Self::Packed>,
        with: &Descent<'_>,
        reports: &mut Self::Floats,
    ) where
        Self: Sized;

    /// Waits; the largest magnitude in `x`, NaN if any entry is.
    fn max_abs(&self, x: &Self::Floats) -> f32;
    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Floats, factor: f32);
    /// Waits; divides the rows of `x` by their lengths and returns whether any is zero, which it stays.
    fn normalize_rows(&self, x: &mut Self::Floats, dim: usize) -> bool;

    /// Rows of `x` `[rows][dim]` to be clustered, without labels. Every operation on them is given the same
    /// `x` again: finite, with the largest magnitude between 2^-40 and 2^40.
    fn clusters(&self, x: &Self::Floats, dim: usize) -> Self::Clusters;
    /// Waits; labels every row with its nearest centroid of `centroids` `[k][dim]`, the first where several
    /// are nearest. All searches give the same labels: see the kernel for the definition of a distance.
    fn assign(
        &self,
        x: &Self::Floats,
        centroids: &Self::Floats,
        search: Search,
        clusters: &mut Self::Clusters,
    ) -> Assigned;
    /// Waits; brings `sums` `[k][dim]` and `counts` `[k]` of the rows by label up to date. They are those of
    /// the last call, or zeros at first. Exact to 2^-28 of the largest entry of a column.
    fn sum_clusters(
        &self,
        x: &Self::Floats,
        clusters: &mut Self::Clusters,
        sums: &mut [f64],
        counts: &mut [u64],
    );
    /// Squared distance of every row to the centroid of its label, `out` `[rows]`.
    fn cluster_distances(
        &self,
        x: &Self::Floats,
        centroids: &Self::Floats,
        clusters: &Self::Clusters,
        out: &mut Self::Floats,
    );
    /// `nearest[r] = min(nearest[r], squared distance of row r to centroid)`.
    fn approach(&self, x: &Self::Floats, centroid: &Self::Floats, nearest: &mut Self::Floats);
    /// Waits; `Σ |x - mean of all rows|²`, about.
    fn spread(&self, x: &Self::Floats, clusters: &mut Self::Clusters) -> f64;
    /// Waits; the labels of all rows.
    fn labels(&self, clusters: &Self::Clusters) -> Vec<u32>;
    /// Gives a row another label until the next [`Backend::assign`].
    fn relabel(&self, clusters: &mut Self::Clusters, row: usize, label: u32);
    /// Forgets labels and sums.
    fn reset_clusters(&self, clusters: &mut Self::Clusters);
}
