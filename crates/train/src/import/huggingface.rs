//! Folders as transformers writes them: `config.json`, safetensors in one file or several with an index, and a
//! tokenizer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde_json::Value;
use tritrain_data::Tokenizer;
use tritrain_files::{
    Storage,
    tensors::{Dtype, TensorFile},
};
use tritrain_model::{Gate, ModelConfig, Precision};

use super::{BlockPart, Description, Origin, Part, TEMPLATE, TOKENIZER_CONFIG, absent, all_parts, refused};
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const ONE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How the matrices of a BitNet model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantised {
    /// As they are.
    No,
    /// Floats whose absmean codes are the weights.
    Online,
    /// Packed codes with a scale that multiplies.
    Multiplies,
    /// Packed codes with a scale that divides.
    Divides,
}

/// A folder of transformers.
pub(super) struct Folder<'s> {
    storage: &'s dyn Storage,
    dir: PathBuf,
    config: Value,
    quantised: Quantised,
    files: Vec<TensorFile>,
    /// File of each tensor.
    places: BTreeMap<String, usize>,
}

impl<'s> Folder<'s> {
    pub(super) fn open(storage: &'s dyn Storage, dir: &Path) -> Result<Folder<'s>> {
        let config = json(storage, &dir.join(CONFIG))?;
        let quantised = quantised(dir, &config)?;
        let mut names = BTreeSet::new();
        let index = dir.join(INDEX);
        if storage.exists(&index)? {
            let map = json(storage, &index)?;
            let map = map["weight_map"].as_object().ok_or_else(|| refused(&index, "it has no weight_map"))?;
            for file in map.values() {
                let name = file.as_str().filter(|name| !name.contains(['/', '\\']));
                names.insert(
                    name.ok_or_else(|| refused(&index, format!("{file} is no file beside it")))?.to_owned(),
                );
            }
        } else {
            names.insert(ONE.to_owned());
        }
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for name in names {
            let path = dir.join(name);
            if !storage.exists(&path)? {
                return Err(refused(dir, format!("{} is not there", path.display())));
            }
            let file = TensorFile::parse(&path, storage.map(&path)?)?;
            for name in file.names() {
                if places.insert(name.to_owned(), files.len()).is_some() {
                    return Err(refused(&path, format!("{name} is in another file of the model as well")));
                }
            }
            files.push(file);
        }
        Ok(Folder { storage, dir: dir.to_path_buf(), config, quantised, files, places })
    }

    fn refused(&self, what: impl Into<String>) -> Error {
        refused(&self.dir.join(CONFIG), what)
    }

    /// A number of the configuration.
    fn number(&self, key: &str) -> Result<usize> {
        let value = &self.config[key];
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.refused(format!("its {key} is {value}; expected a number")))
    }

