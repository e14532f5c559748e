//! What a checkpoint of a run holds, written and read.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tritrain_backend::{Backend, Format, Stored, Values, by_row};
use tritrain_data::Mixer;
use tritrain_files::{
    Storage,
    checkpoint::{self, Checkpoint, Identity},
    tensors::{Dtype, TensorFile, TensorView},
};
use tritrain_model::{Layout, Model, ModelConfig};
use tritrain_optim::{Controller, Guard, Optimizer, Part, Setbacks, Spikes};

use crate::{Error, Result, archive, load::Base};

pub(crate) const MODEL: &str = "model.safetensors";
/// Metadata entry with the hash of the tokenizer that a model belongs to, where it is in no checkpoint.
pub(crate) const TOKENIZER: &str = "tritrain.tokenizer";
/// Metadata entries with the place and the hash of the model that adapters belong to.
const BASE: [&str; 2] = ["tritrain.base", "tritrain.base_hash"];
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Everything of a run that is neither weights nor optimizer tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// Steps behind, skipped ones included. The data plan is a function of it.
    pub(crate) step: u64,
    /// Updates made.
    pub(crate) updates: u64,
    pub(crate) guard: Guard,
    /// Step and loss of the last evaluation.
    pub(crate) evaluated: Option<(u64, f64)>,
    /// Step of the last sample.
    pub(crate) sampled: Option<u64>,
    /// Step and validation loss of the best checkpoint.
    pub(crate) best: Option<(u64, f64)>,
    /// Of the adaptive plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mixer: Option<Mixer>,
    /// Of the spike guard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) spikes: Option<Spikes>,
    #[serde(default)]
    pub(crate) setbacks: Setbacks,
    /// Where the run has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) controller: Option<Controller>,
}

/// Metadata of a model file: what is needed to build the model around its tensors.
pub(crate) fn metadata(config: &ModelConfig, vocab: usize, step: u64) -> Result<BTreeMap<String, String>> {
    let config = serde_json::to_string(config).map_err(|error| Error::Content {
        path: PathBuf::from(MODEL),
        expected: "a configuration that can be written as JSON".into(),
        found: error.to_string(),
    })?;
    let entries = [("model", config), ("step", step.to_string()), ("vocab", vocab.to_string())];
    Ok(entries.into_iter().map(|(key, value)| (format!("tritrain.{key}"), value)).collect())
}

/// Saves a checkpoint; the weights must be finite for it to count as healthy. With adapters beside a `base`, the model
/// file holds them alone.
pub(crate) fn save<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    run: &std::path::Path,
    (model, optimizer, state): (&Model<B>, &Optimizer<B>, &State),
    (identity, base): (&Identity, Option<&Base>),
) -> Result<PathBuf> {
    let layout = model.layout();
    let trained = layout.specs.iter().enumerate().filter(|(id, _)| layout.trains(*id));
    let weights = trained.map(|(id, spec)| {
        let shape = spec.shape();
        (spec.name.clone(), shape, model.values(backend, id))
    });
    let weights: Vec<_> = weights.collect();
    let moments = optimizer.state().into_iter().map(|(name, shape, part)| {
        let values = match part {
            Part::Packed(packed) => Values::Packed(backend.stored(packed)),
            Part::Floats(buffer) => Values::Floats(backend.host(buffer)),
            Part::Host(values) => Values::Floats(values.into()),
        };
        (name, shape.to_vec(), values)
    });
    let moments: Vec<_> = moments.collect();
    let step = state.step;
    // What was just read may be nothing.
    if let Some(reason) = backend.fault() {
        return Err(Error::Device { step, reason });
    }
    // Packed numbers are finite by their making.
    let finite = |(_, _, values): &Named| match values {
        Values::Floats(values) => values.iter().all(|v| v.is_finite()),
        Values::Packed(_) | Values::Halves(_) | Values::Codes(..) => true,
    };
    let healthy = weights.iter().chain(&moments).all(finite);
    let state = serde_json::to_vec_pretty(state).map_err(|error| Error::Content {
        path: run.join(STATE),
        expected: "a state that can be written as JSON".into(),
        found: error.to_string(),
    })?;
    let mut metadata = metadata(model.config(), model.vocab(), step)?;
    if let Some(Base { path, hash }) = base {
        let [at, hashed] = BASE;
        metadata.extend([(at.to_owned(), path.display().to_string()), (hashed.to_owned(), hash.clone())]);
    }
    let parts = [
        checkpoint::Part::tensors(MODEL, views(&weights), &with_formats(metadata, &weights))?,
        checkpoint::Part::tensors(OPTIMIZER, views(&moments), &with_formats(BTreeMap::new(), &moments))?,
        checkpoint::Part::bytes(STATE, &state),
    ];
    Ok(checkpoint::save(storage, run, step, &parts, identity, healthy)?)
}

/// Name, shape and numbers of a tensor.
type Named<'a> = (String, Vec<usize>, Values<'a>);

