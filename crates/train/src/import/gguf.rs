//! GGUF files of llama.cpp: architectures llama, qwen2 and bitnet.

use std::{collections::BTreeSet, path::Path};

use serde_json::json;
use tritrain_data::{GgufTokenizer, Tokenizer};
use tritrain_files::{
    Bytes, Storage,
    gguf::{Block, GgufFile, Tensor, Value},
};
use tritrain_model::{Gate, ModelConfig, Precision};
use tritrain_trit::blocks;

use super::{BlockPart, Description, Origin, Part, TOKENIZER_CONFIG, all_parts, refused, ternary};
use crate::{Error, Result};

/// A GGUF file.
#[derive(Debug)]
pub(crate) struct File {
    file: GgufFile,
    architecture: String,
}

impl File {
    pub(super) fn open(storage: &dyn Storage, path: &Path) -> Result<File> {
        let file = GgufFile::open(storage, path)?;
        let architecture = file.text("general.architecture")?.to_owned();
        if !matches!(architecture.as_str(), "llama" | "qwen2" | "bitnet") {
            let what =
                format!("its architecture is {architecture:?}; llama, qwen2 and bitnet can be imported");
            return Err(refused(path, what));
        }
        Ok(File { file, architecture })
    }

    fn refused(&self, what: impl Into<String>) -> Error {
        refused(self.file.path(), what)
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn has(&self, name: &str) -> bool {
        self.file.value(&self.key(name)).is_some()
    }

    fn number(&self, name: &str) -> Result<usize> {
        Ok(self.file.integer_in(&self.key(name), 0..=u64::from(u32::MAX))?)
    }

    fn number_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.has(name) { self.number(name) } else { Ok(default) }
    }

