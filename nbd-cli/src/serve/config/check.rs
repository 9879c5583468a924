//! The rules that a configuration keeps to, whatever it comes from. They need nothing but itself: what files are there
//! is found out when they are opened.

use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use nbd_engine::counted;
use nbd_engine::export::{Memory, Tracked};
use nbd_engine::proto::wire::is_valid_string;

use super::source::Source;
use super::{Address, Backend, Config, Export, Size, VolumeCache};
use crate::exit::Failure;
use crate::output::quoted;

/// Bytes of a directory's name at most: the protocol's strings have 4096, names of files 255.
const MAX_PREFIX: usize = 4096 - 256;

/// The least bytes of memory that a volume or an object is given.
pub(crate) const MIN_VOLUME_MEMORY: u64 = 192 << 20;

/// The same for an object that is a disk.
pub(crate) const MIN_OBJECT_MEMORY: u64 = 32 << 20;

/// The least size of a volume's cache on disk, in bytes.
pub(crate) const MIN_VOLUME_CACHE: u64 = 64 << 20;

/// The leases that a volume is given: a shorter one may be over before a slow store has answered, and a longer one keeps
/// a successor waiting.
const VOLUME_LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);

/// Refuses what can't be, with all that is wrong.
///
/// # Errors
/// Of a command line a usage error about the first, of a file all of them.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    let mut rules = Rules { source: &config.source, faults: Vec::new() };
    rules.server(config);
    rules.listeners(config);
    rules.exports(config);
    let mut faults = rules.faults.into_iter();
    match &config.source {
        Source::CommandLine => faults.next().map_or(Ok(()), |(_, text)| Err(Failure::Usage(text))),
        source => {
            let faults = Vec::from_iter(faults.map(|(key, text)| source.fault(&key, &text)));
            if faults.is_empty() { Ok(()) } else { Err(Failure::Config(faults)) }
        }
    }
}

struct Rules<'a> {
    source: &'a Source,
    /// The key at fault, and what is wrong with it.
    faults: Vec<(String, String)>,
}