/// Metadata entry that says how a tensor in few bits is stored, by its name.
pub(crate) fn format_key(name: &str) -> String {
    format!("tritrain.format.{name}")
}

/// Name of the tensor of steps of a tensor in few bits.
fn steps_name(name: &str) -> String {
    format!("{name}.steps")
}

/// Name of the tensor of numbers of digits of rows that have different ones.
fn digits_name(name: &str) -> String {
    format!("{name}.digits")
}

fn with_formats(mut metadata: BTreeMap<String, String>, tensors: &[Named<'_>]) -> BTreeMap<String, String> {
    for (name, _, values) in tensors {
        if let Values::Packed(stored) = values {
            metadata.insert(format_key(name), format_name(stored.format).to_owned());
        }
    }
    metadata
}

fn format_name(format: Format) -> String {
    match format {
        Format::Bf16 => "bf16".into(),
        Format::Int8 => "int8".into(),
        Format::Trits(digits) => format!("trits{digits}"),
    }
}

fn format_of(name: &str) -> Option<Format> {
    match name {
        "bf16" => Some(Format::Bf16),
        "int8" => Some(Format::Int8),
        _ => match name.strip_prefix("trits")?.parse() {
            Ok(digits @ 1..=5) => Some(Format::Trits(digits)),
            _ => None,
        },
    }
}

/// Views of tensors: f32 as they are; packed ones as rows of bytes (as bytes, where rows differ in digits, and these)
/// and, where there are any, steps.
fn views<'a>(tensors: &'a [Named<'a>]) -> Vec<TensorView<'a>> {
    let views = tensors.iter().flat_map(|(name, shape, values)| match values {
        Values::Floats(values) => vec![TensorView::f32(name.clone(), shape, values)],
        Values::Halves(_) | Values::Codes(..) => unreachable!("a run has neither"),
        Values::Packed(stored) => {
            let len = stored.bytes.len();
            let mut views = match stored.digits.len() {
                0 => vec![TensorView::u8(name.clone(), &[shape[0], len / shape[0].max(1)], &stored.bytes)],
                rows => vec![
                    TensorView::u8(name.clone(), &[len], &stored.bytes),
                    TensorView::u8(digits_name(name), &[rows], &stored.digits),
                ],
            };
            if !stored.steps.is_empty() {
                views.push(TensorView::f32(steps_name(name), &[stored.steps.len()], &stored.steps));
            }
            views
        }
    });
    views.collect()
}

/// Reads a tensor as [`views`] laid it out, packed rows unchecked; `by_row` says whether each row has a step.
fn read_values<'f>(
    file: &'f TensorFile,
    path: &std::path::Path,
    name: &str,
    shape: &[usize],
    by_row: impl Fn(Format) -> bool,
) -> Result<Values<'f>> {
    let Some(stored) = file.metadata().get(&format_key(name)) else {
        return Ok(Values::Floats(file.f32(name, shape)?.into()));
    };
    if stored == archive::ARCHIVE {
        let shape = [shape[0], shape.get(1).copied().unwrap_or(1)];
        return archive::read(file, path, name, shape);
    }
    let format = format_of(stored).ok_or_else(|| Error::Content {
        path: path.to_path_buf(),
        expected: format!("a format of {name} that this program knows: bf16, int8, trits1 to trits5"),
        found: stored.clone(),
    })?;
    let (rows, cols) = (shape[0], shape.get(1).copied().unwrap_or(1));
    let named = digits_name(name);
    let (digits, shape) = if file.names().any(|found| found == named) {
        let digits = file.typed(&named, Dtype::U8, &[rows])?;
        (digits, vec![digits.iter().map(|digits| Format::Trits(*digits).row_len(cols)).sum()])
    } else {
        (&[][..], vec![rows, format.row_len(cols)])
    };
    let bytes = file.typed(name, Dtype::U8, &shape)?;
    let steps = match (format.largest(), by_row(format)) {
        (None, _) => Vec::new(),
        (Some(_), true) => file.f32(&steps_name(name), &[rows])?,
        (Some(_), false) => file.f32(&steps_name(name), &[1])?,
    };
    Ok(Values::Packed(Stored { format, bytes: bytes.into(), digits: digits.into(), steps: steps.into() }))
}

/// A model file, every tensor of which is as its layout says.
#[derive(Debug)]
pub(crate) struct ModelFile {
    file: TensorFile,
    path: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) vocab: usize,
    pub(crate) layout: Layout,
}

