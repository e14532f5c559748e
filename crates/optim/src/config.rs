//! How weights are updated: the `[optim]` section of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tritrain_backend::Format;

/// Where an update points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DirectionKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 1711.05101).
    Adamw,
    /// The same with both moments in 8 bits, in blocks of 256 (after Dettmers et al., 2110.02861).
    Adamw8,
    /// Factored second moment, update RMS clipped at one, optional momentum (Adafactor, 1804.04235).
    Factored,
    /// Signs of a mean of gradients and the gradient (Chen et al., 2302.06675).
    Lion,
    /// Signs of a mean of gradients (Bernstein et al., 1802.04434).
    Signum,
    /// A mean of gradients, 64 rows of which are made orthogonal at a time by products in f32 (Jordan et al., 2024; Khaled
    /// et al., 2510.16981); embeddings: factored.
    Muon,
    /// AdamW that finds the size of its steps (Mishchenko and Defazio, 2306.06101): rates multiply it, as published by 1.
    Prodigy,
}

/// How numbers of a ternary matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// 32 bits.
    F32,
    /// 16 bits, rounded by chance.
    Bf16,
    /// 8 bits, a step for each row, rounded by chance.
    Int8,
    /// One balanced ternary digit: 3 levels, 1.6 bits.
    Trits1,
    /// Two digits: 9 levels, 3.2 bits.
    Trits2,
    /// Three digits: 27 levels, 4.8 bits.
    Trits3,
    /// Four digits: 81 levels, 6.4 bits.
    Trits4,
    /// Five digits: 243 levels, 8 bits.
    Trits5,
}

impl StorageKind {
    /// The format of packed numbers; none for f32.
    pub fn format(self) -> Option<Format> {
        match self {
            StorageKind::F32 => None,
            StorageKind::Bf16 => Some(Format::Bf16),
            StorageKind::Int8 => Some(Format::Int8),
            StorageKind::Trits1 => Some(Format::Trits(1)),
            StorageKind::Trits2 => Some(Format::Trits(2)),
            StorageKind::Trits3 => Some(Format::Trits(3)),
            StorageKind::Trits4 => Some(Format::Trits(4)),
            StorageKind::Trits5 => Some(Format::Trits(5)),
        }
    }
}

/// How many digits rows of latent weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DigitsKind {
    /// All the same.
    Even,
    /// By cluster, from two to five, where the loss that rounding is expected to cost is least for as many bytes.
    Clusters,
}

/// Where the gradient of a ternary matrix is kept until the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GradientKind {
    /// In 32 bits.
    F32,
    /// In one balanced ternary digit, rounded by chance (TernGrad, 1705.07878), a step for each row.
    Trits,
    /// Nowhere: a matrix is updated during the backward pass, when its gradient is complete.
    None,
}

/// What becomes of a tensor whose gradient is out of proportion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpikeKind {
    /// It moves as ever; a gradient that is not finite skips the step.
    Off,
    /// Its gradient is scaled to the usual norm; one that is not finite leaves the tensor as it is.
    Clip,
    /// It stays as it is for the step.
    Skip,
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
    /// Warm-up, then constant; weights are an average in place of a first moment (Schedule-Free, 2405.15682).
    Free,
}

/// Who adjusts learning rate and trust region while a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ControllerKind {
    /// Nobody: the schedule alone.
    Off,
    /// A rule that holds the ratio of update to weight.
    Rule,
    /// A network of 146 weights, trained on many short runs (`tritrain meta-train`).
    Learned,
    /// Chance, for comparison.
    Random,
}

/// The `[optim]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Direction of the update: "factored", "adamw", "adamw8", "lion", "signum" or "muon"; gains use AdamW. Rates
    /// differ: of two or three each, tried on 200,000 tokens, `rate` and `embedding_rate` 0.019 and 8e-3 did best
    /// for AdamW, 6e-3 and 2e-3 (the smallest) for Lion and Signum, 0.08 (the largest) and 8e-3 for Muon.
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
    /// Latent weights of ternary matrices: "f32", "bf16", "int8", "trits3", "trits4" or "trits5" (also 1, 2).
    pub latent: StorageKind,
    /// Largest latent weight in levels, times the mean magnitude at the start.
    #[schemars(range(min = 0.5, max = 100.0))]
    pub range: f32,
    /// Gradients of ternary matrices until the step: "f32", "trits" or "none" (updated while backward runs).
    pub gradient: GradientKind,
    /// Momentum of ternary matrices, not of AdamW: "f32", "bf16", "int8" or "trits1" to "trits5".
    pub moment: StorageKind,
    /// Trust region: largest norm of the update of a row, a share of that of a mean row of its matrix; 0 for none.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub radius: f32,
    /// Clusters of rows of matrices by what updates do to them, each with a rate and radius of its own; 1 for none.
    #[schemars(range(min = 1, max = 32))]
    pub clusters: usize,
    /// Digits of latent weights in "trits3" or "trits4": "even", or by "clusters", 2 to 5 in as many bytes.
    pub digits: DigitsKind,
    /// Who adjusts rates and radius during the run: "off", "rule", "learned" (a network) or "random".
    pub controller: ControllerKind,
    /// Every so many steps, compares what a step took off the loss of its own batch with what its gradient predicted,
    /// and moves the radius by that, on top of the controller; 0 for never.
    #[schemars(range(min = 0, max = 1_000_000_u64))]
    pub feedback: u64,
    /// Weights of the learned controller, as `tritrain meta-train` writes them; empty takes those in the program.
    pub controller_weights: String,
    /// Momentum of the factored direction; 0 keeps no first moment.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub momentum: f32,
    /// First-moment decay of the other directions; of Lion, the share of the mean in a step.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub beta1: f32,
    /// Longest memory of the second moment, and of Lion's mean.
    #[schemars(range(min = 0.0, max = 0.999999))]
    pub beta2: f32,
    /// Decoupled weight decay on matrices and embeddings, per unit of learning rate.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub weight_decay: f32,
    /// Spikes of the gradient of a tensor: "off", "clip" or "skip".
    pub spike: SpikeKind,
    /// Where a spike begins, in standard deviations of the logarithm of the norm above its running mean.
    #[schemars(range(min = 0.5, max = 100.0))]
    pub spike_z: f32,
    /// "cosine", "wsd", "constant" or "free" learning rate after warm-up.
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

