//! GGUF as stock llama.cpp loads it: architecture `bitnet` for models with sub-norms, `qwen2` for those with biases
//! instead, `llama` for those with neither.
//!
//! Source: llama.cpp, `src/llama-arch.cpp` (names), `src/models/bitnet.cpp`, `qwen2.cpp` and `llama.cpp` (what is
//! computed): all gate by silu; `bitnet` has its head tied; `bitnet` and `qwen2` pair the halves of a head in RoPE as
//! we do; `llama` pairs neighbours, so rows of queries and keys change places.

use std::path::Path;

use tritrain_data::TokenKind;
use tritrain_files::{
    Storage,
    gguf::{Array, GgufFile, Spec, Value, Writer},
};
use tritrain_model::{Gate, ModelConfig, TensorKind};
use tritrain_trit::blocks::{self, Block};

use super::{
    is_ternary, refuse,
    weights::{Piece, Rows, Weights, pieces},
};
use crate::{Error, Loaded, Result};

const TARGET: &str = "GGUF";

/// Of `config`, what stock llama.cpp calls it.
fn architecture(config: &ModelConfig) -> &'static str {
    match (config.sub_norm, config.qkv_bias) {
        (true, _) => "bitnet",
        (false, true) => "qwen2",
        (false, false) => "llama",
    }
}

pub(super) fn check(config: &ModelConfig, block: Block) -> Result<()> {
    let hf = "export it with --to hf";
    if config.gate == Gate::Relu2 {
        return refuse(TARGET, "llama.cpp gates these architectures by silu, this model by relu²", hf);
    }
    if config.sub_norm && !config.tied {
        let reason = "llama.cpp's bitnet has the embedding for its output head, this model another matrix";
        return refuse(TARGET, reason, hf);
    }
    if config.sub_norm && config.qkv_bias {
        let reason = "llama.cpp's bitnet, which has sub-norms, has no biases of queries, keys and values";
        return refuse(TARGET, reason, hf);
    }
    match (is_ternary(config), block) {
        (_, Block::F32 | Block::F16) => {}
        (false, Block::Bf16) => {}
        (true, block) if block.is_ternary() => {
            for (option, width) in [("dim", config.dim), ("ffn", config.ffn)] {
                if !width.is_multiple_of(block.weights()) {
                    let reason = format!(
                        "rows of {} are multiples of {}, model.{option} is {width}",
                        block.name(),
                        block.weights()
                    );
                    return refuse(TARGET, reason, "take --type q2_0, whose blocks are 64 wide, or f16");
                }
            }
        }
        (true, _) => {
            let reason = format!("{} does not hold ternary matrices and their fp16 scales", block.name());
            return refuse(TARGET, reason, "take --type tq1_0, tq2_0, q2_0, f16 or f32");
        }
        (false, _) => {
            let reason = format!("{} holds ternary codes, the matrices of this model are f32", block.name());
            return refuse(TARGET, reason, "take --type f16, bf16 or f32");
        }
    }
    Ok(())
}

/// Number of `general.file_type` (llama.cpp, `llama_ftype`).
fn file_type(block: Block) -> u32 {
    match block {
        Block::F32 => 0,
        Block::F16 => 1,
        Block::Bf16 => 32,
        Block::Tq1_0 => 36,
        Block::Tq2_0 => 37,
        _ => 41,
    }
}

/// The format of a piece in a file of `block`.
fn format(kind: TensorKind, block: Block) -> Block {
    match kind {
        TensorKind::Norm | TensorKind::Bias | TensorKind::Adapter => Block::F32,
        TensorKind::Matrix => block,
        TensorKind::Embedding if block.is_ternary() => Block::F16,
        TensorKind::Embedding => block,
    }
}

