//! From TOML text and `--set` arguments to checked values.

use super::error::Problem;
use super::options::{self, Kind, OptionInfo, sections};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// How alike two names must be for one to be suggested for the other (Jaro-Winkler).
const ALIKE: f64 = 0.85;

/// Characters of a value that an error repeats.
const SHOWN: usize = 60;

/// Values laid over others, and what was wrong on the way.
pub(super) struct Layers {
    /// Section, name, value.
    pub(super) values: Value,
    /// Key to the place that set it.
    pub(super) places: BTreeMap<String, String>,
    /// In order of their places.
    pub(super) problems: Vec<Problem>,
}

impl Layers {
    /// Starts from `values`.
    pub(super) fn over(values: Value) -> Self {
        Layers { values, places: BTreeMap::new(), problems: Vec::new() }
    }

    /// Lays a file over the values.
    pub(super) fn file(&mut self, text: &str, origin: &str) {
        let file = File { text, origin };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut found: Vec<(usize, Problem)> = Vec::new();
        for error in &errors {
            let at = error.span().unwrap_or(0..0).start;
            found.push((at, file.problem(at, format!("not TOML: {}", error.message()))));
        }
        // What the rest of a broken file means is anyone's guess.
        if errors.is_empty() {
            for (name, value) in table.get_ref() {
                self.section(&file, name.get_ref(), name.span(), value.get_ref(), &mut found);
            }
        }
        found.sort_by_key(|(at, _)| *at);
        self.problems.extend(found.into_iter().map(|(_, problem)| problem));
    }

    fn section(
        &mut self,
        file: &File<'_>,
        name: &str,
        span: Range<usize>,
        value: &DeValue<'_>,
        found: &mut Vec<(usize, Problem)>,
    ) {
        let mut fail = |at: usize, what: String, hint: Option<String>| {
            found.push((at, Problem { hint, ..file.problem(at, what) }));
        };
        if !sections().iter().any(|section| section.name == name) {
            let what = match value {
                DeValue::Table(_) => format!("[{name}]: no such section"),
                _ => format!("{name}: no such option outside the sections"),
            };
            return fail(span.start, what, Some(other_section(name)));
        }
        let DeValue::Table(table) = value else {
            return fail(span.start, format!("{name}: expected a section, [{name}]"), None);
        };
        for (option, value) in table {
            let at = option.span().start;
            let key = format!("{name}.{}", option.get_ref());
            let Some(info) = options::find(&key) else {
                fail(at, format!("{key}: no such option"), Some(other_option(name, option.get_ref())));
                continue;
            };
            match read(value.get_ref(), &info.kind) {
                Some(read) => self.put(info, read, file.place(at)),
                None => {
                    let (what, hint) = refused(info, &file.shown(value.get_ref(), value.span()));
                    fail(at, what, hint);
                }
            }
        }
    }

    /// Lays one `section.name=value` over the values.
    pub(super) fn set(&mut self, assignment: &str) {
        let mut fail = |what: String, hint: Option<String>| {
            self.problems.push(Problem { place: "--set".into(), what, hint });
        };
        let Some((key, text)) = assignment.split_once('=') else {
            return fail(format!("{assignment}: expected section.option=value"), None);
        };
        let (key, text) = (key.trim(), text.trim());
        let Some(info) = options::find(key) else {
            let (what, hint) = match key.split_once('.') {
                Some((section, name)) if sections().iter().any(|s| s.name == section) => {
                    (format!("{key}: no such option"), other_option(section, name))
                }
                Some((section, _)) => (format!("{key}: no section [{section}]"), other_section(section)),
                None => (format!("{key}: expected section.option=value"), other_section(key)),
            };
            return fail(what, Some(hint));
        };
        let parsed = DeValue::parse(text).ok();
        let value = match (&parsed, &info.kind) {
            (Some(parsed), Kind::Text | Kind::Choice(_)) if !parsed.get_ref().is_str() => {
                read(&DeValue::String(text.into()), &info.kind)
            }
            (Some(parsed), kind) => read(parsed.get_ref(), kind),
            (None, kind) => read(&DeValue::String(text.into()), kind),
        };
        match value {
            Some(value) => self.put(info, value, "--set".into()),
            None => {
                let (what, hint) = refused(info, &shorten(text));
                fail(what, hint);
            }
        }
    }

    fn put(&mut self, info: &OptionInfo, value: Value, place: String) {
        let section = info.key.split('.').next().unwrap_or("");
        if let Some(section) = self.values.get_mut(section).and_then(Value::as_object_mut) {
            section.insert(info.name.clone(), value);
        }
        self.places.insert(info.key.clone(), place);
    }
}

/// A file while it is read.
struct File<'a> {
    text: &'a str,
    origin: &'a str,
}