    fn float(&self, value: &Value, what: &str) -> Result<f32> {
        value
            .as_f64()
            .map(|x| x as f32)
            .ok_or_else(|| self.refused(format!("its {what} is {value}; expected a number")))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match &self.config[key] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.refused(format!("its {key} is {other}; expected true or false"))),
        }
    }

    /// What no model here can do.
    fn check(&self, kind: &str) -> Result<()> {
        let config = &self.config;
        if !matches!(kind, "llama" | "mistral" | "qwen2" | "bitnet") {
            return Err(self.refused(format!(
                "its model_type is {kind:?}; llama (SmolLM too), mistral, qwen2 and bitnet can be imported"
            )));
        }
        let windowed = match kind {
            "qwen2" => self.flag("use_sliding_window", false)?,
            _ => !absent(&config["sliding_window"]),
        };
        if windowed {
            return Err(self.refused("its attention has a sliding window; here it sees all tokens before"));
        }
        let scaling = &config["rope_scaling"];
        let nested = &config["rope_parameters"]["rope_type"];
        if !absent(scaling) && scaling["rope_type"] != "default" && scaling["type"] != "default" {
            return Err(self.refused(format!("its RoPE is scaled: {scaling}; here it never is")));
        }
        if !absent(nested) && nested != "default" {
            return Err(self.refused(format!("its RoPE is of type {nested}; here it is the plain one")));
        }
        if self.flag("mlp_bias", false)? {
            let what = "it has mlp_bias; here queries, keys and values may have biases, nothing else";
            return Err(self.refused(what));
        }
        for (key, plain) in [("partial_rotary_factor", 1.0), ("pretraining_tp", 1.0)] {
            if !absent(&config[key]) && config[key].as_f64() != Some(plain) {
                return Err(self.refused(format!("its {key} is {}; expected {plain}", config[key])));
            }
        }
        Ok(())
    }

    fn model(&self) -> Result<ModelConfig> {
        let config = &self.config;
        let kind = config["model_type"].as_str().unwrap_or_default();
        self.check(kind)?;
        let gate = match config["hidden_act"].as_str() {
            Some("silu" | "swish") => Gate::Silu,
            Some("relu2") => Gate::Relu2,
            // BitNet's default.
            None if kind == "bitnet" => Gate::Relu2,
            _ => {
                let found = &config["hidden_act"];
                return Err(self.refused(format!("its hidden_act is {found}; here gates are silu or relu2")));
            }
        };
        let (dim, heads) = (self.number("hidden_size")?, self.number("num_attention_heads")?);
        if !absent(&config["head_dim"]) && self.number("head_dim")?.checked_mul(heads) != Some(dim) {
            let (found, expected) = (&config["head_dim"], "here heads share the width of the model");
            return Err(
                self.refused(format!("its head_dim is {found} in {heads} heads of {dim}; {expected}"))
            );
        }
        let kv_heads =
            if absent(&config["num_key_value_heads"]) { heads } else { self.number("num_key_value_heads")? };
        let theta = [&config["rope_parameters"]["rope_theta"], &config["rope_theta"]];
        let theta = theta.into_iter().find(|theta| !absent(theta));
        Ok(ModelConfig {
            dim,
            heads,
            kv_heads,
            layers: self.number("num_hidden_layers")?,
            ffn: self.number("intermediate_size")?,
            context: self.number("max_position_embeddings")?,
            gate,
            sub_norm: kind == "bitnet",
            qkv_bias: self.places.contains_key(&name(Part::Block(0, BlockPart::QBias))),
            tied: self.flag("tie_word_embeddings", false)?,
            precision: Precision::F32,
            lora: 0,
            rope_theta: theta.map_or(Ok(10_000.0), |theta| self.float(theta, "rope_theta"))?,
            norm_eps: self.float(&config["rms_norm_eps"], "rms_norm_eps")?,
        })
    }

    /// A float tensor.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.file(name)?;
        let values = file.floats(name, shape)?;
        file.release(name);
        Ok(values)
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let file = self.places.get(name).and_then(|at| self.files.get(*at));
        file.ok_or_else(|| refused(&self.dir, format!("it has no tensor {name}")))
    }

    /// A bias: AutoBitLinear multiplies it by the scale of the packed matrix.
    fn bias(&self, part: Part, len: usize) -> Result<Vec<f32>> {
        let mut bias = self.floats(&name(part), &[len])?;
        if self.quantised == Quantised::Multiplies {
            let scale = self.floats(&format!("{}.weight_scale", stem(part)), &[1])?;
            bias.iter_mut().for_each(|bias| *bias *= scale.first().copied().unwrap_or_default());
        }
        Ok(bias)
    }

    /// A matrix of a block: a quantised one as codes times the scale.
    fn matrix(&self, stem: &str, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        let name = format!("{stem}.weight");
        if self.quantised == Quantised::No {
            return self.floats(&name, &[rows, cols]);
        }
        if self.quantised == Quantised::Online {
            let mut values = self.floats(&name, &[rows, cols])?;
            absmean(&mut values);
            return Ok(values);
        }
        let file = self.file(&name)?;
        if !rows.is_multiple_of(4) {
            return Err(refused(
                &self.dir,
                format!("{name} has {rows} rows; packed ones are a multiple of 4"),
            ));
        }
        let packed = file.typed(&name, Dtype::U8, &[rows / 4, cols])?;
        let stored = self.floats(&format!("{stem}.weight_scale"), &[1])?;
        let scale = match (self.quantised, stored.first()) {
            (Quantised::Divides, Some(stored)) => 1.0 / stored,
            (_, Some(stored)) => *stored,
            (_, None) => 0.0,
        };
        // Row r has its quarters of the matrix in bits 2i: rows r, r + rows/4, ..
        let mut values = vec![0.0; rows * cols];
        for (i, quarter) in values.chunks_exact_mut(packed.len().max(1)).enumerate() {
            for (value, byte) in quarter.iter_mut().zip(packed) {
                let code = (byte >> (2 * i)) & 3;
                if code == 3 {
                    return Err(refused(&self.dir, format!("{name} holds the code 2; expected -1, 0 and 1")));
                }
                *value = (f32::from(code) - 1.0) * scale;
            }
        }
        Ok(values)
    }
}

/// The codes of `BitLinear` in transformers: `clamp(round(w·s), -1, 1)/s` with `s = 1/mean|w|`.
fn absmean(values: &mut [f32]) {
    let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
    let mean = (sum / values.len().max(1) as f64).max(1e-5);
    for value in values {
        *value = ((f64::from(*value) / mean).round_ties_even().clamp(-1.0, 1.0) * mean) as f32;
    }
}

fn json(storage: &dyn Storage, path: &Path) -> Result<Value> {
    if !storage.exists(path)? {
        return Err(refused(path, "it is not there: expected a GGUF file, or a folder of transformers"));
    }
    serde_json::from_slice(&storage.read(path)?)
        .map_err(|error| refused(path, format!("it is no JSON: {error}")))
}

