//! Models of other programs as models of this one: safetensors with a `config.json`, and GGUF.
//!
//! What the model cannot hold is refused with the reason; nothing of a file is left out in silence. A model whose
//! matrices are all codes times a scale becomes a ternary one with the same codes ([`ternary`] says what happens to
//! the scales); any other one an f32 model.

mod gguf;
mod huggingface;
mod ternary;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tritrain_data::{
    Tokenizer,
    chat::{TEMPLATE, TOKENIZER_CONFIG},
};
use tritrain_files::{
    Storage,
    tensors::{self, TensorView},
    write_atomic,
};
use tritrain_model::{ConfigError, Layout, ModelConfig, Precision, TensorKind};

use crate::{
    Error, Result,
    save::{MODEL, TOKENIZER, metadata},
};

/// A longer context is cut to this unless more is asked for: tables and windows have its length.
const CONTEXT: usize = 8192;

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// The model file that was written.
    pub path: PathBuf,
    /// The model.
    pub config: ModelConfig,
    /// Tokens in its vocabulary.
    pub vocab: usize,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
}

/// A matrix or gain of a block, as other programs divide them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockPart {
    AttnNorm,
    Q,
    K,
    V,
    AttnSubNorm,
    O,
    FfnNorm,
    Gate,
    Up,
    FfnSubNorm,
    Down,
}

/// A tensor, as other programs divide them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Embedding,
    Head,
    Norm,
    Block(usize, BlockPart),
}

/// What a file says about a model, before it is known whether ours can be it.
#[derive(Debug)]
struct Description {
    /// Precision is found later.
    config: ModelConfig,
    /// Rows of the embedding.
    rows: usize,
    tokenizer: Tokenizer,
    /// What lies beside the tokenizer: names and bytes.
    beside: Vec<(&'static str, Vec<u8>)>,
}

/// A file or folder that holds a model.
trait Origin {
    /// What the model is.
    fn description(&self) -> Result<Description>;

    /// Numbers of a tensor of this shape, row-major, with rows of q and k in the order in which RoPE turns halves of a
    /// head. Gains have one row.
    fn read(&self, part: Part, shape: [usize; 2]) -> Result<Vec<f32>>;

