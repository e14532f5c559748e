//! The whole configuration: one file of four sections, and `--set` on top.

mod error;
mod options;
mod read;
mod write;

pub use error::{ConfigError, Problem};
pub use options::{Kind, OptionInfo, Section};

use crate::{learner::MOST_PASSES, run_config::RunConfig};
use read::Layers;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use tritrain_data::DataConfig;
use tritrain_model::{ModelConfig, Precision};
use tritrain_optim::{DirectionKind, GradientKind, OptimConfig, ScheduleKind};

/// Options that do not decide what is learnt: they may change when a run goes on.
pub const FREE: [&str; 6] = [
    "run.threads",
    "run.recompute",
    "run.eval_every",
    "run.sample_every",
    "run.checkpoint_every",
    "run.keep",
];

/// The place of a problem in values that came from no file and no argument.
const NOWHERE: &str = "configuration";

/// What a run is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// The text and how it becomes tokens.
    pub data: DataConfig,
    /// The optimizer.
    pub optim: OptimConfig,
    /// How long to train and what to keep.
    pub run: RunConfig,
}

/// An option that decides what is learnt and differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `section.option`.
    pub key: String,
    /// Its value here, as TOML.
    pub ours: String,
    /// Its value there.
    pub theirs: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {} and was {}", self.key, self.ours, self.theirs)
    }
}

impl Config {
    /// Reads a file and checks it. `origin` is its name for messages.
    ///
    /// # Errors
    /// Every problem of the file at once, with line, expectation and suggestion.
    pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
        Config::resolve(Some((text, origin)), &[] as &[&str])
    }

    /// Lays a file (text, origin) over the defaults and `section.option=value` arguments over both,
    /// then checks the whole: an argument may repair what the file alone gets wrong.
    ///
    /// # Errors
    /// Every problem of file and arguments at once. Options are checked against each other only
    /// once each is valid by itself.
    pub fn resolve(file: Option<(&str, &str)>, sets: &[impl AsRef<str>]) -> Result<Config, ConfigError> {
        let mut layers = Layers::over(Config::default().values());
        if let Some((text, origin)) = file {
            layers.file(text, origin);
        }
        for assignment in sets {
            layers.set(assignment.as_ref());
        }
        let origin = file.map_or(NOWHERE, |(_, origin)| origin);
        let (config, places) = from_layers(layers, origin)?;
        config.check_at(origin, &places)?;
        Ok(config)
    }

    /// Changes one option, given as `section.option=value`. The value is TOML; what is not TOML is a
    /// string. Does not compare options with each other: call [`Config::check`] after the last one.
    ///
    /// # Errors
    /// An unknown option, or a value of the wrong kind or out of range; the configuration is then
    /// unchanged.
    pub fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let mut layers = Layers::over(self.values());
        layers.set(assignment);
        *self = from_layers(layers, "--set")?.0;
        Ok(())
    }

    /// Whether the options fit together.
    ///
    /// # Errors
    /// Names the options that do not, and what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_at(NOWHERE, &BTreeMap::new())
    }

    /// Optimizer steps of the whole run: the smaller of `run.steps` and the steps that
    /// `run.tokens` pays for, and at least 1.
    ///
    /// # Errors
    /// When both are 0.
    pub fn steps(&self) -> Result<u64, ConfigError> {
        let per_step = (self.run.batch as u64).saturating_mul(self.model.context as u64).max(1);
        let paid = (self.run.tokens > 0).then(|| (self.run.tokens / per_step).max(1));
        let asked = (self.run.steps > 0).then_some(self.run.steps);
        [paid, asked].into_iter().flatten().min().ok_or_else(|| {
            let what = "run.steps = 0 and run.tokens = 0: nothing ends the run".into();
            Problem { place: NOWHERE.into(), what, hint: Some("set one of them".into()) }.into()
        })
    }

    /// Every option with its value, as saved with a run; [`Config::parse`] gives the same back.
    pub fn to_toml(&self) -> String {
        write::plain(&self.values(), |_| true)
    }

    /// The default file with the help of every option.
    pub fn annotated() -> String {
        write::annotated()
    }

    /// Every option with its help, kind and default: what help pages and bindings are made from.
    pub fn options() -> &'static [Section] {
        options::sections()
    }

    /// The options that decide what is learnt and differ; none exactly when the hashes are equal.
    pub fn differences(&self, other: &Config) -> Vec<Difference> {
        let (ours, theirs) = (self.shown(), other.shown());
        let pairs = ours.into_iter().zip(theirs).filter(|(a, b)| !FREE.contains(&&*a.0) && a != b);
        pairs.map(|((key, ours), (_, theirs))| Difference { key, ours, theirs }).collect()
    }

    /// BLAKE3, in hexadecimal, of the options that decide what is learnt: all but [`FREE`].
    pub fn hash(&self) -> String {
        let decisive = write::plain(&self.values(), |key| !FREE.contains(&key));
        blake3::hash(decisive.as_bytes()).to_hex().to_string()
    }
}

impl Config {
    /// Section, option, value.
    fn values(&self) -> Value {
        let values = serde_json::to_value(self);
        values.expect("plain values") // cannot fail: numbers, booleans and strings in named fields
    }

