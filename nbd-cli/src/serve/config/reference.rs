//! The reference of all keys in `docs/configuration.md`, made of the types and their comments.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::model::Config;
use super::{fields, load};

/// What stands above the part that is made.
const MARK: &str = "<!-- Made of the comments in nbd-cli/src/serve/config/model.rs and export.rs; \
                    NBD_WRITE_REFERENCE=1 cargo test -p nbd-cli reference writes it. -->\n";

/// Columns of a line.
const WIDTH: usize = 120;

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").join("docs").join(name)
}

/// All tables with their keys, in Markdown.
fn reference() -> String {
    let schema = schemars::schema_for!(Config);
    let schema = schema.as_value();
    let mut text = String::new();
    for (table, keys) in fields::tables() {
        let outermost = &schema["properties"][table];
        let properties = match table {
            "" => continue,
            table if fields::is_repeated(table) => resolved(schema, &outermost["items"]),
            _ => resolved(schema, outermost),
        };
        let _never_fails = write!(text, "\n## `{}`\n\n", fields::brackets(table));
        let about = string(&outermost["description"]);
        text.push_str(&wrapped("", &about));
        let more = string(&properties["description"]);
        if more != about {
            text.push('\n');
            text.push_str(&wrapped("", &more));
        }
        text.push('\n');
        for key in keys {
            let property = &properties["properties"][key];
            let mut about = vec![kind(schema, property)];
            match property.get("default").filter(|value| !value.is_null()) {
                Some(default) => about.push(format!("default `{default}`")),
                // What a file that is printed leaves out.
                None if property["type"] == "boolean" => about.push("default `false`".into()),
                None => {}
            }
            let mut head = format!("- `{key}`: {}", about.join(", "));
            if let Some(option) = property["cli"].as_str() {
                let options = option.split(", ").map(|option| format!("`{option}`"));
                head.push_str(&format!("; {}", Vec::from_iter(options).join(", ")));
            }
            let entry = format!("{head}. {}", string(&property["description"]));
            text.push_str(&wrapped("  ", &entry));
        }
    }
    text
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).replace('\n', " ")
}

/// What a reference within the schema refers to.
fn resolved<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"].as_str().and_then(|target| target.strip_prefix('#'));
    target.map_or(value, |target| schema.pointer(target).expect("it is there"))
}

/// What a value is.
fn kind(schema: &Value, property: &Value) -> String {
    if let Some(kind) = property["kind"].as_str() {
        return kind.into();
    }
    let options = property["anyOf"].as_array();
    let property = options.map_or(property, |options| &options[0]);
    let property = resolved(schema, property);
    if let Some(title) = property["title"].as_str() {
        return title.into();
    }
    if let Some(variants) = property["oneOf"].as_array() {
        let words = variants.iter().map(|variant| format!("`{}`", variant["const"]));
        return Vec::from_iter(words).join(", ");
    }
    let kind = match &property["type"] {
        Value::Array(kinds) => &kinds[0],
        kind => kind,
    };
    match kind.as_str() {
        Some("boolean") => "`true` or `false`".into(),
        Some("integer") => "number".into(),
        Some("array") => match property["items"]["title"].as_str() {
            Some(item) => format!("list: {item}"),
            None => "list of texts".into(),
        },
        Some("string") => "text".into(),
        _ => panic!("{property} is of no kind that the reference knows"),
    }
}

/// A paragraph in lines; all but the first begin with the indent.
fn wrapped(indent: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line = indent.to_owned();
        }
        if !line.trim().is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + &line + "\n"
}

#[test]
fn the_reference_has_all_keys_as_they_are() {
    let path = docs("configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (head, present) = page.split_once(MARK).expect("the page has the mark");
    let reference = reference();
    if std::env::var_os("NBD_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, format!("{head}{MARK}{reference}")).unwrap();
        return;
    }
    assert!(
        present == reference,
        "docs/configuration.md is stale: NBD_WRITE_REFERENCE=1 cargo test -p nbd-cli reference\n{reference}"
    );
}

#[test]
fn the_example_keeps_to_the_rules() {
    let config = load(&docs("nbd.toml")).unwrap_or_else(|failure| panic!("{failure:?}"));
    assert!(config.exports.len() > 1 && config.listeners.len() > 1);
}
