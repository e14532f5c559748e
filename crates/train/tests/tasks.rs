//! Tasks against the f64 reference, token by token.

use tritrain_backend::Cpu;
use tritrain_data::{Tokenizer, tasks::Task};
use tritrain_model::{
    Layout, Model, ModelConfig, Precision, Use, initial_weights,
    reference::{Arithmetic, Reference},
};
use tritrain_train::evaluate_tasks;

/// A small f32 model away from its initial symmetry.
struct Case {
    config: ModelConfig,
    layout: Layout,
    weights: Vec<Vec<f32>>,
    tokenizer: Tokenizer,
}

impl Case {
    fn new() -> Case {
        let tokenizer = Tokenizer::train(&["the cat sat on a mat. It sat. ".repeat(40)], 300).unwrap();
        let config = ModelConfig {
            dim: 32,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            ffn: 48,
            context: 16,
            precision: Precision::F32,
            ..ModelConfig::default()
        };
        let layout = Layout::new(&config, tokenizer.vocab_size() as usize);
        let mut weights = initial_weights(&config, &layout, 5);
        weights[layout.embedding].iter_mut().for_each(|w| *w *= 30.0);
        Case { config, layout, weights, tokenizer }
    }

    /// Nats of the last `scored` of `tokens`: the loss of all, less that of the others.
    fn nats(&self, tokens: &[u32], scored: usize) -> f64 {
        let weights: Vec<Vec<f64>> =
            self.weights.iter().map(|w| w.iter().map(|v| f64::from(*v)).collect()).collect();
        let vocab = self.tokenizer.vocab_size() as usize;
        let reference = Reference { config: &self.config, layout: &self.layout, vocab, rounding: 1.0 };
        let sum = |len: usize| match len {
            0 => 0.0,
            _ => {
                let (inputs, targets) = (&tokens[..len], &tokens[1..=len]);
                len as f64
                    * reference.loss_and_gradients(&weights, inputs, targets, 1, len, Arithmetic::Exact).0
            }
        };
        sum(tokens.len() - 1) - sum(tokens.len() - 1 - scored)
    }
}

#[test]
fn choices_and_texts_are_as_the_reference_scores_them() {
    let case = Case::new();
    let backend = Cpu::new(2).unwrap();
    let vocab = case.tokenizer.vocab_size() as usize;
    let model = Model::new(&backend, &case.config, vocab, &|id| (&case.weights[id]).into(), Use::Inference);
    let encode = |text: &str| case.tokenizer.encode(text).unwrap();
    let eos = case.tokenizer.eos();

    // The second text is longer than two windows.
    let texts = ["It sat on the cat.", "q the xyz cat, w\nsat on mats!? a the 123 it  it. zwölf boxes"];
    let report = |tasks: &[Task]| evaluate_tasks((&backend, &model), &case.tokenizer, tasks, 16).unwrap();
    let (mut nats, mut tokens) = (0.0, 0);
    for text in texts {
        let all: Vec<u32> = std::iter::once(eos).chain(encode(text)).collect();
        let count = all.len() - 1;
        tokens += count;
        for first in (0..count).step_by(16) {
            let end = (first + 16).min(count);
            nats += case.nats(&all[(end + 1).saturating_sub(17)..=end], end - first);
        }
    }
    assert!(tokens > 40, "{tokens} tokens");
    let found = report(&texts.map(|text| Task::Text(text.to_owned()))).texts.unwrap();
    let bytes = texts.map(str::len).iter().sum::<usize>();
    assert_eq!((found.texts, found.tokens, found.bytes, found.words), (2, tokens, bytes, 5 + 15));
    let near = |found: f64, expected: f64| {
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} expected {expected}");
    };
    near(found.loss, nats / tokens as f64);
    near(found.bits_per_byte, nats / bytes as f64 / std::f64::consts::LN_2);
    near(found.byte_perplexity, (nats / bytes as f64).exp());
    near(found.word_perplexity, (nats / 20.0).exp());

    // Every choice is right once: shares say which one was taken.
    let choices = ["mat.", "cat", "a long way of sitting on it"].map(str::to_owned).to_vec();
    for question in
        ["the cat sat on a", "", "It sat. ", "the cat sat on a mat. It sat on a mat. the cat 1 2 3 4 5"]
    {
        let score = |choice: &String| {
            let whole = encode(&format!("{question} {choice}"));
            let (tokens, before) = match question {
                "" => (std::iter::once(eos).chain(whole).collect(), 1),
                _ => (whole, encode(question.trim_end()).len()),
            };
            let scored = (tokens.len() - before).min(16);
            case.nats(&tokens[tokens.len().saturating_sub(17)..], scored)
        };
        let nats: Vec<f64> = choices.iter().map(score).collect();
        let least = |nats: Vec<f64>| (0..3).min_by(|a, b| nats[*a].total_cmp(&nats[*b])).unwrap();
        let by_length = nats.iter().zip(&choices).map(|(nats, choice)| nats / choice.len() as f64).collect();
        let (taken, taken_by_length) = (least(nats.clone()), least(by_length));
        for answer in 0..3 {
            let task = Task::Choice { question: question.into(), choices: choices.clone(), answer };
            let found = report(&[task]).choices.unwrap();
            let right = |taken: usize| if taken == answer { 1.0 } else { 0.0 };
            assert_eq!(
                (found.acc, found.acc_norm),
                (right(taken), right(taken_by_length)),
                "{question:?} {nats:?}"
            );
        }
    }
}
