//! Finding and reading a trained model for generation and evaluation.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use tritrain_backend::{Backend, Values};
use tritrain_data::{
    Tokenizer,
    chat::{ChatTemplate, TOKENIZER_CONFIG, TemplateFile},
};
use tritrain_files::{
    Storage,
    checkpoint::{self, Identity},
    tensors::TensorFile,
};
use tritrain_model::{Layout, Model, ModelConfig, Use};

use crate::{
    Error, Result,
    export::Weights,
    import::InPlace,
    save::{MODEL, ModelFile},
};

/// A model read from disk.
#[derive(Debug)]
pub struct Loaded {
    /// Its options.
    pub config: ModelConfig,
    /// Tokens in its vocabulary.
    pub vocab: usize,
    model: Stored,
    /// The model that its adapters belong to, where it has any: it holds nothing else.
    base: Option<Box<Loaded>>,
    /// The tokenizer beside it, or inside.
    pub tokenizer: Tokenizer,
    /// The file the weights came from.
    pub path: PathBuf,
    /// What a user should know of a file of another program, a sentence each.
    pub notes: Vec<String>,
}

/// Where the weights lie.
#[derive(Debug)]
enum Stored {
    /// In a file of ours, with this `tokenizer.json`.
    Ours(Box<ModelFile>, PathBuf),
    /// In a GGUF file.
    Gguf(Box<InPlace>),
}

impl Loaded {
    /// The model on a device, for evaluation and generation.
    ///
    /// # Errors
    /// The file is one of another program, and a tensor in it cannot be read or holds what is no number.
    pub fn model<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        self.made(backend, Use::Inference)
    }

    /// The model on a device, for generation alone: an embedding in fp16 stays where it lies.
    ///
    /// # Errors
    /// As [`Loaded::model`].
    pub fn generating<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        self.made(backend, Use::Generation)
    }

    /// The model on a device with its latent weights in f32, for gradients.
    ///
    /// # Errors
    /// As [`Loaded::model`]; it has adapters.
    pub fn trainable<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        self.without_adapters()?;
        self.made(backend, Use::Training)
    }

    fn made<B: Backend>(&self, backend: &B, purpose: Use) -> Result<Model<B>> {
        let failed = RefCell::new(None);
        let layout = self.layout();
        let values = |id: usize| {
            self.values(id).unwrap_or_else(|error| {
                failed.borrow_mut().get_or_insert(error);
                Values::Floats(vec![0.0; layout.specs[id].len()].into())
            })
        };
        let model = Model::new(backend, &self.config, self.vocab, &values, purpose);
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(model),
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        match &self.model {
            Stored::Ours(model, _) => &model.layout,
            Stored::Gguf(model) => &model.layout,
        }
    }

    /// The model that its adapters belong to, where it has any.
    pub fn base(&self) -> Option<&Loaded> {
        self.base.as_deref()
    }

    /// Whether it is a model by itself.
    ///
    /// # Errors
    /// [`Error::Adapters`] where it is not.
    pub fn without_adapters(&self) -> Result<()> {
        match &self.base {
            None => Ok(()),
            Some(_) => Err(Error::Adapters { path: self.path.clone() }),
        }
    }

    pub(crate) fn values(&self, id: usize) -> Result<Values<'_>> {
        match (&self.model, &self.base) {
            (_, Some(base)) if !self.layout().trains(id) => base.values(id),
            (Stored::Ours(model, _), _) => Ok(model.values(id)),
            (Stored::Gguf(model), _) => model.values(id),
        }
    }

    /// The model with the same weights and activations that are not rounded: what programs compute that know
    /// nothing of int8. For comparisons with them; it is slower.
    ///
    /// # Errors
    /// As [`Loaded::model`].
    pub fn in_floats<B: Backend>(&self, backend: &B) -> Result<Model<B>> {
        Ok(Weights::of(backend, self)?.in_floats(backend))
    }

    /// A tensor as a file of ours has it, where there is one of this name.
    pub(crate) fn tensor(&self, name: &str) -> Option<Values<'_>> {
        let Stored::Ours(model, _) = &self.model else { return None };
        let id = model.layout.specs.iter().position(|spec| spec.name == name)?;
        Some(model.values(id))
    }

    /// The token embedding, `[vocab][dim]`.
    ///
    /// # Errors
    /// As [`Loaded::model`].
    pub fn embedding(&self) -> Result<Vec<f32>> {
        Ok(self.values(self.layout().embedding)?.host().into_owned())
    }

    /// The `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Import`] where the tokenizer lies inside of a file of another program.
    pub fn tokenizer_path(&self) -> Result<&Path> {
        match &self.model {
            Stored::Ours(_, path) => Ok(path),
            Stored::Gguf(_) => {
                let what =
                    "it has no tokenizer.json beside it; make it a model of ours first, by tritrain import";
                Err(Error::Import { path: self.path.clone(), what: what.into() })
            }
        }
    }

    /// How the model was taught to see conversations.
    ///
    /// # Errors
    /// It has no chat template, or one that cannot be read.
    pub fn chat_template(&self, storage: &dyn Storage) -> Result<ChatTemplate> {
        let place = match &self.model {
            Stored::Ours(_, path) => &path.with_file_name(TOKENIZER_CONFIG),
            Stored::Gguf(_) => &self.path,
        };
        Ok(ChatTemplate::needed(self.template_file(storage)?, place)?)
    }

    /// The same as it is stored, where there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn template_file(&self, storage: &dyn Storage) -> Result<Option<TemplateFile>> {
        Ok(match &self.model {
            Stored::Ours(_, path) => TemplateFile::beside(storage, path)?,
            Stored::Gguf(model) => {
                let beside = model.beside.iter().find(|(name, _)| *name == TOKENIZER_CONFIG);
                let config = beside.map_or(&b"{}"[..], |(_, bytes)| bytes);
                TemplateFile::in_config(&self.path, config)?
            }
        })
    }
}

