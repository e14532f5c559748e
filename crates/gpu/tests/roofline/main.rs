//! What a training step launches, and the page that says how long that should take on graphics processors nobody has
//! measured: `cargo xtask roofline` writes docs/gpu-roofline.md, and this fails where it is not what it writes.
#![cfg(feature = "emit")]

mod page;

use tritrain_backend::Values;
use tritrain_gpu::{Choice, Class, Gpu, Launch, Tiles};
use tritrain_model::{Layout, ModelConfig, TensorKind, initial_tensor};
use tritrain_optim::Rates;
use tritrain_train::{Config, Learner, Setup};

/// A model and a batch.
struct Step {
    name: &'static str,
    config: Config,
    vocab: usize,
    batch: usize,
}

impl Step {
    fn default_model() -> Step {
        let config = Config::default();
        let (vocab, batch) = (config.data.vocab as usize, config.run.batch);
        Step { name: "The default model", config, vocab, batch }
    }

    /// The larger one of bench/peers/run.py.
    fn larger_model() -> Step {
        let mut config = Config::default();
        let sizes = ModelConfig { dim: 768, layers: 12, heads: 12, kv_heads: 12, ffn: 2048, ..config.model };
        config.model = ModelConfig { context: 512, tied: false, ..sizes };
        Step { name: "A model of 110 M parameters", config, vocab: 16_384, batch: 4 }
    }

    fn tokens(&self) -> usize {
        self.batch * self.config.model.context
    }

    fn layout(&self) -> Layout {
        Layout::new(&self.config.model, self.vocab)
    }

    /// What the second of its steps launches.
    fn launches(&self) -> Vec<Launch> {
        let gpu = Gpu::new(Choice::Software).unwrap().with_tiles(Tiles::of(Class::Discrete)).noting();
        let Config { model, optim, run, .. } = &self.config;
        let setup =
            Setup { vocab: self.vocab, batch: self.batch, passes: 1, recompute: run.recompute, seed: 1 };
        let layout = self.layout();
        let weights = |id: usize| Values::Floats(initial_tensor(model, &layout, 1, id).into());
        let mut learner = Learner::new(&gpu, model, optim, setup, &weights);
        let rates = Rates { matrices: optim.rate, embedding: optim.embedding_rate, radius: optim.bound() };
        let tokens = vec![1; self.tokens()];
        learner.step(&gpu, &tokens, &tokens, rates).unwrap();
        gpu.launches();
        learner.step(&gpu, &tokens, &tokens, rates).unwrap();
        gpu.launches()
    }
}

fn sum(launches: &[Launch], kernel: &str, of: impl Fn(&Launch) -> f64) -> f64 {
    launches.iter().filter(|launch| launch.label().starts_with(kernel)).map(of).sum()
}

#[test]
fn arithmetic_of_a_step_is_what_the_model_says() {
    for step in [Step::default_model(), Step::larger_model()] {
        let (layout, launches) = (step.layout(), step.launches());
        let model = &step.config.model;
        let matrices: usize =
            layout.specs.iter().filter(|of| of.kind == TensorKind::Matrix).map(|of| of.len()).sum();
        let (tokens, weights) = (step.tokens() as f64, matrices as f64);
        let int8 = |kernel: &str| sum(&launches, kernel, |launch| launch.arithmetic().int8);
        // Two operations for each weight and token, forward and for the gradient of inputs, which all matrices have.
        assert_eq!(int8("product_kernel (int8 × ternary)"), 2.0 * 2.0 * tokens * weights);
        assert_eq!(int8("product_kernel (int8 × int8)"), 2.0 * tokens * weights);
        // The head: four products of planes for logits, three for each gradient.
        let head = 2.0 * tokens * (step.vocab * model.dim) as f64;
        assert_eq!(int8("product_kernel (12 × 12 bits)"), 4.0 * head);
        assert_eq!(int8("product_kernel (int16 × int8)"), 2.0 * 3.0 * head);
        // Attention: nine dot products or sums of rows for each pair of a query and a key, rounded up to tiles of 16.
        let time = model.context as f64;
        let pairs = (step.batch * model.heads * model.layers) as f64 * time * (time + 16.0) / 2.0;
        let attention: f64 = launches.iter().map(|launch| launch.arithmetic().f32).sum();
        assert_eq!(attention, 2.0 * 9.0 * pairs * model.head_dim() as f64);
    }
}

#[test]
fn bytes_of_a_product_are_those_of_its_factors_and_result() {
    let step = Step::default_model();
    let (tokens, launches) = (step.tokens() as u64, step.launches());
    let model = &step.config.model;
    let (dim, outputs) = (model.dim as u64, (3 * model.dim) as u64);
    // Queries, keys and values of the first block: int8 rows and their scales, codes and their scale, f32.
    let first = launches.iter().find(|launch| launch.kernel == "product_kernel").unwrap();
    let expected = tokens * dim + 4 * tokens + outputs * dim / 4 + 4 + 4 + 4 * tokens * outputs;
    assert_eq!(first.traffic(), expected, "{first:?}");
    // The gradient of its weights is added up block by block of 512 tokens.
    let gradient = launches.iter().rfind(|launch| launch.label().ends_with("(int8 × int8)")).unwrap();
    let (blocks, result) = (tokens.div_ceil(512), 4 * dim * outputs);
    let factors = tokens * (dim + outputs) + 4 * blocks * outputs + 4 + 4;
    assert_eq!(gradient.traffic(), factors + (2 * blocks - 1) * result, "{gradient:?}");
    let embedding = launches.iter().find(|launch| launch.kernel == "gather").unwrap();
    assert_eq!(embedding.traffic(), 4 * tokens + 2 * (4 * tokens * dim).min(4 * (step.vocab as u64) * dim));
}

#[test]
fn a_step_launches_the_same_again() {
    let step = Step::default_model();
    let sizes = |launches: Vec<Launch>| -> Vec<_> {
        launches.into_iter().map(|launch| (launch.label(), launch.bytes)).collect()
    };
    assert_eq!(sizes(step.launches()), sizes(step.launches()));
}

#[test]
fn the_page_is_what_is_launched() {
    let found = page::render(&[Step::default_model(), Step::larger_model()]);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/gpu-roofline.md");
    if std::env::var_os("TRITRAIN_WRITE_ROOFLINE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &found).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == found, "{} is stale: cargo xtask roofline writes it anew", path.display());
}
