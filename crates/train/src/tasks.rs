//! Questions and texts, measured as lm-evaluation-harness defines it, so that figures compare.
//!
//! - A choice is scored by the sum of the log-probabilities of its tokens behind the question, a space between them.
//!   `acc` takes the choice with the largest, `acc_norm` the one with the largest over its length in characters; of
//!   equals the first.
//! - A text is cut into windows of the context that are predicted as a whole, the first behind an end of text, each
//!   further one behind the last token of the one before; a shorter last one sees as much before it as fits. With L the
//!   sum of all log-probabilities: `bits_per_byte` is `-L / (ln 2 · bytes)`, `byte_perplexity` is `e^(-L / bytes)`, and
//!   `word_perplexity` has words, which white space divides, in place of bytes.

use serde::Serialize;
use tritrain_backend::Backend;
use tritrain_data::{Tokenizer, tasks::Task};
use tritrain_model::{Activations, Keep, Model};

use crate::Result;

/// What a model makes of a file of tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskReport {
    /// Of the questions, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<ChoiceReport>,
    /// Of the texts, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextReport>,
}

/// Shares of questions that were answered rightly, with their standard errors.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceReport {
    /// Number of questions.
    pub questions: usize,
    /// By log-probability.
    pub acc: f64,
    /// Standard error of the mean.
    pub acc_stderr: f64,
    /// By log-probability over characters.
    pub acc_norm: f64,
    /// Standard error of the mean.
    pub acc_norm_stderr: f64,
}

/// How probable texts are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextReport {
    /// Number of texts.
    pub texts: usize,
    /// Tokens in all.
    pub tokens: usize,
    /// Bytes in all.
    pub bytes: usize,
    /// Words in all.
    pub words: usize,
    /// Nats per token.
    pub loss: f64,
    /// `e` to the nats per byte.
    pub byte_perplexity: f64,
    /// Bits per byte.
    pub bits_per_byte: f64,
    /// `e` to the nats per word.
    pub word_perplexity: f64,
}

/// Tokens of which the last `scored` are predicted, from those before them.
struct Request {
    tokens: Vec<u32>,
    scored: usize,
}

/// Measures a model on tasks, in windows of `context` tokens at most, and no more than those of the model.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data): the tokenizer refuses a text.
pub fn evaluate_tasks<B: Backend>(
    (backend, model): (&B, &Model<B>),
    tokenizer: &Tokenizer,
    tasks: &[Task],
    context: usize,
) -> Result<TaskReport> {
    let context = context.clamp(1, model.config().context);
    let mut requests = Vec::new();
    let mut counts = Vec::new();
    for task in tasks {
        let before = requests.len();
        match task {
            Task::Choice { question, choices, .. } => {
                for choice in choices {
                    requests.push(choice_request(tokenizer, question, choice, context)?);
                }
            }
            Task::Text(text) => {
                requests.append(&mut windows(&tokenizer.encode(text)?, tokenizer.eos(), context));
            }
        }
        counts.push(requests.len() - before);
    }
    let nats = score((backend, model), &requests, context);
    let (mut right, mut sum) = (Vec::new(), Texts::default());
    let mut at = 0;
    for (task, count) in tasks.iter().zip(counts) {
        let (requests, nats) = (&requests[at..at + count], &nats[at..at + count]);
        at += count;
        match task {
            Task::Choice { choices, answer, .. } => {
                right.push(chosen(choices, nats).map(|choice| choice == *answer))
            }
            Task::Text(text) => {
                sum.texts += 1;
                sum.nats += nats.iter().sum::<f64>();
                sum.tokens += requests.iter().map(|request| request.scored).sum::<usize>();
                sum.bytes += text.len();
                sum.words += words(text);
            }
        }
    }
    Ok(TaskReport { choices: choices(&right), texts: sum.report() })
}

