//! From a TOML file to a configuration, with all that is wrong with it.

use std::fs;
use std::io::{self, Read};
use std::mem;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::document::Document;
use super::fields;
use super::kind::{self, Kind};
use super::source::Source;
use super::{Config, check};
use crate::exit::{Failure, Fault};
use crate::output::quoted;
use crate::serve::denied;
use crate::spelling;

/// Bytes of a file, of which there are some thousand exports in.
const MAX_LENGTH: u64 = 4 << 20;

/// Faults that are reported at once.
pub(crate) const MAX_FAULTS: usize = 20;

/// Reads a file, and checks it by the rules that need nothing but itself.
///
/// Relative paths in it are relative to the folder that it is in.
pub(crate) fn load(path: &Path) -> Result<Config, Failure> {
    let text = text(path)?;
    let mut config = parse(path, text).map_err(Failure::Config)?;
    config.resolve(path.parent().unwrap_or(Path::new("")));
    check(&config)?;
    Ok(config)
}

fn text(path: &Path) -> Result<String, Failure> {
    let shown = quoted(path.as_os_str());
    let failed = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "; check the path",
            io::ErrorKind::IsADirectory => "; name a file in it",
            _ => "",
        };
        let denied = denied::why(error.kind());
        Failure::failed(format!("cannot read the configuration {shown}: {error}{remedy}{denied}"))
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_LENGTH + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LENGTH {
        let text = format!("{shown} has more than {MAX_LENGTH} bytes: it is no configuration");
        return Err(Failure::failed(text));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        // Nothing before it was replaced, so that offsets up to there are the same.
        let fault = Document::new(path, text).fault(valid..valid + 1, "this is not UTF-8");
        Failure::Config(vec![fault])
    })
}

/// What a file's text says, or all that is wrong with it.
pub(super) fn parse(path: &Path, text: String) -> Result<Config, Vec<Fault>> {
    let mut document = Document::new(path, text);
    let text = document.text().to_owned();
    let mut table = DeTable::parse(&text).map_err(|error| {
        let span = error.span().unwrap_or(text.len()..text.len());
        vec![document.fault(span, error.message())]
    })?;
    document.index(table.get_ref());
    let mut faults = Vec::new();
    remove_unknown(table.get_mut(), &mut faults);
    let config = values(&mut table, &mut faults);
    match config {
        Some(mut config) if faults.is_empty() => {
            config.source = Source::File(Arc::new(document));
            Ok(config)
        }
        _ => {
            faults.sort_by_key(|(span, _)| span.start);
            let faults = faults.into_iter().take(MAX_FAULTS);
            Err(faults.map(|(span, text)| document.fault(span, &text)).collect())
        }
    }
}

/// What is wrong where.
type Found = (Range<usize>, String);

/// Takes the keys out that there are not, and tables that are written as something else: serde would take a list for a
/// table with its keys in order.
fn remove_unknown(root: &mut DeTable<'_>, faults: &mut Vec<Found>) {
    for (name, keys) in fields::tables() {
        if name.is_empty() {
            remove_unknown_of(name, keys, root, faults);
            continue;
        }
        let Some(value) = root.get_mut(name) else { continue };
        let span = value.span();
        let items: Option<Vec<_>> = match value.get_mut() {
            DeValue::Array(items) if fields::is_repeated(name) => Some(items.iter_mut().collect()),
            DeValue::Table(_) if !fields::is_repeated(name) => Some(vec![value]),
            _ => None,
        };
        let tables = items.and_then(|items| items.into_iter().map(as_table).collect());
        let Some(tables): Option<Vec<_>> = tables else {
            faults.push((span, format!("{name} is a table: write {}", fields::brackets(name))));
            root.remove(name);
            continue;
        };
        for table in tables {
            remove_unknown_of(name, keys, table, faults);
        }
    }
}

