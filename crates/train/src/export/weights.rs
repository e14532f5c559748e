//! A model's weights as they compute, and under which names other programs know them.

use std::ops::Range;

use tritrain_backend::{Backend, Values};
use tritrain_model::{Layout, Model, ModelConfig, Precision, TensorKind, Use};

use crate::{Loaded, Result};

/// A tensor, or some rows of one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rows {
    /// As they are.
    Floats(Vec<f32>),
    /// Ternary codes and their scale, an fp16 number.
    Codes(Vec<i8>, f32),
}

impl Rows {
    /// The weights that are multiplied.
    pub(crate) fn floats(&self) -> Vec<f32> {
        match self {
            Rows::Floats(weights) => weights.clone(),
            Rows::Codes(codes, scale) => codes.iter().map(|&code| f32::from(code) * scale).collect(),
        }
    }

    fn part(&self, range: Range<usize>) -> Rows {
        match self {
            Rows::Floats(weights) => Rows::Floats(weights[range].to_vec()),
            Rows::Codes(codes, scale) => Rows::Codes(codes[range].to_vec(), *scale),
        }
    }
}

/// A model's weights in layout order.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    pub(crate) config: ModelConfig,
    pub(crate) vocab: usize,
    pub(crate) layout: Layout,
    pub(crate) tensors: Vec<Rows>,
}

impl Weights {
    pub(crate) fn of<B: Backend>(backend: &B, loaded: &Loaded) -> Result<Weights> {
        loaded.without_adapters()?;
        let model = loaded.model(backend)?;
        let layout = model.layout().clone();
        let tensor = |id: usize| match (model.codes(backend, id), model.values(backend, id)) {
            (Some((codes, scale)), _) => Rows::Codes(codes, scale),
            (None, weights) => Rows::Floats(weights.host().into_owned()),
        };
        let tensors = (0..layout.specs.len()).map(tensor).collect();
        Ok(Weights { config: loaded.config.clone(), vocab: loaded.vocab, layout, tensors })
    }

    /// The rows of a piece.
    pub(crate) fn rows(&self, piece: &Piece) -> Rows {
        let cols = self.layout.specs[piece.tensor].cols;
        self.tensors[piece.tensor].part(piece.rows.start * cols..piece.rows.end * cols)
    }

    /// The model that these weights were trained as.
    pub(crate) fn model<B: Backend>(&self, backend: &B) -> Model<B> {
        self.build(backend, &self.config, |rows| match rows {
            Rows::Floats(weights) => weights.into(),
            Rows::Codes(codes, scale) => Values::Codes(codes.into(), *scale),
        })
    }

    /// The same weights with activations that are not rounded: what programs compute that know nothing of int8.
    pub(crate) fn in_floats<B: Backend>(&self, backend: &B) -> Model<B> {
        let config = ModelConfig { precision: Precision::F32, ..self.config.clone() };
        self.build(backend, &config, |rows| Values::Floats(rows.floats().into()))
    }

    fn build<'a, B: Backend>(
        &'a self,
        backend: &B,
        config: &ModelConfig,
        weights: impl Fn(&'a Rows) -> Values<'a>,
    ) -> Model<B> {
        Model::new(backend, config, self.vocab, &|id| weights(&self.tensors[id]), Use::Inference)
    }
}

/// Weights that other programs quantise to these codes and this scale whenever they use them, as near to the latent
/// weights `latent` as that allows. One matrix of ours (queries, keys and values have one scale) is several of
/// theirs, each with the mean of its own magnitudes: so what lies beyond half the scale is moved towards it or away
/// until the mean is the scale.
pub(crate) fn masters(latent: &[f32], codes: &[i8], scale: f32) -> Vec<f32> {
    // Half of the scale is where a code changes: no weight may lie nearer than rounding of their mean moves it.
    let half = 0.5 * f64::from(scale);
    let (below, above) = (half * (1.0 - 1e-4), half * (1.0 + 1e-4));
    let inner = |w: f32| f64::from(w).clamp(-below, below);
    let beyond = |w: f32| (f64::from(w.abs()) - above).max(0.0);
    let pairs = || latent.iter().zip(codes);
    let zeros: f64 = pairs().filter(|(_, code)| **code == 0).map(|(w, _)| inner(*w).abs()).sum();
    let count = codes.iter().filter(|code| **code != 0).count();
    if count == 0 {
        // The mean of anything else would be a smaller scale, and make codes of it.
        return vec![0.0; codes.len()];
    }
    let outer: f64 = pairs().filter(|(_, code)| **code != 0).map(|(w, _)| beyond(*w)).sum();
    // What is left for the outer weights. It is above 0: inner ones have less than half a scale each.
    let left = f64::from(scale) * codes.len() as f64 - zeros - above * count as f64;
    // Where no weight lies beyond, each takes the same part.
    let (factor, each) = if outer > 0.0 { (left / outer, 0.0) } else { (0.0, left / count as f64) };
    let master = |(w, code): (&f32, &i8)| match code {
        0 => inner(*w) as f32,
        _ => f32::from(*code) * (above + factor * beyond(*w) + each) as f32,
    };
    pairs().map(master).collect()
}

/// Some rows of one of our tensors that are a tensor of their own elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Number of our tensor.
    pub(crate) tensor: usize,
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Inputs.
    pub(crate) cols: usize,
    pub(crate) kind: TensorKind,
    /// Its name in GGUF.
    pub(crate) gguf: String,
    /// Its name in transformers.
    pub(crate) hf: String,
    /// Number of heads, of queries and keys.
    pub(crate) heads: Option<usize>,
}