/// How matrices are stored, from `quantization_config`.
fn quantised(dir: &Path, config: &Value) -> Result<Quantised> {
    let entry = &config["quantization_config"];
    if absent(entry) {
        return Ok(Quantised::No);
    }
    let refused = |what: String| refused(&dir.join(CONFIG), what);
    if entry["quant_method"] != "bitnet" {
        return Err(refused(format!(
            "its weights are quantised by {}; expected bitnet or none",
            entry["quant_method"]
        )));
    }
    if entry["use_rms_norm"] == true {
        return Err(refused(
            "its linear layers have norms of their own (use_rms_norm); here they have none".into(),
        ));
    }
    let text = |key: &str, default: &'static str| match &entry[key] {
        Value::Null => Ok(default),
        Value::String(text) => Ok(text.as_str()),
        other => Err(refused(format!("its {key} is {other}; expected a text"))),
    };
    match (text("linear_class", "bitlinear")?, text("quantization_mode", "offline")?) {
        ("bitlinear", _) => Ok(Quantised::Divides),
        ("autobitlinear", "offline") => Ok(Quantised::Multiplies),
        ("autobitlinear", "online") => Ok(Quantised::Online),
        (class, mode) => {
            Err(refused(format!("its linear_class is {class} in mode {mode}, which is not known here")))
        }
    }
}

impl Origin for Folder<'_> {
    fn description(&self) -> Result<Description> {
        let config = self.model()?;
        if config.layers > self.places.len() {
            let (layers, tensors) = (config.layers, self.places.len());
            return Err(self.refused(format!("it has {layers} layers and only {tensors} tensors")));
        }
        let tokenizer = Tokenizer::from_file(&self.dir.join("tokenizer.json"))?;
        let mut beside = Vec::new();
        for name in [TOKENIZER_CONFIG, TEMPLATE] {
            let path = self.dir.join(name);
            if self.storage.exists(&path)? {
                beside.push((name, self.storage.read(&path)?));
            }
        }
        Ok(Description { rows: self.number("vocab_size")?, config, tokenizer, beside })
    }

    fn read(&self, part: Part, [rows, cols]: [usize; 2]) -> Result<Vec<f32>> {
        match (rows, part) {
            (1, _) => self.floats(&name(part), &[cols]),
            _ if part.is_bias() => self.bias(part, rows),
            (_, Part::Block(..)) => self.matrix(&stem(part), [rows, cols]),
            _ => self.floats(&name(part), &[rows, cols]),
        }
    }

    fn left_over(&self, config: &ModelConfig) -> Option<String> {
        let packed = matches!(self.quantised, Quantised::Divides | Quantised::Multiplies);
        let mut known = BTreeSet::new();
        for part in all_parts(config) {
            known.insert(name(part));
            if packed {
                known.insert(format!("{}.weight_scale", stem(part)));
            }
        }
        // A tied head may be stored a second time, old files hold what RoPE computes, and where queries have biases
        // the output of attention may have some that are zero.
        let is_zero = |name: &str| {
            let values = self.floats(name, &[config.dim]);
            values.is_ok_and(|values| values.iter().all(|value| *value == 0.0))
        };
        let known = |name: &&String| {
            known.contains(*name)
                || (name.ends_with("self_attn.o_proj.bias") && is_zero(name))
                || name.ends_with("rotary_emb.inv_freq")
                || (config.tied && name.as_str() == "lm_head.weight")
        };
        self.places.keys().find(|name| !known(name)).cloned()
    }
}

/// The name of a tensor.
fn name(part: Part) -> String {
    format!("{}.{}", stem(part), part.end())
}

/// The same without its end.
fn stem(part: Part) -> String {
    let (n, part) = match part {
        Part::Embedding => return "model.embed_tokens".into(),
        Part::Head => return "lm_head".into(),
        Part::Norm => return "model.norm".into(),
        Part::Block(n, part) => (n, part),
    };
    let name = match part {
        BlockPart::AttnNorm => "input_layernorm",
        BlockPart::FfnNorm => "post_attention_layernorm",
        BlockPart::AttnSubNorm => "self_attn.attn_sub_norm",
        BlockPart::FfnSubNorm => "mlp.ffn_sub_norm",
        BlockPart::Q | BlockPart::QBias => "self_attn.q_proj",
        BlockPart::K | BlockPart::KBias => "self_attn.k_proj",
        BlockPart::V | BlockPart::VBias => "self_attn.v_proj",
        BlockPart::O => "self_attn.o_proj",
        BlockPart::Gate => "mlp.gate_proj",
        BlockPart::Up => "mlp.up_proj",
        BlockPart::Down => "mlp.down_proj",
    };
    format!("model.layers.{n}.{name}")
}