impl ModelFile {
    /// The options and the vocabulary of a model file, which its metadata say.
    pub(crate) fn options(file: &TensorFile, path: &std::path::Path) -> Result<(ModelConfig, usize)> {
        let content = |expected: &str, found: String| Error::Content {
            path: path.to_path_buf(),
            expected: expected.to_owned(),
            found,
        };
        let entry = |key: &str| {
            let found = file.metadata().get(key).cloned();
            found.ok_or_else(|| {
                content(&format!("the metadata entry {key}, which every saved model has"), "none".into())
            })
        };
        let config: ModelConfig = serde_json::from_str(&entry("tritrain.model")?)
            .map_err(|error| content("a [model] section as JSON in tritrain.model", error.to_string()))?;
        config.check().map_err(|error| content("a model that can exist", error.to_string()))?;
        let vocab = entry("tritrain.vocab")?;
        let vocab: usize = vocab.parse().map_err(|_| content("a number in tritrain.vocab", vocab.clone()))?;
        // A layer has seven tensors at least, so a hostile configuration cannot make a layout larger than
        // the file it came with.
        let tensors = file.names().count();
        if config.layers > tensors {
            let expected = format!("tensors of {} layers", config.layers);
            return Err(content(&expected, format!("{tensors} tensors")));
        }
        Ok((config, vocab))
    }

    /// Reads every tensor once.
    pub(crate) fn new(file: TensorFile, path: PathBuf) -> Result<ModelFile> {
        let (config, vocab) = ModelFile::options(&file, &path)?;
        let layout = Layout::new(&config, vocab);
        let model = ModelFile { file, path, config, vocab, layout };
        for id in (0..model.layout.specs.len()).filter(|id| model.layout.trains(*id)) {
            if let Values::Packed(stored) = model.read(id)? {
                let spec = &model.layout.specs[id];
                stored.check(spec.rows, spec.cols).map_err(|found| Error::Content {
                    path: model.path.clone(),
                    expected: format!("{} as {} rows", spec.name, format_name(stored.format)),
                    found,
                })?;
            }
            model.release(id);
        }
        Ok(model)
    }

    /// The file.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The model that its adapters belong to, where it has any.
    ///
    /// # Errors
    /// [`Error::Content`] where the file does not say it.
    pub(crate) fn base(&self) -> Result<Option<Base>> {
        if self.layout.adapters.is_empty() {
            return Ok(None);
        }
        let [path, hash] = BASE.map(|key| self.file.metadata().get(key));
        match (path, hash) {
            (Some(path), Some(hash)) => Ok(Some(Base { path: path.into(), hash: hash.clone() })),
            _ => Err(Error::Content {
                path: self.path.clone(),
                expected: format!("the metadata entries {} of a file of adapters", BASE.join(" and ")),
                found: "none".into(),
            }),
        }
    }

    /// The hash of the tokenizer, where the file says it.
    pub(crate) fn tokenizer(&self) -> Option<&str> {
        self.file.metadata().get(TOKENIZER).map(String::as_str)
    }

    fn read(&self, id: usize) -> Result<Values<'_>> {
        let spec = &self.layout.specs[id];
        let shape = spec.shape();
        read_values(&self.file, &self.path, &spec.name, &shape, by_row)
    }

    /// The weights of a tensor of the layout; beside adapters, of one of them.
    pub(crate) fn values(&self, id: usize) -> Values<'_> {
        // Pages of the tensor before leave memory: a model is read once, in order.
        if let Some(before) = id.checked_sub(1).filter(|before| self.layout.trains(*before)) {
            self.release(before);
        }
        self.read(id).expect("every tensor was read") // cannot fail: the file does not change
    }

    fn release(&self, id: usize) {
        self.file.release(&self.layout.specs[id].name);
    }
}

/// The model of a verified checkpoint.
pub(crate) fn restore_model(storage: &dyn Storage, checkpoint: &Checkpoint) -> Result<ModelFile> {
    let path = checkpoint.dir.join(MODEL);
    let file = TensorFile::parse(&path, checkpoint.read(storage, MODEL)?)?;
    ModelFile::new(file, path)
}

/// The state of a verified checkpoint; optimizer tensors go into `optimizer`.
pub(crate) fn restore_state<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    checkpoint: &Checkpoint,
    optimizer: &mut Optimizer<B>,
) -> Result<State> {
    let path = checkpoint.dir.join(STATE);
    let bytes = checkpoint.read(storage, STATE)?;
    let state: State = serde_json::from_slice(&bytes).map_err(|error| Error::Content {
        path,
        expected: "the state of a run".into(),
        found: error.to_string(),
    })?;
    let path = checkpoint.dir.join(OPTIMIZER);
    let file = TensorFile::parse(&path, checkpoint.read(storage, OPTIMIZER)?)?;
    let shapes: Vec<(String, [usize; 2])> =
        optimizer.state().into_iter().map(|(name, shape, _)| (name, shape)).collect();
    let mut moments = BTreeMap::new();
    for (name, shape) in shapes {
        let values = read_values(&file, &path, &name, &shape, |_| true)?;
        moments.insert(name, values);
    }
    let restored = optimizer.restore(backend, state.updates, |name| moments.get(name).cloned());
    let restored = restored.and_then(|()| match &state.spikes {
        Some(spikes) => optimizer.restore_spikes(spikes.clone()),
        None => Ok(()),
    });
    restored.map_err(|source| Error::State { path, source })?;
    Ok(state)
}
