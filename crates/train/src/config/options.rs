//! Every option, read once from the JSON schema that the section structs derive.
//!
//! File, `--set`, checks and help all walk this table, so an option is declared in one place: its
//! field.

use schemars::{JsonSchema, Schema};
use serde_json::Value;
use std::sync::OnceLock;
use tritrain_data::DataConfig;
use tritrain_model::ModelConfig;
use tritrain_optim::OptimConfig;

use crate::run_config::RunConfig;

/// One section of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Its name, as in `[model]`.
    pub name: &'static str,
    /// The doc comment of its struct, on one line.
    pub help: String,
    /// In the order of their declaration.
    pub options: Vec<OptionInfo>,
}

/// One option.
#[derive(Clone, Debug, PartialEq)]
pub struct OptionInfo {
    /// `section.name`, as `--set` takes it.
    pub key: String,
    /// The name inside its section.
    pub name: String,
    /// The doc comment of its field, on one line.
    pub help: String,
    /// What it may be.
    pub kind: Kind,
    /// Its default as TOML.
    pub default: String,
}

/// What an option may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number; both ends belong to the range.
    Integer {
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// A finite number; both ends belong to the range.
    Float {
        /// Smallest value.
        min: f64,
        /// Largest value.
        max: f64,
        /// Held as f32, and printed as such: 0.005, not 0.004999999888.
        single: bool,
    },
    /// One of these strings, each with its doc comment.
    Choice(Vec<(String, String)>),
    /// Any string.
    Text,
    /// A list of strings.
    List,
}

impl Kind {
    /// The kind in words, for "expected ..".
    pub fn expected(&self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Integer { min, .. } if self.open() => format!("an integer from {} up", group(*min)),
            Kind::Integer { min, max } => format!("an integer from {} to {}", group(*min), group(*max)),
            Kind::Float { min, max, .. } => format!("a number from {min:?} to {max:?}"),
            Kind::Choice(values) => {
                let quoted: Vec<String> = values.iter().map(|(value, _)| format!("{value:?}")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => quoted.join(""),
                }
            }
            Kind::Text => "a string".into(),
            Kind::List => "a list of strings".into(),
        }
    }

    /// The range as a sentence for the help; `None` without one.
    pub fn range(&self) -> Option<String> {
        match self {
            Kind::Integer { min, .. } if self.open() => Some(format!("At least {}.", group(*min))),
            Kind::Integer { min, max } => Some(format!("Range {} to {}.", group(*min), group(*max))),
            Kind::Float { min, max, .. } => Some(format!("Range {min:?} to {max:?}.")),
            _ => None,
        }
    }

    /// Whether only its type bounds the integer from above.
    fn open(&self) -> bool {
        matches!(self, Kind::Integer { max: u64::MAX, .. })
    }
}

/// A whole number as TOML, in groups of three from five digits on.
pub(super) fn group(value: u64) -> String {
    let plain = value.to_string();
    if value < 10_000 {
        return plain;
    }
    let mut out = String::new();
    for (at, digit) in plain.char_indices() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

/// The four sections, in the order of the file.
pub(super) fn sections() -> &'static [Section] {
    static SECTIONS: OnceLock<Vec<Section>> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        vec![
            section::<ModelConfig>("model"),
            section::<DataConfig>("data"),
            section::<OptimConfig>("optim"),
            section::<RunConfig>("run"),
        ]
    })
}

/// All options, in the order of the file.
pub(super) fn options() -> impl Iterator<Item = (&'static Section, &'static OptionInfo)> {
    sections().iter().flat_map(|section| section.options.iter().map(move |option| (section, option)))
}

/// The option behind `section.name`.
pub(super) fn find(key: &str) -> Option<&'static OptionInfo> {
    options().map(|(_, option)| option).find(|option| option.key == key)
}

fn section<T: JsonSchema>(name: &'static str) -> Section {
    let schema: Schema = schemars::schema_for!(T);
    let schema = schema.as_value();
    let fields = schema["properties"].as_object().into_iter().flatten();
    let options = fields.map(|(field, of)| option(name, field, of, schema)).collect();
    Section { name, help: text(&schema["description"]), options }
}

