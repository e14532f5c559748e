//! What a checkpoint of a run holds, written and read.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tritrain_backend::Backend;
use tritrain_data::Mixer;
use tritrain_files::{
    Storage,
    checkpoint::{self, Checkpoint, Identity, Part},
    tensors::{TensorFile, TensorView},
};
use tritrain_model::{Layout, Model, ModelConfig};
use tritrain_optim::{Guard, Optimizer};

use crate::{Error, Result};

pub(crate) const MODEL: &str = "model.safetensors";
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

/// Saves a checkpoint; the weights must be finite for it to count as healthy.
pub(crate) fn save<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    run: &std::path::Path,
    (model, optimizer, state): (&Model<B>, &Optimizer<B>, &State),
    identity: &Identity,
) -> Result<PathBuf> {
    let layout = model.layout();
    let weights: Vec<Vec<f32>> = (0..layout.specs.len()).map(|id| model.download(backend, id)).collect();
    let moments: Vec<(String, [usize; 2], Vec<f32>)> = optimizer
        .state()
        .into_iter()
        .map(|(name, shape, buffer)| {
            let mut host = vec![0.0; shape[0] * shape[1]];
            backend.download(buffer, &mut host);
            (name, shape, host)
        })
        .collect();
    let step = state.step;
    let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
    let healthy = weights.iter().all(|w| finite(w)) && moments.iter().all(|(_, _, m)| finite(m));
    let state = serde_json::to_vec_pretty(state).map_err(|error| Error::Content {
        path: run.join(STATE),
        expected: "a state that can be written as JSON".into(),
        found: error.to_string(),
    })?;
    let views = layout.specs.iter().zip(&weights).map(|(spec, values)| {
        let shape = if spec.rows == 1 { vec![spec.cols] } else { vec![spec.rows, spec.cols] };
        TensorView::f32(spec.name.clone(), &shape, values)
    });
    let metadata = metadata(model.config(), model.vocab(), step)?;
    let moments = moments.iter().map(|(name, shape, values)| TensorView::f32(name.clone(), shape, values));
    let parts = [
        Part::tensors(MODEL, views, &metadata)?,
        Part::tensors(OPTIMIZER, moments, &BTreeMap::new())?,
        Part::bytes(STATE, &state),
    ];
    Ok(checkpoint::save(storage, run, step, &parts, identity, healthy)?)
}

/// The weights of a model file, in layout order, with the configuration they belong to.
pub(crate) fn read_model(
    file: &TensorFile,
    path: &std::path::Path,
) -> Result<(ModelConfig, usize, Vec<Vec<f32>>)> {
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
        return Err(content(&format!("tensors of {} layers", config.layers), format!("{tensors} tensors")));
    }
    let layout = Layout::new(&config, vocab);
    let weights = layout.specs.iter().map(|spec| {
        let shape = if spec.rows == 1 { vec![spec.cols] } else { vec![spec.rows, spec.cols] };
        Ok(file.f32(&spec.name, &shape)?)
    });
    let weights = weights.collect::<Result<_>>()?;
    Ok((config, vocab, weights))
}

/// The weights of a verified checkpoint.
pub(crate) fn restore_weights(
    storage: &dyn Storage,
    checkpoint: &Checkpoint,
) -> Result<(ModelConfig, usize, Vec<Vec<f32>>)> {
    let path = checkpoint.dir.join(MODEL);
    let file = TensorFile::parse(&path, checkpoint.read(storage, MODEL)?)?;
    read_model(&file, &path)
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
        let values = file.f32(&name, &shape)?;
        moments.insert(name, values);
    }
    optimizer
        .restore(backend, state.updates, |name| moments.get(name).map(Vec::as_slice))
        .map_err(|source| Error::State { path, source })?;
    Ok(state)
}
