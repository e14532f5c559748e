//! `tritrain generate`: one prompt as it is continued, several together, or a conversation.

use std::{
    io::{self, BufRead, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tritrain_backend::Backend;
use tritrain_data::{
    chat::{ChatTemplate, Message},
    clusters::Clusters,
};
use tritrain_files::Disk;
use tritrain_model::{Model, Sampling};
use tritrain_train::{Continuation, Loaded, Mixture, Next, Until, generate, generate_all, load};

use crate::{
    args, commands, devices,
    error::{Error, Result},
    experts, show,
};

pub(crate) fn run(args: &args::Generate) -> Result<ExitCode> {
    devices::check(&args.device)?;
    check(args)?;
    let mixing = experts::mixing(&args.mixing)?;
    if let Some(mixture) = Mixture::load(&Disk, &args.model)? {
        devices::only_processor(&args.device)?;
        return experts::generate(args, &mixture, mixing);
    }
    let started = Instant::now();
    let loaded = load(&Disk, &args.model)?;
    loaded.notes.iter().for_each(|note| show::note(note));
    devices::work(&args.device, args.threads, Asked::new(args, &loaded, started)?)
}

impl devices::Work for Asked<'_> {
    type Output = ExitCode;

    fn on<B: Backend>(self, backend: &B, _: &devices::On) -> Result<ExitCode> {
        let model = self.of.generating(backend)?;
        let code = if self.args.chat && self.args.prompt.is_empty() {
            converse(&self, (backend, &model))?
        } else if self.args.prompt.len() > 1 {
            together(&self, (backend, &model))?
        } else {
            let topics = commands::topics(self.of)?;
            let (prompt, loaded) = (self.prompt()?, self.started.elapsed());
            let mut next = Continuation::new(backend, &model, &prompt)?;
            let took = Took { load: loaded, prompt: self.started.elapsed() - loaded, tokens: prompt.len() };
            backend.run_awake(|| write(&self, topics.as_ref(), (&mut next, took)))?
        };
        devices::sound(backend)?;
        Ok(code)
    }
}

/// What it took until the first new token can be chosen.
pub(crate) struct Took {
    /// To read the model.
    pub(crate) load: Duration,
    /// To read the prompt.
    pub(crate) prompt: Duration,
    /// Of the prompt.
    pub(crate) tokens: usize,
}

/// What is asked of a model.
pub(crate) struct Asked<'a> {
    started: Instant,
    args: &'a args::Generate,
    of: &'a Loaded,
    template: Option<ChatTemplate>,
    ends: Vec<u32>,
}

impl<'a> Asked<'a> {
    /// `started` is when the model began to be read.
    pub(crate) fn new(args: &'a args::Generate, of: &'a Loaded, started: Instant) -> Result<Asked<'a>> {
        let template = match args.chat {
            true => Some(of.chat_template(&Disk)?),
            false => None,
        };
        let ends = template.as_ref().map(|template| template.ends(&of.tokenizer));
        Ok(Asked { started, args, of, template, ends: ends.unwrap_or_default() })
    }

    /// The tokens of the one prompt.
    pub(crate) fn prompt(&self) -> Result<Vec<u32>> {
        self.tokens(self.args.prompt.first().map_or("", String::as_str))
    }

    /// The tokens of a prompt: behind an end of text, or as the first turn of a user.
    fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut messages = self.system();
        messages.push(Message::new("user", prompt));
        match &self.template {
            Some(template) => Ok(template.prompt(&self.of.tokenizer, &messages)?),
            None => {
                let mut tokens = vec![self.of.tokenizer.eos()];
                tokens.extend(self.of.tokenizer.encode(prompt)?);
                Ok(tokens)
            }
        }
    }

    fn system(&self) -> Vec<Message> {
        self.args.system.iter().map(|system| Message::new("system", system)).collect()
    }

    fn until(&self) -> Until<'_> {
        Until { limit: self.args.max_tokens, stop: &self.args.stop, ends: &self.ends }
    }

    fn sampling(&self) -> Sampling {
        let &args::Generate { temperature, top_p, top_k, min_p, repetition_penalty, seed, .. } = self.args;
        Sampling { temperature, top_p, top_k, min_p, repetition_penalty, seed, sequence: 0 }
    }
}