/// The tokens of a choice behind a question. Spaces at the end of the question belong to the choice, as tokens begin
/// with them.
fn choice_request(tokenizer: &Tokenizer, question: &str, choice: &str, context: usize) -> Result<Request> {
    let kept = question.trim_end();
    let whole = format!("{question} {choice}");
    let (mut tokens, before) = match kept.is_empty() {
        true => {
            let mut tokens = vec![tokenizer.eos()];
            tokens.append(&mut tokenizer.encode(&whole)?);
            (tokens, 1)
        }
        false => (tokenizer.encode(&whole)?, tokenizer.encode(kept)?.len()),
    };
    let scored = tokens.len().saturating_sub(before).min(context);
    // The last token is only predicted.
    tokens.drain(..tokens.len().saturating_sub(context + 1));
    Ok(Request { tokens, scored })
}

/// The windows of a text.
fn windows(tokens: &[u32], first: u32, context: usize) -> Vec<Request> {
    let all: Vec<u32> = std::iter::once(first).chain(tokens.iter().copied()).collect();
    let mut windows = Vec::new();
    let mut predicted = 0;
    while predicted < tokens.len() {
        let scored = context.min(tokens.len() - predicted);
        let end = predicted + scored;
        let begin = (end + 1).saturating_sub(context + 1);
        windows.push(Request { tokens: all[begin..=end].to_vec(), scored });
        predicted = end;
    }
    windows
}

/// Tokens that are looked at together, about.
const TOGETHER: usize = 2048;
/// Windows are made as long as a multiple of this.
const STEP: usize = 64;

/// Nats of the scored tokens of each request, long ones first.
fn score<B: Backend>((backend, model): (&B, &Model<B>), requests: &[Request], context: usize) -> Vec<f64> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(requests[*at].tokens.len()));
    let mut nats = vec![0.0; requests.len()];
    let mut room: Option<((usize, usize), Activations<B>)> = None;
    let mut rest = &order[..];
    while let Some(longest) = rest.first().map(|at| requests[*at].tokens.len() - 1) {
        let time = longest.max(1).next_multiple_of(STEP).min(context);
        let batch = (TOGETHER / time).max(1);
        let (now, later) = rest.split_at(batch.min(rest.len()));
        rest = later;
        if room.as_ref().is_none_or(|(shape, _)| *shape != (batch, time)) {
            // The old room goes first.
            drop(room.take());
            room =
                Some(((batch, time), Activations::new(backend, model.config(), batch, time, Keep::Nothing)));
        }
        let Some((_, activations)) = &mut room else { unreachable!("it was made above") };
        // What is missing is filled up: attention is causal, so it changes nothing before.
        let (mut inputs, mut targets) = (vec![0; batch * time], vec![0; batch * time]);
        for (row, at) in now.iter().enumerate() {
            let tokens = &requests[*at].tokens;
            let place = row * time..row * time + tokens.len() - 1;
            inputs[place.clone()].copy_from_slice(&tokens[..tokens.len() - 1]);
            targets[place].copy_from_slice(&tokens[1..]);
        }
        model.evaluate(backend, activations, &inputs, &targets);
        let mut losses = vec![0.0; batch * time];
        backend.download(activations.losses(), &mut losses);
        for (row, at) in now.iter().enumerate() {
            let Request { tokens, scored } = &requests[*at];
            let end = row * time + tokens.len() - 1;
            nats[*at] = losses[end - scored..end].iter().map(|loss| f64::from(*loss)).sum();
        }
    }
    nats
}

/// The choice by nats, and by nats over characters.
fn chosen(choices: &[String], nats: &[f64]) -> [usize; 2] {
    let least =
        |scores: Vec<f64>| (0..scores.len()).min_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
    let by_length = choices.iter().zip(nats).map(|(choice, nats)| nats / choice.chars().count() as f64);
    [least(nats.to_vec()), least(by_length.collect())]
}

