//! `nbd devices`.

use std::io::Write;

use clap::Args;
use serde_json::{Map, Value};

use super::device::{Device, Facts, Files};
use super::explain;
use super::netlink::State;
use crate::exit::Failure;
use crate::{json, output};

/// List the NBD devices of this machine that are attached, with their size in bytes and what they were attached to.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write JSON, of all devices
    #[arg(long)]
    json: bool,
}

/// A device.
struct Entry {
    state: State,
    facts: Facts,
    used: Option<String>,
}

/// `nbd devices`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let files = Files::default();
    let mut nbd = explain::open(&files)?;
    let states = nbd.devices().map_err(|error| explain::refused("list", None, &error))?;
    let entries = states.into_iter().map(|state| {
        let device = Device(state.index);
        let (facts, used) = match state.connected {
            true => (files.facts(device), files.use_of(device)),
            false => Default::default(),
        };
        Entry { state, facts, used }
    });
    let entries: Vec<_> = entries.collect();
    output::write(|out| {
        if arguments.json {
            let devices: Vec<_> = entries.iter().map(object).collect();
            return Ok(json::write(out, &devices)?);
        }
        for entry in entries.iter().filter(|entry| entry.state.connected) {
            writeln!(out, "{}", line(entry))?;
        }
        Ok(())
    })
}

fn line(entry: &Entry) -> String {
    let facts = &entry.facts;
    let size = facts.size.map_or_else(|| "?".into(), |size| size.to_string());
    let access = if facts.read_only { "ro" } else { "rw" };
    let backend = output::printable(facts.backend.as_deref().unwrap_or("-"));
    format!("{} {size} {access} {backend}", Device(entry.state.index))
}

fn object(entry: &Entry) -> Value {
    let (facts, connected) = (&entry.facts, entry.state.connected);
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| {
        map.insert(key.to_owned(), value);
    };
    put("device", Device(entry.state.index).to_string().into());
    put("attached", connected.into());
    if connected {
        put("size", facts.size.into());
        put("block-size", facts.block_size.into());
        put("read-only", facts.read_only.into());
        put("backend", facts.backend.as_deref().into());
        put("pid", facts.pid.into());
        put("use", entry.used.as_deref().into());
    }
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_line_for_people_and_an_object_for_programs() {
        let facts = Facts {
            size: Some(1 << 20),
            block_size: Some(512),
            read_only: true,
            backend: Some("nbd://h/\u{1b}x".into()),
            pid: None,
        };
        let used = Some("/dev/nbd2 is mounted on /mnt".into());
        let entry = Entry { state: State { index: 2, connected: true }, facts, used };
        assert_eq!(line(&entry), "/dev/nbd2 1048576 ro nbd://h/\\u{1b}x");
        let shown = object(&entry).to_string();
        assert!(shown.starts_with(r#"{"device":"/dev/nbd2","attached":true,"size":1048576,"#));
        assert!(shown.contains(r#""pid":null,"use":"/dev/nbd2 is mounted on /mnt""#), "{shown}");
        let free = State { index: 3, connected: false };
        let entry = Entry { state: free, facts: Facts::default(), used: None };
        assert_eq!(object(&entry).to_string(), r#"{"device":"/dev/nbd3","attached":false}"#);
    }
}