/// Continues the one prompt and shows it.
pub(crate) fn write(
    asked: &Asked<'_>,
    topics: Option<&Clusters<'_>>,
    (next, took): (&mut impl Next, Took),
) -> Result<ExitCode> {
    let prompt = asked.args.prompt.first().map_or("", String::as_str);
    let cluster = match topics.filter(|_| !prompt.is_empty()) {
        Some(topics) => {
            let cluster = topics.nearest(&mut topics.embedder().scratch(), prompt)?;
            let name = topics.names().get(cluster).cloned().unwrap_or_default();
            show::note(&format!("the prompt belongs to cluster {cluster}: {name}"));
            Some(json!({ "index": cluster, "name": name }))
        }
        None => None,
    };
    let (mut text, started) = (String::new(), Instant::now());
    if !asked.args.chat {
        show::piece(prompt);
    }
    let tokens = generate(next, &asked.of.tokenizer, &asked.sampling(), asked.until(), |piece| {
        text.push_str(piece);
        show::piece(piece)
    })?;
    show::piece("\n");
    if asked.args.json {
        let tokens_per_s = tokens as f64 / started.elapsed().as_secs_f64();
        let mut result = made(prompt, &text, tokens);
        result["tokens_per_s"] = tokens_per_s.into();
        result["load_seconds"] = took.load.as_secs_f64().into();
        result["prompt_tokens"] = took.tokens.into();
        result["prompt_tokens_per_s"] = (took.tokens as f64 / took.prompt.as_secs_f64()).into();
        if let Some(cluster) = cluster {
            result["cluster"] = cluster;
        }
        show::json(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn made(prompt: &str, text: &str, tokens: usize) -> Value {
    json!({ "prompt": prompt, "text": text, "tokens": tokens })
}

/// Continues several prompts and shows them one below the other when all have ended.
fn together<B: Backend>(asked: &Asked<'_>, (backend, model): (&B, &Model<B>)) -> Result<ExitCode> {
    let prompts = &asked.args.prompt;
    let tokens = prompts.iter().map(|prompt| asked.tokens(prompt)).collect::<Result<Vec<_>>>()?;
    let mut texts = vec![String::new(); prompts.len()];
    let started = Instant::now();
    let (tokenizer, sampling, until) = (&asked.of.tokenizer, asked.sampling(), asked.until());
    let counts = backend.run_awake(|| {
        generate_all((backend, model), &tokens, tokenizer, &sampling, until, |number, piece| {
            texts[number].push_str(piece);
            true
        })
    })?;
    let seconds = started.elapsed().as_secs_f64();
    for (prompt, text) in prompts.iter().zip(&texts) {
        let prompt = if asked.args.chat { "" } else { prompt };
        show::line(&format!("{prompt}{text}\n"))?;
    }
    if asked.args.json {
        let all = prompts.iter().zip(&texts).zip(&counts);
        let sequences: Vec<Value> = all.map(|((prompt, text), tokens)| made(prompt, text, *tokens)).collect();
        let tokens_per_s = counts.iter().sum::<usize>() as f64 / seconds;
        show::json(&json!({ "sequences": sequences, "tokens_per_s": tokens_per_s }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers every line of standard input, with all that was said before in mind.
fn converse<B: Backend>(asked: &Asked<'_>, (backend, model): (&B, &Model<B>)) -> Result<ExitCode> {
    let mut messages = asked.system();
    let mut lines = io::stdin().lock();
    let mut said = String::new();
    loop {
        if io::stdin().is_terminal() {
            show::piece("> ");
        }
        said.clear();
        let read = lines.read_line(&mut said);
        if read.map_err(|source| Error::Read { path: "standard input".into(), source })? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        if said.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", said.trim()));
        let Some(template) = &asked.template else { return Ok(ExitCode::SUCCESS) };
        let prompt = template.prompt(&asked.of.tokenizer, &messages)?;
        let mut next = Continuation::new(backend, model, &prompt)?;
        let (tokenizer, sampling, until) = (&asked.of.tokenizer, asked.sampling(), asked.until());
        let mut text = String::new();
        backend.run_awake(|| {
            generate(&mut next, tokenizer, &sampling, until, |piece| {
                text.push_str(piece);
                show::piece(piece)
            })
        })?;
        show::piece("\n");
        messages.push(Message::new("assistant", text));
    }
}

fn check(args: &args::Generate) -> Result<()> {
    let usage =
        |option, found: f32, expected| Err(Error::Usage { option, found: found.to_string(), expected });
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return usage("temperature", args.temperature, "a number from 0 on");
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return usage("top-p", args.top_p, "a number above 0 and up to 1");
    }
    if !(0.0..=1.0).contains(&args.min_p) {
        return usage("min-p", args.min_p, "a number from 0 to 1");
    }
    if !(args.repetition_penalty > 0.0 && args.repetition_penalty.is_finite()) {
        return usage("repetition-penalty", args.repetition_penalty, "a number above 0");
    }
    if args.json && args.chat && args.prompt.is_empty() {
        return Err(Error::Usage { option: "json", found: "--chat".into(), expected: "--prompt beside it" });
    }
    Ok(())
}