impl Rules<'_> {
    fn broken(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.faults.push((key.into(), text.into()));
    }

    fn server(&mut self, config: &Config) {
        let server = &config.server;
        if server.control.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            self.broken("server.control", "give the path of a socket");
        }
        let most = server.runtime.max_connections();
        if server.max_connections > most {
            let text = format!(
                "with a thread for each connection there can be {most}: give at most that, or let tasks run them \
                 (--runtime tokio)"
            );
            self.broken("server.max-connections", text);
        }
        if !server.oldstyle {
            return;
        }
        if let Some(index) = config.exports.iter().position(Export::is_directory) {
            let text = "oldstyle clients name no export: serve a file of the directory by itself";
            self.broken(format!("export.{index}.directory"), text);
        }
        if config.exports.len() > 1 {
            let text = "oldstyle clients get the one export that there is: leave out the others";
            self.broken("export.1", text);
        }
        for (index, export) in config.exports.iter().enumerate() {
            for (given, key) in [
                (export.block_size_required, "block-size-required"),
                (!export.track.is_empty(), "track"),
                (export.allocation_depth, "allocation-depth"),
                (export.tls_only, "tls-only"),
            ] {
                if given {
                    let text = format!("oldstyle clients have none of this: leave out {key}");
                    self.broken(format!("export.{index}.{key}"), text);
                }
            }
        }
    }

    fn listeners(&mut self, config: &Config) {
        let mut taken: Vec<Address<'_>> = Vec::new();
        for (index, listen) in config.listeners.iter().enumerate() {
            let address = match listen.address() {
                Ok(address) => address,
                Err(text) => {
                    self.broken(format!("listen.{index}"), text);
                    continue;
                }
            };
            let (key, text) = match address {
                Address::Tcp(address) => ("tcp", address.to_string()),
                Address::Unix(path) => ("unix", quoted(path.as_os_str())),
                #[cfg(target_os = "linux")]
                Address::Vsock(address) => ("vsock", format!("vsock {address}")),
                Address::Activation => ("activation", "socket activation".into()),
            };
            let key = format!("listen.{index}.{key}");
            match address {
                Address::Unix(path) if path.as_os_str().is_empty() => {
                    self.broken(&key, "give the path of a socket");
                }
                Address::Unix(path) if config.server.control.as_deref() == Some(path) => {
                    self.broken(
                        &key,
                        format!("{text} is the path of the control socket, too: choose another"),
                    );
                }
                _ => {}
            }
            // Each takes a free port of its own.
            let free = match address {
                Address::Tcp(address) => address.port == 0,
                #[cfg(target_os = "linux")]
                Address::Vsock(address) => address.port == 0,
                _ => false,
            };
            if !free && taken.contains(&address) && matches!(self.source, Source::File(_)) {
                self.broken(&key, format!("two listeners are at {text}: leave out one"));
            }
            taken.push(address);
        }
    }

    fn exports(&mut self, config: &Config) {
        if config.exports.is_empty() {
            // A file that is still being written does not end what is served.
            let text = "there is nothing to serve: add an [[export]] with file, memory, directory, volume \
                        or object";
            self.broken("", text);
        }
        let mut names = HashMap::new();
        for (index, export) in config.exports.iter().enumerate() {
            let key = |key: &str| format!("export.{index}.{key}");
            self.text(key("name"), "export name", &export.name);
            if let Some(description) = &export.description {
                self.text(key("description"), "description", description);
            }
            self.volume_memory(index, export);
            self.volume_alone(index, export);
            match export.backend() {
                Ok(Backend::File(path)) if path.as_os_str().is_empty() => {
                    self.broken(key("file"), "give the path of a file or block device");
                }
                Ok(Backend::Volume(_)) => self.in_a_store(index, "a volume", export, config),
                Ok(Backend::Object(_)) => self.in_a_store(index, "an object", export, config),
                Ok(Backend::Directory(path)) => self.directory(index, path, export),
                Ok(_) => {}
                Err(text) => self.broken(format!("export.{index}"), text),
            }
            if let Some(first) = names.insert(export.label(), index) {
                let remedy = self.another_name(export, first);
                let text = match export.is_directory() {
                    true if export.name.is_empty() => {
                        format!("two directories have no name in front of their files: {remedy}")
                    }
                    _ => format!("two exports are called '{}': {remedy}", export.label()),
                };
                self.broken(key("name"), text);
            }
            if export.block_size_required && export.block_size.is_none() {
                let text = "block-size-required needs block-size: add it";
                self.broken(key("block-size-required"), text);
            }
            if export.read_only && !export.track.is_empty() {
                let text = "what is read-only has no changes to record: leave out track";
                self.broken(key("track"), text);
            }
            self.track(&key("track"), export);
        }
    }

    /// What can't be said of all files of a directory at once.
    fn directory(&mut self, index: usize, path: &Path, export: &Export) {
        let key = |key: &str| format!("export.{index}.{key}");
        if path.as_os_str().is_empty() {
            self.broken(key("directory"), "give the path of a directory");
        }
        if export.name.len() > MAX_PREFIX {
            let text = format!(
                "the name of a directory has at most {MAX_PREFIX} bytes, so that those of its files fit behind it"
            );
            self.broken(key("name"), text);
        }
        if !export.track.is_empty() {
            let track = self.source.word("--track", "track");
            let text = format!(
                "changes to files of a directory are not recorded, as a record would end with the last client of a \
                 file: leave out {track}, or export the file by itself"
            );
            self.broken(key("track"), text);
        }
        for (layer, word) in export.layers.iter().enumerate() {
            if let Some(file) = word.clone().path_mut() {
                let text = format!(
                    "the layer {word} would write what is of all files of the directory to {}: leave out its file, or \
                     export a file by itself",
                    quoted(file.as_os_str())
                );
                self.broken(key(&format!("layers.{layer}")), text);
            }
        }
    }

    fn text(&mut self, key: String, what: &str, text: &str) {
        if !is_valid_string(text.as_bytes()) {
            let text = format!("the {what} has more than 4096 bytes, or a NUL among them");
            self.broken(key, text);
        }
    }

    fn another_name(&self, export: &Export, first: usize) -> String {
        let backend = match export.backend() {
            Ok(Backend::File(path)) => path.display().to_string(),
            Ok(Backend::Memory(size)) => format!("memory:{}", Size(size)),
            Ok(Backend::Volume(url)) => format!("volume:{url}"),
            Ok(Backend::Object(url)) => url.to_owned(),
            Ok(Backend::Directory(path)) => format!("dir:{}", path.display()),
            Err(_) => "BACKEND".into(),
        };
        match self.source {
            Source::CommandLine => format!("give each its own name, such as first={backend}"),
            Source::File(_) if export.name.is_empty() => {
                "without name it is the empty one; give each its own name".into()
            }
            source @ Source::File(_) => {
                let first = source.fault(&format!("export.{first}.name"), "");
                let first = first.heading.trim_end_matches(": ");
                format!("give each its own name; the first is at {first}")
            }
        }
    }

    /// The memory of a volume or an object.
    fn volume_memory(&mut self, index: usize, export: &Export) {
        let Some(Size(memory)) = export.volume_memory else { return };
        let word = self.source.word("--volume-memory", "volume-memory");
        let key = format!("export.{index}.volume-memory");
        let min = match export.backend() {
            Ok(Backend::Volume(_)) => MIN_VOLUME_MEMORY,
            Ok(Backend::Object(_)) => MIN_OBJECT_MEMORY,
            _ => {
                let text = format!("{word} is for volumes and objects alone: leave it out");
                return self.broken(key, text);
            }
        };
        if memory < min {
            let text = format!("{word} {memory} is too little: give at least {}M", min >> 20);
            self.broken(key, text);
        }
    }

    /// What is for volumes alone.
    fn volume_alone(&mut self, index: usize, export: &Export) {
        let is_volume = matches!(export.backend(), Ok(Backend::Volume(_)));
        for (given, key, option) in [
            (export.volume_cache.is_some(), "volume-cache", "--volume-cache"),
            (export.volume_exclusive, "volume-exclusive", "--volume-exclusive"),
            (export.volume_lease.is_some(), "volume-lease", "--volume-lease"),
        ] {
            if given && !is_volume {
                let word = self.source.word(option, key);
                let remedy = self.source.word(
                    "leave it out, or give it to each volume in a configuration file (--config)",
                    "leave it out",
                );
                let text =
                    format!("{word} is for volumes alone, and not every export is one: {remedy}");
                self.broken(format!("export.{index}.{key}"), text);
            }
        }
        if !is_volume {
            return;
        }
        if let Some(VolumeCache { size: Size(bytes), .. }) = export.volume_cache
            && bytes < MIN_VOLUME_CACHE
        {
            let word = self.source.word("--volume-cache", "volume-cache");
            let text = format!(
                "{word} of {} is too little for a volume: give at least 64M",
                counted(bytes, "byte")
            );
            self.broken(format!("export.{index}.volume-cache"), text);
        }
        if let Some(lease) = &export.volume_lease
            && !VOLUME_LEASES.contains(&lease.0)
        {
            let word = self.source.word("--volume-lease", "volume-lease");
            let text = format!("{word} {lease} is not from 1s to 10m");
            self.broken(format!("export.{index}.volume-lease"), text);
        }
    }

    /// What goes with the others does not go with a volume or an object, which `what` says.
    fn in_a_store(&mut self, index: usize, what: &str, export: &Export, config: &Config) {
        for (given, key, option) in [
            (!export.layers.is_empty(), "layers", "--layer"),
            (!export.track.is_empty(), "track", "--track"),
            (export.allocation_depth, "allocation-depth", "--allocation-depth"),
            (export.block_size.is_some(), "block-size", "--block-size"),
        ] {
            if given {
                let word = self.source.word(option, key);
                let text = format!("{word} does not go with {what}: leave it out");
                self.broken(format!("export.{index}.{key}"), text);
            }
        }
        if !config.server.sandbox.is_off() {
            let word = self.source.word("--sandbox", "sandbox");
            let text = format!("{what} needs the network, which {word} takes away: leave it out");
            self.broken("server.sandbox", text);
        }
    }

    /// The names of bitmaps: a disk of no size tells which of them can't be.
    fn track(&mut self, key: &str, export: &Export) {
        if export.track.is_empty() {
            return;
        }
        let Ok(scratch) = Memory::new(0) else { return };
        let scratch = Tracked::new(scratch);
        let mut seen = HashSet::new();
        for (index, name) in export.track.iter().enumerate() {
            let fault = match seen.insert(name) {
                true => scratch.tracker().start(name).err().map(|error| error.to_string()),
                false => Some("it is given twice: leave one of them out".into()),
            };
            if let Some(fault) = fault {
                let text = format!("{} '{name}': {fault}", self.source.word("--track", "track"));
                self.broken(format!("{key}.{index}"), text);
            }
        }
    }
}
