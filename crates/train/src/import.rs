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
    ops::Range,
    path::{Path, PathBuf},
};

use half::f16;
use serde_json::Value;
use tritrain_backend::{Lent, Values};
use tritrain_data::{
    Tokenizer,
    chat::{TEMPLATE, TOKENIZER_CONFIG},
};
use tritrain_files::{
    Bytes, Storage,
    tensors::{self, TensorView},
    write_atomic,
};
use tritrain_model::{ConfigError, Layout, ModelConfig, Precision};

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
pub(crate) enum BlockPart {
    AttnNorm,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    AttnSubNorm,
    O,
    FfnNorm,
    Gate,
    Up,
    FfnSubNorm,
    Down,
}

impl BlockPart {
    const ALL: [BlockPart; 14] = [
        BlockPart::AttnNorm,
        BlockPart::Q,
        BlockPart::K,
        BlockPart::V,
        BlockPart::QBias,
        BlockPart::KBias,
        BlockPart::VBias,
        BlockPart::AttnSubNorm,
        BlockPart::O,
        BlockPart::FfnNorm,
        BlockPart::Gate,
        BlockPart::Up,
        BlockPart::FfnSubNorm,
        BlockPart::Down,
    ];
    /// Of queries, keys and values, in the order of their matrices.
    const BIASES: [BlockPart; 3] = [BlockPart::QBias, BlockPart::KBias, BlockPart::VBias];
}

/// A tensor, as other programs divide them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding,
    Head,
    Norm,
    Block(usize, BlockPart),
}

impl Part {
    /// Whether it is added to what a matrix gives.
    fn is_bias(self) -> bool {
        matches!(self, Part::Block(_, part) if BlockPart::BIASES.contains(&part))
    }

    /// The last part of its name.
    fn end(self) -> &'static str {
        if self.is_bias() { "bias" } else { "weight" }
    }
}

/// What a file says about a model, before it is known whether ours can be it.
#[derive(Debug)]
pub(crate) struct Description {
    /// Precision is found later.
    config: ModelConfig,
    /// Rows of the embedding.
    rows: usize,
    tokenizer: Tokenizer,
    /// What lies beside the tokenizer: names and bytes.
    beside: Vec<(&'static str, Vec<u8>)>,
}

/// A file or folder that holds a model.
pub(crate) trait Origin {
    /// What the model is.
    fn description(&self) -> Result<Description>;

    /// Numbers of a tensor of this shape, row-major, with rows of q and k in the order in which RoPE turns halves of a
    /// head. Gains have one row, biases one column.
    fn read(&self, part: Part, shape: [usize; 2]) -> Result<Vec<f32>>;

    /// The bytes of a table that is stored in fp16.
    fn halves(&self, _: Part, _: [usize; 2]) -> Result<Option<Bytes>> {
        Ok(None)
    }

    /// Says that these bytes will not be read soon.
    fn release(&self, _: Part) {}

    /// The scale of a matrix that is codes times a scale, 0 where all codes are; `None` for any other one.
    fn scale(&self, part: Part, shape: [usize; 2]) -> Result<Option<f64>> {
        Ok(ternary::scale_of(&self.read(part, shape)?))
    }

    /// Appends the codes of such a matrix.
    fn codes(&self, part: Part, shape: [usize; 2], to: &mut Vec<i8>) -> Result<()> {
        to.extend(ternary::codes_of(&self.read(part, shape)?));
        Ok(())
    }

