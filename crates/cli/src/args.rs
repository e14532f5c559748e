//! The command line.

mod devices;
mod export;
mod merge;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

pub(crate) use devices::{BenchBackends, BenchDispatcher, Device, DeviceName, Devices};
pub(crate) use export::{Comparing, Export, ExportClass, ExportMode, ExportTo, ExportType, Verify};
pub(crate) use merge::Merge;

/// Trains ternary (1.58-bit) language models from raw text, with integer arithmetic.
///
/// Without a command it trains the default model on the text inside the program.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a model or a mixture of experts; continue an interrupted run with --resume.
    Train(Train),
    /// Continue a prompt with a trained model.
    Generate(Generate),
    /// Loss, perplexity and bits per byte of a model on some text, per domain.
    Eval(Eval),
    /// Make a model of another program one of this: a GGUF file, or a folder of transformers.
    Import(Import),
    /// Store a ternary model with its matrices at their entropy, without loss.
    Archive(Archive),
    /// Write a model for other programs: GGUF for llama.cpp, a folder for transformers; read back and compared.
    Export(Export),
    /// Make one ternary model of a model and the adapters (LoRA) that were trained beside it, and say what that costs.
    Merge(Merge),
    /// Compare an exported model with the model: every weight, and logits on text.
    Verify(Verify),
    /// Train the ternary model and its f32 twin on the same data and show the gap.
    Compare(Compare),
    /// Cluster text, or the rows of a matrix (.npy), by k-means.
    Cluster(Cluster),
    /// What a run will take of memory, class by class.
    Memory(Memory),
    /// Show what a file or folder of a run holds.
    Inspect(Inspect),
    /// Do the batch plan of a run over again: what it has seen of its text, and whether it kept the plan.
    Audit(Audit),
    /// Measure what this machine does: kernels, training steps, generation.
    Bench(Bench),
    /// Train the network of the learned controller on many short runs.
    MetaTrain(MetaTrain),
    /// Show what this machine can compute on, how fast it is and what would be chosen; with --self-test, check every
    /// kernel on it.
    #[command(visible_alias = "doctor")]
    Devices(Devices),
    /// Print the default configuration file with the help of every option.
    Config,
}

