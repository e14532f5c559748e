//! Operations: what is launched for each, with which kernels.

mod attention;
mod bias;
mod buffers;
mod clusters;
mod descend;
mod embed;
mod gate;
mod head;
mod matmul;
mod norm;
mod packed;
mod products;
mod reduce;
pub(crate) mod single;
mod ternary;
mod update;

use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};
use attention::Cache;
use clusters::Clusters;
use std::{borrow::Cow, ops::Range};
use tritrain_backend::*;

impl Backend for Gpu {
    type Clusters = Clusters;
    type Cache = Cache;

    fn resize(&self, buffer: &mut Floats, len: usize) {
        buffers::resize(self, buffer, len)
    }

    fn upload_packed(&self, from: &[f32], range: f32, to: &mut Packed) {
        packed::upload_packed(self, from, range, to)
    }

    fn round(&self, from: &Floats, noise: &Stream, to: &mut Packed) {
        packed::round(self, from, noise, to)
    }

    fn accumulate(&self, from: &Floats, noise: &Stream, first: bool, to: &mut Packed) {
        packed::accumulate(self, from, noise, first, to)
    }

    fn unpack(&self, from: &Packed, to: &mut Floats) {
        packed::unpack(self, from, to)
    }

    fn download_packed(&self, from: &Packed, to: &mut [f32]) {
        packed::download_packed(self, from, to)
    }