    /// A tensor that is no part of the model, if any: it would be lost.
    fn left_over(&self, config: &ModelConfig) -> Option<String>;
}

/// Why a model cannot be imported; `what` is a whole sentence.
fn refused(path: &Path, what: impl Into<String>) -> Error {
    Error::Import { path: path.to_path_buf(), what: what.into() }
}

/// A model in a file of another program, as this one sees it: nothing is read before it is needed.
#[derive(Debug)]
pub(crate) struct Foreign<O> {
    path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) vocab: usize,
    /// Rows of the embedding in the file.
    rows: usize,
    pub(crate) layout: Layout,
    /// What lies beside the tokenizer: names and bytes.
    pub(crate) beside: Vec<(&'static str, Vec<u8>)>,
    pub(crate) notes: Vec<String>,
    /// Of each block of a ternary model.
    scales: Vec<ternary::Scales>,
    origin: O,
}

/// A model that is used where it lies.
pub(crate) type InPlace = Foreign<gguf::File>;

impl InPlace {
    /// A GGUF file.
    ///
    /// # Errors
    /// As [`import`].
    pub(crate) fn gguf(storage: &dyn Storage, path: &Path) -> Result<(InPlace, Tokenizer)> {
        Foreign::new(path, gguf::File::open(storage, path)?, None)
    }
}

impl<O: Origin> Foreign<O> {
    fn new(path: &Path, origin: O, context: Option<usize>) -> Result<(Foreign<O>, Tokenizer)> {
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
        let scales = ternary::scales(&config, &origin)?;
        if scales.is_some() {
            config.precision = Precision::Ternary;
        }
        config.check().map_err(|ConfigError { option, found, expected }| {
            refused(path, format!("its {option} is {found}, which here {expected}"))
        })?;
        if let Some(name) = origin.left_over(&config) {
            return Err(refused(path, format!("it has a tensor {name}, which has no place in this model")));
        }
        let (path, layout) = (path.to_path_buf(), Layout::new(&config, vocab));
        let scales = scales.unwrap_or_default();
        Ok((Foreign { path, config, vocab, rows, layout, beside, notes, scales, origin }, tokenizer))
    }

    /// The weights of a tensor of the layout.
    ///
    /// # Errors
    /// [`Error::Import`] for a tensor of another shape or numbers that are not finite; [`Error::Files`].
    pub(crate) fn values(&self, id: usize) -> Result<Values<'_>> {
        let (layout, spec) = (&self.layout, &self.layout.specs[id]);
        // Pages of the table before leave memory: a model is read once, in order.
        match id.checked_sub(1) {
            Some(before) if before == layout.embedding => self.origin.release(Part::Embedding),
            _ => (),
        }
        let values = if id == layout.embedding {
            self.table(Part::Embedding)?
        } else if id == layout.head {
            self.table(Part::Head)?
        } else if id == layout.norm {
            Values::Floats(self.origin.read(Part::Norm, [1, spec.cols])?.into())
        } else {
            self.of_block(id)?
        };
        let bad = match &values {
            Values::Floats(values) => values.iter().copied().find(|v| !v.is_finite()),
            Values::Halves(bytes) => {
                // Finite unless all bits of the exponent are set.
                let odd = bytes.as_chunks().0.iter().map(|half| f16::from_le_bytes(*half));
                odd.filter(|half| !half.is_finite()).map(f16::to_f32).next()
            }
            Values::Packed(_) | Values::Codes(..) => None,
        };
        match bad {
            Some(bad) => Err(refused(&self.path, format!("its {} holds {bad}", spec.name))),
            None => Ok(values),
        }
    }

