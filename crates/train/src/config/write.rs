//! Values and whole configurations as TOML.

use super::options::{Kind, Section, group, sections};
use serde_json::Value;

/// Columns of the annotated file.
const WIDTH: usize = 100;

/// One value as TOML.
pub(super) fn value(value: &Value, kind: &Kind) -> String {
    match (value, kind) {
        (Value::Number(number), Kind::Float { single, .. }) => {
            let wide = number.as_f64().unwrap_or(f64::NAN);
            let narrow = wide as f32;
            if *single { format!("{narrow:?}") } else { format!("{wide:?}") }
        }
        (Value::Number(number), _) => number.as_u64().map_or_else(|| number.to_string(), group),
        // JSON has no word for it, TOML has, and reading it back is refused.
        (Value::Null, _) => "nan".into(),
        (Value::Bool(flag), _) => flag.to_string(),
        (Value::String(text), _) => toml::Value::String(text.clone()).to_string(),
        (Value::Array(items), _) => {
            let items: Vec<String> = items.iter().map(|item| self::value(item, &Kind::Text)).collect();
            format!("[{}]", items.join(", "))
        }
        (Value::Object(_), _) => value.to_string(),
    }
}

/// All sections and values; `keep` chooses by key.
pub(super) fn plain(values: &Value, keep: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    for section in sections() {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("[{}]\n", section.name));
        for option in section.options.iter().filter(|option| keep(&option.key)) {
            let shown = value(&values[section.name][&option.name], &option.kind);
            out.push_str(&format!("{} = {shown}\n", option.name));
        }
    }
    out
}

/// The defaults with the help of every option.
pub(super) fn annotated() -> String {
    sections().iter().map(annotated_section).collect::<Vec<_>>().join("\n")
}

fn annotated_section(section: &Section) -> String {
    let mut out = comment(&section.help);
    out.push_str(&format!("[{}]\n", section.name));
    for option in &section.options {
        let mut help = option.help.clone();
        let mut add = |sentence: String| {
            let stop = if help.ends_with(['.', '!', '?']) { " " } else { ". " };
            help.push_str(stop);
            help.push_str(&sentence);
        };
        if let Kind::Choice(values) = &option.kind
            && !values.iter().all(|(value, _)| option.help.contains(&format!("{value:?}")))
        {
            add(format!("One of {}.", option.kind.expected()));
        }
        if let Some(range) = option.kind.range() {
            add(range);
        }
        out.push('\n');
        out.push_str(&comment(&help));
        out.push_str(&format!("{} = {}\n", option.name, option.default));
    }
    out
}

/// Words in lines of at most [`WIDTH`] columns, each behind a `#`.
fn comment(text: &str) -> String {
    let mut out = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() > 1 && line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
    out
}
