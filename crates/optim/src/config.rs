//! How weights are updated: the `[optim]` section of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where an update points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectionKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 1711.05101).
    Adamw,
    /// Factored second moment, update RMS clipped at one, optional momentum (Adafactor, 1804.04235).
    Factored,
}

/// How the learning rate moves over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Warm-up, then half a cosine down to the final share.
    Cosine,
    /// Warm-up, a constant stretch, then a linear decay (warm-up, stable, decay).
    Wsd,
    /// Warm-up, then constant.
    Constant,
}

/// The `[optim]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Direction of the update for matrices and embeddings: "factored" or "adamw"; gains use AdamW.
    pub direction: DirectionKind,
    /// Peak learning rate of ternary matrices, a share of the root mean square of each; gains: a sixteenth.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rate: f32,
    /// The same where model.precision is "f32", as in the twin of `compare`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rate_f32: f32,
    /// Peak learning rate of embedding and head.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub embedding_rate: f32,
    /// Momentum of the factored direction; 0 keeps no first moment.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub momentum: f32,
    /// First-moment decay of AdamW.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub beta1: f32,
    /// Longest memory of the second moment, both directions.
    #[schemars(range(min = 0.0, max = 0.999999))]
    pub beta2: f32,
    /// Decoupled weight decay on matrices and embeddings, per unit of learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f32,
    /// "cosine", "wsd" or "constant" learning rate after warm-up.
    pub schedule: ScheduleKind,
    /// Share of the run spent warming up.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub warmup: f32,
    /// Share of the run spent decaying, for the "wsd" schedule.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub decay: f32,
    /// Learning rate at the end, as a share of the peak.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub final_rate: f32,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            direction: DirectionKind::Factored,
            rate: 0.019,
            rate_f32: 0.0145,
            embedding_rate: 8e-3,
            momentum: 0.5,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
            schedule: ScheduleKind::Cosine,
            warmup: 0.05,
            decay: 0.3,
            final_rate: 0.05,
        }
    }
}
