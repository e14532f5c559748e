//! A folder for transformers: `BitNetForCausalLM` for models with sub-norms, `LlamaForCausalLM` for those without.
//! Where both have biases of queries, keys and values (`attention_bias`), they have one of the output of attention,
//! too, which is zero here. `Qwen2ForCausalLM` has none, but is given a tokenizer that cuts text as Qwen's does,
//! whatever lies in the folder.
//!
//! Source: transformers, `integrations/bitnet.py` (`pack_weights`, `BitLinear`, `AutoBitLinear`, `WeightQuant`).
//! Ternary matrices are four codes in a byte, of rows a quarter of the matrix apart, with a scale that
//! `autobitlinear` multiplies and `bitlinear` divides by; or master weights that `autobitlinear` quantises whenever
//! it uses them. Both round activations to int8 by token, as in training. Everything else is f32.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use tritrain_backend::{Backend, Values};
use tritrain_data::{Tokenizer, chat::TEMPLATE};
use tritrain_files::{
    Storage,
    tensors::{self, Dtype, TensorFile, TensorView},
    write_atomic,
};
use tritrain_model::{Gate, ModelConfig, TensorKind};
use tritrain_trit::blocks::{self, Block};

use super::{
    is_ternary, refuse,
    weights::{Piece, Rows, Weights, masters, pieces},
};
use crate::{Error, Loaded, Result};

const TARGET: &str = "transformers";
const CONFIG: &str = "config.json";
const TENSORS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
/// `WeightQuant` takes no smaller mean than this.
const SMALLEST_SCALE: f32 = 1e-5;

/// How transformers is to hold a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hf {
    /// Ternary matrices packed, for one of two classes of layers.
    Packed(LinearClass),
    /// Ternary matrices as f32 master weights, which can be trained on (`quantization_mode` "online").
    Online,
    /// f32 matrices, rounded to a type.
    Plain(Floats),
}

/// The layer that multiplies packed matrices (`linear_class`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearClass {
    /// Unpacks when it loads and multiplies floats; multiplies by the scale.
    AutoBitLinear,
    /// Keeps matrices packed and unpacks them for every product; divides by the stored scale.
    BitLinear,
}

impl LinearClass {
    fn name(self) -> &'static str {
        match self {
            LinearClass::AutoBitLinear => "autobitlinear",
            LinearClass::BitLinear => "bitlinear",
        }
    }

    /// What is stored of a scale.
    fn stored(self, scale: f32) -> f32 {
        match self {
            LinearClass::AutoBitLinear => scale,
            LinearClass::BitLinear => 1.0 / scale,
        }
    }
}

/// The type of the tensors of an f32 model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// Without loss.
    F32,
    /// fp16.
    F16,
    /// bfloat16.
    Bf16,
}

/// Names of the types by which tensors, files and blocks know them.
const FLOATS: [(Floats, &str, Dtype, Block); 3] = [
    (Floats::F32, "float32", Dtype::F32, Block::F32),
    (Floats::F16, "float16", Dtype::F16, Block::F16),
    (Floats::Bf16, "bfloat16", Dtype::BF16, Block::Bf16),
];

impl Hf {
    /// The type of everything that is not packed: its name, and how it is stored.
    fn floats(self) -> (&'static str, Dtype, Block) {
        let floats = if let Hf::Plain(floats) = self { floats } else { Floats::F32 };
        let row = FLOATS.iter().find(|row| row.0 == floats).unwrap_or(&FLOATS[0]);
        (row.1, row.2, row.3)
    }
}

pub(super) fn check(config: &ModelConfig, hf: Hf) -> Result<()> {
    match (is_ternary(config), hf) {
        (true, Hf::Plain(_)) => {
            let hint = "leave --type out, or take --to gguf --type f32";
            refuse(TARGET, "its floats would not round activations as this ternary model does", hint)
        }
        (false, Hf::Packed(_) | Hf::Online) => refuse(
            TARGET,
            "this model's matrices are f32, there are no codes to pack",
            "take --type f32, f16 or bf16",
        ),
        (true, Hf::Packed(LinearClass::AutoBitLinear)) if config.qkv_bias => refuse(
            TARGET,
            "AutoBitLinear multiplies biases by the scale of the packed matrix, too",
            "take --linear-class bitlinear or --mode online",
        ),
        (true, Hf::Packed(_)) => {
            let kv = config.kv_heads * config.head_dim();
            if !kv.is_multiple_of(4) {
                let reason = format!("four rows are packed in a byte, and keys have {kv} rows");
                return refuse(TARGET, reason, "take --mode online");
            }
            Ok(())
        }
        (true, Hf::Online) | (false, Hf::Plain(_)) => Ok(()),
    }
}

