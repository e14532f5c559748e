//! What a run takes of memory, class by class, before it begins.
//!
//! Everything that lives on a device is made here too, by the same code as in a run, on a [`Tally`] that counts and
//! takes nothing. What kernels keep comes from [`working_memory`]. Only the program around them is an estimate.

use serde::Serialize;
use tritrain_backend::{Memory, REPORT, Sizes, Tally, Tier, by_row, digits_room, working_memory};
use tritrain_model::{Activations, Adapting, Keep, Layout, ModelConfig, Onset, TensorKind, TensorSpec};
use tritrain_optim::{DigitsKind, DirectionKind, GradientKind, Optimizer};

use crate::{
    Config,
    learner::{Gradients, parameters},
    origin::count_teacher,
};

/// What the program takes besides: its code, threads, tokenizer and pages of tokens. Measured on Linux.
const PROGRAM: usize = 26 << 20;
/// What a tokenizer takes for each token of its vocabulary. Measured.
const TOKENIZER: usize = 1024;

/// One kind of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Class {
    /// What it is.
    pub name: &'static str,
    /// Bytes.
    pub bytes: usize,
    /// Bits for each parameter of the tensors it belongs to, where it belongs to parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_parameter: Option<f64>,
}

/// What a run takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ledger {
    /// Parameters in matrices of blocks.
    pub matrix_parameters: usize,
    /// All others: embedding, head, gains.
    pub other_parameters: usize,
    /// Codes, latent weights, stored gradients and optimizer state of the matrices, in bits for each of their
    /// parameters.
    pub ternary_bits_per_parameter: f64,
    /// By class.
    pub classes: Vec<Class>,
    /// All of them.
    pub bytes: usize,
}

