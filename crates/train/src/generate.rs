//! Continuing a text token by token.

use tritrain_backend::Backend;
use tritrain_data::{DecodeStream, Tokenizer};
use tritrain_model::{Generator, Model, Sampling, sample};

use crate::Result;

/// What predicts the next token of a sequence: one model, or a mixture.
pub trait Next {
    /// Logits of the next token, `[vocab]`.
    fn logits(&self) -> &[f32];

    /// Appends a token.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) where the text cannot be embedded.
    fn push(&mut self, token: u32) -> Result<()>;
}

/// A sequence that one model continues.
pub struct Continuation<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    generator: Generator<B>,
}

impl<'a, B: Backend> Continuation<'a, B> {
    /// Reads `prompt`.
    ///
    /// # Errors
    /// [`Error::Prompt`](crate::Error::Prompt).
    pub fn new(backend: &'a B, model: &'a Model<B>, prompt: &[u32]) -> Result<Self> {
        Ok(Continuation { backend, model, generator: Generator::new(model, backend, prompt)? })
    }
}

impl<B: Backend> Next for Continuation<'_, B> {
    fn logits(&self) -> &[f32] {
        self.generator.logits()
    }

    fn push(&mut self, token: u32) -> Result<()> {
        self.generator.push(self.model, self.backend, token);
        Ok(())
    }
}

/// When a text ends, besides at the end of text.
#[derive(Clone, Copy, Debug)]
pub struct Until<'a> {
    /// After so many tokens.
    pub limit: usize,
    /// Before any of these strings, which are not shown.
    pub stop: &'a [String],
    /// At any of these tokens.
    pub ends: &'a [u32],
}

impl Until<'_> {
    /// After so many tokens.
    pub fn tokens(limit: usize) -> Self {
        Until { limit, stop: &[], ends: &[] }
    }
}

/// One sequence on its way to text.
struct Text<'a> {
    tokenizer: &'a Tokenizer,
    until: Until<'a>,
    stream: DecodeStream<'a>,
    made: Vec<u32>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl<'a> Text<'a> {
    fn new(tokenizer: &'a Tokenizer, until: Until<'a>) -> Self {
        Text { tokenizer, until, stream: tokenizer.decode_stream(), made: Vec::new(), held: String::new() }
    }

    /// Takes a token and hands text that is certain to `emit`; whether to go on.
    fn take(&mut self, token: u32, emit: &mut impl FnMut(&str) -> bool) -> bool {
        self.made.push(token);
        let ended = token == self.tokenizer.eos() || self.until.ends.contains(&token);
        if !ended && let Some(piece) = self.stream.push(token) {
            self.held.push_str(&piece);
        }
        let stops = self.until.stop.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops.clone().filter_map(|stop| self.held.find(stop.as_str())).min() {
            emit_some(self.held.get(..at).unwrap_or_default(), emit);
            return false;
        }
        let beginning = |at: &usize| {
            let rest = self.held.get(*at..);
            rest.is_some_and(|rest| stops.clone().any(|stop| stop.starts_with(rest)))
        };
        let last = ended || self.made.len() >= self.until.limit;
        let certain = (0..self.held.len()).find(beginning).filter(|_| !last).unwrap_or(self.held.len());
        let on = emit_some(self.held.get(..certain).unwrap_or_default(), emit);
        self.held.drain(..certain);
        if last
            && let Some(rest) = std::mem::replace(&mut self.stream, self.tokenizer.decode_stream()).finish()
        {
            emit(&rest);
        }
        on && !last
    }
}

fn emit_some(text: &str, emit: &mut impl FnMut(&str) -> bool) -> bool {
    text.is_empty() || emit(text)
}

/// Makes tokens and hands every piece of text to `emit`, which returns whether to go on. Returns the number of tokens
/// made.
///
/// # Errors
/// Those of [`Next::push`].
pub fn generate(
    next: &mut impl Next,
    tokenizer: &Tokenizer,
    sampling: &Sampling,
    until: Until<'_>,
    mut emit: impl FnMut(&str) -> bool,
) -> Result<usize> {
    let mut text = Text::new(tokenizer, until);
    if until.limit == 0 {
        return Ok(0);
    }
    loop {
        let token = sample(next.logits(), sampling, &text.made);
        if !text.take(token, &mut emit) {
            return Ok(text.made.len());
        }
        next.push(token)?;
    }
}