    fn model(&self) -> Result<ModelConfig> {
        let (dim, heads) = (self.number("embedding_length")?, self.number("attention.head_count")?);
        let head_dim = dim / heads.max(1);
        for name in ["rope.dimension_count", "attention.key_length", "attention.value_length"] {
            let found = self.number_or(name, head_dim)?;
            if found != head_dim || head_dim * heads != dim {
                let expected = "here heads share the width of the model and are rotated as a whole";
                return Err(
                    self.refused(format!("its {name} is {found} in {heads} heads of {dim}; {expected}"))
                );
            }
        }
        for (name, what) in [
            (
                "attention.sliding_window",
                "its attention has a sliding window; here it sees all tokens before",
            ),
            ("expert_count", "it is a mixture of experts of another kind"),
        ] {
            if self.number_or(name, 0)? != 0 {
                return Err(self.refused(what));
            }
        }
        if self.has("rope.scaling.type") {
            let kind = self.file.text(&self.key("rope.scaling.type"))?;
            let factor = match self.has("rope.scaling.factor") {
                true => self.file.float(&self.key("rope.scaling.factor"))?,
                false => 1.0,
            };
            if kind != "none" && !(kind == "linear" && factor == 1.0) {
                return Err(self.refused(format!("its RoPE is scaled: {kind} by {factor}; here it never is")));
            }
        }
        let theta = match self.has("rope.freq_base") {
            true => self.file.float(&self.key("rope.freq_base"))? as f32,
            false => 10_000.0,
        };
        Ok(ModelConfig {
            dim,
            heads,
            kv_heads: self.number_or("attention.head_count_kv", heads)?,
            layers: self.number("block_count")?,
            ffn: self.number("feed_forward_length")?,
            context: self.number("context_length")?,
            gate: Gate::Silu,
            sub_norm: self.architecture == "bitnet",
            qkv_bias: self.file.names().any(|found| found == name(Part::Block(0, BlockPart::QBias))),
            tied: !self.file.names().any(|name| name == "output.weight"),
            precision: Precision::F32,
            lora: 0,
            rope_theta: theta,
            norm_eps: self.file.float(&self.key("attention.layer_norm_rms_epsilon"))? as f32,
        })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>> {
        let tensor = self.file.tensor(name)?;
        if tensor.shape != shape {
            return Err(self.refused(format!("its {name} is {:?}; expected {shape:?}", tensor.shape)));
        }
        Ok(tensor)
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let values = self.tensor(name, shape)?.floats()?;
        self.file.release(name);
        Ok(values)
    }

    /// The factor of a matrix that lies beside it, if any.
    fn factor(&self, part: Part) -> Result<f32> {
        let name = format!("{}.scale", stem(part));
        if !self.file.names().any(|found| found == name) {
            return Ok(1.0);
        }
        Ok(self.floats(&name, &[1])?.first().copied().unwrap_or(1.0))
    }

    /// Whether rows of a matrix are in the order in which neighbours are rotated.
    fn neighbours(&self, part: Part) -> bool {
        use BlockPart::{K, KBias, Q, QBias};
        self.architecture == "llama" && matches!(part, Part::Block(_, Q | K | QBias | KBias))
    }

    fn head_dim(&self) -> Result<usize> {
        Ok(self.number("embedding_length")? / self.number("attention.head_count")?.max(1))
    }

    /// The tokenizer of the metadata, and its template and names of tokens as transformers writes them.
    fn tokenizer(&self) -> Result<(Tokenizer, Vec<u8>)> {
        let file = &self.file;
        let model = file.text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            let expected = "here tokenizers are byte-level BPE (gpt2)";
            return Err(self.refused(format!("its tokenizer is of the kind {model:?}; {expected}")));
        }
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let kinds = match file.value("tokenizer.ggml.token_type") {
            Some(_) => file.integers("tokenizer.ggml.token_type")?,
            None => vec![1; tokens.len()],
        };
        let pre = match file.value("tokenizer.ggml.pre") {
            Some(_) => file.text("tokenizer.ggml.pre")?,
            None => "default",
        };
        let merges = file.texts("tokenizer.ggml.merges")?;
        let parts = GgufTokenizer { tokens: &tokens, kinds: &kinds, merges: &merges, pre };
        let tokenizer = Tokenizer::from_gguf(&parts, file.path())?;
        let mut config = json!({});
        for (key, name) in [("bos_token_id", "bos_token"), ("eos_token_id", "eos_token")] {
            let key = format!("tokenizer.ggml.{key}");
            if file.value(&key).is_some() {
                let most = tokens.len().saturating_sub(1) as u64;
                let id = file.integer_in(&key, 0..=most)?;
                config[name] = json!(tokens.get(id).copied());
            }
        }
        if let Some(Value::Text(template)) = file.value("tokenizer.chat_template") {
            config["chat_template"] = json!(template);
        }
        Ok((tokenizer, format!("{config:#}\n").into_bytes()))
    }
}

impl Origin for File {
    fn description(&self) -> Result<Description> {
        let config = self.model()?;
        let count = self.file.names().count();
        if config.layers > count {
            return Err(self.refused(format!("it has {} layers and only {count} tensors", config.layers)));
        }
        let rows = self.file.tensor("token_embd.weight")?.shape.first().copied().unwrap_or_default();
        let (tokenizer, names) = self.tokenizer()?;
        Ok(Description { config, rows, tokenizer, beside: vec![(TOKENIZER_CONFIG, names)] })
    }

    fn read(&self, part: Part, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        let name = name(part);
        if rows == 1 {
            return self.floats(&name, &[cols]);
        }
        let is_bias = part.is_bias();
        let mut values =
            if is_bias { self.floats(&name, &[rows]) } else { self.floats(&name, &[rows, cols]) }?;
        let factor = if is_bias { 1.0 } else { self.factor(part)? };
        if factor != 1.0 {
            values.iter_mut().for_each(|value| *value *= factor);
        }
        if self.neighbours(part) {
            values = halves(&values, cols, self.head_dim()?);
        }
        Ok(values)
    }