/// A number as its shortest decimal, without the digits that widening would add.
fn number(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, |x| json!(x))
}

fn config_json(loaded: &Loaded, weights: &Weights, hf: Hf) -> Value {
    let config = &weights.config;
    let (architecture, kind) = match config.sub_norm {
        true => ("BitNetForCausalLM", "bitnet"),
        false => ("LlamaForCausalLM", "llama"),
    };
    let gate = match config.gate {
        Gate::Silu => "silu",
        Gate::Relu2 => "relu2",
    };
    let (eos, theta) = (loaded.tokenizer.eos(), number(config.rope_theta));
    let mut json = json!({
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": weights.vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim(),
        "hidden_act": gate,
        "max_position_embeddings": config.context,
        "rms_norm_eps": number(config.norm_eps),
        "rope_theta": theta.clone(),
        "rope_parameters": { "rope_theta": theta, "rope_type": "default" },
        "tie_word_embeddings": config.tied,
        "attention_bias": config.qkv_bias,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "dtype": hf.floats().0,
        "torch_dtype": hf.floats().0,
    });
    let (class, mode) = match hf {
        Hf::Packed(class) => (class.name(), "offline"),
        Hf::Online => (LinearClass::AutoBitLinear.name(), "online"),
        Hf::Plain(_) => return json,
    };
    json["quantization_config"] = json!({
        "quant_method": "bitnet",
        "linear_class": class,
        "quantization_mode": mode,
        "modules_to_not_convert": ["lm_head"],
        "use_rms_norm": false,
    });
    json
}

pub(super) fn write<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    folder: &Path,
    loaded: &Loaded,
    weights: &Weights,
    hf: Hf,
) -> Result<()> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let latent = (hf == Hf::Online).then(|| loaded.trainable(backend)).transpose()?;
    for piece in pieces(&weights.config, &weights.layout) {
        let rows = weights.rows(&piece);
        match (&rows, hf) {
            (Rows::Codes(codes, scale), Hf::Packed(class)) => {
                let shape = vec![piece.rows.len() / 4, piece.cols];
                let name = piece.hf.replace(".weight", ".weight_scale");
                tensors.push((name, Dtype::F32, vec![1], class.stored(*scale).to_le_bytes().into()));
                tensors.push((piece.hf.clone(), Dtype::U8, shape, pack(codes)));
            }
            _ => {
                let floats = match (&rows, &latent) {
                    (Rows::Codes(codes, scale), Some(model)) => {
                        if *scale < SMALLEST_SCALE {
                            let reason = format!("{} has the scale {scale}, the smallest is 1e-5", piece.hf);
                            return refuse(TARGET, reason, "take --mode offline");
                        }
                        let Values::Floats(all) = model.values(backend, piece.tensor) else { continue };
                        let part = piece.rows.start * piece.cols..piece.rows.end * piece.cols;
                        masters(&all[part], codes, *scale)
                    }
                    _ => rows.floats(),
                };
                let (_, dtype, block) = hf.floats();
                let mut data = vec![0; block.len(floats.len()).unwrap_or_default()];
                blocks::encode(block, &floats, &mut data).map_err(|error| Error::Content {
                    path: folder.join(TENSORS),
                    expected: format!("{} in {}", piece.hf, block.name()),
                    found: error.to_string(),
                })?;
                tensors.push((piece.hf.clone(), dtype, piece.shape(), data));
            }
        }
    }
    let (_, dtype, block) = hf.floats();
    for name in output_biases(&weights.config) {
        let zeros = vec![0; block.len(weights.config.dim).unwrap_or_default()];
        tensors.push((name, dtype, vec![weights.config.dim], zeros));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| TensorView {
        name: Cow::Borrowed(name.as_str()),
        dtype: *dtype,
        shape: shape.clone(),
        data,
    });
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    tensors::save(storage, &folder.join(TENSORS), views, &metadata)?;
    write_atomic(storage, &folder.join(TOKENIZER), tokenizer_json(loaded)?.as_bytes())?;
    let eos = loaded.tokenizer.eos();
    let start = loaded.tokenizer.name_of(eos);
    let template = loaded.template_file(storage)?;
    if let Some(template) = &template {
        write_atomic(storage, &folder.join(TEMPLATE), template.source().as_bytes())?;
    }
    // Where the model chats, text ends as its answers do.
    let end = template.and_then(|template| template.end(&loaded.tokenizer));
    let (end, end_id) = end.unwrap_or_else(|| (start.clone(), eos));
    let parts = [
        (CONFIG, config_json(loaded, weights, hf)),
        (
            "generation_config.json",
            json!({ "bos_token_id": eos, "eos_token_id": end_id, "pad_token_id": eos }),
        ),
        (
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": start,
                "eos_token": end,
                "pad_token": start,
                "model_max_length": weights.config.context,
                "clean_up_tokenization_spaces": false,
            }),
        ),
    ];
    for (name, json) in parts {
        write_atomic(storage, &folder.join(name), format!("{json:#}\n").as_bytes())?;
    }
    Ok(())
}

