//! Finding and reading a trained model for generation and evaluation.

use std::path::{Path, PathBuf};

use tritrain_backend::{Backend, Values};
use tritrain_data::{Tokenizer, chat::ChatTemplate};
use tritrain_files::{
    Storage,
    checkpoint::{self, Identity},
    tensors::TensorFile,
};
use tritrain_model::{Model, ModelConfig, Use};

use crate::{
    Error, Result,
    export::Weights,
    save::{MODEL, ModelFile},
};

/// A model read from disk.
#[derive(Debug)]
pub struct Loaded {
    /// Its options.
    pub config: ModelConfig,
    /// Tokens in its vocabulary.
    pub vocab: usize,
    model: ModelFile,
    /// The tokenizer beside it.
    pub tokenizer: Tokenizer,
    /// The file the weights came from.
    pub path: PathBuf,
    /// The `tokenizer.json`.
    pub tokenizer_path: PathBuf,
}

impl Loaded {
    /// The model on a device, for evaluation and generation.
    pub fn model<B: Backend>(&self, backend: &B) -> Model<B> {
        Model::new(backend, &self.config, self.vocab, &|id| self.model.values(id), Use::Inference)
    }

    /// The model on a device with its latent weights in f32, for gradients.
    pub fn trainable<B: Backend>(&self, backend: &B) -> Model<B> {
        Model::new(backend, &self.config, self.vocab, &|id| self.model.values(id), Use::Training)
    }

    /// The model with the same weights and activations that are not rounded: what programs compute that know
    /// nothing of int8. For comparisons with them; it is slower.
    pub fn in_floats<B: Backend>(&self, backend: &B) -> Model<B> {
        Weights::of(backend, self).in_floats(backend)
    }

    /// A tensor as it is stored, where there is one of this name.
    pub(crate) fn values(&self, name: &str) -> Option<Values<'_>> {
        let id = self.model.layout.specs.iter().position(|spec| spec.name == name)?;
        Some(self.model.values(id))
    }

    /// How the model sees conversations: the template beside its tokenizer, else a plain one.
    ///
    /// # Errors
    /// [`Error::Data`] where what is there is no template.
    pub fn chat_template(&self, storage: &dyn Storage) -> Result<ChatTemplate> {
        let found = ChatTemplate::find(storage, &self.tokenizer_path)?;
        Ok(found.map_or_else(|| ChatTemplate::plain(&self.tokenizer), Ok)?)
    }

    /// The token embedding, `[vocab][dim]`.
    pub fn embedding(&self) -> Vec<f32> {
        match self.model.values(self.model.layout.embedding) {
            Values::Floats(vectors) => vectors.into_owned(),
            Values::Packed(_) => Vec::new(), // cannot be: only matrices are stored in fewer bits
        }
    }
}

/// Reads a model from a run folder (its best checkpoint, else its newest), a `step-N` folder or a
/// `model.safetensors`; the tokenizer is the nearest `tokenizer.json` in its folder or the two above.
///
/// # Errors
/// [`Error::NoModel`]; a damaged file; a tokenizer that is missing or is not the model's.
pub fn load(storage: &dyn Storage, path: &Path) -> Result<Loaded> {
    let no_model = |found: &str| Error::NoModel { path: path.to_path_buf(), found: found.to_owned() };
    if !storage.exists(path)? {
        return Err(no_model("nothing is there"));
    }
    let file = find(storage, path)?.ok_or_else(|| no_model("no checkpoint and no model file"))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let checkpoint = match storage.exists(&folder.join("manifest.json"))? {
        true => Some(checkpoint::open(storage, folder)?),
        false => None,
    };
    let tensors = TensorFile::parse(&file, storage.map(&file)?)?;
    let model = ModelFile::new(tensors, file.clone())?;
    let (config, vocab) = (model.config.clone(), model.vocab);
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let mut places = absolute.ancestors().take(3).map(|dir| dir.join("tokenizer.json"));
    let Some(place) = places.find(|place| storage.exists(place).unwrap_or(false)) else {
        return Err(Error::Content {
            path: file,
            expected: "a tokenizer.json in its folder or one of the two above".into(),
            found: "none".into(),
        });
    };
    let tokenizer = Tokenizer::from_file(&place)?;
    // A checkpoint names its tokenizer, as imported models do; other model files say how many tokens it had.
    if let Some(checkpoint) = checkpoint {
        let tokenizer = tokenizer.hash().to_owned();
        checkpoint.require(&Identity { tokenizer, ..checkpoint.manifest.identity.clone() }, &[])?;
    }
    if let Some(expected) = model.tokenizer().filter(|hash| *hash != tokenizer.hash()) {
        let found = format!("{}: it belongs to another model", tokenizer.hash());
        return Err(Error::Content { path: place, expected: format!("the tokenizer {expected}"), found });
    }
    if tokenizer.vocab_size() as usize != vocab {
        return Err(Error::Content {
            path: place,
            expected: format!("the tokenizer of {}, with {vocab} tokens", file.display()),
            found: format!("{} tokens: it belongs to another model", tokenizer.vocab_size()),
        });
    }
    Ok(Loaded { config, vocab, model, tokenizer, path: file, tokenizer_path: place })
}

/// The model file that `path` means.
fn find(storage: &dyn Storage, path: &Path) -> Result<Option<PathBuf>> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Ok(Some(path.to_path_buf()));
    }
    let inside = path.join(MODEL);
    if storage.exists(&inside)? {
        return Ok(Some(inside));
    }
    let best = path.join("best");
    if storage.exists(&best)? {
        let name = String::from_utf8_lossy(&storage.read(&best)?).trim().to_owned();
        let is_step = name.strip_prefix("step-").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        if is_step && storage.exists(&path.join(&name).join(MODEL))? {
            return Ok(Some(path.join(name).join(MODEL)));
        }
    }
    if !path.is_dir() {
        return Ok(None);
    }
    Ok(checkpoint::newest(storage, path)?.map(|checkpoint| checkpoint.dir.join(MODEL)))
}