/// What `train` and `compare` share.
#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Setup {
    /// Configuration file (see `tritrain config`).
    pub(crate) config: Option<PathBuf>,
    /// Files or folders of text; replaces data.paths.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Folder of the run; without it, the next free runs/N.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Change one option, for example --set run.steps=100; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Go on with the run in --out from its newest checkpoint.
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,
    /// Begin with the weights of this model, own or imported, and its tokenizer; the run has its sizes, and its
    /// precision unless --set model.precision says otherwise. Short for run.from, model.* and data.tokenizer.
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    pub(crate) from: Option<PathBuf>,
    /// Leave that model, a ternary one, as it is and train low-rank adapters (LoRA) of this rank beside its matrices;
    /// short for --set model.lora=RANK.
    #[arg(long, value_name = "RANK", requires = "from")]
    pub(crate) lora: Option<usize>,
    /// Train a mixture: a shared start on all text, then this many experts, each on the text of one cluster;
    /// short for --set run.experts=K.
    #[arg(long, value_name = "K", conflicts_with = "resume")]
    pub(crate) experts: Option<usize>,
    #[command(flatten)]
    pub(crate) device: Device,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Memory {
    /// Configuration file (see `tritrain config`).
    pub(crate) config: Option<PathBuf>,
    /// Change one option, for example --set optim.latent=trits4; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A call with the same folder and options goes on where the one before stopped.
#[derive(Debug, ClapArgs)]
pub(crate) struct MetaTrain {
    /// Files or folders of text; short runs take one of them each.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Folder for tokens, state and the weights found (controller.json).
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Generations in all.
    #[arg(long, default_value_t = 50)]
    pub(crate) generations: u64,
    /// Pairs of networks in a generation.
    #[arg(long, default_value_t = 6)]
    pub(crate) pairs: usize,
    /// Short runs of each network in a generation.
    #[arg(long, default_value_t = 3)]
    pub(crate) tasks: usize,
    /// Steps of the shortest of them; the longest has three times as many.
    #[arg(long, default_value_t = 100)]
    pub(crate) steps: u64,
    /// Seed of all draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Short runs side by side; 0 takes every core. The result does not depend on it.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum ControllerName {
    /// The schedule alone.
    Off,
    /// Holds the ratio of update to weight.
    Rule,
    /// The network.
    Learned,
    /// Chance.
    Random,
    /// Instead of a controller and a cosine, averaged weights.
    ScheduleFree,
    /// Instead of a controller, a direction that finds the size of its steps; factors multiply that.
    Prodigy,
}

impl ControllerName {
    pub(crate) const ALL: [ControllerName; 6] = [
        ControllerName::Off,
        ControllerName::Rule,
        ControllerName::Learned,
        ControllerName::Random,
        ControllerName::ScheduleFree,
        ControllerName::Prodigy,
    ];
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchController {
    /// Files or folders of text.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Folder for the tokens.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seeds, from 1.
    #[arg(long, default_value_t = 3)]
    pub(crate) seeds: u64,
    /// What to compare: controllers, as in optim.controller, and what others do about the rate.
    #[arg(long, value_enum, num_args = 1.., default_values_t = ControllerName::ALL)]
    pub(crate) controllers: Vec<ControllerName>,
    /// Runs side by side; 0 takes every core. The result does not depend on it.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Change one option of the runs, for example --set run.steps=600; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) setup: Setup,
}

/// How experts are mixed, in the run of a mixture.
#[derive(Debug, ClapArgs)]
pub(crate) struct Mixing {
    /// In a mixture, divides the squared distances of the text to the clusters: the smaller, the more the
    /// nearest expert counts.
    #[arg(long, default_value_t = 0.1)]
    pub(crate) expert_temperature: f64,
    /// In a mixture, the experts that count, the nearest first; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub(crate) nearest: usize,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Generate {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// Text to continue; several are continued together, each by itself.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// Put the prompt to the model as a question, by its chat template; without a prompt, answer standard input
    /// line by line.
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat, what the model is told first.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// End before this text; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Divides the logits; 0 always takes the most probable token.
    #[arg(long, default_value_t = 0.8)]
    pub(crate) temperature: f32,
    /// Keep the most probable tokens that together reach this probability.
    #[arg(long, default_value_t = 0.95)]
    pub(crate) top_p: f32,
    /// Keep this many of the most probable tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Keep tokens at least this share as probable as the most probable one; 0 keeps all.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Divides the positive logits of tokens made before and multiplies the others, so that text repeats itself
    /// less; 1 leaves them, samples in training take 1.2.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Seed of the choices: the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Tokens to make at most.
    #[arg(long, default_value_t = 200)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) mixing: Mixing,
    #[command(flatten)]
    pub(crate) device: Device,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Eval {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// Files or folders of text; all of it is evaluated.
    #[arg(long, required_unless_present = "tasks", num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Questions with choices, and texts, a JSON object a line: accuracy and perplexities as lm-eval defines them.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) tasks: Option<PathBuf>,
    /// Longest sequence that is looked at, in tokens; at most the model's context, which is the default.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<usize>,
    /// Tokens to look at, at most, the first of the text; 0 looks at all.
    #[arg(long, default_value_t = 0)]
    pub(crate) max_tokens: u64,
    #[command(flatten)]
    pub(crate) mixing: Mixing,
    #[command(flatten)]
    pub(crate) device: Device,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Import {
    /// GGUF file, or folder with config.json, safetensors and tokenizer.json.
    pub(crate) path: PathBuf,
    /// Folder for the model.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Longest sequence, in tokens; without it that of the model, and 8192 at most.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<usize>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Archive {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// The archive: a model file that every command takes, beside its tokenizer.json.
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Audit {
    /// Run folder.
    pub(crate) run: PathBuf,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cluster {
    /// Files or folders of text; or one matrix of f32 or f64, a row per point, as numpy.save writes it.
    #[arg(required = true, num_args = 1.., value_name = "DATA")]
    pub(crate) data: Vec<PathBuf>,
    /// Number of clusters; auto takes the one with the largest mean silhouette.
    #[arg(short, value_name = "N|auto", default_value = "auto")]
    pub(crate) k: String,
    /// Matrix of the first centroids; without it they are chosen by k-means++ or k-means||.
    #[arg(long, value_name = "C.npy")]
    pub(crate) init: Option<PathBuf>,
    /// Iterations at most.
    #[arg(long, default_value_t = 300)]
    pub(crate) iterations: usize,
    /// End when centroids move by less than this share of the mean variance; 0 ends when no label changes.
    #[arg(long, default_value_t = 1e-4)]
    pub(crate) tolerance: f64,
    /// Cluster directions: rows and centroids have length 1.
    #[arg(long)]
    pub(crate) spherical: bool,
    /// How nearest centroids are found; labels are the same.
    #[arg(long, value_enum, default_value_t = ClusterMethod::Auto)]
    pub(crate) method: ClusterMethod,
    /// Mini-batches of this many rows, read once in order: for files larger than memory.
    #[arg(long, value_name = "ROWS", conflicts_with = "init")]
    pub(crate) batch: Option<usize>,
    /// Vectors of text: tfidf, by its words; or by the token embedding of a model (a run folder, step folder
    /// or model.safetensors) or of a proxy, a small model that is trained on the text first.
    #[arg(long, default_value = "tfidf", value_name = "tfidf|proxy|MODEL")]
    pub(crate) embedding: String,
    /// Tokens that a proxy is trained on.
    #[arg(long, default_value_t = 300_000, value_name = "N")]
    pub(crate) proxy_tokens: u64,
    /// Find near-duplicates of text within clusters: passages with this cosine or more, 0.95 for example, to one
    /// that is kept, and four fifths of their 5-word shingles in common with it.
    #[arg(long, value_name = "COSINE")]
    pub(crate) duplicates: Option<f32>,
    /// Seed of all choices.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Write labels.npy and centroids.npy into this folder; of text also vectors, passages, words and a map.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ClusterMethod {
    /// What should be fastest.
    Auto,
    /// Every row with every centroid in each iteration.
    Lloyd,
    /// Bounds between iterations (Hamerly).
    Bounds,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Inspect {
    /// Any file or folder that tritrain wrote.
    pub(crate) path: PathBuf,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Without a command it measures operations.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: Option<BenchKind>,
    #[command(flatten)]
    pub(crate) operations: BenchOperations,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchKind {
    /// Every operation of a training step, and a step of one block, against the limits of this machine.
    Operations(BenchOperations),
    /// The three products of a linear layer, ternary against f32.
    Gemm(BenchGemm),
    /// Whole training steps of a model.
    Step(BenchStep),
    /// Reading a prompt and making tokens with a model.
    Generate(BenchGenerate),
    /// Single operations on every engine: quantising, k-means, products.
    Backends(BenchBackends),
    /// Whether the engine that is chosen for a single operation is the fastest.
    Dispatcher(BenchDispatcher),
    /// What few bits cost in loss: the same model with several ways to store it, beside its f32 twins.
    Quality(BenchRuns),
    /// What faults cost in loss, with the spike guard and without: batches of noise, gradients that are far too large
    /// or NaN.
    Spikes(BenchRuns),
    /// What few bits keep of the weights and gradients of a trained model.
    Signal(BenchSignal),
    /// Runs by schedule alone, rule, network and chance, with base rates that are wrong by up to 16.
    Controller(BenchController),
}

/// Runs of several settings on the same text.
#[derive(Debug, ClapArgs)]
pub(crate) struct BenchRuns {
    /// Files or folders of text.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Folder of the runs; those that are complete are not made again.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Seeds, from 1 on.
    #[arg(long, default_value_t = 3)]
    pub(crate) seeds: u64,
    /// Change one option of all runs, for example --set run.tokens=3000000; may be repeated.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchSignal {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// Files or folders of text, the beginning of which is one batch.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Sequences of one context in the batch.
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// As optim.range: largest latent weight in levels, times the mean magnitude.
    #[arg(long, default_value_t = 3.75)]
    pub(crate) range: f32,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchGemm {
    /// Tokens.
    #[arg(long, default_value_t = 1024)]
    pub(crate) m: usize,
    /// Outputs.
    #[arg(long, default_value_t = 1024)]
    pub(crate) n: usize,
    /// Inputs.
    #[arg(long, default_value_t = 1024)]
    pub(crate) k: usize,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Alternating pairs of runs, of which the median counts.
    #[arg(long, default_value_t = 7)]
    pub(crate) pairs: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Sizes of a model to measure, and what all its measurements have.
#[derive(Debug, ClapArgs)]
pub(crate) struct BenchSizes {
    /// Width of the residual stream.
    #[arg(long, default_value_t = 512)]
    pub(crate) dim: usize,
    /// Attention heads.
    #[arg(long, default_value_t = 8)]
    pub(crate) heads: usize,
    /// Inner width of the feed-forward block.
    #[arg(long, default_value_t = 1536)]
    pub(crate) ffn: usize,
    /// Tokens in the vocabulary.
    #[arg(long, default_value_t = 8192)]
    pub(crate) vocab: usize,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 256)]
    pub(crate) ctx: usize,
    /// Sequences in a batch.
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchOperations {
    #[command(flatten)]
    pub(crate) sizes: BenchSizes,
    /// Draw the shares of the limits as bars.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchShape {
    #[command(flatten)]
    pub(crate) sizes: BenchSizes,
    /// Number of blocks.
    #[arg(long, default_value_t = 8)]
    pub(crate) layers: usize,
    /// Measure the f32 twin instead of the ternary model.
    #[arg(long)]
    pub(crate) f32: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchStep {
    #[command(flatten)]
    pub(crate) shape: BenchShape,
    /// Steps to measure.
    #[arg(long, default_value_t = 8)]
    pub(crate) steps: usize,
    /// As run.recompute: keep the inputs of blocks and compute the rest again.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Change one option of the optimizer, for example --set optim.latent=trits4; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Show where the time goes, by operation.
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BenchGenerate {
    #[command(flatten)]
    pub(crate) shape: BenchShape,
    /// Tokens to make.
    #[arg(long, default_value_t = 64)]
    pub(crate) tokens: usize,
}