/// Reads a model from a run folder (its best checkpoint, else its newest), a `step-N` folder, a `model.safetensors` or a
/// GGUF file, which has its tokenizer inside; otherwise the tokenizer is the nearest `tokenizer.json` in its folder or the two above.
///
/// # Errors
/// [`Error::NoModel`]; a damaged file; a tokenizer that is missing or is not the model's.
pub fn load(storage: &dyn Storage, path: &Path) -> Result<Loaded> {
    let no_model = |found: &str| Error::NoModel { path: path.to_path_buf(), found: found.to_owned() };
    if !storage.exists(path)? {
        return Err(no_model("nothing is there"));
    }
    if path.extension().is_some_and(|extension| extension == "gguf") {
        let (model, tokenizer) = InPlace::gguf(storage, path)?;
        let (config, vocab, notes) = (model.config.clone(), model.vocab, model.notes.clone());
        return Ok(Loaded {
            config,
            vocab,
            model: Stored::Gguf(Box::new(model)),
            base: None,
            tokenizer,
            path: path.into(),
            notes,
        });
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
    let base = model.base()?.map(|base| base.load(storage, &model)).transpose()?.map(Box::new);
    let model = Stored::Ours(Box::new(model), place);
    Ok(Loaded { config, vocab, model, base, tokenizer, path: file, notes: Vec::new() })
}

/// The options of a model of ours, without its tokenizer and its weights.
///
/// # Errors
/// [`Error::NoModel`]; a damaged file.
pub fn options(storage: &dyn Storage, path: &Path) -> Result<ModelConfig> {
    let Some(file) = find(storage, path)? else {
        return Err(Error::NoModel {
            path: path.to_path_buf(),
            found: "no model file of this program".into(),
        });
    };
    let tensors = TensorFile::parse(&file, storage.map(&file)?)?;
    Ok(ModelFile::options(&tensors, &file)?.0)
}

/// The model that adapters were trained beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// Where it lay.
    pub(crate) path: PathBuf,
    /// BLAKE3 of the file, in hexadecimal.
    pub(crate) hash: String,
}

impl Base {
    /// That of a model that adapters are to be trained beside.
    pub(crate) fn of(storage: &dyn Storage, loaded: &Loaded) -> Result<Base> {
        let path = std::path::absolute(&loaded.path).unwrap_or_else(|_| loaded.path.clone());
        let hash = storage.map(&path)?.hash().to_hex().to_string();
        Ok(Base { path, hash })
    }

    /// The model, if it is still there, with the sizes of the `adapters`.
    fn load(&self, storage: &dyn Storage, adapters: &ModelFile) -> Result<Loaded> {
        let content = |path: &Path, expected: String, found: String| Error::Content {
            path: path.into(),
            expected,
            found,
        };
        if !storage.exists(&self.path)? {
            let expected = "the model that its adapters were trained beside".into();
            return Err(content(adapters.path(), expected, format!("nothing at {}", self.path.display())));
        }
        // Before it is loaded: adapters may name themselves.
        if options(storage, &self.path)?.lora > 0 {
            return Err(Error::Adapters { path: self.path.clone() });
        }
        let loaded = load(storage, &self.path)?;
        self.check(&Base::of(storage, &loaded)?)?;
        let config = ModelConfig { lora: 0, context: loaded.config.context, ..adapters.config.clone() };
        if config != loaded.config || adapters.vocab != loaded.vocab {
            let expected = format!("a model of the sizes {config:?}, as its adapters were trained beside");
            return Err(content(&self.path, expected, format!("{:?}", loaded.config)));
        }
        Ok(loaded)
    }

    /// Whether another one is the same model, wherever it lies.
    pub(crate) fn check(&self, found: &Base) -> Result<()> {
        if self.hash == found.hash {
            return Ok(());
        }
        let expected =
            format!("the model with the hash {}, which the adapters were trained beside", self.hash);
        Err(Error::Content { path: found.path.clone(), expected, found: found.hash.clone() })
    }
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
