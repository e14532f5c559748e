//! What a run tells as it goes on.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;
use tritrain_optim::Report;

use crate::Evaluation;

/// One training step, as logged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Steps behind, this one included.
    pub step: u64,
    /// Mean loss of the batch in nats per token.
    pub loss: f32,
    /// Learning rate.
    pub rate: f32,
    /// Norm of the gradient, all tensors together.
    pub gradient_norm: f32,
    /// Norm of the direction, all tensors together, before the learning rate.
    pub direction_norm: f32,
    /// How far relations were from those of the model that teaches them, in nats, before the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relations: Option<f32>,
    /// Log of what the controller multiplied the scheduled rates by, where there is a controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_multiplier: Option<f32>,
    /// Log of what it multiplied the configured radius by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_radius: Option<f32>,
    /// What the step took off the loss of its batch, and what its gradient predicted, where they were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<f32>,
    /// Norm of the update of all matrices as applied, a share of the norm of their weights.
    pub update: f32,
    /// Share of the rows of matrices whose update the trust region made shorter.
    pub bounded: f32,
    /// Share of the tensors whose gradient was a spike or not finite.
    pub clipped: f32,
    /// Share of the ternary codes that changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flips: Option<f32>,
    /// By cluster of rows, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub row_clusters: Vec<RowCluster>,
    /// Norm of what rows lost that got other numbers of digits after the step, as [`StepReport::update`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounded: Option<f32>,
    /// Tokens behind.
    pub tokens: u64,
    /// The cluster of most windows of the batch, where the text has clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<u32>,
    /// Mean loss of the windows of each cluster in the batch, in nats per token.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub clusters: BTreeMap<u32, f32>,
}

/// What a step did to a cluster of rows of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RowCluster {
    /// Its rows.
    pub rows: u64,
    /// As [`StepReport::update`], of its rows alone.
    pub update: f32,
    /// As [`StepReport::bounded`].
    pub bounded: f32,
    /// As [`StepReport::flips`].
    pub flips: f32,
    /// Mean number of digits of their latent weights in the step, by rows, where they have digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digits: Option<f32>,
}

impl RowCluster {
    pub(super) fn new(report: &Report) -> RowCluster {
        RowCluster {
            rows: report.rows as u64,
            update: report.relative() as f32,
            bounded: report.bounded_share() as f32,
            flips: report.flip_rate() as f32,
            digits: report.mean_digits().map(|digits| digits as f32),
        }
    }
}

/// What [`Run::advance`](crate::Run::advance) did.
#[derive(Clone, Debug)]
pub enum Event {
    /// A training step, and the seconds it took.
    Step(StepReport, f64),
    /// A step that was skipped because a quantity was not finite.
    Skipped {
        /// The step.
        step: u64,
        /// The quantity.
        what: &'static str,
    },
    /// A step whose batch has no token to learn: conversations go on in it without an answer.
    NoAnswer {
        /// The step.
        step: u64,
    },
    /// Too many gradients were spikes, or the loss stayed high: the run went back to a checkpoint.
    WentBack {
        /// From this step.
        from: u64,
        /// To this one.
        step: u64,
        /// What all learning rates are multiplied by from there on.
        rates: f32,
    },
    /// An evaluation on the validation split.
    Evaluated {
        /// After this step.
        step: u64,
        /// Its result.
        evaluation: Evaluation,
    },
    /// A sample of text.
    Sampled {
        /// After this step.
        step: u64,
        /// The text.
        text: String,
    },
    /// A checkpoint.
    Saved {
        /// After this step.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
}