/// Biases that models have in transformers and here never do: zeros.
fn output_biases(config: &ModelConfig) -> impl Iterator<Item = String> {
    let layers = if config.qkv_bias { config.layers } else { 0 };
    (0..layers).map(|n| format!("model.layers.{n}.self_attn.o_proj.bias"))
}

/// The tokenizer with text behind an end of text, as documents are in training, unless it has its own idea of what
/// stands around text.
fn tokenizer_json(loaded: &Loaded) -> Result<String> {
    let tokenizer = &loaded.tokenizer;
    let mut json: Value = serde_json::from_str(tokenizer.json()).map_err(|error| Error::Content {
        path: TOKENIZER.into(),
        expected: "a tokenizer as JSON".into(),
        found: error.to_string(),
    })?;
    if json["post_processor"].is_null() {
        let end = tokenizer.name_of(tokenizer.eos());
        let special = json!({ "SpecialToken": { "id": end, "type_id": 0 } });
        let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [special, text("A")],
            "pair": [special, text("A"), text("B")],
            "special_tokens": { &end: { "id": end, "ids": [tokenizer.eos()], "tokens": [end] } },
        });
    }
    Ok(format!("{json:#}\n"))
}

/// Code + 1 of four rows in a byte, a quarter of the matrix apart, the first in the lowest bits.
fn pack(codes: &[i8]) -> Vec<u8> {
    let quarter = codes.len() / 4;
    let byte = |at| (0..4).rev().fold(0, |byte, part| byte << 2 | (codes[part * quarter + at] + 1) as u8);
    (0..quarter).map(byte).collect()
}

/// The codes; `None` where a field is 3.
fn unpack(bytes: &[u8]) -> Option<Vec<i8>> {
    let fields = (0..4).flat_map(|part| bytes.iter().map(move |byte| byte >> (2 * part) & 3));
    fields.map(|field| (field < 3).then_some(field as i8 - 1)).collect()
}

/// A folder as it is read back.
#[derive(Debug)]
pub(super) struct Folder {
    file: TensorFile,
    hf: Hf,
}

impl Folder {
    /// Opens a folder, and compares everything but the tensors with what one of this model holds.
    pub(super) fn open(
        storage: &dyn Storage,
        folder: &Path,
        loaded: &Loaded,
        weights: &Weights,
    ) -> Result<Folder> {
        let path = folder.join(CONFIG);
        let found: Value = serde_json::from_slice(&storage.read(&path)?).map_err(|error| Error::Content {
            path: path.clone(),
            expected: "the configuration of a model for transformers".into(),
            found: error.to_string(),
        })?;
        let differs = |path: &Path, what: &str, expected: String, found: String| {
            Err(Error::Differs { path: path.to_path_buf(), what: what.to_owned(), expected, found })
        };
        let hf = target_of(&found);
        let expected = config_json(loaded, weights, hf);
        for (key, expected) in expected.as_object().into_iter().flatten() {
            if found[key] != *expected {
                return differs(&path, key, expected.to_string(), found[key].to_string());
            }
        }
        let path = folder.join(TOKENIZER);
        let found = Tokenizer::from_bytes(&storage.read(&path)?, &path)?;
        let expected = Tokenizer::from_bytes(tokenizer_json(loaded)?.as_bytes(), &path)?;
        if found.hash() != expected.hash() {
            return differs(&path, "hash", expected.hash().into(), found.hash().into());
        }
        let path = folder.join(TENSORS);
        let file = TensorFile::parse(&path, storage.map(&path)?)?;
        let pieces = pieces(&weights.config, &weights.layout);
        let scaled = matches!(hf, Hf::Packed(_));
        let tensors = |piece: &Piece| 1 + usize::from(scaled && piece.kind == TensorKind::Matrix);
        let count = pieces.iter().map(tensors).sum::<usize>() + output_biases(&weights.config).count();
        if file.names().count() != count {
            return differs(&path, "number of tensors", count.to_string(), file.names().count().to_string());
        }
        for name in output_biases(&weights.config) {
            let bytes = file.typed(&name, hf.floats().1, &[weights.config.dim])?;
            if bytes.iter().any(|byte| *byte != 0) {
                return differs(&path, &name, "zeros".into(), "other numbers".into());
            }
        }
        Ok(Folder { file, hf })
    }

