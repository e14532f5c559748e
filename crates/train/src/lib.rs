//! Run state, the training loop, checkpoint policy, metrics and signals.

mod archive;
mod audit;
mod compare;
mod config;
mod error;
mod evaluate;
mod export;
mod generate;
mod import;
mod learner;
mod ledger;
mod load;
mod merge;
mod meta;
mod mixture;
mod origin;
mod part;
mod proxy;
mod run;
mod run_config;
mod save;
mod signals;
mod steering;
mod tasks;
mod topics;
mod workplace;

pub use archive::{Archived, archive};
pub use audit::{Audit, ClusterAudit, audit};
pub use compare::{Comparison, Curve, pearson};
pub use config::{Config, ConfigError, Difference, FREE, Kind, OptionInfo, Problem, Section};
pub use error::{Error, Result};
pub use evaluate::{
    ClusterLoss, DomainLoss, Evaluation, Predict, Single, evaluate, evaluate_text, windows_at_once,
};
pub use export::{
    Floats, Hf, LinearClass, TEXT_TOKENS, Target, Verified, export, logits, text_of_run, tokens_of, verify,
};
pub use generate::{Continuation, Next, Until, generate, generate_all};
pub use import::{Imported, import};
pub use learner::{Learner, Measured, Setup};
pub use ledger::{Class, Ledger};
pub use load::{Loaded, load, options};
pub use merge::{Merged, Way, merge};
pub use meta::{Check, FOUND, Meta, MetaOptions, WRONG};
pub use mixture::{Mixed, MixedContinuation, MixedLosses, Mixing, Mixture, WAYS, Weights};
pub use part::Part;
pub use proxy::{Proxy, losses};
pub use run::{Disturbance, Event, Fault, RowCluster, Run, StepReport};
pub use run_config::RunConfig;
pub use signals::{STOPPED, Signals};
pub use tasks::{ChoiceReport, TaskReport, TextReport, evaluate_tasks};
pub use topics::{CLUSTERS, with_topics};
pub use workplace::Workplace;