    /// Key and value as TOML of every option, in the order of the file.
    fn shown(&self) -> Vec<(String, String)> {
        let values = self.values();
        let shown = |section: &Section, option: &OptionInfo| {
            write::value(&values[section.name][&option.name], &option.kind)
        };
        options::options().map(|(section, option)| (option.key.clone(), shown(section, option))).collect()
    }

    fn check_at(&self, origin: &str, places: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let mut fail = |key: String, what: String| {
            let set = places.get(&key);
            let default = set.is_none() && origin != NOWHERE;
            problems.push(Problem {
                place: set.map_or(origin, String::as_str).to_owned(),
                what,
                hint: default.then(|| format!("{key} has its default")),
            });
        };
        if let Err(error) = self.model.check() {
            fail(format!("model.{}", error.option), error.to_string());
        }
        if let Err(error) = self.data.check() {
            fail(format!("data.{}", error.option), error.to_string());
        }
        let (experts, k) = (self.run.experts, self.data.clusters_k as usize);
        if experts > 0 && self.data.clusters.is_empty() && k > 0 && k != experts {
            let what = format!("run.experts = {experts}: data.clusters_k = {k} must be the same, or 0");
            fail("run.experts".into(), what);
        }
        if self.run.teach > 0.0 && self.run.from.is_empty() {
            let what = format!("run.teach = {}: nobody teaches without run.from", self.run.teach);
            fail("run.teach".into(), what);
        }
        if self.run.relations > 0.0 && (self.run.from.is_empty() || self.optim.feedback > 0) {
            let hint = "they are those of the model in run.from, and no part of what optim.feedback compares";
            fail("run.relations".into(), format!("run.relations = {}: {hint}", self.run.relations));
        }
        if self.run.lambda_warmup > 0.0 && (self.model.precision == Precision::F32 || self.model.lora > 0) {
            let hint = "it is for ternary matrices that are trained: leave it 0 with model.precision = \"f32\" and \
                        with adapters";
            fail(
                "run.lambda_warmup".into(),
                format!("run.lambda_warmup = {}: {hint}", self.run.lambda_warmup),
            );
        }
        if self.model.lora > 0 {
            let matrices = |of: &OptimConfig| {
                let few = (of.latent, of.gradient, of.moment, of.digits);
                (few, of.radius.to_bits(), of.clusters, of.controller, of.feedback)
            };
            let alone = !matches!(self.optim.direction, DirectionKind::Prodigy | DirectionKind::Muon)
                && self.optim.schedule != ScheduleKind::Free;
            let hint = if self.run.from.is_empty() {
                Some("there is no model to adapt: name it in run.from, or by --from")
            } else if self.run.experts > 0 {
                Some("experts have no adapters: set run.experts to 0")
            } else if matrices(&self.optim) != matrices(&OptimConfig::default()) || !alone {
                Some(
                    "matrices stay as they are: leave optim.latent, gradient, moment, digits, radius, clusters, \
                     controller and feedback at their defaults; direction \"prodigy\" and \"muon\" and schedule \
                     \"free\" are for whole models",
                )
            } else {
                None
            };
            if let Some(hint) = hint {
                fail("model.lora".into(), format!("model.lora = {}: {hint}", self.model.lora));
            }
        }
        let (batch, micro_batch, passes) = (self.run.batch, self.run.micro_batch, self.run.passes());
        if micro_batch > 0 && batch % micro_batch != 0 {
            let what =
                format!("run.micro_batch = {micro_batch}: expected a divisor of run.batch = {batch}, or 0");
            fail("run.micro_batch".into(), what);
        }
        match self.optim.gradient {
            GradientKind::Trits if passes > MOST_PASSES => {
                let what = format!(
                    "run.micro_batch = {micro_batch} makes {passes} passes of a batch of {batch}: \
                     optim.gradient = \"trits\" adds up at most {MOST_PASSES}"
                );
                fail("run.micro_batch".into(), what);
            }
            GradientKind::None if passes > 1 => {
                let what = format!(
                    "run.micro_batch = {micro_batch}: gradients of {passes} passes need a place to add up, and \
                     optim.gradient = \"none\" has none: set it to \"trits\" or \"f32\""
                );
                fail("run.micro_batch".into(), what);
            }
            _ => {}
        }
        if let Err(error) = self.optim.check() {
            fail(format!("optim.{}", error.option), error.to_string());
        }
        if let Err(error) = self.steps() {
            let set = places.get("run.tokens").or(places.get("run.steps"));
            let place = set.map_or(origin, String::as_str);
            problems.extend(error.problems.into_iter().map(|p| Problem { place: place.to_owned(), ..p }));
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
    }
}

/// The configuration the layers add up to, and who set what.
fn from_layers(layers: Layers, origin: &str) -> Result<(Config, BTreeMap<String, String>), ConfigError> {
    if !layers.problems.is_empty() {
        return Err(ConfigError { problems: layers.problems });
    }
    match serde_json::from_value(layers.values) {
        Ok(config) => Ok((config, layers.places)),
        Err(error) => Err(Problem { place: origin.to_owned(), what: error.to_string(), hint: None }.into()),
    }
}
