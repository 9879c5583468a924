//! The report for programs, with nbdinfo's keys in nbdinfo's order.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::contents;
use super::report::{Described, Report};
use crate::json;

/// Writes a report.
pub(crate) fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let exports: Vec<Value> = report.exports.iter().map(one).collect();
    let document = json!({
        "protocol": report.protocol(),
        "TLS": report.tls,
        "structured": report.structured,
        "extended": report.extended,
        "exports": exports,
    });
    json::write(out, &document)
}

fn one(export: &Described) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    put("export-name", export.name().into());
    if let Some(text) = &export.description {
        put("description", text.as_str().into());
    }
    if let Some(content) = &export.content {
        put("content", content.as_str().into());
    }
    if let Some(uri) = &export.uri {
        put("uri", uri.as_str().into());
    }
    if !export.contexts.is_empty() {
        put("contexts", export.contexts.as_slice().into());
    }
    for (name, value) in export.booleans() {
        put(name, value.into());
    }
    for (name, value) in export.block_sizes() {
        put(name, value.into());
    }
    put("export-size", export.size.into());
    put("export-size-str", export.short_size().into());
    // nbdinfo has no such key.
    if let Some(known) = &export.contents {
        put("contents", contents::json(known));
    }
    map.into()
}