fn option(section: &str, name: &str, field: &Value, root: &Value) -> OptionInfo {
    let kind = kind(target(field, root));
    OptionInfo {
        key: format!("{section}.{name}"),
        name: name.to_owned(),
        help: text(&field["description"]),
        default: super::write::value(&field["default"], &kind),
        kind,
    }
}

/// The schema of a field's type: enums are references.
fn target<'a>(field: &'a Value, root: &'a Value) -> &'a Value {
    let path = field["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
    path.and_then(|path| root.pointer(path)).unwrap_or(field)
}

/// Understands what the sections use and no more; the tests below fail when they use more.
fn kind(schema: &Value) -> Kind {
    if let Some(choices) = schema["oneOf"].as_array() {
        let named = |one: &Value| Some((one["const"].as_str()?.to_owned(), text(&one["description"])));
        return Kind::Choice(choices.iter().filter_map(named).collect());
    }
    match schema["type"].as_str() {
        Some("boolean") => Kind::Bool,
        Some("integer") => Kind::Integer {
            min: schema["minimum"].as_u64().unwrap_or(0),
            max: schema["maximum"].as_u64().unwrap_or(u64::MAX),
        },
        Some("number") => Kind::Float {
            min: schema["minimum"].as_f64().unwrap_or(f64::MIN),
            max: schema["maximum"].as_f64().unwrap_or(f64::MAX),
            single: schema["format"] == "float",
        },
        Some("array") => Kind::List,
        _ => Kind::Text,
    }
}

/// A doc comment on one line.
fn text(description: &Value) -> String {
    description.as_str().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    //! That the table understands the whole schema: a keyword it skipped would be an unchecked rule.
    use super::*;
    use serde_json::json;

    /// What of a field's schema the table would skip.
    fn skipped(field: &Value, root: &Value) -> Option<String> {
        let known =
            ["description", "default", "type", "format", "minimum", "maximum", "$ref", "items", "oneOf"];
        let of = target(field, root);
        let keys = [field, of].into_iter().flat_map(|schema| schema.as_object().unwrap().keys());
        if let Some(key) = keys.into_iter().find(|key| !known.contains(&key.as_str())) {
            return Some(key.clone());
        }
        let bounded = of["minimum"].is_number() && of["maximum"].is_number();
        let understood = match of["type"].as_str() {
            Some("boolean" | "string") => true,
            Some("integer") => {
                matches!(of["format"].as_str(), Some("uint" | "uint64"))
                    || of["format"] == "uint32" && bounded
            }
            Some("number") => bounded && matches!(of["format"].as_str(), Some("float" | "double")),
            Some("array") => of["items"] == json!({"type": "string"}),
            None => of["oneOf"].as_array().is_some_and(|all| all.iter().all(|one| one["const"].is_string())),
            Some(_) => false,
        };
        (!understood).then(|| of.to_string())
    }

    #[test]
    fn nothing_in_the_schema_is_skipped() {
        let schemas = [
            schemars::schema_for!(ModelConfig),
            schemars::schema_for!(DataConfig),
            schemars::schema_for!(OptimConfig),
            schemars::schema_for!(RunConfig),
        ];
        for schema in &schemas {
            for (name, field) in schema.as_value()["properties"].as_object().unwrap() {
                assert_eq!(skipped(field, schema.as_value()), None, "{name}");
            }
        }
        let strange = [
            json!({"type": "string", "pattern": "x"}),
            json!({"type": ["string", "null"]}),
            json!({"type": "integer", "format": "int64"}),
            json!({"type": "integer", "format": "uint32", "minimum": 0}),
            json!({"type": "number", "format": "float"}),
            json!({"type": "array", "items": {"type": "integer"}}),
            json!({"oneOf": [{"enum": ["a", "b"]}]}),
        ];
        for schema in strange {
            assert!(skipped(&schema, &schema).is_some(), "{schema}");
        }
    }

    #[test]
    fn digits_are_grouped_from_five_on() {
        let cases = [(0, "0"), (9999, "9999"), (10_000, "10_000"), (123_456_789, "123_456_789")];
        for (value, expected) in cases {
            assert_eq!(group(value), expected);
        }
    }
}
