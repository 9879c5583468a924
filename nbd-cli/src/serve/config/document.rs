//! The text of a configuration file, and where in it what stands.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::exit::Fault;
use crate::output;

/// Characters of a line that are shown around what is wrong with it.
const WIDTH: usize = 100;

/// A file's text, and where its values stand.
#[derive(Debug)]
pub(crate) struct Document {
    path: PathBuf,
    text: String,
    /// By the keys and indexes that lead there, such as `export.2.name`.
    spans: HashMap<String, Range<usize>>,
}

impl Document {
    pub(super) fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text, spans: HashMap::new() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Remembers where all values of the table stand.
    pub(super) fn index(&mut self, table: &DeTable<'_>) {
        let mut spans = HashMap::new();
        add_table(&mut spans, "", table);
        self.spans = spans;
    }

    /// Where the value of a key stands, or that of the nearest key before it.
    pub(super) fn span(&self, key: &str) -> Range<usize> {
        let mut key = key;
        loop {
            if let Some(span) = self.spans.get(key) {
                return span.clone();
            }
            match key.rsplit_once('.') {
                Some((parent, _)) => key = parent,
                None => return 0..0,
            }
        }
    }

    /// What is wrong with this part of the text.
    pub(super) fn fault(&self, span: Range<usize>, text: &str) -> Fault {
        let start = floor(&self.text, span.start);
        let end = floor(&self.text, span.end).max(start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &self.text[line_start..];
        let line = rest.lines().next().unwrap_or_default();
        let number = self.text[..line_start].matches('\n').count() + 1;
        let column = self.text[line_start..start].chars().count() + 1;
        let path = self.path.display();
        let marked = end.min(line_start + line.len()).max(start) - start;
        Fault {
            heading: format!("{path}:{number}:{column}: {text}"),
            excerpt: excerpt(line, number, start - line_start, marked),
        }
    }
}

/// The nearest boundary of a character at or before this offset.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// A line, its number in front, and below it marks under so many bytes of it.
fn excerpt(line: &str, number: usize, start: usize, marked: usize) -> Vec<String> {
    let start = floor(line, start);
    let end = floor(line, start + marked);
    let shown = |text: &str| output::printable(&text.replace('\t', " "));
    let before = shown(&line[..start]);
    let (skipped, before) = match before.char_indices().nth_back(WIDTH / 2) {
        Some((cut, _)) => ("...", &before[cut..]),
        None => ("", &*before),
    };
    let within = shown(&line[start..end]);
    let after = shown(&line[end..]);
    let text: String =
        before.chars().chain(within.chars()).chain(after.chars()).take(WIDTH).collect();
    let left = WIDTH.saturating_sub(before.chars().count());
    let marks = "^".repeat(within.chars().count().clamp(1, left.max(1)));
    let margin = " ".repeat(number.to_string().len());
    let indent = " ".repeat(skipped.len() + before.chars().count());
    vec![
        format!("{margin} |"),
        format!("{number} | {skipped}{text}").trim_end().to_owned(),
        format!("{margin} | {indent}{marks}"),
    ]
}

fn add_table(spans: &mut HashMap<String, Range<usize>>, key: &str, table: &DeTable<'_>) {
    for (name, value) in table {
        let within = join(key, name.get_ref());
        add(spans, &within, value.span(), value.get_ref());
    }
}

fn add(
    spans: &mut HashMap<String, Range<usize>>,
    key: &str,
    span: Range<usize>,
    value: &DeValue<'_>,
) {
    spans.insert(key.to_owned(), span);
    match value {
        DeValue::Table(table) => add_table(spans, key, table),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                add(spans, &join(key, &index.to_string()), item.span(), item.get_ref());
            }
        }
        _ => {}
    }
}

/// A key within another one; the outermost is empty.
pub(super) fn join(key: &str, name: &str) -> String {
    match key {
        "" => name.to_owned(),
        key => format!("{key}.{name}"),
    }
}
