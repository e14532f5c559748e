//! Conversations as prompts and as text to learn from: the chat template that comes with a tokenizer.
//!
//! A template is Jinja text in `chat_template.jinja`, or the entry `chat_template` of `tokenizer_config.json`, beside
//! `tokenizer.json`, as transformers writes them. Its special tokens become tokens; those that a message spells stay
//! text, so no message can end itself or begin another. A tokenizer without a template has a plain one.
//!
//! What is learnt of a conversation are its answers: the tokens of each, up to the one that ends the turn. All others
//! are there to be read.

use std::path::{Path, PathBuf};

use minijinja::{Environment, ErrorKind, context, syntax::SyntaxConfig, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tritrain_files::{Storage, tokens::NO_TARGET_MARK, write_atomic};

use crate::{Error, Result, Tokenizer};

/// File of the template beside a tokenizer.
pub const TEMPLATE: &str = "chat_template.jinja";
/// File with the template, and the names of special tokens, beside a tokenizer.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// ChatML, of which a special token ends the turns: `<|im_end|>` where the tokenizer has it, else its end of text.
const PLAIN: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n\
    {{ message.content }}{{ eos_token }}\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const TURN_END: &str = "<|im_end|>";
const HINT: &str = "repair the template, or continue plain text without --chat";
const HINT_CONVERSATION: &str =
    "repair or remove the conversation, or put a chat_template.jinja that takes it beside the tokenizer";
/// Work a template may do: some thousand times what one for a few messages needs.
const FUEL: u64 = 50_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Whether turns are an optional one of the system, then of user and assistant in turns, the assistant last, no answer
/// empty. The error is what was expected and what was found.
pub(crate) fn check_turns(messages: &[Message]) -> Result<(), (&'static str, String)> {
    let first = usize::from(messages.first().is_some_and(|message| message.role == "system"));
    for (at, message) in messages.iter().enumerate().skip(first) {
        let Message { role, content } = message;
        let expected = if (at - first).is_multiple_of(2) { "user" } else { "assistant" };
        if !["system", "user", "assistant"].contains(&role.as_str()) {
            return Err(("the roles system, user and assistant", format!("{role:?} in turn {}", at + 1)));
        }
        if role != expected {
            let rule = "a system turn at most, then user and assistant in turns";
            return Err((rule, format!("{role} for {expected} in turn {}", at + 1)));
        }
        if role == "assistant" && content.trim().is_empty() {
            return Err(("answers that are not empty", format!("an empty one in turn {}", at + 1)));
        }
    }
    match messages.last() {
        Some(last) if last.role == "assistant" => Ok(()),
        Some(last) => Err(("a last turn of the assistant", format!("one of the {}", last.role))),
        None => Err(("turns", "none".to_owned())),
    }
}

/// A chat template as it is stored, whether or not it can be used here.
#[derive(Clone, Debug)]
pub struct TemplateFile {
    path: PathBuf,
    source: String,
    bos: String,
    eos: String,
}

impl TemplateFile {
    /// The one beside a `tokenizer.json`, if there is one.
    ///
    /// # Errors
    /// [`Error::Chat`]: what is there cannot be read as text or JSON; [`Error::Files`].
    pub fn beside(storage: &dyn Storage, tokenizer: &Path) -> Result<Option<TemplateFile>> {
        let (template, config) =
            (tokenizer.with_file_name(TEMPLATE), tokenizer.with_file_name(TOKENIZER_CONFIG));
        let bytes = if storage.exists(&config)? { &*storage.read(&config)? } else { &b"{}"[..] };
        if !storage.exists(&template)? {
            return TemplateFile::in_config(&config, bytes);
        }
        let source = String::from_utf8(storage.read(&template)?);
        let source = source.map_err(|error| chat(&template, "UTF-8", error))?;
        Ok(Some(TemplateFile::named(template, source, &entries(&config, bytes)?)))
    }

    /// The one in a `tokenizer_config.json`, if there is one; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Chat`]: it is no JSON.
    pub fn in_config(path: &Path, config: &[u8]) -> Result<Option<TemplateFile>> {
        let entries = entries(path, config)?;
        let source = template_of(&entries["chat_template"]);
        Ok(source.map(|source| TemplateFile::named(path.to_path_buf(), source.to_owned(), &entries)))
    }

    fn named(path: PathBuf, source: String, entries: &Value) -> TemplateFile {
        let [bos, eos] = ["bos_token", "eos_token"].map(|key| token_name(&entries[key]).to_owned());
        TemplateFile { path, source, bos, eos }
    }

    /// The template as Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special token that it calls `eos_token`, if there is one.
    pub fn end(&self, tokenizer: &Tokenizer) -> Option<(String, u32)> {
        tokenizer.special_tokens().into_iter().find(|(name, _)| *name == self.eos)
    }
}

/// How a model was taught to see conversations.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: TemplateFile,
    hash: String,
}