    fn stored<'a>(&self, from: &'a Packed) -> Stored<'a> {
        packed::stored(self, from)
    }

    fn set_digits(&self, w: &mut Packed, digits: &[u8]) -> f64 {
        packed::set_digits(self, w, digits)
    }

    fn restore(&self, from: &Stored<'_>, to: &mut Packed) -> Result<(), String> {
        packed::restore(self, from, to)
    }

    fn upload(&self, from: &[f32], to: &mut Floats) {
        buffers::upload(self, from, to)
    }

    fn upload_tokens(&self, from: &[u32], to: &mut Tokens) {
        buffers::upload_tokens(self, from, to)
    }

    fn host<'a>(&self, from: &'a Floats) -> Cow<'a, [f32]> {
        buffers::host(self, from)
    }

    fn download(&self, from: &Floats, to: &mut [f32]) {
        buffers::download(self, from, to)
    }

    fn download_each<'a>(&self, each: impl Iterator<Item = (&'a Floats, &'a mut [f32])>) {
        buffers::download_each(self, each)
    }

    fn fault(&self) -> Option<String> {
        self.first_fault()
    }

    fn download_ternary(&self, from: &Ternary) -> (Vec<i8>, f32) {
        buffers::download_ternary(self, from)
    }

    fn copy(&self, from: &Floats, to: &mut Floats) {
        buffers::copy(self, from, to)
    }

    fn clear(&self, to: &mut Floats) {
        buffers::clear(self, to)
    }

    fn embed(&self, tokens: &Tokens, table: &Floats, dim: usize, x: &mut Floats) {
        embed::embed(self, tokens, table, dim, x)
    }

    fn embed_backward(&self, tokens: &Tokens, dx: &Floats, dim: usize, d_table: &mut Floats) {
        embed::embed_backward(self, tokens, dx, dim, d_table)
    }

    fn rmsnorm(&self, x: &Floats, gain: &Floats, eps: f32, h: &mut Floats, rstd: &mut Floats) {
        norm::rmsnorm(self, x, gain, eps, h, rstd)
    }

    fn rmsnorm_quantize(&self, x: &Floats, gain: &Floats, eps: f32, h: &mut Rows, rstd: &mut Floats) {
        norm::rmsnorm_quantize(self, x, gain, eps, h, rstd)
    }

    fn rmsnorm_backward(
        &self,
        dh: &Floats,
        x: &Floats,
        gain: &Floats,
        rstd: &Floats,
        store: Store,
        dx: &mut Floats,
        rows: Option<&mut Rows>,
        d_gain: &mut Floats,
    ) {
        norm::rmsnorm_backward(self, dh, x, gain, rstd, store, dx, rows, d_gain)
    }

    fn quantize_rows(&self, x: &Floats, rows: &mut Rows) {
        norm::quantize_rows(self, x, rows)
    }

    fn dequantize_rows(&self, rows: &Rows, x: &mut Floats) -> usize {
        norm::dequantize_rows(self, rows, x)
    }

    fn matmul(&self, x: &Floats, w: &Floats, inputs: usize, residual: Option<&Floats>, y: &mut Floats) {
        matmul::matmul(self, x, w, inputs, residual, y)
    }

    fn matmul_input_gradient(&self, dy: &Floats, w: &Floats, inputs: usize, dx: &mut Floats) {
        matmul::matmul_input_gradient(self, dy, w, inputs, dx)
    }

    fn matmul_weight_gradient(&self, dy: &Floats, x: &Floats, inputs: usize, dw: &mut Floats) {
        matmul::matmul_weight_gradient(self, dy, x, inputs, dw)
    }

    fn ternarize(&self, latent: &Floats, w: &mut Ternary) {
        ternary::ternarize(self, latent, w)
    }

    fn ternarize_packed(&self, latent: &Packed, w: &mut Ternary, sides: Sides) {
        packed::ternarize_packed(self, latent, w, sides)
    }

    fn ternary_matmul(&self, x: &Rows, w: &Ternary, residual: Option<&Floats>, y: &mut Floats) {
        ternary::ternary_matmul(self, x, w, residual, y)
    }

    fn ternary_input_gradient(&self, dy: &Rows, w: &Ternary, dx: &mut Floats) {
        ternary::ternary_input_gradient(self, dy, w, dx)
    }

    fn ternary_weight_gradient(&self, dy: &Floats, x: &Rows, dw: &mut Floats) {
        ternary::ternary_weight_gradient(self, dy, x, dw)
    }

    fn add_bias(&self, bias: &Floats, x: &mut Floats) {
        bias::add(self, bias, x)
    }

    fn bias_gradient(&self, dy: &Floats, d_bias: &mut Floats) {
        bias::gradient(self, dy, d_bias)
    }

    fn attention(&self, qkv: &Floats, table: &Floats, shape: Shape, out: &mut Floats, lse: &mut Floats) {
        attention::attention(self, qkv, table, shape, out, lse)
    }

    fn attention_backward(
        &self,
        qkv: &Floats,
        results: (&Floats, &Floats),
        d_out: &Floats,
        table: &Floats,
        shape: Shape,
        d_qkv: &mut Floats,
    ) {
        attention::attention_backward(self, qkv, results, d_out, table, shape, d_qkv)
    }

    fn relate(
        &self,
        qkv: &Floats,
        of: &Floats,
        shape: Shape,
        weight: f32,
        d_qkv: &mut Floats,
        sum: (&mut Floats, usize),
    ) {
        attention::relate(self, qkv, of, shape, weight, d_qkv, sum)
    }

    fn cache(&self) -> Cache {
        attention::cache(self)
    }

    fn forget(&self, cache: &mut Cache) {
        attention::forget(self, cache)
    }

    fn remember(&self, qkv: &Floats, table: &Floats, shape: Shape, cache: &mut Cache) {
        attention::remember(self, qkv, table, shape, cache)
    }

    fn attention_decode(
        &self,
        qkv: &Floats,
        table: &Floats,
        shape: Shape,
        caches: &mut [Cache],
        out: &mut Floats,
    ) {
        attention::attention_decode(self, qkv, table, shape, caches, out)
    }

    fn glu(&self, gate: Gate, gate_up: &Floats, width: usize, a: &mut Floats) {
        gate::glu(self, gate, gate_up, width, a)
    }

    fn glu_backward(&self, gate: Gate, gate_up: &Floats, da: &Floats, width: usize, d_gate_up: &mut Floats) {
        gate::glu_backward(self, gate, gate_up, da, width, d_gate_up)
    }

    fn glu_quantize(
        &self,
        gate: Gate,
        gate_up: &Floats,
        norm: Option<(&Floats, f32)>,
        h: &mut Rows,
        rstd: &mut Floats,
    ) {
        gate::glu_quantize(self, gate, gate_up, norm, h, rstd)
    }

    fn glu_backward_quantize(
        &self,
        gate: Gate,
        gate_up: &Floats,
        dh: &Floats,
        norm: Option<(&Floats, &Floats, &mut Floats)>,
        d_gate_up: &mut Floats,
        rows: &mut Rows,
    ) {
        gate::glu_backward_quantize(self, gate, gate_up, dh, norm, d_gate_up, rows)
    }

    fn head_loss(
        &self,
        hidden: &Floats,
        head: &Floats,
        targets: &Tokens,
        with: (usize, Products),
        losses: &mut Floats,
    ) {
        head::head_loss(self, hidden, head, targets, with, losses)
    }

    fn head_loss_backward(
        &self,
        hidden: &Floats,
        head: &Floats,
        targets: &Tokens,
        with: (usize, Products),
        weight: f32,
        losses: &mut Floats,
        d_hidden: &mut Floats,
        d_head: Option<&mut Floats>,
    ) {
        head::head_loss_backward(self, hidden, head, targets, with, weight, losses, d_hidden, d_head)
    }

    fn head_logits(&self, hidden: &Floats, head: &Floats, dim: usize, logits: &mut Floats) {
        head::head_logits(self, hidden, head, dim, logits)
    }

    fn head_logits_int8(&self, hidden: &Floats, head: &Rows, logits: &mut Floats) {
        head::head_logits_int8(self, hidden, head, logits)
    }

    fn add_sum(&self, x: &Floats, out: &mut Floats, at: usize) {
        reduce::add_sum(self, x, out, at)
    }

    fn add_sum_squares(&self, x: &Floats, out: &mut Floats, at: usize) {
        reduce::add_sum_squares(self, x, out, at)
    }

    fn add_dot(&self, x: &Floats, y: &Floats, out: &mut Floats, at: usize) {
        reduce::add_dot(self, x, y, out, at)
    }

    fn square_sums(&self, x: &Floats, out: &mut Floats) {
        reduce::square_sums(self, x, out)
    }

    fn admit(&self, statistics: &Floats, limits: &Floats, with: &Admission, gates: &mut Floats) {
        update::admit(self, statistics, limits, with, gates)
    }

    fn approve(&self, of: (&Floats, usize), factor: f32, tensors: Range<usize>, gates: &mut Floats) {
        update::approve(self, of, factor, tensors, gates)
    }

    fn when(&self, gates: &Floats, at: usize, work: impl FnOnce(&Gpu)) {
        assert!(at < gates.len, "a gate of those there are");
        work(&self.behind((gates.arg(), at)))
    }

    fn when_scaled(&self, gates: &Floats, at: usize, g: &mut Floats, work: impl FnOnce(&Gpu, &mut Floats)) {
        // What makes directions multiplies by its gate.
        self.when(gates, at, |gpu| work(gpu, g))
    }

    fn adam(&self, g: &mut Floats, m: &mut Floats, v: &mut Floats, with: Adam) {
        update::adam(self, g, m, v, with)
    }

    fn adam8(&self, g: &mut Floats, m: &mut Packed, v: &mut Packed, with: Adam, noise: &Stream) {
        update::adam8(self, g, m, v, with, noise)
    }

    fn momentum(&self, g: &mut Floats, m: &mut Floats, with: Momentum) {
        update::momentum(self, g, m, with)
    }

    fn momentum_packed(&self, g: &mut Floats, m: &mut Packed, with: Momentum, noise: &Stream) {
        update::momentum_packed(self, g, m, with, noise)
    }

    fn orthogonalize(&self, x: &mut Floats, rows: usize, rms: f32) {
        update::orthogonalize(self, x, rows, rms)
    }

    fn factored(
        &self,
        g: &mut Floats,
        row: &mut Floats,
        col: &mut Floats,
        momentum: &mut Floats,
        with: Factored,
    ) {
        update::factored(self, g, row, col, momentum, with)
    }

    fn prodigy(
        &self,
        g: &mut Floats,
        w: &Floats,
        state: &mut [Floats; 4],
        with: Prodigy,
        sums: (&mut Floats, usize),
    ) {
        update::prodigy(self, g, w, state, with, sums)
    }

    fn average(&self, w: &mut Floats, z: &Floats, x: &mut Floats, with: Average) {
        update::average(self, w, z, x, with)
    }

    fn apply(&self, w: &mut Floats, u: &Floats, with: Apply) {
        update::apply(self, w, u, with)
    }

    fn descend(
        &self,
        w: &mut Weight<Gpu>,
        u: &Floats,
        moment: Option<&mut Packed>,
        with: &Descent<'_>,
        reports: &mut Floats,
    ) {
        descend::descend(self, w, u, moment, with, reports)
    }

    fn max_abs(&self, x: &Floats) -> f32 {
        buffers::max_abs(self, x)
    }

    fn scale(&self, x: &mut Floats, factor: f32) {
        buffers::scale(self, x, factor)
    }

    fn normalize_rows(&self, x: &mut Floats, dim: usize) -> bool {
        clusters::normalize_rows(self, x, dim)
    }

    fn clusters(&self, x: &Floats, dim: usize) -> Clusters {
        clusters::clusters(self, x, dim)
    }

    fn assign(&self, x: &Floats, centroids: &Floats, search: Search, clusters: &mut Clusters) -> Assigned {
        clusters::assign(self, x, centroids, search, clusters)
    }

    fn sum_clusters(&self, x: &Floats, clusters: &mut Clusters, sums: &mut [f64], counts: &mut [u64]) {
        clusters::sum_clusters(self, x, clusters, sums, counts)
    }

    fn cluster_distances(&self, x: &Floats, centroids: &Floats, clusters: &Clusters, out: &mut Floats) {
        clusters::cluster_distances(self, x, centroids, clusters, out)
    }

    fn approach(&self, x: &Floats, centroid: &Floats, nearest: &mut Floats) {
        clusters::approach(self, x, centroid, nearest)
    }

    fn spread(&self, x: &Floats, clusters: &mut Clusters) -> f64 {
        clusters::spread(self, x, clusters)
    }

    fn labels(&self, clusters: &Clusters) -> Vec<u32> {
        clusters::labels(self, clusters)
    }

    fn relabel(&self, clusters: &mut Clusters, row: usize, label: u32) {
        clusters::relabel(self, clusters, row, label)
    }

    fn reset_clusters(&self, clusters: &mut Clusters) {
        clusters::reset_clusters(self, clusters)
    }
}