fn as_table<'a, 'i>(value: &'a mut Spanned<DeValue<'i>>) -> Option<&'a mut DeTable<'i>> {
    match value.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

fn remove_unknown_of(
    table: &str,
    known: &[&str],
    entries: &mut DeTable<'_>,
    faults: &mut Vec<Found>,
) {
    let keys = entries.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
    for key in Vec::from_iter(keys.cloned()) {
        let name = key.get_ref();
        let within = match table {
            "" => String::new(),
            table => format!(" in {}", fields::brackets(table)),
        };
        let remedy = fields::remedy(table, name);
        faults.push((key.span(), format!("unknown key '{name}'{within}; {remedy}")));
        entries.remove(&**name);
    }
    // serde would take a table with the word as its key for the word.
    for key in Vec::from_iter(entries.keys().map(|key| key.get_ref().clone())) {
        let Some(value) = entries.get(&*key) else { continue };
        let is_text = matches!(value.get_ref(), DeValue::String(_));
        if let Some(kind @ Kind::Choice(_)) = kind::of(table, &key)
            && !is_text
        {
            faults.push((value.span(), cannot_be(&key, &kind, value.get_ref())));
            entries.remove(&*key);
        }
    }
}

/// What is wrong with a value of a type that is not that of its key, which `what` names.
fn cannot_be(what: &str, kind: &Kind, value: &DeValue<'_>) -> String {
    format!("{what} cannot be {}: {}", kind::shown(value), kind.remedy(value))
}

/// The configuration. A value that can't be is reported and left out, so that the next one is found.
fn values(table: &mut Spanned<DeTable<'_>>, faults: &mut Vec<Found>) -> Option<Config> {
    while faults.len() <= MAX_FAULTS {
        let error = match Config::deserialize(toml::Deserializer::from(table.clone())) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        let text = mistyped("", table.get_ref(), &span, error.message());
        let removed = remove_at(table.get_mut(), &span);
        faults.push((span, text.unwrap_or_else(|| reworded(error.message()))));
        if !removed {
            return None;
        }
    }
    None
}

/// What to say of a value of another type than its key takes, rather than what the deserializer says: it speaks of types
/// of ours. `None` if what is wrong there is not the type.
fn mistyped(name: &str, table: &DeTable<'_>, span: &Range<usize>, message: &str) -> Option<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    table.iter().find_map(|(key, value)| {
        let key = key.get_ref();
        let kind = kind::of(name, key);
        // What takes no table has no keys within.
        if !kind.as_ref().is_some_and(Kind::is_plain) {
            let items = match value.get_ref() {
                DeValue::Array(items) => &items[..],
                _ => core::slice::from_ref(value),
            };
            let tables = items.iter().filter_map(|item| item.get_ref().as_table());
            if let Some(text) =
                tables.into_iter().find_map(|table| mistyped(key, table, span, message))
            {
                return Some(text);
            }
            if let (Some(Kind::List(kind)), DeValue::Array(items)) = (&kind, value.get_ref())
                && let Some(item) = items.iter().find(|item| holds(item.span()))
            {
                return of_type(&format!("an item of {key}"), Some(kind), item.get_ref(), message);
            }
        }
        if holds(value.span()) {
            return of_type(key, kind.as_ref(), value.get_ref(), message);
        }
        None
    })
}

/// The same of this value, which `what` names.
fn of_type(what: &str, kind: Option<&Kind>, value: &DeValue<'_>, message: &str) -> Option<String> {
    if !["invalid type: ", "invalid value: "].iter().any(|start| message.starts_with(start)) {
        return None;
    }
    Some(match kind {
        Some(kind) => cannot_be(what, kind, value),
        // A value of a layer.
        None => {
            cannot_be(what, &Kind::Word(message.split_once(", expected ")?.1.to_owned()), value)
        }
    })
}

/// What the deserializer says, with the nearest word where there are only some to choose from.
fn reworded(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let word = quoted.next().filter(|_| message.starts_with("unknown variant `"));
    let Some(word) = word else { return message.to_owned() };
    let known = Vec::from_iter(quoted);
    let nearest = spelling::nearest(word, known.iter().copied());
    let hint = nearest.first().map(|nearest| format!("; did you mean '{nearest}'?"));
    format!("'{word}' is none of {}{}", known.join(", "), hint.unwrap_or_default())
}

/// Takes the innermost value out that has all of this in it: that of a key, or an item of a list, so that the next one is
/// looked at. Gives whether there was one.
fn remove_at(table: &mut DeTable<'_>, span: &Range<usize>) -> bool {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    for (key, value) in table.iter_mut() {
        match value.get_mut() {
            DeValue::Array(items) if fields::is_repeated(key.get_ref()) => {
                let mut tables = items.iter_mut().filter_map(as_table);
                if tables.any(|table| remove_at(table, span)) {
                    return true;
                }
            }
            DeValue::Array(items) => {
                let before = items.len();
                let all = mem::replace(items, DeArray::new()).into_iter();
                *items = all.filter(|item| !holds(item.span())).collect();
                if items.len() < before {
                    return true;
                }
            }
            _ => {}
        }
        if as_table(value).is_some_and(|inner| remove_at(inner, span)) {
            return true;
        }
    }
    let holder = table.iter().find(|(key, value)| holds(value.span()) || holds(key.span()));
    let holder = holder.map(|(key, _)| key.get_ref().clone());
    holder.is_some_and(|key| table.remove(&*key).is_some())
}