impl Piece {
    /// How it is stored.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.kind.shape(self.rows.len(), self.cols)
    }
}

/// All pieces of a model, each row of each tensor once.
pub(crate) fn pieces(config: &ModelConfig, layout: &Layout) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut add = |tensor: usize, rows: Range<usize>, heads, gguf: String, hf: String| {
        let (cols, kind) = (layout.specs[tensor].cols, layout.specs[tensor].kind);
        let end = if kind == TensorKind::Bias { "bias" } else { "weight" };
        let (gguf, hf) = (format!("{gguf}.{end}"), format!("{hf}.{end}"));
        pieces.push(Piece { tensor, rows, cols, kind, gguf, hf, heads });
    };
    let all = |tensor: usize| 0..layout.specs[tensor].rows;
    let (embedding, norm, head) = (layout.embedding, layout.norm, layout.head);
    add(embedding, all(embedding), None, "token_embd".into(), "model.embed_tokens".into());
    let (inner, ffn) = (config.heads * config.head_dim(), config.ffn);
    let kv = config.kv_heads * config.head_dim();
    for (n, ids) in layout.blocks.iter().enumerate() {
        let mut add = |tensor, rows, heads, gguf: &str, hf: &str| {
            add(tensor, rows, heads, format!("blk.{n}.{gguf}"), format!("model.layers.{n}.{hf}"));
        };
        add(ids.attn_norm, 0..1, None, "attn_norm", "input_layernorm");
        for id in std::iter::once(ids.qkv).chain(ids.qkv_bias) {
            add(id, 0..inner, Some(config.heads), "attn_q", "self_attn.q_proj");
            add(id, inner..inner + kv, Some(config.kv_heads), "attn_k", "self_attn.k_proj");
            add(id, inner + kv..inner + 2 * kv, None, "attn_v", "self_attn.v_proj");
        }
        if let Some(id) = ids.attn_sub_norm {
            add(id, 0..1, None, "attn_sub_norm", "self_attn.attn_sub_norm");
        }
        add(ids.o, all(ids.o), None, "attn_output", "self_attn.o_proj");
        add(ids.ffn_norm, 0..1, None, "ffn_norm", "post_attention_layernorm");
        add(ids.gate_up, 0..ffn, None, "ffn_gate", "mlp.gate_proj");
        add(ids.gate_up, ffn..2 * ffn, None, "ffn_up", "mlp.up_proj");
        if let Some(id) = ids.ffn_sub_norm {
            add(id, 0..1, None, "ffn_sub_norm", "mlp.ffn_sub_norm");
        }
        add(ids.down, all(ids.down), None, "ffn_down", "mlp.down_proj");
    }
    add(norm, 0..1, None, "output_norm".into(), "model.norm".into());
    if head != embedding {
        add(head, all(head), None, "output".into(), "lm_head".into());
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_every_row_once() {
        for (sub_norm, tied) in [(true, true), (false, false)] {
            let config =
                ModelConfig { sub_norm, tied, qkv_bias: tied, kv_heads: 2, ..ModelConfig::default() };
            let layout = Layout::new(&config, 300);
            let mut rows = vec![0; layout.specs.len()];
            let all = pieces(&config, &layout);
            for piece in &all {
                assert_eq!(piece.rows.start, rows[piece.tensor], "{}", piece.gguf);
                rows[piece.tensor] = piece.rows.end;
            }
            assert!(rows.iter().zip(&layout.specs).all(|(rows, spec)| *rows == spec.rows));
            let names: std::collections::BTreeSet<_> = all.iter().map(|piece| &piece.hf).collect();
            assert_eq!(names.len(), all.len());
        }
    }

    /// Mean magnitude and codes by the rule of transformers, in f64.
    fn quantise(weights: &[f32]) -> (f64, Vec<i8>) {
        let mean = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() / weights.len() as f64;
        let code = |w: &f32| (f64::from(*w) / mean).round_ties_even().clamp(-1.0, 1.0) as i8;
        (mean, weights.iter().map(code).collect())
    }

    #[test]
    fn masters_keep_codes_and_scale_of_a_part() {
        // Rows whose mean magnitude is far from the scale of the whole matrix, on either side.
        for spread in [0.2f32, 1.0, 3.0] {
            let scale = 0.0123f32;
            let latent: Vec<f32> =
                (0..2000).map(|i| spread * scale * (i as f32 * 0.7).sin() * 1.6).chain([scale]).collect();
            let codes: Vec<i8> =
                latent.iter().map(|w| i8::from(*w > scale / 2.0) - i8::from(*w < -scale / 2.0)).collect();
            let (mean, found) = quantise(&masters(&latent, &codes, scale));
            assert_eq!(found, codes, "{spread}");
            assert!((mean / f64::from(scale) - 1.0).abs() < 1e-6, "{spread}: {mean}");
            let (mean, found) = quantise(&tritrain_trit::ternary::latent(&codes, scale));
            assert_eq!(found, codes);
            assert!((mean / f64::from(scale) - 1.0).abs() < 1e-6);
        }
        // Exactly at the edge, alone, and nothing but zeros.
        let (mean, found) = quantise(&masters(&[0.50001, 0.2, -0.1], &[1, 0, 0], 1.0));
        assert!((mean - 1.0).abs() < 1e-6 && found == [1, 0, 0]);
        assert_eq!(masters(&[0.1, -0.2], &[0, 0], 1.0), [0.0, 0.0]);
    }
}
