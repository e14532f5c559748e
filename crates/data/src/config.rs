//! Which text, which tokenizer, what is held out: the `[data]` section of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[data]` section: where text comes from and how it becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Files and folders of text (.jsonl with `text` or `messages`, text and source files, each also .gz or .zst); empty takes the text inside the program.
    pub paths: Vec<String>,
    /// A tokenizer.json to use (byte-level BPE); empty trains one on the text.
    pub tokenizer: String,
    /// Size of the vocabulary of a trained tokenizer, at most.
    #[schemars(range(min = 257, max = 262144))]
    pub vocab: u32,
    /// Share of the documents of each domain held out for validation.
    #[schemars(range(min = 0.0001, max = 0.5))]
    pub validation: f32,
    /// Which text a batch takes: all but `shuffle` go by clusters.
    pub plan: PlanKind,
    /// A clusters.safetensors of `tritrain cluster`; empty finds `clusters_k` clusters in the text where the plan needs them.
    pub clusters: String,
    /// Clusters to find; 0 finds none unless the plan needs them, and then 16.
    #[schemars(range(max = 1024))]
    pub clusters_k: u32,
    /// Leave near-duplicates out of training: documents within a cluster whose vectors have this cosine or more and four fifths of whose 5-word shingles agree; 0 leaves none out, 0.95 is a good start.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub duplicates: f32,
}

/// Which text a batch takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlanKind {
    /// Any, in random order.
    Shuffle,
    /// Of every cluster its share.
    #[default]
    Stratified,
    /// Of every cluster as much, none of it more than four times an epoch.
    Balanced,
    /// Of one cluster.
    Homogeneous,
    /// More of the clusters that are being learnt faster.
    Adaptive,
    /// Any, but documents that are alike share a context.
    Ordered,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            paths: Vec::new(),
            tokenizer: String::new(),
            vocab: 2048,
            validation: 0.02,
            plan: PlanKind::default(),
            clusters: String::new(),
            clusters_k: 0,
            duplicates: 0.0,
        }
    }
}

/// A value that an option of `[data]` cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data.{option} = {found}: expected {expected}")]
pub struct ConfigError {
    /// The option's name inside `[data]`.
    pub option: &'static str,
    /// Its value.
    pub found: String,
    /// What it must satisfy.
    pub expected: &'static str,
}

impl DataConfig {
    /// Whether every option is in its range.
    ///
    /// # Errors
    /// Names the option and its range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |option, found: String, expected| Err(ConfigError { option, found, expected });
        if let Some(path) = self.paths.iter().find(|path| path.trim().is_empty()) {
            return fail("paths", format!("{path:?}"), "paths of files or folders");
        }
        // 257 = the 256 bytes and the end of text.
        if !(257..=262_144).contains(&self.vocab) {
            return fail("vocab", self.vocab.to_string(), "257 to 262144");
        }
        // The trainer counts in i32: a pair cannot occur more often than there are bytes.
        if !(0.0001..=0.5).contains(&self.validation) {
            return fail("validation", self.validation.to_string(), "0.0001 to 0.5 (a share, not percent)");
        }
        if self.clusters_k > 1024 {
            return fail("clusters_k", self.clusters_k.to_string(), "0 to 1024");
        }
        if !(0.0..=1.0).contains(&self.duplicates) {
            return fail("duplicates", self.duplicates.to_string(), "a cosine up to 1, or 0");
        }
        Ok(())
    }
}