    /// The rows of a piece, and the format they were rounded to.
    pub(super) fn read(&self, path: &Path, piece: &Piece) -> Result<(Rows, Block)> {
        let differs = |expected: String, found: String| {
            Err(Error::Differs { path: path.join(TENSORS), what: piece.hf.clone(), expected, found })
        };
        let codes = piece.kind == TensorKind::Matrix;
        if let (Hf::Packed(class), true) = (self.hf, codes) {
            let bytes = self.file.typed(&piece.hf, Dtype::U8, &[piece.rows.len() / 4, piece.cols])?;
            let stored = self.file.f32(&piece.hf.replace(".weight", ".weight_scale"), &[1])?;
            let stored = stored.first().copied().unwrap_or_default();
            // Scales are fp16 numbers: rounding undoes what a division has rounded.
            let scale = half::f16::from_f32(class.stored(stored)).to_f32();
            if class.stored(scale) != stored {
                return differs(format!("a scale in fp16, as {}", class.name()), stored.to_string());
            }
            let Some(codes) = unpack(bytes) else {
                return differs("codes -1, 0 and 1".into(), "another".into());
            };
            return Ok((Rows::Codes(codes, scale), Block::F32));
        }
        let (_, dtype, block) = self.hf.floats();
        let mut floats = vec![0.0; piece.rows.len() * piece.cols];
        let bytes = self.file.typed(&piece.hf, dtype, &piece.shape())?;
        blocks::decode(block, bytes, &mut floats).map_err(|error| Error::Content {
            path: path.join(TENSORS),
            expected: format!("{} in {}", piece.hf, block.name()),
            found: error.to_string(),
        })?;
        if (self.hf, codes) != (Hf::Online, true) {
            return Ok((Rows::Floats(floats), block));
        }
        let (mean, codes) = quantise(&floats);
        let scale = half::f16::from_f64(mean).to_f32();
        if (mean - f64::from(scale)).abs() > 1e-6 * mean && codes.iter().any(|code| *code != 0) {
            return differs("a mean magnitude in fp16".into(), mean.to_string());
        }
        Ok((Rows::Codes(codes, scale), block))
    }
}

/// What `WeightQuant` makes of master weights.
fn quantise(masters: &[f32]) -> (f64, Vec<i8>) {
    let mean = masters.iter().map(|w| f64::from(w.abs())).sum::<f64>() / masters.len().max(1) as f64;
    let code = |w: &f32| (f64::from(*w) / mean).round_ties_even().clamp(-1.0, 1.0) as i8;
    (mean, masters.iter().map(code).collect())
}

/// What a configuration says that it is.
fn target_of(config: &Value) -> Hf {
    let quantised = &config["quantization_config"];
    match (quantised["linear_class"].as_str(), quantised["quantization_mode"].as_str()) {
        (_, Some("online")) => Hf::Online,
        (Some("bitlinear"), _) => Hf::Packed(LinearClass::BitLinear),
        (Some(_), _) => Hf::Packed(LinearClass::AutoBitLinear),
        (None, _) => {
            let name = config["dtype"].as_str();
            Hf::Plain(FLOATS.iter().find(|row| Some(row.1) == name).map_or(Floats::F32, |row| row.0))
        }
    }
}
