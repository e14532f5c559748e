//! What a model is made of: the `[model]` section of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tritrain_backend::{Products, Shape};

/// How the linear layers inside the blocks are stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Codes in {-1, 0, 1} with one fp16 scale, int8 activations, integer arithmetic.
    Ternary,
    /// Plain f32 matrices: the twin every quality figure is compared with.
    F32,
}

/// The gate of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// `g · sigmoid(g)`; exports to llama.cpp and transformers.
    Silu,
    /// `max(g, 0)²`; exports to transformers and bitnet.cpp only.
    Relu2,
}

/// The `[model]` section: one decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream; a multiple of 64 for ternary models.
    #[schemars(range(min = 2, max = 65536))]
    pub dim: usize,
    /// Number of blocks.
    #[schemars(range(min = 1, max = 1024))]
    pub layers: usize,
    /// Attention heads; `dim` must be a multiple, with an even quotient (the head width).
    #[schemars(range(min = 1, max = 1024))]
    pub heads: usize,
    /// Key and value heads; `heads` must be a multiple (grouped-query attention when smaller).
    #[schemars(range(min = 1, max = 1024))]
    pub kv_heads: usize,
    /// Inner width of the feed-forward block; a multiple of 64 for ternary models.
    #[schemars(range(min = 1, max = 262144))]
    pub ffn: usize,
    /// Longest sequence the model is trained on, in tokens.
    #[schemars(range(min = 1, max = 1048576))]
    pub context: usize,
    /// Gate of the feed-forward block: "silu" or "relu2".
    pub gate: Gate,
    /// RMSNorm in front of the attention output and the FFN down projections, as in BitNet b1.58.
    pub sub_norm: bool,
    /// Add a bias to queries, keys and values, as Qwen2 does.
    pub qkv_bias: bool,
    /// Use the embedding matrix as the output head.
    pub tied: bool,
    /// "ternary" or "f32" matrices in the blocks.
    pub precision: Precision,
    /// Rank of a low-rank adapter (LoRA) beside each matrix of a ternary model, which is then all that is trained, in
    /// f32; for runs that begin with a model, `run.from`; 0 for none.
    #[schemars(range(max = 1024))]
    pub lora: usize,
    /// Base of the rotary position frequencies.
    #[schemars(range(min = 1.0, max = 1e9))]
    pub rope_theta: f32,
    /// Added to the mean square inside RMSNorm.
    #[schemars(range(min = 1e-12, max = 0.1))]
    pub norm_eps: f32,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            dim: 256,
            layers: 4,
            heads: 4,
            kv_heads: 4,
            ffn: 512,
            context: 256,
            gate: Gate::Silu,
            sub_norm: true,
            qkv_bias: false,
            tied: true,
            precision: Precision::Ternary,
            lora: 0,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
        }
    }
}

/// Ternary rows are a multiple of this: the block of Q2_0, the shortest of llama.cpp's ternary formats.
const ROWS: usize = 64;

/// Largest rank of adapters.
const LORA: usize = 1024;

/// A combination of options that no model has.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("model.{option} = {found}: {expected}")]
pub struct ConfigError {
    /// The option's name inside `[model]`.
    pub option: &'static str,
    /// Its value.
    pub found: String,
    /// What it must satisfy, with a hint.
    pub expected: String,
}

impl ModelConfig {
    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Rows of the `qkv` matrix.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim()
    }

    /// How attention sees `batch` sequences of `time` tokens.
    pub fn attention(&self, batch: usize, time: usize) -> Shape {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim());
        Shape { batch, time, heads, kv_heads, head_dim }
    }

    /// How the output head multiplies.
    pub fn head_products(&self) -> Products {
        match self.precision {
            Precision::Ternary => Products::Int16,
            Precision::F32 => Products::F32,
        }
    }

    /// Whether the options fit together.
    ///
    /// # Errors
    /// Names the option that does not fit and what would.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |option, found: usize, expected: String| {
            Err(ConfigError { option, found: found.to_string(), expected })
        };
        if self.heads == 0 || !self.dim.is_multiple_of(self.heads) || !self.head_dim().is_multiple_of(2) {
            return fail(
                "heads",
                self.heads,
                format!("must divide model.dim = {} into even head widths", self.dim),
            );
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return fail("kv_heads", self.kv_heads, format!("must divide model.heads = {}", self.heads));
        }
        if self.lora > LORA {
            return fail("lora", self.lora, format!("a rank of at most {LORA}"));
        }
        if self.lora > 0 && self.precision == Precision::F32 {
            return fail("lora", self.lora, "adapters are for ternary matrices: leave it 0".into());
        }
        if self.precision == Precision::Ternary {
            for (option, value) in [("dim", self.dim), ("ffn", self.ffn)] {
                if !value.is_multiple_of(ROWS) {
                    let near = value.next_multiple_of(ROWS);
                    let hint = format!(
                        "ternary rows are multiples of {ROWS}, so that exports hold them without loss (of 256 for \
                         TQ1_0 and TQ2_0); try {near}"
                    );
                    return fail(option, value, hint);
                }
            }
        }
        Ok(())
    }
}
