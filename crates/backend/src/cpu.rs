//! The backend on CPU kernels: buffers are vectors, operations run at once.

mod memory;
mod slices;
mod start;

use std::{borrow::Cow, ops::Range, sync::PoisonError};

use tritrain_kernels::{
    Floats, attention, bias, descent, elementwise, embed, gate, kmeans, loss,
    matmul::{self, View},
    norm, outer,
    packed::Packed,
    rows, ternary,
    update::{self, Prodigal},
};

use crate::{
    Adam, Admission, Apply, Assigned, Average, Backend, Descent, Factored, Gate, Momentum, Prodigy, Products,
    Search, Shape, Sides, Store, Stored, Stream, Weight, weight::widen,
};

pub use memory::{Int8Rows, TernaryMatrix};
pub use start::{Cpu, CpuError};

impl Backend for Cpu {
    type Clusters = kmeans::Clusters;
    type Cache = attention::Cache;

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.cx.run(work)
    }

    fn run_awake<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.cx.run_awake(work)
    }

    fn host<'a>(&self, from: &'a Floats) -> Cow<'a, [f32]> {
        Cow::Borrowed(from)
    }

    fn resize(&self, buffer: &mut Floats, len: usize) {
        buffer.resize(len);
    }

    fn upload_packed(&self, from: &[f32], range: f32, to: &mut Packed) {
        to.set(&self.cx, from, range);
    }

    fn round(&self, from: &Floats, noise: &Stream, to: &mut Packed) {
        let _span = self.span("round");
        descent::round(&self.cx, from, noise, to);
    }

    fn accumulate(&self, from: &Floats, noise: &Stream, first: bool, to: &mut Packed) {
        let _span = self.span("accumulate");
        descent::accumulate(&self.cx, from, noise, first, to);
    }

    fn unpack(&self, from: &Packed, to: &mut Floats) {
        let _span = self.span("unpack");
        from.get(&self.cx, to);
    }

    fn download_packed(&self, from: &Packed, to: &mut [f32]) {
        from.get(&self.cx, to);
    }

    fn stored<'a>(&self, from: &'a Packed) -> Stored<'a> {
        let (bytes, digits) = (from.bytes().into(), from.digits().into());
        Stored { format: from.format(), bytes, digits, steps: from.steps().into() }
    }

    fn set_digits(&self, w: &mut Packed, digits: &[u8]) -> f64 {
        w.set_digits(&self.cx, digits)
    }

    fn restore(&self, from: &Stored<'_>, to: &mut Packed) -> Result<(), String> {
        if from.format != to.format() {
            return Err(format!("{:?}, expected {:?}", from.format, to.format()));
        }
        to.restore(&self.cx, &from.bytes, &from.digits, &from.steps)
    }

    fn upload(&self, from: &[f32], to: &mut Floats) {
        to.copy_from_slice(from);
    }

    fn upload_halves(&self, from: &[u8], to: &mut Floats) {
        widen(from, to);
    }

    fn upload_ternary(&self, codes: &[i8], scale: f32, to: &mut TernaryMatrix) {
        to.set(&self.cx, codes, scale);
    }

    fn upload_tokens(&self, from: &[u32], to: &mut Vec<u32>) {
        to.copy_from_slice(from);
    }

    fn download(&self, from: &Floats, to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn download_ternary(&self, from: &TernaryMatrix) -> (Vec<i8>, f32) {
        (from.forward.codes(), from.scale)
    }

    fn copy(&self, from: &Floats, to: &mut Floats) {
        let _span = self.span("copy");
        elementwise::copy(&self.cx, from, to);
    }

    fn clear(&self, to: &mut Floats) {
        let _span = self.span("clear");
        elementwise::clear(&self.cx, to);
    }

    fn embed(&self, tokens: &Vec<u32>, table: &Floats, dim: usize, x: &mut Floats) {
        let _span = self.span("embed");
        embed::gather(&self.cx, tokens, table, dim, x);
    }

    fn embed_backward(&self, tokens: &Vec<u32>, dx: &Floats, dim: usize, d_table: &mut Floats) {
        let _span = self.span("embed_backward");
        embed::scatter_add(&self.cx, tokens, dx, dim, d_table);
    }

    fn rmsnorm(&self, x: &Floats, gain: &Floats, eps: f32, h: &mut Floats, rstd: &mut Floats) {
        let _span = self.span("rmsnorm");
        norm::forward(&self.cx, x, gain, eps, h, rstd);
    }

    fn rmsnorm_quantize(&self, x: &Floats, gain: &Floats, eps: f32, h: &mut Int8Rows, rstd: &mut Floats) {
        let _span = self.span("rmsnorm_quantize");
        norm::forward_quantize(&self.cx, x, gain, eps, &mut h.codes, &mut h.scales, rstd);
    }

    fn rmsnorm_backward(
        &self,
        dh: &Floats,
        x: &Floats,
        gain: &Floats,
        rstd: &Floats,
        store: Store,
        dx: &mut Floats,
        rows: Option<&mut Int8Rows>,
        d_gain: &mut Floats,
    ) {
        let _span = self.span("rmsnorm_backward");
        let rows = rows.map(|rows| (&mut rows.codes[..], &mut rows.scales[..]));
        norm::backward(&self.cx, dh, x, gain, rstd, store == Store::Add, dx, d_gain, rows);
    }

    fn quantize_rows(&self, x: &Floats, to: &mut Int8Rows) {
        let _span = self.span("quantize_rows");
        rows::quantize(&self.cx, x, &mut to.codes, &mut to.scales);
    }

    fn quantize_halves(&self, from: &[u8], to: &mut Int8Rows) {
        /// Numbers that are f32 at a time.
        const PART: usize = 1 << 20;
        let cols = to.codes.len() / to.scales.len().max(1);
        assert_eq!(from.len(), 2 * cols * to.scales.len(), "rows of fp16 numbers");
        let rows = (PART / cols.max(1)).max(1);
        let mut x = Vec::new();
        let parts = from.chunks(2 * rows * cols).zip(to.codes.chunks_mut(rows * cols));
        for ((from, codes), scales) in parts.zip(to.scales.chunks_mut(rows)) {
            x.resize(codes.len(), 0.0);
            widen(from, &mut x);
            rows::quantize(&self.cx, &x, codes, scales);
        }
    }

    fn dequantize_rows(&self, rows: &Int8Rows, x: &mut Floats) -> usize {
        let _span = self.span("dequantize_rows");
        x.resize(rows.codes.len());
        rows::dequantize(&self.cx, &rows.codes, &rows.scales, x);
        rows.scales.len()
    }

    fn matmul(&self, x: &Floats, w: &Floats, inputs: usize, residual: Option<&Floats>, y: &mut Floats) {
        let _span = self.span("matmul");
        let (tokens, outputs) = (x.len() / inputs, w.len() / inputs);
        let beta = if residual.is_some() { 1.0 } else { 0.0 };
        if let Some(residual) = residual {
            elementwise::copy(&self.cx, residual, y);
        }
        matmul::matmul(&self.cx, View::new(x, tokens, inputs), View::new(w, outputs, inputs).t(), beta, y);
    }

    fn matmul_input_gradient(&self, dy: &Floats, w: &Floats, inputs: usize, dx: &mut Floats) {
        let _span = self.span("matmul_input_gradient");
        let (tokens, outputs) = (dx.len() / inputs, w.len() / inputs);
        matmul::matmul(&self.cx, View::new(dy, tokens, outputs), View::new(w, outputs, inputs), 0.0, dx);
    }

    fn matmul_weight_gradient(&self, dy: &Floats, x: &Floats, inputs: usize, dw: &mut Floats) {
        let _span = self.span("matmul_weight_gradient");
        let (tokens, outputs) = (x.len() / inputs, dw.len() / inputs);
        matmul::matmul(&self.cx, View::new(dy, tokens, outputs).t(), View::new(x, tokens, inputs), 0.0, dw);
    }

    fn ternarize(&self, latent: &Floats, w: &mut TernaryMatrix) {
        let _span = self.span("ternarize");
        w.take(&self.cx, latent);
    }

    fn ternarize_packed(&self, latent: &Packed, w: &mut TernaryMatrix, sides: Sides) {
        let _span = self.span("ternarize");
        w.take_packed(&self.cx, latent, sides);
    }

    fn ternary_matmul(&self, x: &Int8Rows, w: &TernaryMatrix, residual: Option<&Floats>, y: &mut Floats) {
        let _span = self.span("ternary_matmul");
        let mut scratch = self.ternary.lock().unwrap_or_else(PoisonError::into_inner);
        let residual = residual.map(|x| &x[..]);
        ternary::matmul(&self.cx, &x.codes, &x.scales, &w.forward, w.scale, residual, &mut scratch, y);
    }

    fn expect(&self, w: &TernaryMatrix) {
        ternary::expect(&self.cx, &w.forward);
    }

    fn ternary_input_gradient(&self, dy: &Int8Rows, w: &TernaryMatrix, dx: &mut Floats) {
        let _span = self.span("ternary_input_gradient");
        let Some(backward) = &w.backward else {
            panic!("this ternary matrix was made without room for gradients");
        };
        let mut scratch = self.ternary.lock().unwrap_or_else(PoisonError::into_inner);
        ternary::matmul(&self.cx, &dy.codes, &dy.scales, backward, w.scale, None, &mut scratch, dx);
    }

    fn ternary_weight_gradient(&self, dy: &Floats, x: &Int8Rows, dw: &mut Floats) {
        let _span = self.span("ternary_weight_gradient");
        let mut scratch = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        outer::weight_gradient(&self.cx, dy, &x.scales, &x.codes, Store::Replace, &mut scratch, dw);
    }

    fn add_bias(&self, with: &Floats, x: &mut Floats) {
        let _span = self.span("add_bias");
        bias::add(&self.cx, with, x);
    }

    fn bias_gradient(&self, dy: &Floats, d_bias: &mut Floats) {
        let _span = self.span("bias_gradient");
        bias::gradient(&self.cx, dy, d_bias);
    }

    fn attention(&self, qkv: &Floats, table: &Floats, shape: Shape, out: &mut Floats, lse: &mut Floats) {
        let _span = self.span("attention");
        attention::forward(&self.cx, qkv, table, shape, out, lse);
    }

    fn attention_backward(
        &self,
        qkv: &Floats,
        (out, lse): (&Floats, &Floats),
        d_out: &Floats,
        table: &Floats,
        shape: Shape,
        d_qkv: &mut Floats,
    ) {
        let _span = self.span("attention_backward");
        attention::backward(&self.cx, qkv, (out, lse), d_out, table, shape, d_qkv);
    }

    fn relate(
        &self,
        qkv: &Floats,
        of: &Floats,
        shape: Shape,
        weight: f32,
        d_qkv: &mut Floats,
        (sums, at): (&mut Floats, usize),
    ) {
        let _span = self.span("relate");
        sums[at] += attention::relate(&self.cx, qkv, of, shape, weight, d_qkv) as f32;
    }

    fn cache(&self) -> attention::Cache {
        attention::Cache::default()
    }

    fn forget(&self, cache: &mut attention::Cache) {
        cache.clear();
    }

    fn remember(&self, qkv: &Floats, table: &Floats, shape: Shape, cache: &mut attention::Cache) {
        let _span = self.span("remember");
        attention::remember(&self.cx, qkv, table, shape, cache);
    }

    fn attention_decode(
        &self,
        qkv: &Floats,
        table: &Floats,
        shape: Shape,
        caches: &mut [attention::Cache],
        out: &mut Floats,
    ) {
        let _span = self.span("attention_decode");
        assert_eq!(caches.len(), shape.batch, "a cache for each sequence");
        let one = Shape { batch: 1, ..shape };
        let rows = qkv.chunks_exact(one.qkv_width()).zip(out.chunks_exact_mut(one.out_width()));
        for (cache, (qkv, out)) in caches.iter_mut().zip(rows) {
            attention::decode(&self.cx, qkv, table, one, cache, out);
        }
    }

    fn glu(&self, gate: Gate, gate_up: &Floats, width: usize, a: &mut Floats) {
        let _span = self.span("glu");
        gate::forward(&self.cx, gate, gate_up, width, a);
    }

    fn glu_backward(&self, gate: Gate, gate_up: &Floats, da: &Floats, width: usize, d_gate_up: &mut Floats) {
        let _span = self.span("glu_backward");
        gate::backward(&self.cx, gate, gate_up, da, width, d_gate_up);
    }

    fn glu_quantize(
        &self,
        gate: Gate,
        gate_up: &Floats,
        norm: Option<(&Floats, f32)>,
        h: &mut Int8Rows,
        rstd: &mut Floats,
    ) {
        let _span = self.span("glu_quantize");
        let norm = norm.map(|(gain, eps)| (&gain[..], eps));
        gate::forward_quantize(&self.cx, gate, gate_up, norm, &mut h.codes, &mut h.scales, rstd);
    }

    fn glu_backward_quantize(
        &self,
        gate: Gate,
        gate_up: &Floats,
        dh: &Floats,
        norm: Option<(&Floats, &Floats, &mut Floats)>,
        d_gate_up: &mut Floats,
        rows: &mut Int8Rows,
    ) {
        let _span = self.span("glu_backward_quantize");
        let norm = norm.map(|(gain, rstd, d_gain)| gate::NormBackward { gain, rstd, d_gain });
        gate::backward_quantize(
            &self.cx,
            gate,
            gate_up,
            dh,
            norm,
            d_gate_up,
            &mut rows.codes,
            &mut rows.scales,
        );
    }

    fn head_loss(
        &self,
        hidden: &Floats,
        head: &Floats,
        targets: &Vec<u32>,
        with: (usize, Products),
        losses: &mut Floats,
    ) {
        let _span = self.span("head_loss");
        let mut scratch = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss::head_cross_entropy(&self.cx, hidden, head, targets, with, losses, None, &mut scratch);
    }

    fn head_loss_backward(
        &self,
        hidden: &Floats,
        head: &Floats,
        targets: &Vec<u32>,
        with: (usize, Products),
        weight: f32,
        losses: &mut Floats,
        d_hidden: &mut Floats,
        d_head: Option<&mut Floats>,
    ) {
        let _span = self.span("head_loss_backward");
        let mut scratch = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        let gradients =
            Some(loss::Gradients { weight, d_hidden, d_head: d_head.map(|d_head| &mut d_head[..]) });
        loss::head_cross_entropy(&self.cx, hidden, head, targets, with, losses, gradients, &mut scratch);
    }

    fn head_logits(&self, hidden: &Floats, head: &Floats, dim: usize, logits: &mut Floats) {
        let _span = self.span("head_logits");
        loss::head_logits(&self.cx, hidden, head, dim, logits);
    }

    fn head_logits_int8(&self, hidden: &Floats, head: &Int8Rows, logits: &mut Floats) {
        let _span = self.span("head_logits_int8");
        let mut scratch = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss::head_logits_int8(&self.cx, hidden, (&head.codes, &head.scales), &mut scratch, logits);
    }

    fn add_sum(&self, x: &Floats, out: &mut Floats, at: usize) {
        let _span = self.span("add_sum");
        out[at] += elementwise::sum(&self.cx, x) as f32;
    }

    fn add_sum_squares(&self, x: &Floats, out: &mut Floats, at: usize) {
        let _span = self.span("add_sum_squares");
        out[at] += elementwise::sum_squares(&self.cx, x) as f32;
    }

    fn add_dot(&self, x: &Floats, y: &Floats, out: &mut Floats, at: usize) {
        let _span = self.span("add_dot");
        out[at] += elementwise::dot(&self.cx, x, y) as f32;
    }

    fn square_sums(&self, x: &Floats, out: &mut Floats) {
        let _span = self.span("square_sums");
        elementwise::square_sums(&self.cx, x, out);
    }

    fn admit(&self, statistics: &Floats, limits: &Floats, with: &Admission, gates: &mut Floats) {
        update::admit(statistics, limits, with, gates);
    }

    fn approve(&self, of: (&Floats, usize), factor: f32, tensors: Range<usize>, gates: &mut Floats) {
        update::approve(of.0[of.1], factor, tensors, gates);
    }

    fn when(&self, gates: &Floats, at: usize, work: impl FnOnce(&Cpu)) {
        if gates[at] != 0.0 {
            work(self);
        }
    }

    fn when_scaled(&self, gates: &Floats, at: usize, g: &mut Floats, work: impl FnOnce(&Cpu, &mut Floats)) {
        self.when(gates, at, |cpu| {
            if gates[at] != 1.0 {
                cpu.scale(g, gates[at]);
            }
            work(cpu, g);
        });
    }

    fn adam(&self, g: &mut Floats, m: &mut Floats, v: &mut Floats, with: Adam) {
        let _span = self.span("adam");
        update::adam(&self.cx, g, m, v, with);
    }

    fn adam8(&self, g: &mut Floats, m: &mut Packed, v: &mut Packed, with: Adam, noise: &Stream) {
        let _span = self.span("adam8");
        update::adam8(&self.cx, g, m, v, with, noise);
    }

    fn momentum(&self, g: &mut Floats, m: &mut Floats, with: Momentum) {
        let _span = self.span("momentum");
        update::momentum(&self.cx, g, m, with);
    }

    fn momentum_packed(&self, g: &mut Floats, m: &mut Packed, with: Momentum, noise: &Stream) {
        let _span = self.span("momentum_packed");
        update::momentum_packed(&self.cx, g, m, with, noise);
    }

    fn orthogonalize(&self, x: &mut Floats, rows: usize, rms: f32) {
        let _span = self.span("orthogonalize");
        update::orthogonalize(&self.cx, x, rows, rms);
    }

    fn factored(
        &self,
        g: &mut Floats,
        row: &mut Floats,
        col: &mut Floats,
        momentum: &mut Floats,
        with: Factored,
    ) {
        let _span = self.span("factored");
        update::factored(&self.cx, g, row, col, momentum, with);
    }

    fn prodigy(
        &self,
        g: &mut Floats,
        w: &Floats,
        [m, v, s, start]: &mut [Floats; 4],
        with: Prodigy,
        (sums, at): (&mut Floats, usize),
    ) {
        let _span = self.span("prodigy");
        let found = update::prodigy(&self.cx, g, w, Prodigal { m, v, s, start }, with);
        sums[at..at + 2].copy_from_slice(&found.map(|sum| sum as f32));
    }

    fn average(&self, w: &mut Floats, z: &Floats, x: &mut Floats, with: Average) {
        let _span = self.span("average");
        update::average(&self.cx, w, z, x, with);
    }

    fn apply(&self, w: &mut Floats, u: &Floats, with: Apply) {
        let _span = self.span("apply");
        update::apply(&self.cx, w, u, with);
    }

    fn descend(
        &self,
        w: &mut Weight<Cpu>,
        u: &Floats,
        moment: Option<&mut Packed>,
        with: &Descent<'_>,
        reports: &mut Floats,
    ) {
        let _span = self.span("descend");
        let weights = match w {
            Weight::Floats(w) => descent::Weights::Floats(w),
            Weight::Packed(w) => descent::Weights::Packed(w),
        };
        let mut scratch = self.descent.lock().unwrap_or_else(PoisonError::into_inner);
        descent::descend(&self.cx, weights, u, moment, with, reports, &mut scratch);
    }

    fn max_abs(&self, x: &Floats) -> f32 {
        let _span = self.span("max_abs");
        kmeans::max_abs(&self.cx, x)
    }

    fn scale(&self, x: &mut Floats, factor: f32) {
        let _span = self.span("scale");
        kmeans::scale(&self.cx, x, factor);
    }

    fn normalize_rows(&self, x: &mut Floats, dim: usize) -> bool {
        let _span = self.span("normalize_rows");
        kmeans::normalize(&self.cx, x, dim)
    }

    fn clusters(&self, x: &Floats, dim: usize) -> kmeans::Clusters {
        let _span = self.span("clusters");
        kmeans::Clusters::new(&self.cx, x, dim)
    }

    fn assign(
        &self,
        x: &Floats,
        centroids: &Floats,
        search: Search,
        clusters: &mut kmeans::Clusters,
    ) -> Assigned {
        let _span = self.span("assign");
        kmeans::assign(&self.cx, x, centroids, search, clusters)
    }

    fn sum_clusters(
        &self,
        x: &Floats,
        clusters: &mut kmeans::Clusters,
        sums: &mut [f64],
        counts: &mut [u64],
    ) {
        let _span = self.span("sum_clusters");
        kmeans::sum(&self.cx, x, clusters, sums, counts);
    }

    fn cluster_distances(
        &self,
        x: &Floats,
        centroids: &Floats,
        clusters: &kmeans::Clusters,
        out: &mut Floats,
    ) {
        let _span = self.span("cluster_distances");
        kmeans::distances(&self.cx, x, centroids, clusters, out);
    }

    fn approach(&self, x: &Floats, centroid: &Floats, nearest: &mut Floats) {
        let _span = self.span("approach");
        kmeans::approach(&self.cx, x, centroid, nearest);
    }

    fn spread(&self, x: &Floats, clusters: &mut kmeans::Clusters) -> f64 {
        let _span = self.span("spread");
        kmeans::spread(&self.cx, x, clusters)
    }

    fn labels(&self, clusters: &kmeans::Clusters) -> Vec<u32> {
        clusters.labels().to_vec()
    }

    fn relabel(&self, clusters: &mut kmeans::Clusters, row: usize, label: u32) {
        clusters.relabel(row, label);
    }

    fn reset_clusters(&self, clusters: &mut kmeans::Clusters) {
        clusters.reset();
    }
}