impl ChatTemplate {
    /// The template that was looked for at `place`.
    ///
    /// # Errors
    /// [`Error::Chat`]: there is none, or it is no template.
    pub fn needed(found: Option<TemplateFile>, place: &Path) -> Result<ChatTemplate> {
        let none = "none: this model does not chat";
        ChatTemplate::of(found.ok_or_else(|| chat(place, "the entry chat_template", none))?)
    }

    /// Reads the template beside a `tokenizer.json`, where there is one.
    ///
    /// # Errors
    /// [`Error::Chat`]: it is no template; [`Error::Files`].
    pub fn find(storage: &dyn Storage, tokenizer: &Path) -> Result<Option<ChatTemplate>> {
        TemplateFile::beside(storage, tokenizer)?.map(ChatTemplate::of).transpose()
    }

    /// ChatML for a tokenizer that has no template.
    ///
    /// # Errors
    /// None: it is a template.
    pub fn plain(tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        let special = tokenizer.special_tokens();
        let end = special.iter().find(|(name, _)| name == TURN_END);
        let end = end.or_else(|| special.iter().find(|(_, id)| *id == tokenizer.eos()));
        ChatTemplate::plain_with(end.map_or("", |(name, _)| name))
    }

    /// ChatML whose turns end with a token.
    pub(crate) fn plain_with(end: &str) -> Result<ChatTemplate> {
        ChatTemplate::new(Path::new(TEMPLATE), PLAIN.to_owned(), "", end)
    }

    /// A template with the names of the tokens it calls `bos_token` and `eos_token`; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Chat`]: it is no template.
    pub fn new(path: &Path, template: String, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let (path, bos, eos) = (path.to_path_buf(), bos.to_owned(), eos.to_owned());
        ChatTemplate::of(TemplateFile { path, source: template, bos, eos })
    }

    /// A template as it was stored.
    ///
    /// # Errors
    /// [`Error::Chat`]: it is no template.
    pub fn of(file: TemplateFile) -> Result<ChatTemplate> {
        let TemplateFile { path, source, bos, eos } = &file;
        let mut environment = Environment::new();
        // As transformers sets Jinja up for these templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| chat(path, "the syntax of Jinja", error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |said: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, said))
        });
        let mut hash = blake3::Hasher::new();
        for part in [source, bos, eos] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let hash = hash.finalize().to_hex().to_string();
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| chat(path, "a Jinja template", format!("{error:#}")))?;
        Ok(ChatTemplate { environment, file, hash })
    }

    /// BLAKE3 of the template and of the tokens it names, in hexadecimal.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// What it was made from.
    pub fn file(&self) -> &TemplateFile {
        &self.file
    }

    /// Writes the template beside the tokenizer in `dir`.
    ///
    /// # Errors
    /// [`Error::Files`].
    pub fn save(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        let TemplateFile { source, bos, eos, .. } = &self.file;
        write_atomic(storage, &dir.join(TEMPLATE), source.as_bytes())?;
        let config = json!({ "bos_token": bos, "eos_token": eos });
        Ok(write_atomic(storage, &dir.join(TOKENIZER_CONFIG), format!("{config:#}\n").as_bytes())?)
    }

    /// The tokens of a conversation, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the conversation; [`Error::Tokenizer`].
    pub fn prompt(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        let said = Said::new(self, tokenizer, messages)?;
        said.tokens(&said.text(messages.len(), true)?)
    }

    /// The tokens of a conversation to learn from, which ends with an answer. All but those of answers, each up to the
    /// token that ends its turn, have [`NO_TARGET_MARK`]. An answer has tokens of its own, as behind a prompt.
    ///
    /// # Errors
    /// [`Error::Chat`] when the template refuses the conversation, changes a turn because of a later one, or leaves an
    /// answer out; [`Error::Tokenizer`].
    pub fn conversation(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        self.marked(tokenizer, messages).map_err(|error| match error {
            Error::Chat { path, expected, found, .. } => {
                Error::Chat { path, expected, found, hint: HINT_CONVERSATION }
            }
            other => other,
        })
    }

    fn marked(&self, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<u32>> {
        let said = Said::new(self, tokenizer, messages)?;
        let (whole, ends) = (said.text(messages.len(), false)?, self.ends(tokenizer));
        let (mut tokens, mut rest, mut before) = (Vec::new(), whole.as_str(), 0);
        let given = |tokens: &mut Vec<u32>, text: &str| -> Result<()> {
            tokens.extend(said.tokens(text)?.into_iter().map(|token| token | NO_TARGET_MARK));
            Ok(())
        };
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let (prompt, answered) = (said.text(at, true)?, said.text(at + 1, false)?);
            let answer = answered.strip_prefix(&prompt).filter(|_| whole.starts_with(&answered));
            let (Some(answer), Some(header)) = (answer, prompt.get(before..)) else {
                let expected = "a template that writes every turn behind the ones before";
                return Err(chat(
                    &self.file.path,
                    expected,
                    format!("turn {} changed by what follows", at + 1),
                ));
            };
            given(&mut tokens, header)?;
            let answer = said.tokens(answer)?;
            let end =
                answer.iter().position(|token| ends.contains(token)).map_or(answer.len(), |end| end + 1);
            if end == 0 {
                let found = format!("nothing for turn {}", at + 1);
                return Err(chat(&self.file.path, "a template that writes answers", found));
            }
            let learnt = answer.iter().enumerate();
            tokens.extend(learnt.map(|(n, token)| if n < end { *token } else { token | NO_TARGET_MARK }));
            before = answered.len();
            rest = whole.get(before..).unwrap_or_default();
        }
        given(&mut tokens, rest)?;
        Ok(tokens)
    }

    /// Tokens that end a turn: the end of text, and what the model's configuration calls so.
    pub fn ends(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        [Some(tokenizer.eos()), self.file.end(tokenizer).map(|(_, id)| id)].into_iter().flatten().collect()
    }
}