    /// A tensor that was not read and is a part of the model, if any: it would be lost.
    fn left_over(&self, config: &ModelConfig) -> Option<String>;
}

/// Why a model cannot be imported; `what` is a whole sentence.
fn refused(path: &Path, what: impl Into<String>) -> Error {
    Error::Import { path: path.to_path_buf(), what: what.into() }
}

/// Imports the model in `path`, a GGUF file or a folder of transformers, into the folder `out`, with a context of
/// `context` tokens where that is given.
///
/// # Errors
/// [`Error::Import`] with the reason for which this model cannot be held; [`Error::Files`], [`Error::Data`] for what
/// cannot be read. A folder that holds a model already is no place for another.
pub fn import(storage: &dyn Storage, path: &Path, out: &Path, context: Option<usize>) -> Result<Imported> {
    if !storage.exists(path)? {
        return Err(refused(path, "nothing is there"));
    }
    let file = out.join(MODEL);
    if storage.exists(&file)? {
        return Err(refused(path, format!("{} exists; choose another folder", file.display())));
    }
    let origin: Box<dyn Origin> = if path.is_dir() {
        Box::new(huggingface::Folder::open(storage, path)?)
    } else {
        Box::new(gguf::File::open(storage, path)?)
    };
    let Description { mut config, rows, tokenizer, beside } = origin.description()?;
    let mut notes = Vec::new();
    check(path, &mut config, context, &mut notes)?;
    let vocab = tokenizer.vocab_size() as usize;
    if vocab > rows {
        let what = format!(
            "the tokenizer has {vocab} tokens and the embedding {rows} rows: they belong to different models"
        );
        return Err(refused(path, what));
    }
    if vocab < rows {
        notes.push(format!(
            "the embedding has {rows} rows; those beyond the {vocab} of the tokenizer are left out"
        ));
    }
    if ternary::in_all(&config, &*origin)? {
        config.precision = Precision::Ternary;
    }
    config.check().map_err(|ConfigError { option, found, expected }| {
        refused(path, format!("its {option} is {found}, which here {expected}"))
    })?;
    let weights = weights(path, &config, (vocab, rows), &*origin)?;
    if let Some(name) = origin.left_over(&config) {
        return Err(refused(path, format!("it has a tensor {name}, which has no place in this model")));
    }
    storage.create_dir_all(out)?;
    for (name, bytes) in &beside {
        write_atomic(storage, &out.join(name), bytes)?;
    }
    tokenizer.save(storage, &out.join("tokenizer.json"))?;
    // The model last: where it is, everything is.
    write(storage, &file, &config, &tokenizer, &weights)?;
    Ok(Imported { path: file, config, vocab, notes })
}

/// Bounds of what a file claims before anything is sized by it, and the context.
fn check(
    path: &Path,
    config: &mut ModelConfig,
    context: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<()> {
    let bounds = [
        ("width", config.dim, 65_536),
        ("number of layers", config.layers, 1024),
        ("number of heads", config.heads, 1024),
        ("number of key heads", config.kv_heads, 1024),
        ("inner width", config.ffn, 262_144),
    ];
    for (what, found, most) in bounds {
        if !(1..=most).contains(&found) {
            return Err(refused(path, format!("its {what} is {found}; expected 1 to {most}")));
        }
    }
    for (what, found, range) in
        [("RoPE base", config.rope_theta, 1.0..=1e9), ("epsilon of norms", config.norm_eps, 1e-12..=0.1)]
    {
        if !range.contains(&found) {
            return Err(refused(
                path,
                format!("its {what} is {found}; expected {} to {}", range.start(), range.end()),
            ));
        }
    }
    let declared = config.context;
    config.context = context.unwrap_or(CONTEXT).min(declared);
    if config.context == 0 || config.context > 1 << 20 {
        return Err(refused(
            path,
            format!("its context is {declared} tokens; expected 1 to 1048576, see --context"),
        ));
    }
    if config.context < declared {
        notes.push(format!("its context of {declared} tokens is cut to {}; see --context", config.context));
    }
    Ok(())
}

/// Name, shape and numbers of a tensor.
type Named = (String, Vec<usize>, Vec<f32>);

/// The tensors of the layout, in order.
fn weights(
    path: &Path,
    config: &ModelConfig,
    (vocab, rows): (usize, usize),
    origin: &dyn Origin,
) -> Result<Vec<Named>> {
    let layout = Layout::new(config, vocab);
    let mut weights: Vec<Vec<f32>> = vec![Vec::new(); layout.specs.len()];
    let finite = |name: &str, values: Vec<f32>| match values.iter().find(|v| !v.is_finite()) {
        Some(bad) => Err(refused(path, format!("its {name} holds {bad}"))),
        None => Ok(values),
    };
    let table = |part| -> Result<Vec<f32>> {
        let mut table = origin.read(part, [rows, config.dim])?;
        table.truncate(vocab * config.dim);
        Ok(table)
    };
    weights[layout.embedding] = table(Part::Embedding)?;
    if layout.head != layout.embedding {
        weights[layout.head] = table(Part::Head)?;
    }
    weights[layout.norm] = origin.read(Part::Norm, [1, config.dim])?;
    for (n, ids) in layout.blocks.iter().enumerate() {
        let gains = [
            (Some(ids.attn_norm), BlockPart::AttnNorm),
            (Some(ids.ffn_norm), BlockPart::FfnNorm),
            (ids.attn_sub_norm, BlockPart::AttnSubNorm),
            (ids.ffn_sub_norm, BlockPart::FfnSubNorm),
        ];
        for (id, part) in gains {
            if let Some(id) = id {
                weights[id] = origin.read(Part::Block(n, part), [1, layout.specs[id].cols])?;
            }
        }
        let [qkv, o, gate_up, down] = matrices(config, n, origin)?;
        for (id, values) in [(ids.qkv, qkv), (ids.o, o), (ids.gate_up, gate_up), (ids.down, down)] {
            weights[id] = values;
        }
    }
    let named = layout.specs.iter().zip(weights).map(|(spec, values)| {
        let shape = if spec.kind == TensorKind::Norm { vec![spec.cols] } else { vec![spec.rows, spec.cols] };
        Ok((spec.name.clone(), shape, finite(&spec.name, values)?))
    });
    named.collect()
}

/// The shapes of the matrices of a block, as other programs divide them.
fn shapes(config: &ModelConfig) -> [(BlockPart, [usize; 2]); 7] {
    let (dim, ffn, kv) = (config.dim, config.ffn, config.kv_heads * config.head_dim());
    [
        (BlockPart::Q, [dim, dim]),
        (BlockPart::K, [kv, dim]),
        (BlockPart::V, [kv, dim]),
        (BlockPart::O, [dim, dim]),
        (BlockPart::Gate, [ffn, dim]),
        (BlockPart::Up, [ffn, dim]),
        (BlockPart::Down, [dim, ffn]),
    ]
}

/// The four matrices of block `n`.
fn matrices(config: &ModelConfig, n: usize, origin: &dyn Origin) -> Result<[Vec<f32>; 4]> {
    let mut read = Vec::new();
    for (part, shape) in shapes(config) {
        read.push(origin.read(Part::Block(n, part), shape)?);
    }
    match (config.precision, <[Vec<f32>; 7]>::try_from(read)) {
        (Precision::Ternary, Ok(parts)) => Ok(ternary::join(config.sub_norm, parts)),
        (Precision::F32, Ok([q, k, v, o, gate, up, down])) => {
            Ok([[q, k, v].concat(), o, [gate, up].concat(), down])
        }
        (_, Err(_)) => unreachable!("a block has seven matrices"),
    }
}

fn write(
    storage: &dyn Storage,
    path: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    weights: &[Named],
) -> Result<()> {
    let views = weights.iter().map(|(name, shape, values)| TensorView::f32(name.clone(), shape, values));
    let mut entries: BTreeMap<String, String> = metadata(config, tokenizer.vocab_size() as usize, 0)?;
    entries.insert(TOKENIZER.to_owned(), tokenizer.hash().to_owned());
    Ok(tensors::save(storage, path, views, &entries)?)
}

/// An entry of a JSON configuration that is absent or null.
fn absent(value: &Value) -> bool {
    value.is_null()
}