impl OptimConfig {
    /// The trust region as [`Rates`](crate::Rates) take it: infinite for none.
    pub fn bound(&self) -> f32 {
        if self.radius > 0.0 { self.radius } else { f32::INFINITY }
    }

    /// Whether the options fit together.
    ///
    /// # Errors
    /// An option that would have no effect beside the others, and what to do.
    pub fn check(&self) -> Result<(), ConfigError> {
        let adam =
            matches!(self.direction, DirectionKind::Adamw | DirectionKind::Adamw8 | DirectionKind::Prodigy);
        if adam && self.moment != StorageKind::F32 {
            let reason =
                "has no effect on AdamW and Prodigy: leave it \"f32\", or set optim.direction to \"adamw8\"";
            return Err(ConfigError { option: "moment", reason });
        }
        let free = self.schedule == ScheduleKind::Free;
        let prodigy = self.direction == DirectionKind::Prodigy;
        if free && !matches!(self.direction, DirectionKind::Adamw | DirectionKind::Factored) {
            let reason = "\"free\" is for optim.direction \"factored\" or \"adamw\": set one of these";
            return Err(ConfigError { option: "schedule", reason });
        }
        if self.feedback > 0 && (self.controller == ControllerKind::Off || self.radius <= 0.0) {
            let reason =
                "moves the radius of a controller: set optim.controller and optim.radius, or leave it 0";
            return Err(ConfigError { option: "feedback", reason });
        }
        let few = matches!(self.latent, StorageKind::Trits3 | StorageKind::Trits4);
        if self.digits == DigitsKind::Clusters && (self.clusters < 2 || !few) {
            let reason = "\"clusters\" gives rows fewer digits and more, 2 to 5, by their cluster: \
                          set optim.latent to \"trits3\" or \"trits4\" and optim.clusters to 2 or more";
            return Err(ConfigError { option: "digits", reason });
        }
        if (free || prodigy) && self.latent != StorageKind::F32 {
            let reason = "is to be \"f32\" with optim.direction \"prodigy\" and optim.schedule \"free\"";
            return Err(ConfigError { option: "latent", reason });
        }
        if prodigy && (self.radius > 0.0 || self.clusters > 1 || self.controller != ControllerKind::Off) {
            let reason = "\"prodigy\" has no trust region, no clusters and no controller: \
                          set optim.radius to 0, optim.clusters to 1 and optim.controller to \"off\"";
            return Err(ConfigError { option: "direction", reason });
        }
        if !self.controller_weights.is_empty() && self.controller != ControllerKind::Learned {
            let reason = "is for the learned controller, and optim.controller is another: leave it \"\"";
            return Err(ConfigError { option: "controller_weights", reason });
        }
        Ok(())
    }
}

/// An option that does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("optim.{option} {reason}")]
pub struct ConfigError {
    /// Name of the option in `[optim]`.
    pub option: &'static str,
    /// Why, and what to do.
    pub reason: &'static str,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            direction: DirectionKind::Factored,
            rate: 0.019,
            rate_f32: 0.0145,
            embedding_rate: 8e-3,
            latent: StorageKind::F32,
            range: 3.75,
            gradient: GradientKind::F32,
            moment: StorageKind::F32,
            radius: 0.0,
            clusters: 1,
            digits: DigitsKind::Even,
            controller: ControllerKind::Off,
            feedback: 0,
            controller_weights: String::new(),
            momentum: 0.5,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
            spike: SpikeKind::Clip,
            spike_z: 4.0,
            schedule: ScheduleKind::Cosine,
            warmup: 0.05,
            decay: 0.3,
            final_rate: 0.05,
        }
    }
}