impl File<'_> {
    fn place(&self, at: usize) -> String {
        let before = self.text.as_bytes().iter().take(at);
        format!("{}:{}", self.origin, before.filter(|byte| **byte == b'\n').count() + 1)
    }

    fn problem(&self, at: usize, what: String) -> Problem {
        Problem { place: self.place(at), what, hint: None }
    }

    /// A value as the file spells it.
    fn shown(&self, value: &DeValue<'_>, span: Range<usize>) -> String {
        match value {
            DeValue::Table(_) => "a table".into(),
            _ => shorten(self.text.get(span).unwrap_or("?")),
        }
    }
}

fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &line[..end]),
        None => line,
    }
}

/// The value, if it is of the kind and in its range.
fn read(value: &DeValue<'_>, kind: &Kind) -> Option<Value> {
    match (kind, value) {
        (Kind::Bool, DeValue::Boolean(flag)) => Some(Value::from(*flag)),
        (Kind::Integer { min, max }, DeValue::Integer(text)) => {
            let value = u64::from_str_radix(text.as_str(), text.radix()).ok()?;
            (min..=max).contains(&&value).then(|| Value::from(value))
        }
        (Kind::Float { .. }, DeValue::Float(text)) => finite(text.as_str().parse().ok()?, kind),
        (Kind::Float { .. }, DeValue::Integer(text)) if text.radix() == 10 => {
            finite(text.as_str().parse().ok()?, kind)
        }
        (Kind::Choice(values), DeValue::String(text)) => {
            values.iter().any(|(value, _)| value == text).then(|| Value::from(text.as_ref()))
        }
        (Kind::Text, DeValue::String(text)) => Some(Value::from(text.as_ref())),
        (Kind::List, DeValue::Array(items)) => items
            .iter()
            .map(|item| read(item.get_ref(), &Kind::Text))
            .collect::<Option<Vec<_>>>()
            .map(Value::from),
        _ => None,
    }
}

fn finite(value: f64, kind: &Kind) -> Option<Value> {
    let Kind::Float { min, max, .. } = kind else { return None };
    (*min..=*max).contains(&value).then(|| Value::from(value))
}

/// What to say of a value that is not of its option's kind, and a hint.
fn refused(info: &OptionInfo, found: &str) -> (String, Option<String>) {
    let found = if found.is_empty() { "nothing" } else { found };
    let what =
        format!("{} = {found}: expected {} (default {})", info.key, info.kind.expected(), info.default);
    let hint = match &info.kind {
        Kind::Choice(values) => {
            let names = values.iter().map(|(value, _)| value.as_str());
            alike(found.trim_matches('"'), names).map(|(name, _)| format!("did you mean {name:?}?"))
        }
        _ => None,
    };
    (what, hint)
}

/// The most alike of `names`, if alike enough.
fn alike<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<(&'a str, f64)> {
    names
        .map(|other| (other, strsim::jaro_winkler(&name.to_lowercase(), other)))
        .filter(|(_, score)| *score >= ALIKE)
        // The first of equals.
        .reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// A hint for a name that is no section.
fn other_section(name: &str) -> String {
    let owners: Vec<&str> =
        options::options().filter(|(_, o)| o.name == name).map(|(_, o)| o.key.as_str()).collect();
    if !owners.is_empty() {
        return format!("did you mean {}?", owners.join(" or "));
    }
    let names: Vec<&str> = sections().iter().map(|section| section.name).collect();
    match alike(name, names.iter().copied()) {
        Some((section, _)) => format!("did you mean [{section}]?"),
        None => format!("the sections are {}", names.join(", ")),
    }
}

/// A hint for a name that is no option of `section`: the same name elsewhere, a similar one here, a
/// similar one elsewhere, or all there are.
fn other_option(section: &str, name: &str) -> String {
    let owners: Vec<&str> =
        options::options().filter(|(_, o)| o.name == name).map(|(_, o)| o.key.as_str()).collect();
    if !owners.is_empty() {
        return format!("did you mean {}?", owners.join(" or "));
    }
    let here = || options::options().filter(|(owner, _)| owner.name == section);
    if let Some((best, _)) = alike(name, here().map(|(_, o)| o.name.as_str())) {
        return format!("did you mean {section}.{best}?");
    }
    let elsewhere = alike(name, options::options().map(|(_, o)| o.name.as_str()));
    let owner = elsewhere.and_then(|(best, _)| options::options().find(|(_, o)| o.name == best));
    match owner {
        Some((_, option)) => format!("did you mean {}?", option.key),
        None => {
            let names: Vec<&str> = here().map(|(_, o)| o.name.as_str()).collect();
            format!("[{section}] has {}", names.join(", "))
        }
    }
}