/// The shares of right answers.
fn choices(right: &[[bool; 2]]) -> Option<ChoiceReport> {
    let n = right.len() as f64;
    let share = |way: usize| {
        let mean = right.iter().filter(|right| right[way]).count() as f64 / n;
        // Of a sample of ones and zeros: the root of p(1 - p)/(n - 1).
        let error = if right.len() > 1 { (mean * (1.0 - mean) / (n - 1.0)).sqrt() } else { 0.0 };
        (mean, error)
    };
    let ((acc, acc_stderr), (acc_norm, acc_norm_stderr)) = (share(0), share(1));
    (!right.is_empty()).then_some(ChoiceReport {
        questions: right.len(),
        acc,
        acc_stderr,
        acc_norm,
        acc_norm_stderr,
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct Texts {
    texts: usize,
    nats: f64,
    tokens: usize,
    bytes: usize,
    words: usize,
}

impl Texts {
    fn report(self) -> Option<TextReport> {
        let per = |count: usize| self.nats / count.max(1) as f64;
        (self.texts > 0).then(|| TextReport {
            texts: self.texts,
            tokens: self.tokens,
            bytes: self.bytes,
            words: self.words,
            loss: per(self.tokens),
            byte_perplexity: per(self.bytes).exp(),
            bits_per_byte: per(self.bytes) / std::f64::consts::LN_2,
            word_perplexity: per(self.words).exp(),
        })
    }
}

/// One more than the runs of white space, which is what `re.split(r"\s+", text)` of Python gives.
fn words(text: &str) -> usize {
    let white = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let mut before = false;
    let starts = text.chars().filter(|c| {
        let now = white(*c);
        let was = std::mem::replace(&mut before, now);
        now && !was
    });
    starts.count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_python() {
        // len(re.split(r"\s+", text)), by hand.
        for (text, count) in [
            ("", 1),
            ("one", 1),
            ("one two", 2),
            (" one \n two\t", 4),
            ("a\u{a0}b\u{1f}\u{3000}c", 3),
            ("a  b  c", 3),
        ] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }

    #[test]
    fn windows_are_disjoint_and_see_what_fits() {
        let shown = |len: u32, context: usize| -> Vec<(Vec<u32>, usize)> {
            let tokens: Vec<u32> = (1..=len).collect();
            windows(&tokens, 0, context).into_iter().map(|w| (w.tokens, w.scored)).collect()
        };
        assert_eq!(shown(3, 4), [(vec![0, 1, 2, 3], 3)]);
        assert_eq!(shown(4, 4), [(vec![0, 1, 2, 3, 4], 4)]);
        // The first token of a window follows the last of the one before; the last window reaches back.
        assert_eq!(
            shown(10, 4),
            [(vec![0, 1, 2, 3, 4], 4), (vec![4, 5, 6, 7, 8], 4), (vec![6, 7, 8, 9, 10], 2)]
        );
        assert_eq!(shown(0, 4), []);
        assert_eq!(shown(2, 1), [(vec![0, 1], 1), (vec![1, 2], 1)]);
    }

    #[test]
    fn choices_and_shares_are_as_by_hand() {
        let choices_of = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        // 6/2 = 3, 7/7 = 1, 6/3 = 2: the first least, and the least over its length, in characters.
        assert_eq!(chosen(&choices_of(&["ab", "abcdefg", "abc"]), &[6.0, 7.0, 6.0]), [0, 1]);
        // 4/4 = 1 and 3/2 = 1.5, of four characters in eight bytes.
        assert_eq!(chosen(&choices_of(&["éééé", "ab"]), &[4.0, 3.0]), [1, 0]);
        let right = [[true, false], [true, true], [false, false], [true, false]];
        let report = choices(&right).unwrap();
        assert_eq!((report.questions, report.acc, report.acc_norm), (4, 0.75, 0.25));
        // Deviations 1/4, 1/4, -3/4, 1/4: their squares sum to 3/4, over 3 the variance, over 4 that of the mean.
        assert!((report.acc_stderr - 0.25).abs() < 1e-15 && (report.acc_norm_stderr - 0.25).abs() < 1e-15);
        assert_eq!(choices(&[]), None);
    }

    #[test]
    fn perplexities_are_as_by_hand() {
        let two = std::f64::consts::LN_2;
        let sum = Texts { texts: 2, nats: 24.0 * two, tokens: 6, bytes: 12, words: 4 };
        let report = sum.report().unwrap();
        let near =
            |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        near(report.loss, 4.0 * two);
        near(report.bits_per_byte, 2.0);
        near(report.byte_perplexity, 4.0);
        near(report.word_perplexity, 64.0);
    }
}