/// Continues several prompts together, the n-th as [`generate`] does with `sampling.sequence` n: `emit` gets the
/// number of the prompt as well. Returns the numbers of tokens made.
///
/// # Errors
/// [`Error::Prompt`](crate::Error::Prompt).
pub fn generate_all<B: Backend>(
    (backend, model): (&B, &Model<B>),
    prompts: &[Vec<u32>],
    tokenizer: &Tokenizer,
    sampling: &Sampling,
    until: Until<'_>,
    mut emit: impl FnMut(usize, &str) -> bool,
) -> Result<Vec<usize>> {
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut generator = Generator::of_all(model, backend, &prompts)?;
    let mut texts: Vec<Text<'_>> = prompts.iter().map(|_| Text::new(tokenizer, until)).collect();
    let mut going: Vec<usize> = if until.limit == 0 { Vec::new() } else { (0..texts.len()).collect() };
    while !going.is_empty() {
        let (mut tokens, mut on) = (Vec::new(), Vec::new());
        for (&number, logits) in going.iter().zip(generator.logits().chunks_exact(model.vocab())) {
            let (text, sequence) = (&mut texts[number], number as u32);
            let token = sample(logits, &Sampling { sequence, ..*sampling }, &text.made);
            on.push(text.take(token, &mut |piece: &str| emit(number, piece)));
            tokens.push(token);
        }
        generator.retain(model, backend, |at| on[at]);
        let mut kept = on.iter();
        going.retain(|_| kept.next().is_some_and(|on| *on));
        let mut kept = on.iter();
        tokens.retain(|_| kept.next().is_some_and(|on| *on));
        generator.push_all(model, backend, &tokens);
    }
    Ok(texts.iter().map(|text| text.made.len()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts given tokens one after the other.
    struct Given {
        tokens: Vec<u32>,
        at: usize,
        logits: Vec<f32>,
    }

    impl Given {
        fn new(tokens: Vec<u32>, vocab: usize) -> Given {
            let mut given = Given { tokens, at: 0, logits: vec![0.0; vocab] };
            given.predict();
            given
        }

        fn predict(&mut self) {
            self.logits.fill(0.0);
            self.logits[self.tokens[self.at] as usize] = 9.0;
        }
    }

    impl Next for Given {
        fn logits(&self) -> &[f32] {
            &self.logits
        }

        fn push(&mut self, token: u32) -> Result<()> {
            assert_eq!(token, self.tokens[self.at]);
            self.at += 1;
            self.predict();
            Ok(())
        }
    }

    /// The text as it comes out of a byte a token.
    fn shown(text: &str, until: Until<'_>) -> (String, usize) {
        let tokenizer = Tokenizer::train::<&str>(&[], 300).unwrap();
        let mut tokens = tokenizer.encode(text).unwrap();
        tokens.extend([tokenizer.eos(), 5]);
        let mut next = Given::new(tokens, tokenizer.vocab_size() as usize);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut out = String::new();
        let made = generate(&mut next, &tokenizer, &greedy, until, |piece| {
            assert!(!piece.is_empty());
            out.push_str(piece);
            true
        });
        (out, made.unwrap())
    }

    #[test]
    fn stop_strings_end_texts_and_are_not_shown() {
        let check = |text: &str, stop: &[&str], expected: &str, made: usize| {
            let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
            let until = Until { limit: 100, stop: &stop, ends: &[] };
            assert_eq!(shown(text, until), (expected.to_owned(), made), "{text:?} until {stop:?}");
        };
        check("one two three", &[], "one two three", 14);
        check("one two three", &["two"], "one ", 7);
        check("one two three", &["", "three", "tw"], "one ", 6);
        // A beginning that comes to nothing, at once and at the end; one within another.
        check("aab aaab aab", &["aaab"], "aab ", 8);
        check("one tw", &["two"], "one tw", 7);
        check("xababac", &["abac", "q"], "xab", 7);
        check("grün 🙂!", &["🙂"], "grün ", 10);
    }

    #[test]
    fn texts_end_at_limits_and_tokens() {
        assert_eq!(shown("abcdef", Until::tokens(4)), ("abcd".into(), 4));
        assert_eq!(shown("abcdef", Until::tokens(0)), (String::new(), 0));
        let tokenizer = Tokenizer::train::<&str>(&[], 300).unwrap();
        let d = tokenizer.encode("d").unwrap();
        assert_eq!(shown("abcdef", Until { ends: &d, ..Until::tokens(100) }), ("abc".into(), 4));
        // Half a stop string, and half a character, at the end.
        let stop = ["cdx".to_owned()];
        assert_eq!(shown("abcd", Until { stop: &stop, ..Until::tokens(4) }), ("abcd".into(), 4));
        assert_eq!(shown("aé", Until::tokens(2)), ("a\u{fffd}".into(), 2));
    }
}