    fn halves(&self, part: Part, shape: [usize; 2]) -> Result<Option<Bytes>> {
        let name = name(part);
        let tensor = self.tensor(&name, &shape)?;
        Ok(self.file.bytes(&name).filter(|_| tensor.block == Block::F16))
    }

    fn release(&self, part: Part) {
        self.file.release(&name(part));
    }

    fn scale(&self, part: Part, shape: [usize; 2]) -> Result<Option<f64>> {
        let tensor = self.tensor(&name(part), &shape)?;
        match blocks::scale(tensor.block, tensor.data).map(f64::from) {
            // The sign goes into the codes.
            Some(scale) => {
                Ok(Some((scale * f64::from(self.factor(part)?)).abs()).filter(|scale| scale.is_finite()))
            }
            None => Ok(ternary::scale_of(&self.read(part, shape)?)),
        }
    }

    fn codes(&self, part: Part, shape: [usize; 2], to: &mut Vec<i8>) -> Result<()> {
        let name = name(part);
        let tensor = self.tensor(&name, &shape)?;
        let negative = self.factor(part)? < 0.0;
        if negative || blocks::scale(tensor.block, tensor.data).is_none_or(|scale| scale.to_f32() <= 0.0) {
            to.extend(ternary::codes_of(&self.read(part, shape)?));
        } else if self.neighbours(part) {
            let mut codes = Vec::new();
            tensor.append_codes(&mut codes)?;
            to.extend(halves(&codes, shape[1], self.head_dim()?));
        } else {
            tensor.append_codes(to)?;
        }
        self.file.release(&name);
        Ok(())
    }

    fn left_over(&self, config: &ModelConfig) -> Option<String> {
        let mut known = BTreeSet::new();
        for part in all_parts(config) {
            known.extend([part.end(), "scale"].map(|end| format!("{}.{end}", stem(part))));
        }
        self.file.names().find(|name| !known.contains(*name)).map(str::to_owned)
    }
}

/// The name of a tensor.
fn name(part: Part) -> String {
    format!("{}.{}", stem(part), part.end())
}

/// The same without its end.
fn stem(part: Part) -> String {
    let (n, part) = match part {
        Part::Embedding => return "token_embd".into(),
        Part::Head => return "output".into(),
        Part::Norm => return "output_norm".into(),
        Part::Block(n, part) => (n, part),
    };
    let name = match part {
        BlockPart::AttnNorm => "attn_norm",
        BlockPart::FfnNorm => "ffn_norm",
        BlockPart::AttnSubNorm => "attn_sub_norm",
        BlockPart::FfnSubNorm => "ffn_sub_norm",
        BlockPart::Q | BlockPart::QBias => "attn_q",
        BlockPart::K | BlockPart::KBias => "attn_k",
        BlockPart::V | BlockPart::VBias => "attn_v",
        BlockPart::O => "attn_output",
        BlockPart::Gate => "ffn_gate",
        BlockPart::Up => "ffn_up",
        BlockPart::Down => "ffn_down",
    };
    format!("blk.{n}.{name}")
}

/// Rows of heads in which neighbours are rotated together, in the order in which halves are: of each head first the
/// even rows, then the odd ones.
fn halves<T: Copy>(rows: &[T], cols: usize, head_dim: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(head_dim * cols) {
        for half in 0..2 {
            for row in head.chunks_exact(cols).skip(half).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::halves;

    #[test]
    fn rows_of_heads_go_to_their_halves() {
        // Two heads of four rows of two columns, each entry ten times its row and its column.
        let rows: Vec<f32> = (0..8).flat_map(|row| [row as f32 * 10.0, row as f32 * 10.0 + 1.0]).collect();
        let order: Vec<f32> = halves(&rows, 2, 4).chunks(2).map(|row| row[0] / 10.0).collect();
        assert_eq!(order, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(
            halves(&[0, 1, 2, 3, 4, 5, 6, 7], 1, 4),
            [0, 2, 1, 3, 4, 6, 5, 7],
            "biases have one column"
        );
    }
}
