//! Conversations as prompts: the chat template that comes with a tokenizer.
//!
//! A template is Jinja text in `chat_template.jinja`, or the entry `chat_template` of `tokenizer_config.json`, beside
//! `tokenizer.json`, as transformers writes them. Its special tokens become tokens; those that a message spells stay
//! text, so no message can end itself or begin another.

use std::path::{Path, PathBuf};

use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::Value;
use tritrain_files::Storage;

use crate::{Error, Result, Tokenizer};

/// File of the template beside a tokenizer.
pub const TEMPLATE: &str = "chat_template.jinja";
/// File with the template, and the names of special tokens, beside a tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Work a template may do: some thousand times what one for a few messages needs.
const FUEL: u64 = 50_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: &str, content: impl Into<String>) -> Message {
        Message { role: role.to_owned(), content: content.into() }
    }
}

/// How a model was taught to see conversations.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Reads the template beside a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Chat`]: there is none, or it is no template; [`Error::Files`].
    pub fn beside(storage: &dyn Storage, tokenizer: &Path) -> Result<ChatTemplate> {
        let (template, config) =
            (tokenizer.with_file_name(TEMPLATE), tokenizer.with_file_name(TOKENIZER_CONFIG));
        let entries: Value = match storage.exists(&config)? {
            true => serde_json::from_slice(&storage.read(&config)?)
                .map_err(|error| chat(&config, "a JSON object", error))?,
            false => Value::Null,
        };
        let (path, text) = if storage.exists(&template)? {
            let bytes = storage.read(&template)?;
            let text = String::from_utf8(bytes).map_err(|error| chat(&template, "UTF-8", error))?;
            (template, text)
        } else {
            let text = template_of(&entries["chat_template"]);
            let text = text
                .ok_or_else(|| chat(&config, "the entry chat_template", "none: this model does not chat"))?;
            (config, text.to_owned())
        };
        ChatTemplate::new(&path, text, token_name(&entries["bos_token"]), token_name(&entries["eos_token"]))
    }

    /// The template in a `tokenizer_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ChatTemplate::beside`].
    pub fn in_config(path: &Path, config: &[u8]) -> Result<ChatTemplate> {
        let entries: Value =
            serde_json::from_slice(config).map_err(|error| chat(path, "a JSON object", error))?;
        let text = template_of(&entries["chat_template"]);
        let text =
            text.ok_or_else(|| chat(path, "the entry chat_template", "none: this model does not chat"))?;
        let [bos, eos] = ["bos_token", "eos_token"].map(|name| token_name(&entries[name]));
        ChatTemplate::new(path, text.to_owned(), bos, eos)
    }

    /// A template with the names of the tokens it calls `bos_token` and `eos_token`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Chat`]: it is no template.
    pub fn new(path: &Path, template: String, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up for these templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| chat(path, "the syntax of Jinja", error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |said: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, said))
        });
        environment
            .add_template_owned(NAME, template)
            .map_err(|error| chat(path, "a Jinja template", format!("{error:#}")))?;
        Ok(ChatTemplate { environment, path: path.to_path_buf(), bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The tokens of a conversation, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the conversation; [`Error::Tokenizer`].
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        self.tokens(tokenizer, messages, true)
    }

    fn tokens(&self, tokenizer: &Tokenizer, messages: &[Message], next: bool) -> Result<Vec<u32>> {
        let special = tokenizer.special_tokens();
        // A character that no message holds breaks the special tokens which messages spell.
        let free = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mark = ('\u{e000}'..='\u{f8ff}').find(free);
        let mark =
            mark.ok_or_else(|| chat(&self.path, "an unused private character", "messages with all of them"))?;
        let broken = |message: &Message| {
            let mut content = message.content.clone();
            for (name, _) in &special {
                if content.contains(name.as_str()) {
                    let mut letters = name.chars();
                    let split: String = letters.next().into_iter().chain([mark]).chain(letters).collect();
                    content = content.replace(name.as_str(), &split);
                }
            }
            Message { content, ..message.clone() }
        };
        let messages = Serde(messages.iter().map(broken).collect::<Vec<_>>());
        let (bos_token, eos_token) = (&self.bos, &self.eos);
        let text = self
            .environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! { messages, bos_token, eos_token, add_generation_prompt => next })
            })
            .map_err(|error| {
                chat(&self.path, "a template that takes this conversation", format!("{error:#}"))
            })?;
        let (mut tokens, mut rest) = (Vec::new(), text.as_str());
        loop {
            let found =
                special.iter().filter_map(|(name, id)| Some((rest.find(name.as_str())?, name.len(), *id)));
            // The first; of those at one place, the longest.
            let next = found.min_by_key(|(at, len, _)| (*at, usize::MAX - len));
            let (before, token, behind) = match next {
                Some((at, len, id)) => (&rest[..at], Some(id), &rest[at + len..]),
                None => (rest, None, ""),
            };
            if !before.is_empty() {
                tokens.append(&mut tokenizer.encode(&before.replace(mark, ""))?);
            }
            let Some(token) = token else { return Ok(tokens) };
            tokens.push(token);
            rest = behind;
        }
    }

    /// Tokens that end a turn: the end of text, and what the model's configuration calls so.
    pub fn ends(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let named = tokenizer.special_tokens().into_iter().find(|(name, _)| *name == self.eos);
        [Some(tokenizer.eos()), named.map(|(_, id)| id)].into_iter().flatten().collect()
    }
}

const NAME: &str = "chat";

fn chat(path: &Path, expected: impl ToString, found: impl ToString) -> Error {
    let (expected, found) = (expected.to_string(), crate::error::short(&found.to_string()));
    Error::Chat { path: path.to_path_buf(), expected, found }
}

/// The template itself, or among several the one called `default`.
fn template_of(entry: &Value) -> Option<&str> {
    let named = |list: &'_ Vec<Value>| list.iter().position(|one| one["name"] == "default");
    entry.as_str().or_else(|| entry.as_array().and_then(|list| list.get(named(list)?)?["template"].as_str()))
}

/// The text of a token, which stands there alone or as an object.
fn token_name(entry: &Value) -> &str {
    entry.as_str().or_else(|| entry["content"].as_str()).unwrap_or_default()
}