/// A conversation for a template and a tokenizer.
struct Said<'a> {
    by: &'a ChatTemplate,
    tokenizer: &'a Tokenizer,
    /// Names and ids of special tokens.
    special: Vec<(String, u32)>,
    /// A character that no message holds: it breaks the special tokens which messages spell.
    mark: char,
    /// With such tokens broken.
    messages: Vec<Message>,
}

impl<'a> Said<'a> {
    fn new(by: &'a ChatTemplate, tokenizer: &'a Tokenizer, messages: &[Message]) -> Result<Said<'a>> {
        let special = tokenizer.special_tokens();
        let free = |mark: &char| !messages.iter().any(|message| message.content.contains(*mark));
        let mark = ('\u{e000}'..='\u{f8ff}').find(free);
        let mark = mark
            .ok_or_else(|| chat(&by.file.path, "an unused private character", "messages with all of them"))?;
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
        let messages = messages.iter().map(broken).collect();
        Ok(Said { by, tokenizer, special, mark, messages })
    }

    /// What the template makes of the first `turns`, up to where the assistant's `next` one begins.
    fn text(&self, turns: usize, next: bool) -> Result<String> {
        let ChatTemplate { environment, file, .. } = self.by;
        let TemplateFile { path, bos: bos_token, eos: eos_token, .. } = file;
        let messages = Serde(self.messages.get(..turns).unwrap_or_default());
        let template = environment.get_template(NAME);
        let text = template.and_then(|template| {
            template.render(context! { messages, bos_token, eos_token, add_generation_prompt => next })
        });
        text.map_err(|error| chat(path, "a template that takes this conversation", format!("{error:#}")))
    }

    /// Special tokens of a text as what they are, and what is between them.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let (mut tokens, mut rest) = (Vec::new(), text);
        loop {
            let special = self.special.iter();
            let found = special.filter_map(|(name, id)| Some((rest.find(name.as_str())?, name.len(), *id)));
            // The first; of those at one place, the longest.
            let next = found.min_by_key(|(at, len, _)| (*at, usize::MAX - len));
            let (before, token, behind) = match next {
                Some((at, len, id)) => (&rest[..at], Some(id), &rest[at + len..]),
                None => (rest, None, ""),
            };
            if !before.is_empty() {
                tokens.append(&mut self.tokenizer.encode(&before.replace(self.mark, ""))?);
            }
            let Some(token) = token else { return Ok(tokens) };
            tokens.push(token);
            rest = behind;
        }
    }
}

const NAME: &str = "chat";

fn chat(path: &Path, expected: impl ToString, found: impl ToString) -> Error {
    let (expected, found) = (expected.to_string(), crate::error::short(&found.to_string()));
    Error::Chat { path: path.to_path_buf(), expected, found, hint: HINT }
}

/// What a `tokenizer_config.json` says.
fn entries(path: &Path, config: &[u8]) -> Result<Value> {
    serde_json::from_slice(config).map_err(|error| chat(path, "a JSON object", error))
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
