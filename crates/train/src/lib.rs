//! Run state, the training loop, checkpoint policy, metrics and signals.

mod audit;
mod compare;
mod config;
mod error;
mod evaluate;
mod learner;
mod ledger;
mod load;
mod run;
mod run_config;
mod save;
mod signals;
mod topics;
mod workplace;

pub use audit::{Audit, ClusterAudit, audit};
pub use compare::{Comparison, Curve, pearson};
pub use config::{Config, ConfigError, Difference, FREE, Kind, OptionInfo, Problem, Section};
pub use error::{Error, Result};
pub use evaluate::{ClusterLoss, DomainLoss, Evaluation, evaluate, evaluate_text};
pub use learner::{Learner, Measured, Setup};
pub use ledger::{Class, Ledger};
pub use load::{Loaded, load};
pub use run::{Event, RowCluster, Run, StepReport, generate};
pub use run_config::RunConfig;
pub use signals::{STOPPED, Signals};
pub use topics::{CLUSTERS, with_topics};
pub use workplace::Workplace;