    /// The rows of a table that stand for tokens.
    fn table(&self, part: Part) -> Result<Values<'_>> {
        let (shape, len) = ([self.rows, self.config.dim], self.vocab * self.config.dim);
        if let Some(halves) = self.origin.halves(part, shape)? {
            return Ok(Values::Halves(Lent::new(halves.part(0..2 * len).unwrap_or(halves))));
        }
        let mut table = self.origin.read(part, shape)?;
        table.truncate(len);
        Ok(Values::Floats(table.into()))
    }

    fn of_block(&self, id: usize) -> Result<Values<'_>> {
        let blocks = self.layout.blocks.iter().enumerate();
        for (n, ids) in blocks {
            let gains = [
                (Some(ids.attn_norm), BlockPart::AttnNorm),
                (Some(ids.ffn_norm), BlockPart::FfnNorm),
                (ids.attn_sub_norm, BlockPart::AttnSubNorm),
                (ids.ffn_sub_norm, BlockPart::FfnSubNorm),
            ];
            if let Some((_, part)) = gains.into_iter().find(|(of, _)| *of == Some(id)) {
                let gain = self.origin.read(Part::Block(n, part), [1, self.layout.specs[id].cols])?;
                return Ok(Values::Floats(gain.into()));
            }
            if Some(id) == ids.qkv_bias {
                return self.biases(n);
            }
            let matrices = [ids.qkv, ids.o, ids.gate_up, ids.down];
            if let Some(place) = matrices.into_iter().position(|of| of == id) {
                return self.matrix(n, place);
            }
        }
        unreachable!("every tensor of a layout is a table, or a gain, bias or matrix of a block")
    }

    /// The biases of queries, keys and values of block `n`.
    fn biases(&self, n: usize) -> Result<Values<'_>> {
        let (shapes, mut biases) = (shapes(&self.config), Vec::new());
        for (at, part) in BlockPart::BIASES.into_iter().enumerate() {
            let (_, [rows, _]) = shapes[at];
            let factor = self.scales.get(n).map_or(1.0, |scales| scales.biases[at]);
            let own = self.origin.read(Part::Block(n, part), [rows, 1])?;
            biases.extend(own.iter().map(|bias| factor * bias));
        }
        Ok(Values::Floats(biases.into()))
    }

    /// A matrix of block `n`, joined from its parts.
    fn matrix(&self, n: usize, place: usize) -> Result<Values<'_>> {
        let shapes = shapes(&self.config);
        let parts = shapes[PARTS[place].clone()].iter().map(|(part, shape)| (Part::Block(n, *part), *shape));
        match self.scales.get(n) {
            Some(scales) => {
                let len = parts.clone().map(|(_, [rows, cols])| rows * cols).sum();
                let mut codes = Vec::with_capacity(len);
                for (part, shape) in parts {
                    self.origin.codes(part, shape, &mut codes)?;
                }
                Ok(Values::Codes(codes.into(), scales.matrices[place]))
            }
            None => {
                let mut weights = Vec::new();
                for (part, shape) in parts {
                    weights.append(&mut self.origin.read(part, shape)?);
                }
                Ok(Values::Floats(weights.into()))
            }
        }
    }
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
    if path.is_dir() {
        write(storage, Foreign::new(path, huggingface::Folder::open(storage, path)?, context)?, out, file)
    } else {
        write(storage, Foreign::new(path, gguf::File::open(storage, path)?, context)?, out, file)
    }
}

fn write<O: Origin>(
    storage: &dyn Storage,
    (from, tokenizer): (Foreign<O>, Tokenizer),
    out: &Path,
    path: PathBuf,
) -> Result<Imported> {
    let mut weights = Vec::new();
    for (id, spec) in from.layout.specs.iter().enumerate() {
        let shape = spec.shape();
        weights.push((&spec.name, shape, from.values(id)?.host()));
    }
    storage.create_dir_all(out)?;
    for (name, bytes) in &from.beside {
        write_atomic(storage, &out.join(name), bytes)?;
    }
    tokenizer.save(storage, &out.join("tokenizer.json"))?;
    let views = weights.iter().map(|(name, shape, values)| TensorView::f32(name.as_str(), shape, values));
    let mut entries: BTreeMap<String, String> = metadata(&from.config, from.vocab, 0)?;
    entries.insert(TOKENIZER.to_owned(), tokenizer.hash().to_owned());
    // The model last: where it is, everything is.
    tensors::save(storage, &path, views, &entries)?;
    Ok(Imported { path, config: from.config, vocab: from.vocab, notes: from.notes })
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

/// All parts of a model.
fn all_parts(config: &ModelConfig) -> impl Iterator<Item = Part> {
    let tables = [Part::Embedding, Part::Norm].into_iter().chain((!config.tied).then_some(Part::Head));
    let (sub_norm, qkv_bias) = (config.sub_norm, config.qkv_bias);
    let there = move |part: &BlockPart| match part {
        BlockPart::AttnSubNorm | BlockPart::FfnSubNorm => sub_norm,
        BlockPart::QBias | BlockPart::KBias | BlockPart::VBias => qkv_bias,
        _ => true,
    };
    let of_block = move |n| BlockPart::ALL.into_iter().filter(there).map(move |part| Part::Block(n, part));
    tables.chain((0..config.layers).flat_map(of_block))
}

/// Which of these are one matrix here: qkv, o, gate and up, down.
const PARTS: [Range<usize>; 4] = [0..3, 3..4, 4..6, 6..7];

/// An entry of a JSON configuration that is absent or null.
fn absent(value: &Value) -> bool {
    value.is_null()
}
