//! Contents, for people and for programs.

use core::fmt::Write;

use serde_json::{Map, Value, json as object};

use super::partitions::Partition;
use super::{Contents, Found, TableKind};
use crate::units;

/// The lines for people: a heading, and one for each partition.
pub(in crate::info) fn lines(contents: &Contents) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(contents.found.as_ref().map(words));
    if let Some(table) = &contents.table {
        lines.push(match (table.kind, table.partitions.len()) {
            (TableKind::Damaged, _) => "GPT, which is damaged, as is its backup".into(),
            (kind, 1) => format!("{}, 1 partition", name(kind)),
            (kind, count) => format!("{}, {count} partitions", name(kind)),
        });
        lines.extend(table.partitions.iter().map(partition));
    }
    lines
}

const fn name(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Gpt | TableKind::Damaged => "GPT",
        TableKind::Mbr => "MBR partition table",
    }
}

fn partition(partition: &Partition) -> String {
    let Partition { number, range, code, purpose, name, found } = partition;
    let (size, offset) = (units::bytes(range.end - range.start), range.start);
    let mut text = format!("\t{number}: {size} at offset {offset}, {}", purpose.unwrap_or(code));
    if !name.is_empty() {
        push(&mut text, format_args!(" {}", quoted(name)));
    }
    if let Some(found) = found {
        push(&mut text, format_args!(": {}", words(found)));
    }
    text
}

fn words(found: &Found) -> String {
    let mut text = found.words.to_owned();
    if let Some(label) = &found.label {
        push(&mut text, format_args!(", label {}", quoted(label)));
    }
    if let Some(uuid) = &found.uuid {
        push(&mut text, format_args!(", UUID {uuid}"));
    }
    text
}

fn push(text: &mut String, more: core::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(more);
}

/// A label between quotes, so that it can't pass for words of ours.
fn quoted(label: &str) -> String {
    format!("\"{}\"", label.replace('\\', "\\\\").replace('"', "\\\""))
}

/// One object: the type with label and UUID, and the partitions if there are any.
pub(in crate::info) fn json(contents: &Contents) -> Value {
    let mut map = of_found(contents.found.as_ref());
    if let Some(table) = &contents.table {
        let kind = match table.kind {
            TableKind::Gpt | TableKind::Damaged => "gpt",
            TableKind::Mbr => "mbr",
        };
        let partitions: Vec<Value> = table.partitions.iter().map(of_partition).collect();
        let damaged = table.kind == TableKind::Damaged;
        map.insert("partition-table".into(), object!({ "type": kind, "damaged": damaged }));
        map.insert("partitions".into(), partitions.into());
    }
    map.into()
}

fn of_found(found: Option<&Found>) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(Found { kind, label, uuid, .. }) = found {
        map.insert("type".into(), (*kind).into());
        map.insert("label".into(), label.clone().into());
        map.insert("uuid".into(), uuid.clone().into());
    }
    map
}

fn of_partition(partition: &Partition) -> Value {
    let Partition { number, range, code, purpose, name, found } = partition;
    object!({
        "number": number,
        "offset": range.start,
        "size": range.end - range.start,
        "type": code,
        "purpose": purpose,
        "name": name,
        "contents": found.as_ref().map(|found| Value::from(of_found(Some(found)))),
    })
}