/// Everything of the file but the tensors.
fn metadata(
    storage: &dyn Storage,
    loaded: &Loaded,
    weights: &Weights,
    block: Block,
) -> Result<Vec<(String, Value<'static>)>> {
    let config = &weights.config;
    let architecture = architecture(config);
    let mut metadata: Vec<(String, Value<'static>)> = Vec::new();
    let mut general = |key: &str, value| metadata.push((key.to_owned(), value));
    general("general.architecture", Value::from(architecture));
    general("general.name", Value::from("tritrain"));
    general("general.file_type", Value::U32(file_type(block)));
    let mut own = |key: &str, value| metadata.push((format!("{architecture}.{key}"), value));
    let numbers = [
        ("context_length", config.context),
        ("embedding_length", config.dim),
        ("block_count", config.layers),
        ("feed_forward_length", config.ffn),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("rope.dimension_count", config.head_dim()),
        ("vocab_size", weights.vocab),
    ];
    for (key, number) in numbers {
        // Options have bounds far below 2^32.
        own(key, Value::U32(number as u32));
    }
    own("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps));
    own("rope.freq_base", Value::F32(config.rope_theta));
    metadata.extend(tokenizer(storage, loaded, weights.vocab)?);
    Ok(metadata)
}

/// The vocabulary. Text begins with the end of text, as documents do in training. It ends as its answers do where the
/// model chats.
fn tokenizer(storage: &dyn Storage, loaded: &Loaded, vocab: usize) -> Result<Vec<(String, Value<'static>)>> {
    let mut vocabulary = loaded.tokenizer.vocabulary()?;
    let Some(cut) = vocabulary.cut else {
        let reason = "llama.cpp cuts text into words by its own list, on which this tokenizer is not";
        return refuse(
            TARGET,
            reason,
            "export it with --to hf, or train with a tokenizer that cuts as GPT-2's",
        );
    };
    for (id, (token, kind)) in vocabulary.tokens.iter_mut().enumerate() {
        if *kind == TokenKind::Unused {
            *token = format!("[UNUSED{id}]");
        }
    }
    if vocabulary.tokens.len() != vocab {
        let reason = format!("the vocabulary has {} tokens, the model {vocab}", vocabulary.tokens.len());
        return refuse(TARGET, reason, "use the model's own tokenizer");
    }
    // llama.cpp, `llama_token_type`.
    let kind = |kind: &TokenKind| match kind {
        TokenKind::Normal => 1,
        TokenKind::Special => 3,
        TokenKind::Added => 4,
        TokenKind::Unused => 5,
    };
    let kinds: Vec<i32> = vocabulary.tokens.iter().map(|(_, of)| kind(of)).collect();
    let texts = vocabulary.tokens.iter().map(|(token, _)| token);
    let eos = loaded.tokenizer.eos();
    let template = loaded.template_file(storage)?;
    let end = template.as_ref().and_then(|template| template.end(&loaded.tokenizer));
    let keys = [
        ("model", Value::from("gpt2")),
        ("pre", Value::from(cut)),
        ("tokens", Value::Array(Array::texts(texts))),
        ("token_type", Value::Array(Array::i32(&kinds))),
        ("merges", Value::Array(Array::texts(&vocabulary.merges))),
        ("bos_token_id", Value::U32(eos)),
        ("eos_token_id", Value::U32(end.map_or(eos, |(_, id)| id))),
        ("add_bos_token", Value::Bool(true)),
    ];
    let mut keys = Vec::from(keys.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    keys.extend(
        template.map(|of| ("tokenizer.chat_template".to_owned(), Value::Text(of.source().to_owned().into()))),
    );
    Ok(keys)
}

pub(super) fn write(
    storage: &dyn Storage,
    path: &Path,
    loaded: &Loaded,
    weights: &Weights,
    block: Block,
) -> Result<()> {
    let pieces = pieces(&weights.config, &weights.layout);
    let spec = |piece: &Piece| Spec {
        name: piece.gguf.clone(),
        block: format(piece.kind, block),
        shape: piece.shape(),
    };
    let specs: Vec<Spec> = pieces.iter().map(spec).collect();
    let mut writer = Writer::create(storage, path, &metadata(storage, loaded, weights, block)?, &specs)?;
    for (piece, spec) in pieces.iter().zip(&specs) {
        let rows = turn(weights.rows(piece), piece, order(&weights.config, piece));
        let count = piece.rows.len() * piece.cols;
        let mut data = vec![0; spec.block.len(count).unwrap_or_default()];
        let encoded = match &rows {
            Rows::Codes(codes, scale) if spec.block.is_ternary() => {
                blocks::encode_codes(spec.block, codes, half::f16::from_f32(*scale), &mut data)
            }
            rows => blocks::encode(spec.block, &rows.floats(), &mut data),
        };
        encoded.map_err(|error| Error::Content {
            path: path.to_path_buf(),
            expected: format!("{} in {}", piece.gguf, spec.block.name()),
            found: error.to_string(),
        })?;
        writer.push(&data)?;
    }
    Ok(writer.finish()?)
}

/// For each row of a piece in the file, which of ours it is; nothing where none moves.
fn order(config: &ModelConfig, piece: &Piece) -> Option<Vec<usize>> {
    let heads = piece.heads.filter(|_| architecture(config) == "llama")?;
    let width = piece.rows.len() / heads;
    let row = |at: usize| {
        let (head, place) = (at / width, at % width);
        // Neighbours 2i and 2i + 1 are a pair: our i and i + width / 2.
        head * width + place % 2 * (width / 2) + place / 2
    };
    Some((0..piece.rows.len()).map(row).collect())
}

/// Row `at` of the result is row `order[at]`.
fn turn(rows: Rows, piece: &Piece, order: Option<Vec<usize>>) -> Rows {
    let Some(order) = order else { return rows };
    match rows {
        Rows::Floats(weights) => Rows::Floats(pick(&weights, piece.cols, &order)),
        Rows::Codes(codes, scale) => Rows::Codes(pick(&codes, piece.cols, &order), scale),
    }
}

fn pick<T: Copy>(values: &[T], cols: usize, order: &[usize]) -> Vec<T> {
    order.iter().flat_map(|row| &values[row * cols..][..cols]).copied().collect()
}

/// The rows back in our order.
fn turn_back(rows: Rows, piece: &Piece, order: Option<Vec<usize>>) -> Rows {
    let back = order.map(|order| {
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, row)| back[*row] = at);
        back
    });
    turn(rows, piece, back)
}

/// The format of the matrices of a file.
pub(super) fn format_of(file: &GgufFile) -> Result<Block> {
    Ok(file.tensor("blk.0.attn_q.weight")?.block)
}

/// Compares everything but the tensors with what a file of this model holds.
pub(super) fn compare_metadata(
    storage: &dyn Storage,
    file: &GgufFile,
    loaded: &Loaded,
    weights: &Weights,
) -> Result<()> {
    let differs = |what: String, expected: String, found: String| Error::Differs {
        path: file.path().to_path_buf(),
        what,
        expected,
        found,
    };
    for (key, expected) in metadata(storage, loaded, weights, format_of(file)?)? {
        let found = file.value(&key);
        if found.as_ref() != Some(&expected) {
            let show = |value: Option<&Value<'_>>| match value {
                Some(Value::Array(array)) => format!("{} of {}", array.len(), array.kind().name()),
                Some(value) => format!("{value:?}"),
                None => "nothing".into(),
            };
            return Err(differs(format!("key {key}"), show(Some(&expected)), show(found.as_ref())));
        }
    }
    let count = pieces(&weights.config, &weights.layout).len();
    if file.names().count() != count {
        let (expected, found) = (format!("{count} tensors"), file.names().count().to_string());
        return Err(differs("number of tensors".into(), expected, found));
    }
    Ok(())
}

/// The rows of a piece as the file has them, in our order, and the format they were rounded to.
pub(super) fn read(file: &GgufFile, config: &ModelConfig, piece: &Piece) -> Result<(Rows, Block)> {
    let tensor = file.tensor(&piece.gguf)?;
    let differs = |expected: String, found: String| {
        Err(Error::Differs { path: file.path().to_path_buf(), what: piece.gguf.clone(), expected, found })
    };
    if tensor.shape != piece.shape() {
        return differs(format!("{:?}", piece.shape()), format!("{:?}", tensor.shape));
    }
    let rows = match tensor.block.is_ternary() {
        true => {
            let (codes, scales) = tensor.codes()?;
            let scale = scales.first().copied().unwrap_or_default();
            if let Some(other) = scales.iter().find(|other| **other != scale) {
                return differs(format!("the scale {scale} in every block"), other.to_string());
            }
            Rows::Codes(codes, scale.to_f32())
        }
        false => Rows::Floats(tensor.floats()?),
    };
    let block = tensor.block;
    file.release(&piece.gguf);
    Ok((turn_back(rows, piece, order(config, piece)), block))
}