impl Ledger {
    /// The ledger of a configuration with a vocabulary of `vocab` tokens, on a tier and a number of threads; with the
    /// model in `run.from` where it teaches.
    pub fn new(
        config: &Config,
        vocab: usize,
        (tier, threads): (Tier, usize),
        teacher: Option<&ModelConfig>,
    ) -> Ledger {
        let (model, optim) = (&config.model, &config.optim);
        let layout = Layout::new(model, vocab);
        let tally = Tally::default();
        let of = |kind: fn(&TensorSpec) -> bool| {
            let specs: Vec<TensorSpec> = layout.specs.iter().filter(|spec| kind(spec)).cloned().collect();
            Layout { specs, ..layout.clone() }
        };
        let matrices = of(|spec| spec.kind == TensorKind::Matrix);
        let (embedding, gains) = (layout.embedding, of(|spec| spec.kind == TensorKind::Norm));
        let biases = of(|spec| spec.kind == TensorKind::Bias).parameters();
        let embedding_parameters = layout.specs[embedding].len();
        let head = if layout.head == embedding { 0 } else { layout.specs[layout.head].len() };
        let ternary = layout.ternary;

        let format = optim.latent.format().filter(|_| ternary);
        let adapts = !layout.adapters.is_empty();
        let mut shapes: Vec<[usize; 2]> = matrices.specs.iter().map(|spec| [spec.rows, spec.cols]).collect();
        for [rows, cols] in &shapes {
            match format {
                // Beside adapters there are codes alone.
                _ if adapts => {}
                Some(format) => tally.packed(format, *rows, *cols, by_row(format)),
                None => tally.floats(rows * cols),
            }
        }
        let differ = optim.digits == DigitsKind::Clusters && format.is_some();
        let digits = shapes.iter().map(|[rows, _]| if differ { digits_room(*rows) } else { 0 });
        let latent = tally.take() + digits.sum::<usize>();
        let all = shapes.clone();
        shapes.sort_unstable();
        shapes.dedup();
        if ternary {
            for [rows, cols] in if format.is_some() { &shapes } else { &all } {
                tally.ternary(*rows, *cols, true);
            }
        }
        let codes = tally.take();
        let state = |layout: &Layout| {
            Optimizer::<Tally>::new(&tally, optim, parameters(layout), ternary, 0);
            tally.take()
        };
        // Reports and squares of the rows of a matrix, which all matrices share, are made with the state.
        let most_rows = matrices.specs.iter().filter(|_| !adapts).map(|spec| spec.rows).max().unwrap_or(0);
        let reports = most_rows * (REPORT + 1) * size_of::<f32>();
        let matrix_state = state(&matrices) - reports;
        let other_state = state(&of(|spec| spec.kind != TensorKind::Matrix));
        let (passes, watches) = (config.run.passes(), optim.feedback > 0);
        Gradients::<Tally>::new(&tally, &matrices, optim.gradient, (passes, watches));
        let gradients = tally.take();
        // With a gradient kept otherwise, or a mean of several, the one at hand is room that all matrices share; to
        // watch a step takes another, and the weights in f32.
        let apart = ternary && optim.gradient != GradientKind::F32;
        let buffers = usize::from(apart || passes > 1) + usize::from(watches) + usize::from(watches && apart);
        let largest = matrices.specs.iter().filter(|_| !adapts).map(TensorSpec::len).max().unwrap_or(0);
        let shared = buffers * largest * size_of::<f32>();
        let other_gradients = 1 + usize::from(passes > 1) + usize::from(watches);
        let keep = if config.run.recompute { Keep::Inputs } else { Keep::Everything };
        Activations::<Tally>::new(&tally, model, config.run.batch / passes, model.context, keep);
        let tokens = config.run.batch / passes * model.context;
        Adapting::grown(&tally, &layout, tokens);
        if config.run.lambda_warmup > 0.0 {
            Onset::grown(&tally, &layout, tokens, format.is_some());
        }
        let activations = tally.take();
        let teaches = teacher.filter(|_| config.run.has_teacher());
        teaches.inspect(|teacher| count_teacher(&tally, teacher, vocab, config));
        let taught = tally.take();
        let sizes = Sizes {
            shape: model.attention(config.run.batch / passes, model.context),
            dim: model.dim,
            vocab,
            ffn: model.ffn,
            ternary: if ternary { shapes.clone() } else { Vec::new() },
            matrices: shapes.iter().copied().chain([[vocab, model.dim]]).collect(),
            orthogonal: if optim.direction == DirectionKind::Muon { shapes.clone() } else { Vec::new() },
            head: model.head_products(),
        };
        let working: usize = working_memory(tier, threads, &sizes).iter().map(|(_, bytes)| bytes).sum();
        let working = working + reports;

        let matrix_parameters = matrices.parameters();
        let other_parameters = layout.parameters() - matrix_parameters;
        let adapters = of(|spec| spec.kind == TensorKind::Adapter).parameters();
        // Beside adapters, embedding and head have no gradients.
        let with_gradients = if adapts { adapters + gains.parameters() } else { other_parameters };
        let bits = |bytes: usize, of: usize| 8.0 * bytes as f64 / of.max(1) as f64;
        let class = |name, bytes, of: usize| Class {
            name,
            bytes,
            bits_per_parameter: (of > 0).then(|| bits(bytes, of)),
        };
        let f32s = |numbers: usize| numbers * size_of::<f32>();
        let kept_codes = if format.is_some() { 0 } else { codes };
        let matrix_gradients = gradients - shared;
        let mut classes = vec![
            class("matrices: latent weights", latent, matrix_parameters),
            class("matrices: codes kept", kept_codes, matrix_parameters),
            class("matrices: gradients kept", matrix_gradients, matrix_parameters),
            class("matrices: optimizer state", matrix_state, matrix_parameters),
            class("embedding: weights", f32s(embedding_parameters), embedding_parameters),
        ];
        if head > 0 {
            classes.push(class("head: weights", f32s(head), head));
        }
        classes.extend([
            class("gains: weights", f32s(gains.parameters()), gains.parameters()),
            class("biases: weights", f32s(biases), biases),
            class("adapters: weights", f32s(adapters), adapters),
            class("other tensors: gradients", f32s(with_gradients) * other_gradients, with_gradients),
            class("other tensors: optimizer state", other_state, with_gradients),
            class("activations", activations, 0),
            class("model that teaches", taught, 0),
            class("room that matrices share: codes", codes - kept_codes, 0),
            class("room that matrices share: gradient", shared, 0),
            class("working memory of kernels", working, 0),
            class("program (estimate)", PROGRAM + TOKENIZER * vocab, 0),
        ]);
        classes.retain(|class| class.bytes > 0 || class.name.starts_with("matrices"));
        Ledger {
            matrix_parameters,
            other_parameters,
            ternary_bits_per_parameter: bits(
                latent + kept_codes + matrix_gradients + matrix_state,
                matrix_parameters,
            ),
            bytes: classes.iter().map(|class| class.bytes).sum(),
            classes,
        }
    }

    /// All but the estimate of the program around the run.
    pub fn of_the_run(&self) -> usize {
        self.bytes - self.classes.last().map_or(0, |program| program.bytes)
    }
}
